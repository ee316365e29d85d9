"""Decides whose turn it is: methods that change the state alone, read-only ones beside each other. Pure.

Invariants: first come, first served; an exclusive turn begins when nothing else runs, and nothing begins
beside it; shared ones that came after a waiting exclusive one wait behind it, so that no caller starves.
While the journal is full only free ones begin, and pass the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple


class Ticket(NamedTuple):
    """A place in the queue."""

    number: int
    exclusive: bool
    free: bool = False


class Turns:
    """The queue of one actor. Each method returns the tickets whose turn begins now.

    Parameters
    ----------
    full : callable
        Whether so much waits in the journal that no call starts for now.
    """

    def __init__(self, full: Callable[[], bool]) -> None:
        self._full = full
        self._waiting: deque[Ticket] = deque()
        self._free: deque[Ticket] = deque()
        self._shared = 0
        self._exclusive: Ticket | None = None
        self._last = 0
        self.stopped = False
        """Whether the next one waits for the journal alone: whoever sees to that calls `go_on` later."""

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self._waiting or self._free or self._shared or self._exclusive)

    def arrive(self, exclusive: bool, free: bool = False) -> tuple[Ticket, list[Ticket]]:
        """Queue up; returns the new ticket too. `free`: the journal may be full, it leaves nothing there."""
        self._last += 1
        ticket = Ticket(self._last, exclusive, free)
        (self._free if free else self._waiting).append(ticket)
        return ticket, self._begin()

    def go_on(self) -> list[Ticket]:
        """The journal has moved."""
        return self._begin()

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """A turn has ended, or its holder gives up waiting."""
        queue = self._free if ticket.free else self._waiting
        if ticket in queue:
            queue.remove(ticket)
        elif ticket == self._exclusive:
            self._exclusive = None
        elif not ticket.exclusive and self._shared:
            self._shared -= 1
        else:
            raise AssertionError(
                f"{ticket} leaves and never came; exclusive={self._exclusive} shared={self._shared}"
            )
        return self._begin()

    def _begin(self) -> list[Ticket]:
        begun: list[Ticket] = []
        waiting, free = self._waiting, self._free
        self.stopped = False
        while (waiting or free) and self._exclusive is None:
            queue = waiting
            if not waiting or (free and free[0].number < waiting[0].number):
                queue = free
            elif self._full():
                self.stopped, queue = True, free
                if not free:
                    break
            ticket = queue[0]
            if ticket.exclusive:
                if self._shared:
                    break
                self._exclusive = ticket
            else:
                self._shared += 1
            begun.append(queue.popleft())
        return begun
