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

__all__ = [
    "Checkpointable",
    "call_key",
    "nondeterministic",
    "readonly",
    "set_job_key",
    "status",
]


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
