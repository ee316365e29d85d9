"""Which exactly-once actors wait for each other: finds circles that no reply can open. A pure state machine.

A method of such an actor holds it until it ends, so two methods that wait for calls to each other's actors
wait for ever. A method that has waited for long says so again and again (it *polls*): for calls to which
actors it waits. Those are the edges of a graph.

Owns: the waits that were polled, and circles that are being confirmed. Invariants: a circle is reported only
when each of its members has polled the very same wait `CONFIRMATIONS` times after all of its edges had been
seen: then all of them waited at one instant, and whatever had been answered before had time to arrive. It is
reported to one of them, whose wait is over by that. A member that has answers which are not durable yet
confirms nothing.
Leaves to others: who waits for how long before the first poll (``ftray/_long_waits.py``).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CONFIRMATIONS = 2


class _Wait:
    """A wait of one incarnation, as its last poll described it."""

    def __init__(self, process: int, number: int, method: str, targets: frozenset[bytes]) -> None:
        self.process, self.number, self.method, self.targets = process, number, method, targets
        self.quiet_polls = 0


class WaitTable:
    """Long waits of all exactly-once actors, by actor."""

    def __init__(self) -> None:
        self._waits: dict[bytes, _Wait] = {}
        # Circle -> per member: number of its wait, and how often it had polled when the circle was seen.
        self._seen: dict[tuple[bytes, ...], dict[bytes, tuple[int, int]]] = {}

    def polled(
        self,
        actor: bytes,
        process: int,
        number: int,
        method: str,
        targets: Sequence[bytes],
        quiet: bool,
    ) -> list[tuple[bytes, str]] | None:
        """A method still waits.

        Parameters
        ----------
        actor, process
            Who waits: the actor, and the process that is its incarnation.
        number
            Of this wait among those of the process.
        method
            For people.
        targets
            Actors of the calls without which the wait cannot end.
        quiet
            The process has no answer that still has to leave.

        Returns
        -------
        list of (bytes, str) or None
            Actors and methods of a circle, this one first; its wait has to end with an error.
        """
        wait = self._waits.get(actor)
        edges = frozenset(targets)
        if wait is None or (wait.process, wait.number, wait.targets) != (process, number, edges):
            self.over(actor)
            wait = self._waits[actor] = _Wait(process, number, method, edges)
        wait.quiet_polls += quiet
        circle = self._circle(actor)
        if circle is None:
            return None
        members = tuple(sorted(circle))
        seen = self._seen.setdefault(members, {})
        for member in circle:
            its = self._waits[member]
            if seen.get(member, (-1, 0))[0] != its.number:  # an edge is new: all are to be confirmed anew
                seen.clear()
                seen.update({m: (self._waits[m].number, self._waits[m].quiet_polls) for m in circle})
                return None
        if any(self._waits[m].quiet_polls < seen[m][1] + CONFIRMATIONS for m in circle):
            return None
        found = [(member, self._waits[member].method) for member in circle]
        self.over(actor)
        return found

    def over(self, actor: bytes) -> None:
        """The actor's wait has ended, or its process."""
        if self._waits.pop(actor, None) is not None:
            self._seen = {members: seen for members, seen in self._seen.items() if actor not in members}

    def process_ended(self, process: int) -> None:
        """A process is dead: it waits for nothing."""
        for actor in [a for a, wait in self._waits.items() if wait.process == process]:
            self.over(actor)

    def __len__(self) -> int:
        return len(self._waits)

    def _circle(self, actor: bytes) -> list[bytes] | None:
        """The shortest way from an actor along the waits back to itself."""
        ways: dict[bytes, bytes] = {}
        at = [actor]
        while at:
            following = []
            for waiting in at:
                for target in sorted(self._waits[waiting].targets):
                    if target == actor:
                        return list(self._way(ways, actor, waiting))
                    if target in self._waits and target not in ways:
                        ways[target] = waiting
                        following.append(target)
            at = following
        return None

    @staticmethod
    def _way(ways: dict[bytes, bytes], first: bytes, last: bytes) -> Iterator[bytes]:
        way = [last]
        while way[-1] != first:
            way.append(ways[way[-1]])
        return reversed(way)
