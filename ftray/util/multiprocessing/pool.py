"""The pool and its results.

Owns: the actors of a pool, which chunk of work goes to which, and the order of results. Invariants: an actor
runs one chunk at a time and chunks wait for whichever is free; one thread of this process waits for each
running chunk, so that callbacks and timeouts need nothing else; an actor that died or has done its share is
replaced, and the chunk it died with fails with the reason (multiprocessing waits for ever there); every
result object is settled, also by `terminate`. Work is never repeated by the pool itself.
"""

from __future__ import annotations

import itertools
import queue
import threading
import weakref
from collections import deque
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from multiprocessing import TimeoutError
from typing import Any

import ftray
from ftray import _engine
from ftray.exceptions import RayActorError, RaySystemError, RayTaskError, TaskCancelledError
from ftray.util.concurrent import original

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    # A call's positional and keyword arguments; and what came of it: (True, value) or (False, exception).
    Call = tuple[tuple[Any, ...], Mapping[str, Any]]
    Outcome = tuple[bool, Any]

_CHUNKS_A_PROCESS = 4  # for a map without chunksize, as multiprocessing has it


class _PoolActor:
    """Runs chunks."""

    def __init__(self, initializer: Callable[..., Any] | None, initargs: tuple[Any, ...]) -> None:
        if initializer is not None:
            initializer(*initargs)

    def ready(self) -> None:
        """Return once the constructor has."""

    def run(self, func: Callable[..., Any], calls: list[Call]) -> list[Outcome]:
        return [_outcome(func, args, kwargs) for args, kwargs in calls]


def _outcome(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Outcome:
    import os

    from ftray._task_errors import make_task_error

    try:
        return True, func(*args, **kwargs)
    except Exception as error:  # travels as the error of a task does: with its traceback, whatever it is
        return False, make_task_error(error, getattr(func, "__qualname__", repr(func)), os.getpid())


def _rebuilt(outcome: Outcome) -> Outcome:
    from ftray._task_errors import load_error

    succeeded, value = outcome
    if succeeded:
        return outcome
    error = load_error(value)
    return False, original(error) if isinstance(error, RayTaskError) else error


class _Slot:
    """A place for one process of the pool, and the actor that has it now."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._chunks = 0
        self.actor = make()

    def replace(self) -> None:
        """Make a new actor; the old one ends with its last handle."""
        self.actor = self._make()
        self._chunks = 0

    def count(self, most: int | None) -> None:
        self._chunks += 1
        if most is not None and self._chunks >= most:
            self.replace()


class AsyncResult:
    """The result of an ``_async`` call."""

    def __init__(
        self,
        chunks: list[Future[list[Outcome]]],
        *,
        single: bool = False,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> None:
        self._chunks = chunks
        self._single = single
        self._callback, self._error_callback = callback, error_callback
        self._left = len(chunks)
        self._lock = threading.Lock()
        self._settled = threading.Event()
        self._value: Any = [] if not single else None
        self._error: BaseException | None = None
        for chunk in chunks:
            chunk.add_done_callback(self._on_done)
        if not chunks:
            self._settle()

    def _on_done(self, chunk: Future[list[Outcome]]) -> None:
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            self._settle()

    def _settle(self) -> None:
        values: list[Any] = []
        for succeeded, value in itertools.chain.from_iterable(map(_outcomes_of, self._chunks)):
            if not succeeded:
                self._error = value
                break
            values.append(value)
        else:
            self._value = values[0] if self._single else values
        try:
            if self._error is None and self._callback is not None:
                self._callback(self._value)
            if self._error is not None and self._error_callback is not None:
                self._error_callback(self._error)
        finally:
            self._settled.set()

    def ready(self) -> bool:
        """Whether the result is there."""
        return self._settled.is_set()

    def successful(self) -> bool:
        """Whether nothing was raised; ValueError while the result is not there."""
        if not self.ready():
            raise ValueError(f"{self!r} is not ready: call wait() or get() first")
        return self._error is None

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the result, at most `timeout` seconds."""
        self._settled.wait(timeout)

    def get(self, timeout: float | None = None) -> Any:
        """Return the result.

        Raises
        ------
        multiprocessing.TimeoutError
            It was not there within `timeout` seconds.
        Exception
            What the function raised, with the remote traceback as its cause; the first of several.
        ActorDiedError
            The process died.
        """
        if not self._settled.wait(timeout):
            raise TimeoutError(f"the result was not there within {timeout} s")
        if self._error is not None:
            raise self._error
        return self._value


def _outcomes_of(chunk: Future[list[Outcome]]) -> list[Outcome]:
    if chunk.cancelled():
        return [(False, TaskCancelledError("the pool was terminated before this call was made"))]
    error = chunk.exception()
    if error is not None:
        return [(False, original(error) if isinstance(error, RayTaskError) else error)]
    return chunk.result()


class IMapIterator:
    """Results of `Pool.imap` and `Pool.imap_unordered`.

    A few chunks ahead of what was fetched are under way, so that the input may be endless.
    """

    def __init__(
        self, pool: Pool, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int, ordered: bool
    ) -> None:
        self._pool = pool
        self._func = func
        self._ordered = ordered
        self._input = _chunked(((item,) for item in iterable), chunksize)
        self._open: deque[Future[list[Outcome]]] = deque()
        self._done: queue.SimpleQueue[Future[list[Outcome]]] = queue.SimpleQueue()
        self._ready: deque[Outcome] = deque()
        for _ in range(2 * pool._processes):
            self._submit()

    def _submit(self) -> bool:
        """Submit the next chunk; False when there is none."""
        chunk = next(self._input, None)
        if chunk is None or self._pool._terminated:
            return False
        future = self._pool._submit(self._func, chunk)
        self._open.append(future)
        if not self._ordered:
            future.add_done_callback(self._done.put)
        return True

    def _submit_rest(self) -> None:
        """The pool is being closed: what was promised is done, whether or not it is fetched meanwhile."""
        while self._submit():
            pass

    def __iter__(self) -> IMapIterator:
        return self

    def __next__(self) -> Any:
        return self.next()

    def next(self, timeout: float | None = None) -> Any:
        """Return the next result.

        Raises
        ------
        StopIteration
            There are no more.
        multiprocessing.TimeoutError
            It was not there within `timeout` seconds; it can still be fetched.
        Exception
            What the function raised for this item; the others can still be fetched.
        """
        if not self._ready:
            if not self._open:
                raise StopIteration
            self._ready.extend(_outcomes_of(self._wait(timeout)))
            self._submit()
        succeeded, value = self._ready.popleft()
        if not succeeded:
            raise value
        return value

    def _wait(self, timeout: float | None) -> Future[list[Outcome]]:
        try:
            if not self._ordered:
                future = self._done.get(timeout=timeout)
                self._open.remove(future)
                return future
            try:
                self._open[0].exception(timeout)
            except CancelledError:
                pass  # terminated: whoever takes it sees that
            return self._open.popleft()
        except (queue.Empty, FutureTimeoutError):
            raise TimeoutError(f"the next result was not there within {timeout} s") from None


def _chunked(arguments: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[Call]]:
    while True:
        chunk: list[Call] = [(args, {}) for args in itertools.islice(arguments, size)]
        if not chunk:
            return
        yield chunk


class Pool:
    """A `multiprocessing.Pool` whose processes are actors.

    Parameters
    ----------
    processes : int, optional
        The CPUs of the session by default.
    initializer, initargs
        Called in each process when it begins.
    maxtasksperchild : int, optional
        Chunks that a process runs before a new one takes its place.
    context : object, optional
        Must be None: workers are started by ftray.
    ray_address : str, optional
        Given to ``init()`` when ftray does not run yet.
    ray_remote_args : dict, optional
        Options of the actors, as for ``@ftray.remote``; ``num_cpus`` is 0 by default.

    Raises
    ------
    ValueError
        A number below 1, or a context.
    ActorDiedError
        The initializer raised; that is the cause.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: Iterable[Any] | None = None,
        maxtasksperchild: int | None = None,
        context: Any = None,
        ray_address: str | None = None,
        ray_remote_args: dict[str, Any] | None = None,
    ) -> None:
        _check_number("processes", processes)
        _check_number("maxtasksperchild", maxtasksperchild)
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable, not {initializer!r:.100}")
        if context is not None:
            raise ValueError(
                f"context={context!r} cannot be had: ftray starts its workers itself; leave it out"
            )
        if ray_address is not None and not ftray.is_initialized():
            ftray.init(address=ray_address)
        _engine.ensure()
        self._processes = processes or max(1, int(ftray.cluster_resources().get("CPU", 1)))
        self._most = maxtasksperchild
        actor_class: Any = ftray.remote(_PoolActor)
        actor_class = actor_class.options(**{"num_cpus": 0, **(ray_remote_args or {})})
        arguments = (initializer, tuple(initargs or ()))
        self._slots = [_Slot(lambda: actor_class.remote(*arguments)) for _ in range(self._processes)]
        ftray.get([slot.actor.ready.remote() for slot in self._slots])
        self._free: queue.SimpleQueue[_Slot] = queue.SimpleQueue()
        for slot in self._slots:
            self._free.put(slot)
        self._waiting = ThreadPoolExecutor(self._processes, thread_name_prefix="ftray-pool")
        self._closed = self._terminated = False
        self._iterators: weakref.WeakSet[IMapIterator] = weakref.WeakSet()

    # --- one call -------------------------------------------------------------------------------------------

    def apply(
        self, func: Callable[..., Any], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None
    ) -> Any:
        """Return ``func(*args, **kwds)``, run in a process of the pool."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., Any],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[Any], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """Have ``func(*args, **kwds)`` run; the callbacks get its result or error, in another thread."""
        self._check_open()
        chunk = self._submit(func, [(tuple(args or ()), dict(kwds or {}))])
        return AsyncResult([chunk], single=True, callback=callback, error_callback=error_callback)

    # --- many -----------------------------------------------------------------------------------------------

    def map(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = None
    ) -> list[Any]:
        """Return ``[func(item) for item in iterable]``, run in chunks of `chunksize` items."""
        results: list[Any] = self.map_async(func, iterable, chunksize).get()
        return results

    def map_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Any],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As `map`, without waiting."""
        arguments = [(item,) for item in iterable]
        return self._map(func, arguments, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., Any], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[Any]:
        """Return ``[func(*item) for item in iterable]``, run in chunks of `chunksize` items."""
        results: list[Any] = self.starmap_async(func, iterable, chunksize).get()
        return results

    def starmap_async(
        self,
        func: Callable[..., Any],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[Any]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult:
        """As `starmap`, without waiting."""
        return self._map(func, [tuple(item) for item in iterable], chunksize, callback, error_callback)

    def imap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> IMapIterator:
        """Return an iterator over ``func(item)``, in order; its ``next()`` takes a timeout."""
        return self._imap(func, iterable, chunksize, ordered=True)

    def imap_unordered(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None = 1
    ) -> IMapIterator:
        """As `imap`, in the order in which they are done."""
        return self._imap(func, iterable, chunksize, ordered=False)

    def _imap(
        self, func: Callable[..., Any], iterable: Iterable[Any], chunksize: int | None, ordered: bool
    ) -> IMapIterator:
        self._check_open()
        _check_number("chunksize", chunksize)
        results = IMapIterator(self, func, iterable, chunksize or 1, ordered)
        self._iterators.add(results)
        return results

    def _map(
        self,
        func: Callable[..., Any],
        arguments: list[tuple[Any, ...]],
        chunksize: int | None,
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> AsyncResult:
        self._check_open()
        _check_number("chunksize", chunksize)
        size = chunksize or max(1, -(-len(arguments) // (self._processes * _CHUNKS_A_PROCESS)))
        chunks = [self._submit(func, chunk) for chunk in _chunked(iter(arguments), size)]
        return AsyncResult(chunks, callback=callback, error_callback=error_callback)

    # --- running --------------------------------------------------------------------------------------------

    def _submit(self, func: Callable[..., Any], calls: list[Call]) -> Future[list[Outcome]]:
        if not callable(func):
            raise TypeError(f"a pool runs callables, not {type(func).__name__}: {func!r:.100}")
        return self._waiting.submit(self._run, func, calls)

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the pool was closed or terminated: make a new one")

    def _run(self, func: Callable[..., Any], calls: list[Call]) -> list[Outcome]:
        """Run a chunk, on a thread of the pool: there are as many as slots, so that one is free."""
        slot = self._free.get()
        try:
            outcomes: list[Outcome] = ftray.get(slot.actor.run.remote(func, calls))
            slot.count(self._most)
            return [_rebuilt(outcome) for outcome in outcomes]
        except RayActorError as error:
            if not isinstance(error, RayTaskError) and not self._terminated:
                slot.replace()
            raise
        finally:
            self._free.put(slot)

    # --- the end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more work; what was submitted is done."""
        if self._closed:
            return
        for results in list(self._iterators):
            results._submit_rest()
        self._closed = True

    def terminate(self) -> None:
        """End all processes at once; what was not done raises `TaskCancelledError` or `ActorDiedError`."""
        if self._terminated:
            return
        self._closed = self._terminated = True
        self._waiting.shutdown(wait=False, cancel_futures=True)
        for slot in self._slots:
            try:
                ftray.kill(slot.actor)
            except RaySystemError:
                return  # its session has ended, and every actor with it

    def join(self) -> None:
        """Wait until all is done and the processes are let go; ValueError unless closed or terminated."""
        if not self._closed:
            raise ValueError("join() is for a pool that is closed or terminated: call close() first")
        self._waiting.shutdown(wait=True)
        self._slots = []
        while not self._free.empty():
            self._free.get()

    def __enter__(self) -> Pool:
        self._check_open()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.terminate()


def _check_number(name: str, value: int | None) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer or None, not {value!r}")
    if value < 1:
        raise ValueError(f"{name}={value} is not valid: it must be at least 1")
