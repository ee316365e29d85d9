from typing import TypedDict, type_check_only

from typing_extensions import Self

GRANULE_BYTES: int
MAX_SEGMENT_BYTES: int

@type_check_only
class BlockFields(TypedDict):
    seg_id: int
    offset: int
    size: int
    wanted_bytes: int
    minimum_bytes: int
    dedicated: bool

@type_check_only
class AllocStatsFields(TypedDict):
    segments: int
    blocks: int
    segment_bytes: int
    live_bytes: int
    cached_segments: int
    cached_bytes: int
    bad_frees: int
    warm_hits: int
    segments_asked: int

class Allocator:
    arena_block_max_bytes: int
    arena_first_bytes: int
    arena_max_bytes: int
    warm_limit_bytes: int
    idle_ms: int
    def __new__(
        cls,
        *,
        arena_block_max_bytes: int = ...,
        arena_first_bytes: int = ...,
        arena_max_bytes: int = ...,
        warm_limit_bytes: int = ...,
        idle_ms: int = ...,
    ) -> Self: ...
    def py_alloc(self, size: int, now_ms: int = 0) -> tuple[int, BlockFields]: ...
    def py_add_segment(self, seg_id: int, size: int, dedicated: bool, now_ms: int = 0) -> int: ...
    def py_free(self, seg_id: int, offset: int, now_ms: int = 0) -> int: ...
    def py_trim(self, now_ms: int, *, everything: bool = False) -> list[int]: ...
    def py_block_size(self, seg_id: int, offset: int) -> int: ...
    def py_next_trim_ms(self) -> int: ...
    def py_stats(self) -> AllocStatsFields: ...
    def py_corrupt_for_test(self, seg_id: int) -> None: ...
