"""Leases: workers that ftrayd has given to this process for one scheduling class. Needs the core lock.

Owns: Lease records, `SchedClass.leases` and `asked`, and the timer that looks at idle leases. Invariants: a lease is in
`Core.leases` and in its class, or in neither; it is dropped only when nothing of ours is in flight on it; `class_pump`
leaves ftrayd knowing how many more leases the class could use.

Leaves to others: which lease gets a call, how many leases are wanted, who is overloaded (rules.pyx), and what a death
means for the calls on a lease (tasks.pyx).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

from ftray._core.channel cimport FRAME_HEADER, F_ASSIGN, F_TAKE_BACK, chan_begin, chan_commit, chan_connect, chan_no_descriptors
from ftray._core.nodelink cimport node_lease_request, node_lease_return
from ftray._core.outcomes cimport task_fail
from ftray._core.pushes cimport task_push
from ftray._core.rules cimport leases_wanted, list_pop, overloaded, pick_lease
from ftray._core.types cimport CH_OPEN, Channel, Core, Id28, Lease, SchedClass, TaskRec, mono_ns
from ftray._core.wire cimport ERR_NO_DESCRIPTORS

cdef enum:
    IDLE_LEASE_NS = 100000000       # an idle lease is kept this long for the next call
    LEASE_SPENT = 2                 # of LEASE_RETURN: the worker leaves as soon as nobody needs what it owns
    STALE_NS = 1000000              # a loaded worker without an answer for so long has calls taken back for an idle one


cdef void class_pump(Core *c, SchedClass *k) noexcept nogil:
    """Give queued tasks to leases, and say how many more leases could be used."""
    cdef Lease *l
    cdef TaskRec *t
    while k.queue.head != NULL:
        l = pick_lease(k)
        if l == NULL or l.ch.outq_bytes > (1 << 20):
            break
        t = list_pop(&k.queue)
        task_push(c, t, l.ch)
    node_lease_request(c, k, leases_wanted(k))


cdef void set_timer(Core *c, uint64_t at_ns) noexcept nogil:
    if c.timer_ns == 0 or at_ns < c.timer_ns:
        c.timer_ns = at_ns


cdef void lease_is_idle(Core *c, Lease *l) noexcept nogil:
    cdef SchedClass *k = l.cls
    cdef uint64_t now = mono_ns()
    l.idle_since_ns = now
    if k.asked:
        node_lease_request(c, k, leases_wanted(k))
    if l.reclaimed or l.spent:
        drop_lease(c, l, LEASE_SPENT if l.spent else 1)
        return
    set_timer(c, now + (STALE_NS if k.leases.size() > 1 else IDLE_LEASE_NS))


cdef void drop_lease(Core *c, Lease *l, uint8_t reusable) noexcept nogil:
    """Give a lease back and forget it; nothing of ours is in flight on it."""
    cdef SchedClass *k = l.cls
    cdef size_t i
    node_lease_return(c, l.id, reusable)
    for i in range(k.leases.size()):
        if k.leases[i] == l:
            k.leases[i] = k.leases.back()
            k.leases.pop_back()
            break
    c.leases.erase(l.id)
    if l.ch.lease == l:
        l.ch.lease = NULL
    del l


cdef void lease_granted(Core *c, uint64_t class_key, uint64_t lease_id, Id28 *worker, const char *assigned, uint32_t size) noexcept nogil:
    """A worker is ours; it is told its devices (if that is news to it), then gets what waits, or goes straight back."""
    cdef char *p
    cdef SchedClass *k
    cdef Lease *l
    cdef Channel *ch
    if c.classes.count(class_key) == 0:
        node_lease_return(c, lease_id, 1)
        return
    k = c.classes[class_key]
    if k.asked:
        k.asked -= 1
    ch = chan_connect(c, worker)
    if ch == NULL and chan_no_descriptors(c):
        node_lease_return(c, lease_id, 1)
        if k.leases.empty():
            while k.queue.head != NULL:
                task_fail(c, list_pop(&k.queue), ERR_NO_DESCRIPTORS, NULL, 0)
        return
    if ch == NULL:
        node_lease_return(c, lease_id, 0)
        class_pump(c, k)
        return
    if size:
        p = chan_begin(c, ch, FRAME_HEADER + size, F_ASSIGN, 0, 0, 0)
        memcpy(p, assigned, size)
        chan_commit(c, ch, FRAME_HEADER + size)
    l = new Lease()
    l.id = lease_id
    l.cls = k
    l.ch = ch
    ch.lease = l
    k.leases.push_back(l)
    c.leases[lease_id] = l
    class_pump(c, k)
    if ch.ninflight == 0:
        lease_is_idle(c, l)


cdef bint someone_loaded(SchedClass *k) noexcept nogil:
    cdef size_t i
    for i in range(k.leases.size()):
        if k.leases[i].ch.ninflight > 1:
            return True
    return False


cdef void take_back_for_idle(Core *c, SchedClass *k, uint64_t now_ns) noexcept nogil:
    """An idle lease gets half of what waits behind a call that takes long."""
    cdef Lease *l = overloaded(k, now_ns, STALE_NS)
    if l == NULL:
        return
    take_back(c, l, l.ch.ninflight // 2)


cdef void leases_idle(Core *c, uint64_t now_ns) noexcept nogil:
    """Timer: idle leases take work over, or are given back when they have been idle for long."""
    cdef vector[Lease *] idle
    cdef Lease *l
    cdef size_t i
    c.timer_ns = 0
    for item in c.leases:
        if item.second.ch.ninflight == 0:
            idle.push_back(item.second)
    for i in range(idle.size()):
        l = idle[i]
        if someone_loaded(l.cls):
            take_back_for_idle(c, l.cls, now_ns)
            set_timer(c, now_ns + STALE_NS)
        elif l.reclaimed or now_ns - l.idle_since_ns >= IDLE_LEASE_NS:
            drop_lease(c, l, 0 if l.broken else 1)
        else:
            set_timer(c, l.idle_since_ns + IDLE_LEASE_NS)


cdef void take_back(Core *c, Lease *l, uint64_t wanted) noexcept nogil:
    """Ask a worker for calls that it has not begun."""
    l.taking_back = wanted
    chan_begin(c, l.ch, FRAME_HEADER, F_TAKE_BACK, 0, 0, wanted)
    chan_commit(c, l.ch, FRAME_HEADER)


cdef void lease_reclaim(Core *c, uint64_t lease_id) noexcept nogil:
    """Somebody waits for this worker: it goes back as soon as the call that it runs has ended."""
    cdef Lease *l
    cdef SchedClass *k
    if c.leases.count(lease_id) == 0:
        return
    l = c.leases[lease_id]
    k = l.cls
    l.reclaimed = 1
    if l.ch.ninflight == 0:
        drop_lease(c, l, 1)
    elif l.ch.ninflight > 1 and not l.taking_back and l.ch.state == CH_OPEN:
        take_back(c, l, l.ch.ninflight)
    node_lease_request(c, k, leases_wanted(k))


cdef void class_fail(Core *c, uint64_t class_key, uint8_t code, const char *text, uint32_t size) noexcept nogil:
    """Tasks of this class will never run: `code` and `text` say why."""
    cdef SchedClass *k
    if c.classes.count(class_key) == 0:
        return
    k = c.classes[class_key]
    k.asked = 0
    while k.queue.head != NULL:
        task_fail(c, list_pop(&k.queue), code, text, size)
