"""Ties allocator and store to the runtime (decisions are in alloc.pyx, memory is in store.pyx).

Blocks are allocated only in segments that this process made. The owner of an object frees its block: in its own
segment directly, otherwise by a message to the producer; if that is dead, ftrayd keeps the segment until every owner
that still has objects in it (`counts`) has said that it is done.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.string cimport string
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from ftray._core.alloc cimport ALLOC_NEED_SEGMENT, ALLOC_OK, ALLOC_TRIM_DUE, Allocator, AllocStats, Block
from ftray._core.nodelink cimport (N_DEATH_ACK, N_SEG_REGISTER, N_SEG_RELEASE, N_SEG_UNHOLD, node_put, node_put_fd)
from ftray._core.refs cimport refs_check
from ftray._core.store cimport DeadMapping, Pin, Released, Store, StoreStats, WriteWindow
from ftray._core.types cimport Core, Id28, IdHash, ObjEntry, mono_ns

cdef extern from *:
    """
    #include "types.hpp"
    struct Foreign { Id28 producer; uint64_t objects = 0; bool dead = false; };
    // Never destroyed, as the core is not (runtime.pyx).
    static auto &foreign = *new std::unordered_map<uint64_t, Foreign>();     // segments of others in which objects of ours live
    static auto &own_sizes = *new std::unordered_map<uint64_t, uint64_t>();
    """
    cppclass Foreign:
        Id28 producer
        uint64_t objects
        bint dead
    unordered_map[uint64_t, Foreign] foreign
    unordered_map[uint64_t, uint64_t] own_sizes

cdef enum:
    ARENA_SHARE = 16
    ARENA_LEAST = 1 << 20

cdef Store store = None
cdef Allocator allocator = None
cdef uint64_t seg_base = 0
cdef uint64_t seg_count = 0


cdef int segments_open(Core *c, uint64_t capacity) except -1:
    global store, allocator, seg_base, seg_count
    store = Store()
    allocator = Allocator()
    if capacity:                # one small object that is used must not keep much of a small store
        allocator.arena_max_bytes = max(min(capacity // ARENA_SHARE, allocator.arena_max_bytes), ARENA_LEAST)
    memcpy(&seg_base, c.worker_id.b, 8)
    seg_base = (seg_base & 0xFFFFFFFFFF) << 24
    seg_count = 0
    foreign.clear()
    own_sizes.clear()
    return 0


cdef int segments_close() except -1:
    if store is not None:
        store.close_all()
    return 0


cdef Store segments_store():
    return store


cdef uint64_t now_ms() noexcept nogil:
    return mono_ns() // 1000000


cdef int segment_alloc(Core *c, uint64_t size, Block *out) noexcept nogil:
    """A block in an existing segment, or word that one must be made."""
    cdef int code = allocator.alloc(size, now_ms(), out)
    if code == ALLOC_OK:
        return SEG_OK
    return SEG_NEED_RESERVE if code == ALLOC_NEED_SEGMENT else SEG_FAILED


cdef int segment_create(Core *c, uint64_t size, bint dedicated) noexcept nogil:
    """Make a segment whose bytes ftrayd has reserved, and register it. 0 or a negative StoreCode."""
    cdef uint64_t seg
    cdef uint64_t payload[2]
    cdef int fd = -1
    cdef int code
    global seg_count
    seg_count += 1
    seg = seg_base | seg_count
    code = store.create_segment(seg, size, &fd)
    if code != 0:
        return code
    payload[0] = seg
    payload[1] = size
    node_put_fd(c, N_SEG_REGISTER, 0, payload, 16, fd)
    store.close_fd(seg)
    if allocator.add_segment(seg, size, dedicated, now_ms()) != 0:
        store.drop_segment(seg)
        node_put(c, N_SEG_RELEASE, 0, &seg, 8)
        return -10
    own_sizes[seg] = size
    return 0


cdef int segment_begin_write(Block *b, uint64_t size, WriteWindow *w) noexcept nogil:
    return store.begin_write(b.seg_id, b.offset, size, w)


cdef int segment_end_write(WriteWindow *w) noexcept nogil:
    return store.end_write(w)


cdef bint segment_known(uint64_t seg) noexcept nogil:
    return store.is_mapped(seg)


cdef int segment_map(uint64_t seg, int fd, uint64_t size) noexcept nogil:
    return store.map_foreign(seg, fd, size)


cdef int segment_pin(Core *c, ObjEntry *e, Pin **out) noexcept nogil:
    """Pin an object's block for a view; the view counts as a local reference of the object."""
    cdef int code = store.pin(e.seg, e.off, e.size, <void *>e, c.session, out)
    if code == 0:
        e.local += 1
        e.views += 1
    return code


cdef bint segments_drain(Core *c) noexcept nogil:
    """Views that died give their references back."""
    cdef Released released[64]
    cdef ObjEntry *e
    cdef int n, i
    cdef bint any_released = False
    while store is not None and store.has_releases():
        n = store.drain_releases(released, 64)
        for i in range(n):
            if released[i].session == c.session:
                e = <ObjEntry *>released[i].cookie
                e.local -= 1
                e.views -= 1
                refs_check(c, e)
        any_released = any_released or n > 0
        if n < 64:
            break
    return any_released


cdef void segment_owned(Core *c, uint64_t seg, const Id28 *producer) noexcept nogil:
    """An object of ours lives in a segment that `producer` made."""
    cdef Foreign *f
    if producer[0] == c.worker_id:
        return
    f = &foreign[seg]
    f.producer = producer[0]
    f.objects += 1
    if c.dead.count(producer[0]):
        f.dead = True


cdef void segment_adopted(Core *c, uint64_t seg) noexcept nogil:
    """ftrayd made this segment for one object of ours: it is kept as one of a dead process would be."""
    cdef Foreign *f = &foreign[seg]
    memset(f.producer.b, 0, 28)
    f.objects = 1
    f.dead = True


cdef bint segment_producer(Core *c, uint64_t seg, Id28 *out) noexcept nogil:
    it = foreign.find(seg)
    if it == foreign.end():
        return False
    out[0] = foreign[seg].producer
    return True


cdef void segment_block_free(Core *c, uint64_t seg, uint64_t off) noexcept nogil:
    """A block that nobody uses any more: ours to reuse, or one less that we need of another's segment."""
    cdef Foreign *f
    if own_sizes.count(seg):
        if allocator.free_block(seg, off, now_ms()) == ALLOC_TRIM_DUE:
            segments_trim(c, now_ms(), False)
        if c.pressure_ns and mono_ns() < c.pressure_ns:
            segments_trim(c, 0, True)
        return
    if foreign.count(seg) == 0:
        return
    f = &foreign[seg]
    f.objects -= 1
    if f.objects == 0:
        if f.dead:
            node_put(c, N_SEG_UNHOLD, 0, &seg, 8)
        foreign.erase(seg)


cdef void segment_gone(Core *c, uint64_t seg) noexcept nogil:
    """ftrayd dropped (or lost) a segment that we opened or made."""
    store.drop_segment(seg)
    foreign.erase(seg)
    if own_sizes.count(seg):                # ours, and lost to all others: no block of it may be used again
        own_sizes.erase(seg)
        allocator.lose_segment(seg)


cdef void segments_trim(Core *c, uint64_t at_ms, bint everything) noexcept nogil:
    """Destroy warm segments that were idle for long (or all of them, when memory is short)."""
    cdef vector[uint64_t] ids
    cdef size_t i
    cdef uint64_t seg
    if everything:
        allocator.trim_all(&ids)
    else:
        allocator.trim(at_ms, &ids)
    for i in range(ids.size()):
        seg = ids[i]
        store.drop_segment(seg)
        own_sizes.erase(seg)
        node_put(c, N_SEG_RELEASE, 0, &seg, 8)


cdef int64_t segments_next_trim_ms() noexcept nogil:
    return allocator.next_trim_ms()


cdef void segments_process_died(Core *c, const Id28 *worker) noexcept nogil:
    """Tell ftrayd which segments of a dead producer we still need."""
    cdef string ack
    cdef uint32_t n = 0
    ack.append(<const char *>worker.b, 28)
    ack.append(<const char *>&n, 4)
    for item in foreign:
        if item.second.producer == worker[0]:
            foreign[item.first].dead = True
            ack.append(<const char *>&item.first, 8)
            n += 1
    memcpy(<char *>ack.data() + 28, &n, 4)
    node_put(c, N_DEATH_ACK, 0, ack.data(), ack.size())


cdef bint segment_take_dead(DeadMapping *out) noexcept nogil:
    """A mapping to give back to the kernel; `store.bury` does it, without the lock."""
    return store is not None and store.take_dead(out, 1) == 1


def segment_stats():
    """Counters of this process's segments, blocks, mappings and pins."""
    cdef StoreStats s
    cdef AllocStats a
    if store is None:
        return {}
    store.stats(&s)
    allocator.stats(&a)
    return {"segments": a.segments, "segment_bytes": a.segment_bytes, "blocks": a.blocks, "live_bytes": a.live_bytes,
            "cached_bytes": a.cached_bytes, "foreign_segments": s.foreign_segments, "pins": s.pins, "bad_frees": a.bad_frees}
