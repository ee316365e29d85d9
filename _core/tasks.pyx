"""The task manager: dependencies, queues, pushes, replies, retries, cancellation (decisions are in rules.pyx).

A task record lives from `task_submit` to the reply that completes it. On its way it is in exactly one place: waiting
for dependencies (each unready one has a waiter), in the queue of its scheduling class or actor, in flight on one
channel, or in an actor's limbo. Records of a finished task are freed at once: its values are the owner's.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset
from libcpp.string cimport string
from libcpp.vector cimport vector

from ftray._core.channel cimport (F_CANCEL, F_FN_DEF, F_TAKE_BACK, F_TASK, FRAME_HEADER, FrameHeader, chan_begin, chan_commit,
                                  chan_connect, chan_no_descriptors)
from ftray._core.nodelink cimport N_WORKER_KILL, node_lease_request, node_lease_return, node_put
from ftray._core.refs cimport refs_borrowed, refs_borrower, refs_check, refs_contain, refs_expose, refs_register, refs_unhold
from ftray._core.rules cimport (COMPLETE, FAIL_ACTOR_DEAD, FAIL_CANCELLED, FAIL_CRASHED, FAIL_UNAVAILABLE, REPLY_GIVEN_BACK, RUN_AGAIN,
                                Verdict, after_death, after_reply, leases_wanted, list_insert, list_pop, list_push, list_remove,
                                overloaded, pick_lease)
from ftray._core.segments cimport segment_owned
from ftray._core.types cimport (ACTOR_ALIVE, ACTOR_DEAD, CH_BROKEN, CH_OPEN, OBJ_FETCHING, OBJ_INLINE, OBJ_IS_ERROR, OBJ_OWNED, OBJ_PENDING,
                                OBJ_SHM, OBJ_UNKNOWN, TASK_CANCELLED, TASK_CANCEL_FORCE, TASK_DONE, TASK_LIMBO, TASK_PUSHED, TASK_QUEUED,
                                TASK_WAITS_DEPS, ActorClient, Blob, Channel, Core, Id28, Lease, ObjEntry, SchedClass, TaskList, TaskRec, Waiter,
                                blob_copy, blob_drop, blob_hold, blob_new, load64, mono_ns, store8)
from ftray._core.wire cimport (ERR_ACTOR_DIED, ERR_ACTOR_UNAVAILABLE, ERR_CANCELLED, ERR_CRASHED, ERR_LOST, ERR_NO_DESCRIPTORS, ERR_OWNER_DIED, ERR_UNSCHEDULABLE, KIND_METHOD,
                               KIND_TASK, SYSTEM_ERROR, VALUE_INLINE, VALUE_LOST, VALUE_SHM, DepHead, ReplyHead, RetHead, TaskHead)

cdef enum:
    IDLE_LEASE_NS = 100000000       # an idle lease is kept this long for the next call
    STALE_NS = 1000000              # a loaded worker without an answer for so long has calls taken back for an idle one

cdef fetch_fn fetch_entry = NULL
cdef answer_fn answer_fetch = NULL
cdef actor_fn pump_actor_queue = NULL
cdef wake_fn wake_python = NULL


cdef void tasks_set_hooks(fetch_fn fetch, answer_fn answer, actor_fn pump_actor, wake_fn wake) noexcept nogil:
    global fetch_entry, answer_fetch, pump_actor_queue, wake_python
    fetch_entry = fetch
    answer_fetch = answer
    pump_actor_queue = pump_actor
    wake_python = wake


# --- values of objects ----------------------------------------------------------------------------------------------

cdef void entry_add_waiter(ObjEntry *e, uint8_t kind, TaskRec *t, Channel *ch, uint64_t token) noexcept nogil:
    cdef Waiter *w = new Waiter()
    w.kind = kind
    w.task = t
    w.ch = ch
    w.token = token
    w.next = e.waiters
    e.waiters = w


cdef void entry_ready(Core *c, ObjEntry *e) noexcept nogil:
    """The value is there: whoever waits for it hears of it. May free the entry."""
    cdef Waiter *w = e.waiters
    cdef Waiter *following
    c.changed = True
    e.waiters = NULL
    e.holds += 1
    while w != NULL:
        following = w.next
        if w.kind == 0:
            w.task.deps_pending -= 1
            if w.task.deps_pending == 0:
                c.ready.push_back(w.task)
        elif w.kind == 1:
            answer_fetch(c, e, w.ch, w.token)
        else:
            wake_python(c, e, w.token)
        del w
        w = following
    e.holds -= 1


cdef void entry_set_inline(Core *c, ObjEntry *e, Blob *b, bint is_error) noexcept nogil:
    """Takes over the blob's hold."""
    if e.blob != NULL:
        blob_drop(e.blob)
    e.blob = b
    if is_error:
        e.flags |= OBJ_IS_ERROR
    e.flags &= ~OBJ_FETCHING
    store8(&e.state, OBJ_INLINE)
    entry_ready(c, e)


cdef void entry_set_error(Core *c, ObjEntry *e, uint8_t code, const char *payload, uint64_t size) noexcept nogil:
    cdef Blob *b = blob_new(size + 2)
    b.data[0] = <char>SYSTEM_ERROR
    b.data[1] = <char>code
    if size:
        memcpy(&b.data[2], payload, size)
    entry_set_inline(c, e, b, True)


cdef void entry_set_shm(Core *c, ObjEntry *e, uint64_t seg, uint64_t off, uint64_t size) noexcept nogil:
    e.seg = seg
    e.off = off
    e.size = size
    e.flags &= ~OBJ_FETCHING
    store8(&e.state, OBJ_SHM)
    entry_ready(c, e)


cdef uint64_t value_size(ObjEntry *e) noexcept nogil:
    """Bytes of `write_value`."""
    cdef uint64_t n = sizeof(RetHead)
    if e.state == OBJ_INLINE:
        n += e.blob.size
    if e.ext != NULL:
        n += 56 * e.ext.contained.size()
    return n


cdef char *write_value(Core *c, ObjEntry *e, char *p) noexcept nogil:
    """RetHead, inline bytes, contained refs with their owners."""
    cdef RetHead *r = <RetHead *>p
    cdef size_t i
    memset(r, 0, sizeof(RetHead))
    p += sizeof(RetHead)
    r.is_error = 1 if e.flags & OBJ_IS_ERROR else 0
    if e.state == OBJ_INLINE:
        r.kind = VALUE_INLINE
        r.size = e.blob.size
        memcpy(p, e.blob.data, e.blob.size)
        p += e.blob.size
    elif e.state == OBJ_SHM:
        r.kind = VALUE_SHM
        r.seg = e.seg
        r.off = e.off
        r.size = e.size
    else:
        r.kind = VALUE_LOST
    if e.ext != NULL:
        r.ncontained = <uint32_t>e.ext.contained.size()
        for i in range(e.ext.contained.size()):
            memcpy(p, e.ext.contained[i].id.b, 28)
            if e.ext.contained[i].flags & OBJ_OWNED:
                memcpy(p + 28, c.worker_id.b, 28)
            else:
                memcpy(p + 28, e.ext.contained[i].ext.owner.b, 28)
            p += 56
    return p


cdef char *read_value(Core *c, ObjEntry *e, char *p, char *end, const Id28 *sender, bint contained_granted) noexcept nogil:
    """Take a value off the wire into `e` (NULL: skip it). Returns what follows it, or NULL when it makes no sense.

    `contained_granted`: the sender has registered us with the owners of the contained refs.
    """
    cdef RetHead *r = <RetHead *>p
    cdef char *bytes_at
    cdef ObjEntry *inner
    cdef uint32_t i
    if p + sizeof(RetHead) > end:
        return NULL
    p += sizeof(RetHead)
    bytes_at = p
    if r.kind == VALUE_INLINE:
        if r.size > <uint64_t>(end - p):
            return NULL
        p += r.size
    if <uint64_t>r.ncontained * 56 > <uint64_t>(end - p):
        return NULL
    if e == NULL or e.state >= OBJ_INLINE:
        return p + <uint64_t>r.ncontained * 56
    for i in range(r.ncontained):
        inner = refs_borrowed(c, <Id28 *>p, <Id28 *>(p + 28))
        if contained_granted and not inner.flags & OBJ_OWNED:
            refs_register(c, inner)
        refs_contain(e, inner)
        p += 56
    if r.kind == VALUE_INLINE:
        entry_set_inline(c, e, blob_copy(bytes_at, r.size), r.is_error)
    elif r.kind == VALUE_SHM:
        if e.flags & OBJ_OWNED:
            segment_owned(c, r.seg, sender)
        entry_set_shm(c, e, r.seg, r.off, r.size)
    else:
        entry_set_error(c, e, ERR_LOST, NULL, 0)
    return p


# --- submission -----------------------------------------------------------------------------------------------------

cdef void task_submit(Core *c, TaskRec *t) noexcept nogil:
    """Take charge of a task: dependencies first, then its queue. The record's holds on deps and returns are in place."""
    cdef uint16_t i
    cdef ObjEntry *e
    c.n_tasks += 1
    t.number = c.task_number
    c.task_number += 1
    t.deps_pending = 0
    for i in range(t.ndeps):
        e = t.deps[i]
        if e.state >= OBJ_INLINE:
            continue
        t.deps_pending += 1
        entry_add_waiter(e, 0, t, NULL, 0)
        if e.lost:
            entry_set_error(c, e, ERR_OWNER_DIED if e.lost == 1 else ERR_LOST, NULL, 0)
        elif e.state == OBJ_UNKNOWN and not e.flags & OBJ_FETCHING:
            fetch_entry(c, e)
    if t.actor != NULL:
        t.state = TASK_QUEUED if t.deps_pending == 0 else TASK_WAITS_DEPS
        t.actor.npending += 1
        list_push(&t.actor.queue, t)        # order per caller: a call that waits for its arguments holds back later ones
        pump_actor_queue(c, t.actor)
    elif t.deps_pending == 0:
        enqueue(c, t)
    else:
        t.state = TASK_WAITS_DEPS
        list_push(&c.waiting, t)


cdef bint tasks_fail_dep(Core *c, TaskRec *t) noexcept nogil:
    """A dependency that is an error makes the task that error."""
    cdef uint16_t i, j
    cdef ObjEntry *e
    cdef ObjEntry *r
    for i in range(t.ndeps):
        e = t.deps[i]
        if e.flags & OBJ_IS_ERROR:
            e.holds += 1
            for j in range(t.nret):
                r = t.ret0 if t.nret == 1 else t.rets[j]
                entry_set_inline(c, r, blob_hold(e.blob), True)
            finish(c, t)
            refs_unhold(c, e)
            return True
    return False


cdef void enqueue(Core *c, TaskRec *t) noexcept nogil:
    cdef SchedClass *k = t.cls
    t.state = TASK_QUEUED
    if t.flags & TASK_CANCELLED:
        task_fail(c, t, ERR_CANCELLED, NULL, 0)
        return
    if t.ndeps and tasks_fail_dep(c, t):
        return
    list_push(&k.queue, t)
    class_pump(c, k)


cdef void tasks_run_ready(Core *c) noexcept nogil:
    """Continue with the tasks whose last dependency came."""
    cdef TaskRec *t
    while not c.ready.empty():
        t = c.ready.back()
        c.ready.pop_back()
        if t.actor != NULL:
            t.state = TASK_QUEUED
            pump_actor_queue(c, t.actor)
        else:
            list_remove(&c.waiting, t)
            enqueue(c, t)


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


cdef uint64_t deps_size(TaskRec *t) noexcept nogil:
    cdef uint64_t n = 0
    cdef uint16_t i
    for i in range(t.ndeps):
        n += sizeof(DepHead)
        if t.deps[i].state == OBJ_INLINE:
            n += t.deps[i].blob.size
    return n


cdef char *write_deps(Core *c, TaskRec *t, char *p) noexcept nogil:
    cdef DepHead *d
    cdef ObjEntry *e
    cdef uint16_t i
    for i in range(t.ndeps):
        e = t.deps[i]
        d = <DepHead *>p
        memcpy(d.id, e.id.b, 28)
        if e.flags & OBJ_OWNED:
            memcpy(d.owner, c.worker_id.b, 28)
        else:
            memcpy(d.owner, e.ext.owner.b, 28)
        p += sizeof(DepHead)
        if e.state == OBJ_INLINE:
            d.kind = VALUE_INLINE
            d.size = e.blob.size
            memcpy(p, e.blob.data, e.blob.size)
            p += e.blob.size
        else:
            refs_expose(c, e)               # the callee may keep a view and so become a borrower
            d.kind = VALUE_SHM
            d.seg = e.seg
            d.off = e.off
            d.size = e.size
    return p


cdef void send_function(Core *c, uint32_t fn, Channel *ch) noexcept nogil:
    """Once per channel: what the index means."""
    cdef Blob *b
    cdef char *p
    if fn < ch.fn_sent.size() and ch.fn_sent[fn]:
        return
    if ch.fn_sent.size() <= fn:
        ch.fn_sent.resize(fn + 1)
    ch.fn_sent[fn] = 1
    b = c.fns[fn]
    p = chan_begin(c, ch, FRAME_HEADER + b.size, F_FN_DEF, 0, 0, fn)
    memcpy(p, b.data, b.size)
    chan_commit(c, ch, FRAME_HEADER + b.size)


cdef void task_push(Core *c, TaskRec *t, Channel *ch) noexcept nogil:
    """Write the task's frame on a channel."""
    cdef uint64_t size = FRAME_HEADER + sizeof(TaskHead) + t.args.size
    cdef TaskHead *h
    cdef char *p
    send_function(c, t.fn, ch)
    if t.ndeps:
        size += deps_size(t)
    t.seq = ch.next_seq
    ch.next_seq += 1
    t.ch = ch
    t.state = TASK_PUSHED
    p = chan_begin(c, ch, size, F_TASK, 0, 0, t.seq)
    h = <TaskHead *>p
    memcpy(h.id, t.id, 24)
    memcpy(h.call_id, t.call_id, 16)
    h.epoch = 0
    h.fn = t.fn
    h.attempt = t.attempt
    h.ancestors = 0
    h.depth = t.depth
    h.nret = t.nret
    h.ndeps = t.ndeps
    h.kind = KIND_METHOD if t.actor != NULL else KIND_TASK
    h.flags = t.flags
    h.reserved = 0
    h.args_size = t.args.size
    p += sizeof(TaskHead)
    if t.ndeps:
        p = write_deps(c, t, p)
    memcpy(p, t.args.data, t.args.size)
    chan_commit(c, ch, size)
    if ch.ninflight == 0:
        ch.last_reply_ns = mono_ns()
    ch.inflight.push_back(t)
    ch.ninflight += 1
    c.n_pushed += 1


# --- the end of a task ----------------------------------------------------------------------------------------------

cdef void finish(Core *c, TaskRec *t) noexcept nogil:
    """All returns have their values: let go of everything the task held."""
    cdef uint16_t i
    cdef ObjEntry *e
    t.state = TASK_DONE
    for i in range(t.ndeps + t.nnested):
        refs_unhold(c, t.deps[i])
    for i in range(t.nret):
        e = t.ret0 if t.nret == 1 else t.rets[i]
        e.task = NULL
        refs_check(c, e)
    if t.actor != NULL:
        t.actor.npending -= 1
    if t.deps != NULL:
        free(t.deps)
    if t.rets != NULL:
        free(t.rets)
    blob_drop(t.args)
    c.n_tasks -= 1
    del t


cdef void task_fail(Core *c, TaskRec *t, uint8_t code, const char *payload, uint64_t size) noexcept nogil:
    """Every return becomes the same error. The task must be in no list."""
    cdef uint16_t i
    cdef ObjEntry *e
    for i in range(t.nret):
        e = t.ret0 if t.nret == 1 else t.rets[i]
        if e.state < OBJ_INLINE:
            entry_set_error(c, e, code, payload, size)
    finish(c, t)


cdef TaskRec *take_inflight(Channel *ch, uint64_t seq) noexcept nogil:
    """The call a reply belongs to, taken out of the window; NULL when it was answered before (or never made)."""
    cdef TaskRec *t
    cdef uint64_t at = seq - ch.base_seq
    if at >= ch.inflight.size():
        return NULL
    t = ch.inflight[at]
    ch.inflight[at] = NULL
    while not ch.inflight.empty() and ch.inflight.front() == NULL:
        ch.inflight.pop_front()
        ch.base_seq += 1
    if t != NULL:
        ch.ninflight -= 1
        t.ch = NULL
    return t


cdef void requeue(Core *c, TaskRec *t) noexcept nogil:
    t.state = TASK_QUEUED
    if t.actor != NULL:
        list_insert(&t.actor.queue, t)
    else:
        list_insert(&t.cls.queue, t)


cdef void complete(Core *c, TaskRec *t, char *p, char *end, uint16_t nret, const Id28 *sender) noexcept nogil:
    cdef uint16_t i
    cdef ObjEntry *e
    for i in range(nret):
        e = NULL
        if i < t.nret:
            e = t.ret0 if t.nret == 1 else t.rets[i]
        if p != NULL:
            p = read_value(c, e, p, end, sender, True)
        if p == NULL and e != NULL:
            entry_set_error(c, e, ERR_LOST, b"the reply could not be read", 27)
    if nret < t.nret:
        task_fail(c, t, ERR_LOST, b"the reply lacks a value", 23)
    else:
        finish(c, t)


cdef void take_borrows(Core *c, Channel *ch, ReplyHead *r, char *p) noexcept nogil:
    """The executor still holds these refs of ours: register it before the call lets go of them."""
    cdef uint32_t i
    for i in range(r.nborrow):
        it = c.objects.find((<Id28 *>p)[0])
        if it != c.objects.end():
            refs_borrower(c, c.objects[(<Id28 *>p)[0]], &ch.worker, 1)
        p += 28


cdef void tasks_on_reply(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil:
    """A call was answered."""
    cdef ReplyHead *r = <ReplyHead *>body
    cdef TaskRec *t = take_inflight(ch, h.seq)
    cdef Lease *l = ch.lease
    cdef SchedClass *k
    cdef Verdict v
    cdef char *p = body + sizeof(ReplyHead)
    if h.seq == 0 and l != NULL:
        l.taking_back = 0               # a TAKE_BACK is answered in full
    if t == NULL or n < sizeof(ReplyHead):
        return
    c.n_replies += 1
    if r.nborrow:
        if <uint64_t>r.nborrow * 28 > n - sizeof(ReplyHead):
            return
        n -= <uint64_t>r.nborrow * 28           # they stand at the end
        take_borrows(c, ch, r, body + n)
    if l != NULL:
        if r.status == REPLY_GIVEN_BACK:
            l.paused |= h.aux
        else:
            l.paused = 0
    if t.actor == NULL or r.status != REPLY_GIVEN_BACK:
        ch.last_reply_ns = 0 if ch.ninflight == 0 else mono_ns()
    k = t.cls
    v = after_reply(t, r.status)
    if v == RUN_AGAIN:
        requeue(c, t)
    elif v == FAIL_CANCELLED:
        task_fail(c, t, ERR_CANCELLED, NULL, 0)
    else:
        complete(c, t, p, body + n, r.nret, &ch.worker)
    if k != NULL:
        if k.queue.head != NULL or l == NULL:
            class_pump(c, k)
        if l != NULL and l.ch.ninflight == 0:
            lease_is_idle(c, l)
    elif ch.actor != NULL and ch.actor.queue.head != NULL:
        pump_actor_queue(c, ch.actor)


# --- leases ---------------------------------------------------------------------------------------------------------

cdef void set_timer(Core *c, uint64_t at_ns) noexcept nogil:
    if c.timer_ns == 0 or at_ns < c.timer_ns:
        c.timer_ns = at_ns


cdef void lease_is_idle(Core *c, Lease *l) noexcept nogil:
    cdef SchedClass *k = l.cls
    cdef uint64_t now = mono_ns()
    l.idle_since_ns = now
    if k.asked:
        node_lease_request(c, k, leases_wanted(k))
    if l.reclaimed:
        drop_lease(c, l, 1)
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


cdef void lease_granted(Core *c, uint64_t class_key, uint64_t lease_id, Id28 *worker) noexcept nogil:
    """A worker is ours; it gets what waits, or goes straight back when nothing does."""
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


cdef void take_back_for_idle(Core *c, SchedClass *k, uint64_t now_ns) noexcept nogil:
    """An idle lease gets half of what waits behind a call that takes long."""
    cdef Lease *l = overloaded(k, now_ns, STALE_NS)
    if l == NULL:
        return
    take_back(c, l, l.ch.ninflight // 2)


cdef bint someone_loaded(SchedClass *k) noexcept nogil:
    cdef size_t i
    for i in range(k.leases.size()):
        if k.leases[i].ch.ninflight > 1:
            return True
    return False


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


cdef void class_fail(Core *c, uint64_t class_key, const char *text, uint32_t size) noexcept nogil:
    """No node will ever be able to run tasks of this class."""
    cdef SchedClass *k
    if c.classes.count(class_key) == 0:
        return
    k = c.classes[class_key]
    k.asked = 0
    while k.queue.head != NULL:
        task_fail(c, list_pop(&k.queue), ERR_UNSCHEDULABLE, text, size)


# --- deaths ---------------------------------------------------------------------------------------------------------

cdef void settle(Core *c, TaskRec *t, bint started, const char *report, uint64_t size) noexcept nogil:
    """A call of a dead plain worker."""
    cdef Verdict v = after_death(t, started, False)
    if v == RUN_AGAIN:
        requeue(c, t)
    elif v == FAIL_CANCELLED:
        task_fail(c, t, ERR_CANCELLED, NULL, 0)
    else:
        fail_crashed(c, t, report, size)


cdef void fail_crashed(Core *c, TaskRec *t, const char *report, uint64_t size) noexcept nogil:
    """The error's payload: the function's name as its definition has it (u16 length, bytes), then the death report."""
    cdef string payload
    cdef Blob *b = c.fns[t.fn]
    cdef uint16_t n = 0
    if b.size >= 3:
        memcpy(&n, b.data + 1, 2)
    if <uint64_t>n + 3 > b.size:
        n = 0
    payload.append(<const char *>&n, 2)
    payload.append(b.data + 3, n)
    payload.append(report, size)
    task_fail(c, t, ERR_CRASHED, payload.data(), payload.size())


cdef void tasks_process_died(Core *c, Channel *ch, const char *report, uint64_t size) noexcept nogil:
    """The process at the other end is dead and its ring was drained: every call without a reply is settled.

    Calls to an actor go to its limbo; what becomes of them is decided when its state is known (actors.pyx).
    """
    cdef uint64_t started = load64(&ch.inp.h.started) if ch.map != NULL else 0
    cdef SchedClass *k = NULL
    cdef ActorClient *a = ch.actor
    cdef TaskRec *t
    cdef Lease *l = ch.lease
    cdef uint64_t seq
    if l != NULL:
        k = l.cls
    while not ch.inflight.empty():
        t = ch.inflight.front()
        seq = ch.base_seq
        ch.inflight.pop_front()
        ch.base_seq += 1
        if t == NULL:
            continue
        ch.ninflight -= 1
        t.ch = NULL
        if t.actor != NULL:
            t.state = TASK_LIMBO
            t.seq = 1 if seq <= started else 0      # in limbo: has it begun?
            list_push(&t.actor.limbo, t)
        else:
            settle(c, t, seq <= started, report, size)
    if l != NULL:
        drop_lease(c, l, 0)
        class_pump(c, k)
    if a != NULL and a.ch == ch:
        a.ch = NULL
        ch.actor = NULL


cdef void tasks_fail_all(Core *c, uint8_t code) noexcept nogil:
    """ftrayd is gone: nothing will be answered any more."""
    cdef vector[TaskRec *] open_tasks
    cdef TaskRec *t
    cdef size_t i, j
    cdef Channel *ch
    for i in range(c.channels.size()):
        ch = c.channels[i]
        if ch == NULL:
            continue
        for j in range(ch.inflight.size()):
            if ch.inflight[j] != NULL:
                open_tasks.push_back(ch.inflight[j])
        ch.base_seq += ch.inflight.size()
        ch.inflight.clear()
        ch.ninflight = 0
    while c.waiting.head != NULL:
        t = list_pop(&c.waiting)
        forget_waits(t)
        open_tasks.push_back(t)
    for item in c.classes:
        while item.second.queue.head != NULL:
            open_tasks.push_back(list_pop(&item.second.queue))
    for entry in c.actors:
        while entry.second.queue.head != NULL:
            t = list_pop(&entry.second.queue)
            forget_waits(t)
            open_tasks.push_back(t)
        while entry.second.limbo.head != NULL:
            open_tasks.push_back(list_pop(&entry.second.limbo))
    for i in range(open_tasks.size()):
        task_fail(c, open_tasks[i], code, NULL, 0)


cdef void forget_waits(TaskRec *t) noexcept nogil:
    """Dependencies shall not tell this task any more."""
    cdef Waiter **at
    cdef Waiter *w
    cdef uint16_t i
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


cdef void forget_ready(Core *c, TaskRec *t) noexcept nogil:
    """Its last dependency may have come just now."""
    cdef size_t i
    for i in range(c.ready.size()):
        if c.ready[i] == t:
            c.ready[i] = c.ready.back()
            c.ready.pop_back()
            return


cdef void task_cancel(Core *c, TaskRec *t, bint force, bint recursive) noexcept nogil:
    """Cancel a task wherever it is; a running one is asked to stop (or, with force, its process is ended)."""
    cdef char p[64]
    cdef uint16_t zero = 0
    t.flags |= TASK_CANCELLED
    if t.state == TASK_WAITS_DEPS or t.state == TASK_QUEUED:
        if t.actor != NULL:
            list_remove(&t.actor.queue, t)
        elif t.state == TASK_WAITS_DEPS:
            list_remove(&c.waiting, t)
        else:
            list_remove(&t.cls.queue, t)
        forget_waits(t)
        forget_ready(c, t)
        task_fail(c, t, ERR_CANCELLED, NULL, 0)
    elif t.state == TASK_PUSHED:
        chan_begin(c, t.ch, FRAME_HEADER, F_CANCEL, 1 if recursive else 0, 0, t.seq)
        chan_commit(c, t.ch, FRAME_HEADER)
        if force and t.actor == NULL:
            memcpy(p, t.ch.worker.b, 28)
            p[28] = 1
            memcpy(p + 29, &zero, 2)
            node_put(c, N_WORKER_KILL, 0, p, 31)


cdef void collect_children(TaskList *l, uint64_t parent, vector[TaskRec *] *out) noexcept nogil:
    cdef TaskRec *t = l.head
    while t != NULL:
        if t.parent == parent:
            out.push_back(t)
        t = t.next


cdef void tasks_cancel_children(Core *c, uint64_t parent) noexcept nogil:
    """A task that ran here was cancelled: so is everything that it has submitted."""
    cdef vector[TaskRec *] children
    cdef size_t i, j
    collect_children(&c.waiting, parent, &children)
    for item in c.classes:
        collect_children(&item.second.queue, parent, &children)
    for entry in c.actors:
        collect_children(&entry.second.queue, parent, &children)
    for i in range(c.channels.size()):
        if c.channels[i] == NULL:
            continue
        for j in range(c.channels[i].inflight.size()):
            if c.channels[i].inflight[j] != NULL and c.channels[i].inflight[j].parent == parent:
                children.push_back(c.channels[i].inflight[j])
    for i in range(children.size()):
        task_cancel(c, children[i], False, True)
