"""What a task waits for before it can run: the values of its arguments.

Owns: `deps_pending` of a task, the waiters of kind "task" of its arguments, and what a value that is lost means for
tasks that had counted on it. Invariants: a task that waits has as many waiters as `deps_pending` says, and none for a
value that is there; a task in a queue (of a class, or TASK_QUEUED in an actor's) has all of its values, so that
a frame is never written without them.

Leaves to others: queues of tasks that can run (tasks.pyx, leases.pyx, actors.pyx), fetching and making values.
"""

from libc.stdint cimport uint16_t

from ftray._core.borrows cimport borrow_fetch
from ftray._core.rules cimport list_push, list_remove
from ftray._core.types cimport (OBJ_FETCHING, OBJ_INLINE, OBJ_UNKNOWN, TASK_QUEUED, TASK_WAITS_DEPS, Core, ObjEntry, SchedClass,
                                TaskRec, Waiter)
from ftray._core.values cimport entry_add_waiter, entry_set_error
from ftray._core.wire cimport ERR_LOST, ERR_OWNER_DIED


cdef bint depends_wait(Core *c, TaskRec *t) noexcept nogil:
    """Wait for every argument whose value is not here. False: there is none."""
    cdef uint16_t i
    cdef ObjEntry *e
    t.deps_pending = 1                  # not to be found ready while its dependencies are still being counted
    for i in range(t.ndeps):
        e = t.deps[i]
        if e.state >= OBJ_INLINE:
            continue
        t.deps_pending += 1
        entry_add_waiter(e, 0, t, NULL, 0)
        if e.lost:
            entry_set_error(c, e, ERR_OWNER_DIED if e.lost == 1 else ERR_LOST, NULL, 0)
        elif e.state == OBJ_UNKNOWN and not e.flags & OBJ_FETCHING:
            borrow_fetch(c, e)
    t.deps_pending -= 1
    return t.deps_pending != 0


cdef void depends_forget(Core *c, TaskRec *t) noexcept nogil:
    """Dependencies shall not tell this task any more, nor have just told it."""
    cdef Waiter **at
    cdef Waiter *w
    cdef uint16_t i
    cdef size_t k
    for i in range(t.ndeps):
        at = &t.deps[i].waiters
        while at[0] != NULL:
            w = at[0]
            if w.kind == 0 and w.task == t:
                at[0] = w.next
                del w
            else:
                at = &w.next
    t.deps_pending = 0
    for k in range(c.ready.size()):
        if c.ready[k] == t:
            c.ready[k] = c.ready.back()
            c.ready.pop_back()
            return


# --- a value that was there is lost ---------------------------------------------------------------------------------

cdef uint16_t counts_on(TaskRec *t, ObjEntry *e) noexcept nogil:
    """How many arguments of the task this object is."""
    cdef uint16_t i, n = 0
    for i in range(t.ndeps):
        if t.deps[i] == e:
            n += 1
    return n


cdef void wait_again(Core *c, TaskRec *t, ObjEntry *e, uint16_t n) noexcept nogil:
    cdef uint16_t i
    if t.deps_pending == 0:
        depends_forget(c, t)                # it may stand on the list of those that can go on
        t.state = TASK_WAITS_DEPS
    t.deps_pending += n
    for i in range(n):
        entry_add_waiter(e, 0, t, NULL, 0)


cdef void class_waits_again(Core *c, SchedClass *k, ObjEntry *e) noexcept nogil:
    cdef TaskRec *t = k.queue.head
    cdef TaskRec *following
    cdef uint16_t n
    while t != NULL:
        following = t.next
        n = counts_on(t, e) if t.ndeps else 0
        if n:
            list_remove(&k.queue, t)
            list_push(&c.waiting, t)
            wait_again(c, t, e, n)
        t = following


cdef void list_waits_again(Core *c, TaskRec *t, ObjEntry *e) noexcept nogil:
    """These stay where they are."""
    cdef uint16_t n
    while t != NULL:
        n = counts_on(t, e) if t.ndeps else 0
        if n:
            wait_again(c, t, e, n)
        t = t.next


cdef void depends_lost(Core *c, ObjEntry *e) noexcept nogil:
    """The entry had a value and has none any more: who has not been sent to its worker waits for the next one."""
    list_waits_again(c, c.waiting.head, e)
    for item in c.classes:
        class_waits_again(c, item.second, e)
    for entry in c.actors:
        list_waits_again(c, entry.second.queue.head, e)
        list_waits_again(c, entry.second.held.head, e)
