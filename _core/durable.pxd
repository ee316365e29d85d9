"""An exactly-once actor's calls in its process: between the executor and the gate (durable.pyx)."""

from libc.stdint cimport uint8_t, uint64_t
from ftray._core.buf cimport Buf
from ftray._core.gate cimport Gate
from ftray._core.invocation cimport Call, Callables
from ftray._core.journal cimport LocalJournal
from ftray._core.records cimport CallView
from ftray._core.types cimport Blob

cdef enum Entrance:
    ENTER_RUN = 0           # run it
    ENTER_REPLY = 1         # it has run: `DurableCalls.reply` is its answer
    ENTER_ERROR = 2         # answer with the exception `DurableCalls.error`
    ENTER_WAIT = 3          # it waits for room among the kept replies or in the journal, and comes again (`DurableCalls.parked`)
    ENTER_ATTACHED = 4      # the same call is under way, whose answer it gets too

cdef class DurableCalls:
    cdef Gate gate
    cdef LocalJournal local             # None when the journal is another one
    cdef object once, journal
    cdef readonly object verifier       # runs each call twice, for tests; None
    cdef frozenset readonly, by_snapshot, own
    cdef frozenset poison               # CallIDs that have killed too often
    cdef str figures                    # the method by which an actor tells how it is
    cdef str usual                      # a method of neither kind: the same object, as a rule, in the next call
    cdef uint64_t epoch                 # history << 32 | epoch, as replies carry it
    cdef readonly object parked         # calls that wait for room, in order
    cdef bint stopped                   # the first of them waits for the journal: so does all that comes
    cdef dict attached                  # CallID -> calls that repeat one under way
    cdef readonly object error
    cdef bytes reply
    cdef uint8_t status

    cdef Entrance enter(self, Callables callables, Call call) except *
    cdef int begin(self, Call call) except -1
    cdef int finish(self, Call call, uint8_t status, Buf *b) except -1
    cdef int settle(self, Call call, uint8_t status) except -1
    cdef Entrance enter_read(self, Call call) except *
    cdef bint may_start(self, Call call) except -1
    cdef int look(self, Call call) except -1
    cdef int set_aside(self, Call call) except -1
    cdef object verify(self, Call call, uint8_t status, Buf *b)
    cdef uint64_t may_leave(self) except? 0
    cdef void rest(self) noexcept
    cdef int view(self, Call call, CallView *v) except -1
    cdef object execution_of(self, Call call)
    cdef char *skip_deps(self, Call call, char *p, char *end) except NULL
    cdef int ask(self, Call call) except -1
    cdef bint full_c(self) except -1
    cdef bint stops(self, Call call) except -1
    cdef int sees(self, Call call) except -1
    cdef int park(self, Call call, bint stops) except -1
    cdef int unpark(self) except -1
    cdef bytes call_id(self, const CallView *v)
    cdef bytes body(self, const CallView *v)
    cdef Entrance poisoned(self, const CallView *v, Call call) except *
    cdef object refusal(self, int outcome, const CallView *v, Call call)
    cdef bint is_crash(self, object error) except -1
    cdef int crash(self, object error) except -1
    cdef object repetitions(self, Call call)
    cdef int forget(self, Call call) except -1

cdef int acknowledged(DurableCalls d, Blob *frame) except -1
cdef int callers_done(DurableCalls d, Blob *frame) except -1
