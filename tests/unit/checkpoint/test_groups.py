"""Groups over all stores, and a crash at every step of what is done to one."""

from __future__ import annotations

import contextlib
import importlib
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ftray.checkpoint import CheckpointError, FencedError, faults, generations, members, values
from ftray.checkpoint.groups import Group
from ftray.checkpoint.stores import connect
from ftray.checkpoint.stores.kv import KvObjects
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.protocol import Store

from .group_suite import GroupSuite
from .group_support import KEY, NAME, World, crashes, require_consistent, world_of
from .once_support import memory
from .test_stores import FakeKv


class TestLocal(GroupSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LocalStore(str(tmp_path / "store"))

    def reopened(self, store: Any) -> Store:
        return LocalStore(store._root)


class TestMemory(GroupSuite):
    @pytest.fixture
    def store(self) -> Store:
        return memory()


class Objects(GroupSuite):
    def reopened(self, store: Any) -> Store:
        return connect(store.url)


class TestS3(Objects):
    # What says nothing about the store is left out: each request takes a while.
    test_found_again_by_its_name = None
    test_a_stale_coordinator = None
    test_who_left_a_group_may_be_in_another_one = None
    test_an_unnamed_member_whose_key_went_with_it = None
    test_members_that_are_gone_in_another_program = None
    test_a_group_of_which_nobody_is_left = None
    test_a_plan_that_cannot_be_carried_out_is_overtaken = None
    test_the_cut_gone_back_to_stays_until_two_newer_ones_are_there = None

    @pytest.fixture
    def store(self, s3_url: str) -> Store:
        return connect(s3_url)


class TestFsspecMemory(Objects):
    outlives_processes = False

    @pytest.fixture
    def store(self, request: pytest.FixtureRequest) -> Iterator[Store]:
        import fsspec

        yield connect(f"memory://groups-{request.node.name.partition('[')[0]}")
        fsspec.filesystem("memory").store.clear()


class TestKv(Objects):
    @pytest.fixture
    def store(self, monkeypatch: pytest.MonkeyPatch) -> Store:
        importlib.import_module("ftray.experimental.internal_kv")
        monkeypatch.setitem(sys.modules, "ftray.experimental.internal_kv", FakeKv())  # type: ignore[arg-type]
        monkeypatch.setattr(KvObjects, "survives", frozenset({"process"}))  # there is no node to be asked
        return connect("kv://some/groups")


# -- a crash at every step


class Story:
    """What is done to a group, and what may be found when a process died in it."""

    names = "ab"

    def __init__(self, world: World) -> None:
        self.world = world
        self.group = world.group()
        world.traffic()
        world.settle()
        self.first = self.group.save()
        self.books = world.books()
        world.traffic()
        world.settle()
        self.prepare()

    def prepare(self) -> None:
        """Before what may die."""

    def act(self) -> None:
        """What may die."""
        raise NotImplementedError

    def check(self, present: dict[str, Any]) -> None:
        """What holds afterwards; `present`: the books before it."""
        raise NotImplementedError


class Saving(Story):
    def act(self) -> None:
        self.world.traffic(1)
        self.group.save()

    def check(self, present: dict[str, Any]) -> None:
        world, group = self.world, self.world.group()
        world.settle()
        infos = [info for info in group.list() if info.counts]
        assert infos and all(info.error == "" for info in infos)
        newest = infos[-1].id
        if newest == self.first:
            assert world.states(newest) == self.books
        require_consistent(world.states(newest))
        world.process("a").die()
        if not world.exactly_once:
            assert world.books() == world.states(newest), "the group goes back to it"
        assert world.states(group.save()) == world.books(), "and goes on"


class GoingBack(Story):
    def prepare(self) -> None:
        self.second = self.group.save()
        self.at_second = self.world.books()
        self.world.traffic(1)
        self.world.settle()

    def act(self) -> None:
        self.group.restore(self.first)

    def check(self, present: dict[str, Any]) -> None:
        world, group = self.world, self.world.group()
        found = world.books()
        assert found in (present, self.at_second, self.books), "all members have one past"
        counted = [info.id for info in group.list() if info.counts]
        back = found == self.books
        assert counted[-1] == (self.first if back else self.second)
        world.process("b").die()
        stands = world.exactly_once or back
        assert world.books() == (found if stands else self.at_second)
        assert world.states(group.save()) == world.books()


class Leaving(Story):
    names = "abc"

    def act(self) -> None:
        self.group.remove("test/c")

    def check(self, present: dict[str, Any]) -> None:
        world = self.world
        world.books()
        world.next_program()
        left = "test/c" not in generations.members_of(world.store, NAME)
        group = world.group("ab" if left else "abc")
        found = world.books()
        alone, others = found.pop("test/c"), found
        assert others in (_without(present), _without(self.books))
        assert alone in (present["test/c"], self.books["test/c"])
        assert left or (alone == present["test/c"]) == (others == _without(present))
        if left:
            world.process("c").die()
            assert world.books() == {**others, "test/c": alone}, "it is alone"
        assert len(world.states(group.save())) == (2 if left else 3)
        world.process("a").die()
        assert world.books() == {**others, "test/c": alone}


class Disbanding(Story):
    def act(self) -> None:
        self.group.disband()

    def check(self, present: dict[str, Any]) -> None:
        world = self.world
        found = world.books()
        world.next_program()
        ended = not generations.members_of(world.store, NAME)
        assert found in (present, self.books)
        if ended:
            world.process("a").die()
            assert world.books() == found
        group = world.group()
        assert group.is_new == ended
        cut = group.save()
        world.process("b").die()
        assert world.books() == world.states(cut) == found


def _without(books: dict[str, Any]) -> dict[str, Any]:
    return {key: book for key, book in books.items() if key != "test/c"}


def crash_everywhere(
    story: type[Story],
    make: Callable[[], Store],
    wanted: Callable[[str], bool],
    most: int = 1000,
    **options: Any,
) -> dict[str, int]:
    """Let a process die each time that it comes to a point, the first `most` times; how often, by point."""
    with world_of(make(), story.names, **options) as world:
        undisturbed = story(world)
        with faults.traced() as hits:
            undisturbed.act()
        undisturbed.check(world.books())
    done: dict[str, int] = {}
    for point, nth in crashes(hits, wanted, most):
        with world_of(make(), story.names, **options) as world:
            told = story(world)
            present = world.books()
            try:
                _die_in(told, point, nth)
                told.check(present)
            except Exception as error:
                raise AssertionError(f"a process died at {point} (time {nth}): {error!r}") from error
        done[point] = done.get(point, 0) + 1
    return done


def _die_in(story: Story, point: str, nth: int) -> None:
    crash = faults.SimulatedCrash(f"{point} {nth}")
    with faults.armed(point, crash, nth):
        try:
            story.act()
        except faults.SimulatedCrash:
            faults.active = None
            story.world.coordinator_died()
        except CheckpointError:
            return  # a member died, and whoever took the cut was told


@pytest.fixture(autouse=True, scope="module")
def simulated() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "simulated", {})
        yield


def anything(point: str) -> bool:
    return True


@pytest.mark.parametrize("exactly_once", [False, True])
class TestCrashes:
    def test_of_a_save(self, exactly_once: bool) -> None:
        done = crash_everywhere(Saving, memory, anything, exactly_once=exactly_once)
        members = {"held", "polled", "captured", "released", "writing", "written"}
        coordinator = {f"answered.{what}" for what in ("hold", "poll", "capture", "release", "written")}
        coordinator |= {"publish", "published", "retired"}
        assert {f"group.{step}" for step in members | coordinator} <= set(done)

    def test_of_going_back(self, exactly_once: bool) -> None:
        done = crash_everywhere(GoingBack, memory, anything, exactly_once=exactly_once)
        assert {"group.claimed", "group.ended", "group.sealed", "group.loaded"} <= set(done)
        assert set(faults.ROLLBACK_POINTS) <= set(done) or not exactly_once

    def test_of_a_member_that_leaves(self, exactly_once: bool) -> None:
        done = crash_everywhere(Leaving, memory, anything, exactly_once=exactly_once)
        assert {"group.parted", "group.claimed", "group.sealed", "group.left"} <= set(done)

    def test_of_disbanding(self, exactly_once: bool) -> None:
        done = crash_everywhere(Disbanding, memory, anything, exactly_once=exactly_once)
        assert done["group.left"] == 2


@pytest.mark.parametrize("story", [Saving, GoingBack])
def test_crashes_in_the_midst_of_files(story: type[Story], tmp_path: Path) -> None:
    made = iter(range(10_000))
    done = crash_everywhere(
        story, lambda: LocalStore(str(tmp_path / str(next(made)))), lambda point: point.startswith("file."), 1
    )
    assert len(done) > 8


def test_the_beginner_of_a_generation_that_does_not_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    with world_of(memory()) as world:
        group: Group = world.group()
        store = world.store
        with generations._noted() as nonce:
            claim = {**generations._this_process(nonce), "plan": {"members": list(group.members)}}
            generations.SnapshotLog(store, KEY, 2).claim(claim)
            with pytest.raises(CheckpointError, match="generation 2 of group 'pair' was not in force"):
                group.save(timeout_s=0.05)
            monkeypatch.setattr(generations, "WAIT_TIMEOUT_S", 0.05)
            world.process("a").die()
            with pytest.raises(CheckpointError, match="lives and does not go on"):
                world.process("a").live()
        assert group.save(), "whoever comes next finishes what it had begun"
        assert group.generation == 3


class Walk:
    """Random calls, cuts, deaths and ways back; processes die in the midst of all of it."""

    points = [p for p in faults.POINTS if p.startswith(("group.", "restore.", "save."))]

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world, self.rng = world, rng
        self.group = world.group()

    def step(self) -> None:
        world, rng = self.world, self.rng
        process = rng.choice(world.processes)
        what = rng.choice(["traffic", "traffic", "pump", "save", "save", "restore", "die", "live", "again"])
        if what == "traffic":
            world.traffic(1)
        elif what == "pump":
            for _ in range(rng.randint(1, 6)):
                world.pump()
        elif what == "die":
            process.die()
        else:
            act = {"save": self.group.save, "restore": self.back, "live": process.live, "again": self.again}
            self.endanger(act[what])

    def back(self) -> None:
        self.group.restore(self.rng.choice([None, *(info.id for info in self.group.list() if info.counts)]))

    def again(self) -> None:
        self.group = self.world.group()

    def endanger(self, act: Callable[[], Any]) -> None:
        point, nth = self.rng.choice(self.points), self.rng.randint(1, 3)
        crash = faults.SimulatedCrash(point)
        with faults.armed(point, crash, nth) if self.rng.random() < 0.6 else contextlib.nullcontext():
            try:
                act()
            except faults.SimulatedCrash:
                faults.active = None
                self.world.coordinator_died()
            except CheckpointError:
                return

    def check(self) -> None:
        world = self.world
        world.books()
        world.settle()
        require_consistent(world.books())
        self.again()
        cut = self.group.save()
        require_consistent(world.states(cut))
        world.process("b").die()
        assert world.books() == world.states(cut)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 32))
def test_a_random_walk(seed: int) -> None:
    with world_of(memory(), "abc") as world:
        walk = Walk(world, random.Random(seed))
        for _ in range(5):
            for _ in range(12):
                walk.step()
            walk.check()


def test_one_process_begins_a_generation() -> None:
    with world_of(memory()) as world:
        group = world.group()
        plan = generations.Plan(group.members)
        for seen in (0, 7):
            with pytest.raises(generations.Moved, match="generation 1 of group 'pair' was begun meanwhile"):
                generations.begin(world.store, NAME, 2, seen, plan, world.end)
        assert group.generation == 1 and [info.id for info in group.list()] == ["1-1"]
        group.disband()
        with pytest.raises(generations.Moved, match="group 'pair' is gone"):
            generations.begin(world.store, NAME, 2, 1, plan, world.end)
        assert KEY not in world.store.keys()  # noqa: SIM118


@pytest.mark.parametrize("point", ["group.answered.hold", "group.answered.poll", "group.answered.capture"])
def test_an_interrupted_save_holds_nobody(point: str) -> None:
    with world_of(memory()) as world:
        group = world.group()
        with faults.armed(point, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            group.save()
        assert [process.held for process in world.processes] == [None, None]
        assert group.save() == "1-2"


def test_a_member_that_cannot_be_written_fails_the_cut() -> None:
    with world_of(memory()) as world:
        group = world.group()
        with faults.armed("group.writing", OSError(28, "disk full")), pytest.raises(OSError, match="full"):
            group.save()
        assert [info.id for info in group.list()] == ["1-1"]
        assert group.save() == "1-2"


def test_what_was_meant_for_another_incarnation_is_refused() -> None:
    with world_of(memory()) as world:
        world.group()
        session = world.processes[0].live()
        asked = {"generation": session.member.generation, "epoch": session.log.epoch, "nonce": "n"}
        assert members.steer(session.instance, "release", asked) == {}
        joining = {"group": "pair", "keep": 2, "actors": []}
        for other in ({**asked, "epoch": asked["epoch"] + 1}, {**asked, "generation": 7}):
            for what in ("hold", "poll", "capture", "written"):
                with pytest.raises(FencedError, match="cannot be taken any more"):
                    members.steer(session.instance, what, other)
        with pytest.raises(FencedError, match="was restarted while it was to join"):
            members.steer(session.instance, "join", {**joining, **asked, "epoch": asked["epoch"] + 1})
