"""Exceptions for errors that the core records without Python: a code and a payload."""

from __future__ import annotations

import pickle
import struct

from ftray import exceptions as exc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# The codes of `_core/wire.pxd`.
CRASHED, CANCELLED, ACTOR_DIED, ACTOR_UNAVAILABLE, OWNER_DIED = range(1, 6)
LOST, HEAD_DIED, UNSCHEDULABLE, NO_DESCRIPTORS, RUNTIME_ENV, GROUP_REMOVED = range(6, 12)
STORE_FULL = 15
CALL_CYCLE = 16
REPLAY = 20
UNMADE = 14

_KINDS = {1: "exit", 2: "signal", 3: "out of memory", 4: "hung", 5: "intended", 6: "driver left"}
_KINDS |= {7: _KINDS[3], 8: _KINDS[3], 9: "placement group removed"}  # 7, 8: by the memory monitor
_OUT_OF_MEMORY, _INTENDED, _GROUP_REMOVED = (3, 7, 8), 5, 9


def build(code: int, payload: bytes) -> Exception:
    """Make the exception of an error code.

    Parameters
    ----------
    code
        One of the module's constants.
    payload
        A WORKER_DIED frame (CRASHED), a pickled cause (ACTOR_*), or text.
    """
    if code == CRASHED:
        return _crashed(payload)
    if code == CANCELLED:
        return exc.TaskCancelledError()
    if code in (ACTOR_DIED, ACTOR_UNAVAILABLE):
        return _actor_error(code, payload)
    if code == OWNER_DIED:
        return owner_died(payload)
    if code == UNMADE:
        return unmade(payload)
    if code == CALL_CYCLE:
        return _call_cycle()
    if code == NO_DESCRIPTORS:
        return exc.RaySystemError(
            "this process has no file descriptor left to connect to the worker (EMFILE):"
            " close files, or raise the limit of open files (ulimit -n), and call again"
        )
    if code == REPLAY:
        return exc.StreamingGeneratorReplayInconsistentError(*struct.unpack("<QQ", payload))
    text = payload.decode("utf-8", "replace")
    simple: dict[int, type[exc.RayError]] = {
        LOST: exc.ObjectLostError,
        HEAD_DIED: exc.HeadDiedError,
        UNSCHEDULABLE: exc.TaskUnschedulableError,
        RUNTIME_ENV: exc.RuntimeEnvSetupError,
        STORE_FULL: exc.ObjectStoreFullError,
        GROUP_REMOVED: exc.TaskPlacementGroupRemoved,
    }
    if code in simple:
        error = simple[code]
        if issubclass(error, exc.ObjectLostError):
            return error(message=text)
        return error(text)
    return exc.RaySystemError(f"unknown error code {code}: {text}")


def _call_cycle() -> Exception:
    from ftray.checkpoint.errors import CallCycleError

    return CallCycleError(
        "the call came back to an exactly-once actor one of whose methods is on its way: that method holds"
        " the actor until it ends, so the call could never run. Pass what it needs as an argument, or call"
        " when it has ended"
    )


def _ended_by_signal(kind: int | None, code: int | None) -> bool:
    """Whether the code of a death is a signal's number (an intended end is an exit, or our own SIGKILL)."""
    return kind not in (None, 1) and (kind != _INTENDED or code == 9)


def death_from_report(payload: bytes) -> exc.DeathCause | None:
    """Read a WORKER_DIED frame: 28s worker, u32 pid, u8 kind, i32 code, f64 unix time, str text."""
    if len(payload) < 47:
        return None
    pid, kind, code, when = struct.unpack_from("<IBid", payload, 28)
    (size,) = struct.unpack_from("<H", payload, 45)
    text = payload[47 : 47 + size].decode("utf-8", "replace")
    return exc.DeathCause(
        kind=_KINDS.get(kind, f"kind {kind}"),
        text=text,
        pid=pid,
        exit_code=None if _ended_by_signal(kind, code) else code,
        signal=code if _ended_by_signal(kind, code) else None,
        unix_time=when,
        worker_id=payload[:28].hex(),
    )


def _crashed(payload: bytes) -> Exception:
    """Payload: u16 length and name of the function, then the report."""
    (size,) = struct.unpack_from("<H", payload, 0)
    name = payload[2 : 2 + size].decode("utf-8", "replace")
    report = payload[2 + size :]
    death = death_from_report(report)
    if death is not None and report[32] in _OUT_OF_MEMORY:
        return exc.OutOfMemoryError(f"the worker that ran {name}() was ended for its memory", death=death)
    if death is not None and report[32] == _GROUP_REMOVED:
        return exc.TaskPlacementGroupRemoved(f"{name}() was ended: {death.describe()}")
    return exc.WorkerCrashedError(f"the worker died while it ran {name}(), and no retry is left", death=death)


def owner_died(report: bytes, object_hex: str = "") -> exc.OwnerDiedError:
    """Make the error for an object whose owner is dead (``report``: its WORKER_DIED frame, or b"")."""
    death = death_from_report(report)
    if death is None:
        return exc.OwnerDiedError(object_hex)
    return exc.OwnerDiedError(
        object_hex,
        f"its owner has died, and the value went with it: {death.describe()}",
        owner=f"process {death.pid}",
    )


_LOST = "its value in shared memory was lost"
_UNMADE: dict[int, tuple[type[exc.ObjectLostError], str]] = {  # by reason, see _core/lineage.pxd
    0: (exc.ObjectLostError, f"{_LOST}, and nothing is known that could make it again"),
    1: (
        exc.ObjectLostError,
        f"{_LOST}, and it is not made again: lineage is off (FTRAY_lineage_pinning_enabled=0)",
    ),
    2: (
        exc.ObjectReconstructionFailedMaxAttemptsExceededError,
        f"{_LOST}, and the task that made it may not run again: it has used its max_retries",
    ),
    3: (
        exc.ObjectReconstructionFailedLineageEvictedError,
        f"{_LOST}, and how it was made is not remembered any more:"
        " lineage was larger than FTRAY_max_lineage_bytes",
    ),
    4: (
        exc.ObjectLostError,
        f"{_LOST}; it is the result of an actor's method, which runs again only with max_task_retries",
    ),
    6: (
        exc.ObjectLostError,
        f"{_LOST}; it was made by put() (large arguments are put, too), which cannot be done again:"
        " return the value from a task instead",
    ),
}


def unmade(payload: bytes) -> exc.ObjectLostError:
    """Make the error of a value that was lost for good. Payload: u8 reason, 28s id, text: how it was lost."""
    error, text = _UNMADE.get(payload[0], _UNMADE[0])
    how = payload[29:].decode("utf-8", "replace")
    return error(payload[1:29].hex(), text.replace(_LOST, how or _LOST, 1))


def _actor_error(code: int, payload: bytes) -> Exception:
    """Make the error of an actor call from the head's cause (``ftray/_node/actors.py``)."""
    cause: dict[str, Any] = pickle.loads(payload) if payload else {}
    death = cause.get("death") or {}
    kind = death.get("kind")
    number = death.get("code")
    text = cause.get("text", "")
    facts = exc.DeathCause(
        kind=_KINDS.get(kind, str(kind)) if kind else cause.get("kind", ""),
        pid=death.get("pid"),
        exit_code=None if _ended_by_signal(kind, number) else number,
        signal=number if _ended_by_signal(kind, number) else None,
        unix_time=death.get("unix_time_s"),
        incarnation=cause.get("incarnation"),
        text=death.get("text", "") if kind in _OUT_OF_MEMORY else "",
        worker_id=death["worker_id"].hex() if death.get("worker_id") else "",
    )
    fields: dict[str, Any] = {
        "actor_id": cause["actor_id"].hex() if cause.get("actor_id") else "",
        "actor_class": cause.get("class_name", ""),
        "death": facts if death else None,
    }
    if code == ACTOR_UNAVAILABLE:
        return exc.ActorUnavailableError(
            "it was restarting while the call was under way, so that the call may or may not have run"
            " (max_task_retries has such calls run again)",
            **fields,
        )
    if cause.get("kind") == "runtime_env":
        return exc.RuntimeEnvSetupError(text)
    if not cause.get("error"):
        never = not death and cause.get("incarnation") == 1
        if never and cause.get("kind") == "group_removed":
            return exc.ActorPlacementGroupRemoved(text)
        if never and cause.get("kind") == "unschedulable":
            return exc.ActorUnschedulableError(text)
        died = exc.ActorDiedError(text, **fields)
        if kind in _OUT_OF_MEMORY:
            died.__cause__ = exc.OutOfMemoryError("the actor's process was ended for its memory", death=facts)
        return died
    from ftray._task_errors import load_error

    origin = load_error(cause["error"])
    what = "it could not be restored" if cause.get("kind") == "restore" else "its constructor raised"
    error = exc.ActorDiedError(f"{what}:\n{origin}", actor_init_failed=True, **{**fields, "death": None})
    error.__cause__ = origin
    return error


def store_error(code: int, size_bytes: int) -> Exception:
    """Make the exception for a failed write to the object store (codes of `_core/store.pxd`)."""
    reasons = {
        -1: "this process was forked from one that uses ftray",
        -9: "no file descriptor is left (EMFILE):"
        " raise the limit with ulimit -n, or hold fewer large objects",
        -10: "the machine has no memory left for it",
        -11: "the process's file size limit (RLIMIT_FSIZE) is lower",
    }
    reason = reasons.get(code, f"the operating system refused (code {code})")
    return exc.ObjectStoreFullError(f"an object of {size_bytes} bytes cannot be stored: {reason}")


_RESERVE_NO_DISK = 3


def store_full(size_bytes: int, answer: bytes) -> Exception:
    """Make the exception for a refused reservation from ftrayd's answer (SEG_RESERVED)."""
    code, used_bytes, capacity_bytes, length = struct.unpack_from("<BQQH", answer)
    text = answer[19 : 19 + length].decode("utf-8", "replace")
    begin = (
        f"an object of {size_bytes} bytes does not fit: {used_bytes} of {capacity_bytes} bytes of the object"
        " store are in use"
    )
    if code == _RESERVE_NO_DISK:
        return exc.OutOfDiskError(
            f"{begin}, and others cannot be spilled: {text}. Free disk space, or give init() another"
            " object_spilling_directory="
        )
    return exc.ObjectStoreFullError(
        f"{begin}. {text} Drop refs to objects that are not needed any more, or start with a larger"
        " object_store_memory=."
    )
