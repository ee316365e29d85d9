"""A first-in, first-out queue that tasks, actors and drivers share.

Owns: the queue's actor, and what a caller that is interrupted leaves behind (nothing: its waiting call is
cancelled). Invariants: an item is handed out at most once; a caller that gave up, by time or by an exception,
takes none; calls that wait do not keep others out. When the actor dies, its items are gone and every call
raises `ActorDiedError`; with ``actor_options={"max_restarts": ...}`` it comes back empty.
"""

from __future__ import annotations

import queue as _queue
import time
from typing import Any

import ftray
from ftray.exceptions import RayActorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections import deque
    from collections.abc import Iterable

__all__ = ["Empty", "Full", "Queue"]

_WAITING_MAX = 1_000_000  # calls that wait must never keep out the one that would end their wait


class Empty(_queue.Empty):
    """There was nothing to get, or not in time."""


class Full(_queue.Full):
    """There was no room, or not in time."""


class _Turnstile:
    """Coroutines that wait for a change, woken in the order in which they came."""

    def __init__(self) -> None:
        from collections import deque

        self._waiters: deque[asyncio.Future[None]] = deque()

    def wake(self, number: int = 1) -> None:
        while self._waiters and number > 0:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                number -= 1

    def wake_all(self) -> None:
        self.wake(len(self._waiters))

    async def wait(self, timeout_s: float | None) -> None:
        import asyncio

        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await asyncio.wait([waiter], timeout=timeout_s)
        except BaseException:  # cancelled: whoever was to be woken is now the next one
            if waiter.done():
                self.wake()
            raise
        finally:
            if not waiter.done():
                self._waiters.remove(waiter)


class _QueueActor:
    """Where the items are. Answers say whether it worked, so that a full queue is no failure of a call."""

    def __init__(self, maxsize: int) -> None:
        from collections import deque

        self._maxsize = maxsize
        self._items: deque[Any] = deque()
        self._closed = False
        self._waiting = 0  # calls that wait for items or room
        self._filled, self._emptied = _Turnstile(), _Turnstile()

    def _room(self) -> float:
        return self._maxsize - len(self._items) if self._maxsize > 0 else float("inf")

    async def qsize(self) -> int:
        return len(self._items)

    async def put(self, item: Any, timeout_s: float | None) -> bool:
        if not await self._until(lambda: self._room() >= 1, self._emptied, timeout_s):
            return False
        self._items.append(item)
        self._filled.wake()
        return True

    async def get(self, timeout_s: float | None) -> tuple[bool, Any]:
        if not await self._until(lambda: bool(self._items), self._filled, timeout_s):
            return False, None
        item = self._items.popleft()
        self._emptied.wake()
        return True, item

    async def _until(self, holds: Any, changes: _Turnstile, timeout_s: float | None) -> bool:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._waiting += 1
        try:
            while not holds():
                left_s = None if deadline is None else deadline - time.monotonic()
                if self._closed or (left_s is not None and left_s <= 0):
                    return False
                await changes.wait(left_s)
            return True
        finally:
            self._waiting -= 1
            if self._closed and not self._waiting:
                self._emptied.wake_all()

    async def put_batch(self, items: list[Any]) -> tuple[bool, int]:
        if self._room() < len(items):
            return False, len(self._items)
        self._items.extend(items)
        self._filled.wake(len(items))
        return True, len(self._items)

    async def get_batch(self, number: int) -> tuple[bool, Any]:
        if len(self._items) < number:
            return False, len(self._items)
        items = [self._items.popleft() for _ in range(number)]
        self._emptied.wake(number)
        return True, items

    async def close(self) -> None:
        """Have the calls that wait answered; return when they are."""
        self._closed = True
        self._filled.wake_all()
        self._emptied.wake_all()
        while self._waiting:
            await self._emptied.wait(None)

    async def leave(self) -> None:
        ftray.exit_actor()  # not before all answers are sent


class Queue:
    """A queue in an actor; it can be passed to tasks and actors.

    Parameters
    ----------
    maxsize : int, default 0
        Items that fit; 0 or less: no bound.
    actor_options : dict, optional
        Options of the actor, for example ``{"name": "inbox"}``.

    Attributes
    ----------
    actor
        The actor's handle; None after `shutdown`.
    """

    def __init__(self, maxsize: int = 0, actor_options: dict[str, Any] | None = None) -> None:
        if isinstance(maxsize, bool) or not isinstance(maxsize, int):
            raise TypeError(f"maxsize must be an integer, not {maxsize!r}")
        self.maxsize = maxsize
        options = {"max_concurrency": _WAITING_MAX, **(actor_options or {})}
        actor_class: Any = ftray.remote(_QueueActor)
        self.actor: Any = actor_class.options(**options).remote(maxsize)

    def _living(self) -> Any:
        if self.actor is None:
            raise RuntimeError("this Queue was shut down: make a new one")
        return self.actor

    # --- facts ----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.qsize()

    def __bool__(self) -> bool:
        return True  # not whether it has items: that would be a call to the actor in every `if queue:`

    def qsize(self) -> int:
        """Return the number of items."""
        number: int = ftray.get(self._living().qsize.remote())
        return number

    def size(self) -> int:
        """Return the number of items."""
        return self.qsize()

    def empty(self) -> bool:
        """Whether there are no items (others may change that at any time)."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether there is no room (others may change that at any time)."""
        return 0 < self.maxsize <= self.qsize()

    # --- one item -------------------------------------------------------------------------------------------

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item at the end.

        Parameters
        ----------
        item : object
            A ref is replaced by its value, as in every call.
        block : bool, default True
            Wait for room.
        timeout : float, optional
            Seconds to wait; None waits without bound.

        Raises
        ------
        Full
            There was no room (in time).
        ValueError
            `timeout` is negative.
        ActorDiedError
            The queue's actor is dead.
        """
        seconds = _seconds(block, timeout)
        if not _wait_for(self._living().put.remote(item, seconds)):
            raise Full(self._full_text(1))

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the first item; arguments as for `put`, raises `Empty`."""
        seconds = _seconds(block, timeout)
        there, item = _wait_for(self._living().get.remote(seconds))
        if not there:
            raise Empty("the queue has no items")
        return item

    def put_nowait(self, item: Any) -> None:
        """Add an item without waiting."""
        self.put(item, block=False)

    def get_nowait(self) -> Any:
        """Take the first item without waiting."""
        return self.get(block=False)

    async def put_async(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Add an item from a coroutine; arguments and errors as for `put`."""
        seconds = _seconds(block, timeout)
        if not await _await(self._living().put.remote(item, seconds)):
            raise Full(self._full_text(1))

    async def get_async(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the first item from a coroutine; arguments as for `put`, raises `Empty`."""
        seconds = _seconds(block, timeout)
        there, item = await _await(self._living().get.remote(seconds))
        if not there:
            raise Empty("the queue has no items")
        return item

    # --- several --------------------------------------------------------------------------------------------

    def put_nowait_batch(self, items: Iterable[Any]) -> None:
        """Add all items, or none and raise `Full`."""
        if isinstance(items, str | bytes) or not hasattr(items, "__iter__"):
            raise TypeError(
                f"put_nowait_batch() takes several items, not {type(items).__name__}: {items!r:.100}"
            )
        batch = list(items)
        done, _size = ftray.get(self._living().put_batch.remote(batch))
        if not done:
            raise Full(self._full_text(len(batch)))

    def get_nowait_batch(self, num_items: int) -> list[Any]:
        """Take exactly so many items, or none and raise `Empty`."""
        if isinstance(num_items, bool) or not isinstance(num_items, int):
            raise TypeError(f"num_items must be an integer, not {num_items!r}")
        if num_items < 0:
            raise ValueError(f"num_items={num_items} is not valid: it must be at least 0")
        done, found = ftray.get(self._living().get_batch.remote(num_items))
        if not done:
            raise Empty(f"the queue has {found} items, not {num_items}")
        items: list[Any] = found
        return items

    def _full_text(self, number: int) -> str:
        return f"the queue has no room for {number} more: maxsize={self.maxsize}"

    # --- the end --------------------------------------------------------------------------------------------

    def shutdown(self, force: bool = False, grace_period_s: float = 5) -> None:
        """End the queue's actor; its items are gone. A second call does nothing.

        Parameters
        ----------
        force : bool, default False
            At once: calls that wait raise `ActorDiedError`. Otherwise they raise `Empty` and `Full` first.
        grace_period_s : float, default 5
            Seconds that the actor gets for that.
        """
        if self.actor is None:
            return
        if not force:
            deadline = time.monotonic() + grace_period_s
            try:
                ftray.get(self.actor.close.remote(), timeout=grace_period_s)
                ftray.get(self.actor.leave.remote(), timeout=max(0.0, deadline - time.monotonic()))
            except (RayActorError, TimeoutError):
                pass  # it has left, as it should, or it does not answer
        ftray.kill(self.actor)
        self.actor = None


def _seconds(block: bool, timeout: float | None) -> float | None:
    if not block:
        return 0.0
    if timeout is not None and not timeout >= 0:
        raise ValueError(f"timeout={timeout!r} is not valid: it must be a number of seconds >= 0, or None")
    return timeout


def _wait_for(ref: Any) -> Any:
    """Get the answer. A caller that is interrupted takes its call back: it would get an item for nobody."""
    try:
        return ftray.get(ref)
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        ftray.cancel(ref)
        raise


async def _await(ref: Any) -> Any:
    import asyncio

    try:
        return await ref
    except asyncio.CancelledError:
        ftray.cancel(ref)
        raise
