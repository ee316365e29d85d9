"""Waits of an exactly-once actor's methods that take long: looks for circles that no reply can open.

A method holds its actor until it ends. So when it has waited for seconds, it tells the node for calls to
which actors; if those wait for this one, directly or not, the wait ends with `CallCycleError`.

Owns: the rhythm (after `LONG_S`, then twice as often), and which actor a ref's call went to. Invariants: a
wait that ends within `LONG_S` costs nothing; a wait that was told of is told to be over.
Leaves to others: what is a circle (``ftray/_node/waits.py``).
"""

from __future__ import annotations

import sys
import time
from typing import Any

from ftray import _worker
from ftray._core.waits import plain_wait
from ftray.checkpoint.errors import CallCycleError
from ftray.checkpoint.options import seconds_from_environment
from ftray.exceptions import GetTimeoutError, RayError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

    from ftray.checkpoint.exactly_once import ExactlyOnce

LONG_VARIABLE = "FTRAY_LONG_WAIT_S"
LONG_S = 2.0
_ACTOR = slice(8, 24)  # where an id of a call's value has the actor's
_NO_ACTOR = b"\xff" * 12


class LongWaits:
    """Those of one process."""

    def __init__(self, once: ExactlyOnce) -> None:
        self._once = once
        self._long_s = seconds_from_environment(LONG_VARIABLE, LONG_S)
        self._waits = 0
        self._open: dict[int, _Awaited] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._told: frozenset[bytes] = frozenset()

    def patient(
        self,
        attempt: Callable[[float | None], Any],
        done: Callable[[Any], bool],
        refs: Sequence[Any],
        timeout: float | None,
        method: str,
    ) -> Any:
        """Wait as `attempt` does with a timeout, in slices.

        Parameters
        ----------
        attempt : callable
            Waits for so many seconds; raises `GetTimeoutError` or returns something that is not `done`.
        """
        began_s = time.monotonic()
        slice_s, number = self._long_s, 0
        try:
            while True:
                left_s = None if timeout is None else timeout - (time.monotonic() - began_s)
                if left_s is not None and left_s <= slice_s:
                    return attempt(max(0.0, left_s))
                found = self._attempted(attempt, slice_s, refs)
                if found is not None and done(found[0]):
                    return found[0]
                if not number:
                    self._waits += 1
                    number, slice_s = self._waits, self._long_s / 2
                self._poll(number, method, targets_of([ref for ref in refs if not _is_ready(ref)]))
        finally:
            if number:
                self._over()

    def _attempted(
        self, attempt: Callable[[float | None], Any], slice_s: float, refs: Sequence[Any]
    ) -> tuple[Any] | None:
        try:
            return (attempt(slice_s),)
        except GetTimeoutError:
            if not plain_wait(list(dict.fromkeys(refs)), len(set(refs)), 0, False)[1]:
                raise  # that is what one of the calls has raised
            return None

    def _poll(self, number: int, method: str, targets: frozenset[bytes]) -> None:
        circle = self._ask(number, method, targets)
        if circle is not None:
            raise error_of(circle)

    def _ask(self, number: int, method: str, targets: frozenset[bytes]) -> list[dict[str, str]] | None:
        from ftray._api import node_rpc

        if not targets:
            return None
        once = self._once
        if once.journal is not None:
            once.releases.durable(once.journal.durable_position)
        quiet = once.releases.position >= once.last_position
        try:
            found: list[dict[str, str]] | None = node_rpc(
                "actor_waits", number=number, inside=method, targets=sorted(targets), quiet=quiet
            )
        except RayError:  # the wait itself learns what is the matter
            return None
        return found

    def _over(self) -> None:
        from ftray._api import node_rpc

        try:
            node_rpc("actor_waits", number=0, inside="", targets=[], quiet=True)
        except RayError:
            return

    # -- on an event loop

    def begin(self, ref: Any, method: str) -> _Awaited:
        """An ``await`` begins in the present asyncio task."""
        import asyncio  # here, since most actors have no event loop

        awaited = _Awaited(ref, method, asyncio.current_task())
        self._open[id(awaited)] = awaited
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._long_s, self._tick)
        return awaited

    def end(self, awaited: _Awaited) -> None:
        """It has ended."""
        del self._open[id(awaited)]

    def _tick(self) -> None:
        import asyncio

        loop = asyncio.get_running_loop()
        long = [a for a in self._open.values() if time.monotonic() - a.began_s >= self._long_s * 0.9]
        targets = targets_of([a.ref for a in long])
        if targets != self._told:
            self._waits += 1
            if not targets:
                self._over()
            self._told = targets
        circle = self._ask(self._waits, long[0].method, targets) if long else None
        if circle is not None:
            self._told = frozenset()
            following = bytes.fromhex(circle[1 % len(circle)]["actor_id"])
            for awaited in long:
                if awaited.ref.binary()[_ACTOR] == following:
                    awaited.interrupt(error_of(circle))
        self._timer = loop.call_later(self._long_s / 2, self._tick) if self._open or self._told else None


class _Awaited:
    """One ``await``."""

    __slots__ = ("_task", "began_s", "error", "method", "ref")

    def __init__(self, ref: Any, method: str, task: asyncio.Task[Any] | None) -> None:
        self.ref, self.method, self._task = ref, method, task
        self.began_s = time.monotonic()
        self.error: CallCycleError | None = None

    def interrupt(self, error: CallCycleError) -> None:
        """End it with an error."""
        if self.error is None and self._task is not None:
            self.error = error
            self._task.cancel()

    def interrupted(self) -> bool:
        """Whether its cancellation was `interrupt`, which it was told of now."""
        if self.error is None:
            return False
        if sys.version_info >= (3, 11) and self._task is not None:
            self._task.uncancel()
        return True


def targets_of(refs: Sequence[Any]) -> frozenset[bytes]:
    """Return the actors that the calls of `refs` went to."""
    ids = (ref.binary()[_ACTOR] for ref in refs)
    own = _worker.actor_id()
    return frozenset(actor for actor in ids if actor[:12] != _NO_ACTOR and actor != own)


def _is_ready(ref: Any) -> bool:
    return bool(plain_wait([ref], 1, 0, False)[0])


def error_of(circle: list[dict[str, str]]) -> CallCycleError:
    """Return the error for a wait that cannot end."""
    names = [f"{each['title']}.{each['method']}" for each in circle]
    others = [*circle[1:], circle[0]]
    waits = ", and ".join(
        f"{name} waits for a call to {other['title']}" for name, other in zip(names, others, strict=True)
    )
    return CallCycleError(
        f"{waits}: each of these methods holds its actor until it ends, so that none of the calls can begin."
        " This one was given up. Let one of the actors return what the other needs, or call them in one order"
    )
