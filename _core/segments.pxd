"""This process's part in the object store: which segments it made, knows and still needs. Needs the core lock."""

from libc.stdint cimport int64_t, uint64_t
from ftray._core.alloc cimport Allocator, Block
from ftray._core.store cimport DeadMapping, Pin, Store, WriteWindow
from ftray._core.types cimport Core, Id28, ObjEntry

cdef enum SegmentCode:
    SEG_OK = 0
    SEG_NEED_RESERVE = 1      # `out.wanted_bytes` have to be reserved with ftrayd first
    SEG_FAILED = -1           # see segment_error

cdef int segments_open(Core *c, uint64_t capacity) except -1
cdef int segments_close() except -1
cdef Store segments_store()
cdef int segment_alloc(Core *c, uint64_t size, Block *out) noexcept nogil
cdef int segment_create(Core *c, uint64_t size, bint dedicated) noexcept nogil
cdef int segment_begin_write(Block *b, uint64_t size, WriteWindow *w) noexcept nogil
cdef int segment_end_write(WriteWindow *w) noexcept nogil
cdef bint segment_known(uint64_t seg) noexcept nogil
cdef int segment_map(uint64_t seg, int fd, uint64_t size) noexcept nogil
cdef int segment_pin(Core *c, ObjEntry *e, Pin **out) noexcept nogil
cdef void segment_owned(Core *c, uint64_t seg, const Id28 *producer) noexcept nogil
cdef void segment_adopted(Core *c, uint64_t seg) noexcept nogil
cdef bint segment_producer(Core *c, uint64_t seg, Id28 *out) noexcept nogil
cdef void segment_block_free(Core *c, uint64_t seg, uint64_t off) noexcept nogil
cdef void segment_gone(Core *c, uint64_t seg) noexcept nogil
cdef void segments_trim(Core *c, uint64_t now_ms, bint everything) noexcept nogil
cdef int64_t segments_next_trim_ms() noexcept nogil
cdef bint segments_drain(Core *c) noexcept nogil
cdef void segments_process_died(Core *c, const Id28 *worker) noexcept nogil
cdef bint segment_take_dead(DeadMapping *out) noexcept nogil
