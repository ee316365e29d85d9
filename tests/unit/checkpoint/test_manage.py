"""Keys as people see them: who holds them, what their journals have, which are orphans; figures; removal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray.checkpoint import (
    CheckpointError,
    CheckpointNotFoundError,
    CheckpointOptionError,
    CheckpointSaveError,
    FencedError,
    NoSessionError,
    engine,
    faults,
    generations,
    holders,
    keyinfo,
    membership,
    recoveries,
)
from ftray.checkpoint.figures import STATUS_METHOD
from ftray.checkpoint.snapshots import boot_id
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.protocol import Store
from ftray.checkpoint.testing import InlineBackground, LocalHost, crash
from tests.unit.checkpoint.once_support import KEY, Lives, Tally, started
from tests.unit.checkpoint.support import Counter, call, ruin, start


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


class TestJournal:
    def test_what_it_has(self, store: LocalStore) -> None:
        lives = Lives(store).start()
        lives.call("checkpoint")
        for _ in range(3):
            lives.call("incr")
        snapshot = lives.call("checkpoint")
        for _ in range(2):
            lives.call("incr")
        found = checkpoint.open(store).journal(KEY)
        assert (found.calls, found.behind, found.error, found.epochs) == (2, 2, "", [1])
        assert found.records == found.last_position - found.first_position + 1 == 3 + 2
        infos = {i.id: i for i in checkpoint.open(store).list(KEY)}
        assert infos[snapshot].journal_position == found.last_position - 2
        assert infos[snapshot].code_version == lives.once.code_version
        assert found.size_bytes > 0

    def test_states_of_any_snapshot_and_their_ledgers(self, store: LocalStore) -> None:
        lives = Lives(store).start()
        ids = []
        for _ in range(2):
            lives.call("incr")
            ids.append(lives.call("checkpoint"))
        reader = checkpoint.open(store)
        assert [reader.load(KEY, i)["n"] for i in ids] == [1, 2]
        assert reader.ledger(KEY, ids[1])["callers"] == 1
        assert reader.ledger(KEY)["history_number"] == 1

    def test_without_one(self, store: LocalStore) -> None:
        host, session = start(store=store)
        call(host, session, "incr")
        session.close(final=True, reason="test")
        reader = checkpoint.open(store)
        assert reader.journal("test/counter")[:6] == (1, 0, 0, 0, 0, 0)
        with pytest.raises(CheckpointNotFoundError, match="has no ledger"):
            reader.ledger("test/counter")

    def test_a_damaged_one_is_told_not_raised(self, store: LocalStore, tmp_path: Path) -> None:
        lives = Lives(store).start()
        lives.call("incr")
        crash(lives.session)
        for path in tmp_path.glob("store/*/journal-*"):
            ruin(path)
        assert "the journal is damaged" in checkpoint.open(store).journal(KEY).error


class TestDescribe:
    def test_a_key_that_is_held(self, store: LocalStore) -> None:
        lives = Lives(store).start()
        lives.call("incr")
        info = checkpoint.open(store).describe(KEY)
        assert (info.mode, info.state, info.orphan, info.history_number) == ("exactly_once", "held", False, 1)
        assert info.holder is not None
        assert (info.holder["class"], info.holder["pid"], info.holder["epoch"]) == ("Tally", os.getpid(), 1)
        assert info.total_bytes == sum(info.bytes.values()) > 0
        assert info.snapshot_age_s is not None and info.snapshot_age_s < 60
        crash(lives.session)
        assert checkpoint.open(store).describe(KEY).state == "free"

    def test_nothing_there(self, store: LocalStore) -> None:
        info = checkpoint.open(store).describe("no/key")
        assert (info.mode, info.state, info.holder, info.total_bytes) == ("", "free", None, 0)


def unnamed(store: LocalStore, number: int, session_pid: int | None) -> str:
    """An unnamed actor of a session that has this process, which has died."""
    host = LocalHost("", unique_id=f"id{number}")
    if session_pid is not None:
        host.session_pid = session_pid  # type: ignore[attr-defined]
    spec = engine.spec_of(Counter, {})
    session = engine.open(Counter(), host, spec, store=store, background=_background)
    host.call(session, "incr")
    crash(session)
    return session.log.key


_background: Any = InlineBackground


def ended_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


class TestOrphans:
    def test_only_those_whose_session_is_known_to_be_gone(self, store: LocalStore) -> None:
        gone = unnamed(store, 1, ended_pid())
        restarting = unnamed(store, 2, os.getpid())
        unknown = unnamed(store, 3, None)
        host, session = start(store=store)  # a named actor is none, whatever has become of it
        call(host, session, "incr")
        crash(session)
        assert keyinfo.orphans(store) == [gone]
        flags = {k: checkpoint.open(store).describe(k).orphan for k in (gone, restarting, unknown)}
        assert flags == {gone: True, restarting: False, unknown: False}

    def test_prune_removes_them_and_nothing_else(self, store: LocalStore) -> None:
        gone = [unnamed(store, n, ended_pid()) for n in (1, 2)]
        restarting = unnamed(store, 3, os.getpid())
        assert checkpoint.prune(store.url) == gone
        assert store.keys() == [restarting] and checkpoint.prune(store) == []

    def test_one_whose_removal_was_begun_stays_one(self, store: LocalStore) -> None:
        keys = [unnamed(store, n, ended_pid()) for n in (1, 2)]
        for point in ("file.claim.created", "restore.claimed"):
            with faults.armed(point, faults.SimulatedCrash()), pytest.raises(faults.SimulatedCrash):
                checkpoint.prune(store)
            assert keyinfo.orphans(store) == keys and checkpoint.open(store).describe(keys[0]).orphan
        assert checkpoint.prune(store) == keys and store.keys() == []

    def test_one_that_cannot_be_removed_does_not_keep_the_others(
        self, store: LocalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gone = [unnamed(store, n, ended_pid()) for n in (1, 2, 3)]
        check = holders.check_ended

        def taken(store: Store, key: str, holder: Any) -> None:
            check(store, key, holder._replace(lives=True) if key == gone[0] else holder)

        with monkeypatch.context() as patch:
            patch.setattr(keyinfo.holders, "check_ended", taken)
            with pytest.raises(CheckpointError, match=f"1 orphans .*: '{gone[0]}': .* is held by"):
                checkpoint.prune(store)
        assert store.keys() == gone[:1]
        assert checkpoint.prune(store) == gone[:1]

    def test_after_a_new_boot_all_are(self, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
        keys = [unnamed(store, 1, os.getpid()), unnamed(store, 2, None)]
        assert keyinfo.orphans(store) == []
        monkeypatch.setattr(holders, "boot_id", lambda: "another")
        assert keyinfo.orphans(store) == keys
        assert boot_id() != "another"

    def test_those_of_other_machines_never(self, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
        unnamed(store, 1, ended_pid())
        names = os.uname()
        elsewhere = type(names)(("Linux", "elsewhere", *names[2:]))
        monkeypatch.setattr(holders.os, "uname", lambda: elsewhere)
        assert keyinfo.orphans(store) == []

    def test_a_process_number_that_was_given_again_is_another_process(self, store: LocalStore) -> None:
        record = {"host": os.uname().nodename, "boot_id": boot_id(), "session_pid": os.getpid()}
        assert holders._session_lives({**record, "session_ticks": holders.start_ticks(os.getpid())}) is True
        assert holders._session_lives({**record, "session_ticks": 1}) is False


def group_of_unnamed(store: LocalStore, *members: str, name: str = "g") -> str:
    """A group of keys whose actors have ended."""
    for key in members:
        membership.write_note(store, key, store.scan(key).newest_epoch, {"group": name, "keep": 2})
    generations.begin(store, name, 2, 0, generations.Plan(members, ended={}), generations.end_process)
    return membership.group_key(name)


class TestOrphanGroups:
    @pytest.fixture
    def members(self, store: LocalStore) -> list[str]:
        return [unnamed(store, n, ended_pid()) for n in (1, 2)]

    def test_it_goes_with_its_members(self, store: LocalStore, members: list[str]) -> None:
        group = group_of_unnamed(store, *members)
        other = unnamed(store, 3, ended_pid())
        found = [group, *members, other]
        assert keyinfo.orphans(store) == found and checkpoint.open(store).describe(group).orphan
        assert checkpoint.prune(store) == found and store.keys() == []

    def test_one_of_which_others_may_start_again_stays(self, store: LocalStore, members: list[str]) -> None:
        living = unnamed(store, 3, os.getpid())
        group = group_of_unnamed(store, members[0], living)
        assert keyinfo.orphans(store) == members and not checkpoint.open(store).describe(group).orphan
        with pytest.raises(CheckpointError, match=f"'{members[0]}'.*member of group 'g'.*: '{members[1]}'$"):
            checkpoint.prune(store)
        assert store.keys() == [group, members[0], living]

    def test_a_member_that_stays_keeps_it(
        self, store: LocalStore, members: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        group = group_of_unnamed(store, *members)
        remove = store.remove

        def refuse(key: str) -> None:
            if key == members[1]:
                raise CheckpointSaveError("the medium refuses")
            remove(key)

        monkeypatch.setattr(store, "remove", refuse)
        with pytest.raises(CheckpointError, match="2 orphans.*still has members.*the medium refuses"):
            checkpoint.prune(store)
        monkeypatch.undo()
        assert checkpoint.prune(store) == [group, members[1]] and store.keys() == []

    def test_what_a_dead_process_had_begun_for_it_does_not_matter(
        self, store: LocalStore, members: list[str]
    ) -> None:
        group = group_of_unnamed(store, *members)
        plan = generations.Plan(members, cut="9-9", on_purpose=True)._asdict()
        generations.SnapshotLog(store, group, 2).claim({"plan": plan})  # and there is no such cut
        assert checkpoint.prune(store) == [group, *members] and store.keys() == []

    def test_a_crash_anywhere_leaves_what_the_next_one_removes(self, tmp_path: Path) -> None:
        n = 0
        while True:
            n += 1
            store = LocalStore(str(tmp_path / f"store{n}"))
            group = group_of_unnamed(store, *[unnamed(store, k, ended_pid()) for k in (1, 2)])
            removals = Removals(store, n)
            try:
                checkpoint.prune(removals)  # type: ignore[arg-type]
            except faults.SimulatedCrash:
                assert group in keyinfo.orphans(store)
                checkpoint.prune(store)
                assert store.keys() == []
            else:
                break
        assert n > 5


class Removals:
    """A store whose process dies before the nth change that it makes."""

    def __init__(self, store: LocalStore, nth: int) -> None:
        self._store, self._left = store, nth

    def __getattr__(self, name: str) -> Any:
        if name in ("claim", "seal", "settle", "remove", "delete_blobs"):
            self._left -= 1
            if self._left <= 0:
                raise faults.SimulatedCrash()
        return getattr(self._store, name)


class TestDelete:
    def test_a_key_goes_with_everything(self, store: LocalStore, tmp_path: Path) -> None:
        lives = Lives(store).start()
        lives.call("incr", 1)
        crash(lives.session)
        assert checkpoint.delete(KEY, store=tmp_path / "store") == KEY
        assert store.keys() == [] and list((tmp_path / "store").iterdir()) == []
        lives.number = 0
        assert lives.start().call("value") == 0

    def test_taken_from_its_holder(self, store: LocalStore) -> None:
        lives = Lives(store).start()
        checkpoint.delete(KEY, store=store, takeover=True)
        with pytest.raises((FencedError, NoSessionError)):
            lives.call("incr")
        assert store.keys() == []

    def test_a_member_of_a_group_is_neither_removed_nor_taken_back_alone(self, store: LocalStore) -> None:
        lives = Lives(store).start()
        snapshot = lives.call("checkpoint")
        crash(lives.session)
        membership.write_note(store, KEY, lives.session.log.epoch, {"group": "g", "keep": 2})
        plan = generations.Plan([KEY], ended={})
        generations.begin(store, "g", 2, 0, plan, generations.end_process)
        before = store.scan(KEY)
        with pytest.raises(CheckpointOptionError, match=f"'{KEY}'.*member of group 'g'.*removed alone"):
            checkpoint.delete(KEY, store=store)
        with pytest.raises(CheckpointOptionError, match="taken back alone"):
            checkpoint.restore(store, KEY, snapshot)
        assert store.scan(KEY) == before
        checkpoint.delete("_group/g", store=store)
        assert checkpoint.delete(KEY, store=store) == KEY

    def test_wrong(self, store: LocalStore) -> None:
        with pytest.raises(CheckpointNotFoundError, match="no checkpoint key 'a'.*keys there: none"):
            checkpoint.delete("a", store=store)
        with pytest.raises(CheckpointOptionError, match="needs store="):
            checkpoint.delete("a")
        with pytest.raises(CheckpointOptionError, match="takes no store="):
            checkpoint.delete(object(), store=store)
        with pytest.raises(CheckpointOptionError, match="takes the handle of an actor, not <object"):
            checkpoint.status(object())
        assert store.keys() == []


class TestFigures:
    def test_an_entry_point_that_changes_nothing(self) -> None:
        lives = started()
        lives.call("incr")
        before = lives.session.status()
        told = lives.call(STATUS_METHOD)
        after = lives.session.status()
        assert told["key"] == KEY and told["calls"] == before["calls"] == after["calls"]
        assert told["journal_position"] == after["journal_position"]
        assert told["journal_bytes"] is None and after["journal_bytes"] > 0, "not measured by the actor"

    def test_in_snapshot_mode(self) -> None:
        host, session = start(every=100, store=None)
        told = host.call(session, STATUS_METHOD)
        assert (told["mode"], told["calls"], told["saves"]) == ("snapshot", 0, 0)
        session.close(final=False, reason="test")

    def test_a_class_with_a_checkpoint_method_of_its_own_has_them_too(self) -> None:
        class Own(Counter):
            def checkpoint(self) -> str:
                return "mine"

        _, session = start(Own)
        assert list(session.entry_points) == [STATUS_METHOD]
        session.close(final=False, reason="test")

    def test_totals(self) -> None:
        lives = started()
        for _ in range(3):
            lives.call("incr")
            lives.call("checkpoint")
        found = lives.session.status()
        assert found["saves"] == 4 and found["saved_bytes_total"] > found["size_bytes"] > 0
        assert (
            found["save_s_total"] >= found["last_save_s"] and found["pause_s_total"] >= found["max_pause_s"]
        )
        assert found["restore_s"] >= 0 and found["keep"] == 2 and found["history_number"] == 1
        lives.start()
        assert lives.session.status()["snapshot_age_s"] is not None
        (recovery,) = lives.session.status()["recoveries"]
        assert recovery["duration_s"] >= 0


class TestRecoveries:
    """The key remembers how long its recoveries took, whoever holds it."""

    def test_of_an_exactly_once_actor(self, store: LocalStore) -> None:
        lives = Lives(store).start()
        assert lives.session.status()["recoveries"] == [], "the first start recovers nothing"
        for number in (1, 2, 3):
            lives.call("incr")
            lives.start()
            present = lives.session.status()["recoveries"]
            assert [each["epoch"] for each in present] == list(range(2, number + 2))
            assert [each["calls_replayed"] for each in present] == list(range(1, number + 1))
            assert present[-1]["calls_resumed"] == present[-1]["records_void"] == 0
            assert all(each["duration_s"] > 0 for each in present)
        times = [each["at_unix_s"] for each in present]
        assert times == sorted(times)
        info = checkpoint.open(store).describe(KEY)
        assert [(r["epoch"], r["snapshot"], r["calls_replayed"]) for r in info.recoveries] == [
            (2, "1-1", 1),
            (3, "1-1", 2),
            (4, "1-1", 3),
        ]

    def test_in_snapshot_mode(self, store: LocalStore) -> None:
        host, session = start(store=store)
        call(host, session, "incr")
        crash(session)
        _, session = start(store=store, incarnation=2)
        (recovery,) = session.status()["recoveries"]
        assert (recovery["epoch"], recovery["snapshot"]) == (2, "1-1")
        crash(session)
        _, session = start(store=store, incarnation=3)
        assert [each["epoch"] for each in session.status()["recoveries"]] == [2, 3]
        assert checkpoint.open(store).describe(session.log.key).recoveries[0]["snapshot"] == "1-1"
        crash(session)
        _, session = start(store=store, restore="never")
        assert [each["epoch"] for each in session.status()["recoveries"]] == [2, 3], "it begins anew"
        session.close(final=False, reason="test")

    def test_only_the_newest_are_kept(self, store: LocalStore) -> None:
        for number in range(1, recoveries.KEPT + 4):
            _, session = start(store=store, incarnation=number)
            crash(session)
        found = checkpoint.open(store).describe(session.log.key).recoveries
        assert [each["epoch"] for each in found] == list(range(number - recoveries.KEPT + 1, number + 1))
        assert len(session.status()["recoveries"]) == recoveries.KEPT

    def test_going_back_forgets_none(self, store: LocalStore) -> None:
        lives = Lives(store).start()
        lives.call("incr")
        snapshot = lives.call("checkpoint")
        lives.start()
        lives.session.close(final=True, reason="test")
        checkpoint.restore(store, KEY, snapshot)
        assert [each["epoch"] for each in checkpoint.open(store).describe(KEY).recoveries] == [2]
        lives.start()
        assert [each["epoch"] for each in lives.session.status()["recoveries"]] == [2, 4]


class TestRestoreModes:
    """``restore=`` of exactly-once actors."""

    def test_require(self) -> None:
        lives = Lives()
        with pytest.raises(CheckpointNotFoundError, match="restore='require'"):
            lives.start(restore="require")
        lives = started()
        lives.call("incr", 4)
        lives.number = 0
        assert lives.start(restore="require").call("value") == 4

    def test_auto(self) -> None:
        lives = started()
        lives.call("incr", 4)
        lives.number = 0
        assert lives.start(restore="auto").call("value") == 4

    def test_never_sets_aside_what_cannot_be_read(self, store: LocalStore, tmp_path: Path) -> None:
        lives = Lives(store).start()
        lives.call("incr", 4)
        crash(lives.session)
        for path in [*tmp_path.glob("store/*/journal-*"), *tmp_path.glob("store/*/snap-*")]:
            ruin(path)
        lives.number = 0
        with pytest.raises(CheckpointError):
            lives.start()
        lives.number = 0
        assert lives.start(restore="never").call("incr", 1) == 1
        assert lives.start(restore="never").call("incr", 1) == 2, "its own restart restores"

    def test_a_subclass_says(self) -> None:
        class Strict(Tally, restore="require"):
            pass

        with pytest.raises(CheckpointNotFoundError):
            Lives(cls=Strict).start()
