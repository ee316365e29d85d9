"""Generators that run again for items that were lost (see lineage.pyx): what they yield this time.

A *replay* is a stream without a consumer: its task had ended, and is executed again. Ids are the same in each attempt, so
an item fills its entry if that is missing, and is freed otherwise. When the last one that was missing has come, the producer
is told to stop. If the value of a dynamic generator is lost, the list of its items, all of them are held until the list is
there, and those that are not known any more come into being anew.

Owns: entries that are missing, until they have a value. Invariants: when the task's record goes, none is missing; what an
attempt that ends has not yielded becomes its error, or says that the generator yields less than it did.

Leaves to others: which items can be made again and which task has to run (lineage.pyx), frames (intake.pyx).
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

from ftray._core.lineage cimport lineage_made
from ftray._core.refs cimport refs_check
from ftray._core.types cimport OBJ_INLINE, TASK_DYNAMIC, Blob, Core, Id28, ObjEntry, Stream, TaskRec, blob_drop, blob_hold
from ftray._core.values cimport entry_set_error, entry_set_inline, read_value
from ftray._core.wire cimport ERR_LOST, ERR_REPLAY, FIRST_ITEM, RetHead


cdef void replay_open(TaskRec *t) noexcept nogil:
    """The stream of a task that had ended and is about to run again."""
    cdef Stream *st = new Stream()
    cdef bint lists = t.ret0 != NULL and t.ret0.state < OBJ_INLINE
    st.task = t
    st.done = t.ret0
    st.replay = True
    st.dynamic = t.flags & TASK_DYNAMIC
    st.s.dropped = st.s.stopped = not lists
    t.stream = st


cdef bint replay_done(TaskRec *t) noexcept nogil:
    """Has everything been made that the task runs again for, so that the rest need not be yielded?"""
    return t.stream.s.stopped and (t.items == NULL or t.items.missing == 0)


cdef void replay_item(Core *c, TaskRec *t, ObjEntry *e, char *p, char *end, const Id28 *sender) noexcept nogil:
    """An item that was missing has come."""
    if read_value(c, e, p, end, sender, True) == NULL:
        entry_set_error(c, e, ERR_LOST, b"the item could not be read", 26)
    lineage_made(t, e)
    refs_check(c, e)


cdef void list_missing(TaskRec *t, vector[ObjEntry *] *out) noexcept nogil:
    if t.items == NULL or t.items.missing == 0:
        return
    for item in t.items.made:
        if item.second.task == t:
            out.push_back(item.second)


cdef void replay_outcome(Core *c, TaskRec *t, char *p, char *end) noexcept nogil:
    """The attempt has ended with this reply: what it has not yielded it does not yield any more."""
    cdef vector[ObjEntry *] missing
    cdef uint64_t counts[2]
    cdef Blob *error
    list_missing(t, &missing)
    if missing.empty():
        return
    if p + sizeof(RetHead) <= end and (<RetHead *>p).is_error:
        if read_value(c, missing[0], p, end, &c.worker_id, True) != NULL and missing[0].blob != NULL:
            error = blob_hold(missing[0].blob)
            replay_fail_like(c, t, error)
            blob_drop(error)
            return
    counts[0] = t.stream.s.seen
    counts[1] = 0
    memcpy(&counts[1], &missing.back().id.b[24], 4)
    counts[1] -= FIRST_ITEM - 1
    replay_fail(c, t, ERR_REPLAY, <const char *>counts, 16)


cdef void replay_fail(Core *c, TaskRec *t, uint8_t code, const char *payload, uint64_t size) noexcept nogil:
    """What is missing becomes an error."""
    cdef vector[ObjEntry *] missing
    cdef size_t i
    list_missing(t, &missing)
    for i in range(missing.size()):
        entry_set_error(c, missing[i], code, payload, size)
        lineage_made(t, missing[i])
        refs_check(c, missing[i])


cdef void replay_fail_like(Core *c, TaskRec *t, Blob *error) noexcept nogil:
    """What is missing (one may have it already) becomes this very error."""
    cdef vector[ObjEntry *] missing
    cdef size_t i
    list_missing(t, &missing)
    for i in range(missing.size()):
        if missing[i].state < OBJ_INLINE:
            entry_set_inline(c, missing[i], blob_hold(error), True)
        lineage_made(t, missing[i])
        refs_check(c, missing[i])
