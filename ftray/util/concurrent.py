"""``concurrent.futures`` on tasks.

Owns: how a call becomes a task and its outcome a future's. Invariants: everything that
`concurrent.futures.Executor` promises holds, since the futures are those of a thread pool whose threads do
nothing but wait for one task each; at most `max_workers` tasks of an executor are under way.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import ftray
from ftray import _engine, _options
from ftray.exceptions import RayTaskError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ParamSpec

    _P = ParamSpec("_P")

_R = TypeVar("_R")

__all__ = ["Executor", "RemoteTraceback"]


class RemoteTraceback(Exception):
    """Cause of an exception that was raised in another process: its text is the traceback there."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


def original(error: RayTaskError) -> BaseException:
    """Return what the user's code raised, with the remote traceback as its cause.

    The error itself where that could not travel.
    """
    user = error.cause
    while isinstance(user, RayTaskError):
        user = user.cause
    if isinstance(user, ftray.exceptions.UnserializableException):
        return error
    if user.__cause__ is None:
        user.__cause__ = RemoteTraceback(f"\n{error}")
    return user


def _call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)


class Executor(ThreadPoolExecutor):
    """A `concurrent.futures.Executor` whose calls run as tasks.

    ``submit``, ``map``, ``shutdown``, the ``with`` statement, ``as_completed`` and ``wait`` are those of
    `concurrent.futures`. A future that has begun cannot be cancelled. Exceptions are the ones that the
    function raised, with the remote traceback as ``__cause__``; a worker that dies more often than
    ``max_retries`` allows is a `WorkerCrashedError`.

    Parameters
    ----------
    max_workers : int, optional
        How many calls may be under way; the CPUs of the session by default.
    **options
        Options of the tasks, as for ``@ftray.remote``: ``num_cpus``, ``max_retries``, ``name``, ...

    Raises
    ------
    TypeError, ValueError, NotSupportedError
        An option that is not allowed; ``num_returns`` is none of an executor.
    """

    def __init__(self, max_workers: int | None = None, **options: Any) -> None:
        if "num_returns" in options:
            raise ValueError("num_returns is no option of an Executor: a future has one result")
        task: Any = ftray.remote(_call)
        self._task = task.options(**_options.check("task", options)) if options else task
        self._named = bool(options.get("name"))
        _engine.ensure()
        if max_workers is None:
            max_workers = max(1, int(ftray.cluster_resources().get("CPU", 1)))
        super().__init__(max_workers, thread_name_prefix="ftray-executor")
        self._under_way: set[ftray.ObjectRef[Any]] = set()

    def submit(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> Future[_R]:
        """Have ``fn(*args, **kwargs)`` run as a task; refs among the arguments are replaced by their values.

        Raises
        ------
        RuntimeError
            The executor was shut down.
        TypeError
            `fn` is not callable.
        """
        if not callable(fn):
            raise TypeError(f"submit() takes a callable, not {type(fn).__name__}: {fn!r:.100}")
        return super().submit(self._run, fn, args, kwargs)

    def _run(self, fn: Callable[..., _R], args: tuple[Any, ...], kwargs: dict[str, Any]) -> _R:
        task = (
            self._task
            if self._named
            else self._task.options(name=getattr(fn, "__qualname__", repr(fn))[:200])
        )
        ref = task.remote(fn, *args, **kwargs)
        self._under_way.add(ref)
        try:
            result: _R = ftray.get(ref)
            return result
        except RayTaskError as error:
            failure = original(error)
        finally:
            self._under_way.discard(ref)
            del ref  # an exception keeps this frame, and the frame must not keep the object
        try:
            raise failure
        finally:
            del failure  # it refers to this frame

    def abort(self) -> None:
        """Shut down without waiting: what was not begun is dropped, the processes of what runs are ended.

        An exception raised in the middle of an import would leave a process that cannot import that again.
        """
        self.shutdown(wait=False, cancel_futures=True)
        for ref in self._under_way.copy():
            ftray.cancel(ref, force=True)
