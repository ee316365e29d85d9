"""The threads of an actor whose calls run beside each other."""

from libc.stdint cimport uint64_t
from ftray._core.execution cimport Execution
from ftray._core.invocation cimport Call


cdef class Pools:
    cdef Execution execution
    cdef dict queues            # concurrency group -> SimpleQueue; "" is the default one
    cdef dict open              # call_key -> Call, taken and not answered

    cdef int hand(self, Call call) except -1
    cdef int cancel(self, uint64_t key, bint recursive) except -1
    cdef Call current(self)
    cdef int leave_when_done(self) except -1
