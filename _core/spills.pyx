"""The owner's side of spilling: which of its objects may leave shared memory, and their way out and back.

ftrayd asks everybody for offers when a reservation does not fit (SPILL_ASK), chooses among them, has the chosen written
to files, and says so (SPILL_DONE). Only then, in one lock section, does the owner's record turn to the file and the
block become free; if the object is in use by then, or gone, the answer (SPILL_SETTLED) is no and the file is removed.
So at every instant a value is in memory, or whole in a file, and objects never change, so what happened to it between
offer and end of the writing does not matter.

Owns: `Core.larges`, `spills`, `restores`, and the turn of an entry between OBJ_SHM and OBJ_SPILLED. Invariants: an
object leaves its place only if nobody can be looking at it there: no view in this process, no borrower that knows the
place (recalls.pyx), no call in flight whose worker was told the place (TaskRec.located), no thread that had it brought back and has not looked yet. While
memory is short, calls go out without the places of their arguments, and those that had not begun are taken back, so
that what waits in queues does not hold memory.

Leaves to others: what a lost file means (recovery.pyx), which offers are taken (`ftray/_node/spilling.py`), files (`ftray/_node/spill_process.py`).
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.string cimport string
from libcpp.unordered_set cimport unordered_set
from libcpp.vector cimport vector

from ftray._core.channel cimport F_TAKE_BACK, FRAME_HEADER, chan_begin, chan_commit
from ftray._core.nodelink cimport (N_SEG_UNHOLD, N_SPILL_ASK, N_SPILL_DONE, N_SPILL_OFFER, N_SPILL_RESTORE, N_SPILL_SETTLED,
                                   NodeHeader, node_put)
from ftray._core.recalls cimport recall_ask, recall_done, recall_open
from ftray._core.refs cimport refs_hold, refs_unhold
from ftray._core.segments cimport segment_adopted, segments_trim
from ftray._core.types cimport (CH_OPEN, CMD_FREE_BLOCK, OBJ_OWNED, OBJ_SHM, OBJ_SPILLED, Channel, Command, Core, Large, Lease,
                                ObjEntry, ObjEntryP, Restore, TaskRec, blob_copy, blob_drop, blob_new, large_drop, large_find, large_told,
                                mono_ns, store8)
from ftray._core.values cimport entry_ready, entry_set_shm
from ftray._core.wire cimport ERR_LOST, ERR_STORE_FULL, SYSTEM_ERROR

cdef enum:
    PRESSURE_NS = 2000000000    # memory counts as short for so long after ftrayd asked
    MAX_OFFERS = 8192
    FREE = 0                    # may leave
    PINNED = 1
    BORROWED = 2
    BUSY = 3

cdef struct Offer:
    uint64_t spill, seg, off, size, born_ns

cdef extern from *:
    """
    #include <algorithm>
    template <class V> static void oldest_first(V &v) {
        std::sort(v.begin(), v.end(), [](auto &a, auto &b) {
            return a.born_ns != b.born_ns ? a.born_ns < b.born_ns : a.spill < b.spill; });
    }
    """
    void oldest_first(vector[Offer] &) nogil


cdef lost_fn value_lost = NULL


cdef void spills_set_recovery(lost_fn on_loss) noexcept nogil:
    """Who makes values again (recovery.pyx, which builds on modules that build on this one)."""
    global value_lost
    value_lost = on_loss


# --- who uses what --------------------------------------------------------------------------------------------------

cdef bint names(TaskRec *t, ObjEntry *e) noexcept nogil:
    cdef uint32_t i
    for i in range(<uint32_t>t.ndeps + t.nnested):
        if t.deps[i] == e:
            return True
    return False


cdef void spill_located(Core *c, ObjEntry *e, Channel *ch) noexcept nogil:
    """A process is told where one of our objects is."""
    cdef Large *g
    cdef size_t i
    cdef bint known = e.ext != NULL and e.ext.borrowers.count(ch.worker) != 0
    large_told(c, e, ch.worker)
    for i in range(ch.inflight.size()):
        if ch.inflight[i] != NULL and names(ch.inflight[i], e):
            ch.inflight[i].located = 1
            known = True
    if not known:
        g = large_find(c, e)
        if g != NULL:
            g.stuck = True              # we would not hear when it is done


cdef void busy_objects(Core *c, unordered_set[ObjEntryP] *out) noexcept nogil:
    """Objects whose places calls in flight know."""
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
            if t != NULL and t.located:
                for d in range(<uint32_t>t.ndeps + t.nnested):
                    out.insert(t.deps[d])


cdef int use_of(Large *g, unordered_set[ObjEntryP] *busy) noexcept nogil:
    if g.e.views > 0:
        return PINNED
    if g.stuck:
        return BORROWED
    if g.e.ext != NULL and not recall_done(g):
        return BUSY if recall_open(g) else BORROWED
    if g.wanted > 0 or busy.count(g.e):
        return BUSY
    return FREE


cdef void spill_frame(Core *c, NodeHeader *h, char *body) noexcept nogil:
    """A frame of ftrayd about spilling."""
    cdef uint64_t a, b
    cdef uint16_t size
    if h.kind == N_SPILL_ASK and h.size >= 16:
        memcpy(&a, body, 8)
        memcpy(&b, body + 8, 8)
        on_ask(c, a, b)
    elif h.kind == N_SPILL_DONE and h.size >= 9:
        memcpy(&a, body, 8)
        on_done(c, a, body[8])
    elif h.size >= 19:
        memcpy(&a, body, 8)
        memcpy(&b, body + 9, 8)
        memcpy(&size, body + 17, 2)
        if h.size >= 19 + <uint32_t>size:
            on_restored(c, a, body[8], b, body + 19, size)


# --- out ------------------------------------------------------------------------------------------------------------

cdef void take_back_located(Core *c) noexcept nogil:
    """Calls that have not begun come back, and go out again without the places of their arguments."""
    cdef Lease *l
    cdef size_t i
    cdef bint located
    for item in c.leases:
        l = item.second
        located = False
        for i in range(l.ch.inflight.size()):
            if l.ch.inflight[i] != NULL and l.ch.inflight[i].located:
                located = True
        if located and l.ch.ninflight > 1 and not l.taking_back and l.ch.state == CH_OPEN:
            l.taking_back = l.ch.ninflight
            chan_begin(c, l.ch, FRAME_HEADER, F_TAKE_BACK, 0, 0, l.ch.ninflight)
            chan_commit(c, l.ch, FRAME_HEADER)


cdef void on_ask(Core *c, uint64_t turn, uint64_t wanted) noexcept nogil:
    """Offer the oldest objects that may leave, as many as would do, and say what holds the others."""
    cdef unordered_set[ObjEntryP] busy
    cdef vector[Offer] offers
    cdef uint64_t held[4]
    cdef Offer o
    cdef Large *g
    cdef int use
    c.pressure_ns = mono_ns() + PRESSURE_NS
    segments_trim(c, 0, True)
    take_back_located(c)
    busy_objects(c, &busy)
    recall_oldest(c, wanted, &busy)
    held[0] = held[1] = held[2] = held[3] = 0
    for item in c.larges:
        g = large_find(c, item.second.e)
        use = use_of(g, &busy)
        held[use] += g.e.size
        if use == FREE:
            o.spill, o.seg, o.off, o.size, o.born_ns = g.spill, g.e.seg, g.e.off, g.e.size, g.born_ns
            offers.push_back(o)
    oldest_first(offers)
    send_offers(c, turn, wanted, &offers, held)


cdef void recall_oldest(Core *c, uint64_t wanted, unordered_set[ObjEntryP] *busy) noexcept nogil:
    """Have borrowers let go of the oldest objects that only they keep here, as far as the others do not suffice."""
    cdef vector[Offer] borrowed
    cdef ObjEntry *e
    cdef Offer o
    cdef Large *g
    cdef size_t i
    cdef uint64_t free_bytes = 0
    cdef int use
    o.spill = o.off = 0
    for item in c.larges:
        e = item.second.e
        g = large_find(c, e)
        use = use_of(g, busy)
        if use == FREE:
            free_bytes += e.size
        elif use != PINNED and not g.stuck and g.wanted == 0 and busy.count(e) == 0:
            o.seg, o.size, o.born_ns = <uint64_t>e, e.size, g.born_ns
            borrowed.push_back(o)
    oldest_first(borrowed)
    for i in range(borrowed.size()):
        if free_bytes >= wanted:
            return
        free_bytes += borrowed[i].size
        recall_ask(c, <ObjEntry *>borrowed[i].seg)


cdef void send_offers(Core *c, uint64_t turn, uint64_t wanted, vector[Offer] *offers, uint64_t *held) noexcept nogil:
    cdef string frame
    cdef uint64_t total = 0, place[2]
    cdef uint32_t n = 0, numbers
    cdef ObjEntry *e
    cdef Offer *o
    frame.append(<const char *>&turn, 8)
    frame.append(<const char *>&held[PINNED], 24)
    frame.append(<const char *>&n, 4)
    while n < offers.size() and n < MAX_OFFERS and total < wanted:
        o = &offers[0][n]
        if o.spill == 0:
            place[0], place[1] = o.seg, o.off
            e = number_spill(c, place)
            o.spill = large_find(c, e).spill
        total += o.size
        frame.append(<const char *>o, sizeof(Offer))
        n += 1
    numbers = n * 5
    memcpy(<char *>frame.data() + 32, &numbers, 4)
    node_put(c, N_SPILL_OFFER, 0, frame.data(), frame.size())


cdef extern from *:
    """
    #include "types.hpp"
    static ObjEntry *number_spill(Core *c, uint64_t *place) {
        Large &g = c->larges[Place(place[0], place[1])];
        g.spill = c->next_spill++;
        c->spills[g.spill] = g.e;
        return g.e;
    }
    """
    ObjEntry *number_spill(Core *, uint64_t *) nogil


cdef void on_done(Core *c, uint64_t spill, bint ok) noexcept nogil:
    """The file is there (or could not be written): the turn of the record, if nobody uses the object now."""
    cdef unordered_set[ObjEntryP] busy
    cdef ObjEntry *e = NULL
    cdef Large *g = NULL
    if c.spills.count(spill):
        e = c.spills[spill]
        g = large_find(c, e) if e.state == OBJ_SHM else NULL
    if g == NULL:
        if ok:
            settle(c, spill, False)
        return
    busy_objects(c, &busy)
    if ok and use_of(g, &busy) == FREE:
        leave_memory(c, e, spill)
        settle(c, spill, True)
        return
    c.spills.erase(spill)               # a later attempt is a spill of its own
    g.spill = 0
    g.filed = False
    if ok:
        settle(c, spill, False)


cdef void leave_memory(Core *c, ObjEntry *e, uint64_t spill) noexcept nogil:
    cdef Command cmd
    large_drop(c, e)
    cmd.kind = CMD_FREE_BLOCK
    cmd.a = e.seg
    cmd.b = e.off
    cmd.entry = NULL
    store8(&e.state, OBJ_SPILLED)
    e.seg = spill
    e.off = 0
    c.n_spilled += 1
    c.commands.push_back(cmd)


cdef void settle(Core *c, uint64_t spill, bint taken) noexcept nogil:
    cdef char p[9]
    memcpy(p, &spill, 8)
    p[8] = 1 if taken else 0
    node_put(c, N_SPILL_SETTLED, 0, p, 9)


cdef void spill_free(Core *c, uint64_t spill) noexcept nogil:
    """The object is gone: its file may go, or need not be written."""
    settle(c, spill, False)


# --- back -----------------------------------------------------------------------------------------------------------

cdef Restore *opened(Core *c, ObjEntry *e) noexcept nogil:
    """The open restore of a spilled object; the first one who asks sends for it."""
    cdef Restore *r
    cdef uint64_t spill = e.seg
    if c.restores.count(spill):
        return c.restores[spill]
    r = new Restore()
    c.restores[spill] = r
    node_put(c, N_SPILL_RESTORE, 0, &spill, 8)
    return r


cdef void spill_restore(Core *c, ObjEntry *e) noexcept nogil:
    """Bring a spilled object back; who waits hears of it through the entry's waiters. A borrower asks the owner."""
    if e.flags & OBJ_OWNED:
        opened(c, e)
    else:
        value_lost(c, e, NULL, 0)


cdef Restore *restore_join(Core *c, ObjEntry *e) noexcept nogil:
    """A thread of the owner waits for it as well. NULL when the object is not (or no more) spilled."""
    cdef Restore *r
    if e.state != OBJ_SPILLED:
        return NULL
    r = opened(c, e)
    r.threads += 1
    return r


cdef void restore_leave(Core *c, Restore *r) noexcept nogil:
    r.threads -= 1
    if r.done and r.threads == 0:
        blob_drop(r.text)
        del r


cdef void restore_seen(Core *c, ObjEntry *e) noexcept nogil:
    """A thread that had the object brought back has its view (or gave up)."""
    cdef Large *g = large_find(c, e) if e.state == OBJ_SHM else NULL
    if g != NULL and g.wanted > 0:
        g.wanted -= 1


cdef void on_restored(Core *c, uint64_t spill, uint8_t code, uint64_t seg, const char *text, uint16_t size) noexcept nogil:
    cdef Restore *r
    cdef ObjEntry *e = NULL
    if c.restores.count(spill) == 0:
        if code == RESTORE_OK:
            node_put(c, N_SEG_UNHOLD, 0, &seg, 8)
        return
    r = c.restores[spill]
    c.restores.erase(spill)
    r.done = 1
    r.code = code
    if code != RESTORE_OK:
        r.text = blob_copy(text, size)
    if c.spills.count(spill):
        e = c.spills[spill]
    if e != NULL and e.state == OBJ_SPILLED:
        settle_restore(c, e, r, spill, seg)
    elif code == RESTORE_OK:
        node_put(c, N_SEG_UNHOLD, 0, &seg, 8)      # dropped meanwhile
    c.changed = True
    if r.threads == 0:
        blob_drop(r.text)
        del r


cdef void settle_restore(Core *c, ObjEntry *e, Restore *r, uint64_t spill, uint64_t seg) noexcept nogil:
    cdef Large *g
    refs_hold(e)
    if r.code == RESTORE_OK:
        c.n_restored += 1
        segment_adopted(c, seg)
        entry_set_shm(c, e, seg, 0, e.size)
        g = large_find(c, e)
        g.spill = spill                 # the file stays, so that the object can leave again for nothing
        g.filed = True
        g.wanted = r.threads
    elif r.code == RESTORE_LOST or (r.code == RESTORE_FAILED and e.ext != NULL and e.ext.maker != NULL):
        value_lost(c, e, r.text.data, r.text.size)
    else:
        e.blob = blob_new(r.text.size + 2)
        e.blob.data[0] = <char>SYSTEM_ERROR
        e.blob.data[1] = <char>(ERR_STORE_FULL if r.code == RESTORE_NO_ROOM else ERR_LOST)
        memcpy(&e.blob.data[2], r.text.data, r.text.size)
        entry_ready(c, e)               # borrowers get the error, loops look again; the object stays where it is
        blob_drop(e.blob)
        e.blob = NULL
    refs_unhold(c, e)
