"""The threads of an actor whose calls run beside each other."""

from ftray._core.beside cimport Beside
from ftray._core.invocation cimport Call


cdef class Pools(Beside):
    cdef dict queues            # concurrency group -> SimpleQueue; "" is the default one

    cdef int hand(self, Call call) except -1
