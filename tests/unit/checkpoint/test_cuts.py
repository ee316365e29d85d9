"""Cuts over groups: the machine against members that send each other messages, in every order of events."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray.checkpoint.cuts import (
    CAPTURE,
    HOLD,
    POLL,
    RELEASE,
    WRITTEN,
    Ask,
    Cut,
    Finish,
    Nap,
    Phase,
    Publish,
    Standing,
    Step,
    missing,
    step_of_member,
)


class Actor:
    """A member as the machine sees it: a queue, calls that send further ones, a hold, a captured state."""

    def __init__(self, n: int) -> None:
        self.queue: list[tuple[int, int]] = []  # sender (-1: from outside), how many further calls it causes
        self.sent, self.received = [0] * n, [0] * n
        self.unanswered = 0
        self.allowed: str | None = None  # None, "members", "nobody"
        self.begun = 0
        self.captured: tuple[list[int], list[int]] | None = None
        self.written = False
        self.released_after_hold = True


class World:
    """Members, what is asked of them and not answered, and a machine."""

    def __init__(self, n: int, seeds: list[tuple[int, int]]) -> None:
        self.actors = [Actor(n) for _ in range(n)]
        self.cut = Cut(n)
        self.asked: list[Ask] = []
        self.resting = False
        self.publishing = False
        self.published = False
        self.finished: Finish | None = None
        for to, further in seeds:
            self.actors[to % n].queue.append((-1, further))
        self.obey(self.cut.start())

    def obey(self, commands: list[Any]) -> None:
        for command in commands:
            assert self.finished is None, "nothing comes after the end"
            if isinstance(command, Ask):
                self.asked.append(command)
            elif isinstance(command, Nap):
                self.resting = True
            elif isinstance(command, Publish):
                assert all(a.written for a in self.actors), "published before all was written"
                self.publishing = True
            else:
                self.finished = command

    def run_call(self, i: int, pick: int) -> bool:
        """A member begins and ends one call of its queue that may begin."""
        actor = self.actors[i]
        may = [
            k
            for k, (sender, _) in enumerate(actor.queue)
            if actor.allowed is None or (actor.allowed == "members" and sender >= 0)
        ]
        if not may:
            return False
        sender, further = actor.queue.pop(may[pick % len(may)])
        if sender >= 0:
            actor.received[sender] += 1
            self.actors[sender].unanswered -= 1
        if actor.allowed is not None:
            actor.begun += 1
        for k in range(min(further, 2)):
            to = (i + 1 + k + pick) % len(self.actors)
            if to != i:
                actor.sent[to] += 1
                actor.unanswered += 1
                self.actors[to].queue.append((i, further - 1))
        return True

    def background_thread(self, i: int) -> None:
        """A thread of the user's own sends something, whatever the hold says."""
        to = (i + 1) % len(self.actors)
        if to != i:
            self.actors[i].sent[to] += 1
            self.actors[i].unanswered += 1
            self.actors[to].queue.append((i, 0))

    def answer(self, ask: Ask) -> None:
        self.asked.remove(ask)
        actor = self.actors[ask.member]
        reply: dict[str, Any] = {}
        if ask.what == HOLD:
            actor.allowed, actor.released_after_hold = "members", False
            actor.captured, actor.written = None, False
        elif ask.what == POLL:
            reply = {"begun": actor.begun, "unanswered": actor.unanswered}
        elif ask.what == CAPTURE:
            actor.allowed = "nobody"
            actor.captured = (list(actor.sent), list(actor.received))
            reply = {"begun": actor.begun}
        elif ask.what == RELEASE:
            actor.allowed, actor.released_after_hold = None, True
        elif ask.what == WRITTEN:
            actor.written = True
            reply = {"done": True}
        self.obey(self.cut.answered(ask, reply))

    def check_captured(self) -> None:
        """What a member has sent according to its state, the receiver has received according to its."""
        for i, one in enumerate(self.actors):
            for j, other in enumerate(self.actors):
                assert one.captured is not None and other.captured is not None
                assert one.captured[0][j] == other.captured[1][i]


@st.composite
def stories(draw: st.DrawFn) -> tuple[int, list[tuple[int, int]], list[tuple[int, int]], int | None]:
    n = draw(st.integers(1, 4))
    seeds = draw(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 4)), max_size=5))
    moves = draw(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 7)), max_size=120))
    return n, seeds, moves, draw(st.none() | st.integers(0, 60))


def play(world: World, moves: list[tuple[int, int]], fails_at: int | None, threads: bool) -> None:
    for at, (kind, pick) in enumerate(moves):
        if world.finished is not None:
            return
        if at == fails_at:
            ask = world.asked.pop(pick % len(world.asked)) if world.asked and pick % 3 else None
            world.obey(world.cut.failed(ask, RuntimeError("dead")))
        elif kind < 6:
            world.run_call(pick % len(world.actors), kind)
        elif kind == 6 and threads:
            world.background_thread(pick % len(world.actors))
        elif world.asked:
            world.answer(world.asked[pick % len(world.asked)])
        step_on(world)


def step_on(world: World) -> None:
    if world.resting:
        world.resting = False
        world.obey(world.cut.rested())
    if world.publishing and world.finished is None:
        world.publishing = False
        world.check_captured()
        world.published = True
        world.obey(world.cut.published())


def settle(world: World) -> None:
    """No failure and no new message any more: the cut has to come to an end."""
    for _ in range(5000):
        if world.finished is not None and not world.asked:
            return
        for i in range(len(world.actors)):
            while world.run_call(i, 0):
                continue
        if world.asked:
            world.answer(world.asked[0])
        step_on(world)
    raise AssertionError(f"the cut never ended; it is {world.cut.phase}")


@settings(max_examples=300, deadline=None)
@given(stories(), st.booleans())
def test_a_cut_is_consistent_or_is_not_published(
    story: tuple[int, list[tuple[int, int]], list[tuple[int, int]], int | None], threads: bool
) -> None:
    n, seeds, moves, fails_at = story
    world = World(n, seeds)
    play(world, moves, fails_at, threads)
    settle(world)
    assert world.finished is not None
    assert world.published == (world.finished.error is None)
    assert world.cut.phase is Phase.ENDED
    assert all(actor.released_after_hold and actor.allowed is None for actor in world.actors)


def test_a_quiet_group_is_polled_twice() -> None:
    world = World(3, [])
    settle(world)
    assert world.published and world.cut.waves == 2


def test_calls_from_outside_wait_and_run_after_the_captures() -> None:
    world = World(2, [(0, 0), (1, 3)])
    while world.asked[0].what != POLL:
        world.answer(world.asked[0])
    assert not world.run_call(0, 0) and not world.run_call(1, 0)
    settle(world)
    while world.run_call(0, 0) or world.run_call(1, 0):
        continue
    assert world.published and not any(actor.queue for actor in world.actors)


def test_a_call_on_its_way_is_waited_for() -> None:
    world = World(2, [])
    world.background_thread(0)
    for _ in range(20):  # nobody gets to run it
        world.answer(world.asked[0])
    assert world.cut.phase is Phase.DRAINING and world.cut.waves > 2
    world.run_call(1, 0)
    settle(world)
    assert world.published


def test_a_call_between_the_last_poll_and_a_capture_drains_again() -> None:
    world = World(2, [])
    while world.cut.phase is not Phase.CAPTURING:
        world.answer(world.asked[0])
    world.background_thread(0)
    world.run_call(1, 0)
    settle(world)
    assert world.published and world.cut.waves > 2


def test_what_is_late_changes_nothing() -> None:
    cut = Cut(2)
    first, second = cut.start()
    assert isinstance(first, Ask) and isinstance(second, Ask)
    releases = cut.failed(None, TimeoutError("late"))
    assert releases == [Ask(0, RELEASE), Ask(1, RELEASE)]
    assert cut.answered(first, {}) == [] and cut.answered(second, {}) == []
    assert cut.answered(Ask(0, RELEASE), {}) == []
    (end,) = cut.failed(Ask(1, RELEASE), RuntimeError("dead too"))
    assert isinstance(end, Finish) and isinstance(end.error, TimeoutError)
    assert cut.answered(Ask(1, RELEASE), {}) == [] and cut.rested() == [] and cut.published() == []


def test_a_group_has_members() -> None:
    with pytest.raises(ValueError, match="at least one member"):
        Cut(0)


def standing(**changes: Any) -> Standing:
    usual = Standing(
        generation=3, sealed=True, beginner_lives=False, ended=4, cut="2-1", newest="2-1", restored=0
    )
    return usual._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "epoch", "step"),
    [
        ({}, 5, Step.LOAD),  # ended by the generation, and now here
        ({"ended": 5}, 5, Step.LOAD),  # its process before was ended while it waited
        ({}, 6, Step.BEGIN),  # epoch 5 has lived in generation 3: this is a crash
        ({"newest": "3-1"}, 5, Step.BEGIN),  # the group has lived, though the claim of this member is lost
        ({"cut": None, "newest": None}, 9, Step.ALONE),  # being made
        ({"newest": None}, 9, Step.LOAD),  # its cuts are lost, which loading says
        ({"sealed": False, "beginner_lives": True}, 5, Step.WAIT),
        ({"sealed": False}, 5, Step.BEGIN),
    ],
)
def test_what_a_member_does_that_opens(changes: dict[str, Any], epoch: int, step: Step) -> None:
    assert step_of_member(standing(**changes), epoch, False, 0) is step


@pytest.mark.parametrize(
    ("changes", "own", "step"),
    [
        ({}, 0, Step.ALONE),  # a crash takes nobody back
        ({"restored": 3}, 2, Step.LOAD),
        ({"restored": 3}, 3, Step.ALONE),  # it has gone back already
        ({"sealed": False, "beginner_lives": True}, 3, Step.WAIT),
        ({"sealed": False}, 3, Step.BEGIN),
    ],
)
def test_what_an_exactly_once_member_does_that_opens(changes: dict[str, Any], own: int, step: Step) -> None:
    assert step_of_member(standing(**changes), 9, True, own) is step


def test_missing_members_are_named() -> None:
    assert missing(["a", "b"], ["b", "a"]) == ""
    assert missing(["a", "b"], ["b", "c"]) == "'a' missing, 'c' too many"
