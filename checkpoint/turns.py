"""Decides whose turn it is: methods that change the state alone, read-only ones beside each other. Pure.

Invariants: first come, first served; an exclusive turn begins when nothing else runs, and nothing begins
beside it; shared ones that came after a waiting exclusive one wait behind it, so that no caller starves.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple


class Ticket(NamedTuple):
    """A place in the queue."""

    number: int
    exclusive: bool


class Turns:
    """The queue of one actor. Each method returns the tickets whose turn begins now."""

    def __init__(self) -> None:
        self._waiting: deque[Ticket] = deque()
        self._shared = 0
        self._exclusive: Ticket | None = None
        self._last = 0

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not (self._waiting or self._shared or self._exclusive)

    def arrive(self, exclusive: bool) -> tuple[Ticket, list[Ticket]]:
        """Queue up; returns the new ticket too."""
        self._last += 1
        ticket = Ticket(self._last, exclusive)
        self._waiting.append(ticket)
        return ticket, self._begin()

    def leave(self, ticket: Ticket) -> list[Ticket]:
        """A turn has ended, or its holder gives up waiting."""
        if ticket in self._waiting:
            self._waiting.remove(ticket)
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
        while self._waiting and self._exclusive is None:
            ticket = self._waiting[0]
            if ticket.exclusive:
                if self._shared:
                    break
                self._exclusive = ticket
            else:
                self._shared += 1
            begun.append(self._waiting.popleft())
        return begun
