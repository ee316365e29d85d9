"""Checkpoints for programs that run on Ray: `Checkpointable` classes are given to ``ray.remote`` as they are.

    import ray
    from ftray.ray import Checkpointable

    @ray.remote
    class Counter(Checkpointable, store="/var/lib/app/ckpt", exactly_once=True):
        ...

No runtime of ftray is needed, and nothing of it is started; Ray is imported when it is used. What the modes
mean on Ray is said in docs/ray-engine.md.
"""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager

from ftray.checkpoint import Checkpointable, nondeterministic, readonly, status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "Checkpointable",
    "call_key",
    "get_actor",
    "nondeterministic",
    "readonly",
    "set_job_key",
    "status",
    "with_identity",
]


def get_actor(name: str, namespace: str | None = None) -> Any:
    """Return the handle of a named exactly-once actor, whose calls carry identities of their own.

    With Ray's own ``ray.get_actor`` calls are known by Ray's TaskIDs, which a caller that is executed again
    does not repeat.

    Parameters
    ----------
    name : str
    namespace : str, optional
        Default: that of the job.

    Raises
    ------
    ValueError
        There is no such actor.
    """
    return with_identity(importlib.import_module("ray").get_actor(name, namespace))


def with_identity(handle: Any, *, timeout_s: float = 60.0) -> Any:
    """Return a handle of the same exactly-once actor whose calls carry identities of their own.

    Handles that were made by ``.remote()`` of the actor class, and passed on from there, do already; a handle
    of any other actor is returned as it is.

    Parameters
    ----------
    handle : ray.actor.ActorHandle
    timeout_s : float
        How long the actor may take to say what it is, in seconds.

    Raises
    ------
    ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError
    """
    ray = importlib.import_module("ray")
    host_handle = importlib.import_module("ftray._ray.host_handle")
    about = getattr(handle, "__ray_checkpoint_about__", None)
    if about is None or isinstance(handle, host_handle.CheckpointHandle):
        return handle
    key, reads = ray.get(about.remote(), timeout=timeout_s)
    return host_handle.wrapped(handle, key, reads)


def call_key(text: str) -> AbstractContextManager[None]:
    """Name calls to exactly-once actors by a key of your own: ``with call_key("order-123"): h.pay.remote()``.

    Whoever makes the call again with that key, in whatever process, gets the recorded reply. A key names one
    call of each actor.

    Raises
    ------
    CheckpointOptionError
        The key is not a text, or is empty.
    """
    made: AbstractContextManager[None] = importlib.import_module("ftray._ray.host_handle").call_key(text)
    return made


def set_job_key(text: str | None) -> None:
    """Have the calls of this driver's main thread be those of job `text`, also when it is run again.

    Call it before the first call to an exactly-once actor. Calls of tasks are not covered: they are known by
    Ray's TaskIDs, which are others in each run. None: no job any more.
    """
    importlib.import_module("ftray._ray.host_flow").set_job_key(text)
