"""Block allocator and warm-segment cache of one producer: pure decisions, no syscalls, clock or threads.

Owns which granules of which own segment are taken, and which empty segments are kept warm. Small blocks share
*arenas* (segregated free lists by length class, runs coalesced on free); big ones get a *dedicated* segment each,
whose size is rounded to a class so that the next object of about that size finds its pages warm: memory that the
kernel has to make first is written ten times slower than memory that is there.

Invariants (alloc_audit.pyx walks them all): the runs of a segment cover it without gap or overlap; no two free runs of
an arena are neighbours; a free run is in exactly one bin; a segment is on the idle list if and only if it has no
block. Only `alloc` and `add_segment` need heap, and change nothing when there is none: a free cannot fail.

Left to the caller: making and destroying segments, charging them with the node, the lock, the clock.
"""
# distutils: language = c++
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memset
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

cdef extern from *:
    """
    #include <unordered_map>
    #include <vector>
    #include <cstdint>
    template <class V, class T> static inline int ft_push(V& v, const T& x) noexcept {
        try { v.push_back(x); return 0; } catch (...) { return -1; }
    }
    template <class V> static inline int ft_reserve(V& v, size_t n) noexcept {
        try { v.reserve(n); return 0; } catch (...) { return -1; }
    }
    template <class M> static inline int ft_put(M& m, uint64_t k, uint32_t v) noexcept {
        try { m[k] = v; return 0; } catch (...) { return -1; }
    }
    template <class M> static inline void ft_del(M& m, uint64_t k) noexcept { m.erase(k); }
    static inline int ft_lowest(uint32_t x) noexcept { return __builtin_ctz(x); }
    """
    int push "ft_push"(vector[uint64_t]&, uint64_t) noexcept nogil
    int push_run "ft_push"(vector[Run]&, Run&) noexcept nogil
    int push_segment "ft_push"(vector[Segment]&, Segment&) noexcept nogil
    int reserve "ft_reserve"(vector[uint64_t]&, size_t) noexcept nogil
    int table_put "ft_put"(unordered_map[uint64_t, uint32_t]&, uint64_t, uint32_t) noexcept nogil
    void table_del "ft_del"(unordered_map[uint64_t, uint32_t]&, uint64_t) noexcept nogil
    int lowest_bit "ft_lowest"(uint32_t) noexcept nogil

cdef enum:
    HUGE_GRANULES = 512         # 2 MB
    DEDICATED_LOG2 = 3          # 8 classes per doubling for dedicated segments: 12.5 % at most above 16 MB
    MAX_WASTE = 2               # a warm dedicated segment is used for no less than 1/MAX_WASTE of its size

GRANULE_BYTES = 1 << GRANULE_SHIFT
MAX_SEGMENT_BYTES = 1 << 42

cdef inline uint64_t round_up(uint64_t length, uint64_t step) noexcept nogil:
    return (length + step - 1) // step * step


cdef inline uint64_t class_length(uint64_t length, int classes_log2) noexcept nogil:
    """`length` rounded up to the least length of its class, so that a search of that class finds exact fits."""
    cdef int top
    if length >> classes_log2 == 0:
        return length
    top = highest_bit(<uint32_t> length)
    return round_up(length, <uint64_t> 1 << (top - classes_log2))


cdef class Allocator:
    """Places blocks in this process's segments; see the contract in alloc.pxd.

    Parameters
    ----------
    arena_block_max_bytes : int
        Blocks up to this size share arenas.
    arena_first_bytes, arena_max_bytes : int
        Arenas grow fourfold from the first to the last size.
    warm_limit_bytes : int
        Empty segments kept beyond this are dropped, oldest first; the newest always stays until it idles.
    idle_ms : int
        An empty segment is given back when it was not used for so long.
    """

    def __cinit__(self, *, uint64_t arena_block_max_bytes=4 << 20, uint64_t arena_first_bytes=4 << 20,
                  uint64_t arena_max_bytes=64 << 20, uint64_t warm_limit_bytes=512 << 20, uint64_t idle_ms=10_000):
        self.arena_block_max_bytes = arena_block_max_bytes
        self.arena_first_bytes = arena_first_bytes
        self.arena_max_bytes = arena_max_bytes
        self.warm_limit_bytes = warm_limit_bytes
        self.idle_ms = idle_ms
        self.spare_run = self.spare_segment = self.idle_head = self.idle_tail = NONE
        memset(&self.totals, 0, sizeof(AllocStats))
        memset(self.bins, 0, sizeof(self.bins))
        for kind in range(2):
            for i in range(896):
                self.bins[kind].heads[i] = NONE

    # -- placing and freeing --------------------------------------------------------------------------------

    cdef int alloc(self, uint64_t size, uint64_t now_ms, Block* out) noexcept nogil:
        cdef uint64_t length
        cdef uint32_t run
        cdef Segment* segment
        cdef bint dedicated = size > self.arena_block_max_bytes
        memset(out, 0, sizeof(Block))
        if size == 0 or size > <uint64_t> 1 << 42:
            return ALLOC_BAD_SIZE
        length = class_length((size + (1 << GRANULE_SHIFT) - 1) >> GRANULE_SHIFT, CLASSES_LOG2)
        run = self.find_run(dedicated, <uint32_t> length)
        if run == NONE:
            return self.wanted(length, dedicated, out)
        if not dedicated and self.runs[run].length > length and self.split(run, <uint32_t> length) != 0:
            return ALLOC_NO_MEMORY
        self.bin_remove(run)
        self.runs[run].free = False
        segment = &self.segments[self.runs[run].segment]
        if segment.blocks == 0:
            self.idle_remove(self.runs[run].segment)
            self.totals.warm_hits += dedicated
        segment.blocks += 1
        segment.live_granules += self.runs[run].length
        self.totals.blocks += 1
        out.seg_id = segment.seg_id
        out.offset = <uint64_t> self.runs[run].start << GRANULE_SHIFT
        out.size = <uint64_t> self.runs[run].length << GRANULE_SHIFT
        out.dedicated = dedicated
        self.totals.live_bytes += out.size
        return ALLOC_OK

    cdef int wanted(self, uint64_t length, bint dedicated, Block* out) noexcept nogil:
        """Which segment would let a block of `length` granules in."""
        cdef uint64_t granules, largest = 0
        cdef size_t i
        out.dedicated = dedicated
        out.minimum_bytes = length << GRANULE_SHIFT
        if dedicated:
            granules = class_length(round_up(length, HUGE_GRANULES), DEDICATED_LOG2)
            out.wanted_bytes = granules << GRANULE_SHIFT
        else:
            for i in range(self.segments.size()):
                if self.segments[i].live and not self.segments[i].dedicated and self.segments[i].granules > largest:
                    largest = self.segments[i].granules
            out.wanted_bytes = max(self.arena_first_bytes, 4 * max(largest << GRANULE_SHIFT, out.minimum_bytes))
            out.wanted_bytes = max(min(out.wanted_bytes, self.arena_max_bytes), out.minimum_bytes)
            out.wanted_bytes = round_up(out.wanted_bytes, 1 << GRANULE_SHIFT)
        self.totals.segments_asked += 1
        return ALLOC_NEED_SEGMENT

    cdef uint32_t find_run(self, int kind, uint32_t length) noexcept nogil:
        """The free run to use: of the smallest class that fits, the one freed last (its lines may be cached)."""
        cdef Bins* bins = &self.bins[kind]
        cdef uint32_t bin = bin_of(length), level = bin // CLASSES, run
        cdef uint32_t bits = bins.sub_bits[level] & (<uint32_t> 0xFFFFFFFF << (bin % CLASSES))
        if bits == 0:
            bits = bins.level_bits & ~<uint32_t> ((<uint64_t> 2 << level) - 1)
            if bits == 0:
                return NONE
            level = lowest_bit(bits)
            bits = bins.sub_bits[level]
        run = bins.heads[level * CLASSES + lowest_bit(bits)]
        if kind == 1 and self.runs[run].length > <uint64_t> MAX_WASTE * length:
            return NONE
        return run

    cdef int free_block(self, uint64_t seg_id, uint64_t offset, uint64_t now_ms) noexcept nogil:
        cdef int code = ALLOC_OK
        cdef uint32_t run = self.live_run(seg_id, offset, &code)
        cdef uint32_t slot, other
        cdef Segment* segment
        if run == NONE:
            self.totals.bad_frees += 1
            return code
        slot = self.runs[run].segment
        segment = &self.segments[slot]
        segment.blocks -= 1
        segment.live_granules -= self.runs[run].length
        self.totals.blocks -= 1
        self.totals.live_bytes -= <uint64_t> self.runs[run].length << GRANULE_SHIFT
        self.runs[run].free = True
        other = self.runs[run].prev
        if other != NONE and self.runs[other].free:
            self.bin_remove(other)
            run = self.absorb(other, run)
        other = self.runs[run].next
        if other != NONE and self.runs[other].free:
            self.bin_remove(other)
            run = self.absorb(run, other)
        self.bin_insert(run)
        if segment.blocks == 0:
            self.idle_append(slot, now_ms)
        return ALLOC_TRIM_DUE if self.over_limit() else ALLOC_OK

    cdef uint32_t live_run(self, uint64_t seg_id, uint64_t offset, int* code) noexcept nogil:
        """The taken run that starts at `offset`, or NONE and why."""
        cdef uint32_t slot = table_get(self.slot_of, seg_id), run
        if slot == NONE:
            code[0] = ALLOC_UNKNOWN_SEGMENT
            return NONE
        code[0] = ALLOC_NOT_ALLOCATED
        if offset & ((1 << GRANULE_SHIFT) - 1) or offset >> GRANULE_SHIFT >= self.segments[slot].granules:
            return NONE
        run = table_get(self.run_at, run_key(slot, <uint32_t> (offset >> GRANULE_SHIFT)))
        if run == NONE or self.runs[run].free:
            return NONE
        code[0] = ALLOC_OK
        return run

    cdef uint64_t block_size(self, uint64_t seg_id, uint64_t offset) noexcept nogil:
        cdef int code
        cdef uint32_t run = self.live_run(seg_id, offset, &code)
        return 0 if run == NONE else <uint64_t> self.runs[run].length << GRANULE_SHIFT

    # -- runs and bins --------------------------------------------------------------------------------------

    cdef int split(self, uint32_t run, uint32_t length) noexcept nogil:
        """Cut a binned run to `length`; the rest becomes a free run behind it. Changes nothing without heap."""
        cdef uint32_t rest = self.take_spare_run()
        cdef Run* left
        cdef Run* right
        if rest == NONE:
            return ALLOC_NO_MEMORY
        left = &self.runs[run]
        right = &self.runs[rest]
        if table_put(self.run_at, run_key(left.segment, left.start + length), rest) != 0:
            self.give_run(rest)
            return ALLOC_NO_MEMORY
        self.bin_remove(run)
        right.segment = left.segment
        right.start = left.start + length
        right.length = left.length - length
        right.prev = run
        right.next = left.next
        right.free = True
        if left.next != NONE:
            self.runs[left.next].prev = rest
        left.next = rest
        left.length = length
        self.bin_insert(rest)
        self.bin_insert(run)
        return 0

    cdef uint32_t absorb(self, uint32_t left, uint32_t right) noexcept nogil:
        """Merge two neighbours, neither of them in a bin; returns the survivor."""
        cdef Run* a = &self.runs[left]
        cdef Run* b = &self.runs[right]
        table_del(self.run_at, run_key(b.segment, b.start))
        a.length += b.length
        a.next = b.next
        if b.next != NONE:
            self.runs[b.next].prev = left
        self.give_run(right)
        return left

    cdef void bin_insert(self, uint32_t run) noexcept nogil:
        cdef Run* r = &self.runs[run]
        cdef Bins* bins = &self.bins[self.segments[r.segment].dedicated]
        cdef uint32_t bin = bin_of(r.length), head = bins.heads[bin]
        r.bin_prev = NONE
        r.bin_next = head
        if head != NONE:
            self.runs[head].bin_prev = run
        bins.heads[bin] = run
        bins.sub_bits[bin // CLASSES] |= <uint32_t> 1 << (bin % CLASSES)
        bins.level_bits |= <uint32_t> 1 << (bin // CLASSES)
        bins.runs += 1

    cdef void bin_remove(self, uint32_t run) noexcept nogil:
        cdef Run* r = &self.runs[run]
        cdef Bins* bins = &self.bins[self.segments[r.segment].dedicated]
        cdef uint32_t bin = bin_of(r.length), level = bin // CLASSES
        bins.runs -= 1
        if r.bin_next != NONE:
            self.runs[r.bin_next].bin_prev = r.bin_prev
        if r.bin_prev != NONE:
            self.runs[r.bin_prev].bin_next = r.bin_next
            return
        bins.heads[bin] = r.bin_next
        if r.bin_next == NONE:
            bins.sub_bits[level] &= ~(<uint32_t> 1 << (bin % CLASSES))
            if bins.sub_bits[level] == 0:
                bins.level_bits &= ~(<uint32_t> 1 << level)

    cdef uint32_t take_spare_run(self) noexcept nogil:
        cdef Run fresh
        cdef uint32_t run = self.spare_run
        if run != NONE:
            self.spare_run = self.runs[run].bin_next
            return run
        memset(&fresh, 0, sizeof(Run))
        if push_run(self.runs, fresh) != 0:
            return NONE
        return <uint32_t> (self.runs.size() - 1)

    cdef void give_run(self, uint32_t run) noexcept nogil:
        self.runs[run].length = 0
        self.runs[run].bin_next = self.spare_run
        self.spare_run = run

    # -- segments and the warm cache ------------------------------------------------------------------------

    cdef int add_segment(self, uint64_t seg_id, uint64_t size, bint dedicated, uint64_t now_ms) noexcept nogil:
        cdef uint32_t slot, run
        cdef Segment* segment
        cdef Run* r
        if size == 0 or size > <uint64_t> 1 << 42 or size & ((1 << GRANULE_SHIFT) - 1):
            return ALLOC_BAD_SIZE
        if table_get(self.slot_of, seg_id) != NONE:
            return ALLOC_SEGMENT_EXISTS
        slot = self.take_spare_segment()
        if slot == NONE:
            return ALLOC_NO_MEMORY
        run = self.take_spare_run()
        if run == NONE or table_put(self.slot_of, seg_id, slot) != 0 or \
                table_put(self.run_at, run_key(slot, 0), run) != 0:
            table_del(self.slot_of, seg_id)
            self.segments[slot].idle_next = self.spare_segment
            self.spare_segment = slot
            if run != NONE:
                self.give_run(run)
            return ALLOC_NO_MEMORY
        segment = &self.segments[slot]
        segment.seg_id = seg_id
        segment.granules = <uint32_t> (size >> GRANULE_SHIFT)
        segment.blocks = 0
        segment.live_granules = 0
        segment.first_run = run
        segment.dedicated = dedicated
        segment.live = True
        r = &self.runs[run]
        r.segment = slot
        r.start = 0
        r.length = segment.granules
        r.prev = r.next = NONE
        r.free = True
        self.totals.segments += 1
        self.totals.segment_bytes += size
        self.bin_insert(run)
        self.idle_append(slot, now_ms)
        return ALLOC_OK

    cdef uint32_t take_spare_segment(self) noexcept nogil:
        cdef Segment fresh
        cdef uint32_t slot = self.spare_segment
        if slot != NONE:
            self.spare_segment = self.segments[slot].idle_next
            return slot
        memset(&fresh, 0, sizeof(Segment))
        if push_segment(self.segments, fresh) != 0:
            return NONE
        return <uint32_t> (self.segments.size() - 1)

    cdef void idle_append(self, uint32_t slot, uint64_t now_ms) noexcept nogil:
        cdef Segment* segment = &self.segments[slot]
        if self.idle_tail != NONE and self.segments[self.idle_tail].freed_ms > now_ms:
            now_ms = self.segments[self.idle_tail].freed_ms     # the list stays in order whatever the clock does
        segment.freed_ms = now_ms
        segment.idle_prev = self.idle_tail
        segment.idle_next = NONE
        if self.idle_tail == NONE:
            self.idle_head = slot
        else:
            self.segments[self.idle_tail].idle_next = slot
        self.idle_tail = slot
        self.totals.cached_segments += 1
        self.totals.cached_bytes += <uint64_t> segment.granules << GRANULE_SHIFT

    cdef void idle_remove(self, uint32_t slot) noexcept nogil:
        cdef Segment* segment = &self.segments[slot]
        if segment.idle_prev == NONE:
            self.idle_head = segment.idle_next
        else:
            self.segments[segment.idle_prev].idle_next = segment.idle_next
        if segment.idle_next == NONE:
            self.idle_tail = segment.idle_prev
        else:
            self.segments[segment.idle_next].idle_prev = segment.idle_prev
        self.totals.cached_segments -= 1
        self.totals.cached_bytes -= <uint64_t> segment.granules << GRANULE_SHIFT

    cdef bint over_limit(self) noexcept nogil:
        """Whether the cache would still hold its limit without its oldest segment (so the newest always stays)."""
        cdef uint64_t oldest
        if self.idle_head == NONE or self.idle_head == self.idle_tail:
            return False
        oldest = <uint64_t> self.segments[self.idle_head].granules << GRANULE_SHIFT
        return self.totals.cached_bytes - oldest >= self.warm_limit_bytes

    cdef int trim(self, uint64_t now_ms, vector[uint64_t]* out) noexcept nogil:
        return self.drop_idle(now_ms, False, out)

    cdef int trim_all(self, vector[uint64_t]* out) noexcept nogil:
        return self.drop_idle(0, True, out)

    cdef int drop_idle(self, uint64_t now_ms, bint everything, vector[uint64_t]* out) noexcept nogil:
        cdef int dropped = 0
        cdef Segment* oldest
        if reserve(out[0], out.size() + self.totals.cached_segments) != 0:
            return ALLOC_NO_MEMORY
        while self.idle_head != NONE:
            oldest = &self.segments[self.idle_head]
            if not everything and not self.over_limit() and now_ms < oldest.freed_ms + self.idle_ms:
                break
            push(out[0], oldest.seg_id)
            self.forget(self.idle_head)
            dropped += 1
        return dropped

    cdef void forget(self, uint32_t slot) noexcept nogil:
        """Take an empty segment out of every table."""
        cdef Segment* segment = &self.segments[slot]
        self.idle_remove(slot)
        self.bin_remove(segment.first_run)
        table_del(self.run_at, run_key(slot, 0))
        table_del(self.slot_of, segment.seg_id)
        self.give_run(segment.first_run)
        self.totals.segments -= 1
        self.totals.segment_bytes -= <uint64_t> segment.granules << GRANULE_SHIFT
        segment.live = False
        segment.idle_next = self.spare_segment
        self.spare_segment = slot

    cdef void lose_segment(self, uint64_t seg_id) noexcept nogil:
        """Free every block, then take the empty segment out."""
        cdef uint32_t slot = table_get(self.slot_of, seg_id), run, at = 0
        if slot == NONE:
            return
        while self.segments[slot].blocks:
            run = table_get(self.run_at, run_key(slot, at))
            if not self.runs[run].free:
                self.free_block(seg_id, <uint64_t> at << GRANULE_SHIFT, 0)
                at = 0                      # it may be one with its neighbours now
            else:
                at += self.runs[run].length
        self.forget(slot)

    cdef int64_t next_trim_ms(self) noexcept nogil:
        if self.idle_head == NONE:
            return -1
        return <int64_t> (self.segments[self.idle_head].freed_ms + self.idle_ms)

    cdef void stats(self, AllocStats* out) noexcept nogil:
        out[0] = self.totals

    # -- the same for Python (tests, tools) -----------------------------------------------------------------

    def py_alloc(self, uint64_t size, uint64_t now_ms=0):
        """Return ``(code, block fields as a dict)``."""
        cdef Block block
        code = self.alloc(size, now_ms, &block)
        return code, block

    def py_add_segment(self, uint64_t seg_id, uint64_t size, bint dedicated, uint64_t now_ms=0):
        return self.add_segment(seg_id, size, dedicated, now_ms)

    def py_free(self, uint64_t seg_id, uint64_t offset, uint64_t now_ms=0):
        return self.free_block(seg_id, offset, now_ms)

    def py_trim(self, uint64_t now_ms, *, bint everything=False):
        """Return the ids of the segments to destroy."""
        cdef vector[uint64_t] dropped
        if self.drop_idle(now_ms, everything, &dropped) < 0:
            raise MemoryError("no heap for the list of segments to drop; nothing was dropped")
        return list(dropped)

    def py_block_size(self, uint64_t seg_id, uint64_t offset):
        return self.block_size(seg_id, offset)

    def py_next_trim_ms(self):
        return self.next_trim_ms()

    def py_stats(self):
        cdef AllocStats out
        self.stats(&out)
        return out

    def py_corrupt_for_test(self, uint64_t seg_id):
        """Break invariant 1 of a segment, so that a test can see the validator notice."""
        self.runs[self.segments[self.slot_of[seg_id]].first_run].length += 1
