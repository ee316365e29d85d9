"""Calls that a recovery does not run again: they kill each time, fail each time, or are of other code."""

from __future__ import annotations

from typing import Any

import pytest

from ftray.checkpoint import (
    Checkpointable,
    CheckpointCorruptedError,
    CheckpointParkedError,
    CheckpointSaveError,
    CodeVersionError,
    PoisonCallError,
    ReplayDivergedError,
    faults,
)
from ftray.checkpoint import open as open_store
from ftray.checkpoint.testing import Caller, crash

from .once_support import (
    KEY,
    Lives,
    Tally,
    crash_at,
    started,
)

pytestmark = pytest.mark.usefixtures("who_runs_plain_calls")


class TestPoison:
    def kill(self, lives: Lives, call: Any, point: str = "once.ran") -> None:
        crash_at(lives, point, call)
        lives.start()

    def test_a_call_that_killed_three_is_not_run_again(self) -> None:
        lives = started()
        call = Caller(acknowledges=False).call(KEY, "incr")
        for _ in range(3):
            self.kill(lives, call)
        for _ in range(2):
            with pytest.raises(PoisonCallError, match="died in it 3 times"):
                lives.send(call)
            lives.start()
        assert lives.call("value") == 0 and lives.call("incr") == 1
        self.kill(lives, lives.make("incr"))  # nobody counts the deaths in it any more
        with pytest.raises(PoisonCallError):
            lives.send(call)

    def test_sessions_that_ended_in_it_are_not_its_doing(self) -> None:
        """A driver that is killed with its runtime, again and again during one long call, gets its reply in
        the end; a call that then kills an incarnation within a session has gone too far."""

        def ended_four_times() -> tuple[Lives, Any]:
            lives = started()
            call = lives.make("incr")
            for _ in range(4):
                crash_at(lives, "once.ran", call)
                crash(lives.session)
                lives.session, lives.number = None, 0  # the next one is the first of its session
                lives.start(takeover=True)
            row = lives.store.last_running(KEY)
            assert row is not None and row[1] == 4
            return lives, call

        lives, call = ended_four_times()
        assert lives.send(call) == 1
        lives, call = ended_four_times()
        self.kill(lives, call)
        with pytest.raises(PoisonCallError, match="died in it 3 times"):
            lives.send(call)

    @pytest.mark.parametrize("where", ["blob", "journal"])
    def test_a_store_that_fails_is_not_its_doing(self, where: str) -> None:
        def fails(*_: Any, **__: Any) -> None:
            raise CheckpointSaveError("the disk is full")

        class Big(Tally):
            def echo(self, size: int) -> bytes:
                self.n += 1
                if full and where == "journal":
                    lives.once.journal.fail(CheckpointSaveError("the disk is full"))
                return bytes(size)

        full = [True]
        lives = started(cls=Big)
        call = Caller(acknowledges=False).call(KEY, "echo", 100_000)
        for _ in range(4):
            with pytest.MonkeyPatch.context() as patch:
                if where == "blob":
                    patch.setattr(lives.store, "put_blob", fails)
                with pytest.raises(CheckpointSaveError, match="full"):
                    lives.send(call)
            assert len(lives.host.crashed_by) == 1
            lives.start()
        full.clear()
        assert len(lives.send(call)) == 100_000 and lives.call("value") == 1

    def test_its_end_forgets_it(self) -> None:
        lives = started()
        call = lives.make("incr")
        for _ in range(2):
            self.kill(lives, call)
        assert lives.send(call) == 1 and lives.store.last_running(KEY) is None
        for _ in range(2):
            self.kill(lives, lives.make("incr"))
        assert lives.call("incr") == 2

    def test_one_that_kills_while_it_goes_on_is_refused_too(self) -> None:
        lives = started()
        call = lives.make("ask", 2)
        crash_at(lives, "once.value_recorded", call)
        for _ in range(2):
            with (
                faults.armed("once.value_produced", faults.SimulatedCrash("killed")),
                pytest.raises(faults.SimulatedCrash),
            ):
                lives.start()
        lives.start()
        assert lives.session.instance.seen == []
        with pytest.raises(PoisonCallError):
            lives.send(call)


class TestCode:
    def changed(self, **more: Any) -> type[Checkpointable]:
        class Changed(Tally, formerly="Tally"):
            def incr(self, k: int = 1) -> int:
                self.n += 10 * k
                return self.n

        for name, value in more.items():
            setattr(Changed, name, value)
        return Changed

    def test_records_of_other_code_are_not_replayed(self) -> None:
        lives = started()
        lives.call("incr")
        with pytest.raises(CodeVersionError, match=r"'incr' by code version \d+.*define migrate_call"):
            lives.start(self.changed())
        assert lives.start().call("value") == 1

    def test_unless_there_are_none(self) -> None:
        lives = started()
        lives.call("incr")
        lives.session.close(True, "exit_actor")
        assert lives.start(self.changed()).call("incr") == 11

    def test_or_the_user_says_that_both_do_the_same(self) -> None:
        lives = started(code_version=3)
        lives.call("incr")
        with pytest.raises(ReplayDivergedError, match="1 and 10"):
            lives.start(self.changed())

    def test_or_how_to_run_them_and_then_they_are_saved(self) -> None:
        def migrate_call(self: Any, method: str, args: Any, kwargs: Any, from_code_version: int) -> Any:
            versions.append(from_code_version)
            return "incr", (), {"k": args[0]}

        versions: list[int] = []
        lives = started(code_version=3)
        call = lives.make("incr", 2)
        lives.send(call)
        changed = self.changed(migrate_call=migrate_call)
        lives.start(changed, code_version=4)
        assert versions == [3] and lives.send(call) == 2, "the reply stands"
        assert lives.call("value") == 20
        assert open_store(lives.store).list(KEY)[-1].reason == "replay"
        assert lives.start(self.changed(), code_version=4).call("value") == 20

    def test_one_that_had_begun_as_well(self) -> None:
        def migrate_call(self: Any, method: str, args: Any, kwargs: Any, from_code_version: int) -> Any:
            return "ask", (2,), {}

        lives = started(code_version=3)
        call = lives.make("ask", 1)
        crash_at(lives, "once.value_recorded", call)
        with (
            faults.armed("once.resumed", faults.SimulatedCrash("killed")),
            pytest.raises(faults.SimulatedCrash),
        ):
            lives.start(self.changed(migrate_call=migrate_call), code_version=4)
        lives.start(self.changed(migrate_call=migrate_call), code_version=4)
        assert len(lives.send(call)) == 2
        assert len(lives.start(self.changed(), code_version=4).send(call)) == 2


class TestParking:
    def diverging(self) -> Lives:
        lives = started()
        lives.call("ask_badly")
        return lives

    def test_three_failures_park_the_actor_with_their_cause(self) -> None:
        lives = self.diverging()
        for _ in range(2):
            with pytest.raises(ReplayDivergedError):
                lives.start()
        for _ in range(2):
            with pytest.raises(
                CheckpointParkedError, match="3 times.*ReplayDivergedError: .*ask_badly"
            ) as caught:
                lives.start()
            assert caught.value.parked
        assert lives.store.scan(KEY).newest_epoch == 4, "a parked actor claims nothing"

    def test_a_death_is_no_failure(self) -> None:
        lives = started()
        lives.call("incr")
        for _ in range(5):
            with (
                faults.armed("once.replayed", faults.SimulatedCrash("killed")),
                pytest.raises(faults.SimulatedCrash),
            ):
                lives.start()
        assert lives.start().call("value") == 1

    def test_a_success_forgets(self) -> None:
        lives = started()
        lives.call("incr")
        reading, fails = lives.store.read_journal, [True]

        def read(key: str, after: int) -> Any:
            if fails[0]:
                raise CheckpointCorruptedError("cannot be read today")
            return reading(key, after)

        lives.store.read_journal = read
        for _ in range(4):
            for fails[0] in (True, True, False):
                try:
                    lives.start()
                except CheckpointCorruptedError:
                    assert fails[0]
        assert lives.call("value") == 1 and lives.store.list_blobs(KEY) == []

    def test_other_code_is_tried(self) -> None:
        lives = self.diverging()
        for _ in range(3):
            with pytest.raises((ReplayDivergedError, CheckpointParkedError)):
                lives.start()

        class Better(Tally, formerly="Tally"):
            def migrate_call(self, method: str, args: Any, kwargs: Any, from_code_version: int) -> Any:
                return "incr", (), {}

        assert lives.start(Better).call("value") == 1
