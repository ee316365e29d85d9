"""Decides how a cut over a group of actors is taken, and what a member does that opens. Pure.

A cut is taken behind a barrier. *Hold*: each member lets only calls of members begin; the others wait.
*Drain*: waves of polls, until two in a row find every member between two methods, with all of its calls to
members answered and the same number of calls begun as in the wave before. Between those two waves nothing
ran and nothing was under way, and nothing can begin any more: whatever a member had sent to another one
has been done, and is part of the state on both sides. *Capture*: each member stops altogether and copies its
state; if a call began since the last wave (by a thread of the user's own), the cut goes back to draining.
*Write*: the members go on, and the copies are made durable beside. *Publish*: last comes the manifest; a cut
without one does not exist.

Why not markers that overtake (Chandy and Lamport): a method that waits for another member's reply cannot be
captured, and captured before, its reply would come from after the cut. So such calls have to be finished in
any case, and the barrier needs no channel that can be recorded.

Invariants: whatever happens, each member that was asked to hold is asked to release; nothing is published
unless all members captured in one and the same barrier and wrote what they captured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

FIRST_NAP_S, LONGEST_NAP_S = 0.001, 0.05
HOLD, POLL, CAPTURE, WRITTEN, RELEASE = "hold", "poll", "capture", "written", "release"


class Ask(NamedTuple):
    """Ask a member; its answer is to come as `Cut.answered`, or its failure as `Cut.failed`."""

    member: int
    what: str


class Nap(NamedTuple):
    """Call `Cut.rested` after this time."""

    seconds: float


class Publish(NamedTuple):
    """Publish the manifest; then call `Cut.published`, or `Cut.failed`."""


class Finish(NamedTuple):
    """The cut is there, or `error` says why not. Nothing is asked any more."""

    error: BaseException | None


Command = Ask | Nap | Publish | Finish


class Phase(Enum):
    """Where a cut stands."""

    HOLDING = "holding"
    DRAINING = "draining"
    CAPTURING = "capturing"
    WRITING = "writing"
    PUBLISHING = "publishing"
    GIVING_UP = "giving up"
    ENDED = "ended"


class Cut:
    """One cut over `n` members: events in, commands out."""

    def __init__(self, n: int) -> None:
        if n < 1:
            raise ValueError(f"a group has at least one member, not {n}")
        self.phase = Phase.HOLDING
        self.error: BaseException | None = None
        self.waves = 0
        self._n = n
        self._open: set[Ask] = set()
        self._last: tuple[int, ...] = ()
        self._answers: dict[int, Mapping[str, Any]] = {}
        self._nap_s = FIRST_NAP_S
        self._unwritten: set[int] = set()
        self._resting = False

    def start(self) -> list[Command]:
        """Begin."""
        return self._ask_all(HOLD)

    def answered(self, ask: Ask, answer: Mapping[str, Any]) -> list[Command]:
        """A member has answered.

        Parameters
        ----------
        answer : mapping
            To ``poll``: ``unanswered`` and ``begun``. To ``capture``: ``begun``. To ``written``: ``done``.
        """
        if not self._take(ask):
            return []
        if self.phase is Phase.GIVING_UP:
            return self._give_up_further()
        if ask.what == RELEASE:
            return self._next_in_writing()
        self._answers[ask.member] = answer
        if self._open:
            return []
        return self._step()

    def failed(self, ask: Ask | None, error: BaseException) -> list[Command]:
        """A member did not answer, the manifest was not published (None), or the time is over (None)."""
        if ask is not None and not self._take(ask):
            return []
        if self.phase in (Phase.GIVING_UP, Phase.ENDED):
            return self._give_up_further()
        self.error, held = error, self.phase in (Phase.HOLDING, Phase.DRAINING, Phase.CAPTURING)
        self.phase = Phase.GIVING_UP
        self._open = set()  # what is answered now changes nothing
        return self._ask_all(RELEASE) if held else self._give_up_further()

    def rested(self) -> list[Command]:
        """The time of a `Nap` is over."""
        if not self._resting or self.phase is not Phase.WRITING:
            return []
        self._resting = False
        return self._ask_written()

    def published(self) -> list[Command]:
        """The manifest is durable."""
        if self.phase is not Phase.PUBLISHING:
            return []
        self.phase = Phase.ENDED
        return [Finish(None)]

    def _take(self, ask: Ask) -> bool:
        """Whether an answer is still waited for."""
        if ask not in self._open:
            return False
        self._open.discard(ask)
        return True

    def _ask_all(self, what: str) -> list[Command]:
        self._answers = {}
        asks = [Ask(i, what) for i in range(self._n)]
        self._open |= set(asks)
        return list(asks)

    def _step(self) -> list[Command]:
        """All members have answered what they were asked."""
        if self.phase is Phase.HOLDING:
            self.phase = Phase.DRAINING
            return self._ask_all(POLL)
        if self.phase is Phase.DRAINING:
            return self._drained()
        if self.phase is Phase.CAPTURING:
            return self._captured()
        return self._next_in_writing()

    def _drained(self) -> list[Command]:
        self.waves += 1
        begun = tuple(int(self._answers[i]["begun"]) for i in range(self._n))
        quiet = all(not a["unanswered"] for a in self._answers.values())
        before, self._last = self._last, begun if quiet else ()
        if not quiet or begun != before:
            return self._ask_all(POLL)
        self.phase = Phase.CAPTURING
        return self._ask_all(CAPTURE)

    def _captured(self) -> list[Command]:
        if tuple(int(self._answers[i]["begun"]) for i in range(self._n)) != self._last:
            self.phase, self._last = Phase.HOLDING, ()
            return self._ask_all(HOLD)
        self.phase = Phase.WRITING
        self._unwritten = set(range(self._n))
        return self._ask_all(RELEASE)

    def _next_in_writing(self) -> list[Command]:
        if self._open:
            return []
        self._unwritten -= {i for i, answer in self._answers.items() if answer.get("done")}
        if not self._unwritten:
            self.phase = Phase.PUBLISHING
            return [Publish()]
        if not self._answers:
            return self._ask_written()
        self._resting = True
        self._nap_s, nap_s = min(2 * self._nap_s, LONGEST_NAP_S), self._nap_s
        return [Nap(nap_s)]

    def _ask_written(self) -> list[Command]:
        self._answers = {}
        asks = [Ask(i, WRITTEN) for i in sorted(self._unwritten)]
        self._open |= set(asks)
        return list(asks)

    def _give_up_further(self) -> list[Command]:
        if self._open or self.phase is Phase.ENDED:
            return []
        self.phase = Phase.ENDED
        return [Finish(self.error)]


# -- generations


class Standing(NamedTuple):
    """What a member that opens sees of its group.

    Attributes
    ----------
    generation : int
        The newest that was claimed.
    sealed : bool
        Whether it is in force: all processes of the generations before are dead.
    beginner_lives : bool
        Whether the process that claimed it may still seal it.
    ended : int
        The last epoch of this member's own key that had ended when the generation began.
    cut : str or None
        What the generation began from.
    newest : str or None
        The newest cut that counts.
    restored : int
        The last generation that was begun by going back on purpose, 0 if there was none.
    member : bool
        False if the group is without this member now, or was disbanded.
    """

    generation: int
    sealed: bool
    beginner_lives: bool
    ended: int
    cut: str | None
    newest: str | None
    restored: int
    member: bool = True


class Step(Enum):
    """What a member that opens does about its group."""

    WAIT = "wait"  # another process takes the group back
    BEGIN = "begin"  # take the group back
    LOAD = "load"  # begin from the cut
    ALONE = "alone"  # recover as if there was no group
    LEAVE = "leave"  # for good


def step_of_member(here: Standing, epoch: int, exactly_once: bool, own_generation: int) -> Step:
    """Decide what a member does that has just claimed `epoch` of its own key.

    Parameters
    ----------
    epoch : int
        The incarnation before had a lower one.
    own_generation : int
        Exactly-once members: the newest generation that their own recovery has begun from.
    """
    if not here.member:
        return Step.LEAVE
    if not here.sealed:
        return Step.WAIT if here.beginner_lives else Step.BEGIN
    if exactly_once:
        return Step.LOAD if here.restored > own_generation else Step.ALONE
    if here.newest is None:  # the group is being made, and has nothing to go back to; or its cuts are lost
        return Step.ALONE if here.cut is None else Step.LOAD
    if epoch - 1 > here.ended or here.cut != here.newest:
        return Step.BEGIN  # this member, or the whole group, has lived in this generation
    return Step.LOAD


def missing(expected: Sequence[str], found: Sequence[str]) -> str:
    """Describe how two sets of members differ, for errors; "" if they do not."""
    lacks, more = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [f"{', '.join(map(repr, lacks))} missing"] if lacks else []
    parts += [f"{', '.join(map(repr, more))} too many"] if more else []
    return ", ".join(parts)
