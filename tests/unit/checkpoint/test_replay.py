"""Opening an exactly-once actor: who may, what is replayed, what stops it."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ftray.checkpoint import (
    Checkpointable,
    CheckpointCorruptedError,
    CheckpointKeyInUseError,
    CheckpointParkedError,
    CheckpointSaveError,
    CodeVersionError,
    PoisonCallError,
    ReplayDivergedError,
    engine,
    faults,
    format,
    holders,
    marks,
    replay,
)
from ftray.checkpoint import open as open_store
from ftray.checkpoint.journal import JournalRecord
from ftray.checkpoint.lineage import SnapshotName as N
from ftray.checkpoint.lineage import parse_id
from ftray.checkpoint.serving import ExactlyOnceCalls
from ftray.checkpoint.testing import Caller, InlineBackground, LocalHost, MemoryStore, crash
from ftray.checkpoint.values import current

from .once_support import KEY, Lives, Tally, compiled_reruns, hooks, memory, repeat_last_record, started


@pytest.fixture(autouse=True, params=["toolkit", "engine"])
def who_runs_plain_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of this must hold whoever runs plain calls again: the toolkit, or the engine's compiled part."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "engine":
            compiled_reruns(patch)
        yield


def crash_at(lives: Lives, point: str, call: Any, nth: int = 1) -> None:
    """Send a call, in which the process dies."""
    with faults.armed(point, faults.SimulatedCrash(point), nth), pytest.raises(faults.SimulatedCrash):
        lives.send(call)


class TestHolders:
    def test_a_live_holder_elsewhere_is_named(self) -> None:
        lives = started()
        with pytest.raises(CheckpointKeyInUseError, match=rf"process {os.getpid()}.*since .*takeover=True"):
            Lives(lives.store).start()
        assert lives.call("incr") == 1, "it was not fenced"

    def test_takeover_fences_it(self) -> None:
        lives = started()
        lives.call("incr")
        other = Lives(lives.store).start(takeover=True)
        assert other.call("incr") == 2
        with pytest.raises(CheckpointSaveError):
            lives.call("incr")

    def test_a_restart_takes_over_in_silence(self) -> None:
        lives = started()
        lives.call("incr")
        session = lives.session
        lives.session = None  # it lives on, as far as anybody can see
        assert lives.start().call("incr") == 2
        crash(session)

    def test_a_process_is_told_by_pid_boot_and_start(self) -> None:
        mine = {"host": os.uname().nodename, "boot_id": holders.boot_id(), "pid": os.getppid()}
        ticks = holders.start_ticks(os.getppid())
        assert ticks is not None
        assert holders._lives({**mine, "started_ticks": ticks}) is True
        assert holders._lives({**mine, "started_ticks": ticks + 1}) is False, "another process of that number"
        assert holders._lives({**mine, "boot_id": "before"}) is False
        assert holders._lives({**mine, "pid": 0}) is False
        assert holders._lives({**mine, "host": "elsewhere"}) is None
        assert holders.start_ticks(0) is None

    def claim(self, store: MemoryStore, **fields: Any) -> None:
        record = {"actor": "other", "incarnation": 1, "host": "elsewhere", "pid": 1, "class": "X", **fields}
        store.claim(KEY, 1, format.encode_record(record))

    def test_on_another_machine_nobody_can_tell_unless_it_said_that_it_ended(self) -> None:
        store = memory()
        self.claim(store)
        with pytest.raises(CheckpointKeyInUseError, match="cannot be told from here"):
            Lives(store).start()
        holders.ended(store, KEY, 1)
        lives = Lives(store).start()
        assert lives.call("incr") == 1
        assert not [b for b in store.list_blobs(KEY) if b.startswith("ended")], "forgotten by the next one"

    def test_whoever_ends_as_planned_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        lives = started()
        lives.session.close(True, "exit")
        monkeypatch.setattr(holders, "_lives", lambda _record: None)  # seen from another machine
        holder = holders.look(lives.store, KEY, 1)
        assert holder is not None and holder.lives is False
        other = Lives(lives.store).start()
        other.session.close(False, "killed")
        with pytest.raises(CheckpointKeyInUseError, match="cannot be told from here"):
            Lives(lives.store).start()

    def test_the_key_of_a_dead_driver_s_actor_is_free_though_its_process_still_ends(self) -> None:
        """The fence holds, whatever that process does; but while its driver lives it is refused as before."""
        here = {"host": os.uname().nodename, "boot_id": holders.boot_id(), "pid": os.getppid()}
        parent = holders.start_ticks(os.getppid())
        assert parent is not None
        living = {**here, "started_ticks": parent, "driver_pid": os.getppid(), "driver_ticks": parent}
        for fields in (living, {**living, "host": "elsewhere", "driver_ticks": parent + 1}):
            store = memory()
            self.claim(store, **fields)
            with pytest.raises(CheckpointKeyInUseError):
                Lives(store).start()
        store = memory()
        self.claim(store, **{**living, "driver_ticks": parent + 1})
        assert Lives(store).start().call("incr") == 1

    def test_of_two_that_start_at_once_one_is_refused(self) -> None:
        class Races(MemoryStore):
            other: Lives | None = None

            def claim(self, key: str, epoch: int, record: bytes) -> bool:
                if self.other is None:
                    self.other = Lives(self)
                    self.other.start()
                return super().claim(key, epoch, record)

        store = Races(survives=("process",))
        with pytest.raises(CheckpointKeyInUseError):
            Lives(store).start()
        assert store.other is not None and store.other.call("incr") == 1


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
        put, store.put = store.put, _failing  # type: ignore[method-assign]
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


def damage(store: MemoryStore, name: N) -> None:
    """Change one byte of a snapshot."""
    held = store._keys[KEY].snapshots
    held[name] = held[name][:-40] + b"?" + held[name][-39:]


def _failing(*_: object) -> None:
    raise CheckpointSaveError("the disk is full")


class TestDamage:
    def test_the_journal_reaches_back_to_the_snapshot_before(self) -> None:
        lives = started(every=2)
        for _ in range(7):
            lives.call("incr")
        damage(lives.store, lives.store.scan(KEY).snapshots[-1])
        lives.start()
        assert lives.call("value") == 7 and lives.kinds()[0] == "snapshot_skipped"

    def test_not_over_a_call_that_no_record_can_repeat(self) -> None:
        lives = started(every=None)
        lives.call("incr")
        lives.call("roll")
        damage(lives.store, lives.store.scan(KEY).snapshots[-1])
        with pytest.raises(CheckpointCorruptedError, match="no record can repeat"):
            lives.start()

    @pytest.mark.parametrize("restarts", [0, 1, 2])
    def test_snapshots_that_went_are_missed(self, restarts: int) -> None:
        lives = started()
        lives.call("incr")
        lives.call("checkpoint")
        for _ in range(restarts):
            lives.start()
        lives.store._keys[KEY].snapshots.clear()
        with pytest.raises(CheckpointCorruptedError, match="snapshot that was durable"):
            lives.start()
        assert lives.store._keys[KEY].records, "nothing was thrown away"

    def test_a_gap_is_told(self) -> None:
        lives = started()
        for _ in range(3):
            lives.call("incr")
        del lives.store._keys[KEY].records[-2]
        with pytest.raises(CheckpointCorruptedError, match="gap"):
            lives.start()

    def test_records_that_contradict_each_other_are_told(self) -> None:
        lives = started()
        lives.call("incr")
        repeat_last_record(lives)
        with pytest.raises(CheckpointCorruptedError, match="contradicts itself at position"):
            lives.start()

    @pytest.mark.parametrize(
        ("damage", "said"),
        [
            (lambda one, two: [one[0], one[2]], "value 1 of a call after 0 values"),
            (lambda one, two: [one[1]], "a value of a call that has not begun"),
            (lambda one, two: [one[0], two[1]], "a value of a call that has not begun"),
            (lambda one, two: [one[0], two[0]], "a call begins inside of another one"),
            (lambda one, two: [one[0], two[-1]], "a call ends inside of another one"),
        ],
    )
    def test_records_of_calls_that_send_stand_in_order(self, damage: Any, said: str) -> None:
        lives = started()
        for _ in range(2):
            lives.call("ask", 2)
        held = lives.store._keys[KEY]
        rest, one, two = held.records[:-8], held.records[-8:-4], held.records[-4:]
        assert [len(each) for each in (one, two)] == [4, 4], "START, two VALUEs, CALL"
        chosen = damage(one, two)
        held.records = [*rest, *(r._replace(position=len(rest) + n) for n, r in enumerate(chosen, 1))]
        with pytest.raises(CheckpointCorruptedError, match=said):
            lives.start()

    def test_large_arguments_and_replies_are_blobs_that_go_with_their_records(self) -> None:
        class Big(Tally):
            def echo(self, data: bytes) -> bytes:
                self.n += 1
                return data

        lives = started(cls=Big, every=None)
        call = lives.make("echo", os.urandom(100_000))
        reply = lives.send(call)
        named = [b for b in lives.store.list_blobs(KEY) if b.startswith("call-")]
        assert len(named) == 2
        assert lives.start().send(call) == reply
        for _ in range(2):
            lives.call("checkpoint")
        assert not [b for b in lives.store.list_blobs(KEY) if b.startswith("call-")]
        assert lives.start().call("value") == 1

    def test_blobs_stay_as_long_as_a_kept_snapshot_may_need_them(self) -> None:
        class Big(Tally):
            def keep(self, data: bytes) -> bytes:
                self.seen.append(len(data))
                return data

        lives = started(cls=Big, every=None)
        for size in (100_000, 200_000):
            lives.call("keep", os.urandom(size))
            newest = lives.call("checkpoint")
        damage(lives.store, parse_id(newest))
        lives.start()
        assert lives.session.status()["recoveries"][-1]["calls_replayed"] == 1
        assert lives.session.instance.seen == [100_000, 200_000]

    def test_a_blob_that_is_gone_is_told(self) -> None:
        class Big(Tally):
            def echo(self, data: bytes) -> int:
                return len(data)

        lives = started(cls=Big)
        lives.call("echo", bytes(100_000))
        lives.store._keys[KEY].blobs.clear()
        with pytest.raises(CheckpointCorruptedError, match="blob call-.* cannot be read"):
            lives.start()


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
