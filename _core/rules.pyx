"""What becomes of a task, and which lease gets the next one (see rules.pxd).

A call that its worker had not begun costs nothing when the worker dies: it is known (the ring's `started` word outlives
the process), so it simply runs elsewhere. A call that had begun consumes a retry. This differs from Ray, where every
call in flight counts as begun, and is why `max_retries=0` still means "at most once" here and yet loses nothing that
never ran.
"""

from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from ftray._core.types cimport (ActorClientPtr, CH_BROKEN, CH_OPEN, TASK_CANCELLED, Channel, Lease, SchedClass, TaskList, TaskRec)


cdef bint nobody_waits(TaskRec *t) noexcept nogil:
    """Would nobody look at what another attempt of a generator yields?"""
    return t.stream != NULL and t.stream.s.stopped and (t.items == NULL or t.items.missing == 0)


cdef bint use_retry(TaskRec *t) noexcept nogil:
    """Consume one retry; False when none is left."""
    if t.items != NULL and t.items.again:
        t.attempt += 1                  # that there is another attempt has been decided, and paid for
        return True
    if t.retries_left == 0 or nobody_waits(t):
        return False
    if t.retries_left > 0:
        t.retries_left -= 1
    t.attempt += 1
    return True


cdef Verdict after_death(TaskRec *t, bint started, bint actor_dead) noexcept nogil:
    """The process that had this call is dead."""
    if t.flags & TASK_CANCELLED:
        return FAIL_CANCELLED
    if t.actor != NULL and actor_dead:
        return FAIL_ACTOR_DEAD
    if not started:
        return RUN_AGAIN
    if use_retry(t):
        return RUN_AGAIN
    return FAIL_UNAVAILABLE if t.actor != NULL else FAIL_CRASHED


cdef Verdict after_memory_kill(TaskRec *t, bint started, bint final, int32_t limit) noexcept nogil:
    """The memory monitor ended the plain worker that had this call: that uses up no retry, but a task that must not be
    repeated is not, and the last one of its owner (`final`) has nothing that could make room for it."""
    if t.flags & TASK_CANCELLED:
        return FAIL_CANCELLED
    if not started:
        return RUN_AGAIN
    if final or not t.retriable or (limit >= 0 and t.memory_kills >= <uint32_t>limit):
        return FAIL_CRASHED
    t.memory_kills += 1
    t.attempt += 1
    return RUN_LATER


cdef uint64_t memory_pause_ns(TaskRec *t, uint64_t first_ns) noexcept nogil:
    """How long a task that was ended for its memory waits: doubled each time, at most a minute."""
    cdef uint64_t most_ns = <uint64_t>60 * 1000000000
    cdef uint32_t doublings = t.memory_kills - 1 if t.memory_kills else 0
    return most_ns if doublings > 30 or first_ns > most_ns >> doublings else first_ns << doublings


cdef Verdict after_reply(TaskRec *t, int status) noexcept nogil:
    """The process that had this call has answered."""
    if status == REPLY_CANCELLED:
        return FAIL_CANCELLED
    if status == REPLY_GIVEN_BACK:
        return FAIL_CANCELLED if t.flags & TASK_CANCELLED else RUN_AGAIN
    if t.items != NULL and t.items.again:
        return FAIL_CANCELLED if t.flags & TASK_CANCELLED or not use_retry(t) else RUN_AGAIN
    if status == REPLY_RETRY and not t.flags & TASK_CANCELLED and use_retry(t):
        return RUN_AGAIN
    return COMPLETE


cdef Lease *pick_lease(SchedClass *k) noexcept nogil:
    """The least loaded usable lease that has room in its window, or NULL."""
    cdef Lease *best = NULL
    cdef Lease *l
    cdef size_t i
    for i in range(k.leases.size()):
        l = k.leases[i]
        if l.broken or l.paused or l.reclaimed or l.spent or l.ch.state != CH_OPEN or l.ch.ninflight >= k.window:
            continue
        if best == NULL or l.ch.ninflight < best.ch.ninflight:
            best = l
    return best


cdef uint32_t leases_wanted(SchedClass *k) noexcept nogil:
    """How many further leases would each have a call to run now."""
    cdef uint64_t waiting = k.queue.n
    cdef size_t i
    for i in range(k.leases.size()):
        if not k.leases[i].broken and k.leases[i].ch.ninflight > 1:
            waiting += k.leases[i].ch.ninflight - 1
    return <uint32_t>min(waiting, <uint64_t>MAX_ASKED)


cdef Lease *overloaded(SchedClass *k, uint64_t now_ns, uint64_t stale_ns) noexcept nogil:
    """The lease whose unstarted calls an idle one should get: most loaded, and without an answer for `stale_ns`."""
    cdef Lease *best = NULL
    cdef Lease *l
    cdef size_t i
    for i in range(k.leases.size()):
        l = k.leases[i]
        if l.broken or l.taking_back or l.ch.ninflight < 2 or now_ns - l.ch.last_reply_ns < stale_ns:
            continue
        if best == NULL or l.ch.ninflight > best.ch.ninflight:
            best = l
    return best


cdef void list_push(TaskList *l, TaskRec *t) noexcept nogil:
    t.next = NULL
    t.prev = l.tail
    if l.tail != NULL:
        l.tail.next = t
    else:
        l.head = t
    l.tail = t
    l.n += 1


cdef void list_remove(TaskList *l, TaskRec *t) noexcept nogil:
    if t.prev != NULL:
        t.prev.next = t.next
    else:
        l.head = t.next
    if t.next != NULL:
        t.next.prev = t.prev
    else:
        l.tail = t.prev
    t.next = NULL
    t.prev = NULL
    l.n -= 1


cdef void list_insert(TaskList *l, TaskRec *t) noexcept nogil:
    """Put a task back where its submission number belongs (near the head: it was submitted before what waits)."""
    cdef TaskRec *at = l.head
    while at != NULL and at.number < t.number:
        at = at.next
    if at == NULL:
        list_push(l, t)
        return
    t.next = at
    t.prev = at.prev
    if at.prev != NULL:
        at.prev.next = t
    else:
        l.head = t
    at.prev = t
    l.n += 1


cdef TaskRec *list_pop(TaskList *l) noexcept nogil:
    cdef TaskRec *t = l.head
    if t != NULL:
        list_remove(l, t)
    return t


cdef class TaskRules:
    """One task's fate, for tests."""

    cdef TaskRec rec

    def __init__(self, int retries, bint actor=False):
        self.rec.retries_left = retries
        self.rec.retriable = retries != 0
        self.rec.actor = <ActorClientPtr>1 if actor else NULL

    def cancel(self):
        self.rec.flags |= TASK_CANCELLED

    def died(self, bint started, bint actor_dead=False):
        return verdict_name(after_death(&self.rec, started, actor_dead))

    def ended_for_memory(self, bint started, bint final=False, int limit=-1):
        return verdict_name(after_memory_kill(&self.rec, started, final, limit))

    def memory_pause_ns(self, uint64_t first_ns):
        return memory_pause_ns(&self.rec, first_ns)

    def replied(self, int status):
        return verdict_name(after_reply(&self.rec, status))

    @property
    def retries_left(self):
        return self.rec.retries_left

    @property
    def attempt(self):
        return self.rec.attempt


cdef verdict_name(Verdict v):
    return {RUN_AGAIN: "run_again", FAIL_CRASHED: "crashed", FAIL_CANCELLED: "cancelled", FAIL_UNAVAILABLE: "unavailable",
            FAIL_ACTOR_DEAD: "actor_dead", COMPLETE: "complete", RUN_LATER: "run_later"}[v]


cdef class LeaseRules:
    """A scheduling class with made-up leases, for tests: `loads` is the number of calls in flight on each."""

    cdef SchedClass k

    def __init__(self, loads, uint64_t queued=0, uint32_t window=256):
        cdef Lease *l
        self.k.window = window
        self.k.queue.n = queued
        for n in loads:
            l = new Lease()
            l.ch = new Channel()
            l.ch.state = CH_OPEN
            l.ch.ninflight = n
            self.k.leases.push_back(l)

    def __dealloc__(self):
        cdef size_t i
        cdef TaskRec *t
        for i in range(self.k.leases.size()):
            del self.k.leases[i].ch
            del self.k.leases[i]
        while self.k.queue.head != NULL:
            t = list_pop(&self.k.queue)
            del t

    def set(self, size_t i, *, broken=False, paused=False, spent=False, last_reply_ns=0, taking_back=0, connected=True):
        cdef Lease *l = self.k.leases[i]
        l.ch.state = CH_OPEN if connected else CH_BROKEN
        l.broken = broken
        l.paused = paused
        l.spent = spent
        l.taking_back = taking_back
        l.ch.last_reply_ns = last_reply_ns

    cdef index(self, Lease *l):
        cdef size_t i
        for i in range(self.k.leases.size()):
            if self.k.leases[i] == l:
                return i
        return None

    def pick(self):
        return self.index(pick_lease(&self.k))

    def wanted(self):
        return leases_wanted(&self.k)

    def overloaded(self, uint64_t now_ns, uint64_t stale_ns):
        return self.index(overloaded(&self.k, now_ns, stale_ns))

    cdef TaskRec *queued(self, uint64_t number) except NULL:
        cdef TaskRec *t = self.k.queue.head
        while t != NULL and t.number != number:
            t = t.next
        if t == NULL:
            raise KeyError(number)
        return t

    def submit(self, uint64_t number):
        cdef TaskRec *t = new TaskRec()
        t.number = number
        list_push(&self.k.queue, t)

    def put_back(self, uint64_t number):
        cdef TaskRec *t = new TaskRec()
        t.number = number
        list_insert(&self.k.queue, t)

    def take(self):
        cdef TaskRec *t = list_pop(&self.k.queue)
        if t == NULL:
            return None
        number = t.number
        del t
        return number

    def withdraw(self, uint64_t number):
        cdef TaskRec *t = self.queued(number)
        list_remove(&self.k.queue, t)
        del t

    def queue(self):
        """The numbers from the head, the same from the tail, and the count."""
        cdef TaskRec *t = self.k.queue.head
        forwards, backwards = [], []
        while t != NULL:
            forwards.append(t.number)
            t = t.next
        t = self.k.queue.tail
        while t != NULL:
            backwards.append(t.number)
            t = t.prev
        return forwards, backwards, self.k.queue.n
