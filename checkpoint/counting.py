"""How many calls have changed an actor's state, and how many of them its snapshots have.

Owns those three numbers. The calls themselves are counted down in the compiled part
(`_core/callcount.pyx`), from one look at what is due to the next.
"""

from __future__ import annotations

from collections.abc import Callable

from ftray._core.callcount import CallCounter

_WITHOUT_END = 1 << 62


class CallCount:
    """The calls of one session.

    Parameters
    ----------
    uncounted : frozenset of str
        Methods that do not count.
    every : int
        A snapshot is due after so many calls.
    stride : int
        A look comes after so many calls at the latest.
    look : callable
        Called with nothing, on the thread of the call, when it is time for one.
    """

    __slots__ = ("_before", "_every", "_given", "_stride", "captured", "counter", "saved")

    def __init__(
        self, uncounted: frozenset[str], every: int, stride: int, look: Callable[[], object]
    ) -> None:
        self._every, self._stride = every, min(every, stride)
        self._before = 0  # counted before the counter was last set
        self._given = self._stride
        self.counter = CallCounter(uncounted, look, self._given)
        self.captured = 0
        """Calls whose effects the last capture has."""
        self.saved = 0
        """Calls whose effects the last snapshot has that is durable."""

    @property
    def total(self) -> int:
        """All calls since the actor was made."""
        return self._before + self._given - self.counter.left

    @property
    def is_due(self) -> bool:
        """Whether there are as many calls without a capture as there may be."""
        return self.total - self.captured >= self._every

    def _set(self, left: int) -> None:
        self._before = self.total
        self._given = self.counter.left = left

    def go_on(self) -> None:
        """Count towards the next look, which comes at the latest when a save is due."""
        left = self._every - (self.total - self.captured)
        self._set(min(self._stride, left if left > 0 else self._every))

    def only_count(self) -> None:
        """There is nothing to look at until `go_on` is called."""
        self._set(_WITHOUT_END)

    def capture(self) -> None:
        """The state is captured as it is after all calls so far."""
        self.captured = self.total
        self.go_on()

    def continue_from(self, calls: int) -> None:
        """The state is that of a snapshot which has the effects of so many calls."""
        self._before += calls - self.total
        self.captured = self.saved = calls

    def replayed(self) -> None:
        """A recorded call was run again; it counts as it did the first time, and is in the journal."""
        self._before += 1
        self.captured = self.total
