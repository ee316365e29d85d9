"""A single-producer single-consumer byte ring in shared memory that carries whole frames.

The data area is mapped twice in a row, so every frame is one contiguous span. The producer publishes a frame with one
release store after it was written completely: a process killed at any instant leaves only whole frames behind, and
what it published can be read after its death. `pos` is the side's own index, `other` a cached copy of the other's.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from ftray._core.types cimport Ring, RingHdr, full_fence, load32, load64, store32, store64

cdef enum:
    RING_HEADER = 4096


cdef inline uint64_t ring_space(Ring *r, uint64_t need) noexcept nogil:
    """Free bytes for the producer; looks at the consumer's index only when the cached one does not suffice."""
    cdef uint64_t free_bytes = r.cap - (r.pos - r.other)
    if free_bytes < need:
        r.other = load64(&r.h.tail)
        free_bytes = r.cap - (r.pos - r.other)
    return free_bytes


cdef inline char *ring_tail(Ring *r) noexcept nogil:
    """Where the producer writes next; valid for `ring_space` bytes."""
    return r.data + (r.pos & (r.cap - 1))


cdef inline void ring_publish(Ring *r, uint64_t n) noexcept nogil:
    r.pos += n
    store64(&r.h.head, r.pos)


cdef inline uint64_t ring_ready(Ring *r) noexcept nogil:
    """Bytes that wait for the consumer. A corrupt index (more than the capacity) reads as all ones."""
    cdef uint64_t n = r.other - r.pos
    if n == 0:
        r.other = load64(&r.h.head)
        n = r.other - r.pos
    return n if n <= r.cap else <uint64_t>-1


cdef inline char *ring_front(Ring *r) noexcept nogil:
    return r.data + (r.pos & (r.cap - 1))


cdef inline void ring_consume(Ring *r, uint64_t n) noexcept nogil:
    r.pos += n
    store64(&r.h.tail, r.pos)


cdef inline bint ring_producer_waits(Ring *r) noexcept nogil:
    """Asked by the consumer after it made room: must it ring the producer's bell? Clears the request."""
    full_fence()
    if load32(&r.h.producer_waits):
        store32(&r.h.producer_waits, 0)
        return True
    return False


cdef inline void ring_wait_for_room(Ring *r) noexcept nogil:
    """Asked by the producer whose frame did not fit; it must look at `ring_space` once more afterwards."""
    store32(&r.h.producer_waits, 1)
    full_fence()
    r.other = load64(&r.h.tail)


cdef int ring_map(int fd, uint64_t cap, bint initiator, Ring *out, Ring *inp, void **base, uint64_t *length) noexcept nogil
cdef void ring_unmap(void *base, uint64_t length) noexcept nogil
cdef int ring_create(uint64_t cap) noexcept nogil
