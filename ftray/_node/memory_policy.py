"""Which process ends when the machine runs out of memory.

A pure decision, Ray's documented policy: what can be run again goes first; of the owners with such work the
one with most of it (then the one whose oldest began last); of its processes the one that began last. So
every owner keeps at least one task that can finish. When even that one has to go, it is told so
(``final``): running it again would end the same way.
Leaves to others: measuring (``memory_meter``), carrying it out (``memory_monitor``).
"""

from __future__ import annotations

from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class Candidate(Record):
    """A process that runs a task or an actor.

    Attributes
    ----------
    number
        The worker.
    owner
        Who its work belongs to.
    retriable
        Whether the work is run again after its death.
    is_actor
        It is an actor, whose restarts are counted elsewhere.
    began
        When it got its work, as a number that grows.
    """

    number: int
    owner: int
    retriable: bool
    is_actor: bool
    began: int


class Victim(Record):
    """The process to end; ``final``: what it runs is not to be run again."""

    number: int
    final: bool


def choose(candidates: Sequence[Candidate]) -> Victim | None:
    """Return who ends, None when there is nobody."""
    groups: dict[tuple[bool, int], list[Candidate]] = {}
    for candidate in candidates:
        # What is lost for good is a group of its own.
        key = (True, candidate.owner) if candidate.retriable else (False, candidate.number)
        groups.setdefault(key, []).append(candidate)
    if not groups:
        return None
    retriable, owner = max(
        groups, key=lambda key: (key[0], len(groups[key]), min(c.began for c in groups[key]), key[1])
    )
    group = groups[retriable, owner]
    victim = max(group, key=lambda c: (c.began, c.number))
    return Victim(victim.number, final=not victim.is_actor and (not retriable or len(group) == 1))
