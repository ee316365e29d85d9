"""Creation and mapping of ring pairs (see ring.pxd for the rings themselves), and the wrapper that tests drive.

Layout of the memory file: one page of header and `cap` bytes of data for the initiator's ring, then the same for the
acceptor's.
"""

from libc.errno cimport EINVAL, ENOMEM, errno
from libc.stdint cimport uint64_t
from libc.string cimport memcpy
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_FIXED, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE, mmap, munmap
from posix.stat cimport fstat, struct_stat
from posix.unistd cimport close, ftruncate
from ftray._core.types cimport Ring, RingHdr, load64, store64

cdef extern from "sys/mman.h" nogil:
    int memfd_create(const char *name, unsigned int flags)
    unsigned int MFD_CLOEXEC


cdef int ring_create(uint64_t cap) noexcept nogil:
    """A memory file for a pair of rings of `cap` bytes (a power of two, whole pages), or -errno."""
    cdef int fd = memfd_create(b"ftray-ring", MFD_CLOEXEC)
    cdef int err
    if fd < 0:
        return -errno
    if ftruncate(fd, 2 * (RING_HEADER + cap)) != 0:
        err = errno
        close(fd)
        return -err
    return fd


cdef int ring_map_one(int fd, uint64_t offset, uint64_t cap, char *base) noexcept nogil:
    cdef void *p = mmap(base, RING_HEADER + cap, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset)
    if p == MAP_FAILED:
        return -errno
    p = mmap(base + RING_HEADER + cap, cap, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, offset + RING_HEADER)
    return -errno if p == MAP_FAILED else 0


cdef int ring_map(int fd, uint64_t cap, bint initiator, Ring *out, Ring *inp, void **base, uint64_t *length) noexcept nogil:
    """Map a pair; `out` becomes the ring that this side produces into. Returns 0 or -errno."""
    cdef struct_stat st
    cdef uint64_t one = RING_HEADER + 2 * cap
    cdef void *p
    cdef char *a
    cdef char *b
    cdef int code
    if cap < 4096 or cap & (cap - 1) or fstat(fd, &st) != 0 or <uint64_t>st.st_size != 2 * (RING_HEADER + cap):
        return -EINVAL
    p = mmap(NULL, 2 * one, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if p == MAP_FAILED:
        return -errno
    a = <char *>p
    b = a + one
    code = ring_map_one(fd, 0, cap, a)
    if code == 0:
        code = ring_map_one(fd, RING_HEADER + cap, cap, b)
    if code != 0:
        munmap(p, 2 * one)
        return code
    base[0] = p
    length[0] = 2 * one
    ring_attach(out, a if initiator else b, cap, True)
    ring_attach(inp, b if initiator else a, cap, False)
    return 0


cdef void ring_attach(Ring *r, char *at, uint64_t cap, bint producer) noexcept nogil:
    r.h = <RingHdr *>at
    r.data = at + RING_HEADER
    r.cap = cap
    r.pos = load64(&r.h.head) if producer else load64(&r.h.tail)
    r.other = load64(&r.h.tail) if producer else load64(&r.h.head)


cdef void ring_unmap(void *base, uint64_t length) noexcept nogil:
    if base != NULL:
        munmap(base, length)


cdef class RingPair:
    """Both ends of a pair in one process, for tests of the ring's own rules."""

    cdef Ring a_out, a_in, b_out, b_in
    cdef void *base_a
    cdef void *base_b
    cdef uint64_t len_a, len_b
    cdef int fd

    def __cinit__(self, uint64_t cap):
        cdef int code
        self.fd = ring_create(cap)
        if self.fd < 0:
            raise OSError(-self.fd, "memfd_create")
        code = ring_map(self.fd, cap, True, &self.a_out, &self.a_in, &self.base_a, &self.len_a)
        if code == 0:
            code = ring_map(self.fd, cap, False, &self.b_out, &self.b_in, &self.base_b, &self.len_b)
        if code != 0:
            raise OSError(-code, f"cannot map a ring of {cap} bytes")

    def __dealloc__(self):
        ring_unmap(self.base_a, self.len_a)
        ring_unmap(self.base_b, self.len_b)
        if self.fd >= 0:
            close(self.fd)

    def write(self, bytes frame):
        """Publish a frame from side A; False when there is no room (and the producer now waits)."""
        cdef uint64_t n = len(frame)
        if ring_space(&self.a_out, n) < n:
            ring_wait_for_room(&self.a_out)
            if ring_space(&self.a_out, n) < n:
                return False
        memcpy(ring_tail(&self.a_out), <const char *>frame, n)
        ring_publish(&self.a_out, n)
        return True

    def read(self, uint64_t n):
        """Take up to `n` bytes at side B."""
        cdef uint64_t have = ring_ready(&self.b_in)
        if have == <uint64_t>-1:
            raise ValueError("corrupt ring index")
        n = min(n, have)
        data = ring_front(&self.b_in)[:n]
        ring_consume(&self.b_in, n)
        return data

    def bell(self):
        """Does the consumer have to wake the producer?"""
        return bool(ring_producer_waits(&self.b_in))

    def corrupt_head(self, uint64_t value):
        """Write a wrong producer index, as a broken peer would."""
        store64(&self.a_out.h.head, value)
