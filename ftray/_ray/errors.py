"""Exceptions between a Ray cluster and programs: Ray's become ftray's, the user's stay the user's.

A user's exception leaves a worker as a `Carried`, which has it in the form that ftray's own workers send
(`ftray._task_errors`), so that it needs no constructor and no pickling of its own to arrive.

Owns: the table from Ray's classes to ftray's, and which exceptions are the user's. Invariants: `converted`
returns an exception of ``ftray.exceptions`` for each of ``ray.exceptions``, at worst `RaySystemError`; the
text is Ray's.
"""

from __future__ import annotations

import os
import pickle
import re
from typing import Any

import ray
from ray import exceptions as theirs

from ftray import _task_errors
from ftray import exceptions as ours

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_CONSTRUCTOR_KEY = b"constructor:"
_NAMESPACE = b"ftray errors"
_CARRIED_MAX = 1 << 20  # bytes of a constructor's error that are kept for its callers


class Carried(Exception):
    """A user's exception on its way out of a worker."""

    def __init__(self, payload: bytes, text: str, cause: BaseException | None = None) -> None:
        super().__init__(payload, text)
        self.payload = payload
        self.text = text
        self.cause = cause  # here only; `Retried` asks for it

    def __reduce__(self) -> tuple[Any, ...]:
        return Carried, (self.payload, self.text)

    def __str__(self) -> str:
        return self.text


def carried(error: BaseException, name: str, actor_repr: str = "") -> BaseException:
    """Return what a worker raises in place of a user's exception; Ray's own signals are left alone."""
    if isinstance(error, theirs.AsyncioActorExit | Carried) or not isinstance(error, Exception):
        return error
    text = f"{type(error).__name__}: {_task_errors.safe_text(error)}"
    ip = ray.util.get_node_ip_address()
    payload = _task_errors.make_task_error(error, name, os.getpid(), ip=ip, actor_repr=actor_repr)
    return Carried(payload, text, error)


def arrives(error: BaseException) -> bool:
    """Whether an exception can be sent to any program as it is: its class unpickles by itself."""
    try:
        again = pickle.loads(ray.cloudpickle.dumps(error))
    except Exception:  # whatever a class of the user's makes of it
        return False
    return type(again) is type(error)


class Leaving:
    """Has what is raised inside leave as what `convert` makes of it, which may be the same exception."""

    __slots__ = ("_convert",)

    def __init__(self, convert: Callable[[Exception], BaseException]) -> None:
        self._convert = convert

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, Exception):
            failure = self._convert(error)
            if failure is not error:
                raise failure from None


class _RetriedClass(type):
    """Has ``isinstance`` look at what a `Carried` carries: so Ray decides what it retries."""

    classes: tuple[type[Exception], ...] = ()

    def __instancecheck__(cls, error: Any) -> bool:
        return isinstance(error.cause if isinstance(error, Carried) else error, cls.classes)


def retried(classes: bool | tuple[type[Exception], ...]) -> bool | list[type[Exception]]:
    """Return Ray's ``retry_exceptions`` for ours."""
    if isinstance(classes, bool):
        return classes
    return [_RetriedClass("Retried", (Exception,), {"classes": classes})]  # type: ignore[list-item]


def keep_constructor_error(error: Carried) -> None:
    """Keep why this process's actor could not be made: Ray tells callers its text only."""
    actor_hex = ray.get_runtime_context().get_actor_id()
    if actor_hex is None:
        return
    actor_id = bytes.fromhex(actor_hex)
    from ray.experimental.internal_kv import _internal_kv_put

    if len(error.payload) <= _CARRIED_MAX:
        _internal_kv_put(_CONSTRUCTOR_KEY + actor_id, error.payload, namespace=_NAMESPACE)


def _constructor_error(actor_id: str) -> Exception | None:
    from ray.experimental.internal_kv import _internal_kv_get

    payload = _internal_kv_get(_CONSTRUCTOR_KEY + bytes.fromhex(actor_id), namespace=_NAMESPACE)
    return None if payload is None else _task_errors.load_error(payload)


def converted(error: BaseException) -> BaseException:
    """Return the exception of ftray's for one of Ray's; others are returned as they are."""
    if isinstance(error, Carried):
        return _task_errors.load_error(error.payload)
    if isinstance(error, theirs.RayTaskError):
        return _of_task(error)
    if isinstance(error, theirs.RayActorError):
        return _of_actor(error)
    if isinstance(error, theirs.ObjectLostError):
        return _of_object(error)
    if isinstance(error, theirs.TaskCancelledError):
        task_id = error.task_id.hex() if error.task_id is not None else ""
        return ours.TaskCancelledError(str(error), task_id=task_id)
    if isinstance(error, theirs.RayError):
        simple: ours.RayError = _SIMPLE.get(type(error), ours.RaySystemError)(str(error))
        return simple
    return error


def _of_task(error: Any) -> BaseException:
    """Return what the task itself raised: the failure of an argument arrives as that argument's."""
    cause = error.cause
    while isinstance(cause, theirs.RayTaskError):
        error, cause = cause, cause.cause
    if isinstance(cause, Carried) or type(cause) in _KNOWN:
        return converted(cause)
    # What Ray raises as the user's class, too, has kept its text alone; that tells the same facts.
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    found = _FACTS.search(text)
    name, pid, ip = found.groups() if found else ("a task", "0", "")
    given = error.__dict__.get("traceback_str") or text
    return ours.RayTaskError(name, given, converted(cause), pid=int(pid), ip=ip).as_instanceof_cause()


_FACTS = re.compile(r"ray::(.+?)\(\).*?\(pid=(\d+), ip=([^,)]+)")


def _of_actor(error: Any) -> ours.RayActorError:
    if isinstance(error, theirs.ActorUnavailableError):
        return ours.ActorUnavailableError(str(error), actor_id=error.actor_id or "")
    cls = ours.ActorDiedError if isinstance(error, theirs.ActorDiedError) else ours.RayActorError
    failed = bool(error.actor_init_failed)
    made = cls(str(error), actor_id=error.actor_id or "", actor_init_failed=failed)
    if failed and error.actor_id:
        made.__cause__ = _constructor_error(error.actor_id)
    return made


def _of_object(error: Any) -> ours.ObjectLostError:
    name = next(base.__name__ for base in type(error).__mro__ if hasattr(ours, base.__name__))
    if isinstance(error, theirs.ObjectReconstructionFailedError):
        reason = getattr(error, "reason", None)
        name = _RECONSTRUCTION.get(getattr(reason, "name", str(reason)), name)
    found: type[ours.ObjectLostError] = getattr(ours, name)
    return found(error.object_ref_hex, str(error))


_RECONSTRUCTION = {
    "OBJECT_UNRECONSTRUCTABLE_MAX_ATTEMPTS_EXCEEDED": "ObjectReconstructionFailedMaxAttemptsExceededError",
    "OBJECT_UNRECONSTRUCTABLE_LINEAGE_EVICTED": "ObjectReconstructionFailedLineageEvictedError",
}
_SAME_NAME = (
    "ActorPlacementGroupRemoved",
    "ActorUnschedulableError",
    "GetTimeoutError",
    "LocalRayletDiedError",
    "NodeDiedError",
    "ObjectStoreFullError",
    "OutOfDiskError",
    "OutOfMemoryError",
    "PendingCallsLimitExceeded",
    "RaySystemError",
    "RuntimeEnvSetupError",
    "StreamingGeneratorReplayInconsistentError",
    "TaskPlacementGroupRemoved",
    "TaskUnschedulableError",
    "WorkerCrashedError",
)


def _with_text(cls: type[ours.RayError]) -> Any:
    def make(text: str) -> ours.RayError:
        error = cls()
        error.args = (text,)
        return error

    return make


_SIMPLE: dict[type, Any] = {
    getattr(theirs, name): _with_text(getattr(ours, name)) for name in _SAME_NAME if hasattr(theirs, name)
}
_KNOWN = {
    *_SIMPLE,
    theirs.RayActorError,
    theirs.ActorDiedError,
    theirs.ActorUnavailableError,
    theirs.TaskCancelledError,
    *(
        cls
        for cls in vars(theirs).values()
        if isinstance(cls, type) and issubclass(cls, theirs.ObjectLostError)
    ),
}
