"""A call that has come in: what to call, with which arguments."""

from libc.stdint cimport uint16_t, uint32_t
from ftray._core.types cimport Channel, ExecTask
from ftray._core.wire cimport DepHead


cdef class Call:
    cdef ExecTask t
    cdef object function        # what to call
    cdef str name               # for errors and logs
    cdef object retry           # None, True or a tuple of exception classes
    cdef tuple args
    cdef dict kwargs
    cdef list keep              # refs of the top-level arguments
    cdef uint16_t nret

    cdef int release(self) except -1


cdef class Callables:
    cdef dict loaded            # definition bytes -> (callable, name, retry)
    cdef object instance        # the actor that lives here, or None
    cdef str class_name
    cdef object entry_points    # methods that the checkpoint session serves itself
    cdef object before_load     # callback: the first function is about to be loaded

    cdef int decode(self, Call call) except -1
    cdef tuple lookup(self, Channel *ch, uint32_t fn)
    cdef tuple load(self, bytes definition)
    cdef str describe(self)
