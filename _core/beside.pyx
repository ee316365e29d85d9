"""Calls of one actor that run beside each other: what its threads and its event loop have in common.

Owns: the calls that were taken off the queue and are not answered (`open`). Invariants: a call is found by its key from
the moment that it is taken to its answer; once exit_actor() was called the process leaves when no call runs any more.

Leaves to others: when a call begins, and what a cancellation means to it (pools.pyx, asynccalls.pyx).
"""

from libc.stdint cimport uint64_t
from libcpp.vector cimport vector

from ftray._core.context cimport context
from ftray._core.invocation cimport RUNNING, Call
from ftray._core.runtime cimport core, core_enter, core_leave
from ftray._core.types cimport CancelAsk, Core


cdef class Beside:
    """Base of `Pools` and `AsyncCalls`; abstract: both say what `leave` and `cancel` do."""

    def __cinit__(self):
        self.open = {}

    cdef Call current(self):
        """The call that the calling code belongs to, None when it belongs to none."""
        return self.open.get(context().key)

    cdef bint any_runs(self) except -1:
        cdef Call call
        for call in list(self.open.values()):
            if call.stage == RUNNING:
                return True
        return False

    cdef int leave_when_done(self) except -1:
        """exit_actor() was called: go when nothing runs any more."""
        if not self.any_runs():
            self.leave()
        return 0

    cdef int leave(self) except -1:
        """End this process, on its main thread."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to leave")

    cdef int cancel_asked(self) except -1:
        """Cancel the calls whose callers ask for it."""
        cdef Core *c = core()
        cdef vector[CancelAsk] wanted
        cdef size_t i
        if c.cancels.empty():
            return 0
        with nogil:
            core_enter(c)
            wanted.swap(c.cancels)
            core_leave(c)
        for i in range(wanted.size()):
            self.cancel(wanted[i].key, wanted[i].recursive)
        return 0

    cdef int cancel(self, uint64_t key, bint recursive) except -1:
        """Cancel one call; what is not open any more has been answered."""
        raise NotImplementedError(f"{type(self).__name__} does not say how to cancel")
