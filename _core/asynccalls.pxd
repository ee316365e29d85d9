"""The event loop of an async actor."""

from ftray._core.awaits cimport LoopWatch
from ftray._core.beside cimport Beside
from ftray._core.invocation cimport Call


cdef class Lane:
    """A concurrency group: how many of its coroutines run, and how many may."""
    cdef int limit, running
    cdef object waiting         # deque of Calls whose turn has not come


cdef class AsyncCalls(Beside):
    cdef object loop, stop
    cdef object variable        # says which call the current code belongs to
    cdef LoopWatch watch        # of what the methods await
    cdef dict lanes             # concurrency group -> Lane; "" is the default one
    cdef Lane default
    cdef public object on_terminate
    cdef object turns           # of an exactly-once actor: checkpoint.turns.Turns
    cdef dict tickets           # of those turns -> Call
    cdef bint stalled           # calls stay in the queue until a coroutine of the default lane has ended

    cdef Lane lane_of(self, Call call)
    cdef int take(self, Call call) except -1
    cdef int begin_or_wait(self, Call call, Lane lane) except -1
    cdef int queue_up(self, Call call) except -1
    cdef int begin_turns(self, list begun) except -1
    cdef int leave_turn(self, Call call) except -1
    cdef int go_on(self) except -1
    cdef int run_parked(self, Call call) except -1
    cdef int begin(self, Call call, Lane lane) except -1
    cdef int refuse_stale(self, Call call) except -1
    cdef int ended(self, Call call, Lane lane) except -1
    cdef bint next_call(self, Call call) except -1
    cdef bint may_sleep(self) except -1
