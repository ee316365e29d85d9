"""Block allocator: placement, coalescing, the warm cache, and a state machine against a naive model."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ftray._core.alloc import GRANULE_BYTES, MAX_SEGMENT_BYTES, Allocator
from ftray._core.alloc_audit import validate

OK, NEED_SEGMENT, TRIM_DUE = 0, 1, 2
UNKNOWN_SEGMENT, NOT_ALLOCATED, BAD_SIZE, SEGMENT_EXISTS = -2, -3, -4, -5
KB, MB = 1 << 10, 1 << 20


@dataclass
class Producer:
    """An allocator with a caller that makes every segment it is asked for, as the runtime does."""

    allocator: Allocator = field(default_factory=Allocator)
    made: dict[int, int] = field(default_factory=dict)

    def alloc(self, size: int, now_ms: int = 0) -> tuple[int, int, int]:
        """Return (segment, offset, reserved bytes)."""
        code, block = self.allocator.py_alloc(size, now_ms)
        if code == NEED_SEGMENT:
            seg_id = len(self.made) + 1
            self.made[seg_id] = block["wanted_bytes"]
            added = self.allocator.py_add_segment(seg_id, block["wanted_bytes"], block["dedicated"], now_ms)
            assert added == OK
            code, block = self.allocator.py_alloc(size, now_ms)
        assert code == OK
        validate(self.allocator)
        return block["seg_id"], block["offset"], block["size"]

    def free(self, block: tuple[int, int, int], now_ms: int = 0) -> int:
        code = self.allocator.py_free(block[0], block[1], now_ms)
        validate(self.allocator)
        return code


@pytest.fixture
def producer() -> Producer:
    return Producer()


def test_small_blocks_share_an_arena_without_overlap(producer: Producer) -> None:
    blocks = [producer.alloc(100 * KB + i) for i in range(30)]
    assert {b[0] for b in blocks} == {1}
    ends = sorted((offset, offset + size) for _, offset, size in blocks)
    assert all(a[1] <= b[0] for a, b in pairwise(ends))
    assert all(offset % 64 == 0 and size >= 100 * KB for _, offset, size in blocks)


def test_arenas_grow_fourfold_up_to_the_maximum(producer: Producer) -> None:
    for _ in range(400):
        producer.alloc(MB)
    sizes = list(producer.made.values())
    assert sizes[:3] == [4 * MB, 16 * MB, 64 * MB]
    assert set(sizes[3:]) == {64 * MB}


def test_a_first_block_as_large_as_an_arena_leaves_room_for_more(producer: Producer) -> None:
    producer.alloc(4 * MB)
    assert producer.made == {1: 16 * MB}


def test_freeing_in_any_order_coalesces_to_one_block(producer: Producer) -> None:
    blocks = [producer.alloc(200 * KB) for _ in range(20)]
    assert set(producer.made.values()) == {4 * MB}
    for block in blocks[::2] + blocks[1::2]:
        assert producer.free(block) == OK
    stats = producer.allocator.py_stats()
    assert (stats["blocks"], stats["live_bytes"], stats["cached_bytes"]) == (0, 0, 4 * MB)
    assert producer.alloc(4 * MB)[:2] == (1, 0)


def test_same_size_reuses_the_hole_it_left(producer: Producer) -> None:
    blocks = [producer.alloc(333_333) for _ in range(5)]
    producer.free(blocks[2])
    assert producer.alloc(333_333) == blocks[2]
    assert len(producer.made) == 1


@pytest.mark.parametrize(
    "size", [1, 4096, 4097, 100 * KB + 1, 777_777, MB, 4 * MB, 4 * MB + 1, 100 * MB, 10**9]
)
def test_rounding_wastes_little(producer: Producer, size: int) -> None:
    _, _, reserved = producer.alloc(size)
    assert size <= reserved
    limit = max(GRANULE_BYTES + size // 32, 2 * MB + size // 8 if size > 4 * MB else 0)
    assert reserved - size <= limit


def test_put_loop_that_frees_the_old_object_late_alternates_between_two_warm_segments(
    producer: Producer,
) -> None:
    previous = producer.alloc(1000 * MB)
    for i in range(20):
        block = producer.alloc(1000 * MB - i)
        assert producer.free(previous) == OK
        previous = block
    assert len(producer.made) == 2
    assert producer.allocator.py_trim(0) == []


def test_a_warm_segment_is_not_wasted_on_a_much_smaller_object(producer: Producer) -> None:
    producer.free(producer.alloc(100 * MB))
    assert producer.alloc(20 * MB)[0] == 2
    assert producer.alloc(60 * MB)[0] == 1


def test_best_fit_among_warm_segments(producer: Producer) -> None:
    blocks = [producer.alloc(size * MB) for size in (40, 28, 32)]
    for block in blocks:
        producer.free(block)
    assert producer.alloc(25 * MB)[0] == blocks[1][0]
    assert producer.alloc(25 * MB)[0] == blocks[2][0]


def test_over_the_limit_the_oldest_go_and_the_newest_stays() -> None:
    producer = Producer(Allocator(warm_limit_bytes=100 * MB))
    blocks = [producer.alloc(80 * MB) for _ in range(4)]
    codes = [producer.free(block, now_ms=i) for i, block in enumerate(blocks)]
    assert codes == [OK, OK, TRIM_DUE, TRIM_DUE]
    assert producer.allocator.py_trim(4) == [1, 2]
    validate(producer.allocator)
    assert producer.allocator.py_stats()["cached_segments"] == 2
    huge = producer.alloc(1000 * MB)
    assert producer.free(huge, now_ms=5) == TRIM_DUE
    assert producer.allocator.py_trim(5) == [3, 4]
    assert producer.alloc(1000 * MB) == huge


def test_idle_segments_are_given_back_when_their_time_is_up(producer: Producer) -> None:
    assert producer.allocator.py_next_trim_ms() == -1
    small, big = producer.alloc(MB), producer.alloc(50 * MB)
    producer.free(small, now_ms=1000)
    producer.free(big, now_ms=3000)
    assert producer.allocator.py_next_trim_ms() == 11_000
    assert producer.allocator.py_trim(10_999) == []
    assert producer.allocator.py_trim(11_000) == [1]
    assert producer.allocator.py_next_trim_ms() == 13_000
    assert producer.allocator.py_trim(20_000) == [2]
    assert producer.allocator.py_free(*small[:2]) == UNKNOWN_SEGMENT
    assert set(producer.allocator.py_stats().values()) == {0, 1, 2}  # only the three event counters are left


def test_a_clock_that_steps_back_keeps_the_idle_list_in_order(producer: Producer) -> None:
    first, second = producer.alloc(50 * MB), producer.alloc(50 * MB)
    producer.free(first, now_ms=5000)
    producer.free(second, now_ms=10)
    assert producer.allocator.py_trim(15_000) == [1, 2]


def test_shrink_drops_everything_empty_and_nothing_else(producer: Producer) -> None:
    kept, gone = producer.alloc(MB), producer.alloc(50 * MB)
    producer.free(gone)
    assert producer.allocator.py_trim(0, everything=True) == [gone[0]]
    validate(producer.allocator)
    assert producer.allocator.py_block_size(*kept[:2]) == kept[2]
    assert producer.allocator.py_trim(0, everything=True) == []


def test_a_smaller_segment_than_wanted_still_serves() -> None:
    for size in (300 * KB, 5 * MB, 77_777_777):
        allocator = Allocator()
        code, block = allocator.py_alloc(size)
        assert code == NEED_SEGMENT and size <= block["minimum_bytes"] <= block["wanted_bytes"]
        assert allocator.py_add_segment(9, block["minimum_bytes"], block["dedicated"]) == OK
        assert allocator.py_alloc(size)[0] == OK
        validate(allocator)


def test_bad_frees_are_codes_and_counted(producer: Producer) -> None:
    block = producer.alloc(MB)
    seg_id, offset, _ = producer.alloc(MB)
    assert producer.allocator.py_free(99, 0) == UNKNOWN_SEGMENT
    assert producer.allocator.py_free(seg_id, offset + 64) == NOT_ALLOCATED
    assert producer.allocator.py_free(seg_id, offset + GRANULE_BYTES) == NOT_ALLOCATED
    assert producer.allocator.py_free(seg_id, 1 << 60) == NOT_ALLOCATED
    assert producer.free(block) == OK
    assert producer.free(block) == NOT_ALLOCATED
    assert producer.allocator.py_stats()["bad_frees"] == 5
    assert producer.allocator.py_block_size(seg_id, offset) == MB


def test_bad_sizes_and_segments_are_refused(producer: Producer) -> None:
    allocator = producer.allocator
    assert allocator.py_alloc(0)[0] == BAD_SIZE
    assert allocator.py_alloc(MAX_SEGMENT_BYTES + 1)[0] == BAD_SIZE
    assert allocator.py_alloc(MAX_SEGMENT_BYTES)[0] == NEED_SEGMENT
    assert allocator.py_add_segment(1, 0, False) == BAD_SIZE
    assert allocator.py_add_segment(1, GRANULE_BYTES + 1, False) == BAD_SIZE
    assert allocator.py_add_segment(1, MB, False) == OK
    assert allocator.py_add_segment(1, MB, True) == SEGMENT_EXISTS
    validate(allocator)


def test_the_validator_notices_a_broken_table(producer: Producer) -> None:
    seg_id, _, _ = producer.alloc(MB)
    producer.allocator.py_corrupt_for_test(seg_id)
    with pytest.raises(AssertionError, match="invariant 1 is broken: runs of a segment cover it"):
        validate(producer.allocator)


class AgainstModel(RuleBasedStateMachine):
    """Every answer is checked against a list of live blocks; a segment may be refused or made smaller."""

    def __init__(self) -> None:
        super().__init__()
        self.allocator = Allocator(
            warm_limit_bytes=20 * MB, idle_ms=100, arena_first_bytes=MB, arena_max_bytes=8 * MB
        )
        self.now_ms = 0
        self.next_id = 1
        self.sizes: dict[int, int] = {}
        self.dedicated: dict[int, bool] = {}
        self.blocks: dict[tuple[int, int], int] = {}

    @rule(
        size=st.one_of(st.integers(1, 2 * MB), st.integers(4 * MB - 2, 30 * MB)), grant=st.sampled_from("wmn")
    )
    def alloc(self, size: int, grant: str) -> None:
        code, block = self.allocator.py_alloc(size, self.now_ms)
        if code == NEED_SEGMENT:
            assert block["dedicated"] == (size > 4 * MB)
            if grant == "n":
                return
            made = block["wanted_bytes" if grant == "w" else "minimum_bytes"]
            self.sizes[self.next_id] = made
            self.dedicated[self.next_id] = block["dedicated"]
            assert self.allocator.py_add_segment(self.next_id, made, block["dedicated"], self.now_ms) == OK
            self.next_id += 1
            code, block = self.allocator.py_alloc(size, self.now_ms)
        assert code == OK
        seg_id, start, end = block["seg_id"], block["offset"], block["offset"] + block["size"]
        assert start % 64 == 0 and end - start >= size and end <= self.sizes[seg_id]
        assert self.dedicated[seg_id] == (size > 4 * MB)
        for (other, offset), length in self.blocks.items():
            assert other != seg_id or end <= offset or offset + length <= start
        self.blocks[seg_id, start] = end - start

    @precondition(lambda self: self.blocks)
    @rule(data=st.data(), twice=st.booleans())
    def free(self, data: st.DataObject, twice: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.blocks)))
        assert self.allocator.py_free(*key, self.now_ms) in (OK, TRIM_DUE)
        del self.blocks[key]
        if twice:
            assert self.allocator.py_free(*key, self.now_ms) == NOT_ALLOCATED

    @rule(step_ms=st.integers(0, 80), everything=st.sampled_from([False, False, False, True]))
    def trim(self, step_ms: int, everything: bool) -> None:
        self.now_ms += step_ms
        used = {seg_id for seg_id, _ in self.blocks}
        for seg_id in self.allocator.py_trim(self.now_ms, everything=everything):
            assert seg_id not in used
            del self.sizes[seg_id]
        if everything:
            assert set(self.sizes) == used

    @invariant()
    def conserves(self) -> None:
        validate(self.allocator)
        stats = self.allocator.py_stats()
        used = {seg_id for seg_id, _ in self.blocks}
        assert stats["segments"] == len(self.sizes) and stats["segment_bytes"] == sum(self.sizes.values())
        assert stats["blocks"] == len(self.blocks) and stats["live_bytes"] == sum(self.blocks.values())
        assert stats["cached_bytes"] == sum(size for seg_id, size in self.sizes.items() if seg_id not in used)

    def teardown(self) -> None:
        for key in self.blocks:
            assert self.allocator.py_free(*key, self.now_ms) in (OK, TRIM_DUE)
        self.blocks.clear()
        assert self.allocator.py_stats()["cached_bytes"] == sum(self.sizes.values())
        assert sorted(self.allocator.py_trim(self.now_ms, everything=True)) == sorted(self.sizes)
        self.sizes.clear()
        self.conserves()


AgainstModel.TestCase.settings = settings(max_examples=60, stateful_step_count=50)
TestAgainstModel = AgainstModel.TestCase
