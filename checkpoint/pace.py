"""Decides how soon the next save by count may begin, so that saving takes a bounded share of a CPU: pure.

A bucket of CPU seconds fills at the rate of the share. A save takes out what it has cost; while the bucket
is in debt, the next one waits. So a burst of calls has its saves at once, and only calls that for some time
come faster than saving is cheap have them further apart, by `longest_s` at most. Knows no clock, thread or
store: time is an argument, in seconds of any monotonic clock.
"""

from __future__ import annotations

DEFAULT_SHARE = 0.005
LONGEST_S = 0.2
"""The longest wait, whatever a save costs: it bounds in time what waiting adds to what a crash loses."""
BURST_S = 0.002


class Pace:
    """When a save may begin, by what those before have cost."""

    __slots__ = ("_at_s", "_burst_s", "_left_s", "_longest_s", "_share")

    def __init__(
        self, now_s: float, share: float, *, burst_s: float = BURST_S, longest_s: float = LONGEST_S
    ) -> None:
        self._share, self._burst_s, self._longest_s = share, burst_s, longest_s
        self._at_s, self._left_s = now_s, burst_s

    def spent(self, cost_s: float, now_s: float) -> float | None:
        """A save has cost so much CPU time; returns when the next one may begin, None for at once."""
        earned_s = (now_s - self._at_s) * self._share
        self._at_s = now_s
        self._left_s = min(self._burst_s, self._left_s + earned_s) - cost_s
        if self._left_s >= 0 or self._share >= 1:
            return None
        # A debt that would take longer is forgiven: the wait is what is bounded.
        self._left_s = max(self._left_s, -self._longest_s * self._share)
        return now_s - self._left_s / self._share
