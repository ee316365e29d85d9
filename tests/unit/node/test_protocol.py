"""The codec: every frame survives a round trip, any cut of the stream, and no garbage gets through."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray._node import frames as f
from ftray._node.protocol import FRAMES, HEADER, FrameDecoder, Message, ProtocolError, encode

INTEGERS = {"B": 8, "H": 16, "I": 32, "Q": 64}


def values_of(token: str) -> st.SearchStrategy[object]:
    if token in INTEGERS:
        return st.integers(0, 2 ** INTEGERS[token] - 1)
    if token == "i":
        return st.integers(-(2**31), 2**31 - 1)
    if token == "d":
        return st.floats(allow_nan=False)
    if token == "str":
        return st.text(max_size=50)
    if token == "blob":
        return st.binary(max_size=200)
    if token == "amounts":
        return st.lists(st.tuples(st.text(max_size=8), st.floats(allow_nan=False)), max_size=4).map(tuple)
    if token == "ids":
        return st.lists(st.integers(0, 2**64 - 1), max_size=5).map(tuple)
    size = int(token[:-1])
    return st.binary(min_size=size, max_size=size)


def frames_of(kind: type[f.Frame]) -> st.SearchStrategy[f.Frame]:
    return st.tuples(*map(values_of, kind.LAYOUT.split())).map(lambda values: kind(*values))


any_frame = st.sampled_from([FRAMES[number] for number in sorted(FRAMES)]).flatmap(frames_of)
plain_frame = any_frame.filter(lambda frame: not frame.fds_needed())


def test_every_frame_of_the_table_has_its_number() -> None:
    assert {number: kind.__name__ for number, kind in FRAMES.items()}.items() >= {
        (1, "Register"), (2, "Registered"), (10, "LeaseRequest"), (11, "LeaseGrant"), (12, "LeaseReturn"),
        (13, "LeaseReclaim"), (14, "LeaseInfeasible"), (20, "Blocked"), (21, "Unblocked"),
        (30, "ActorCreate"), (31, "ActorSubscribe"), (32, "ActorState"), (33, "ActorKill"),
        (34, "ActorReady"), (35, "ActorStart"), (36, "ActorExit"), (37, "ActorTerminate"),
        (40, "SegReserve"), (41, "SegReserved"), (42, "SegRegister"), (43, "SegRelease"), (44, "SegOpen"),
        (45, "SegFd"), (46, "SegGone"), (47, "SegShrink"), (48, "DeathAck"), (49, "SegUnhold"),
        (50, "WorkerDied"), (51, "WorkerKill"), (52, "Exit"), (54, "SpillAsk"), (55, "SpillOffer"),
        (56, "SpillDone"), (57, "SpillSettled"), (58, "SpillRestore"),
        (59, "SpillRestored"), (60, "Log"), (61, "Warn"),
        (100, "Rpc"), (101, "RpcReply"),
    }  # fmt: skip


def test_layout_of_a_lease_request_byte_by_byte() -> None:
    frame = f.LeaseRequest(7, 3, (("CPU", 1.5),), "", "f", 1, b"{}")
    payload = struct.pack("<QHH H3sd HH1s BI2s", 7, 3, 1, 3, b"CPU", 1.5, 0, 1, b"f", 1, 2, b"{}")
    assert encode(frame, req=9) == struct.pack("<IHHQ", len(payload), 10, 0, 9) + payload


@given(any_frame, st.integers(0, 2**64 - 1), st.integers(0, 2**16 - 1))
def test_round_trip(frame: f.Frame, req: int, flags: int) -> None:
    fds = tuple(range(1000, 1000 + frame.fds_needed()))
    assert FrameDecoder().feed(encode(frame, req, flags), fds) == [Message(frame, req, flags, fds)]


@given(st.lists(plain_frame, max_size=6), st.data())
def test_any_cut_of_the_stream_gives_the_same_frames(sent: list[f.Frame], data: st.DataObject) -> None:
    stream = b"".join(encode(frame, req) for req, frame in enumerate(sent))
    decoder = FrameDecoder()
    received: list[Message] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        received += decoder.feed(stream[:size])
        stream = stream[size:]
    assert received == [Message(frame, req) for req, frame in enumerate(sent)]
    assert decoder.pending_bytes == 0


@given(st.binary(max_size=300))
def test_garbage_is_a_protocol_error_or_an_incomplete_frame(data: bytes) -> None:
    decoder = FrameDecoder(max_payload_bytes=1 << 16)
    try:
        decoder.feed(data)
    except ProtocolError:
        return
    assert decoder.pending_bytes <= len(data)


@settings(max_examples=300)
@given(any_frame, st.data())
def test_a_damaged_frame_decodes_to_something_or_is_refused(frame: f.Frame, data: st.DataObject) -> None:
    stream = bytearray(encode(frame))
    for _ in range(data.draw(st.integers(1, 3))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    try:
        FrameDecoder(max_payload_bytes=1 << 16).feed(bytes(stream))
    except ProtocolError as error:
        assert str(error)


@given(any_frame.filter(lambda frame: bool(frame.payload())), st.data())
def test_a_shortened_payload_is_refused(frame: f.Frame, data: st.DataObject) -> None:
    payload = frame.payload()[: data.draw(st.integers(0, len(frame.payload()) - 1))]
    with pytest.raises(ProtocolError):
        FrameDecoder().feed(HEADER.pack(len(payload), frame.TYPE, 0, 0) + payload, [1000])


def test_too_long_is_refused_before_it_is_buffered() -> None:
    decoder = FrameDecoder(max_payload_bytes=100)
    with pytest.raises(ProtocolError, match="Rpc of 101 bytes; at most 100"):
        decoder.feed(HEADER.pack(101, f.Rpc.TYPE, 0, 0))


def test_unknown_type_and_trailing_bytes_are_refused() -> None:
    with pytest.raises(ProtocolError, match="unknown frame type 999"):
        FrameDecoder().feed(HEADER.pack(0, 999, 0, 0))
    with pytest.raises(ProtocolError, match="3 bytes after the last field"):
        FrameDecoder().feed(HEADER.pack(3, f.Exit.TYPE, 0, 0) + b"abc")


class TestDescriptors:
    def test_a_frame_without_its_descriptor_is_refused(self) -> None:
        with pytest.raises(ProtocolError, match="without its descriptor"):
            FrameDecoder().feed(encode(f.SegRegister(1, 4096)))

    def test_a_descriptor_that_no_frame_asked_for_is_refused_and_handed_back(self) -> None:
        decoder = FrameDecoder()
        with pytest.raises(ProtocolError, match="needs none"):
            decoder.feed(encode(f.Exit()), [1000])
        assert decoder.drop() == [1000]

    def test_one_that_comes_with_the_first_bytes_waits_for_the_rest(self) -> None:
        decoder = FrameDecoder()
        data = encode(f.SegRegister(1, 4096))
        assert decoder.feed(data[:5], [1000]) == []
        assert [m.fds for m in decoder.feed(data[5:])] == [(1000,)]

    def test_they_follow_the_order_of_their_frames(self) -> None:
        decoder = FrameDecoder()
        first, second = encode(f.SegRegister(1, 1)), encode(f.SegRegister(2, 2))
        got = decoder.feed(encode(f.Exit()) + first, [1000]) + decoder.feed(second, [1001])
        assert [m.fds for m in got] == [(), (1000,), (1001,)]

    def test_too_many_are_refused(self) -> None:
        decoder = FrameDecoder()
        with pytest.raises(ProtocolError, match="descriptors"):
            decoder.feed(b"\0", list(range(1000, 1017)))
        assert len(decoder.drop()) == 17

    def test_an_error_in_a_later_frame_hands_back_those_of_earlier_ones(self) -> None:
        decoder = FrameDecoder()
        with pytest.raises(ProtocolError):
            decoder.feed(encode(f.SegRegister(1, 1)) + HEADER.pack(0, 999, 0, 0), [1000])
        assert decoder.drop() == [1000]


def test_text_that_does_not_fit_is_the_senders_error() -> None:
    with pytest.raises(ValueError, match="65535 bytes"):
        encode(f.Warn("x" * 70_000))
