"""Cancelling what this process has submitted, and asking other owners to (see cancels.pxd).

Owns: the cancelled mark of a task, and kills that are due. Invariants: a cancelled task never runs again, whatever
happens to its worker; what has not been sent is over at once; a forced cancel ends a process only if that process is
in this very call: it asks for its own end, after it has cancelled what the call had submitted. Only when it does not
answer at all is it ended from here.

Leaves to others: what a running call notices (execqueue.pyx and who runs calls), lists and windows (tasks.pyx).
"""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

from ftray._core.channel cimport FRAME_HEADER, F_CANCEL, F_CANCEL_OBJECT, chan_begin, chan_commit, chan_connect
from ftray._core.nodelink cimport N_WORKER_KILL, node_put
from ftray._core.outcomes cimport task_fail
from ftray._core.refs cimport refs_find
from ftray._core.rules cimport list_remove
from ftray._core.depends cimport depends_forget
from ftray._core.types cimport (CH_OPEN, TASK_CANCELLED, TASK_HELD, TASK_PUSHED, TASK_QUEUED, TASK_WAITS_DEPS, Channel, Core,
                                DueKill, Id28, ObjEntry, TaskList, TaskRec, mono_ns)
from ftray._core.wire cimport CANCEL_FORCE, CANCEL_RECURSIVE, ERR_CANCELLED

cdef enum:
    KILL_AFTER_NS = 200000000   # how long a worker may take to end itself


cdef TaskList *list_of(Core *c, TaskRec *t) noexcept nogil:
    """Where a task is that was not sent."""
    if t.flags & TASK_HELD:
        return &t.actor.held
    if t.actor != NULL:
        return &t.actor.queue
    return &c.waiting if t.state == TASK_WAITS_DEPS else &t.cls.queue


cdef void task_cancel(Core *c, TaskRec *t, bint force, bint recursive) noexcept nogil:
    """Cancel a task wherever it is; a running one is asked to stop (or, with force, its process is ended)."""
    cdef uint8_t flags = 0
    t.flags |= TASK_CANCELLED
    if t.state == TASK_WAITS_DEPS or t.state == TASK_QUEUED:
        list_remove(list_of(c, t), t)
        depends_forget(c, t)
        task_fail(c, t, ERR_CANCELLED, NULL, 0)
    elif t.state == TASK_PUSHED and t.ch.state == CH_OPEN:
        force = force and t.actor == NULL
        if recursive:
            flags |= CANCEL_RECURSIVE
        if force:
            flags |= CANCEL_FORCE
            kill_later(c, t)
        chan_begin(c, t.ch, FRAME_HEADER, F_CANCEL, flags, 0, t.seq)
        chan_commit(c, t.ch, FRAME_HEADER)


# --- what a task has submitted --------------------------------------------------------------------------------------

cdef void collect_children(TaskList *l, uint64_t parent, vector[TaskRec *] *out) noexcept nogil:
    cdef TaskRec *t = l.head
    while t != NULL:
        if t.parent == parent:
            out.push_back(t)
        t = t.next


cdef void cancel_children(Core *c, uint64_t parent, bint force) noexcept nogil:
    """A call that runs here was cancelled: so is everything that it has submitted."""
    cdef vector[TaskRec *] children
    cdef size_t i, j
    collect_children(&c.waiting, parent, &children)
    for item in c.classes:
        collect_children(&item.second.queue, parent, &children)
    for entry in c.actors:
        collect_children(&entry.second.queue, parent, &children)
        collect_children(&entry.second.held, parent, &children)
        collect_children(&entry.second.limbo, parent, &children)
    for i in range(c.channels.size()):
        if c.channels[i] == NULL:
            continue
        for j in range(c.channels[i].inflight.size()):
            if c.channels[i].inflight[j] != NULL and c.channels[i].inflight[j].parent == parent:
                children.push_back(c.channels[i].inflight[j])
    for i in range(children.size()):
        task_cancel(c, children[i], force, True)


# --- ends of processes ----------------------------------------------------------------------------------------------

cdef void cancel_kill(Core *c, Id28 *worker) noexcept nogil:
    """Have ftrayd end a worker."""
    cdef char p[64]
    cdef uint16_t zero = 0
    memcpy(p, worker.b, 28)
    p[28] = 1
    memcpy(p + 29, &zero, 2)
    node_put(c, N_WORKER_KILL, 0, p, 31)


cdef void kill_later(Core *c, TaskRec *t) noexcept nogil:
    cdef DueKill k
    k.worker = t.ch.worker
    k.ch_uid = t.ch.uid
    k.seq = t.seq
    k.at_ns = mono_ns() + KILL_AFTER_NS
    c.due_kills.push_back(k)
    if c.timer_ns == 0 or k.at_ns < c.timer_ns:
        c.timer_ns = k.at_ns


cdef bint still_in_flight(Core *c, DueKill *k) noexcept nogil:
    cdef Channel *ch
    cdef size_t i
    for i in range(c.channels.size()):
        ch = c.channels[i]
        if ch != NULL and ch.uid == k.ch_uid:
            return k.seq - ch.base_seq < ch.inflight.size() and ch.inflight[k.seq - ch.base_seq] != NULL
    return False


cdef void cancel_due_kills(Core *c, uint64_t now_ns) noexcept nogil:
    """Timer: workers that have not even ended themselves (they hang)."""
    cdef vector[DueKill] later
    cdef size_t i
    if c.due_kills.empty():
        return
    for i in range(c.due_kills.size()):
        if not still_in_flight(c, &c.due_kills[i]):
            continue
        if c.due_kills[i].at_ns <= now_ns:
            cancel_kill(c, &c.due_kills[i].worker)
        else:
            later.push_back(c.due_kills[i])
            if c.timer_ns == 0 or c.due_kills[i].at_ns < c.timer_ns:
                c.timer_ns = c.due_kills[i].at_ns
    c.due_kills.swap(later)


# --- refs of other owners -------------------------------------------------------------------------------------------

cdef void cancel_at_owner(Core *c, ObjEntry *e, uint8_t flags) noexcept nogil:
    """Only the owner of a borrowed ref knows its task. One that is dead has taken the task along."""
    cdef Channel *ch = chan_connect(c, &e.ext.owner)
    cdef char *p
    if ch == NULL:
        return
    p = chan_begin(c, ch, FRAME_HEADER + 28, F_CANCEL_OBJECT, flags, 0, 0)
    memcpy(p, e.id.b, 28)
    chan_commit(c, ch, FRAME_HEADER + 28)


cdef void cancel_asked(Core *c, Id28 *id, uint8_t flags) noexcept nogil:
    """A borrower wants the task cancelled that makes an object of ours."""
    cdef ObjEntry *e = refs_find(c, id)
    if e != NULL and e.task != NULL:
        task_cancel(c, e.task, flags & CANCEL_FORCE, flags & CANCEL_RECURSIVE)
