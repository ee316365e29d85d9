"""Groups over every kind of store: one suite, adopted by test_groups.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from ftray import checkpoint
from ftray.checkpoint import (
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointOptionError,
    faults,
    generations,
    keyinfo,
    membership,
)
from ftray.checkpoint.errors import CheckpointCorruptedError, CheckpointError, FencedError
from ftray.checkpoint.stores.protocol import Store
from ftray.checkpoint.testing import Caller

from .group_support import KEY, NAME, World, require_consistent, world_of


class GroupSuite:
    """Adopters have a fixture ``store``, and `reopened` if their processes see it through other objects."""

    outlives_processes = True

    def reopened(self, store: Any) -> Store:
        found: Store = store
        return found

    @contextlib.contextmanager
    def world(self, store: Store, names: str = "ab", **options: Any) -> Iterator[World]:
        with world_of(store, names, reopen=self.reopened, **options) as world:
            yield world

    def test_cuts_under_traffic_are_consistent(self, store: Store) -> None:
        with self.world(store, "abc") as world:
            group = world.group()
            for n in range(3):
                world.traffic(4)
                cut = group.save(note=n)
                assert any(process.queue for process in world.processes), "calls were under way"
                require_consistent(world.states(cut))
            world.settle()
            assert world.books()["test/a"] == ({"b": 12}, {"c": 12})
            assert [info.note for info in group.list()] == [1, 2], "two are kept"
            named = {blob for info in group.list() for blob in _blobs(store, info.id).values()}
            assert set(store.list_blobs(KEY)) == named, "and the states of those"

    def test_a_crash_takes_all_members_back(self, store: Store) -> None:
        with self.world(store, "abc") as world:
            group = world.group()
            world.traffic()
            world.settle()
            cut = group.save()
            saved = world.books()
            world.traffic()
            world.settle()
            assert world.books() != saved
            lives = [process.life for process in world.processes]
            world.process("b").die()
            assert world.process("a").books() != saved["test/a"], "until it is noticed"
            world.process("b").live()
            assert world.books() == saved == world.states(cut)
            assert [process.life for process in world.processes] == [life + 1 for life in lives]
            assert group.generation == 2

    def test_what_was_sent_in_a_past_that_is_given_up_is_not_received(self, store: Store) -> None:
        with self.world(store, "abc") as world:
            group = world.group()
            world.traffic()
            world.settle()
            cut = group.save()
            saved = world.books()
            world.process("b").die()
            world.process("a").run("pay", "b")  # it waits until b has opened, which ends a
            assert [call[0].worker for call in world.process("b").queue] == [world.process("a").worker]
            world.settle()
            assert world.books() == saved == world.states(cut)

    def test_back_to_an_older_cut(self, store: Store) -> None:
        with self.world(store) as world:
            group = world.group()
            cuts, books = _two_cuts(world, group)
            assert group.restore(cuts[0]) == cuts[0]
            assert world.books() == books[0]
            assert [(info.id, info.counts) for info in group.list()] == [(cuts[0], True), (cuts[1], False)]
            with pytest.raises(CheckpointNotFoundError, match=f"no cut {cuts[1]} that counts; there are"):
                group.restore(cuts[1])
            world.process("a").die()
            assert world.books() == books[0]

    def test_the_cut_gone_back_to_stays_until_two_newer_ones_are_there(self, store: Store) -> None:
        with self.world(store) as world:
            group = world.group()
            cuts, books = _two_cuts(world, group)
            group.restore(cuts[0])
            with faults.armed("group.publish", FencedError("no")), pytest.raises(FencedError, match="no"):
                group.save()
            assert [info.id for info in group.list() if info.counts][-1] == cuts[0]
            newer = group.save()
            assert [info.id for info in group.list() if info.counts] == [cuts[0], newer]
            assert world.states(cuts[0]) == books[0]
            last = group.save()
            assert [info.id for info in group.list() if info.counts] == [newer, last]

    def test_a_damaged_cut_is_passed_over(self, store: Store) -> None:
        with self.world(store) as world:
            group = world.group()
            world.traffic()
            world.settle()
            older = group.save()
            books = world.books()
            world.traffic()
            world.settle()
            newer = group.save()
            blob = _blobs(store, newer)["test/b"]
            store.delete_blobs(KEY, [blob], group.generation)
            with pytest.raises(CheckpointCorruptedError, match=r"state of 'test/b'.*Nothing was changed"):
                group.restore(newer)
            assert group.generation == 1
            found = [info.error for info in checkpoint.open(store).verify(KEY)]
            assert found[0] == "" and "test/b" in found[1]
            assert group.restore() == older and world.books() == books

    def test_exactly_once_members(self, store: Store) -> None:
        if not self.outlives_processes:
            refused = pytest.raises(CheckpointError, match="exactly_once")
            with self.world(store, exactly_once=True) as world, refused:
                world.group()
            return
        with self.world(store, exactly_once=True) as world:
            group = world.group()
            caller = Caller(acknowledges=False)
            first, second = (caller.call("test/a", "receive", "me") for _ in range(2))
            assert _send(world, first) == 1
            cut = group.save()
            assert _send(world, second) == 2
            world.process("a").die()
            assert world.books()["test/a"] == ({}, {"me": 2}), "a crash takes nobody back"
            assert group.generation == 1
            assert group.restore(cut) == cut
            assert world.books()["test/a"] == ({}, {"me": 1})
            # Now: where the store is slow, what the next recoveries take is saved, and takes its place.
            reasons = [info.reason for info in checkpoint.open(store).list("test/a")]
            assert f"restored from cut {cut} of group 'pair'" in reasons
            assert _send(world, first) == 1, "the cut contains this call: its reply is known"
            assert world.books()["test/a"] == ({}, {"me": 1})
            assert _send(world, second) == 2, "and not this one"
            world.process("a").die()
            assert world.books()["test/a"] == ({}, {"me": 2}), "it has gone back once"

    def test_found_again_by_its_name(self, store: Store) -> None:
        with self.world(store, "abc") as world:
            group = world.group("ab")
            assert group.is_new and group.members == ("test/a", "test/b")
            world.traffic()
            group.save(note="x")
            world.close()
            again = world.group("ba")
            assert not again.is_new and again.list()[-1].note == "x"
            with pytest.raises(CheckpointMismatchError, match="'test/b' missing, 'test/c' too many"):
                world.group("ac")
            with pytest.raises(CheckpointMismatchError, match="'test/b' missing"):
                world.group("a")

    def test_disbanded(self, store: Store) -> None:
        with self.world(store) as world:
            group = world.group()
            group.save()
            world.traffic()
            world.settle()
            books = world.books()
            group.disband()
            assert not store.scan(KEY).claims and world.books() == books
            for call in (group.save, group.restore, group.disband):
                with pytest.raises(CheckpointNotFoundError, match="disbanded"):
                    call()
            world.process("a").die()
            assert world.books() == books, "each goes on by itself, from where it was"
            assert [process.life for process in world.processes] == [2, 1]
            assert membership.read_note(store, "test/a") is None
            assert world.group().is_new, "the name is free"

    def test_a_member_leaves(self, store: Store) -> None:
        with self.world(store, "abc") as world:
            group = world.group()
            world.traffic()
            world.settle()
            books = world.books()
            group.remove("test/c")
            assert group.members == ("test/a", "test/b") and group.generation == 2
            world.process("c").die()
            assert world.books()["test/c"] == books["test/c"] and group.generation == 2
            cut = group.save()
            assert set(world.states(cut)) == {"test/a", "test/b"}
            world.process("c").queue.append((None, "receive", ("outside",)))
            world.settle()
            later = world.process("c").books()
            world.process("a").die()
            assert world.books() == {**books, "test/c": later}, "the others went back, it did not"
            assert group.generation == 3
            with pytest.raises(CheckpointOptionError, match="no member of group 'pair'; members are test/a"):
                group.remove("test/c")
            with pytest.raises(CheckpointOptionError, match=r"disband\(\) ends the group"):
                group.remove("test/a", "test/b")
            assert world.group("ab").members == ("test/a", "test/b")

    def test_a_member_that_is_dead_for_good(self, store: Store) -> None:
        with self.world(store, "abc") as world:
            group = world.group()
            world.traffic()
            world.settle()
            cut = group.save()
            saved = world.books()
            world.traffic()
            world.settle()
            lost = world.process("c")
            lost.die()
            lost.for_good = True
            present = world.books()
            with pytest.raises(Exception, match="c"):
                group.save()
            group.remove("test/c")
            assert world.books() == present, "the others go on"
            assert set(world.states(group.save())) == {"test/a", "test/b"}
            lost.for_good = False  # another actor of that name
            assert lost.books() == saved["test/c"] == world.states(cut)["test/c"]
            assert world.books() == {**present, "test/c": saved["test/c"]}

    def test_members_that_are_gone_in_another_program(self, store: Store) -> None:
        with self.world(store, "abc") as world:
            world.group().save()
            world.process("c").die()
            world.process("c").for_good = True
            with pytest.raises(CheckpointMismatchError, match="'test/c' missing.*gone="):
                world.group("ab")
            with pytest.raises(CheckpointMismatchError, match="'test/d' too many"):
                world.group("ab", gone=["test/c", "test/d"])
            with pytest.raises(CheckpointOptionError, match="list of checkpoint keys"):
                world.group("ab", gone="test/c")
            group = world.group("ab", gone=["test/c"])
            assert generations.members_of(store, NAME) == ["test/a", "test/b"]
            assert set(world.states(group.save())) == {"test/a", "test/b"}

    def test_from_outside(self, store: Store) -> None:
        with self.world(store) as world:
            group = world.group()
            world.traffic()
            world.settle()
            cut, books = group.save(note={"day": 1}), world.books()
            world.traffic()
            group.save()
            world.close()
            info = checkpoint.open(store).describe(KEY)
            assert (info.mode, info.state, info.group) == ("group", "free", NAME)
            assert info.members == ("test/a", "test/b") and info.snapshots[0].reason == 'cut: {"day": 1}'
            assert info.snapshots[0].size_bytes > info.bytes["blobs"] / 2
            assert checkpoint.open(store).describe("test/a").group == NAME
            assert set(checkpoint.open(store).load(KEY, cut)) == {"test/a", "test/b"}
            with pytest.raises(CheckpointNotFoundError, match="no cut 9-9"):
                checkpoint.restore(store, KEY, "9-9")
            with pytest.raises(CheckpointNotFoundError, match="no group 'other'.*_group/pair"):
                checkpoint.restore(store, "_group/other", cut)
            with pytest.raises(CheckpointOptionError, match="to one of its cuts"):
                checkpoint.restore(store, KEY, cut, keep_ledger=False)
            assert checkpoint.restore(store, KEY, cut).snapshot == cut
            assert world.books() == books
            world.close()
            checkpoint.delete(KEY, store=store)
            assert not generations.members_of(store, NAME) and not store.scan(KEY).claims
            assert world.books() == books, "each begins from its part of the last cut"

    def test_an_unnamed_member_whose_key_went_with_it(self, store: Store) -> None:
        with self.world(store, "abc") as world:
            group = world.group()
            world.process("c").die()
            world.process("c").for_good = True
            store.remove("test/c")
            group.remove("test/c")
            assert not store.scan("test/c").claims
            assert keyinfo.orphans(store) == []
            assert set(world.states(group.save())) == {"test/a", "test/b"}

    def test_a_group_of_which_nobody_is_left(self, store: Store) -> None:
        with self.world(store) as world:
            world.group()
            world.close()
            for key in ("test/a", "test/b"):
                store.remove(key)
            assert keyinfo.orphans(store) == [KEY] and checkpoint.open(store).describe(KEY).orphan
            checkpoint.delete(KEY, store=store)
            assert keyinfo.orphans(store) == []

    def test_a_plan_that_cannot_be_carried_out_is_overtaken(self, store: Store) -> None:
        with self.world(store) as world:
            group = world.group()
            world.traffic()
            world.settle()
            cut, books = group.save(), world.books()
            plan = generations.Plan(group.members, cut="1-1", on_purpose=True)._asdict()
            generations.SnapshotLog(store, KEY, 2).claim({"plan": plan})  # and dies
            store.delete_blobs(KEY, list(_blobs(store, "1-1").values()), 2)
            world.process("a").die()
            with pytest.raises(CheckpointCorruptedError, match="1-1: the state of 'test/a' is missing"):
                world.process("a").live()
            world.close()
            checkpoint.restore(store, KEY, cut)
            assert world.books() == books

    def test_who_left_a_group_may_be_in_another_one(self, store: Store) -> None:
        with self.world(store, "abc") as world:
            group = world.group()
            with pytest.raises(CheckpointOptionError, match="'test/c' is a member of group 'pair'"):
                world.group("c", name="other")
            group._leave_all = lambda leaving, deadline_s: None  # its coordinator dies before it tells them
            group.remove("test/c")
            assert world.group("c", name="other").members == ("test/c",)
            assert membership.read_note(store, "test/c")["group"] == "other"

    def test_a_stale_coordinator(self, store: Store) -> None:
        with self.world(store) as world:
            old, new = world.group(), world.group()
            new.save(generation=1)
            world.process("a").die()
            world.books()
            with pytest.raises(FencedError, match="generation 2, not 1"):
                old.save(generation=1)
            assert old.save(generation=2)
            new.remove("test/b")
            for call in (old.save, old.restore, lambda: old.remove("test/a"), old.disband):
                with pytest.raises(CheckpointMismatchError, match="'test/b' too many"):
                    call()


def _blobs(store: Store, cut: str) -> dict[str, str]:
    from ftray.checkpoint import cutfiles
    from ftray.checkpoint.lineage import parse_id

    return cutfiles.blobs_of(store, KEY, parse_id(cut))


def _two_cuts(world: World, group: Any) -> tuple[list[str], list[Any]]:
    """Save a group twice, with traffic before each; return the cuts, and the books of those moments."""
    cuts, books = [], []
    for _ in range(2):
        world.traffic()
        world.settle()
        cuts.append(group.save())
        books.append(world.books())
    return cuts, books


def _send(world: World, call: Any) -> Any:
    process = world.process("a")
    return process.host.send(process.live(), call)
