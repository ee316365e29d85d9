"""What waits for the journal before it may leave the actor: held answers by position, and a ceiling.

Owns the order: an answer that depends on position p leaves when everything up to p is durable *and* p is not
above the ceiling. The ceiling holds back what depends on a method that no record can repeat, until a
snapshot contains it.

Invariants: an action runs once, with None when it may leave or with the error after which nothing will;
outside of the lock; never early. Actions of one advance run in the order of their positions.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable

from .errors import CheckpointTimeoutError

Action = Callable[[BaseException | None], None]
NO_CEILING = (1 << 64) - 1


class Releases:
    """Held answers of one incarnation. Every method may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: list[tuple[int, int, Action]] = []
        self._count = 0
        self._durable = 0
        self._ceiling = NO_CEILING
        self._error: BaseException | None = None
        self._telling = threading.Lock()  # what is told last is what holds
        self._on_advance: Callable[[int, int], None] | None = None
        self._tell_from: Callable[[int | None], object] = _told_of_all

    @property
    def position(self) -> int:
        """What depends on positions up to this one may leave."""
        return min(self._durable, self._ceiling)

    @property
    def ceiling(self) -> int:
        """See `set_ceiling`."""
        return self._ceiling

    @property
    def held(self) -> int:
        """How many answers wait."""
        return len(self._held)

    @property
    def failed(self) -> BaseException | None:
        """Why nothing more becomes durable."""
        return self._error

    def hold(self, position: int, action: Action) -> None:
        """Run `action` when what depends on `position` may leave; at once if it may already."""
        with self._lock:
            error = self._error
            free = position <= self.position
            if not free and error is None:
                self._count += 1
                heapq.heappush(self._held, (position, self._count, action))
                self._tell_from(self._held[0][0])
                return
        action(None if free else error)

    def durable(self, position: int) -> None:
        """The journal is durable up to `position`."""
        with self._lock:
            self._durable = max(self._durable, position)
            ready = self._ready()
        self._advanced()
        _run(ready)

    def set_ceiling(self, ceiling: int) -> None:
        """Nothing above `ceiling` leaves until it is raised; `NO_CEILING` for none."""
        with self._lock:
            self._ceiling = ceiling
            ready = self._ready()
        self._advanced()
        _run(ready)

    def listen(self, on_advance: Callable[[int, int], None]) -> None:
        """For engines that hold answers themselves: told `position` and the ceiling, now and at each change.

        One call at a time, and the last one has what holds then.
        """
        self._on_advance = on_advance
        self._advanced()

    def tell_by(self, tell_from: Callable[[int | None], object]) -> None:
        """For journals that can be asked not to tell what nobody waits for: `durable` comes from then on only
        at what `tell_from` was called with last (None: not at all), or later."""
        with self._lock:
            self._tell_from = tell_from
            tell_from(self._held[0][0] if self._held else None)

    def _advanced(self) -> None:
        if self._on_advance is not None:
            with self._telling:
                self._on_advance(self.position, self._ceiling)

    def fail(self, error: BaseException) -> None:
        """Nothing more becomes durable. The first error stands."""
        with self._lock:
            self._error = self._error or error
            held, self._held = sorted(self._held, key=lambda item: item[:2]), []
            error = self._error
        for _, _, action in held:
            action(error)

    def wait(self, position: int, timeout_s: float) -> None:
        """Wait until what depends on `position` may leave.

        Raises
        ------
        CheckpointTimeoutError
            Not within `timeout_s`; it may still become durable.
        BaseException
            What `fail` was given.
        """
        arrived = threading.Event()
        outcome: list[BaseException | None] = []

        def released(error: BaseException | None) -> None:
            outcome.append(error)
            arrived.set()

        began_s = time.monotonic()
        self.hold(position, released)
        if not arrived.wait(timeout_s):
            raise CheckpointTimeoutError(
                f"position {position} of the journal was not durable within {time.monotonic() - began_s:.1f} "
                f"s (durable: {self._durable}). It may still become so; look at the store, or allow more time"
            )
        if outcome[0] is not None:
            raise outcome[0]

    def _ready(self) -> list[Action]:
        ready = []
        while self._held and self._held[0][0] <= self.position:
            ready.append(heapq.heappop(self._held)[2])
        if ready:
            self._tell_from(self._held[0][0] if self._held else None)
        return ready


def _told_of_all(_position: int | None) -> None:
    pass


def _run(actions: list[Action]) -> None:
    for action in actions:
        action(None)
