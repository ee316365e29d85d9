"""A task's frame on a channel. Needs the core lock.

Owns: the layout of F_TASK (TaskHead, dependencies with their values or places, arguments) and F_FN_DEF, numbers of
calls on a channel, and a channel's window of calls in flight. Invariants: `inflight[i]` is the call with number
`base_seq + i`, or NULL once it was taken out; a function's definition precedes its first call on each channel.

Leaves to others: when a task is pushed and where to (leases.pyx, actors.pyx), and what the reply means (tasks.pyx).
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ftray._core.channel cimport FRAME_HEADER, F_FN_DEF, F_TASK, chan_begin, chan_commit
from ftray._core.events cimport event_pushed
from ftray._core.flows cimport flow_stamp
from ftray._core.intake cimport intake_begin
from ftray._core.refs cimport refs_expose
from ftray._core.types cimport (OBJ_INLINE, OBJ_OWNED, OBJ_SHM, TASK_HELD, TASK_PUSHED, Blob, Channel, Core, ObjEntry, TaskRec,
                                large_told, mono_ns)
from ftray._core.wire cimport (GROUP_SIZE, HEAD_IN_GROUP, KIND_METHOD, KIND_TASK, VALUE_ASK, VALUE_INLINE, VALUE_SHM, DepHead,
                               StreamStart, TaskHead)


cdef enum:
    VALUES_IN_FRAME = 67108864      # bytes of small values of arguments; a frame's size has 32 bits


cdef extern from "flows.hpp":
    pass


cdef inline bint goes_along(ObjEntry *e, uint64_t *along) noexcept nogil:
    """Is the value written into the frame? Counts what is: beyond the bound, the callee asks for the values."""
    if e.state != OBJ_INLINE or along[0] + e.blob.size > VALUES_IN_FRAME:
        return False
    along[0] += e.blob.size
    return True


cdef uint64_t deps_size(TaskRec *t) noexcept nogil:
    cdef uint64_t n = 0, along = 0
    cdef uint16_t i
    for i in range(t.ndeps):
        n += sizeof(DepHead)
        if goes_along(t.deps[i], &along):
            n += t.deps[i].blob.size
    return n


cdef inline bint memory_is_short(Core *c) noexcept nogil:
    return c.pressure_ns != 0 and mono_ns() < c.pressure_ns


cdef char *write_deps(Core *c, TaskRec *t, char *p) noexcept nogil:
    cdef DepHead *d
    cdef ObjEntry *e
    cdef uint64_t along = 0
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
        if goes_along(e, &along):
            d.kind = VALUE_INLINE
            d.size = e.blob.size
            memcpy(p, e.blob.data, e.blob.size)
            p += e.blob.size
            continue
        refs_expose(c, e)                   # the callee may keep a view and so become a borrower
        if e.state != OBJ_SHM or (e.flags & OBJ_OWNED and memory_is_short(c)):
            d.kind = VALUE_ASK              # it shall be free to move until the call begins
        else:
            t.located = 1
            if e.flags & OBJ_OWNED:
                large_told(c, e, t.ch.worker)
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
    cdef bint in_group = t.cls != NULL and t.cls.group.size() == GROUP_SIZE
    send_function(c, t.fn, ch)
    if in_group:
        size += GROUP_SIZE
    if t.ndeps:
        size += deps_size(t)
    if t.stream != NULL:
        size += sizeof(StreamStart)
    if t.note != NULL and t.note.head != NULL:
        size += t.note.head.size
    t.seq = ch.next_seq
    ch.next_seq += 1
    t.ch = ch
    t.state = TASK_PUSHED
    t.located = 0
    event_pushed(c, t)
    p = chan_begin(c, ch, size, F_TASK, 0, 0, t.seq)
    h = <TaskHead *>p
    memcpy(h.id, t.id, 24)
    memcpy(h.call_id, t.call_id, 16)
    h.epoch = 0
    h.fn = t.fn
    h.attempt = t.attempt
    h.head_size = <uint32_t>t.note.head.size if t.note != NULL and t.note.head != NULL else 0
    h.depth = t.depth
    h.nret = t.nret
    h.ndeps = t.ndeps
    h.kind = KIND_METHOD if t.actor != NULL else KIND_TASK
    h.flags = (t.flags & ~TASK_HELD) | (HEAD_IN_GROUP if in_group else 0)
    h.nested = t.nnested - (1 if t.actor != NULL and not t.handleless else 0)       # without the handle that the call holds
    h.args_size = t.args.size
    p += sizeof(TaskHead)
    if t.stream != NULL:
        p = intake_begin(c, t, p)
    if t.ndeps:
        p = write_deps(c, t, p)
    memcpy(p, t.args.data, t.args.size)
    p += t.args.size
    if h.head_size:
        memcpy(p, t.note.head.data, h.head_size)
        flow_stamp(t, p)
        p += h.head_size
    if in_group:
        memcpy(p, t.cls.group.data(), GROUP_SIZE)
    chan_commit(c, ch, size)
    if ch.ninflight == 0:
        ch.last_reply_ns = mono_ns()
    ch.inflight.push_back(t)
    ch.ninflight += 1
    c.n_pushed += 1
