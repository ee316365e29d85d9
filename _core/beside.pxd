"""Calls of one actor that run beside each other: what its threads and its event loop have in common."""

from libc.stdint cimport uint64_t
from ftray._core.execution cimport Execution
from ftray._core.invocation cimport Call


cdef class Beside:
    cdef Execution execution
    cdef dict open              # call_key -> Call, taken and not answered

    cdef Call current(self)
    cdef bint any_runs(self) except -1
    cdef int leave_when_done(self) except -1
    cdef int leave(self) except -1
    cdef int cancel_asked(self) except -1
    cdef int cancel(self, uint64_t key, bint recursive) except -1
