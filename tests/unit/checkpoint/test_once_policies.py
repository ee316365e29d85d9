"""When exactly-once actors save, and what they tell people."""

from __future__ import annotations

from typing import Any

import pytest

from ftray.checkpoint import (
    CheckpointRolledBackError,
    CheckpointTimeoutError,
    NoSessionError,
    engine,
    faults,
    readonly,
)
from ftray.checkpoint import open as open_store
from ftray.checkpoint.testing import Caller, LocalHost

from .once_support import KEY, Lives, Tally, failing, memory, started
from .support import settle


class TestPolicies:
    def test_after_named_methods_in_every_mode(self) -> None:
        for exactly_once in (False, True):
            options: dict[str, Any] = {"exactly_once": exactly_once}

            class Plain(Tally, after="fail", every=None, **options):
                pass

            lives = started(cls=Plain)
            before = len(lives.store.scan(KEY).snapshots)
            lives.call("incr")
            assert len(lives.store.scan(KEY).snapshots) == before
            with pytest.raises(ValueError, match="as asked"):
                lives.call("fail")
            assert open_store(lives.store).list(KEY)[-1].reason == "after"
            assert open_store(lives.store).load(KEY)["n"] == 2
            lives.session.close(False, "test")

    def test_the_journal_is_trimmed_to_the_oldest_kept_snapshot(self) -> None:
        lives = started(every=2)
        for _ in range(9):
            lives.call("incr")
        kept = lives.store.scan(KEY).snapshots
        assert len(kept) == 2
        first = lives.store._keys[KEY].records[0].position
        assert next(iter(lives.once._contained.values())) + 1 == first
        assert lives.start().call("value") == 9

    def test_a_snapshot_has_state_and_ledger_in_one_file(self) -> None:
        lives = started(every=1)
        call = lives.make("incr")
        lives.send(call)
        assert open_store(lives.store).load(KEY) == {"n": 1, "seen": []}
        lives.store._keys[KEY].records.clear()
        assert lives.start().send(call) == 1 and lives.call("value") == 1

    def test_a_nondeterministic_method_is_a_snapshot_and_later_answers_wait_for_it(self) -> None:
        lives = started()
        rolled = lives.call("roll")
        assert open_store(lives.store).list(KEY)[-1].reason == "nondeterministic"
        saves = lives.store.put
        lives.store.put = failing  # type: ignore[method-assign]
        call, later = lives.make("roll"), Caller().call(KEY, "incr")
        for waiting in (call, later):
            with pytest.raises(CheckpointTimeoutError, match="not durable"):
                lives.send(waiting, 0.02)
        lives.store.put = saves  # type: ignore[method-assign]
        lives.start()
        assert lives.call("value") == rolled, "neither was answered, so neither counts"
        assert lives.send(later) == rolled + 1
        assert lives.start().call("value") == rolled + 1, "what was void stays void, and no more than that"
        assert lives.send(call) > rolled + 1

    def test_a_snapshot_is_never_ahead_of_the_journal(self) -> None:
        store = memory()
        host = LocalHost("tally", class_name="Tally")
        session = engine.open(Tally(), host, engine.spec_of(Tally, {"every": 1}), store=store)
        once: Any = session.exactly_once
        host.call(session, "incr")
        settle(session)
        before = store.scan(KEY).snapshots
        store.hold_durability = True
        with pytest.raises(CheckpointTimeoutError, match="not durable"):
            host.send(session, Caller().call(KEY, "incr"), 0.05)
        assert session.status()["in_flight"] and store.scan(KEY).snapshots == before
        once.journal.commit()
        settle(session)
        assert store.scan(KEY).snapshots[-1] > before[-1]
        session.close(False, "test")

    def test_snapshot_mode_does_not_take_over_what_a_journal_has(self) -> None:
        from ftray.checkpoint import CheckpointMismatchError

        class Plain(Tally, exactly_once=False, formerly="Tally"):
            pass

        lives = started()
        lives.call("incr")
        with pytest.raises(CheckpointMismatchError, match="exactly_once=True"):
            lives.start(Plain)
        assert lives.start().call("value") == 1

    def test_a_snapshot_mode_key_goes_on_as_exactly_once(self) -> None:
        class Plain(Tally, exactly_once=False, every=1):
            pass

        lives = Lives().start(Plain)
        lives.call("incr")
        lives.start(type("Tally", (Tally,), {}), formerly="Plain")
        assert lives.call("incr") == 2
        assert lives.start(type("Tally", (Tally,), {}), formerly="Plain").call("value") == 2

    def test_restore_never_begins_a_new_history_that_callers_notice(self) -> None:
        from ftray._core.records import decode_head, encode_head

        lives = started()
        lives.call("incr", 7)
        lives.number = 0
        lives.start(restore="never")
        assert lives.call("value") == 0
        lives.call("incr", 2)
        assert lives.once.ledger.history == 2
        stale = Caller().call(KEY, "incr")
        head = decode_head(stale.head)._replace(history=1)
        stale.head = encode_head(**head._asdict())
        with pytest.raises(CheckpointRolledBackError, match="given up"):
            lives.send(stale)
        lives.start(restore="never")
        assert lives.call("value") == 2, "a restart of it restores"


    @pytest.mark.parametrize("mode", [{"exactly_once": False, "every": 1}, {}], ids=["snapshot", "journal"])
    def test_restarts_of_one_that_never_restores(self, mode: dict[str, Any]) -> None:
        """They restore what it has saved and nothing older, also if the processes before did not get far."""
        lives = started(**mode)
        lives.call("incr", 7)
        lives.number, lives.actor = 0, "new"
        for point in ("restore.claimed", "restore.claimed", "restore.sealed"):
            with faults.armed(point, faults.SimulatedCrash()), pytest.raises(faults.SimulatedCrash):
                lives.start(restore="never")
        for n in range(3):
            assert lives.start(restore="never").call("value") == n
            lives.call("incr")
        lives.number, lives.actor = 0, "newer"
        assert lives.start().call("value") == 3


class TestPeople:
    def test_status(self) -> None:
        lives = started()
        assert lives.session.status()["first_pause_s"] > 0, "the cold one, of the trial before the first call"
        lives.call("incr")
        lives.start()
        status = lives.session.status()
        assert (status["mode"], status["durability"], status["callers"], status["replies_kept"]) == (
            "exactly_once",
            "process",
            1,
            1,
        )
        assert status["journal_bytes"] > 0 and status["journal_records"] > 0
        assert status["durable_position"] == status["journal_position"] == status["released_position"]
        (recovery,) = status["recoveries"]
        assert (
            recovery["calls_replayed"] == 1 and recovery["snapshot"] == "1-1" and recovery["duration_s"] > 0
        )
        lives.call("checkpoint")
        status = lives.session.status()
        assert status["snapshot_age_s"] >= 0 and status["last_save_s"] > 0 and status["last_pause_s"] > 0

    def test_outcome(self) -> None:
        lives = started()
        done, never = lives.make("incr"), lives.make("incr")
        assert lives.once.outcome(done.head).state == "unknown", "nothing is known of this caller"
        lives.send(done)
        outcome = lives.once.outcome(done.head)
        assert outcome.state == "committed" and lives.once.codec.decode_reply(*outcome[1:]) == 1
        assert lives.once.outcome(never.head).state == "not committed"
        lives.store.hold_durability = True
        with pytest.raises(CheckpointTimeoutError):
            lives.send(never, 0.02)
        assert lives.once.outcome(never.head).state == "unknown"
        lives.once.journal.commit()
        assert lives.once.outcome(never.head).state == "committed"
        lives.call("value")
        assert lives.once.outcome(done.head) == ("committed", None, None), "acknowledged, and gone"

    def test_record_outside_of_a_call(self) -> None:
        class Asks(Tally):
            def __init__(self) -> None:
                super().__init__()
                self.born = self.record(lambda: 1)

            @readonly
            def look(self) -> int:
                return self.record(lambda: 2)

        lives = started(cls=Asks)
        assert lives.session.instance.born == 1 and lives.call("look") == 2
        with pytest.raises(NoSessionError, match="flow of a method"):
            lives.session.instance.record(lambda: 3)

    def test_close_ends_the_journal_and_frees_the_key(self) -> None:
        lives = started()
        lives.call("incr")
        assert lives.session.close(True, "exit_actor") == "1-2"
        other = Lives(lives.store)
        assert other.start().call("value") == 1
