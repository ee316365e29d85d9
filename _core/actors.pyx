"""Actor calls of this process (see actors.pxd).

Calls to one actor leave in the order in which they were made. They wait in `queue` until the actor's process is known
and their arguments are there, are then in flight on the channel to that process, and if it dies go to `limbo` in order
until ftrayd says what the death means: a new incarnation (calls that had not begun, or may be retried, go back to the
queue ahead of later ones; the others fail as unavailable) or the end (all fail, with the cause). A state that belongs
to an older incarnation than the one known is ignored. The channel to a process is kept until its death is reported,
whatever state is told before: later calls then follow earlier ones into limbo, instead of overtaking them.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

from ftray._core.channel cimport chan_connect, chan_no_descriptors
from ftray._core.depends cimport depends_wait
from ftray._core.events cimport event_failed, event_renewed
from ftray._core.nodelink cimport N_ACTOR_SUBSCRIBE, node_put
from ftray._core.outcomes cimport task_fail, tasks_fail_dep
from ftray._core.pushes cimport task_push
from ftray._core.rules cimport (FAIL_ACTOR_DEAD, FAIL_CANCELLED, RUN_AGAIN, Verdict, after_death, list_insert, list_pop, list_remove)
from ftray._core.types cimport (ACTOR_ALIVE, ACTOR_DEAD, ACTOR_PENDING, ACTOR_RESTARTING, ACTOR_UNKNOWN, CH_OPEN, TASK_CANCELLED,
                                TASK_QUEUED, TASK_WAITS_DEPS, ActorClient, Core, Id16, Id28, TaskRec, blob_copy, blob_drop, mono_ns, same_id)
from ftray._core.wire cimport ERR_ACTOR_DIED, ERR_ACTOR_UNAVAILABLE, ERR_CANCELLED, ERR_NO_DESCRIPTORS


cdef enum:
    RETRY_NS = 2000000


cdef ActorClient *actor_client(Core *c, const Id16 *id) noexcept nogil:
    """The record of an actor, made when it is first heard of."""
    cdef ActorClient *a
    it = c.actors.find(id[0])
    if it != c.actors.end():
        return c.actors[id[0]]
    a = new ActorClient()
    a.id = id[0]
    c.actors[id[0]] = a
    return a


cdef void actor_subscribe(Core *c, ActorClient *a) noexcept nogil:
    """Ask ftrayd where the actor is, once; changes follow by themselves."""
    if not a.subscribed:
        a.subscribed = 1
        node_put(c, N_ACTOR_SUBSCRIBE, 0, a.id.b, 16)


cdef void actor_pump(Core *c, ActorClient *a) noexcept nogil:
    """Push what can be pushed, in order."""
    cdef TaskRec *t
    if a.state == ACTOR_UNKNOWN:
        actor_subscribe(c, a)
        return
    if a.state == ACTOR_DEAD:
        fail_settled(c, a, ERR_ACTOR_DIED)
        return
    if a.state != ACTOR_ALIVE or a.killing or a.limbo.head != NULL or a.queue.head == NULL:
        return
    if a.ch == NULL:
        a.ch = chan_connect(c, &a.worker)
        if a.ch == NULL and chan_no_descriptors(c):
            fail_settled(c, a, ERR_NO_DESCRIPTORS)
            return
        if a.ch == NULL:            # it died meanwhile and its next state tells, or its socket is busy
            actor_retry(c)
            return
        a.ch.actor = a
    if a.ch.state != CH_OPEN:
        return
    while a.queue.head != NULL:
        t = a.queue.head
        if t.state == TASK_WAITS_DEPS or a.ch.outq_bytes > (1 << 20):
            return
        if c.memory_short and a.ch.outq_bytes:      # here it waits without a copy
            return
        list_remove(&a.queue, t)
        if t.flags & TASK_CANCELLED:
            task_fail(c, t, ERR_CANCELLED, NULL, 0)
        elif not (t.ndeps and tasks_fail_dep(c, t)):
            task_push(c, t, a.ch)


cdef void actor_retry(Core *c) noexcept nogil:
    """Look at the queues again soon."""
    cdef uint64_t at = mono_ns() + RETRY_NS
    if c.timer_ns == 0 or at < c.timer_ns:
        c.timer_ns = at
    c.actors_waiting = True


cdef void actors_pump_waiting(Core *c) noexcept nogil:
    """Timer: actors whose process could not be reached a moment ago."""
    cdef vector[ActorClient *] waiting
    cdef size_t i
    if not c.actors_waiting:
        return
    c.actors_waiting = False
    for item in c.actors:
        if item.second.state == ACTOR_ALIVE and item.second.ch == NULL and item.second.queue.head != NULL:
            waiting.push_back(item.second)
    for i in range(waiting.size()):
        actor_pump(c, waiting[i])


cdef void fail_settled(Core *c, ActorClient *a, uint8_t code) noexcept nogil:
    """Fail every call whose arguments are settled (the others fail when theirs are)."""
    cdef TaskRec *t = a.queue.head
    cdef TaskRec *following
    while t != NULL:
        following = t.next
        if t.state != TASK_WAITS_DEPS:
            list_remove(&a.queue, t)
            if code == ERR_ACTOR_DIED:
                fail(c, a, t, code)
            else:
                task_fail(c, t, code, NULL, 0)
        t = following


cdef void fail(Core *c, ActorClient *a, TaskRec *t, uint8_t code) noexcept nogil:
    if t.flags & TASK_CANCELLED:
        task_fail(c, t, ERR_CANCELLED, NULL, 0)
    elif a.cause != NULL:
        task_fail(c, t, code, a.cause.data, a.cause.size)
    else:
        task_fail(c, t, code, NULL, 0)


cdef void settle_limbo(Core *c, ActorClient *a, bint dead) noexcept nogil:
    cdef TaskRec *t
    cdef Verdict v
    cdef uint32_t attempt
    while a.limbo.head != NULL:
        t = list_pop(&a.limbo)
        attempt = t.attempt
        v = after_death(t, t.seq == 1, dead)
        if v == RUN_AGAIN:
            if t.attempt != attempt:
                event_failed(c, t, attempt, ERR_ACTOR_UNAVAILABLE, NULL)
                event_renewed(c, t)
            t.state = TASK_WAITS_DEPS if t.ndeps and depends_wait(c, t) else TASK_QUEUED      # a value may be lost
            list_insert(&a.queue, t)
        elif v == FAIL_CANCELLED:
            task_fail(c, t, ERR_CANCELLED, NULL, 0)
        else:
            fail(c, a, t, ERR_ACTOR_DIED if v == FAIL_ACTOR_DEAD else ERR_ACTOR_UNAVAILABLE)


cdef void actor_on_state(Core *c, const Id16 *id, uint8_t state, uint32_t incarnation, const Id28 *worker, const char *cause,
                         uint64_t size) noexcept nogil:
    """ftrayd says where the actor stands."""
    cdef ActorClient *a = actor_client(c, id)
    if a.state == ACTOR_DEAD or incarnation < a.incarnation:
        return
    if size:
        if a.cause != NULL:
            blob_drop(a.cause)
        a.cause = blob_copy(cause, size)
    if state == ACTOR_ALIVE and (incarnation > a.incarnation or a.state != ACTOR_ALIVE):
        a.worker = worker[0]
    if state != a.state or incarnation > a.incarnation:
        a.killing = 0
    a.state = state
    a.incarnation = incarnation
    c.changed = True
    if state == ACTOR_DEAD:
        settle_limbo(c, a, True)
    elif state == ACTOR_ALIVE or state == ACTOR_RESTARTING:
        settle_limbo(c, a, False)
    actor_pump(c, a)


cdef void actor_after_death(Core *c, ActorClient *a, const Id28 *worker) noexcept nogil:
    """Calls of a dead process of this actor are in limbo; settle them if ftrayd has said already what follows."""
    if a.state == ACTOR_DEAD:
        settle_limbo(c, a, True)
    elif a.state == ACTOR_RESTARTING or (a.state == ACTOR_ALIVE and not same_id(&a.worker, worker)):
        settle_limbo(c, a, False)
        actor_pump(c, a)
