"""Callers of exactly-once actors that may run again only with the call that has made them.

A task of a task is over for good when nobody keeps its record *and* the call above it can never run again,
which another process knows. So the owner of the inner one reports the pair, the owner of the outer one its
end, in any order, at any depth.

Owns: what was reported of one job and waits for the other half. Invariants: a caller is let go of once, when
all calls above it are over; what is kept is bounded, and what is dropped goes with the root.
"""

from __future__ import annotations

MOST_WAITING = 200_000
MOST_OVER = 100_000


class CallerTree:
    """The callers of one job, by their CallIDs."""

    def __init__(self, most_waiting: int = MOST_WAITING, most_over: int = MOST_OVER) -> None:
        self._waiting: dict[bytes, list[bytes]] = {}  # by the call above, the oldest first
        self._count = 0
        self._over: dict[bytes, None] = {}
        self._most_waiting, self._most_over = most_waiting, most_over

    def __len__(self) -> int:
        return self._count

    def nested(self, caller: bytes, above: bytes) -> list[bytes]:
        """`caller` can be made again only by `above`; returns callers that are over with this."""
        if above in self._over:
            return self.over(caller)
        self._waiting.setdefault(above, []).append(caller)
        self._count += 1
        while self._count > self._most_waiting:
            self._count -= len(self._waiting.pop(next(iter(self._waiting))))
        return []

    def over(self, caller: bytes) -> list[bytes]:
        """`caller` can never run again; returns it, and all below it."""
        found, at = [], [caller]
        while at:
            each = at.pop()
            found.append(each)
            self._over[each] = None
            below = self._waiting.pop(each, [])
            self._count -= len(below)
            at += below
        while len(self._over) > self._most_over:
            del self._over[next(iter(self._over))]
        return found
