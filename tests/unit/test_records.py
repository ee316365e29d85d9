"""Call heads and journal records: read as they were written, and refused when they are damaged."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray._core import records
from ftray._core.identity import call_id, derive_callee_key
from ftray._core.records import (
    CallHeadError,
    CallRecord,
    RecordFormatError,
    ReleaseRecord,
    StartRecord,
    ValueRecord,
    decode_head,
    decode_record,
    digest,
    encode_call,
    encode_head,
    encode_release,
    encode_start,
    encode_value,
)

KEY = derive_callee_key("default/counter")
ROOT = bytes(range(16))
NO_ARGS = b"\0\0"
MARK = "b17568a02085f520b7e41e174f0422ad"


def head(**changes: Any) -> bytes:
    parts: dict[str, Any] = {"root_kind": 0, "root": ROOT, "parent": ROOT, "n": 3}
    parts |= changes
    if "call_id" not in parts:
        parts["call_id"] = call_id(parts["parent"], KEY, parts["n"], parts.get("retry", 0))
    return encode_head(**parts)


ids = st.binary(min_size=16, max_size=16)
u16 = st.integers(0, (1 << 16) - 1)
u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
heads = st.builds(
    encode_head,
    root_kind=st.integers(0, 2),
    root=ids,
    parent=ids.filter(any),
    call_id=ids.filter(any),
    n=st.integers(1, (1 << 32) - 1),
    retry=u16,
    acked=u32,
    history=u64,
    attempts=st.lists(u32, max_size=5),
    chain=st.lists(ids, max_size=4),
)


def args_body(deps: list[bytes], args: bytes) -> bytes:
    listed = b"".join(struct.pack("<Q", len(dep)) + dep for dep in deps)
    return struct.pack("<H", len(deps)) + listed + args


bodies = st.builds(args_body, st.lists(st.binary(max_size=40), max_size=3), st.binary(max_size=200))
values = st.lists(st.binary(max_size=50), max_size=3).map(tuple)


# --- heads


def test_a_head_has_the_layout_of_version_1() -> None:
    made = head(retry=2, acked=1, history=9, attempts=[7, 8], chain=[KEY])
    fixed = struct.pack("<BBHIIHH16s16s16sQ", 0, 0, 2, 3, 1, 2, 1, ROOT, ROOT, call_id(ROOT, KEY, 3, 2), 9)
    assert made == fixed + struct.pack("<II", 7, 8) + KEY


@given(
    st.fixed_dictionaries(
        {
            "root_kind": st.integers(0, 2),
            "root": ids,
            "parent": ids.filter(any),
            "call_id": ids.filter(any),
            "n": st.integers(1, (1 << 32) - 1),
            "retry": u16,
            "acked": u32,
            "history": u64,
            "attempts": st.lists(u32, max_size=5).map(tuple),
            "chain": st.lists(ids, max_size=4).map(tuple),
        }
    )
)
def test_a_head_is_read_as_it_was_written(parts: dict[str, Any]) -> None:
    assert decode_head(encode_head(**parts))._asdict() == {**parts, "keyed": False}


def test_a_call_that_was_named_by_a_key_has_no_parent() -> None:
    made = decode_head(head(keyed=True, parent=bytes(16), n=0))
    assert made.keyed and made.n == 0 and not any(made.parent)


@given(heads, st.data())
def test_a_head_that_is_cut_or_too_long_is_refused(made: bytes, data: st.DataObject) -> None:
    with pytest.raises(CallHeadError, match="cut"):
        decode_head(made[: data.draw(st.integers(0, len(made) - 1))])
    with pytest.raises(CallHeadError, match="after its end"):
        decode_head(made + b"x")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"root_kind": 3}, "kind of its root"),
        ({"n": 0}, "numbered from 1"),
        ({"parent": bytes(16)}, "names no caller"),
        ({"call_id": bytes(16)}, "no identity"),
        ({"keyed": True}, "has no parent"),
        ({"keyed": True, "parent": bytes(16), "n": 0, "acked": 1}, "acknowledgement"),
    ],
)
def test_parts_that_make_no_head_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CallHeadError, match=says):
        head(**changes)


@pytest.mark.parametrize(("offset", "byte"), [(0, 3), (1, 2), (1, 0x80)])
def test_a_head_with_unknown_values_is_refused(offset: int, byte: int) -> None:
    made = bytearray(head())
    made[offset] = byte
    with pytest.raises(CallHeadError, match="kind of its root|unknown flags"):
        decode_head(bytes(made))


@pytest.mark.parametrize("name", ["root", "parent", "call_id"])
def test_identities_of_another_length_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        head(**{"call_id": ROOT, name: b"too short"})
    with pytest.raises(ValueError, match="chain"):
        head(chain=["text"])
    with pytest.raises(OverflowError):
        head(call_id=ROOT, n=1 << 32)


# --- digests


def test_the_digest_of_version_1_stays() -> None:
    assert f"{digest('incr', NO_ARGS):016x}" == "642cb0a65d5a17af"
    assert f"{digest('incr', args_body([b'dep'], bytes(range(100)))):016x}" == "9db4ea1e387e8646"


PLACE = 3 * 28
"""Bytes behind the mark that say where an actor is."""


def test_the_digest_does_not_see_where_an_actor_is() -> None:
    """A handle in the arguments of a call is the same in another session, where its actor is elsewhere."""
    mark = bytes.fromhex(MARK)

    def args(place: bytes, *, before: bytes = b"ab", behind: bytes = b"key") -> bytes:
        return NO_ARGS + before + mark + place + behind + mark + place[::-1] + behind

    here, there = bytes(range(PLACE)), bytes(PLACE)
    same = digest("m", args(here))
    assert digest("m", args(there)) == same
    for other in (
        args(here, before=b"ac"),
        args(here, behind=b"kez"),
        args(here) + b"x",
        args(here)[:-1],
        args(here).replace(mark, bytes([*mark[:-1], mark[-1] ^ 1])),
        args(here[:-1]),
    ):
        assert digest("m", other) != same
    # By reference they are compared by value: the same holds there.
    deps = [b"\1\0" + struct.pack("<Q", 16 + PLACE) + mark + place + b"rest" for place in (here, there)]
    assert digest("m", deps[0]) == digest("m", deps[1])
    # A mark with too little behind it is no handle.
    assert digest("m", NO_ARGS + mark + here[:-1]) != digest("m", NO_ARGS + mark + there[:-1])


@given(bodies, bodies)
def test_another_method_or_other_arguments_have_another_digest(one: bytes, other: bytes) -> None:
    assert digest("incr", one) != digest("inc", one)
    assert (digest("incr", one) == digest("incr", other)) == (one == other)


def test_bytes_that_move_between_the_parts_are_seen() -> None:
    seen = {
        digest("ab", args_body([], b"c")),
        digest("a", args_body([], b"bc")),
        digest("abc", args_body([], b"")),
        digest("ab", args_body([b""], b"c")),
        digest("ab", args_body([b"c"], b"")),
        digest("ab", args_body([], b"c\0")),
    }
    assert len(seen) == 6


def test_changed_bits_of_long_arguments_are_seen() -> None:
    body = bytearray(args_body([], bytes(256)))
    seen = {digest("m", bytes(body))}
    for bit in range(16, 8 * len(body)):
        body[bit // 8] ^= 1 << bit % 8
        seen.add(digest("m", bytes(body)))
        body[bit // 8] ^= 1 << bit % 8
    assert len(seen) == 8 * len(body) - 16 + 1


@pytest.mark.parametrize(
    "body", [b"", b"\1", b"\1\0", args_body([b"abc"], b"")[:-1], b"\1\0" + b"\xff" * 8 + b"abc"]
)
def test_what_is_no_args_body_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="args body"):
        digest("m", body)
    with pytest.raises(ValueError, match="args body"):
        encode_start(head(), "m", body, (), code_version=1)


# --- records


def test_a_call_has_the_layout_of_version_1() -> None:
    body = args_body([b"dep"], b"arguments")
    made = encode_call(head(), "incr", body, (b"v1", b""), 1, b"reply", code_version=5)
    fixed = struct.pack("<BBHIQQQIB3xQ", 1, 0, 4, 72, digest("incr", body), 5, len(body), 2, 1, 5)
    listed = struct.pack("<Q2sQ", 2, b"v1", 0)
    assert made == fixed + head() + b"incr" + body + listed + b"reply"


def test_values_and_releases_have_the_layout_of_version_1() -> None:
    assert encode_value(ROOT, 7, b"data") == struct.pack("<BBHI16sQ", 3, 0, 0, 7, ROOT, 4) + b"data"
    assert encode_release([KEY], [ROOT]) == struct.pack("<BBHIII", 4, 0, 0, 1, 1, 0) + KEY + ROOT


texts = st.text(max_size=20)
calls = st.builds(
    encode_call, heads, texts, bodies, values, st.integers(0, 255), st.binary(max_size=80), code_version=u64
)
starts = st.builds(encode_start, heads, texts, bodies, values, code_version=u64)
others = st.one_of(
    st.builds(encode_value, ids, u32, st.binary(max_size=50)),
    st.builds(encode_release, st.lists(ids, max_size=4), st.lists(ids, max_size=4)),
)


@given(heads, texts, bodies, values, st.integers(0, 255), st.binary(max_size=80), u64)
def test_a_call_is_read_as_it_was_written(
    top: bytes, method: str, body: bytes, got: tuple[bytes, ...], status: int, reply: bytes, version: int
) -> None:
    read = decode_record(encode_call(top, method, body, got, status, reply, code_version=version))
    known = digest(method, body)
    assert read == CallRecord(top, known, version, method, body, None, got, status, reply, None)
    begun = decode_record(encode_start(top, method, body, got, code_version=version))
    assert begun == StartRecord(top, known, version, method, body, None, got)


def test_large_bodies_are_named() -> None:
    made = encode_call(
        head(), "m", None, (), 0, None, code_version=1, args_blob="a-1", reply_blob="r-1", digest=77
    )
    read = decode_record(memoryview(made))
    assert read == CallRecord(head(), 77, 1, "m", None, "a-1", (), 0, None, "r-1")
    begun = decode_record(encode_start(head(), "m", None, (), code_version=1, args_blob="a-1", digest=77))
    assert begun == StartRecord(head(), 77, 1, "m", None, "a-1", ())


def test_values_and_releases_are_read_as_they_were_written() -> None:
    assert decode_record(encode_value(ROOT, 7, b"data")) == ValueRecord(ROOT, 7, b"data")
    assert decode_record(encode_release([KEY, ROOT], [])) == ReleaseRecord((KEY, ROOT), ())


@given(st.one_of(calls, starts, others), st.data())
def test_a_record_that_is_cut_or_too_long_is_refused(made: bytes, data: st.DataObject) -> None:
    with pytest.raises(RecordFormatError):
        decode_record(made[: data.draw(st.integers(0, len(made) - 1))])
    with pytest.raises(RecordFormatError):
        decode_record(made + b"x")


@given(st.one_of(calls, starts, others), st.data())
def test_a_damaged_record_is_refused_or_read_whole(made: bytes, data: st.DataObject) -> None:
    """The journal has checksums; here nothing may be read beyond the record, whatever its sizes say."""
    damaged = bytearray(made)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(made) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = decode_record(bytes(damaged))
    except RecordFormatError:
        return
    assert type(read) in (CallRecord, StartRecord, ValueRecord, ReleaseRecord)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (b"", "empty"),
        (b"\x63" + bytes(60), "kind 99"),
        (b"\1\4" + encode_call(head(), "m", NO_ARGS, (), 0, b"", code_version=1)[2:], "unknown flags"),
        (b"\2" + encode_call(head(), "m", NO_ARGS, (), 9, b"", code_version=1)[1:], "has a reply"),
        (encode_call(head(), "m", NO_ARGS, (), 0, b"", code_version=1).replace(b"m\0", b"k\0"), "digest"),
        (encode_release([ROOT], [])[:4] + b"\xff" * 8 + bytes(4) + ROOT, "names 4294967295 callers"),
    ],
)
def test_a_wrong_record_is_refused_with_the_reason(made: bytes, says: str) -> None:
    with pytest.raises(RecordFormatError, match=says):
        decode_record(made)


def test_a_record_of_a_bad_head_is_refused() -> None:
    made = bytearray(encode_call(head(), "m", NO_ARGS, (), 0, b"", code_version=1))
    made[48] = 9
    with pytest.raises(RecordFormatError, match="kind of its root"):
        decode_record(bytes(made))


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"head": b"short"}, CallHeadError, "cut"),
        ({"method": "m" * 70_000}, ValueError, "65535"),
        ({"args": None}, ValueError, "either args"),
        ({"args_blob": "b"}, ValueError, "either args"),
        ({"args": None, "args_blob": "b"}, ValueError, "digest"),
        ({"reply": None}, ValueError, "either reply"),
        ({"status": 256}, ValueError, "status"),
    ],
)
def test_parts_that_make_no_record_are_refused(
    changes: dict[str, Any], error: type[Exception], says: str
) -> None:
    parts: dict[str, Any] = {
        "head": head(),
        "method": "m",
        "args": NO_ARGS,
        "values": (),
        "status": 0,
        "reply": b"",
    }
    with pytest.raises(error, match=says):
        encode_call(**(parts | changes), code_version=1)


def test_every_fault_of_a_head_has_its_words() -> None:
    assert sorted(records.HEAD_FAULTS) == list(range(1, 9))
