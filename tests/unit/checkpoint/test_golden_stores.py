"""Stores as they were written once are read for ever: snapshot mode, keys taken back, groups, leases.

What is in them is told in `make_golden_stores`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray.checkpoint import (
    CheckpointCorruptedError,
    CheckpointRolledBackError,
    UnsupportedStoreError,
    generations,
    marks,
    membership,
)
from ftray.checkpoint.generations import Plan
from ftray.checkpoint.snapshots import present
from ftray.checkpoint.stores import leases
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.object_store import ObjectStore
from ftray.exceptions import NotSupportedError

from . import golden_support as golden
from . import second_key_reader, second_record_reader
from .golden_support import BACK, KEY, ONCE, PAIR, SAVED, GoldenLives, Saved, driver_call
from .group_support import World, world_of
from .once_support import Lives
from .test_golden_keys import gist
from .test_leases import SETTLE, TERM_S, WAIT
from .test_leases import World as Leased

ARCHIVES = {"local": "store-v1.local.zip", "objects": "store-v1.objects.zip"}
LEASED = "key-v1.leased.zip"
PAIRS = ["test/a", "test/b"]

Opened = Callable[..., Any]


@pytest.fixture(params=ARCHIVES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens a copy of the golden store, on its own machine in its own boot."""

    def open_it(without: tuple[str, ...] = ()) -> Any:
        golden.on_machine(monkeypatch)

        def wanted(name: str) -> bool:
            return not any(part in name for part in without)

        if kind == "objects":
            return golden.object_store(ARCHIVES[kind], wanted)
        return golden.local_store(ARCHIVES[kind], tmp_path / "store", wanted)

    return open_it


def reopened(store: Any) -> Any:
    """As another process sees it."""
    if isinstance(store, LocalStore):
        return LocalStore(store._root)
    return ObjectStore(store.objects.medium)


def files_of(kind: str, directory: str) -> dict[str, bytes]:
    found = golden.unpacked(ARCHIVES[kind])
    return {name[len(directory) + 1 :]: data for name, data in found.items() if name.startswith(directory)}


def second_reader(kind: str, directory: str) -> second_key_reader.Key:
    read = second_key_reader.of_objects if kind == "objects" else second_key_reader.of_directory
    return read(files_of(kind, directory))


def test_its_keys(opened: Opened) -> None:
    wanted = ["_group/once", "_group/pair", SAVED, BACK, "test/a", "test/b", "test/c", "test/d"]
    assert checkpoint.open(opened()).keys() == wanted


class TestSnapshotMode:
    def test_from_outside(self, opened: Opened) -> None:
        reader = checkpoint.open(opened())
        found = reader.verify(SAVED)
        assert [(s.id, s.calls, s.reason, s.counts, s.error) for s in found] == [
            ("2-5", 5, "every", True, ""),
            ("2-6", 6, "every", True, ""),
        ]
        assert reader.load(SAVED) == {"n": 6} and reader.load(SAVED, "2-5") == {"n": 5}
        info = reader.describe(SAVED)
        assert (info.mode, info.state, info.history) == ("snapshot", "free", found[0].history)
        assert info.journal_position is None and info.history_number is None

    def test_the_actor_goes_on(self, opened: Opened) -> None:
        store = opened()
        assert present(store, SAVED).sealed["line"] == ["1-2", "1-3"], "what the second life began from"
        lives = Lives(store, Saved)
        lives.number = 2
        actor: Any = lives.start().session.instance
        assert actor.n == 6 and not hasattr(actor, "gone")
        assert lives.call("incr") == 7
        assert [s.id for s in checkpoint.open(store).list(SAVED)] == ["2-6", "3-7"]

    def test_from_the_older_one(self, opened: Opened) -> None:
        lives = Lives(opened(without=("saved/snap-0000000002-000000000006",)), Saved)
        lives.number = 2
        assert lives.start().call("incr") == 6

    def test_a_second_reader(self, kind: str) -> None:
        found = second_reader(kind, "golden%2Fsaved")
        assert (found.snapshot, found.state, found.calls) == ("2-6", {"n": 6}, [])
        assert found.header["deleted"] == ["gone"] and found.header["key"] == SAVED


class TestTakenBack:
    """A state of three calls was taken back to that of two."""

    def test_from_outside(self, opened: Opened) -> None:
        reader = checkpoint.open(opened())
        found = reader.verify(BACK)
        assert [(s.id, s.counts, s.reason, s.journal_position) for s in found] == [
            ("1-1", False, "base", 0),
            ("1-2", False, "request", 3),
            ("1-3", False, "request", 4),
            ("2-1", True, "restored from 1-2", 5),
        ]
        assert [reader.load(BACK, s.id)["n"] for s in found] == [0, 3, 1003, 3]
        info = reader.describe(BACK)
        assert (info.state, info.history_number, info.restored_from) == ("free", 2, "restored from 1-2")
        assert info.holder is not None and (info.holder["class"], info.holder["lives"]) == ("restore", False)
        assert reader.ledger(BACK)["history_number"] == 2 and reader.journal(BACK).behind == 1

    def test_its_records(self, opened: Opened) -> None:
        store = opened()
        old, new = (s.history for s in checkpoint.open(store).list(BACK)[2:])
        found = list(store.read_journal(BACK, 0))
        driver = "driver-of-golden"
        assert [(record.epoch, gist(store, record.payload)) for record in found] == [
            (1, ("SAVED", 0)),
            (1, ("CALL", driver, 1, "incr", (1,), 1)),
            (1, ("CALL", driver, 2, "incr", (2,), 3)),
            (1, ("CALL", driver, 3, "incr", (1000,), 1003)),
            (2, ("NONDETERMINISTIC", "")),
            (2, ("SAVED", 5)),
        ]
        said = [mark.fields for record in found if (mark := marks.decode(record.payload)) is not None]
        assert [fields.get("history") for fields in said] == [old, None, old] and old != new

    def test_the_actor_goes_on(self, opened: Opened) -> None:
        store = opened()
        lives = GoldenLives(store, checkpoint_key=BACK, durability="power")
        lives.number = 1
        assert lives.start().session.instance.n == 3
        known = driver_call(2, "incr", 2, key=BACK)
        given_up = driver_call(3, "incr", 1000, key=BACK)
        assert lives.send_all(known, given_up) == [3, 1003], "the one is known, the other runs"
        late = driver_call(4, "incr", 1, key=BACK, history=1)
        assert isinstance(lives.value_of(late), CheckpointRolledBackError)
        assert lives.value_of(driver_call(4, "incr", 1, key=BACK, history=2)) == 1004

    def test_anybody_may_take_it_whose_holder_said_that_it_ended(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = opened()
        monkeypatch.undo()  # on another machine nothing else tells
        assert checkpoint.open(store).describe(BACK).state == "free"
        lives = GoldenLives(store, checkpoint_key=BACK, durability="power")
        lives.actor = "another"
        assert lives.start().session.instance.n == 3

    @pytest.mark.parametrize("seal", ["with the seal", "without the seal"])
    def test_no_snapshot_of_the_old_history_takes_its_place(self, opened: Opened, seal: str) -> None:
        gone = ["taken-back/snap-0000000002-"]
        gone += ["taken-back/epoch-0000000002.seal"] if seal == "without the seal" else []
        lives = GoldenLives(opened(without=tuple(gone)), checkpoint_key=BACK, durability="power")
        lives.number = 1
        with pytest.raises(CheckpointCorruptedError, match="snapshot that was durable and is not there"):
            lives.start()

    def test_a_second_reader(self, kind: str) -> None:
        found = second_reader(kind, "golden%2Ftaken-back")
        assert (found.snapshot, found.state["n"], found.calls) == ("2-1", 3, [])
        assert found.header["history_number"] == 2


def books(received: int) -> tuple[dict[str, int], dict[str, int]]:
    return {}, {"me": received} if received else {}


class TestGroup:
    """In snapshot mode; somebody had begun to take it back to the older of its cuts."""

    def test_from_outside(self, opened: Opened) -> None:
        reader = checkpoint.open(opened())
        found = reader.verify("_group/pair")
        assert [(s.id, s.class_name, s.reason, s.counts, s.error) for s in found] == [
            ("1-2", "group", 'cut: {"day": 1}', True, ""),
            ("1-3", "group", 'cut: {"day": 2}', True, ""),
        ]
        for cut, n in (("1-2", 3), ("1-3", 6), (None, 6)):
            assert reader.load("_group/pair", cut) == {
                "test/a": {"sent": {"b": n}, "received": {"b": n}},
                "test/b": {"sent": {"a": n}, "received": {"a": n}},
            }
        info = reader.describe("_group/pair")
        assert (info.mode, info.state, info.group, info.members) == ("group", "free", PAIR, tuple(PAIRS))
        assert reader.describe("test/a").group == PAIR

    def test_its_records(self, opened: Opened) -> None:
        store = opened()
        assert membership.read_note(store, "test/a") == {"group": PAIR, "keep": 2}
        plan = Plan(members=PAIRS, cut="1-2", on_purpose=True)
        assert generations.plan_of(store, PAIR, 2) == plan
        here = generations.standing(store, PAIR, "test/b")
        assert (here.generation, here.sealed, here.beginner_lives, here.newest) == (2, False, False, "1-3")
        sealed = present(store, "_group/pair").sealed
        assert (sealed["epoch"], sealed["members"], sealed["base"]) == (1, PAIRS, None)
        assert sealed["ended"] == {"test/a": 0, "test/b": 0} and sealed["restored"] == 0

    def test_its_members_do_what_was_begun(self, opened: Opened) -> None:
        store = opened()
        with self.world(store) as world:
            assert world.books() == {
                "test/a": ({"b": 3}, {"b": 3}),
                "test/b": ({"a": 3}, {"a": 3}),
            }
            sealed = present(store, "_group/pair").sealed
            assert (sealed["epoch"], sealed["base"], sealed["restored"]) == (3, "1-2", 3)
            group = world.group(name=PAIR)
            assert [(cut.id, cut.note, cut.counts) for cut in group.list()] == [
                ("1-2", {"day": 1}, True),
                ("1-3", {"day": 2}, False),
            ]
            assert group.save() == "3-3"

    @staticmethod
    def world(store: Any) -> Any:
        return world_of(store, "ab", reopen=reopened)

    def test_not_on_another_machine(self, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        store = opened()
        monkeypatch.undo()
        with self.world(store) as world, pytest.raises(NotSupportedError, match="held on golden-host"):
            world.books()

    def test_after_a_new_boot_nobody_has_to_be_ended(
        self, opened: Opened, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = opened()
        golden.on_machine(monkeypatch, golden.LATER_BOOT)
        with self.world(store) as world:
            assert world.books()["test/a"] == ({"b": 3}, {"b": 3})

    def test_a_second_reader(self, kind: str) -> None:
        files = files_of(kind, "_group%2Fpair")
        found = second_reader(kind, "_group%2Fpair")
        assert (found.snapshot, found.state, found.header["group"]) == ("1-3", {"day": 2}, PAIR)
        size = 0
        for member, name in found.header["blobs"].items():
            if kind == "objects":
                _, content = second_key_reader.unpacked(files[f"data/{name}"], "blob")
            else:
                content = files[f"blob-0000000001-{name}"]
            data = second_key_reader.blob(content)
            header, _ = second_key_reader.snapshot(data)
            assert (header["key"], header["epoch"], header["sequence"]) == (member, 1, 0)
            size += len(data)
        assert size == found.header["state_bytes"] and found.header["reason"].startswith("cut")


class TestGroupOfExactlyOnceActors:
    """It went back to a cut with two calls; then came the second one again, and a third one."""

    @pytest.fixture
    def world(self, opened: Opened) -> Iterator[World]:
        with world_of(opened(), "cd", exactly_once=True, reopen=reopened) as world:
            for process in world.processes:
                process.life = 2
            yield world

    def test_from_outside(self, opened: Opened) -> None:
        store = opened()
        reader = checkpoint.open(store)
        states = [reader.load("_group/once", cut)["test/c"]["received"] for cut in ("1-1", "1-2")]
        assert states == [{}, {"me": 2}]
        info = reader.describe("test/c")
        assert (info.history_number, info.group) == (2, ONCE)
        assert info.restored_from == "restored from cut 1-2 of group 'once'"
        assert [(s.id, s.counts) for s in info.snapshots] == [("1-1", False), ("3-1", True)]
        assert present(store, "test/c").sealed["group_generation"] == 2
        sealed = present(store, "_group/once").sealed
        assert (sealed["base"], sealed["restored"], sealed["ended"]) == ("1-2", 2, {"test/c": 1, "test/d": 1})

    def test_its_members_go_on(self, world: World) -> None:
        assert world.books() == {"test/c": books(3), "test/d": books(0)}
        assert present(world.store, "_group/once").sealed["epoch"] == 2, "a crash takes nobody back"
        process = world.process("c")
        made = [driver_call(n, "receive", "me", key="test/c") for n in (1, 2, 3)]
        assert [process.host.send(process.session, call) for call in made] == [1, 2, 3]
        assert process.books() == books(3), "none of them has run again"
        with pytest.raises(CheckpointRolledBackError):
            process.host.send(process.session, driver_call(4, "receive", "me", key="test/c", history=1))

    def test_they_go_back_again(self, world: World) -> None:
        world.books()
        assert world.group(name=ONCE).restore("1-2") == "1-2"
        assert world.books() == {"test/c": books(2), "test/d": books(0)}
        assert present(world.store, "test/c").sealed["history_number"] == 3

    def test_a_second_reader(self, kind: str) -> None:
        found = second_reader(kind, "test%2Fc")
        assert (found.snapshot, found.state["received"]) == ("3-1", {"me": 2})
        assert [(call.kind, call.method, call.status) for call in found.calls] == [(1, "receive", 0)]


class TestLease:
    """Two calls, and a holder that did not say that it ended."""

    @pytest.fixture
    def world(self) -> Leased:
        return Leased(golden.object_medium(LEASED, exclusive=False))

    def lives(self, world: Leased) -> GoldenLives:
        return GoldenLives(world.store(), fencing="lease", lease_s=TERM_S)

    def test_from_outside(self, world: Leased) -> None:
        store = world.store()
        info = checkpoint.open(store).describe(KEY)
        assert (info.fencing, info.state) == ("lease", "unknown") and store.is_leased(KEY)
        said = leases.look(store.objects, golden.DIRECTORY)
        assert said is not None and (said.epoch, said.lease_s) == (1, 10.0)

    def test_on_another_machine_it_is_waited_for(self, world: Leased) -> None:
        lives = self.lives(world)
        lives.actor, before_s = "another", world.now_s
        assert lives.start().session.instance.n == 3
        assert world.now_s - before_s >= WAIT * TERM_S
        assert lives.value_of(driver_call(2, "incr", 2)) == 3
        found = leases.look(lives.store.objects, golden.DIRECTORY)
        assert found is not None and found.epoch == 2

    def test_on_its_own_one_it_is_not(self, world: Leased, monkeypatch: pytest.MonkeyPatch) -> None:
        golden.on_machine(monkeypatch)
        lives = self.lives(world)
        lives.actor, before_s = "another", world.now_s
        assert lives.start().session.instance.n == 3
        assert world.now_s - before_s <= 3 * SETTLE * TERM_S

    def test_who_knows_no_leases_is_refused(self, world: Leased) -> None:
        with pytest.raises(UnsupportedStoreError, match='or allow fencing="lease"'):
            GoldenLives(world.store()).start()

    def test_a_second_reader(self) -> None:
        files = {name.partition("/")[2]: data for name, data in golden.unpacked(LEASED).items()}
        assert second_key_reader.unpacked(files["lease"], "lease")[1] == b'{"epoch": 1, "lease_s": 10.0}'
        record, rest = second_key_reader.line(
            second_key_reader.unpacked(files["epoch-0000000001.claim"], "claim")[1]
        )
        assert (record["fencing"], record["lease_s"], record["host"], rest) == (
            "lease",
            10.0,
            golden.HOST,
            b"",
        )
        found = second_key_reader.of_objects(files)
        assert (found.snapshot, found.state["n"], len(found.calls)) == ("1-1", 0, 2)
        first = second_record_reader.arguments(found.calls[0].args)
        assert first == ([], driver_call(1, "incr", 1).args[2:])
