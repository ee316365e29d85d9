"""Recalls: borrowers let go of the place of an object in shared memory, so that it can be spilled.

The owner asks (RECALL) those who borrow an object whether they can do without knowing where it is. A borrower that has no
view of it, waits for no answer about it and has told nobody about it in a call that is in flight says yes: from then on its
record says OBJ_SPILLED, "with the owner", and it asks the owner when it needs the value. A borrower that says no is asked
again later.

Owns: `Large.recall`, `asked_ns`, `open`, `away`. Invariants: a process in `away` does not know the place, nor learns it from
anybody but the owner, which takes it off the list when it tells it (`large_told`): it does not take the place out of a call's frame,
since its record is not without a value, or the owner has been asked. A record that goes and comes again does not know this;
but then the process has registered anew, which takes it off the list as well. Who learns the place in a call is either called by
the owner, which knows the calls in flight, or by a borrower, which says no as long as the call lasts; if it keeps the object it
registers before the call ends. Questions, answers and requests for values between two processes stay in order.

Leaves to others: when to ask and what may leave (spills.pyx), asking for the value (borrows.pyx, recovery.pyx).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

from ftray._core.channel cimport F_RECALL, F_RECALLED, FRAME_HEADER, FrameHeader, chan_begin, chan_commit, chan_connect
from ftray._core.refs cimport refs_find
from ftray._core.types cimport (OBJ_FETCHING, OBJ_INLINE, OBJ_OWNED, OBJ_PENDING, OBJ_SHM, OBJ_SPILLED, Channel, Core, Id28, Large, ObjEntry,
                                TaskRec, large_find, mono_ns, store8)

cdef enum:
    AGAIN_NS = 100000000        # who has said no is asked again after so long
    HOPE_NS = 5000000000        # an answer is waited for so long


# --- the owner ------------------------------------------------------------------------------------------------------

cdef bint is_away(Large *g, const Id28 *worker) noexcept nogil:
    cdef size_t i
    for i in range(g.away.size()):
        if g.away[i] == worker[0]:
            return True
    return False


cdef bint recall_done(Large *g) noexcept nogil:
    for item in g.e.ext.borrowers:
        if not is_away(g, &item.first):
            return False
    return True


cdef bint recall_open(Large *g) noexcept nogil:
    return g.open > 0 and mono_ns() - g.asked_ns < HOPE_NS


cdef void recall_ask(Core *c, ObjEntry *e) noexcept nogil:
    cdef vector[Id28] asked
    cdef Large *g = large_find(c, e)
    cdef Channel *ch
    cdef uint64_t now = mono_ns(), number
    cdef size_t i
    cdef char *p
    if now - g.asked_ns < AGAIN_NS:
        return
    for item in e.ext.borrowers:
        if not is_away(g, &item.first):
            asked.push_back(item.first)
    if g.recall == 0:
        g.recall = c.next_recall
        c.next_recall += 1
    number = g.recall
    g.asked_ns = now
    g.open = <uint32_t>asked.size()
    for i in range(asked.size()):
        ch = chan_connect(c, &asked[i])
        if ch == NULL:
            continue                    # it is dead, or there are no descriptors: no answer comes
        p = chan_begin(c, ch, FRAME_HEADER + 28, F_RECALL, 0, 0, number)
        memcpy(p, e.id.b, 28)
        chan_commit(c, ch, FRAME_HEADER + 28)


cdef void on_answer(Core *c, Channel *ch, FrameHeader *h, char *body) noexcept nogil:
    cdef ObjEntry *e = refs_find(c, <Id28 *>body)
    cdef Large *g = NULL
    if e != NULL and e.flags & OBJ_OWNED and e.state == OBJ_SHM and e.ext != NULL:
        g = large_find(c, e)
    if g == NULL or g.recall != h.seq:
        return                          # it has left this place
    if g.open > 0:
        g.open -= 1
    if h.flags and e.ext.borrowers.count(ch.worker) and not is_away(g, &ch.worker):
        g.away.push_back(ch.worker)


# --- the borrower ---------------------------------------------------------------------------------------------------

cdef bint told_in_flight(Core *c, ObjEntry *e) noexcept nogil:
    """Does a call in flight have the object, and perhaps its place, in its frame?"""
    cdef Channel *ch
    cdef TaskRec *t
    cdef size_t i, k
    cdef uint32_t d
    for i in range(c.channels.size()):
        ch = c.channels[i]
        if ch == NULL:
            continue
        for k in range(ch.inflight.size()):
            t = ch.inflight[k]
            if t == NULL or not t.located:
                continue
            for d in range(<uint32_t>t.ndeps + t.nnested):
                if t.deps[d] == e:
                    return True
    return False


cdef bint let_go(Core *c, ObjEntry *e) noexcept nogil:
    if e == NULL or e.flags & (OBJ_OWNED | OBJ_FETCHING) or e.lost or e.views > 0 or e.waiters != NULL or e.state == OBJ_PENDING:
        return False
    if told_in_flight(c, e):
        return False
    if e.state != OBJ_INLINE:
        e.seg = e.off = 0
        store8(&e.state, OBJ_SPILLED)
    return True


cdef void on_question(Core *c, Channel *ch, FrameHeader *h, char *body) noexcept nogil:
    cdef bint ok = let_go(c, refs_find(c, <Id28 *>body))
    cdef char *p = chan_begin(c, ch, FRAME_HEADER + 28, F_RECALLED, 1 if ok else 0, 0, h.seq)
    memcpy(p, body, 28)
    chan_commit(c, ch, FRAME_HEADER + 28)


cdef void recall_frame(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil:
    if n < 28:
        return
    if h.kind == F_RECALL:
        on_question(c, ch, h, body)
    else:
        on_answer(c, ch, h, body)
