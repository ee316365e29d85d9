"""Generator objects: the consumer's end of a stream."""

from libc.stdint cimport uint64_t
from ftray._core.objects cimport ObjectRef
from ftray._core.types cimport Core, ObjEntry, Stream

cdef class ObjectRefGenerator:
    cdef ObjEntry *gate
    cdef uint64_t session
    cdef object __weakref__

    cdef Stream *stream(self) noexcept
    cdef void let_go(self) noexcept
    cdef int check(self) except -1
    cdef ObjectRef take(self)
    cdef ObjectRef ref_to(self, bint completion)

cdef ObjectRefGenerator blank_generator()
cdef void fill_generator(Core *c, ObjectRefGenerator g, Stream *st) noexcept nogil
cdef object sealed_items(const char *task_id, uint64_t n, const char *owner)
