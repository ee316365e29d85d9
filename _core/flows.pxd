"""Identity of calls that a re-execution of their caller does not change (CallIDs), and what calls inherit."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from ftray._core.context cimport Context
from ftray._core.types cimport Channel, Core, Id16, TaskRec

cdef enum:
    FLOW_LIVE = 1            # Context.durable: a mutating method of an exactly-once actor runs,
    FLOW_REPLAY = 2          # or runs again to rebuild the state

cdef enum CallFate:          # of a call to an exactly-once actor that ended with an error; ObjExt.fate
    CALL_UNSENT = 1          # it never left
    CALL_UNANSWERED = 2      # it was sent, and nobody knows
    CALL_REFUSED = 3         # the actor's answer, which is no reply of the method
    CALL_RECORDED = 4        # the recorded reply

cdef const char *frame_head(const char *frame, uint64_t size) noexcept nogil
cdef bint frame_comes_back(Core *c, const char *frame, uint64_t size) noexcept nogil
cdef void callee_key(const char *data, size_t size, Id16 *out) noexcept nogil
cdef void flow_name_call(Core *c, Context *x, TaskRec *t) noexcept nogil
cdef void flow_name(Context *x, const Id16 *key, uint8_t *call_id) noexcept nogil
cdef bint flow_needs_root(Core *c, Context *x) noexcept nogil
cdef bint flow_end(Context *x) noexcept nogil
cdef void flow_retried(TaskRec *t) noexcept nogil
cdef void flow_learn(TaskRec *t, uint64_t epoch) noexcept nogil
cdef void flow_touched(Core *c, TaskRec *t) noexcept nogil
cdef void flow_answered(Core *c, TaskRec *t) noexcept nogil
# The call that the main thread takes, and whether tasks of it have called exactly-once actors.
cdef void flow_running(const char *frame) noexcept nogil
cdef bint flow_nested(Core *c) noexcept nogil
# A head as it goes into a frame: what its caller knows now.
cdef void flow_stamp(TaskRec *t, char *head) noexcept nogil
# Nobody will execute this caller again: its callees are told soon.
cdef void flow_over(Core *c, const Id16 *call) noexcept nogil
# An actor that has no room for this call wants to know which replies its caller has.
cdef void flow_acknowledge(Core *c, Channel *ch, uint64_t seq) noexcept nogil
cdef void flow_report(Core *c) noexcept nogil
