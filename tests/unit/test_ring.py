"""The byte ring: first in, first out across the wrap, full rings, corrupt indices, a producer killed."""

from __future__ import annotations

import os
import random
import signal
import struct
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ftray._core.ring import RingPair

CAPACITY = 4096


class Fifo(RuleBasedStateMachine):
    """A ring holds what a list of bytes would hold, up to its capacity."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = RingPair(CAPACITY)
        self.inside = b""
        self.written = 0
        self.waits = False

    def fresh(self, size: int) -> bytes:
        """Bytes that differ from those around them, so that a shift is noticed."""
        return bytes((self.written + i) * 131 % 251 for i in range(size))

    @rule(size=st.one_of(st.integers(0, 40), st.integers(0, CAPACITY + 1), st.just(CAPACITY)))
    def write(self, size: int) -> None:
        frame = self.fresh(size)
        fits = len(self.inside) + size <= CAPACITY
        assert self.ring.write(frame) is fits
        if fits:
            self.inside += frame
            self.written += size
        else:
            self.waits = True

    @rule(size=st.one_of(st.integers(0, 40), st.integers(0, CAPACITY * 2)))
    def read(self, size: int) -> None:
        # A consumer looks at the producer's index when it has used up what it had seen, so one read may give
        # less.
        taken = self.ring.read(size)
        if self.inside and size:
            assert taken
        assert taken == self.inside[: len(taken)] and len(taken) <= size
        self.inside = self.inside[len(taken) :]

    @rule()
    def bell(self) -> None:
        """The producer is rung exactly if a frame of its did not fit since the last time."""
        assert self.ring.bell() is self.waits
        self.waits = False

    @invariant()
    def room_is_what_the_consumer_left(self) -> None:
        assert len(self.inside) <= CAPACITY

    def teardown(self) -> None:
        while self.inside:
            self.read(CAPACITY)
        assert self.ring.read(CAPACITY) == b""


TestFifo = Fifo.TestCase
TestFifo.settings = settings(max_examples=100, stateful_step_count=60)


def test_every_offset_of_the_wrap() -> None:
    """A frame is one contiguous span wherever it begins."""
    ring = RingPair(CAPACITY)
    frame = bytes(i * 7 % 256 for i in range(97))
    for _ in range(2 * CAPACITY):  # 97 and 4096 have no common factor: every offset, twice
        assert ring.write(frame)
        assert ring.read(CAPACITY) == frame


def test_a_full_ring_takes_no_byte_more_until_there_is_room() -> None:
    ring = RingPair(CAPACITY)
    assert ring.write(b"a" * CAPACITY) and not ring.bell()
    assert not ring.write(b"b") and ring.bell() and not ring.bell()
    assert ring.read(1) == b"a"
    assert ring.write(b"b") and not ring.write(b"c")
    assert ring.read(CAPACITY) == b"a" * (CAPACITY - 1)
    assert ring.read(CAPACITY) == b"b"


@settings(max_examples=300)
@given(
    st.integers(0, 2 * CAPACITY),
    st.one_of(st.integers(0, 3 * CAPACITY), st.integers(0, 2**64 - 1), st.sampled_from([2**63, 2**64 - 1])),
)
def test_an_index_that_cannot_be_is_noticed_and_nothing_is_read(moved: int, head: int) -> None:
    ring = RingPair(CAPACITY)
    left = moved
    while left:
        size = min(left, CAPACITY)
        assert ring.write(bytes(size))
        assert len(ring.read(size)) == size
        left -= size
    ring.corrupt_head(head)
    claimed = (head - moved) % 2**64
    if claimed > CAPACITY:
        for _ in range(2):  # and it stays so
            with pytest.raises(ValueError, match="corrupt"):
                ring.read(1)
    else:
        assert len(ring.read(CAPACITY)) == claimed  # in range: the frames' own checks have to find it


@pytest.mark.parametrize("capacity", [0, 1, 2048, 4095, 4097, 3 * 4096, 2**62])
def test_impossible_capacities_are_refused(capacity: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        RingPair(capacity)
    assert len(os.listdir("/proc/self/fd")) == before


def test_pairs_leave_no_descriptor_and_no_mapping() -> None:
    def held() -> tuple[int, int]:
        """Descriptors, and mapped bytes (the kernel joins neighbours: the number of mappings says little)."""
        with open("/proc/self/maps") as maps:
            ranges = [line.split()[0].split("-") for line in maps if "ftray-ring" in line]
        return len(os.listdir("/proc/self/fd")), sum(int(end, 16) - int(start, 16) for start, end in ranges)

    before = held()
    pairs = [RingPair(CAPACITY) for _ in range(20)]
    each = 2 * 2 * (4096 + 2 * CAPACITY)  # both ends map both rings: a header, and the data twice in a row
    assert held() == (before[0] + 20, before[1] + 20 * each)
    del pairs
    assert held() == before


# --- a producer in another process --------------------------------------------------------------------------

HEADER = struct.Struct("<III")  # size of the payload, number, checksum


def produce(ring: RingPair, dice: random.Random) -> None:
    """Write frames for ever."""
    number = 0
    while True:
        payload = dice.randbytes(dice.choice([0, 1, 50, 1000, CAPACITY // 2]))
        frame = HEADER.pack(len(payload), number, zlib.crc32(payload)) + payload
        while not ring.write(frame):
            os.sched_yield()
        number += 1


def start_producer(ring: RingPair, seed: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            produce(ring, random.Random(seed))
        finally:
            os._exit(1)
    return pid


def whole_frames(data: bytes) -> int:
    """The number of frames; fails if anything is not as it was written."""
    at = number = 0
    while at < len(data):
        assert len(data) - at >= HEADER.size, "half a header"
        size, found, checksum = HEADER.unpack_from(data, at)
        payload = data[at + HEADER.size : at + HEADER.size + size]
        assert len(payload) == size, "half a frame"
        assert found == number and zlib.crc32(payload) == checksum
        at += HEADER.size + size
        number += 1
    return number


@pytest.mark.parametrize("seed", range(30))
def test_a_producer_killed_at_any_moment_leaves_only_whole_frames(seed: int) -> None:
    print(f"seed {seed}")
    dice = random.Random(seed)
    ring = RingPair(CAPACITY)
    wanted = dice.choice([0, 1, 1000, 100_000, 500_000])
    data = bytearray()
    producer = start_producer(ring, seed)
    try:
        while len(data) < wanted:
            data += ring.read(dice.randint(1, CAPACITY))
    finally:
        os.kill(producer, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(producer, 0)[1]) == -signal.SIGKILL
    while chunk := ring.read(CAPACITY):  # what it had published can be read after its death
        data += chunk
    assert len(data) >= wanted
    assert whole_frames(bytes(data)) > 0 or not data
