"""ObjectRef and what is done with it: get, put, wait."""

from libc.stdint cimport int64_t, uint8_t, uint64_t
from ftray._core.serial cimport EncodedValue
from ftray._core.types cimport Core, Id28, ObjEntry

cdef class ObjectRef:
    cdef ObjEntry *e
    cdef uint64_t session
    cdef object __weakref__

cdef ObjectRef blank_ref()
cdef void fill_ref(Core *c, ObjectRef r, ObjEntry *e) noexcept nogil
cdef ObjEntry *usable(ObjectRef r) except NULL
cdef object value_of(ObjectRef r, int64_t deadline_ns)
cdef int place_shared(Core *c, EncodedValue v, uint64_t *seg, uint64_t *off) except -1
cdef ObjectRef put_value(object value)
cdef int64_t deadline_of(object timeout) except -2
cdef object system_error(const char *p, uint64_t n)
