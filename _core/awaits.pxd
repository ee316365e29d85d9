"""`await ref` and `ref.future()`."""

from libc.stdint cimport uint64_t
from libcpp.vector cimport vector
from ftray._core.objects cimport ObjectRef
from ftray._core.types cimport AwaitBox, Core

cdef class LoopWatch:
    cdef AwaitBox *box
    cdef uint64_t session
    cdef uint64_t tickets           # how many there were: the last one's number
    cdef dict waiting               # open ticket -> future of the loop
    cdef object loop_ref
    cdef int poll_fd                # ours of the core's epoll descriptor
    cdef bint polling, lend_due
    cdef vector[uint64_t] came
    cdef object __weakref__

    cdef void free(self)
    cdef int begin(self, object loop, bint polls) except -1
    cdef uint64_t open(self, ObjectRef ref, object future, object loop) except? 0
    cdef int close(self, uint64_t ticket) except -1
    cdef void expect(self) noexcept nogil
    cdef void collect(self, Core *c) noexcept nogil
    cdef bint over(self) noexcept
    cdef int resolve(self) except -1
    cdef int finish(self, object loop) except -1

cdef LoopWatch watch_actor_loop(object loop)
cdef void loops_take_back_cpus(Core *c) noexcept nogil
