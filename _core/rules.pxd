"""Rules about tasks and leases: pure functions of the records, without I/O."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from ftray._core.types cimport Channel, Lease, SchedClass, TaskList, TaskRec

cdef enum Verdict:
    RUN_AGAIN = 1        # put it back in its queue
    FAIL_CRASHED = 2     # its process died under it and no retry is left
    FAIL_CANCELLED = 3
    FAIL_UNAVAILABLE = 4  # an actor call that was under way when the actor died; the actor comes back
    FAIL_ACTOR_DEAD = 5
    COMPLETE = 6         # take the values of the reply
    RUN_LATER = 7        # its process was ended for its memory: again, after a pause

cdef enum ReplyStatus:
    REPLY_OK = 0
    REPLY_ERROR = 1
    REPLY_CANCELLED = 2
    REPLY_GIVEN_BACK = 3
    REPLY_RETRY = 4      # an exception that `retry_exceptions` names

cdef enum:
    MAX_ASKED = 64
    REPLY_LAST = 1       # flag of the frame: the worker begins no further call

cdef Verdict after_death(TaskRec *t, bint started, bint actor_dead) noexcept nogil
cdef Verdict after_memory_kill(TaskRec *t, bint started, bint final, int32_t limit) noexcept nogil
cdef uint64_t memory_pause_ns(TaskRec *t, uint64_t first_ns) noexcept nogil
cdef Verdict after_reply(TaskRec *t, int status) noexcept nogil
cdef Lease *pick_lease(SchedClass *k) noexcept nogil
cdef uint32_t leases_wanted(SchedClass *k) noexcept nogil
cdef Lease *overloaded(SchedClass *k, uint64_t now_ns, uint64_t stale_ns) noexcept nogil
cdef void list_push(TaskList *l, TaskRec *t) noexcept nogil
cdef void list_remove(TaskList *l, TaskRec *t) noexcept nogil
cdef void list_insert(TaskList *l, TaskRec *t) noexcept nogil
cdef TaskRec *list_pop(TaskList *l) noexcept nogil
