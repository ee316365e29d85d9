"""Running one call, and answering it."""

from libc.stdint cimport uint8_t, uint64_t
from ftray._core.buf cimport Buf
from ftray._core.callcount cimport CallCounter
from ftray._core.durable cimport DurableCalls
from ftray._core.invocation cimport Call, Callables


cdef class Execution:
    cdef Callables callables
    cdef readonly object instance       # the actor that lives here, or None
    cdef readonly str current           # what runs on the main thread (for the log's prefix), "" when idle
    cdef readonly str method            # of an actor whose calls run one at a time, while it runs
    cdef str label                      # what the call is named that runs or ran last
    cdef object before_call, after_call # the checkpoint session's hooks, or None
    cdef CallCounter counter            # does after_call's work where that only counts, else None
    cdef DurableCalls durable           # of an exactly-once actor, else None
    cdef Call running                   # such an actor's call that the main thread runs
    cdef public object on_exit          # callback: end this actor on purpose; does not return
    cdef readonly bint exiting                   # exit_actor() was called
    cdef public bint leaving            # this process ends when its methods have: no call begins any more
    cdef bint left                      # in the call that the main thread runs
    cdef bint beside                    # calls run beside each other (threads, event loop)
    cdef object actions                 # what runs between two calls on the main thread
    cdef object loop                    # an async actor's
    cdef bint flush_due
    cdef bint in_group                  # the last call of this plain worker ran in a placement group
    cdef uint64_t finished

    cdef int answer(self, Call call, object result, object error) except -1
    cdef int answer_cancelled(self, Call call) except -1
    cdef int send(self, Call call, uint8_t status, Buf *b, list refs) except -1
    cdef int execute(self, Call call) except -1
    cdef int count(self, list left) except -1
    cdef int record(self, Call call, uint8_t status, Buf *b) except -1
    cdef int record_last(self, Call call) except -1
    cdef int verified(self, Call call, uint8_t status, Buf *b) except -1
    cdef int unverified(self, Call call, object error) except -1
    cdef int tell_difference(self, Call call, object error, Buf *b) except -1
    cdef int after_record(self, Call call, uint8_t status, Buf *b) except -1
    cdef int repeat(self, Call call, uint8_t status, bytes reply, bint recorded) except -1
    cdef uint8_t retried(self, Call call, bytes reply) except *
    cdef tuple spread(self, Call call, uint8_t status, bytes reply)
    cdef bint enter(self, Call call) except -1
    cdef bint entered(self, Call call, int entrance) except -1
    cdef int run_parked(self, Call call) except -1
    cdef int run_call(self, Call call) except -1
    cdef int idle(self) except -1
    cdef uint8_t error_status(self, Call call, object error)
    cdef int flush_soon(self) except -1
    cdef int cancel_submitted(self, Call call) except -1
    cdef int tell_error(self, Call call, object error) except -1
    cdef int enter_group(self, Call call) except -1
    cdef inline bint counted(self, Call call) noexcept
    cdef object after(self, Call call, object error)
    cdef int tell_after(self, str method) except -1

cdef int refuse_generator(object result) except -1
cdef void flush_all() noexcept
