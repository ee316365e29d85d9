"""Exactly-once keys as they were written once, on disks and in an object store, are read for ever.

What is in them is told in `make_golden_stores.key_story`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray._core.records import CallRecord, ReleaseRecord, SeenRecord, StartRecord, ValueRecord, decode_head
from ftray._core.records import decode_record as decode_call
from ftray.checkpoint import (
    CallMismatchError,
    CheckpointCorruptedError,
    CheckpointKeyInUseError,
    CheckpointParkedError,
    PoisonCallError,
    ReplyExpiredError,
    StaleCallerError,
    faults,
    holders,
    marks,
    watch,
)
from ftray.checkpoint.codec import ToolkitCodec
from ftray.checkpoint.watch import Note, Row

from . import golden_support as golden
from . import second_record_reader
from .golden_support import (
    FORMER_TASK,
    JOB,
    KEY,
    LARGE,
    LATER_TASK,
    GoldenLives,
    driver_call,
    job_call,
    keyed_call,
    method_call,
    ref_call,
    task_call,
    traps,
    world,
)
from .make_golden_stores import LONG

ARCHIVES = {
    "process": "key-v1.process.zip",
    "power": "key-v1.power.zip",
    "objects": "key-v1.objects.zip",
}
HISTORIES = {
    "process": "2b902f8911e81818f8c99d5d5d983195",
    "power": "2b902f8911e81818f8c99d5d5d983195",
    "objects": "5930263938b370a1b5769fa0f1483f95",
}
CODEC = ToolkitCodec()
RUNNING = driver_call(14, "ask", 3).head[48:64]

Opened = Callable[..., Any]


@pytest.fixture(params=ARCHIVES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens a copy of the golden key, on its own machine in its own boot, or elsewhere."""
    monkeypatch.setitem(world, "next", 500)

    def open_it(without: tuple[str, ...] = (), boot: str | None = golden.BOOT) -> Any:
        if boot is not None:
            golden.on_machine(monkeypatch, boot)

        def wanted(name: str) -> bool:
            return not any(part in name for part in without)

        if kind == "objects":
            return golden.object_store(ARCHIVES[kind], wanted)
        return golden.local_store(ARCHIVES[kind], tmp_path / "store", wanted)

    return open_it


def successor(store: Any, kind: str, **options: Any) -> GoldenLives:
    """The tenth incarnation, not started yet."""
    lives = GoldenLives(store, durability="process" if kind == "process" else "power", **options)
    lives.number = 9
    return lives


def state_of(lives: GoldenLives) -> tuple[int, list[int], bytes]:
    actor = lives.session.instance
    return actor.n, actor.seen, bytes(actor.large)


FINAL = (1321, [102, 104, 105, 501], LARGE[1:])
"""What the second to sixth incarnation made of the first one's state; of the last call one value is new."""


class TestFromOutside:
    def test_snapshots(self, opened: Opened, kind: str) -> None:
        reader = checkpoint.open(opened())
        assert reader.keys() == [KEY]
        found = reader.verify(KEY)
        assert found == reader.list(KEY)
        assert [(s.id, s.calls, s.reason, s.journal_position) for s in found] == [
            ("1-1", 0, "base", 0),
            ("1-2", 8, "request", 10),
            ("1-3", 9, "nondeterministic", 11),
            ("1-4", 11, "request", 14),
        ]
        for info in found:
            assert info.counts and not info.error and info.history == HISTORIES[kind]
            assert (info.class_name, info.state_version, info.code_version) == ("Golden", 1, 7)
            assert 1_700_000_000 <= info.created_unix_s < 1_700_000_100
        assert found[-1].size_bytes == 154_904
        assert reader.load(KEY) == {"n": 258, "seen": [], "large": bytearray(LARGE)}
        assert reader.load(KEY, "1-2") == {"n": 154, "seen": [], "large": bytearray()}

    def test_the_journal_as_a_whole(self, opened: Opened) -> None:
        found = checkpoint.open(opened()).journal(KEY)
        assert (found.first_position, found.last_position, found.records) == (1, 36, 36)
        assert (found.behind, found.calls, found.size_bytes) == (22, 12, 7654)
        assert found.epochs == [1, 2, 3, 6] and not found.lost and not found.error and not found.notes

    def test_the_ledger(self, opened: Opened) -> None:
        reader = checkpoint.open(opened())
        found = reader.ledger(KEY)
        assert {
            name: found[name] for name in ("history_number", "callers", "calls", "expired", "released")
        } == {
            "history_number": 1,
            "callers": 3,
            "calls": 4,
            "expired": 3,
            "released": 1,
        }
        assert found["reply_bytes"] == 76_876 and reader.ledger(KEY, "1-1")["callers"] == 0

    def test_who_held_it(self, opened: Opened, kind: str) -> None:
        store = opened()
        found = checkpoint.open(store).describe(KEY)
        assert (found.mode, found.state, found.orphan, found.fencing) == (
            "exactly_once",
            "free",
            False,
            "exclusive",
        )
        assert found.holder is not None
        assert {
            name: found.holder[name] for name in ("class", "host", "pid", "incarnation", "epoch", "lives")
        } == {
            "class": "Golden",
            "host": golden.HOST,
            "pid": golden.PID,
            "incarnation": 9,
            "epoch": 9,
            "lives": False,
        }
        assert (found.history, found.history_number, found.restored_from) == (HISTORIES[kind], 1, "")
        (cause,) = found.failed_recoveries
        assert cause.startswith("CheckpointLoadError: ") and "ValueError: this version cannot load" in cause
        assert all(found.bytes[part] for part in ("snapshots", "journal", "blobs", "other"))
        assert store.scan(KEY).claims == [6, 7, 8, 9] and store.scan(KEY).seals == [6]

    def test_what_claims_say_of_processes(self, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        store = opened()

        def said() -> tuple[object, ...]:
            holder = holders.look(store, KEY, 9)
            assert holder is not None
            return holder.lives, holder.session_lives, holder.abandoned

        assert said() == (False, False, True)
        golden.on_machine(monkeypatch, golden.LATER_BOOT)
        assert said() == (False, False, True)
        golden.on_machine(monkeypatch)
        monkeypatch.setattr(holders, "start_ticks", lambda _pid: golden.TICKS)
        assert said() == (True, True, False)
        record = holders.look(store, KEY, 7)
        assert record is not None and record.record["class"] == "Broken"
        assert record.record["actor"] == "golden-actor" and record.record["exactly_once"] is True

    def test_what_became_of_calls_by_key(self, opened: Opened) -> None:
        reader = checkpoint.open(opened())
        found = [reader.outcome(KEY, call_key=f"order-{n}", codec=CODEC) for n in range(1, 6)]
        assert [(o.state, o.kept, o.value) for o in found] == [
            ("committed", False, None),
            ("committed", False, None),
            ("committed", True, 258),
            ("committed", True, 283),
            ("not committed", False, None),
        ]

    def test_it_is_taken_back(self, opened: Opened, kind: str) -> None:
        store = opened()
        done = checkpoint.restore(store, KEY, "1-2")
        assert (done.snapshot, done.history_number, done.journal_position) == ("10-1", 2, 37)
        lives = successor(store, kind).start()
        assert state_of(lives) == (154, [], b"")
        assert lives.value_of(task_call(2, "incr", 40, attempt=1)) == 103, "the snapshot has this call"

    def test_it_is_exported_and_removed(self, opened: Opened, tmp_path: Path) -> None:
        store = opened()
        done = checkpoint.export(store, KEY, tmp_path / "s")
        assert (done.snapshot, done.exactly_once, done.journal_behind) == ("1-4", True, 22)
        assert checkpoint.delete(KEY, store=store) == KEY and checkpoint.open(store).keys() == []


# -- its records


def gist(store: Any, payload: bytes) -> tuple[Any, ...]:
    """What a record says, for people."""
    mark = marks.decode(payload)
    if mark is not None:
        names = {v: k for k, v in vars(marks).items() if k.isupper() and isinstance(v, int)}
        return (names[mark.kind], *(v for k, v in sorted(mark.fields.items()) if k != "history"))
    record = decode_call(payload)
    if isinstance(record, ReleaseRecord):
        return ("RELEASE", record.parents, record.roots)
    if isinstance(record, ValueRecord):
        return ("VALUE", record.nth, record.data)
    head = decode_head(record.head)
    who = (head.parent.decode().strip("\0") or "by key", head.n)
    if isinstance(record, SeenRecord):
        return ("SEEN", *who, head.attempts)
    args = store.read_blob(KEY, record.args_blob) if record.args is None else record.args
    said = CODEC.decode_args(args)[0]
    if isinstance(record, StartRecord):
        return ("START", *who, record.method, said, record.values)
    assert isinstance(record, CallRecord)
    reply = store.read_blob(KEY, record.reply_blob) if record.reply is None else record.reply
    value = CODEC.decode_reply(record.status, reply)
    return ("CALL", *who, record.method, said, f"{value}" if record.status else value)


DRIVER, TASK = "driver-of-golden", "a-task-of-golden"
ASKED = [b"\0\0\3" + bytes([n]) + bytes(7) for n in (102, 104, 105)]
POISONED = (
    "call ff5da200bc3a62a53668620b2d65094e (number 12 of caller 6472697665722d6f662d676f6c64656e) of 'step' "
    "is not run again: the actor's process died in it 3 times in a row. Look at the actor's log for how it "
    "died; a call under another identity is tried anew"
)
RECORDS: list[tuple[int, tuple[Any, ...]]] = [
    (1, ("SAVED", 0)),
    (1, ("CALL", "by key", 0, "incr", (1,), 1)),
    (1, ("CALL", "by key", 0, "incr", (2,), 3)),
    (1, ("CALL", DRIVER, 1, "incr", (10,), 13)),
    (1, ("CALL", DRIVER, 2, "incr", (20,), 33)),
    (1, ("CALL", TASK, 1, "incr", (30,), 63)),
    (1, ("CALL", TASK, 2, "incr", (40,), 103)),
    (1, ("CALL", "method-of-golden", 1, "fail", ("in a method",), "in a method")),
    (1, ("CALL", "a-former-task---", 1, "incr", (50,), 154)),
    (1, ("RELEASE", (FORMER_TASK,), ())),
    (1, ("NONDETERMINISTIC", "e3e559ad0416e1f780dd5c22e5d0fa8e")),
    (1, ("SAVED", 11)),
    (1, ("CALL", DRIVER, 4, "keep", (LARGE,), LARGE[::-1])),
    (1, ("CALL", "by key", 0, "incr", (3,), 258)),
    (2, ("START", DRIVER, 5, "ask", (1,), ())),
    (2, ("VALUE", 0, ASKED[0])),
    (2, ("CALL", DRIVER, 5, "ask", (1,), [102])),
    (2, ("CALL", DRIVER, 6, "fail", (LONG,), LONG)),
    (2, ("CALL", DRIVER, 7, "incr", (7,), 266)),
    (2, ("CALL", DRIVER, 8, "keep", (LARGE[1:],), LARGE[:0:-1])),
    (2, ("CALL", TASK, 3, "incr", (8,), 274)),
    (2, ("SEEN", TASK, 3, (0, 2))),
    (2, ("CALL", "by key", 0, "incr", (9,), 283)),
    (2, ("CALL", "a-later-task----", 1, "incr", (10,), 293)),
    (2, ("CALL", "a-job-of-golden-", 1, "incr", (11,), 304)),
    (2, ("RELEASE", (LATER_TASK,), (JOB,))),
    (2, ("CALL", DRIVER, 9, "incr", (12,), 316)),
    (2, ("NONDETERMINISTIC", "5777d933a1b7f2dfd81b02448dd29213")),
    (3, ("VOID", 28, 28)),
    (3, ("CALL", DRIVER, 11, "incr", (1000,), 1316)),
    (6, ("REFUSED", "ff5da200bc3a62a53668620b2d65094e")),
    (6, ("CALL", DRIVER, 12, "step", (13,), POISONED)),
    (6, ("CALL", DRIVER, 13, "step", (5,), 1321)),
    (6, ("START", DRIVER, 14, "ask", (3,), ())),
    (6, ("VALUE", 0, ASKED[1])),
    (6, ("VALUE", 1, ASKED[2])),
]
"""Epoch and content of each record, from position 1 on."""


class TestRecords:
    def test_each_says_what_it_said(self, opened: Opened, kind: str) -> None:
        store = opened()
        reading = store.read_journal(KEY, 0)
        found = list(reading)
        assert [record.position for record in found] == list(range(1, 37)) and reading.last_position == 36
        assert [(record.epoch, gist(store, record.payload)) for record in found] == RECORDS
        saved = [m for r in found if (m := marks.decode(r.payload)) is not None and m.kind == marks.SAVED]
        assert [mark.fields["history"] for mark in saved] == [HISTORIES[kind]] * 2

    def test_from_a_position_on(self, opened: Opened) -> None:
        store = opened()
        assert [(r.epoch, gist(store, r.payload)) for r in store.read_journal(KEY, 30)] == RECORDS[30:]

    def test_all_that_a_call_carries(self, opened: Opened) -> None:
        store = opened()
        found = {r.position: decode_call(r.payload) for r in store.read_journal(KEY, 0) if r.payload[0] < 128}
        calls = {
            2: keyed_call("order-1", "incr", 1),
            5: driver_call(2, "incr", 20, acked=2),
            7: task_call(2, "incr", 40, attempt=1, acked=2),
            8: method_call(1, "fail", "in a method"),
            19: ref_call(7, "incr", 7),
            25: job_call(1, "incr", 11),
            34: driver_call(14, "ask", 3),
        }
        for position, call in calls.items():
            record = found[position]
            assert (record.head, record.method, record.args) == (call.head, call.method, call.args), position
            assert record.code_version == 7
        method = decode_head(found[8].head)
        assert (method.root_kind, method.retry, method.history, method.attempts) == (2, 2, 1, (0, 3))
        assert method.chain == (second_record_reader.callee_key("golden/other"),)
        assert found[13].args_blob == "call-13-1-1" and found[13].reply_blob == "call-13-1-2"
        assert found[17].values == (ASKED[0],) and found[17].digest == 6256312264924598049
        assert found[35].call_id == RUNNING

    def test_a_second_reader_reads_them_alike(self, opened: Opened) -> None:
        for _, _, payload in opened().read_journal(KEY, 0):
            found = second_record_reader.record(payload)
            mark = marks.decode(payload)
            if mark is not None:
                assert found == {"kind": mark.kind, **mark.fields}
                continue
            ours = decode_call(payload)._asdict()
            if "head" in ours:
                assert found["head"] == tuple(decode_head(ours.pop("head")))
                assert found["head"].call_id == _call_id(found["head"], found.get("args", b""))
            renamed = {"parents": "callers"}
            for name, value in ours.items():
                if value is not None:
                    theirs = found[renamed.get(name, name)]
                    theirs = tuple(theirs) if isinstance(theirs, list) else theirs
                    assert theirs == (value.encode() if name.endswith("_blob") else value), name


def _call_id(head: second_record_reader.Head, args: bytes) -> bytes:
    """The identity of a call, as the page says that it is made."""
    key, parent = second_record_reader.callee_key(KEY), head.parent
    if head.keyed:
        parent = second_record_reader.named(f"order-{ {1: 1, 2: 2, 3: 3, 9: 4}[args[6]] }")
    return second_record_reader.call_id(parent, key, head.n, head.retry)


# -- recovery


class TestRecovery:
    def test_the_actor_goes_on(self, opened: Opened, kind: str) -> None:
        store = opened()
        lives = successor(store, kind)
        lives.start()
        assert state_of(lives) == FINAL
        assert lives.kinds() == ["restored", "hash_seed", "replayed"]
        assert lives.host.seeds_asked == ["1729"]
        (recovery,) = lives.session.status()["recoveries"]
        assert (recovery["snapshot"], recovery["calls_replayed"], recovery["calls_resumed"]) == ("1-4", 12, 1)
        assert recovery["records_void"] == 0 and lives.session.status()["calls"] == 24
        assert lives.session.status()["history_number"] == 1
        assert lives.value_of(driver_call(15, "incr", 9)) == 1330
        lives.start()
        assert state_of(lives) == (1330, *FINAL[1:])
        assert checkpoint.open(store).describe(KEY).failed_recoveries == [], "forgotten by one that succeeds"

    def test_calls_get_the_replies_that_they_got(self, opened: Opened, kind: str) -> None:
        lives = successor(opened(), kind).start()
        replies = {
            keyed_call("order-3", "incr", 3): 258,
            keyed_call("order-4", "incr", 9): 283,
            driver_call(4, "keep", LARGE): LARGE[::-1],
            driver_call(5, "ask", 1): [102],
            ref_call(7, "incr", 7): 266,
            driver_call(8, "keep", LARGE[1:]): LARGE[:0:-1],
            driver_call(9, "incr", 12): 316,
            driver_call(11, "incr", 1000): 1316,
            driver_call(13, "step", 5): 1321,
            driver_call(14, "ask", 3): FINAL[1],
            task_call(2, "incr", 40, attempt=2): 103,
            task_call(3, "incr", 8, attempt=2): 274,
        }
        assert {call: lives.value_of(call) for call in replies} == replies
        errors = [driver_call(6, "fail", LONG), method_call(1, "fail", "in a method")]
        found = [lives.value_of(call) for call in errors]
        assert [type(e) for e in found] == [ValueError] * 2
        assert [str(e) for e in found] == [LONG, "in a method"]
        poisoned = lives.value_of(driver_call(12, "step", 13))
        assert isinstance(poisoned, PoisonCallError) and str(poisoned) == POISONED
        assert state_of(lives) == FINAL, "none of them has run again"

    def test_calls_that_were_refused_are(self, opened: Opened, kind: str) -> None:
        lives = successor(opened(), kind).start()
        refused = {
            keyed_call("order-1", "incr", 1): ReplyExpiredError,
            driver_call(1, "incr", 10): ReplyExpiredError,
            driver_call(3, "roll"): ReplyExpiredError,
            task_call(1, "incr", 30, attempt=2): ReplyExpiredError,
            task_call(1, "incr", 50, attempt=1, task=FORMER_TASK): ReplyExpiredError,
            task_call(1, "incr", 10, attempt=1, task=LATER_TASK): ReplyExpiredError,
            task_call(3, "incr", 8, attempt=1): StaleCallerError,
            keyed_call("order-1", "incr", 77): CallMismatchError,
            driver_call(5, "ask", 77): CallMismatchError,
        }
        assert {call: type(lives.value_of(call)) for call in refused} == refused
        assert state_of(lives) == FINAL

    def test_what_left_nothing_runs(self, opened: Opened, kind: str) -> None:
        """A call that was declared void, and one of a caller that was forgotten with its root."""
        lives = successor(opened(), kind).start()
        assert lives.value_of(driver_call(10, "roll")) == 1321 + 502
        assert lives.value_of(job_call(1, "incr", 11)) == 1321 + 502 + 11

    def test_after_a_new_boot(self, opened: Opened, kind: str) -> None:
        lives = successor(opened(boot=golden.LATER_BOOT), kind).start()
        assert state_of(lives) == FINAL
        lost = [i.message for i in lives.host.incidents if i.kind in ("journal_lost", "journal_note")]
        if kind != "process":
            assert lost == []
            return
        (text,) = lost
        assert "epoch 6 ran with durability='process' until this machine went down" in text
        assert "ends at position 36" in text

    def test_elsewhere_it_has_to_be_taken(self, opened: Opened, kind: str) -> None:
        """Whether its holder still lives cannot be told there."""
        store = opened(boot=None)
        stranger = successor(store, kind)
        stranger.actor, stranger.number = "another", 0
        who = "a Golden in process 8388608 on golden-host, incarnation 9, since 2023"
        with pytest.raises(CheckpointKeyInUseError, match=who):
            stranger.start()
        with pytest.raises(CheckpointKeyInUseError):
            checkpoint.delete(KEY, store=store)
        stranger.start(takeover=True)
        assert state_of(stranger) == FINAL

    def test_from_an_older_snapshot(self, opened: Opened, kind: str) -> None:
        lives = successor(opened(without=("snap-0000000001-000000000004",)), kind).start()
        assert state_of(lives) == FINAL
        (recovery,) = lives.session.status()["recoveries"]
        assert (recovery["snapshot"], recovery["calls_replayed"]) == ("1-3", 14)

    def test_not_from_one_before_a_call_that_no_record_can_repeat(self, opened: Opened, kind: str) -> None:
        gone = tuple(f"snap-0000000001-00000000000{n}" for n in (3, 4))
        with pytest.raises(CheckpointCorruptedError, match="position 11 of the journal is a call that"):
            successor(opened(without=gone), kind).start()

    def test_nor_without_any(self, opened: Opened, kind: str) -> None:
        store = opened(without=("snap-",))
        found = checkpoint.open(store).outcome(KEY, call_key="order-4", codec=CODEC)
        assert found.state == "unknown" and "CheckpointCorruptedError" in found.reason
        with pytest.raises(CheckpointCorruptedError, match="goes on from a snapshot that was durable"):
            successor(store, kind).start()

    def test_without_the_mark_it_would_run_what_is_void(self, opened: Opened, kind: str) -> None:
        """So the mark is what is obeyed."""
        store = opened()
        tail = marks.survey(store.read_journal(KEY, 14), 14, HISTORIES[kind], True)
        assert (tail.last, tail.void, tail.unwritten, tail.calls) == (36, [(28, 28)], None, 14)
        kept = [r for r in store.read_journal(KEY, 14) if r.payload[0] != marks.VOID]
        assert marks.survey(kept, 14, HISTORIES[kind], True).unwritten == (28, 36)


# -- what is noted of deaths


class TestDeaths:
    def test_in_a_call(self, opened: Opened) -> None:
        assert opened().last_running(KEY) == (RUNNING, 1)

    def test_in_recovery(self, opened: Opened, kind: str) -> None:
        noted = watch.decode(opened().read_watch(KEY))
        # Where a note costs a request it covers a part of the journal, and the second one less of it.
        place = (33, 34) if kind == "objects" else (33, 33)
        assert noted == Note(Row(*place, 1, 0), 33, 33)

    def test_of_which_a_new_boot_knows_nothing(self, opened: Opened, kind: str) -> None:
        store = opened(boot=golden.LATER_BOOT)
        if kind == "objects":  # they are of no machine
            assert store.last_running(KEY) == (RUNNING, 1) and store.read_watch(KEY) is not None
        else:
            assert store.last_running(KEY) is None and store.read_watch(KEY) is None

    def test_they_are_counted_on(self, opened: Opened, kind: str) -> None:
        """One more death in that call parks the actor; where notes are coarse, two."""
        lives = successor(opened(), kind)
        traps.add(5)
        try:
            died = _deaths(lives)
        finally:
            traps.discard(5)
        assert died == (2 if kind == "objects" else 1)
        text = r"died 3 times in a row while it ran 'step', call \w+ .* at position 33 of the journal"
        with pytest.raises(CheckpointParkedError, match=text):
            lives.start()
        assert checkpoint.open(lives.store).describe(KEY).state == "parked"


def _deaths(lives: GoldenLives) -> int:
    died = 0
    while True:
        try:
            lives.start()
        except faults.SimulatedCrash:
            died += 1
        except CheckpointParkedError:
            return died
