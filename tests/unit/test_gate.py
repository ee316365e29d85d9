"""The gate: the record before the ledger, and a journal that brings back the same ledger."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray._core.gate import Gate, NullJournal, Outcome, Verdict, churn
from ftray._core.identity import call_id, derive_callee_key
from ftray._core.records import (
    CallHeadError,
    CallRecord,
    ReleaseRecord,
    StartRecord,
    ValueRecord,
    decode_record,
    digest,
    encode_head,
)

KEY = derive_callee_key("default/counter")
ROOT = call_id(bytes(16), derive_callee_key("root"), 0, 0)
TASK = call_id(ROOT, KEY, 1, 0)
NO_ARGS = b"\0\0"


class ListJournal:
    """Keeps its records; fails when told to."""

    def __init__(self) -> None:
        self.payloads: list[bytes] = []
        self.error: BaseException | None = None

    def append(self, payload: bytes) -> int:
        if self.error is not None:
            raise self.error
        self.payloads.append(payload)
        return len(self.payloads)

    @property
    def records(self) -> list[CallRecord | StartRecord | ValueRecord | ReleaseRecord]:
        return [decode_record(payload) for payload in self.payloads]


def head(parent: bytes = TASK, n: int = 1, **changes: Any) -> bytes:
    parts: dict[str, Any] = {"root_kind": 0, "root": ROOT, "parent": parent, "n": n, "attempts": (0,)}
    return encode_head(**parts | {"call_id": call_id(parent, KEY, n, 0)} | changes)


def gate_of(journal: Any, **options: Any) -> Gate:
    return Gate(journal, KEY, 1, 77, **options)


def body(deps: list[bytes], args: bytes) -> bytes:
    listed = b"".join(struct.pack("<Q", len(dep)) + dep for dep in deps)
    return struct.pack("<H", len(deps)) + listed + args


def test_a_call_from_admission_to_its_recorded_reply() -> None:
    journal = ListJournal()
    gate = gate_of(journal)
    args = body([b"by value"], b"arguments")

    assert gate.admit(head(), "incr", args, True) == Verdict(Outcome.NEW, 0, None, 0)
    assert gate.admit(head(), "incr", args, True).outcome == Outcome.IN_PROGRESS
    assert gate.finish(head(), "incr", args, [b"v0"], 1, b"reply") == 1
    assert gate.admit(head(), "incr", args, True) == Verdict(Outcome.RECORDED, 1, b"reply", 1)
    assert gate.admit(head(), "incr", NO_ARGS, True).outcome == Outcome.MISMATCH
    assert gate.admit(head(), "decr", args, True).outcome == Outcome.MISMATCH

    known = digest("incr", args)
    assert journal.records == [CallRecord(head(), known, 77, "incr", args, None, (b"v0",), 1, b"reply", None)]


def test_a_call_that_sends_is_recorded_before() -> None:
    journal = ListJournal()
    gate = gate_of(journal)
    gate.admit(head(), "incr", NO_ARGS, True)
    assert gate.start(head(), "incr", NO_ARGS, [b"v0"]) == 1
    assert gate.value(call_id(TASK, KEY, 1, 0), 1, b"v1") == 2
    assert gate.finish(head(), "incr", NO_ARGS, [b"v0", b"v1"], 0, b"") == 3
    known = digest("incr", NO_ARGS)
    assert journal.records == [
        StartRecord(head(), known, 77, "incr", NO_ARGS, None, (b"v0",)),
        ValueRecord(call_id(TASK, KEY, 1, 0), 1, b"v1"),
        CallRecord(head(), known, 77, "incr", NO_ARGS, None, (b"v0", b"v1"), 0, b"", None),
    ]


def test_a_record_that_the_journal_refuses_leaves_the_call_under_way() -> None:
    journal = ListJournal()
    gate = gate_of(journal)
    gate.admit(head(), "incr", NO_ARGS, True)
    journal.error = OSError("the medium failed")
    with pytest.raises(OSError, match="medium"):
        gate.finish(head(), "incr", NO_ARGS, (), 0, b"reply")
    with pytest.raises(OSError, match="medium"):
        gate.start(head(), "incr", NO_ARGS, ())
    assert gate.admit(head(), "incr", NO_ARGS, True).outcome == Outcome.IN_PROGRESS
    with pytest.raises(OSError, match="medium"):
        gate.release([TASK], [])
    assert gate.ledger.knows_caller(TASK)
    journal.error = None
    assert gate.finish(head(), "incr", NO_ARGS, (), 0, b"reply") == 1


def test_what_was_not_accepted_is_not_recorded() -> None:
    journal = ListJournal()
    gate = gate_of(journal)
    for use in (
        lambda: gate.finish(head(), "incr", NO_ARGS, (), 0, b""),
        lambda: gate.start(head(), "incr", NO_ARGS, ()),
        lambda: gate.forget(head()),
    ):
        with pytest.raises(LookupError, match="not under way"):
            use()
    gate.admit(head(), "incr", NO_ARGS, True)
    gate.finish(head(), "incr", NO_ARGS, (), 0, b"")
    with pytest.raises(LookupError, match="not under way"):
        gate.finish(head(), "incr", NO_ARGS, (), 0, b"")
    assert len(journal.payloads) == 1


def test_a_call_that_did_not_run_may_come_again() -> None:
    journal = ListJournal()
    gate = gate_of(journal)
    gate.admit(head(), "incr", NO_ARGS, True)
    gate.forget(head())
    assert gate.admit(head(), "decr", NO_ARGS, True).outcome == Outcome.NEW
    assert journal.payloads == []


def test_a_read_is_neither_entered_nor_recorded() -> None:
    gate = gate_of(ListJournal())
    assert gate.admit(head(chain=[KEY]), "value", NO_ARGS, False).outcome == Outcome.NEW
    assert gate.admit(head(history=9), "value", NO_ARGS, False).outcome == Outcome.ROLLED_BACK
    assert len(gate.ledger) == 0


def test_releases_are_recorded_when_there_is_something_to_release() -> None:
    journal = ListJournal()
    gate = gate_of(journal)
    gate.admit(head(), "incr", NO_ARGS, True)
    gate.finish(head(), "incr", NO_ARGS, (), 0, b"")
    gate.release([ROOT], [TASK])  # neither a caller nor a root that is known
    assert len(journal.payloads) == 1
    gate.release([TASK, ROOT], [ROOT, TASK])
    assert journal.records[1] == ReleaseRecord((TASK,), (ROOT,))
    assert not gate.ledger.knows_caller(TASK)
    with pytest.raises(ValueError, match="16 bytes"):
        gate.release([b"short"], [])


def test_large_arguments_and_replies_go_as_blobs_before_the_record_that_names_them() -> None:
    journal = ListJournal()
    blobs: dict[str, bytes] = {}

    def put_blob(content: bytes) -> str:
        blobs[f"blob-{len(blobs)}-{len(journal.payloads)}"] = content
        return list(blobs)[-1]

    gate = gate_of(journal, put_blob=put_blob, blob_bytes=100)
    args = body([bytes(60)], b"a" * 60)
    gate.admit(head(), "incr", args, True)
    gate.start(head(), "incr", args, ())
    gate.finish(head(), "incr", args, (), 0, b"r" * 200)
    assert blobs == {"blob-0-0": args, "blob-1-1": b"r" * 200}
    known = digest("incr", args)
    assert journal.records == [
        StartRecord(head(), known, 77, "incr", None, "blob-0-0", ()),
        CallRecord(head(), known, 77, "incr", None, "blob-0-0", (), 0, None, "blob-1-1"),
    ]
    assert gate.admit(head(), "incr", args, True).reply == b"r" * 200

    again = gate_of(ListJournal())
    again.replayed(journal.records[0])
    with pytest.raises(ValueError, match="blob-1-1"):
        again.replayed(journal.records[1])
    again.replayed(decode_record(journal.payloads[1])._replace(reply=blobs["blob-1-1"]))  # type: ignore[call-arg]
    assert again.admit(head(), "incr", args, True).reply == b"r" * 200


def test_without_a_place_for_blobs_everything_is_in_the_record() -> None:
    journal = ListJournal()
    gate = gate_of(journal)
    args = body([], bytes(200_000))
    gate.admit(head(), "incr", args, True)
    gate.finish(head(), "incr", args, (), 0, bytes(100_000))
    (record,) = journal.records
    assert isinstance(record, CallRecord) and record.args == args and record.reply == bytes(100_000)


def test_a_blob_that_cannot_be_written_leaves_the_call_under_way() -> None:
    def put_blob(content: bytes) -> str:
        raise OSError("no space")

    journal = ListJournal()
    gate = gate_of(journal, put_blob=put_blob, blob_bytes=10)
    gate.admit(head(), "incr", NO_ARGS, True)
    with pytest.raises(OSError, match="no space"):
        gate.finish(head(), "incr", NO_ARGS, (), 0, bytes(11))
    assert gate.admit(head(), "incr", NO_ARGS, True).outcome == Outcome.IN_PROGRESS
    assert journal.payloads == []


steps = st.lists(
    st.tuples(
        st.sampled_from(["call", "start", "release"]),
        st.sampled_from([ROOT, TASK]),
        st.integers(1, 6),
        st.integers(0, 4),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(steps, st.data())
def test_a_journal_brings_back_what_it_recorded(
    done: list[tuple[str, bytes, int, int]], data: st.DataObject
) -> None:
    """From its beginning, or from a snapshot taken anywhere and the records behind it."""
    journal = ListJournal()
    gate = gate_of(journal)
    dumps = [(gate.ledger.dump(), 0)]
    for kind, parent, n, behind in done:
        call = head(parent, n, acked=max(0, n - behind))
        if kind == "release":
            gate.release([parent], [])
        elif gate.admit(call, "incr", NO_ARGS, True).outcome == Outcome.NEW:
            if kind == "start":
                gate.start(call, "incr", NO_ARGS, ())
            gate.finish(call, "incr", NO_ARGS, (), 0, b"%d" % n)
        dumps.append((gate.ledger.dump(), len(journal.payloads)))

    dump, position = data.draw(st.sampled_from(dumps))
    again = gate_of(ListJournal())
    again.ledger.load(dump)
    for record in journal.records[position:]:
        position += 1
        again.replayed(record, position)
    for parent in (ROOT, TASK):
        for n in range(1, 7):
            want = gate.admit(head(parent, n), "incr", NO_ARGS, True)
            got = again.admit(head(parent, n), "incr", NO_ARGS, True)
            # Admissions without a record are not brought back: what they acknowledged is, by a later one.
            assert got == want or (parent == ROOT and want.outcome == Outcome.EXPIRED)


def test_what_is_replayed_is_a_record() -> None:
    gate = gate_of(ListJournal())
    with pytest.raises(TypeError, match="decoded record"):
        gate.replayed(b"bytes")  # type: ignore[arg-type]
    gate.replayed(ValueRecord(TASK, 0, b""))
    assert len(gate.ledger) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ((b"short", "m", NO_ARGS), CallHeadError, "cut"),
        ((head(), "m", b""), ValueError, "args body"),
        ((head(), "m", b"\1\0short"), ValueError, "args body"),
        ((head(), "m" * 70_000, NO_ARGS), ValueError, "65535"),
    ],
)
def test_wrong_calls_are_refused(arguments: Any, error: type[Exception], says: str) -> None:
    gate = gate_of(ListJournal())
    with pytest.raises(error, match=says):
        gate.admit(*arguments, True)
        gate.finish(*arguments, (), 0, b"")


def test_a_journal_that_gives_no_position_is_refused() -> None:
    class Broken:
        def append(self, payload: bytes) -> int:
            return 0

    gate = gate_of(Broken())
    gate.admit(head(), "incr", NO_ARGS, True)
    with pytest.raises(ValueError, match="position 0"):
        gate.finish(head(), "incr", NO_ARGS, (), 0, b"")


def test_wrong_parameters_are_refused() -> None:
    with pytest.raises(AttributeError, match="append"):
        gate_of(object())
    with pytest.raises(ValueError, match="16 bytes"):
        Gate(ListJournal(), b"short", 1, 1)
    with pytest.raises(OverflowError):
        Gate(ListJournal(), KEY, -1, 1)


def test_a_gate_is_full_beyond_the_bound() -> None:
    class Slow(ListJournal):
        waiting_bytes = 60

    gate = gate_of(Slow(), most_waiting=100)
    assert not gate.full
    gate.blobs_wait(40)
    assert not gate.full, "as much as the bound may wait"
    gate.blobs_wait(1)
    assert gate.full and gate.blobs_waiting == 41
    assert gate.admit(head(), "incr", NO_ARGS, True).outcome == Outcome.NEW, "who starts calls looks at it"
    gate.blobs_wait(-41)
    assert not gate.full
    quick = gate_of(NullJournal(), most_waiting=0)
    churn(quick, 10, 3, 7, 100, False)
    assert not quick.full


def test_a_gate_in_the_c_path_does_what_one_in_python_does() -> None:
    plain, quick = gate_of(ListJournal()), gate_of(NullJournal())
    churn(plain, 60, 3, 7, 100, False)
    churn(quick, 60, 3, 7, 100, False)
    assert plain.ledger.dump() == quick.ledger.dump()
    assert quick.journal.append(b"") == 61


def test_a_call_without_refs_is_the_same_from_c_and_from_python() -> None:
    """From C its argument bytes come alone, from Python behind a count of no refs."""
    journal = ListJournal()
    gate = gate_of(journal)
    churn(gate, 1, 1, 2, 100, False)
    (record,) = journal.records
    assert isinstance(record, CallRecord)
    assert record.args == NO_ARGS + bytes(100)
    assert gate.admit(record.head, "incr", record.args, True) == Verdict(Outcome.RECORDED, 0, b"reply", 1)
