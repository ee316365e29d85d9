"""Lineage: how values in shared memory can be made again (see lineage.pxd).

Decides: which finished tasks are kept, for how long, and which of them have to run when a value is lost.

A finished task is *kept* while a return or item of it, whose value is in shared memory or spilled, is referenced: locally, by borrowers, or
as an argument of another kept task. Inline values are in the owner's own memory and cannot be lost, so a task with none
but inline returns is not kept. A kept task does not hold the values of its arguments: an owned argument that only
lineage needs (`ObjExt.lineage` > 0) keeps its entry and its maker, and gives up its block (an inline value stays, it
is what the task needs to run again). A borrowed argument stays borrowed, since its owner knows nothing of our lineage.

Generators. Items have a maker from the moment that they come, for one can be lost while the generator still runs: if the
attempt that runs is past it, that attempt is stopped at its next yield and followed by another one, since to wait for its
end might take for ever. A task that runs again fills the entries that are *missing*, and its other items are freed.

Invariants: `ext.maker` of an entry is a task that is kept or runs, and has the entry among its returns or its
`Items.made`; `TaskRec.kept` counts these in a kept task; `Items.missing` counts the items that are pending; a kept task is in `Core.kept` and its bytes in `lineage_bytes`, which exceeds
`max_lineage_bytes` never longer than one call; an entry that has no value, no task that makes it and lineage can be made
again by its maker, or never.

Leaves to others: what an entry without holders gives up (refs.pyx), and running tasks (recovery.pyx, tasks.pyx).
"""

from cython.operator cimport dereference as deref, preincrement as following
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy
from libcpp.vector cimport vector

from ftray._core.rules cimport list_push, list_remove
from ftray._core.types cimport (OBJ_INLINE, OBJ_OWNED, OBJ_PENDING, OBJ_SHM, TASK_CANCELLED, TASK_KEPT, TASK_NEW, TASK_PUSHED, Core, Items,
                                ObjEntry, ObjExt, TaskRec, blob_drop)

cdef enum:
    PUT_INDEXES = 0x80000000        # of ObjectIDs, from here on (context.pyx)
    ITEM_INDEXES = 2                # of those of a generator task (wire.pxd)


cdef uint8_t refusal(Core *c, TaskRec *t) noexcept nogil:
    """Why a finished task is not kept; 0 when it is."""
    if c.lineage_off:
        return UNMADE_OFF
    if t.flags & TASK_CANCELLED:
        return UNMADE_CANCELLED
    if t.retries_left == 0:
        return UNMADE_METHOD if t.actor != NULL and t.attempt == 0 else UNMADE_RETRIES
    return 0


cdef inline uint32_t index_of(ObjEntry *e) noexcept nogil:
    cdef uint32_t index
    memcpy(&index, &e.id.b[24], 4)
    return index


cdef inline ObjExt *ext_of(ObjEntry *e) noexcept nogil:
    if e.ext == NULL:
        e.ext = new ObjExt()
    return e.ext


cdef inline bint wanted(ObjEntry *e) noexcept nogil:
    return e.state >= OBJ_SHM and (e.local > 0 or e.holds > 0 or (e.ext != NULL and e.ext.lineage > 0))


cdef uint64_t cost(TaskRec *t) noexcept nogil:
    """Bytes that keeping the record costs: itself, its arguments, and the values that it keeps from being freed."""
    cdef uint64_t n = sizeof(TaskRec) + t.args.size + 8 * (t.ndeps + t.nnested)
    n += t.nret * (8 + sizeof(ObjEntry) + sizeof(ObjExt))
    if t.items != NULL:
        n += sizeof(Items) + t.items.made.size() * (64 + sizeof(ObjEntry) + sizeof(ObjExt))
    cdef uint16_t i
    cdef ObjEntry *d
    for i in range(t.ndeps + t.nnested):
        d = t.deps[i]
        if d.state == OBJ_INLINE and d.blob != NULL:       # (an actor's handle has none)
            n += d.blob.size
        elif d.state == OBJ_SHM and not d.flags & OBJ_OWNED:
            n += d.size
    return n


cdef inline void forget_return(TaskRec *t, int i) noexcept nogil:
    if t.nret == 1:
        t.ret0 = NULL
    else:
        t.rets[i] = NULL


cdef uint32_t keep_items(TaskRec *t, uint8_t reason) noexcept nogil:
    """The items that a finished task can make again, and forget the others."""
    cdef ObjEntry *e
    at = t.items.made.begin()
    while at != t.items.made.end():
        e = deref(at).second
        e.ext.unmade = reason
        if reason == 0 and (e.state >= OBJ_SHM or (e.state < OBJ_INLINE and e.ext.lineage > 0)):
            following(at)
        else:
            e.ext.maker = NULL
            at = t.items.made.erase(at)
    return <uint32_t>t.items.made.size()


cdef bint lineage_keep(Core *c, TaskRec *t) noexcept nogil:
    """A task has finished: keep it if that is of use. What it keeps counts as lineage beside the holds that it has.

    Afterwards the caller takes back the holds on owned arguments; of borrowed ones they stay.
    """
    cdef uint8_t reason = refusal(c, t)
    cdef uint32_t n = 0
    cdef int i
    cdef ObjEntry *e
    for i in range(t.nret):
        e = task_return(t, i)
        if e == NULL:
            continue
        if e.ext != NULL:
            e.ext.maker = NULL
        if wanted(e):
            ext_of(e).unmade = reason
            if reason == 0:
                e.ext.maker = t
                n += 1
                continue
        forget_return(t, i)
    if t.items != NULL:
        n += keep_items(t, reason)
    if n == 0:
        return False
    t.kept = n
    t.state = TASK_KEPT
    t.kept_bytes = cost(t)
    c.lineage_bytes += t.kept_bytes
    list_push(&c.kept, t)
    for i in range(t.ndeps + t.nnested):
        if t.deps[i].flags & OBJ_OWNED:
            ext_of(t.deps[i]).lineage += 1
    return True


cdef void lineage_loosen(vector[ObjEntry *] *loose, ObjEntry *e) noexcept nogil:
    """Somebody has to look whether anything holds this entry; each stands on a list once."""
    if not e.listed:
        e.listed = 1
        loose.push_back(e)


cdef void withdraw(Core *c, TaskRec *t) noexcept nogil:
    list_remove(&c.kept, t)
    c.lineage_bytes -= t.kept_bytes


cdef void release(Core *c, TaskRec *t, vector[ObjEntry *] *loose) noexcept nogil:
    """A kept task goes."""
    cdef int i
    cdef ObjEntry *d
    withdraw(c, t)
    for i in range(t.ndeps + t.nnested):
        d = t.deps[i]
        if d.flags & OBJ_OWNED:
            d.ext.lineage -= 1
        else:
            d.holds -= 1
        lineage_loosen(loose, d)
    lineage_free(c, t)


cdef void lineage_free(Core *c, TaskRec *t) noexcept nogil:
    if t.deps != NULL:
        free(t.deps)
    if t.rets != NULL:
        free(t.rets)
    del t.items
    if t.note != NULL:
        c.spent_notes.push_back(t.note)         # flows.pyx sees to it
    blob_drop(t.args)
    c.task_slab.drop(t)


cdef void lineage_evict(Core *c, vector[ObjEntry *] *loose) noexcept nogil:
    """Too much is kept: the oldest goes first, and what it made cannot be made again."""
    cdef TaskRec *t
    cdef ObjEntry *e
    cdef int i
    while c.lineage_bytes > c.max_lineage_bytes and c.kept.head != NULL:
        t = c.kept.head
        for i in range(t.nret):
            e = task_return(t, i)
            if e != NULL:
                e.ext.maker = NULL
                e.ext.unmade = UNMADE_EVICTED
        if t.items != NULL:
            for item in t.items.made:
                item.second.ext.maker = NULL
                item.second.ext.unmade = UNMADE_EVICTED
        release(c, t, loose)


cdef void lineage_forget(Core *c, ObjEntry *e, vector[ObjEntry *] *loose) noexcept nogil:
    """An entry goes for good; so does the task that was kept for nothing else."""
    cdef TaskRec *t = e.ext.maker
    cdef uint64_t index = index_of(e)
    if t == NULL:
        return
    e.ext.maker = NULL
    if t.items == NULL or t.items.made.erase(index) == 0:
        forget_return(t, <int>(index - 1))
    t.kept -= 1
    if t.kept == 0 and t.state == TASK_KEPT:
        release(c, t, loose)


cdef void take(Core *c, TaskRec *t) noexcept nogil:
    """A kept task will run again: one retry less; its arguments are held, its missing returns are pending."""
    cdef int i
    cdef ObjEntry *e
    withdraw(c, t)
    t.state = TASK_NEW
    t.attempt += 1
    if t.retries_left > 0:
        t.retries_left -= 1
    for i in range(t.ndeps + t.nnested):
        e = t.deps[i]
        if e.flags & OBJ_OWNED:
            e.ext.lineage -= 1
            e.holds += 1
    for i in range(t.nret):
        e = task_return(t, i)
        if e != NULL and e.state < OBJ_INLINE:
            join(t, e)
    if t.items != NULL:
        t.items.again = False
        for item in t.items.made:
            if item.second.state < OBJ_INLINE:
                join(t, item.second)


cdef void join(TaskRec *t, ObjEntry *e) noexcept nogil:
    """The task, which runs, or is about to, gives the entry its value."""
    e.state = OBJ_PENDING
    e.task = t
    if t.items != NULL and index_of(e) >= ITEM_INDEXES:
        t.items.missing += 1


cdef bint passed(TaskRec *t, ObjEntry *e) noexcept nogil:
    """Is it an item that the attempt that runs now has yielded already?"""
    return t.state == TASK_PUSHED and t.items != NULL and not t.items.again and \
        index_of(e) >= ITEM_INDEXES and index_of(e) - ITEM_INDEXES < t.stream.s.seen


cdef uint8_t may_not_run_again(TaskRec *t) noexcept nogil:
    """Why a task cannot be asked for another attempt; 0 when it can."""
    if t.flags & TASK_CANCELLED:
        return UNMADE_CANCELLED
    return UNMADE_RETRIES if t.retries_left == 0 else UNMADE_UNKNOWN


cdef void lineage_item(TaskRec *t, ObjEntry *e) noexcept nogil:
    """An item of a task that runs has come: from now on the task can make it again, if it is in shared memory."""
    cdef uint64_t index = index_of(e)
    if e.state != OBJ_SHM:
        return
    if t.items == NULL:
        t.items = new Items()
    t.items.made[index] = e
    ext_of(e).maker = t


cdef ObjEntry *lineage_missing(TaskRec *t, uint64_t number) noexcept nogil:
    """The item of this number, if the task shall make it again; NULL otherwise."""
    cdef uint64_t index = number + ITEM_INDEXES
    if t.items == NULL or t.items.missing == 0:
        return NULL
    at = t.items.made.find(index)
    if at == t.items.made.end() or deref(at).second.task != t:
        return NULL
    return deref(at).second


cdef void lineage_made(TaskRec *t, ObjEntry *e) noexcept nogil:
    """An item that was missing has its value, or an error. The caller looks whether anything holds it."""
    cdef uint64_t index = index_of(e)
    e.task = NULL
    t.items.missing -= 1
    if e.state != OBJ_SHM:
        e.ext.maker = NULL
        t.items.made.erase(index)


cdef void lineage_plan(Core *c, ObjEntry *e, vector[TaskRec *] *run, vector[ObjEntry *] *hopeless) noexcept nogil:
    """What has to be done for an owned entry that lost its value (or gave it up): append the kept tasks that have to
    run (in any order, they wait for each other's values), and the entries that can never have a value again.

    Tasks that run already are joined. A generator whose running attempt is past the item is appended as well, and is still
    TASK_PUSHED: that attempt has to be stopped. Afterwards every entry in question has its value, is pending, or is hopeless.
    """
    cdef vector[ObjEntry *] work
    cdef TaskRec *t
    cdef int i
    work.push_back(e)
    while not work.empty():
        e = work.back()
        work.pop_back()
        if e.state >= OBJ_INLINE or e.task != NULL or not e.flags & OBJ_OWNED:
            continue
        t = e.ext.maker if e.ext != NULL else NULL
        if t == NULL:
            hopeless.push_back(e)
        elif t.state != TASK_KEPT and not passed(t, e):
            join(t, e)
        elif may_not_run_again(t):
            e.ext.unmade = may_not_run_again(t)
            hopeless.push_back(e)
        elif t.state != TASK_KEPT:
            if t.retries_left > 0:
                t.retries_left -= 1
            t.items.again = True
            join(t, e)
            run.push_back(t)
        else:
            take(c, t)
            run.push_back(t)
            for i in range(t.ndeps):
                work.push_back(t.deps[i])


cdef uint8_t lineage_reason(ObjEntry *e) noexcept nogil:
    """Why an entry is hopeless."""
    if e.ext != NULL and e.ext.unmade:
        return e.ext.unmade
    return UNMADE_PUT if index_of(e) >= PUT_INDEXES else UNMADE_UNKNOWN     # others had their reason set when they came


cdef void lineage_clear(Core *c) noexcept nogil:
    """The session is over: nothing refers to kept tasks any more."""
    cdef TaskRec *t
    while c.kept.head != NULL:
        t = c.kept.head
        withdraw(c, t)
        lineage_free(c, t)
