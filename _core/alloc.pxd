"""Contract of the block allocator: which bytes of which own segment an object gets (decision only).

No syscalls, clock, threads or Python objects: time is an argument, segments are made and destroyed by the caller
on this module's word. Every method is `noexcept nogil`, returns a code and is serialised by the caller's lock.

    code = a.alloc(size, now_ms, &block)
    ALLOC_NEED_SEGMENT: make a segment of block.wanted_bytes (or, when so much cannot be had, anything down to
        block.minimum_bytes), `add_segment(id, bytes_made, block.dedicated)`, and call `alloc` again under the same
        lock (in between it is an idle segment, which `trim_all` would drop)
    code = a.free_block(seg_id, offset, now_ms)
    ALLOC_TRIM_DUE: freed, and the warm cache is over its limit: call `trim`
    a.trim(now_ms, &seg_ids): the segments in it are forgotten here; the caller destroys each of them
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector


cdef extern from *:
    """
    #include <unordered_map>
    #include <cstdint>
    template <class M> static inline uint32_t ft_get(const M& m, uint64_t k) noexcept {
        auto it = m.find(k); return it == m.end() ? UINT32_MAX : it->second;
    }
    static inline int ft_highest(uint32_t x) noexcept { return 31 - __builtin_clz(x); }
    """
    uint32_t table_get "ft_get"(const unordered_map[uint64_t, uint32_t]&, uint64_t) noexcept nogil
    int highest_bit "ft_highest"(uint32_t) noexcept nogil


cdef enum:
    NONE = 0xFFFFFFFF
    GRANULE_SHIFT = 12
    CLASSES_LOG2 = 5            # 32 classes per doubling: rounding wastes 3 % at most
    CLASSES = 32


cdef enum AllocCode:
    ALLOC_OK = 0
    ALLOC_NEED_SEGMENT = 1      # alloc: nothing fits, see Block.wanted_bytes
    ALLOC_TRIM_DUE = 2          # free_block: done, but `trim` has something to drop at once
    ALLOC_NO_MEMORY = -1        # the allocator's own bookkeeping found no heap; nothing changed
    ALLOC_UNKNOWN_SEGMENT = -2
    ALLOC_NOT_ALLOCATED = -3    # no live block starts there: freed twice, or never handed out
    ALLOC_BAD_SIZE = -4         # 0, beyond MAX_SEGMENT_BYTES, or a segment that is no multiple of the granule
    ALLOC_SEGMENT_EXISTS = -5


cdef struct Block:
    uint64_t seg_id
    uint64_t offset             # multiple of GRANULE_BYTES (so 64-byte alignment holds)
    uint64_t size               # bytes reserved, at least what was asked for
    uint64_t wanted_bytes       # with ALLOC_NEED_SEGMENT: the segment to make
    uint64_t minimum_bytes      # the smallest that would do, when wanted_bytes is refused
    bint dedicated              # kind of the segment to make (or of the block's segment)


cdef struct AllocStats:
    uint64_t segments, blocks, segment_bytes, live_bytes, cached_segments, cached_bytes
    uint64_t bad_frees, warm_hits, segments_asked


# A stretch of granules of one segment, free or taken; `prev`/`next` are its neighbours by address. A dedicated
# segment is one run that is never split.
cdef struct Run:
    uint32_t segment            # slot in `segments`
    uint32_t start, length      # granules
    uint32_t prev, next
    uint32_t bin_prev, bin_next
    bint free


cdef struct Segment:
    uint64_t seg_id
    uint64_t freed_ms           # when it became empty
    uint64_t live_granules
    uint32_t granules
    uint32_t blocks
    uint32_t first_run
    uint32_t idle_prev, idle_next   # empty segments, longest empty first
    bint dedicated
    bint live                   # the slot is in use


# Free runs by length class: the smallest class that fits is found with two bit scans.
cdef struct Bins:
    uint32_t[896] heads
    uint32_t[28] sub_bits
    uint32_t level_bits
    uint64_t runs


cdef class Allocator:
    # Policy. Arenas take blocks up to `arena_block_max_bytes`; bigger ones get a dedicated segment. Empty segments
    # stay warm for `idle_ms` (no timer runs here) and, beyond `warm_limit_bytes`, only the newest of them.
    cdef public uint64_t arena_block_max_bytes, arena_first_bytes, arena_max_bytes, warm_limit_bytes, idle_ms
    cdef Bins[2] bins                       # [0] arenas, [1] dedicated
    cdef vector[Run] runs
    cdef vector[Segment] segments
    cdef unordered_map[uint64_t, uint32_t] slot_of      # seg_id -> slot
    cdef unordered_map[uint64_t, uint32_t] run_at       # slot << 32 | granule -> run
    cdef uint32_t spare_run, spare_segment, idle_head, idle_tail
    cdef AllocStats totals

    cdef int alloc(self, uint64_t size, uint64_t now_ms, Block* out) noexcept nogil
    cdef int add_segment(self, uint64_t seg_id, uint64_t size, bint dedicated, uint64_t now_ms) noexcept nogil
    cdef int free_block(self, uint64_t seg_id, uint64_t offset, uint64_t now_ms) noexcept nogil
    # A segment is gone with all that is in it.
    cdef void lose_segment(self, uint64_t seg_id) noexcept nogil
    # Appends the ids to drop; returns how many, or ALLOC_NO_MEMORY (nothing dropped).
    cdef int trim(self, uint64_t now_ms, vector[uint64_t]* out) noexcept nogil
    cdef int trim_all(self, vector[uint64_t]* out) noexcept nogil
    # When `trim` is next worth calling (ms on the caller's clock), -1 = never.
    cdef int64_t next_trim_ms(self) noexcept nogil
    cdef uint64_t block_size(self, uint64_t seg_id, uint64_t offset) noexcept nogil   # 0 = no live block there
    cdef void stats(self, AllocStats* out) noexcept nogil
    # steps of the above
    cdef uint32_t find_run(self, int kind, uint32_t length) noexcept nogil
    cdef void bin_insert(self, uint32_t run) noexcept nogil
    cdef void bin_remove(self, uint32_t run) noexcept nogil
    cdef int split(self, uint32_t run, uint32_t length) noexcept nogil
    cdef uint32_t absorb(self, uint32_t left, uint32_t right) noexcept nogil
    cdef uint32_t take_spare_run(self) noexcept nogil
    cdef uint32_t take_spare_segment(self) noexcept nogil
    cdef void give_run(self, uint32_t run) noexcept nogil
    cdef void idle_append(self, uint32_t slot, uint64_t now_ms) noexcept nogil
    cdef void idle_remove(self, uint32_t slot) noexcept nogil
    cdef bint over_limit(self) noexcept nogil
    cdef int drop_idle(self, uint64_t now_ms, bint everything, vector[uint64_t]* out) noexcept nogil
    cdef void forget(self, uint32_t slot) noexcept nogil
    cdef uint32_t live_run(self, uint64_t seg_id, uint64_t offset, int* code) noexcept nogil
    cdef int wanted(self, uint64_t length, bint dedicated, Block* out) noexcept nogil


cdef inline uint64_t run_key(uint32_t slot, uint32_t start) noexcept nogil:
    return (<uint64_t> slot << 32) | start


cdef inline uint32_t bin_of(uint32_t length) noexcept nogil:
    """The class whose least length is at most `length`: level * CLASSES + sub."""
    cdef int top
    if length < CLASSES:
        return length
    top = highest_bit(length)
    return <uint32_t> (top - CLASSES_LOG2 + 1) * CLASSES + ((length >> (top - CLASSES_LOG2)) & (CLASSES - 1))
