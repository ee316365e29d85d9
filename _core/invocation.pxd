"""A call that has come in: what to call, with which arguments."""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from ftray._core.buf cimport Buf
from ftray._core.types cimport Channel, ExecTask, Id28
from ftray._core.wire cimport DepHead


cdef enum Stage:
    WAITING = 0                 # for a thread, or for its group's turn in the event loop
    RUNNING = 1
    DROPPED = 2                 # cancelled before it ran, and answered


cdef class Call:
    cdef ExecTask t
    cdef uint64_t key           # call_key
    cdef Stage stage            # of a call that runs beside others
    cdef bint cancelled         # somebody asked for it while it ran
    cdef uint64_t position      # in the journal of an exactly-once actor: the answer waits until that is durable; 0: it does not
    cdef bint reads             # a read-only method of an exactly-once actor
    cdef uint64_t seen          # of the journal, by a read-only method of an exactly-once actor
    cdef bint unsettled         # recorded, and not entered as answered yet
    cdef bint accepted          # by the gate of an exactly-once actor, whatever has become of it: its repetitions get its answer
    cdef bint entered           # accepted, and not recorded yet
    cdef bint refused           # an entered call that was given an error instead of being run
    cdef bint recorded          # by an exactly-once actor: the answer is what everybody gets who asks again
    cdef bint parked            # waits for room among the replies that this actor keeps, or in its journal
    cdef uint64_t asked         # position after which its caller was asked what it has got, while the call waits for room
    cdef bytes deps             # top-level refs among the arguments by value, as records have them
    cdef object outside         # what the toolkit records of an entered call that asks for something outside
    cdef object before          # the state before an exactly-once call that is verified
    cdef object ticket          # turn of a call of an exactly-once actor with an event loop
    cdef bint touched           # it has called exactly-once actors
    cdef bint exits             # exit_actor() was called in it: it is not answered
    cdef object task            # of asyncio, in an async actor
    cdef object function        # what to call
    cdef str name               # for errors and logs
    cdef str method             # of an actor: its own name
    cdef object retry           # None, True or a tuple of exception classes
    cdef list left              # [how often the function may still be run here], None without a limit
    cdef tuple args
    cdef dict kwargs
    cdef list keep              # refs of the top-level arguments
    cdef uint16_t nret

    cdef int release(self) except -1


cdef class Callables:
    cdef dict loaded            # definition bytes -> (callable, name, retry, concurrency group, method, calls left or None)
    cdef object instance        # the actor that lives here, or None
    cdef str class_name
    cdef object entry_points    # methods that the checkpoint session serves itself
    cdef object before_load     # callback: the first function is about to be loaded

    cdef int decode(self, Call call) except -1
    cdef tuple lookup(self, Channel *ch, uint32_t fn)
    cdef tuple load(self, bytes definition)
    cdef tuple load_method(self, bytes definition, unpickle)
    cdef str describe(self)

cdef int put_dependency(Buf *b, DepHead *d, char *inline_bytes, const Id28 *caller) except -1
cdef const char *call_head(ExecTask *t) noexcept nogil
