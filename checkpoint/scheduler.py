"""Decides when a snapshot is captured: one pure state machine per session.

Owns: whether a capture is wanted and why, whether a save is in flight, retry back-off, the next instant at
which it wants to be asked. Invariants: at most one save in flight; a want is never forgotten, it waits for
the save in flight, for the next gap between calls or, if calls were only counted, for the time that the pace
sets; a failed save always leaves a retry behind it. Knows no clock, thread or store: time is an argument, in
seconds of any monotonic clock.

Events are the methods; each returns the commands that follow. The owner sets its timer to `deadline_s`
afterwards.
"""

from __future__ import annotations

from .pace import Pace

EVERY = "every"
"""The reason of a save that is due because calls were counted: the only one that waits for the pace."""
CAPTURE = "capture"
"""Command: capture at the next gap between calls."""
STARVED = "starved"
"""Command: tell people that a wanted capture has found no gap for `starve_s`."""

Commands = tuple[str, ...]
_NONE: Commands = ()


class SaveScheduler:
    """When to capture, for one actor process."""

    __slots__ = (
        "_held_until_s",
        "_interval_s",
        "_pace",
        "_retry_at_s",
        "_retry_first_s",
        "_retry_max_s",
        "_starve_at_s",
        "_starve_s",
        "_tick_at_s",
        "_urgent",
        "failures",
        "held_back",
        "in_flight",
        "wanted",
    )

    def __init__(
        self,
        now_s: float,
        interval_s: float | None,
        *,
        starve_s: float = 60.0,
        retry_first_s: float = 1.0,
        retry_max_s: float = 60.0,
        pace: Pace | None = None,
    ) -> None:
        self._interval_s = interval_s
        self._starve_s, self._retry_first_s, self._retry_max_s = starve_s, retry_first_s, retry_max_s
        self._tick_at_s = None if interval_s is None else now_s + interval_s
        self._retry_at_s: float | None = None
        self._starve_at_s: float | None = None
        self._pace = pace
        self._held_until_s: float | None = None
        self._urgent = False
        self.held_back = 0
        """How many saves have waited for the pace."""
        self.wanted: str | None = None
        self.in_flight = False
        self.failures = 0

    @property
    def may_capture(self) -> bool:
        """Whether a gap between calls should be used for a capture now."""
        if self.wanted is None or self.in_flight:
            return False
        return self._urgent or self._held_until_s is None

    @property
    def deadline_s(self) -> float | None:
        """The next instant at which `timer` has something to do, or None."""
        times = [
            t
            for t in (self._tick_at_s, self._retry_at_s, self._starve_at_s, self._held_until_s)
            if t is not None
        ]
        return min(times) if times else None

    def want(self, reason: str, now_s: float) -> Commands:
        """A snapshot is wanted because of `reason`. The first reason stands."""
        self._let_go(now_s)
        self._urgent = self._urgent or reason != EVERY
        if self.wanted is None:
            self.wanted = reason
            self._starve_at_s = now_s + self._starve_s
            self._count_held()
        return (CAPTURE,) if self.may_capture else _NONE

    def started(self) -> str:
        """The capture begins; returns its reason. What is wanted from here on is another one."""
        if not self.may_capture:
            raise AssertionError(f"capture without want: wanted={self.wanted!r} in_flight={self.in_flight}")
        reason, self.wanted = str(self.wanted), None
        self.in_flight, self._urgent = True, False
        self._starve_at_s = self._retry_at_s = None
        return reason

    def ended(self, ok: bool, now_s: float, cost_s: float = 0.0) -> Commands:
        """The save in flight is durable, or has failed in capture or in the store; `cost_s`: of CPU time."""
        if not self.in_flight:
            raise AssertionError("a save ended and none was in flight")
        self.in_flight = False
        self._held_until_s = None if self._pace is None else self._pace.spent(cost_s, now_s)
        self._count_held()
        if ok:
            self.failures = 0
            self._retry_at_s = None
        else:
            self._retry_at_s = now_s + min(self._retry_first_s * 2**self.failures, self._retry_max_s)
            self.failures = min(self.failures + 1, 30)
        return (CAPTURE,) if self.may_capture else _NONE

    def timer(self, now_s: float, dirty: bool) -> Commands:
        """Time has come to `now_s`. `dirty`: calls have changed the state since the last capture."""
        commands: list[str] = []
        if self._let_go(now_s) and self.may_capture:
            commands.append(CAPTURE)
        if self._starve_at_s is not None and now_s >= self._starve_at_s:
            self._starve_at_s = None
            commands.append(STARVED)
        if self._tick_at_s is not None and self._interval_s is not None and now_s >= self._tick_at_s:
            self._tick_at_s = now_s + self._interval_s
            if dirty:
                commands.extend(self.want("interval", now_s))
        if self._retry_at_s is not None and now_s >= self._retry_at_s:
            self._retry_at_s = None
            commands.extend(self.want("retry", now_s))
        return tuple(commands)

    def _let_go(self, now_s: float) -> bool:
        """Whether a wait for the pace is over just now."""
        over = self._held_until_s is not None and now_s >= self._held_until_s
        if over:
            self._held_until_s = None
        return over

    def _count_held(self) -> None:
        waits = self.wanted is not None and not self._urgent and not self.in_flight
        if waits and self._held_until_s is not None:
            self.held_back += 1
