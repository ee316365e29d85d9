"""Holding back an actor's calls while a cut over a group of actors is taken (checkpoint/groups.py).

While an actor is on hold, only calls of the group's members, and those that steer the cut, are taken off its queue; the
others keep their places. Owns: whose calls pass, and how many calls began since.
Invariants: calls of one caller keep their order; a hold ends with the process that asked for it, so that nobody is held
for ever because a coordinator died; without a hold the queue costs what it did before (one look at a pointer).

For actors that run one call at a time; who else asks is refused before (checkpoint/groups.py).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ftray._core.runtime cimport core, core_enter, core_leave
from ftray._core.types cimport CH_BROKEN, Blob, Channel, Core, ExecTask, Hold, Id16, Id28, hold_drop, hold_new
from ftray._core.wire cimport TaskHead

cdef enum:
    NAME_SIZE = 17
cdef const char *STEERING = b"_checkpoint_group"      # the method of `Checkpointable` that steers cuts


cdef bint steers(ExecTask *t) noexcept nogil:
    """Is it a call of the method that steers cuts? See `method_definition` in calls.pyx."""
    cdef uint32_t fn = (<TaskHead *>t.frame.data).fn
    cdef Blob *b
    if fn >= t.ch.fns.size() or t.ch.fns[fn].defn == NULL:
        return False
    b = t.ch.fns[fn].defn
    return (b.size >= 3 + NAME_SIZE and b.data[0] == 1 and b.data[1] == NAME_SIZE and b.data[2] == 0
            and memcmp(b.data + 3, STEERING, NAME_SIZE) == 0)


cdef bint passes(Core *c, ExecTask *t) noexcept nogil:
    return t.ch == NULL or c.hold.members.count(t.ch.worker) or steers(t)


cdef bint hold_next(Core *c) noexcept nogil:
    """Bring the first call that may begin to the front of the queue; False if there is none."""
    cdef size_t i
    cdef ExecTask t
    for i in range(c.exec_queue.size()):
        if passes(c, &c.exec_queue[i]):
            if i:
                t = c.exec_queue[i]
                c.exec_queue.erase(c.exec_queue.begin() + i)
                c.exec_queue.push_front(t)
            return True
    return False


cdef void hold_began(Core *c, ExecTask *t) noexcept nogil:
    """A call was taken off the queue."""
    if t.ch != NULL and not steers(t):
        c.hold.begun += 1


cdef void hold_channel_broke(Core *c, Channel *ch) noexcept nogil:
    """The process at its other end is gone: if it was taking a cut, the calls that were held back may begin."""
    if c.hold.by == ch:
        hold_drop(c)
        c.changed = True


def own_worker():
    """The id of this process, by which other processes know whose calls are its."""
    return core().worker_id.b[:28]


def hold(workers):
    """From now on only calls of these processes begin, until `release` or until the present call's caller is gone.

    Called inside a method, on the main thread, of an actor that runs one call at a time.
    """
    cdef Core *c = core()
    cdef Hold *h
    cdef Id28 one
    cdef const char *p
    cdef bint broken
    if c.running_ch == NULL or c.beside:
        raise RuntimeError("hold() is called by a method of an actor that runs one call at a time")
    for worker in workers:
        if type(worker) is not bytes or len(worker) != 28:
            raise ValueError(f"the id of a process has 28 bytes, not {worker!r:.80}")
    h = hold_new()
    for worker in workers:
        p = worker
        memcpy(one.b, p, 28)
        h.members.insert(one)
    with nogil:
        core_enter(c)
        h.by = c.running_ch
        broken = h.by.state == CH_BROKEN
        if c.hold != NULL:
            h.begun = c.hold.begun
            hold_drop(c)
        c.hold = h
        if broken:
            hold_drop(c)
        core_leave(c)


def release():
    """Calls begin again in the order of the queue."""
    cdef Core *c = core()
    with nogil:
        core_enter(c)
        if c.hold != NULL:
            hold_drop(c)
            c.changed = True
        core_leave(c)


def begun():
    """How many calls began since the hold was placed; None without one."""
    cdef Core *c = core()
    cdef uint64_t n = 0
    cdef bint on
    with nogil:
        core_enter(c)
        on = c.hold != NULL
        if on:
            n = c.hold.begun
        core_leave(c)
    return n if on else None


def unanswered(actors):
    """How many calls of this process to these actors have no answer yet."""
    cdef Core *c = core()
    cdef Id16 one
    cdef uint64_t n = 0
    cdef const char *p
    for actor in actors:
        if type(actor) is not bytes or len(actor) != 16:
            raise ValueError(f"the id of an actor has 16 bytes, not {actor!r:.80}")
        p = actor
        memcpy(one.b, p, 16)
        with nogil:
            core_enter(c)
            if c.actors.count(one):
                n += c.actors[one].npending
            core_leave(c)
    return n
