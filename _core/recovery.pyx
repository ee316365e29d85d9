"""Values that are lost are made again: lineage.pyx decides what has to run, this module has it run.

Owns: what follows when somebody finds that a value in shared memory cannot be read. Invariants: a value is given up only
under the lock, and only if it is still where it could not be read, so that of many who notice one loss the first makes it
pending and the others wait with it; only returns without a value take the values of a task that runs again; whatever
cannot be made again becomes an error that says why. A borrower tells the owner, which does the same.

Leaves to others: the decisions (lineage.pyx), how tasks run (tasks.pyx), what tells borrowers (borrows.pyx).
"""

from libc.stdint cimport uint8_t, uint64_t
from libcpp.string cimport string
from libcpp.vector cimport vector

from ftray._core.borrows cimport borrow_lost, borrows_set_recovery
from ftray._core.depends cimport depends_lost
from ftray._core.events cimport event_renewed
from ftray._core.lineage cimport UNMADE_CANCELLED, lineage_plan, lineage_reason
from ftray._core.intake cimport intake_stop
from ftray._core.refs cimport refs_drop_value, refs_hold, refs_unhold
from ftray._core.replays cimport replay_open
from ftray._core.spills cimport spills_set_recovery
from ftray._core.tasks cimport task_submit
from ftray._core.types cimport OBJ_INLINE, OBJ_OWNED, TASK_NEW, TASK_STREAM, Core, ObjEntry, TaskRec
from ftray._core.values cimport entry_set_error
from ftray._core.wire cimport ERR_CANCELLED, ERR_HEAD_DIED, ERR_UNMADE


cdef void recovery_install() noexcept nogil:
    borrows_set_recovery(value_lost, recover)
    spills_set_recovery(value_lost_so)


cdef void value_lost(Core *c, ObjEntry *e) noexcept nogil:
    value_lost_so(c, e, NULL, 0)


cdef void value_lost_so(Core *c, ObjEntry *e, const char *text, uint64_t size) noexcept nogil:
    if e.state <= OBJ_INLINE:               # noticed before, or it never was anywhere else
        return
    refs_hold(e)
    if e.flags & OBJ_OWNED:
        refs_drop_value(c, e)
        depends_lost(c, e)
        recover_so(c, e, text, size)
    else:
        depends_lost(c, e)
        borrow_lost(c, e)
    refs_unhold(c, e)


cdef void recover(Core *c, ObjEntry *e) noexcept nogil:
    """An owned entry has no value, and nothing makes one: run what can."""
    recover_so(c, e, NULL, 0)


cdef void recover_so(Core *c, ObjEntry *e, const char *text, uint64_t size) noexcept nogil:
    cdef vector[TaskRec *] run
    cdef vector[ObjEntry *] hopeless
    cdef TaskRec *t
    cdef size_t i
    if not c.node_alive:
        entry_set_error(c, e, ERR_HEAD_DIED, NULL, 0)
        return
    lineage_plan(c, e, &run, &hopeless)
    for i in range(hopeless.size()):
        refs_hold(hopeless[i])
    c.n_recovered += run.size()
    for i in range(run.size()):
        if run[i].state == TASK_NEW:
            event_renewed(c, run[i])
            if run[i].flags & TASK_STREAM:
                replay_open(run[i])
    for i in range(run.size()):
        t = run[run.size() - 1 - i]
        if t.state == TASK_NEW:
            task_submit(c, t)
        else:
            intake_stop(c, t)
    for i in range(hopeless.size()):
        if hopeless[i].state < OBJ_INLINE:
            if hopeless[i] == e:
                give_up(c, e, text, size)
            else:
                give_up(c, hopeless[i], NULL, 0)
        refs_unhold(c, hopeless[i])


cdef void give_up(Core *c, ObjEntry *e, const char *text, uint64_t size) noexcept nogil:
    cdef string payload
    cdef uint8_t reason = lineage_reason(e)
    if reason == UNMADE_CANCELLED:
        entry_set_error(c, e, ERR_CANCELLED, NULL, 0)
        return
    payload.append(<const char *>&reason, 1)
    payload.append(<const char *>e.id.b, 28)
    if size:
        payload.append(text, size)
    entry_set_error(c, e, ERR_UNMADE, payload.data(), payload.size())
