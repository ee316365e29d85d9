"""How a task ends: its returns get their values, or the same error, and the record is freed. Needs the core lock.

Owns: the end of a record's life. Invariants: whoever ends a task has taken it out of every list and window before, and
does not touch it afterwards; every return has a value when the record goes; what the task held (dependencies, nested
refs, arguments) is let go of exactly once. A record with values in shared memory may be kept as lineage (lineage.pyx).

Leaves to others: whether a task ends at all or runs again (rules.pyx decides, tasks.pyx and actors.pyx carry out).
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy
from libcpp.string cimport string

from ftray._core.events cimport EV_DEPENDENCY, event_death, event_failed
from ftray._core.flows cimport CALL_UNANSWERED, CALL_UNSENT, flow_answered
from ftray._core.intake cimport intake_outcome, intake_over
from ftray._core.lineage cimport lineage_free, task_return
from ftray._core.refs cimport refs_check, refs_ext, refs_finish_shared, refs_unhold
from ftray._core.replays cimport replay_fail, replay_fail_like
from ftray._core.segments cimport segment_owned
from ftray._core.types cimport (CMD_FREE_BLOCK, OBJ_INLINE, OBJ_IS_ERROR, OBJ_SHM, TASK_DONE, Blob, Command, Core, Id28, ObjEntry, ObjExt,
                                TaskRec, blob_hold)
from ftray._core.values cimport entry_set_error, entry_set_inline, read_value
from ftray._core.wire cimport ERR_CRASHED, ERR_LOST, VALUE_SHM, RetHead


cdef void keep_name(TaskRec *t) noexcept nogil:
    """A call to an exactly-once actor that ended with an error can be asked for by its returns."""
    cdef uint16_t i
    cdef ObjEntry *e
    cdef ObjExt *x
    for i in range(t.nret):
        e = task_return(t, i)
        if e != NULL and e.flags & OBJ_IS_ERROR and t.note.head != NULL:
            x = refs_ext(e)
            if x.call == NULL:
                x.call = blob_hold(t.note.head)
                x.fate = t.note.fate if t.note.fate else CALL_UNANSWERED if t.note.sent else CALL_UNSENT


cdef void finish(Core *c, TaskRec *t) noexcept nogil:
    """All returns have their values: let go of everything the task held."""
    cdef uint16_t i
    cdef ObjEntry *e
    cdef bint shared = False
    if t.note != NULL:
        if t.actor != NULL and t.actor.durable:
            keep_name(t)
        flow_answered(c, t)
    t.state = TASK_DONE
    if t.stream != NULL:
        intake_over(c, t)
    for i in range(t.nret):
        e = task_return(t, i)
        if e != NULL and e.state >= OBJ_SHM:
            shared = True
    if t.items != NULL and not t.items.made.empty():
        shared = True
    if shared:
        refs_finish_shared(c, t)
        return
    for i in range(t.ndeps + t.nnested):
        refs_unhold(c, t.deps[i])
    for i in range(t.nret):
        e = task_return(t, i)
        if e != NULL:
            if e.ext != NULL:
                e.ext.maker = NULL
            e.task = NULL
            refs_check(c, e)
    if t.actor != NULL:
        t.actor.npending -= 1
    c.n_tasks -= 1
    lineage_free(c, t)


cdef void refuse_block(Core *c, char *p, char *end, const Id28 *sender) noexcept nogil:
    """A value that nobody needs (any more, or again) gives back what it has in shared memory."""
    cdef RetHead *r = <RetHead *>p
    cdef Command cmd
    if p + sizeof(RetHead) > end or r.kind != VALUE_SHM:
        return
    segment_owned(c, r.seg, sender)
    cmd.kind = CMD_FREE_BLOCK
    cmd.a = r.seg
    cmd.b = r.off
    c.commands.push_back(cmd)


cdef void refuse_values(Core *c, char *p, char *end, uint16_t nret, const Id28 *sender) noexcept nogil:
    """The values of a reply that counts for nothing."""
    cdef uint16_t i
    for i in range(nret):
        if p != NULL:
            refuse_block(c, p, end, sender)
            p = read_value(c, NULL, p, end, sender, True)


cdef void task_fail(Core *c, TaskRec *t, uint8_t code, const char *payload, uint64_t size) noexcept nogil:
    """Every return becomes the same error. The task must be in no list."""
    cdef uint16_t i
    cdef ObjEntry *e
    if code != ERR_CRASHED:             # that one is told with its report
        event_failed(c, t, t.attempt, code, NULL)
    for i in range(t.nret):
        e = task_return(t, i)
        if e != NULL and e.state < OBJ_INLINE:
            entry_set_error(c, e, code, payload, size)
    if t.items != NULL:
        replay_fail(c, t, code, payload, size)
    finish(c, t)


cdef void fail_crashed(Core *c, TaskRec *t, const Id28 *worker, const char *report, uint64_t size) noexcept nogil:
    """The error's payload: the function's name as its definition has it (u16 length, bytes), then the death report."""
    cdef string payload
    cdef Blob *b = c.fns[t.fn]
    cdef uint16_t n = 0
    if b.size >= 3:
        memcpy(&n, b.data + 1, 2)
    if <uint64_t>n + 3 > b.size:
        n = 0
    event_failed(c, t, t.attempt, event_death(report, size, ERR_CRASHED), worker.b)
    payload.append(<const char *>&n, 2)
    payload.append(b.data + 3, n)
    payload.append(report, size)
    task_fail(c, t, ERR_CRASHED, payload.data(), payload.size())


cdef bint tasks_fail_dep(Core *c, TaskRec *t) noexcept nogil:
    """A dependency that is an error makes the task that error."""
    cdef uint16_t i, j
    cdef ObjEntry *e
    cdef ObjEntry *r
    for i in range(t.ndeps):
        e = t.deps[i]
        if e.flags & OBJ_IS_ERROR:
            e.holds += 1
            event_failed(c, t, t.attempt, EV_DEPENDENCY, NULL)
            for j in range(t.nret):
                r = task_return(t, j)
                if r != NULL and r.state < OBJ_INLINE:
                    entry_set_inline(c, r, blob_hold(e.blob), True)
            if t.items != NULL:
                replay_fail_like(c, t, e.blob)
            finish(c, t)
            refs_unhold(c, e)
            return True
    return False


cdef void complete(Core *c, TaskRec *t, char *p, char *end, uint16_t nret, const Id28 *sender) noexcept nogil:
    """The values of a reply, `nret` of them from `p` on, become those of the task's returns."""
    cdef uint16_t i
    cdef ObjEntry *e
    if t.stream != NULL and nret == 1 and intake_outcome(c, t, p, end):
        finish(c, t)
        return
    for i in range(nret):
        e = NULL
        if i < t.nret:
            e = task_return(t, i)
        if p != NULL and (e == NULL or e.state >= OBJ_INLINE):
            refuse_block(c, p, end, sender)
        if p != NULL:
            p = read_value(c, e, p, end, sender, True)
        if p == NULL and e != NULL and e.state < OBJ_INLINE:
            entry_set_error(c, e, ERR_LOST, b"the reply could not be read", 27)
    if nret < t.nret:
        task_fail(c, t, ERR_LOST, b"the reply lacks a value", 23)
    else:
        finish(c, t)
