"""Keys taken back to a snapshot: what counts afterwards, who is refused, and a death at every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray._core.records import decode_head, encode_head
from ftray.checkpoint import (
    CheckpointCorruptedError,
    CheckpointKeyInUseError,
    CheckpointNotFoundError,
    CheckpointOptionError,
    CheckpointRolledBackError,
    FencedError,
    faults,
    holders,
    rollback,
)
from ftray.checkpoint.lineage import parse_id
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.testing import Caller, crash
from tests.helpers.sync import eventually
from tests.unit.checkpoint.once_support import KEY, Lives, Tally, memory
from tests.unit.checkpoint.support import call, ruin, start

COUNTER = "test/counter"


def knowing(call_: Any, history: int) -> Any:
    """The call of a caller that has had replies of this history."""
    head = decode_head(call_.head)._replace(history=history)
    call_.head = encode_head(**head._asdict())
    return call_


@pytest.fixture(params=["memory", "file", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    if request.param == "objects":
        return objects(tmp_path.name)
    return memory() if request.param == "memory" else LocalStore(str(tmp_path / "store"))


def objects(name: str) -> Any:
    """An object store of fsspec in memory, which outlives simulated processes."""
    pytest.importorskip("fsspec")
    from ftray.checkpoint.stores.fsspec_objects import FsspecObjects
    from tests.unit.checkpoint.object_support import small_objects

    survives = frozenset({"process", "power"})
    return small_objects(FsspecObjects(f"memory://{name}", "memory", f"rollback/{name}", survives))


def ended(lives: Lives) -> None:
    """The actor's process is dead."""
    crash(lives.session)


def anew(lives: Lives, **options: Any) -> Lives:
    """Another actor is created under the same key."""
    lives.number = 0
    return lives.start(**options)


def two_snapshots(store: Any) -> tuple[Lives, str, str]:
    lives = Lives(store).start()
    lives.call("incr", 1)
    first = lives.call("checkpoint")
    lives.call("incr", 10)
    second = lives.call("checkpoint")
    lives.call("incr", 100)
    return lives, first, second


class TestExactlyOnce:
    def test_the_state_is_the_chosen_one_and_later_calls_are_given_up(self, store: Any) -> None:
        lives, first, _ = two_snapshots(store)
        ended(lives)
        done = checkpoint.restore(store, KEY, first)
        assert (done.history_number, done.ledger, done.source) == (2, True, first)
        before = lives.session.status()["history"]
        anew(lives)
        assert lives.session.status()["history"] != before
        assert lives.call("value") == 1
        assert lives.call("incr", 5) == 6
        assert lives.start().call("value") == 6, "and its own crashes recover as ever"
        infos = {i.id: i.counts for i in checkpoint.open(store).verify(KEY)}
        assert infos[done.snapshot] and not infos[first]

    def test_callers_of_the_old_history_are_refused_and_new_ones_are_not(self, store: Any) -> None:
        lives, first, _ = two_snapshots(store)
        ended(lives)
        checkpoint.restore(store, KEY, first)
        anew(lives)
        with pytest.raises(CheckpointRolledBackError, match="given up"):
            lives.send(knowing(lives.make("incr"), 1))
        assert lives.send(knowing(lives.make("incr"), 2)) == 2
        assert lives.call("value") == 2

    def test_a_call_that_the_snapshot_contains_is_not_run_again(self, store: Any) -> None:
        lives = Lives(store)
        lives.caller = Caller(acknowledges=False)
        lives.start()
        never_answered = lives.make("incr", 7)
        lives.send(never_answered)
        first = lives.call("checkpoint")
        later = lives.make("incr", 1)
        lives.send(later)
        ended(lives)
        checkpoint.restore(store, KEY, first)
        anew(lives)
        assert lives.send(never_answered) == 7, "from the ledger of the snapshot"
        assert lives.call("value") == 7
        assert lives.send(later) == 8, "given up with its effect, so it runs"

    def test_without_the_ledger_it_would(self, store: Any) -> None:
        lives = Lives(store).start()
        known = lives.make("incr", 7)
        lives.send(known)
        first = lives.call("checkpoint")
        ended(lives)
        assert not checkpoint.restore(store, KEY, first, keep_ledger=False).ledger
        assert anew(lives).send(known) == 14

    def test_it_can_be_undone_while_the_other_snapshots_are_there(self, store: Any) -> None:
        lives, first, second = two_snapshots(store)
        ended(lives)
        checkpoint.restore(store, KEY, first)
        assert checkpoint.restore(store, KEY, second).history_number == 3
        assert anew(lives).call("value") == 11
        with pytest.raises(CheckpointRolledBackError):
            lives.send(knowing(lives.make("incr"), 2))

    def test_retention_goes_on_and_trims_what_was_given_up(self, store: Any) -> None:
        lives, first, _ = two_snapshots(store)
        ended(lives)
        checkpoint.restore(store, KEY, first)
        anew(lives)
        for _ in range(3):
            lives.call("incr")
            lives.call("checkpoint")
        assert all(i.counts for i in checkpoint.open(store).list(KEY))
        assert len(checkpoint.open(store).list(KEY)) == 2
        assert lives.start().call("value") == 4

    def test_a_damaged_first_snapshot_of_the_new_history_is_an_error(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        lives, first, _ = two_snapshots(store)
        ended(lives)
        damage(store, checkpoint.restore(store, KEY, first).snapshot)
        with pytest.raises(CheckpointCorruptedError, match="none of the 1 snapshots"):
            anew(lives)

    def test_a_record_that_a_fenced_writer_still_appends_does_not_count(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        lives, first, _ = two_snapshots(store)
        journal = lives.once.journal
        with faults.armed("rollback.begun", Interrupted()), pytest.raises(Interrupted):
            checkpoint.restore(store, KEY, first, takeover=True)
        with pytest.raises(FencedError):  # its record is in the file all the same
            journal.append(b"\x80" + b'{"call_id": ""}')
        crash(lives.session)
        done = checkpoint.restore(store, KEY, first)
        assert done.journal_position is not None
        assert anew(lives).call("value") == 1

    def test_r40_a_deletion_that_was_decided_before_takes_nothing_that_counts(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        lives, _, second = two_snapshots(store)
        checkpoint.restore(store, KEY, second, takeover=True)
        name = parse_id(second)  # the old one had looked at the fence before, and deletes it now
        (path,) = tmp_path.glob(f"*/snap-{name.epoch:010}-{name.sequence:012}.ckpt")
        path.unlink()
        crash(lives.session)
        assert anew(lives).call("value") == 11

    def test_recoveries_that_failed_are_forgotten(self, store: Any) -> None:
        class Broken(Tally):
            def load_checkpoint(self, state: Any) -> None:
                raise ValueError("bad")

        Broken.__name__ = "Tally"
        lives, first, _ = two_snapshots(store)
        for _ in range(3):
            with pytest.raises(Exception, match=r"bad|parked"):
                lives.start(Broken)
        info = checkpoint.open(store).describe(KEY)
        assert info.state == "parked" and "bad" in info.failed_recoveries[-1]
        checkpoint.restore(store, KEY, first)
        assert checkpoint.open(store).describe(KEY).failed_recoveries == []

    def test_an_unreadable_journal_is_left_behind(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        lives, first, second = two_snapshots(store)
        ended(lives)
        damage(store, second)
        for path in tmp_path.glob("*/journal-*"):
            ruin(path)
        with pytest.raises(CheckpointCorruptedError):
            anew(lives)
        assert checkpoint.restore(store, KEY, first, takeover=True).journal_position is not None
        assert anew(lives).call("value") == 1
        assert lives.call("incr") == 2
        assert lives.start().call("value") == 2


class Interrupted(BaseException):
    """The tool's process ends here."""


def damage(store: LocalStore, snapshot: str) -> None:
    name = parse_id(snapshot)
    (path,) = Path(store._root).glob(f"*/snap-{name.epoch:010}-{name.sequence:012}.ckpt")
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


class TestDeaths:
    @pytest.mark.parametrize("point", faults.ROLLBACK_POINTS)
    def test_dying_at_any_step_leaves_the_key_whole(self, point: str, store: Any) -> None:
        lives, first, _ = two_snapshots(store)
        ended(lives)
        with faults.armed(point, Interrupted()), pytest.raises(Interrupted):
            checkpoint.restore(store, KEY, first)
        taken_back = faults.ROLLBACK_POINTS.index(point) >= faults.ROLLBACK_POINTS.index("rollback.saved")
        anew(lives)
        assert lives.call("value") == (1 if taken_back else 111)
        assert lives.send(knowing(lives.make("incr"), 2 if taken_back else 1)) == (2 if taken_back else 112)
        assert lives.start().call("value") == (2 if taken_back else 112)
        checkpoint.restore(store, KEY, first, takeover=True) if not taken_back else None
        assert anew(lives, takeover=True).call("value") == (2 if taken_back else 1)

    @pytest.mark.parametrize("point", ["rollback.saved", "rollback.marked"])
    def test_the_old_history_never_comes_back_in_silence(self, point: str, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        lives, first, _ = two_snapshots(store)
        ended(lives)
        with faults.armed(point, Interrupted()), pytest.raises(Interrupted):
            checkpoint.restore(store, KEY, first)
        newest = checkpoint.open(store).list(KEY)[-1].id
        damage(store, newest)
        if point == "rollback.marked":
            with pytest.raises(CheckpointCorruptedError, match="a call that no record can repeat"):
                anew(lives)
        else:  # as if the tool had not come so far: everything is as it was
            assert anew(lives).call("value") == 111


class TestHolders:
    def test_a_living_holder_is_named_and_keeps_the_key(self, store: Any) -> None:
        lives, first, _ = two_snapshots(store)
        with pytest.raises(CheckpointKeyInUseError, match=r"held by a Tally in process \d+ .* since 20"):
            checkpoint.restore(store, KEY, first)
        with pytest.raises(CheckpointKeyInUseError, match="held by a Tally"):
            checkpoint.delete(KEY, store=store)
        assert lives.call("incr", 0) == 111

    def test_unless_it_is_to_be_taken(self, store: Any) -> None:
        lives, first, _ = two_snapshots(store)
        checkpoint.restore(store, KEY, first, takeover=True)
        with pytest.raises(FencedError):
            lives.call("incr")
        eventually(lambda: lives.host.fenced_by, "the journal's own thread has told the host as well")
        assert anew(lives).call("value") == 1

    def test_one_of_another_machine_may_live(self, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        lives, first, _ = two_snapshots(store)
        ended(lives)
        record = {"host": "elsewhere", "pid": 1, "class": "Tally", "incarnation": 1, "since_unix_s": 0}
        monkeypatch.setattr(rollback.format, "decode_record", _also(record, rollback.format.decode_record))
        with pytest.raises(CheckpointKeyInUseError, match="cannot be told from here"):
            checkpoint.restore(store, KEY, first)

    def test_the_key_is_free_afterwards(self, store: Any) -> None:
        lives, first, _ = two_snapshots(store)
        ended(lives)
        epoch = int(checkpoint.restore(store, KEY, first).snapshot.partition("-")[0])
        holder = holders.look(store, KEY, epoch)
        assert holder is not None and holder.lives is False
        assert checkpoint.open(store).describe(KEY).state == "free"

    def test_somebody_who_takes_the_key_meanwhile_wins(self, store: Any) -> None:
        lives, first, _ = two_snapshots(store)
        ended(lives)
        meanwhile = _claimed_at("rollback.begun", lambda: lives.start(takeover=True))
        with pytest.raises(FencedError), meanwhile:
            checkpoint.restore(store, KEY, first)
        assert lives.call("value") == 111


def _also(record: dict[str, Any], decode: Any) -> Any:
    def decoded(raw: bytes) -> Any:
        found = decode(raw)
        return {**found, **record} if "pid" in found else found

    return decoded


class _claimed_at:
    """Somebody else acts when the tool comes to a point."""

    def __init__(self, point: str, action: Any) -> None:
        self.point, self.action = point, action

    def hit(self, point: str) -> None:
        if point == self.point:
            faults.active = None
            self.action()

    def __enter__(self) -> None:
        faults.active = self  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        faults.active = None


class TestSnapshotMode:
    def test_taken_back(self, store: Any) -> None:
        host, session = start(store=store)
        for _ in range(3):
            call(host, session, "incr")
        session.close(final=True, reason="test")
        first = checkpoint.open(store).list(COUNTER)[0]
        done = checkpoint.restore(store, COUNTER, first.id)
        assert (done.history_number, done.journal_position, done.ledger) == (None, None, False)
        host, session = start(store=store)
        assert session.instance.n == first.calls  # type: ignore[attr-defined]
        assert call(host, session, "incr") == first.calls + 1
        session.close(final=True, reason="test")
        host, session = start(store=store, restore="require")
        assert session.instance.n == first.calls + 1  # type: ignore[attr-defined]
        session.close(final=True, reason="test")
        assert checkpoint.open(store).describe(COUNTER).restored_from == f"restored from {first.id}"


class TestWrong:
    def test_arguments(self, store: Any, tmp_path: Path) -> None:
        with pytest.raises(CheckpointOptionError, match="either the id of a snapshot"):
            checkpoint.restore(store, KEY)
        with pytest.raises(CheckpointOptionError, match="either the id of a snapshot"):
            checkpoint.restore(store, KEY, "1-1", savepoint=tmp_path / "x")
        with pytest.raises(CheckpointOptionError, match="'latest' is not a snapshot id"):
            checkpoint.restore(store, KEY, "latest")
        with pytest.raises(CheckpointNotFoundError, match="no snapshot 1-1 under .*snapshots there: none"):
            checkpoint.restore(store, KEY, "1-1")
        assert store.keys() == []

    def test_a_damaged_snapshot_is_refused_before_anything_is_touched(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        lives, first, _ = two_snapshots(store)
        ended(lives)
        damage(store, first)
        before = store.scan(KEY)
        with pytest.raises(CheckpointCorruptedError, match="Nothing was changed"):
            checkpoint.restore(store, KEY, first)
        assert store.scan(KEY) == before

    def test_what_is_no_ledger(self) -> None:
        with pytest.raises(CheckpointCorruptedError, match="not a ledger"):
            rollback.with_history(b"x" * 100, 2)
