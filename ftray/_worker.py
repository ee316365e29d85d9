"""The program of a worker process: connect, then run calls until ftrayd says that it is enough.

The zygote calls `main` in a fresh fork. A worker is plain until ftrayd makes it an actor.
"""

from __future__ import annotations

import functools
import os
import pickle
import signal
import struct
import sys
import time

from ftray import (
    _accelerators,
    _core,
    _engine,
    _lifecycle,
    _native_calls,  # noqa: F401  the zygote imports what most workers need
)
from ftray._core.execution import flush as _flush
from ftray._core.worker import Executor
from ftray._node import environments, stacks
from ftray._node.frames import KIND_WORKER
from ftray.exceptions import AsyncioActorExit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import FrameType
    from typing import Any, NoReturn, TextIO

_ACTOR_READY, _ACTOR_EXIT = 34, 36
_EXIT_ACTOR, _EXIT_OUT_OF_SCOPE, _EXIT_SIGTERM = 0, 1, 2
_EXIT_HANDLERS_S = 30.0  # how long the user's atexit handlers may take
# What `ActorSession.close` is told; the second and the last also remove the snapshots of an unnamed actor.
_REASONS = {_EXIT_ACTOR: "exit_actor", _EXIT_OUT_OF_SCOPE: "out of scope", _EXIT_SIGTERM: "SIGTERM"}
_SESSION_OVER = "the session ends"
_FAILED, _MADE, _TRY_AGAIN, _PARKED = 0, 1, 2, 3  # of ACTOR_READY


class _State:
    """What this process has become."""

    executor: Executor | None = None
    actor_id: bytes = b""
    incarnation: int = 0
    spec: dict[str, Any] | None = None
    restoring: bool = False  # the constructor has returned, the actor's checkpoints are being opened
    checkpoint: Any = None


def actor_id() -> bytes:
    """Return the id of the actor that lives in this process, b"" when none does."""
    return _State.actor_id


def actor_spec() -> dict[str, Any] | None:
    """Return the record of this process's actor, None when it has none."""
    return _State.spec


def executor() -> Executor | None:
    """Return what runs calls in this process, None in a driver."""
    return _State.executor


def incarnation() -> int:
    """Return the 1-based incarnation of this process's actor, 0 when it has none."""
    return _State.incarnation


class _Labelled:
    """A text stream that names who prints, for the driver's prefix (see ``ftray/_node/logs.py``)."""

    def __init__(self, stream: TextIO, executor: Executor) -> None:
        self._stream = stream
        self._executor = executor
        self._label = ""
        self._at_line_start = True

    def write(self, text: str) -> int:
        if not text:
            return 0
        label = self._executor.current
        if self._at_line_start and label != self._label:
            self._label = label
            self._stream.write(f"\x1e{label}\x1e\n")
        self._at_line_start = text.endswith("\n")
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main(session_dir: str, startup_token: bytes) -> int:
    """Be a worker of the session.

    Parameters
    ----------
    session_dir
        Where ``ftrayd`` listens.
    startup_token
        What the zygote was given for this process.

    Returns
    -------
    int
        The exit status of the process.
    """
    stacks.prepare(session_dir)
    session = _lifecycle.connect(session_dir, startup_token, KIND_WORKER, None)
    _lifecycle.adopt(session)
    _engine.use("native")
    executor = Executor()
    executor.start_actor = _start_actor
    executor.on_terminate = _leave_when_idle
    executor.on_exit = _leave
    executor.before_first_function(_enter_job)
    executor.assign = _accelerators.assign
    _accelerators.start(_env_vars(session.runtime_env))
    _State.executor = executor
    signal.signal(signal.SIGINT, _on_interrupt)
    signal.signal(signal.SIGTERM, _on_sigterm)
    sys.stdout = _Labelled(sys.stdout, executor)
    sys.stderr = _Labelled(sys.stderr, executor)
    sys.stdout.reconfigure(line_buffering=True)
    try:
        executor.run()
    except BaseException as error:
        _leave_if_store_failed(error)
        raise
    _close_checkpoint(_SESSION_OVER)
    sys.stdout.flush()
    sys.stderr.flush()
    _flush()
    os._exit(0)


def _env_vars(text: str) -> dict[str, str]:
    if not text:
        return {}
    from ftray import _runtime_env

    found: dict[str, str] = _runtime_env.load(text).get("env_vars", {})
    return found


def _on_interrupt(signum: int, frame: FrameType | None) -> None:
    """A cancellation: only for the call that it is meant for (it may have ended meanwhile)."""
    if _State.executor is not None and _State.executor.cancel_due():
        if _imports(frame):
            _State.executor.retire()
        raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Whether the interrupted code is in the middle of an import.

    What it leaves is no sound process: a package half there, an extension that cannot be loaded twice. This
    is seen best from where the interruption strikes: tracebacks are rid of the import system's frames, and
    whoever tries several modules may catch the interruption.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib."):
            return True
        frame = frame.f_back
    return False


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    """A planned end: save, tell ftrayd that the exit is meant, go."""
    if _State.actor_id and _State.executor is not None:
        _State.executor.post(lambda: _leave_when_idle(_EXIT_SIGTERM))  # after the method that runs now
        return
    os._exit(0)


def _enter_job() -> None:
    """Before the first function is loaded: search modules where the driver does, in its directory.

    A worker of the driver that started the node was born with both. A worker serves one job only. What its
    runtime environment says goes before.
    """
    session = _lifecycle.current()
    if _core.current_context()["job_id"] == session.info["own_job"]:
        return
    job = session.ask_job()
    session.learn_job(job)
    if job is None or not job["sys_path"]:
        return
    sys.path[:] = environments.paths_first(job["sys_path"])
    if environments.has_directory():
        return
    try:
        os.chdir(job["cwd"])
    except OSError as error:
        print(f"tasks run in {os.getcwd()}, not where their driver does: {error}", file=sys.stderr)


def _start_actor(payload: bytes) -> Callable[[], Coroutine[Any, Any, None]] | None:
    """ACTOR_START: 16s actor, u32 incarnation, blob pickled spec, blob assigned devices.

    Returns
    -------
    callable or None
        For an async actor what makes the instance, to be awaited inside the running event loop.
    """
    (number,) = struct.unpack_from("<I", payload, 16)
    (size,) = struct.unpack_from("<I", payload, 20)
    spec = pickle.loads(payload[24 : 24 + size])
    _accelerators.assign(payload[28 + size :])
    _State.actor_id = payload[:16]
    _State.incarnation = number
    assert _State.executor is not None
    _State.spec = spec
    _State.executor.name(spec["class_name"])
    if spec["group"]:
        _core.enter_group(spec["group"])
    if spec["is_async"]:
        return lambda: _make_actor_in_loop(spec, number)
    _make_actor(spec, number)
    return None


def _make_actor(spec: dict[str, Any], number: int) -> None:
    try:
        ahead = _read_ahead(spec, number)
        instance = _construct(spec)
        if spec["checkpoint"] is not None:
            from ftray._checkpoint_host import open_session

            assert _State.executor is not None
            _State.restoring = True
            _State.checkpoint = open_session(
                instance, spec, number, _State.executor, _leave_fenced, _start_again, ahead
            )
    except BaseException as error:
        _not_made(spec, error)
        return
    _made(spec, instance)


async def _make_actor_in_loop(spec: dict[str, Any], number: int) -> None:
    try:
        ahead = _read_ahead(spec, number)
        instance = _construct(spec)
        if spec["checkpoint"] is not None:
            from ftray._checkpoint_host import open_session_async

            assert _State.executor is not None
            _State.restoring = True
            _State.checkpoint = await open_session_async(
                instance, spec, number, _State.executor, _leave_fenced, _start_again, ahead
            )
    except BaseException as error:
        _not_made(spec, error)
        return
    _made(spec, instance)


def _read_ahead(spec: dict[str, Any], number: int) -> Any:
    """Have what a restarted actor will restore read while its instance is made."""
    if spec["checkpoint"] is None or number == 1:
        return None
    from ftray._checkpoint_host import read_ahead

    return read_ahead(spec)


def _made(spec: dict[str, Any], instance: Any) -> None:
    assert _State.executor is not None
    _State.executor.become_actor(
        instance, _State.checkpoint, spec["max_concurrency"], spec["is_async"], spec["concurrency_groups"]
    )
    _ready(None)


def _not_made(spec: dict[str, Any], error: BaseException) -> None:
    assert _State.executor is not None
    if _State.executor.exiting:
        _leave()
    if isinstance(error, SystemExit):
        raise error
    if _State.restoring and not isinstance(error, Exception):
        _crash(error)  # as in a method that runs for the first time: no answer, but the end of the process
    from ftray._task_errors import make_task_error

    payload = make_task_error(error, f"{spec['class_name']}.__init__", os.getpid())
    outcome = _not_restored(spec, error) if _State.restoring else _FAILED
    if outcome != _TRY_AGAIN:
        _State.executor.refuse_calls()
        _ready(payload, outcome)
        return
    _ready(payload, outcome)  # what is told of the actor if no restart is left to it
    _flush()
    from ftray.checkpoint.host import NOT_NOW

    os._exit(NOT_NOW)


def _not_restored(spec: dict[str, Any], error: BaseException) -> int:
    """What becomes of an actor whose checkpoints could not be restored (docs/guarantees.md has the table)."""
    from ftray.checkpoint.errors import CheckpointParkedError
    from ftray.checkpoint.parking import may_pass

    if isinstance(error, CheckpointParkedError):
        return _PARKED
    if not may_pass(error, _State.incarnation == 1):
        return _FAILED
    title, what = spec["class_name"], f"{type(error).__name__}: {error}"
    print(f"{title} cannot be restored now, and is started again: {what}", file=sys.stderr, flush=True)
    return _TRY_AGAIN


def _crash(error: BaseException) -> NoReturn:
    import traceback

    from ftray.checkpoint.host import CRASHED

    traceback.print_exception(error, file=sys.stderr)
    sys.stderr.flush()
    _flush()
    os._exit(CRASHED)


def _construct(spec: dict[str, Any]) -> Any:
    """Make the instance."""
    from ftray._core.answers import end_if_forked
    from ftray._core.callargs import deserialize_args
    from ftray._pickling import unpickle_function

    assert _State.executor is not None
    _State.executor.before_first_function(None)
    _enter_job()
    cls = unpickle_function(spec["class_blob"])
    args, kwargs = deserialize_args(spec["args_blob"])
    try:
        return cls(*args, **(kwargs or {}))
    finally:
        end_if_forked()


def _ready(error: bytes | None, outcome: int = _MADE) -> None:
    payload = _State.actor_id + struct.pack("<IB", _State.incarnation, outcome)
    _core.tell_node(_ACTOR_READY, payload + struct.pack("<I", len(error or b"")) + (error or b""))


def _close_checkpoint(reason: str, timeout_s: float | None = None) -> None:
    if _State.checkpoint is not None:
        session, _State.checkpoint = _State.checkpoint, None
        inside = _State.executor.method if _State.executor is not None else None
        session.close(final=True, reason=reason, timeout_s=timeout_s, inside=inside)


def _leave_fenced(error: BaseException) -> NoReturn:
    """A newer incarnation holds the actor's key: this one must neither answer nor be restarted."""
    print(f"actor ends: {error}", file=sys.stderr, flush=True)
    _core.tell_node(_ACTOR_EXIT, _State.actor_id + struct.pack("<B", _EXIT_ACTOR))
    _flush()
    os._exit(1)


def _start_again() -> NoReturn:
    """Nothing has been done yet, and another process is to do it: exit as for a planned restart."""
    _leave(_EXIT_SIGTERM)


def _leave_if_store_failed(error: BaseException) -> None:
    """Whoever runs a call may learn that its record is refused before the journal's own thread has told."""
    if _State.checkpoint is not None:
        from ftray.checkpoint.errors import FencedError
        from ftray.checkpoint.parking import MEDIUM

        if isinstance(error, FencedError):
            _leave_fenced(error)
        if isinstance(error, MEDIUM) and _State.checkpoint.exactly_once is not None:
            _State.checkpoint.exactly_once.crash(error)


def _leave_when_idle(kind: int) -> None:
    """Begin no call any more, and leave when no method runs that the last checkpoint has to wait for.

    Where calls run on threads `_leave` itself waits. An event loop must go on for its methods to end.
    """
    assert _State.executor is not None
    _State.executor.leaving = True
    session = _State.checkpoint
    if session is None or not session.is_async or session.goes(_REASONS[kind]):
        _leave(kind)
    from ftray.checkpoint.options import final_timeout_s

    _leave_by(kind, time.monotonic() + final_timeout_s())


def _leave_by(kind: int, deadline: float) -> None:
    """In the event loop: leave when no counted method runs, at the latest at the deadline."""
    import asyncio

    loop = asyncio.get_running_loop()
    left_s = deadline - time.monotonic()
    again = functools.partial(_leave_by, kind, deadline)
    # The last method to end is answered before the loop comes to this.
    if left_s <= 0 or not _State.checkpoint.running.when_none(lambda: loop.call_soon(again)):
        _leave(kind, max(0.0, left_s))
    loop.call_at(loop.time() + left_s, again)


def _leave(kind: int = _EXIT_ACTOR, timeout_s: float | None = None) -> NoReturn:
    """End on purpose: a last checkpoint, then tell ftrayd, then exit."""
    _close_checkpoint(_REASONS[kind], timeout_s)
    if _State.executor is not None and _State.executor.exiting:
        kind = _EXIT_ACTOR  # a method that ran meanwhile has called exit_actor()
    _core.tell_node(_ACTOR_EXIT, _State.actor_id + struct.pack("<B", kind))
    _flush()
    _run_exit_handlers()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _run_exit_handlers() -> None:
    """Run what the user's code has registered with `atexit`; errors are printed, as at Python's end."""
    import atexit

    if not atexit._ncallbacks():
        return
    import threading

    # Whoever waits for this end does not wait for ever.
    watchdog = threading.Timer(_EXIT_HANDLERS_S, os._exit, (0,))
    watchdog.daemon = True
    watchdog.start()
    atexit._run_exitfuncs()


def is_cancelled() -> bool:
    """See `ftray.runtime_context.RuntimeContext.is_canceled`."""
    if _State.executor is None:
        raise RuntimeError("is_canceled() is for code that runs in a task or in an actor's method")
    if _State.spec is not None and _State.spec["is_async"]:
        raise RuntimeError(
            "is_canceled() is not for async actors: a coroutine that is cancelled gets asyncio.CancelledError"
        )
    guard = _core.the_guard()
    if guard is not None:
        return bool(guard.is_cancelled(_State.executor.is_cancelled))
    return _State.executor.is_cancelled()


def exit_actor() -> NoReturn:
    """See `ftray.actor.exit_actor`."""
    if not _State.actor_id or _State.executor is None or _State.spec is None:
        raise TypeError("exit_actor() can only be called inside an actor's method")
    guard = _core.the_guard()
    if guard is None or not guard.exits():
        _State.executor.exit_actor()
    if _State.spec["is_async"]:
        raise AsyncioActorExit("exit_actor() was called: this ends the actor")
    raise SystemExit(0)
