"""What must hold in an allocator between two calls (the invariants that alloc.pyx names), walked from end to end. For tests.

Owns nothing: it reads an `Allocator`, and names the first thing in it that is not as it has to be.
"""
# distutils: language = c++
from libc.stdint cimport uint32_t, uint64_t

from ftray._core.alloc cimport CLASSES, GRANULE_SHIFT, NONE, Allocator, Bins, Run, Segment, bin_of, run_key, table_get

INVARIANTS = (
    "",
    "runs of a segment cover it in order, without gap or overlap",
    "neighbouring runs are linked both ways",
    "no two free runs are neighbours",
    "each run is found by its start",
    "a dedicated segment has one run",
    "a segment's block count is the number of its taken runs",
    "a free run is the member of the bin of its length",
    "bins hold exactly the free runs",
    "bin bits say which bins are in use",
    "totals are the sums over the segments",
    "the idle list holds exactly the empty segments",
    "the idle list is in the order of emptying",
    "the tables hold nothing else",
)


cdef int audit(Allocator a) noexcept:
    cdef uint64_t free_runs[2]
    cdef uint64_t segments = 0, size = 0, live = 0, blocks = 0
    cdef size_t i
    cdef int code
    free_runs[0] = free_runs[1] = 0
    for i in range(a.segments.size()):
        if not a.segments[i].live:
            continue
        code = audit_segment(a, <uint32_t> i, free_runs)
        if code != 0:
            return code
        segments += 1
        size += <uint64_t> a.segments[i].granules << GRANULE_SHIFT
        live += a.segments[i].live_granules << GRANULE_SHIFT
        blocks += a.segments[i].blocks
    if a.bins[0].runs != free_runs[0] or a.bins[1].runs != free_runs[1]:
        return 8
    if segments != a.totals.segments or size != a.totals.segment_bytes or live != a.totals.live_bytes \
            or blocks != a.totals.blocks:
        return 10
    if a.slot_of.size() != segments or a.run_at.size() != free_runs[0] + free_runs[1] + blocks:
        return 13
    return audit_idle(a)


cdef int audit_segment(Allocator a, uint32_t slot, uint64_t* free_runs) noexcept:
    cdef Segment* segment = &a.segments[slot]
    cdef Bins* bins = &a.bins[segment.dedicated]
    cdef uint32_t run = segment.first_run, prev = NONE, at = 0, blocks = 0, live = 0, bin, member
    cdef Run* r
    while run != NONE:
        r = &a.runs[run]
        if r.segment != slot or r.start != at or r.length == 0:
            return 1
        if r.prev != prev:
            return 2
        if prev != NONE and r.free and a.runs[prev].free:
            return 3
        if table_get(a.run_at, run_key(slot, at)) != run:
            return 4
        if r.free:
            free_runs[segment.dedicated] += 1
            bin = bin_of(r.length)
            member = bins.heads[bin]
            while member != NONE and member != run:
                member = a.runs[member].bin_next
            if member == NONE:
                return 7
            if not bins.sub_bits[bin // CLASSES] >> (bin % CLASSES) & 1 or \
                    not bins.level_bits >> (bin // CLASSES) & 1:
                return 9
        else:
            blocks += 1
            live += r.length
        at += r.length
        prev = run
        run = r.next
    if at != segment.granules:
        return 1
    if segment.dedicated and prev != segment.first_run:
        return 5
    return 0 if blocks == segment.blocks and live == segment.live_granules else 6


cdef int audit_idle(Allocator a) noexcept:
    cdef uint32_t slot = a.idle_head, prev = NONE
    cdef uint64_t count = 0, size = 0, empty = 0, last_ms = 0
    cdef size_t i
    while slot != NONE:
        if not a.segments[slot].live or a.segments[slot].blocks or a.segments[slot].idle_prev != prev:
            return 11
        if a.segments[slot].freed_ms < last_ms:
            return 12
        last_ms = a.segments[slot].freed_ms
        count += 1
        size += <uint64_t> a.segments[slot].granules << GRANULE_SHIFT
        prev = slot
        slot = a.segments[slot].idle_next
    for i in range(a.segments.size()):
        empty += a.segments[i].live and a.segments[i].blocks == 0
    if prev != a.idle_tail or count != empty:
        return 11
    return 0 if count == a.totals.cached_segments and size == a.totals.cached_bytes else 10


def validate(Allocator allocator not None):
    """Raise AssertionError naming the broken invariant."""
    cdef int broken = audit(allocator)
    if broken:
        raise AssertionError(f"allocator invariant {broken} is broken: {INVARIANTS[broken]}")
