# Growable byte buffer of the hot path. Owns: one malloc block per Buf. Invariants: len <= cap; data is NULL
# exactly when cap is 0. Everything is inline, `noexcept nogil` and reports an allocation failure as -1,
# leaving the content as it was; nothing here throws or touches Python. Leaves to others: who owns a Buf and
# on which thread (no locking), byte order (native; the formats that use it are defined for little-endian
# machines only).

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t, SIZE_MAX
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy


cdef struct Buf:
    char* data
    size_t len
    size_t cap


cdef inline void buf_init(Buf* b) noexcept nogil:
    b.data = NULL
    b.len = 0
    b.cap = 0


cdef inline void buf_free(Buf* b) noexcept nogil:
    free(b.data)
    buf_init(b)


cdef inline void buf_clear(Buf* b) noexcept nogil:
    """Forget the content, keep the memory."""
    b.len = 0


cdef inline int buf_reserve(Buf* b, size_t extra) noexcept nogil:
    """Make room for `extra` more bytes; 0, or -1 without memory."""
    cdef size_t need, cap
    cdef char* data
    if extra <= b.cap - b.len:
        return 0
    if extra > SIZE_MAX - b.len:
        return -1
    need = b.len + extra
    cap = b.cap + b.cap // 2 if b.cap <= SIZE_MAX // 2 else need
    if cap < 256:
        cap = 256
    if cap < need:
        cap = need
    data = <char*>realloc(b.data, cap)
    if data == NULL:
        return -1
    b.data = data
    b.cap = cap
    return 0


cdef inline char* buf_extend(Buf* b, size_t n) noexcept nogil:
    """Append `n` uninitialised bytes: where they start, or NULL without memory (or n 0 on an empty Buf)."""
    cdef char* at
    if buf_reserve(b, n) < 0:
        return NULL
    at = b.data + b.len
    b.len += n
    return at


cdef inline int buf_put(Buf* b, const void* src, size_t n) noexcept nogil:
    if buf_reserve(b, n) < 0:
        return -1
    if n:
        memcpy(b.data + b.len, src, n)
        b.len += n
    return 0


cdef inline int buf_put_u8(Buf* b, uint8_t v) noexcept nogil:
    if b.len == b.cap and buf_reserve(b, 1) < 0:
        return -1
    b.data[b.len] = <char>v
    b.len += 1
    return 0


cdef inline int buf_put_u16(Buf* b, uint16_t v) noexcept nogil:
    return buf_put(b, &v, 2)


cdef inline int buf_put_u32(Buf* b, uint32_t v) noexcept nogil:
    return buf_put(b, &v, 4)


cdef inline int buf_put_u64(Buf* b, uint64_t v) noexcept nogil:
    return buf_put(b, &v, 8)


cdef inline int buf_put_f64(Buf* b, double v) noexcept nogil:
    return buf_put(b, &v, 8)


cdef struct Scratch:
    # A Buf that outlives its uses, for callers that hold the GIL: who finds it taken (by a frame further up the stack,
    # or a thread that lost the GIL) gets one of his own.
    Buf kept
    bint taken


cdef enum:
    SCRATCH_KEEPS = 1 << 20     # bytes; a larger buffer is given back


cdef inline Buf* scratch_take(Scratch* s, Buf* own) noexcept nogil:
    """An empty Buf, to be handed to `scratch_give`."""
    if s.taken:
        buf_init(own)
        return own
    s.taken = True
    buf_clear(&s.kept)
    return &s.kept


cdef inline void scratch_give(Scratch* s, Buf* b) noexcept nogil:
    if b != &s.kept:
        buf_free(b)
        return
    if b.cap > SCRATCH_KEEPS:
        buf_free(b)
    s.taken = False
