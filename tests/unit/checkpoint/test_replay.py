"""Opening an exactly-once actor: who may, what is replayed, what stops it."""

from __future__ import annotations

import asyncio
import itertools
import time
from typing import Any

import pytest

from ftray.checkpoint import (
    CheckpointSaveError,
    ReplayDivergedError,
    engine,
    faults,
    marks,
    replay,
)
from ftray.checkpoint import open as open_store
from ftray.checkpoint.journal import JournalRecord
from ftray.checkpoint.lineage import SnapshotName as N
from ftray.checkpoint.serving import ExactlyOnceCalls
from ftray.checkpoint.testing import Caller, InlineBackground, LocalHost, MemoryStore, crash
from ftray.checkpoint.values import current

from .once_support import (
    KEY,
    Lives,
    Tally,
    crash_at,
    damage,
    failing,
    hooks,
    memory,
    started,
)

pytestmark = pytest.mark.usefixtures("who_runs_plain_calls")




class TestReplay:
    def test_state_and_replies_come_back(self) -> None:
        lives = started(every=4)
        calls = [lives.make("incr", k) for k in range(1, 10)]
        replies = [lives.send(c) for c in calls]
        lives.start()
        assert lives.session.status()["recoveries"][0]["calls_replayed"] == 1
        assert lives.call("value") == 45 and replies[-1] == 45
        assert lives.session.status()["calls"] == 9

    def test_a_call_that_was_recorded_and_not_answered_is_not_run_again(self) -> None:
        lives = started()
        call = lives.make("incr")
        crash_at(lives, "once.recorded", call)
        assert lives.start().send(call) == 1

    def test_one_that_was_not_recorded_is_run_again(self) -> None:
        lives = started()
        call = lives.make("incr")
        crash_at(lives, "once.ran", call)
        assert lives.start().call("value") == 0 and lives.send(call) == 1

    def test_another_reply_stops_it_and_is_named(self) -> None:
        lives = started()
        lives.call("incr")
        lives.call("ask_badly")
        with pytest.raises(
            ReplayDivergedError,
            match=r"'ask_badly', call \w+ \(number 2 of caller.*at position .*reply: \d+ and \d+",
        ):
            lives.start()

    def test_recorded_values_come_back(self) -> None:
        lives = started()
        seen = lives.call("ask", 3)
        assert lives.start().call("ask", 0) == seen

    def test_asking_for_other_values_stops_it_even_if_the_method_hides_it(self) -> None:
        class Fickle(Tally):
            def asks(self, times: int) -> int:
                for _ in range(times + next(more)):
                    try:
                        self.record(lambda: 1)
                    except ReplayDivergedError:
                        pass
                return 0

        for numbers, text in (
            ([0, 1], "asks for more values than the 2"),
            ([0, -1], "used 1 of the 2 values"),
        ):
            more = iter(numbers)
            lives = started(cls=Fickle, code_version=1)
            lives.call("asks", 2)
            with pytest.raises(ReplayDivergedError, match=text):
                lives.start()

    def test_values_of_another_kind_stop_it(self) -> None:
        lives = started()

        def takes(self: Tally) -> None:
            execution: Any = current.get()
            execution.take(17, lambda: b"x")

        class Takes(Tally):
            run = lambda self, action: takes(self) if not changed else self.record(lambda: 1)  # noqa: E731

        changed: list[int] = []
        lives = started(cls=Takes, code_version=1)
        lives.call("run", None)
        changed.append(1)
        with pytest.raises(ReplayDivergedError, match="kind 0 where one of kind 17"):
            lives.start()

    def test_an_exception_of_the_world_comes_back(self) -> None:
        class Asks(Tally):
            def fetch(self) -> str:
                try:
                    self.record(lambda: answers.pop(0)())
                except KeyError as error:
                    return f"no {error}"
                return "yes"

        def missing() -> None:
            raise KeyError("page")

        answers: list[Any] = [missing]
        lives = started(cls=Asks, code_version=1)
        assert lives.call("fetch") == "no 'page'"
        answers.append(lambda: None)
        assert lives.start().session.status()["recoveries"][0]["calls_replayed"] == 1
        assert len(answers) == 1, "the world was not asked again"

    def test_the_id_of_a_snapshot_is_a_value_from_outside(self) -> None:
        class Saves(Tally):
            def save(self) -> str:
                return self.checkpoint()

        lives = started(cls=Saves, every=None)
        lives.call("save")
        saved = open_store(lives.store).list(KEY)[-1].id
        damage(lives.store, N(1, 2))
        lives.start()
        assert saved == "1-2" and lives.kinds()[0] == "snapshot_skipped"
        assert lives.session.status()["recoveries"][0]["calls_replayed"] == 1

    def test_a_late_record_of_a_fenced_writer_does_not_count(self) -> None:
        class Late(MemoryStore):
            late: JournalRecord | None = None

            def read_journal(self, key: str, after: int) -> Any:
                reading = super().read_journal(key, after)
                if self.late is not None and reads.__next__() > 0:
                    reading._records = iter([*reading._records, self.late])
                return reading

        store, reads = Late(survives=("process",)), itertools.count()
        lives = started(store=store)
        lives.call("incr")
        call = lives.make("incr")
        lives.send(call)
        store.late = store._keys[KEY].records.pop()
        lives.start()
        assert lives.session.instance.n == 1, "it was not there when the past was decided"
        assert lives.send(call) == 2

    def test_without_a_first_snapshot_nothing_was_answered(self) -> None:
        class Born(Tally):
            def __init__(self) -> None:
                super().__init__()
                self.n = next(births)

        births = itertools.count(10, 10)
        store = memory()
        put, store.put = store.put, failing  # type: ignore[method-assign]
        lives = Lives(store, cls=Born).start()
        call = lives.make("incr")
        with pytest.raises(CheckpointSaveError):
            crash_at_timeout(lives, call)
        store.put = put  # type: ignore[method-assign]
        assert lives.start().send(call) == 21, "its state was another one"
        assert lives.start().call("value") == 21

    def test_async_methods_are_awaited(self) -> None:
        class Slow(Tally):
            async def slow(self) -> int:
                await asyncio.sleep(0)
                self.n += self.record(lambda: 5)
                await asyncio.sleep(0)
                return self.n

        class AsyncHost(LocalHost):
            is_async = True
            max_concurrency = 8

        async def life(store: MemoryStore, number: int, caller: Caller) -> int:
            host = AsyncHost("tally", class_name="Slow", incarnation=number)
            background: Any = InlineBackground
            session = await engine.open_async(
                Slow(), host, store=store, background=background, **Lives.opening
            )
            reply: int = await caller.call(KEY, "slow").sent_to_async(ExactlyOnceCalls(session))
            replayed = [each["calls_replayed"] for each in session.status()["recoveries"]]
            assert replayed == [1, 2][: number - 1]
            crash(session)
            return reply

        store, caller = memory(), Caller()
        assert [asyncio.run(life(store, n, caller)) for n in (1, 2, 3)] == [5, 10, 15]

    def test_replay_that_takes_long_is_saved_on_the_way(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lives = started()
        for _ in range(5):
            lives.call("incr")
        monkeypatch.setattr(replay, "REPLAY_BOUND_S", 0.0)
        with (
            faults.armed("once.replayed", faults.SimulatedCrash("killed"), 4),
            pytest.raises(faults.SimulatedCrash),
        ):
            lives.start()
        monkeypatch.undo()
        lives.start()
        killed, present = lives.session.status()["recoveries"]
        assert (killed["whole"], present["whole"]) == (False, True)
        assert present["calls_replayed"] == 2, "the killed one got ahead"
        assert lives.call("value") == 5

    def test_a_call_that_goes_on_for_long_is_saved_before_anybody_is_served(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lives = started()
        call = lives.make("ask", 2)
        crash_at(lives, "once.value_recorded", call)
        monkeypatch.setattr(replay, "REPLAY_BOUND_S", 0.0)
        lives.start()
        newest = open_store(lives.store).list(KEY)[-1]
        assert newest.reason == "replay" and lives.session.status()["last_snapshot"] == newest.id
        assert len(open_store(lives.store).load(KEY)["seen"]) == 2

    def test_another_hash_seed_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lives = started()
        lives.call("incr")
        saved = {"PYTHONHASHSEED": "7", "fingerprint": 0}
        monkeypatch.setattr(replay, "hash_seed", lambda _host: saved)
        lives.start()
        assert "hash_seed" in lives.kinds()
        assert lives.host.seeds_asked == []  # that of before is not known here
        lives.start()
        assert "hash_seed" not in lives.kinds(), "that of the last incarnation counts: it has run them all"
        lives.call("incr")
        monkeypatch.undo()
        lives.start()
        assert lives.host.seeds_asked == ["7"] and "hash_seed" in lives.kinds()

    def test_the_seed_of_the_snapshot_counts_where_the_seal_is_damaged(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        lives = started()
        monkeypatch.setattr(replay, "hash_seed", lambda _host: {"PYTHONHASHSEED": "7", "fingerprint": 0})
        lives.call("checkpoint")
        lives.call("incr")
        lives.store._keys[KEY].seals[1] = b"garbage"
        monkeypatch.undo()
        lives.start()
        assert lives.host.seeds_asked == ["7"]

    def test_a_divergence_tells_of_another_hash_seed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        numbers = iter(range(10))

        class Fickle(Tally):
            def ask(self) -> int:
                return next(numbers)

        lives = started(cls=Fickle, code_version=1)
        lives.call("ask")
        monkeypatch.setattr(replay, "hash_seed", lambda _host: {"PYTHONHASHSEED": "7", "fingerprint": 0})
        with pytest.raises(ReplayDivergedError, match="And the calls to be run again ran with another hash"):
            lives.start()


def crash_at_timeout(lives: Lives, call: Any) -> None:
    """Send a call that is never answered, and say so as a save error."""
    lives.send(call, 0.02)




class TestStarted:
    """A call that had begun and sent something."""

    def test_it_goes_on_at_its_place_with_what_it_had_got(self) -> None:
        lives = started()
        call = lives.make("ask", 2)
        crash_at(lives, "once.value_recorded", call, 1)
        lives.start()
        first = lives.session.instance.seen[0]
        assert lives.session.status()["recoveries"][0]["calls_resumed"] == 1
        assert lives.session.instance.seen == [first, first + 1], "the first one was given back"
        assert lives.call("incr") == 1
        assert lives.send(call) == [first, first + 1]
        assert lives.start().session.instance.seen == [first, first + 1]

    def test_a_value_that_was_not_recorded_is_asked_for_again(self) -> None:
        lives = started()
        call = lives.make("ask", 1)
        crash_at(lives, "once.value_produced", call)
        lives.start()
        assert lives.session.instance.seen == [] and len(lives.send(call)) == 1

    def test_a_nondeterministic_one_goes_on_too(self) -> None:
        class Rolls(Tally):
            from ftray.checkpoint import nondeterministic

            @nondeterministic
            def roll_twice(self) -> list[int]:
                self.record(lambda: 1)
                self.n += 1
                return [self.n]

        lives = started(cls=Rolls)
        call = lives.make("roll_twice")
        crash_at(lives, "once.barrier_appended", call)
        lives.start()
        assert lives.session.instance.n == 1 and lives.send(call) == [1]
        assert lives.start().send(call) == [1]






class TestLongRecoveries:
    """What takes long is saved if that makes the next recovery shorter, and else not."""

    class Clock:
        def __init__(self) -> None:
            self.now_s = 0.0
            self.time = time.time

        def monotonic(self) -> float:
            return self.now_s

    @pytest.mark.parametrize("slow", ["store", "call"])
    def test_saved_or_not(self, slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
        clock = self.Clock()

        class Slow(Tally, formerly="Tally"):
            def incr(self, k: int = 1) -> int:
                clock.now_s += 10.0 * (slow == "call")
                return super().incr(k)

        lives = started(cls=Slow)
        lives.call("incr")
        read = lives.store.read

        def reading(key: str, name: Any) -> Any:
            clock.now_s += 10.0 * (slow == "store")
            return read(key, name)

        lives.store.read = reading
        monkeypatch.setattr(replay, "time", clock)
        monkeypatch.setattr(replay, "REPLAY_BOUND_S", 1.0)
        assert lives.start().call("value") == 1
        reasons = [info.reason for info in open_store(lives.store).list(KEY)]
        assert reasons == (["base", "replay"] if slow == "call" else ["base"])
        for _ in range(3):
            lives.start()
        assert len(open_store(lives.store).list(KEY)) == len(reasons), "nothing is run again any more"




def test_what_a_journal_lost_is_said_loudly() -> None:
    class Loses(MemoryStore):
        def read_journal(self, key: str, after: int) -> Any:
            reading = super().read_journal(key, after)
            reading.lost, reading.notes = ["3 calls that had been answered"], ["a torn tail"]
            return reading

    kinds = started(store=Loses(survives=("process",))).kinds()
    assert kinds == ["journal_lost", "journal_note"]


def test_marks_and_hooks_are_not_left_over() -> None:
    assert hooks == [] and marks.VOID > 127
