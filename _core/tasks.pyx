"""The task manager: submission, dependencies, replies, deaths (decisions are in rules.pyx).

Owns: where a task is. A record lives from `task_submit` to the reply that completes it, and on its way is in exactly
one place: waiting for dependencies (each unready one has a waiter), in the queue of its scheduling class or actor, in
flight on one channel, in an actor's limbo, or held by its actor (which takes later calls meanwhile). Records of finished
tasks are freed at once, except what lineage keeps.

Leaves to others: values (values.pyx), frames of calls (pushes.pyx), workers for plain tasks (leases.pyx), actors and
their limbo (actors.pyx), cancellation (cancels.pyx), and the end of a record (outcomes.pyx).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

from ftray._core.actors cimport actor_pump, actor_subscribe
from ftray._core.channel cimport FrameHeader
from ftray._core.depends cimport depends_forget, depends_wait
from ftray._core.events cimport (EV_EXCEPTION, event_answered, event_death, event_failed, event_renewed,
                                 event_submitted)
from ftray._core.flows cimport CALL_RECORDED, CALL_REFUSED, flow_learn, flow_retried, flow_touched
from ftray._core.leases cimport class_pump, drop_lease, lease_is_idle
from ftray._core.outcomes cimport complete, fail_crashed, refuse_values, task_fail, tasks_fail_dep
from ftray._core.refs cimport refs_borrower
from ftray._core.rules cimport (FAIL_CANCELLED, REPLY_GIVEN_BACK, REPLY_LAST, REPLY_OK, RUN_AGAIN, RUN_LATER, Verdict, after_death,
                                after_memory_kill, after_reply, list_insert, list_pop, list_push, list_remove, memory_pause_ns)
from ftray._core.types cimport (TASK_CANCELLED, TASK_HELD, TASK_LIMBO, TASK_PUSHED, TASK_QUEUED,
                                TASK_WAITS_DEPS, ActorClient, Channel, Core, Id28, Lease, ObjEntry, SchedClass, TaskList, TaskRec,
                                load64, mono_ns)
from ftray._core.wire cimport ERR_CANCELLED, ERR_CRASHED, ERR_LOST, REPLY_RECORDED, REPLY_TIMES, REPLY_TOUCHED, ReplyHead, ReplyTimes


cdef enum:
    DEATH_MEMORY = 7            # kinds of a WORKER_DIED frame: the memory monitor ended it,
    DEATH_MEMORY_FINAL = 8      # and what it ran is not to be retried


# --- submission -----------------------------------------------------------------------------------------------------

cdef void task_submit(Core *c, TaskRec *t) noexcept nogil:
    """Take charge of a task: dependencies first, then its queue. The record's holds on deps and returns are in place."""
    cdef bint waits
    c.n_tasks += 1
    event_submitted(c, t)
    t.number = c.task_number
    c.task_number += 1
    waits = t.ndeps and depends_wait(c, t)
    if t.actor != NULL:
        t.state = TASK_WAITS_DEPS if waits else TASK_QUEUED
        t.actor.npending += 1
        if waits and t.actor.out_of_order:
            t.flags |= TASK_HELD
            list_push(&t.actor.held, t)
            actor_subscribe(c, t.actor)
        else:
            list_push(&t.actor.queue, t)    # order per caller: a call that waits for its arguments holds back later ones
            actor_pump(c, t.actor)
    elif not waits:
        enqueue(c, t)
    else:
        t.state = TASK_WAITS_DEPS
        list_push(&c.waiting, t)


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
            if t.flags & TASK_HELD:
                t.flags &= ~TASK_HELD
                list_remove(&t.actor.held, t)
                list_push(&t.actor.queue, t)
            actor_pump(c, t.actor)
        elif t.due_ns == 0:             # else its pause is not over
            list_remove(&c.waiting, t)
            enqueue(c, t)


# --- replies --------------------------------------------------------------------------------------------------------

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
    cdef bint waits = t.ndeps and depends_wait(c, t)        # a value may have been lost meanwhile
    t.state = TASK_WAITS_DEPS if waits else TASK_QUEUED
    if t.actor != NULL:
        list_insert(&t.actor.queue, t)
    elif waits:
        list_push(&c.waiting, t)
    else:
        list_insert(&t.cls.queue, t)


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
    cdef uint32_t attempt
    cdef ReplyTimes times
    cdef char *p = body + sizeof(ReplyHead)
    if h.seq == 0 and l != NULL:
        l.taking_back = 0               # a TAKE_BACK is answered in full
    if n < sizeof(ReplyHead) or <uint64_t>r.nborrow * 28 > n - sizeof(ReplyHead):
        if t != NULL:
            task_fail(c, t, ERR_LOST, b"the reply could not be read", 27)
        return
    times.started = times.ended = 0
    if r.held & REPLY_TIMES and n >= sizeof(ReplyHead) + sizeof(ReplyTimes) + <uint64_t>r.nborrow * 28:
        n -= sizeof(ReplyTimes)
        memcpy(&times, body + n, sizeof(ReplyTimes))
    if r.nborrow:
        n -= <uint64_t>r.nborrow * 28   # they stand at the end; they count also when nobody wants the values
        take_borrows(c, ch, r, body + n)
    if t == NULL:
        return
    if r.epoch:
        flow_learn(t, r.epoch)
    if r.held & REPLY_TOUCHED:
        flow_touched(c, t)
    c.n_replies += 1
    if l != NULL:
        if r.status == REPLY_GIVEN_BACK:
            l.paused |= h.aux
        else:
            l.paused = 0
            l.spent |= h.flags & REPLY_LAST
    if t.actor == NULL or r.status != REPLY_GIVEN_BACK:
        ch.last_reply_ns = 0 if ch.ninflight == 0 else mono_ns()
    k = t.cls
    attempt = t.attempt
    v = after_reply(t, r.status)
    if t.note != NULL and v != RUN_AGAIN:
        t.note.fate = CALL_RECORDED if r.held & REPLY_RECORDED else CALL_REFUSED
    if v == RUN_AGAIN:
        if t.attempt != attempt:
            if t.items != NULL and t.items.again:       # a generator that was stopped to be run anew
                t.attempt = attempt
                event_answered(c, t, 0, times.started, times.ended, ch)
                t.attempt = attempt + 1
                refuse_values(c, p, body + n, r.nret, &ch.worker)
            else:
                event_failed(c, t, attempt, EV_EXCEPTION, ch.worker.b)
            event_renewed(c, t)
            flow_retried(t)
        requeue(c, t)
    elif v == FAIL_CANCELLED:
        task_fail(c, t, ERR_CANCELLED, NULL, 0)
    else:
        event_answered(c, t, 0 if r.status == REPLY_OK else EV_EXCEPTION, times.started, times.ended, ch)
        complete(c, t, p, body + n, r.nret, &ch.worker)
    if k != NULL:
        if k.queue.head != NULL or l == NULL:
            class_pump(c, k)
        if l != NULL and l.ch.ninflight == 0:
            lease_is_idle(c, l)
    elif ch.actor != NULL and ch.actor.queue.head != NULL:
        actor_pump(c, ch.actor)


# --- deaths ---------------------------------------------------------------------------------------------------------

cdef void delay(Core *c, TaskRec *t, uint64_t pause_ns) noexcept nogil:
    """Have a task wait: it stands with those that wait for dependencies until the timer finds it due."""
    t.state = TASK_WAITS_DEPS
    t.due_ns = mono_ns() + pause_ns
    list_push(&c.waiting, t)
    if c.delayed_ns == 0 or t.due_ns < c.delayed_ns:
        c.delayed_ns = t.due_ns
    wake_at(c, c.delayed_ns)


cdef void wake_at(Core *c, uint64_t at_ns) noexcept nogil:
    if c.timer_ns == 0 or at_ns < c.timer_ns:
        c.timer_ns = at_ns


cdef void tasks_delayed(Core *c, uint64_t now_ns) noexcept nogil:
    """Timer: tasks whose pause is over go back to their queues."""
    cdef vector[TaskRec *] due
    cdef vector[SchedClass *] classes
    cdef TaskRec *t = c.waiting.head
    cdef size_t i
    if c.delayed_ns == 0:
        return
    if now_ns < c.delayed_ns:
        wake_at(c, c.delayed_ns)
        return
    c.delayed_ns = 0
    while t != NULL:
        if t.due_ns and t.due_ns <= now_ns:
            due.push_back(t)
        elif t.due_ns and (c.delayed_ns == 0 or t.due_ns < c.delayed_ns):
            c.delayed_ns = t.due_ns
        t = t.next
    if c.delayed_ns:
        wake_at(c, c.delayed_ns)
    for i in range(due.size()):
        t = due[i]
        t.due_ns = 0
        list_remove(&c.waiting, t)
        depends_forget(c, t)            # a value that was lost meanwhile; requeue waits for it again
        requeue(c, t)
        classes.push_back(t.cls)
    for i in range(classes.size()):
        class_pump(c, classes[i])


cdef void settle(Core *c, TaskRec *t, bint started, const Id28 *worker, const char *report, uint64_t size) noexcept nogil:
    """A call of a dead plain worker."""
    cdef uint8_t kind = <uint8_t>report[32] if size > 32 else 0       # of the WORKER_DIED frame
    cdef uint32_t attempt = t.attempt
    cdef Verdict v
    if kind == DEATH_MEMORY or kind == DEATH_MEMORY_FINAL:
        v = after_memory_kill(t, started, kind == DEATH_MEMORY_FINAL, c.memory_retries)
    else:
        v = after_death(t, started, False)
    if t.attempt != attempt and (v == RUN_AGAIN or v == RUN_LATER):
        event_failed(c, t, attempt, event_death(report, size, ERR_CRASHED), worker.b)
        event_renewed(c, t)
    if v == RUN_AGAIN:
        requeue(c, t)
    elif v == RUN_LATER:
        delay(c, t, memory_pause_ns(t, c.memory_delay_ns))
    elif v == FAIL_CANCELLED:
        task_fail(c, t, ERR_CANCELLED, NULL, 0)
    else:
        fail_crashed(c, t, worker, report, size)


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
            settle(c, t, seq <= started, &ch.worker, report, size)
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
        depends_forget(c, t)
        open_tasks.push_back(t)
    for item in c.classes:
        while item.second.queue.head != NULL:
            open_tasks.push_back(list_pop(&item.second.queue))
    for entry in c.actors:
        while entry.second.queue.head != NULL:
            t = list_pop(&entry.second.queue)
            depends_forget(c, t)
            open_tasks.push_back(t)
        while entry.second.held.head != NULL:
            t = list_pop(&entry.second.held)
            depends_forget(c, t)
            open_tasks.push_back(t)
        while entry.second.limbo.head != NULL:
            open_tasks.push_back(list_pop(&entry.second.limbo))
    c.ready.clear()                     # whose last dependency has just come is among them
    for i in range(open_tasks.size()):
        task_fail(c, open_tasks[i], code, NULL, 0)
