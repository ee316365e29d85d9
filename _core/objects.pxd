"""ObjectRef."""

from libc.stdint cimport uint64_t

from ftray._core.types cimport Core, ObjEntry

cdef class ObjectRef:
    cdef ObjEntry *e
    cdef uint64_t session
    cdef object __weakref__

cdef ObjectRef blank_ref()
cdef object engine_of(ref)
cdef void fill_ref(Core *c, ObjectRef r, ObjEntry *e) noexcept nogil
cdef ObjEntry *usable(ObjectRef r) except NULL
cdef tuple exposed(Core *c, ObjEntry *e)
