"""Rules of docs/exactly-once.md that no other test of the toolkit would miss; each test names its rule."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ftray._core.ledger import Ledger
from ftray._core.records import SeenRecord, decode_record
from ftray.checkpoint import (
    CheckpointError,
    CheckpointSaveError,
    CheckpointTimeoutError,
    FencedError,
    ReplyExpiredError,
    StaleCallerError,
    faults,
    marks,
    restore,
)
from ftray.checkpoint.lineage import SnapshotName
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.testing import Caller, MemoryStore
from ftray.checkpoint.values import CALL_ID, Execution
from ftray.exceptions import NotSupportedError

from .once_support import KEY, Lives, Tally, hooks, memory, started

PARENT = bytes(range(16))


def attempt(number: int) -> Caller:
    return Caller(PARENT[::-1], parent=PARENT, attempt=number)


class Steps(MemoryStore):
    """Notes in which order an incarnation, or a tool, goes to its store."""

    def __init__(self) -> None:
        super().__init__(survives=("process", "power"))
        self.steps: list[str] = []

    def claim(self, key: str, epoch: int, record: bytes) -> bool:
        self.steps.append("claim")
        return super().claim(key, epoch, record)

    def fence_journals(self, key: str, epoch: int) -> None:
        self.steps.append("fence")
        super().fence_journals(key, epoch)

    def read(self, key: str, name: SnapshotName) -> Any:
        self.steps.append("read")
        return super().read(key, name)

    def read_journal(self, key: str, after: int) -> Any:
        self.steps.append("read journal")
        return super().read_journal(key, after)

    def seal(self, key: str, epoch: int, record: bytes) -> None:
        self.steps.append("seal")
        super().seal(key, epoch, record)

    def open_journal(self, key: str, epoch: int, first_position: int, **options: Any) -> Any:
        self.steps.append("open journal")
        return super().open_journal(key, epoch, first_position, **options)


@contextmanager
def doing(monkeypatch: pytest.MonkeyPatch, point: str, action: Any) -> Iterator[None]:
    """Do something when a step is reached for the first time."""

    class Doing:
        def hit(self, reached: str) -> None:
            if reached == point:
                faults.active = None
                action()

    assert point in faults.POINTS
    with monkeypatch.context() as patch:
        patch.setattr(faults, "active", Doing())
        yield


def in_thread(lives: Lives, call: Any) -> tuple[threading.Thread, list[Any]]:
    calls, got = lives.host.calls_of(lives.session), []

    def work() -> None:
        try:
            got.append(call.sent_to(calls))
        except BaseException as error:
            got.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, got


def until(condition: Any) -> None:
    while not condition():
        threading.Event().wait(0.001)


def test_r4_a_queued_call_of_a_replaced_attempt_does_not_start() -> None:
    lives = started()
    inside, go = threading.Event(), threading.Event()

    def busy(self: Tally) -> None:
        inside.set()
        assert go.wait(10)

    hooks.append(busy)
    first, _ = in_thread(lives, lives.make("run", None))
    assert inside.wait(10)
    old, new = attempt(0), attempt(1)
    calls = [old.call(KEY, "incr", 10), old.call(KEY, "incr", 100)]
    waiting = [in_thread(lives, call) for call in calls]
    until(lambda: lives.once.ledger.counters()["accepted"] == 3)
    again, replies = in_thread(lives, new.call(KEY, "incr", 10))
    until(lambda: lives.once.ledger.counters()["duplicates"] == 1)
    go.set()
    for thread in (first, again, *(thread for thread, _ in waiting)):
        thread.join(10)
    assert replies == [10] and waiting[0][1] == [10]
    assert isinstance(waiting[1][1][0], StaleCallerError)
    assert lives.session.instance.n == 10 and lives.call("incr") == 11


def test_r5_a_newer_attempt_that_was_only_answered_from_the_record_is_remembered() -> None:
    lives = started()
    old = attempt(0)
    one, two = old.call(KEY, "incr"), old.call(KEY, "incr")
    assert lives.send(one) == 1
    assert lives.send(attempt(1).call(KEY, "incr")) == 1, "the recorded reply"
    lives.start()
    with pytest.raises(StaleCallerError):
        lives.send(two)
    assert lives.session.instance.n == 1


def test_r5_its_answer_waits_for_that_record() -> None:
    lives = started()
    assert lives.send(attempt(0).call(KEY, "incr")) == 1
    lives.store.hold_durability = True
    thread, got = in_thread(lives, attempt(1).call(KEY, "incr"))
    until(lambda: lives.once.releases.held == 1)
    last = list(lives.store.read_journal(KEY, 0))[-1]
    assert isinstance(decode_record(last.payload), SeenRecord) and got == []
    lives.once.journal.commit()
    thread.join(10)
    assert got == [1]


def test_r5_a_read_of_a_newer_attempt_counts_too() -> None:
    lives = started()
    old = attempt(0)
    one, two = old.call(KEY, "incr"), old.call(KEY, "incr")
    assert lives.send(one) == 1
    assert lives.send(attempt(1).call(KEY, "value")) == 1
    lives.start()
    with pytest.raises(StaleCallerError):
        lives.send(two)


def test_r8_a_late_copy_of_a_released_caller_s_call_does_not_run() -> None:
    lives = started()
    assert lives.send(attempt(0).call(KEY, "incr")) == 1
    copy = attempt(0).call(KEY, "incr")
    assert lives.send(attempt(1).call(KEY, "incr")) == 1
    lives.once.release([PARENT], [])
    for _ in range(2):
        with pytest.raises(ReplyExpiredError):
            lives.send(copy)
        lives.start()
    lives.session.save_now()
    lives.start()
    with pytest.raises(ReplyExpiredError):
        lives.send(copy)
    assert lives.call("value") == 1


@pytest.mark.parametrize("by", ["caller", "root"])
def test_what_was_released_stays_so_after_a_crash(by: str) -> None:
    lives = started()
    task = attempt(0)
    assert lives.send(task.call(KEY, "incr")) == 1
    lives.once.release(*(([PARENT], []) if by == "caller" else ([], [task.root])))
    assert lives.once.ledger.counters()["callers"] == 0
    assert lives.start().once.ledger.counters()["callers"] == 0


def test_r14_who_wrote_the_past_answers_nothing_more_when_it_is_read() -> None:
    old = started()
    old.call("incr")
    late = old.make("incr")
    new = Lives(old.store)
    new.number = 1
    read, got = old.store.read_journal, []

    def read_late(*args: Any) -> Any:
        reading = read(*args)
        if not got:
            try:
                got.append(old.send(late))
            except CheckpointError as error:
                got.append(type(error))
        return reading

    old.store.read_journal = read_late
    new.start()
    assert got == [FencedError]
    assert new.session.instance.n == 1 and new.send(late) == 2


def test_r20_r21_the_reply_of_what_a_snapshot_stands_for_needs_the_key_after_the_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lives = started()
    lives.call("incr")
    call = lives.make("roll")

    def claimed() -> None:
        lives.store.claim(KEY, 99, b"{}")

    with doing(monkeypatch, "save.announced", claimed), pytest.raises(FencedError):
        lives.send(call)
    assert {type(e) for e in lives.host.fenced_by} == {FencedError}


def test_r21_the_reply_is_held_before_its_record_can_be_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The journal's thread may make the record durable before `append` has returned."""
    lives = started()
    seen: list[int] = []
    journal, append = lives.once.journal, lives.once.journal.append

    def appended(payload: Any) -> int:
        position = append(payload)
        if bytes(payload)[:1] == bytes([marks.NONDETERMINISTIC]):
            lives.once.releases.durable(position)
            seen.append(lives.once.releases.position - position)
        return position

    monkeypatch.setattr(journal, "append", appended)
    lives.call("roll")
    assert seen == [-1]


def test_r30_a_call_that_had_begun_goes_on_only_with_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = started()
    call = lives.make("ask", 2)
    crash_in_it(lives, call)

    def claimed() -> None:
        lives.store.claim(KEY, 99, b"{}")

    asked: list[int] = []
    with doing(monkeypatch, "once.journal_opened", claimed), pytest.raises(FencedError):
        lives.start(cls=telling(asked))
    assert asked == []


def test_r30_it_sends_nothing_before_its_own_journal_has_cut_the_older_ones() -> None:
    lives = started()
    call = lives.make("ask", 2)
    crash_in_it(lives, call)
    opened = threading.Event()
    opens = lives.store.open_journal

    def open_later(*args: Any, **kwargs: Any) -> Any:
        journal = opens(*args, **kwargs)
        last, journal.durable_position = journal.last_position, 0

        def header_is_durable() -> None:
            assert go.wait(10)
            journal.commit(last)

        threading.Thread(target=header_is_durable).start()
        opened.set()
        return journal

    asked, go = [], threading.Event()
    lives.store.open_journal = open_later
    starting = threading.Thread(target=lambda: lives.start(cls=telling(asked)))
    starting.start()
    assert opened.wait(10)
    starting.join(0.05)
    assert starting.is_alive() and asked == []
    go.set()
    starting.join(10)
    assert len(asked) == 1


def crash_in_it(lives: Lives, call: Any) -> None:
    with (
        faults.armed("once.value_recorded", faults.SimulatedCrash("killed")),
        pytest.raises(faults.SimulatedCrash),
    ):
        lives.send(call)


def telling(asked: list[int]) -> type[Tally]:
    """`Tally`, which tells when it asks the world."""

    def ask() -> int:
        asked.append(1)
        return len(asked)

    class Telling(Tally, exactly_once=True, formerly="Tally", code_version=1):
        def ask(self, times: int = 1) -> list[int]:
            for _ in range(times):
                self.seen.append(self.record(ask))
            return self.seen

        def migrate_call(self, method: str, args: Any, kwargs: Any, from_version: int) -> Any:
            return method, args, kwargs

    return Telling


def test_r35_a_refusal_that_was_not_recorded_says_nothing_of_a_later_run() -> None:
    lives = started()
    call = lives.make("incr")
    lives.once.journal.append(marks.encode(marks.REFUSED, call_id=call.head[CALL_ID].hex()))
    lives.start()
    assert lives.send(call) == 1
    lives.start()
    assert lives.call("value") == 1


def test_r22_a_late_snapshot_of_a_stale_incarnation_is_none_of_those_kept() -> None:
    lives = started(keep=2)
    lives.call("incr")
    lives.session.save_now()
    snapshots = lives.store._keys[KEY].snapshots
    found = max(snapshots)
    next_one = SnapshotName(found.epoch, found.sequence + 1)
    seal = lives.store.seal

    def seal_later(*args: Any) -> None:
        snapshots[next_one] = snapshots[found]  # the stale one publishes what does not count
        seal(*args)

    lives.store.seal = seal_later
    lives.start()
    lives.call("incr")
    lives.session.save_now()
    assert next_one not in lives.session.log.counted
    assert found in snapshots, "one of the two newest that count"


def test_r23_trimming_needs_the_key() -> None:
    store = memory()
    lives = Lives(store).start()
    lives.call("incr")
    store.claim(KEY, 99, b"{}")
    with pytest.raises(FencedError):
        store.trim_journal(KEY, 1, lives.session.log.epoch)
    with pytest.raises(FencedError):
        store.delete(KEY, store.scan(KEY).snapshots, lives.session.log.epoch)


def test_r34_the_end_of_a_root_is_not_the_end_of_what_methods_call() -> None:
    from ftray._core.records import encode_head

    ledger = Ledger(PARENT)
    head = encode_head(
        root_kind=0,
        root=PARENT,
        parent=PARENT[::-1],
        call_id=b"c" * 16,
        n=1,
        attempts=(0, 0),
        chain=[b"a" * 16],
    )
    assert ledger.accept(head, 1)[0] == 1
    ledger.finish(head, 0, b"reply", 1)
    ledger.release_root(PARENT)
    assert ledger.accept(head, 1)[2] == b"reply"


class Journal:
    """What an execution writes to: positions count up."""

    def __init__(self) -> None:
        self.last = 10

    def start(self, head: bytes, method: str, args: bytes, values: Any) -> int:
        self.last += 1
        return self.last

    def value(self, call_id: bytes, index: int, data: bytes) -> int:
        self.last += 1
        return self.last


class Once:
    """What the guard of an engine asks: which call runs here, and to wait until something is durable."""

    host = SimpleNamespace(max_concurrency=1, is_async=False)
    journal, last_position = True, 17

    def __init__(self, execution: Execution | None) -> None:
        self.execution, self.waited = execution, []

    def locate(self) -> Execution | None:
        return self.execution

    def wait(self, position: int, in_method: bool = False) -> None:
        assert in_method == (self.execution is not None)
        self.waited.append(position)


def guard_of(execution: Execution | None) -> tuple[Any, list[int]]:
    from ftray._outside import Outside

    once: Any = Once(execution)
    return Outside(once), once.waited


def test_r27_r28_each_thing_that_leaves_waits_for_the_start_and_for_all_values_until_then() -> None:
    execution = Execution(b"", "m", b"", PARENT, Journal())
    guard, waited = guard_of(execution)
    assert guard.sends(1) is False and waited == [11], "the start"
    execution.take(0, lambda: b"drawn")
    assert guard.sends(1) is False and waited == [11, 12], "the value"
    assert guard.sends(1) is False and waited == [11, 12, 12]


def test_r27_what_leaves_outside_of_a_method_waits_for_all_that_was_recorded() -> None:
    """A thread of the user's own may have seen any of it."""
    guard, waited = guard_of(None)
    assert guard.sends(1) is False and waited == [17]


def test_r27_an_actor_is_made_after_the_start_and_once() -> None:
    made: list[int] = []

    def make() -> str:
        made.append(len(waited))
        return "handle"

    execution = Execution(b"", "m", b"", PARENT, Journal())
    guard, waited = guard_of(execution)
    assert guard.made(make) == "handle" and waited == [11] and made == [1], "after the start was durable"
    again = Execution(b"", "m", b"", PARENT, None, execution.recorded)
    assert guard_of(again)[0].made(make) == "handle" and made == [1], "it was made before"
    again.ended()


def test_what_was_ready_is_the_same_when_a_method_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from ftray import _outside

    refs = [object() for _ in range(3)]
    monkeypatch.setattr(_outside, "plain_wait", lambda given, *_: ([given[2]], given[:2]))
    execution = Execution(b"", "m", b"", PARENT, Journal())
    assert guard_of(execution)[0].wait(refs, 1, None, True) == ([refs[2]], refs[:2])
    monkeypatch.setattr(_outside, "plain_wait", lambda given, *_: ([given[0]], given[1:]))
    again = Execution(b"", "m", b"", PARENT, None, execution.recorded)
    assert guard_of(again)[0].wait(refs, 1, None, True) == ([refs[2]], refs[:2])
    again.ended()


def test_a_method_that_changes_the_state_makes_no_generators() -> None:
    guard, waited = guard_of(Execution(b"", "m", b"", PARENT, Journal()))
    with pytest.raises(NotSupportedError, match='num_returns="streaming"'):
        guard.sends(-1)
    assert waited == []


def test_r29_what_leaves_needs_the_key_after_its_record() -> None:
    from ftray._outside import Outside

    lives = started()
    lives.store.hold_durability = True
    left: list[bool] = []

    def sends(self: Tally) -> None:
        guard = Outside(lives.once)
        guard._execution().start()  # its record is there: only the look after that can tell
        lives.store.claim(KEY, 99, b"{}")
        lives.once.journal.commit()
        left.append(guard.sends(1))

    hooks.append(sends)
    with pytest.raises(FencedError):
        lives.send(lives.make("run", None))
    assert left == []


def test_nobody_reads_what_init_made_before_it_is_saved() -> None:
    store = memory()
    put, store.put = store.put, _failing  # type: ignore[method-assign]
    lives = Lives(store).start()
    read = lives.make("value")
    with pytest.raises(CheckpointTimeoutError, match="not durable"):
        lives.send(read, 0.02)
    store.put = put  # type: ignore[method-assign]
    assert lives.start().send(read) == 0


def test_what_crashes_while_it_is_recorded_is_no_value() -> None:
    class Greedy(Tally):
        def take(self) -> str:
            return self.record(lambda: hooks.pop()(self))

    def no_room(_self: Tally) -> str:
        raise MemoryError

    hooks[:] = [lambda _self: "room", no_room]
    lives = started(cls=Greedy)
    call = lives.make("take")
    with pytest.raises(MemoryError):
        lives.send(call)
    assert lives.start().send(call) == "room", "nothing was recorded"


def test_r14_r30_claim_fence_read_seal_and_only_then_write() -> None:
    store = Steps()
    lives = Lives(store).start()
    lives.call("incr")
    first = lives.call("checkpoint")
    lives.call("incr")
    store.steps.clear()
    lives.start()
    assert store.steps[:3] == ["claim", "fence", "read"]
    assert store.steps[3:].count("seal") == store.steps[3:].count("open journal") == 1
    assert store.steps[-2:] == ["seal", "open journal"] and "read journal" in store.steps
    store.steps.clear()
    restore(store, KEY, first, takeover=True)
    rest = store.steps[store.steps.index("claim") :]  # the snapshot is looked at before anything is touched
    assert rest[:2] == ["claim", "fence"] and rest[-2:] == ["open journal", "seal"]


@pytest.mark.parametrize("durability", ["process", "power"])
def test_a_blob_survives_what_the_record_does_that_names_it(
    durability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    put_blob = LocalStore.put_blob

    def noting(self: LocalStore, key: str, epoch: int, name: str, *rest: Any, **options: Any) -> None:
        if name.startswith("call-"):
            asked.append(options["durability"])
        put_blob(self, key, epoch, name, *rest, **options)

    monkeypatch.setattr(LocalStore, "put_blob", noting)
    lives = started(store=LocalStore(str(tmp_path)), durability=durability)
    hooks.append(lambda _self: None)
    lives.call("run", bytes(100_000))
    assert asked == [durability]
    lives.session.close(False, "test")


def _failing(*_: object) -> None:
    raise CheckpointSaveError("the disk is full")
