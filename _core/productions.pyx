"""What is known here of the consumers of generators that run in this process. Needs the core lock.

Owns: `Core.productions`, one for each call with TASK_STREAM that runs, and the frame of an item. Invariants: a call is on
the list from the moment that it is taken off the queue until it is answered, and before that its frame is what is told, so
that no word of its owner is lost; items leave in order, none before the refs in it are registered with their owners.

Leaves to others: running generators (yields.pyx), and when one has to pause (streams.pyx).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.string cimport string
from libcpp.vector cimport vector

from ftray._core.borrows cimport borrow_grant, borrow_send
from ftray._core.buf cimport Buf
from ftray._core.channel cimport FRAME_HEADER, F_STREAM_ITEM, FrameHeader, chan_begin, chan_commit
from ftray._core.refs cimport refs_drain, refs_expose
from ftray._core.segments cimport segments_drain
from ftray._core.streams cimport STREAM_STOP, stream_paused
from ftray._core.types cimport CH_OPEN, TASK_STREAM, Channel, Core, ExecTask, ObjEntry, Production
from ftray._core.wire cimport StreamStart, TaskHead

cdef extern from *:
    """
    #include <cstdint>
    #include <unistd.h>
    static void kick_resume(int fd) { uint64_t one = 1; ssize_t r = write(fd, &one, 8); (void)r; }
    """
    void kick "kick_resume"(int) nogil


cdef Production *production_find(Core *c, Channel *ch, uint64_t seq) noexcept nogil:
    cdef size_t i
    for i in range(c.productions.size()):
        if c.productions[i].seq == seq and c.productions[i].ch == ch:
            return c.productions[i]
    return NULL


cdef void production_begin(Core *c, ExecTask *t) noexcept nogil:
    """A call with TASK_STREAM is taken off the queue. Needs the lock."""
    cdef StreamStart *start = <StreamStart *>(t.frame.data + sizeof(TaskHead))
    cdef Production *p = new Production()
    p.ch = t.ch
    p.seq = t.seq
    if t.frame.size >= sizeof(TaskHead) + sizeof(StreamStart):
        p.window = start.window
        hear(p, start.consumed)
    c.productions.push_back(p)


cdef void production_end(Core *c, Channel *ch, uint64_t seq) noexcept nogil:
    """It is answered. Needs the lock."""
    cdef size_t i
    for i in range(c.productions.size()):
        if c.productions[i].seq == seq and c.productions[i].ch == ch:
            del c.productions[i]
            c.productions[i] = c.productions.back()
            c.productions.pop_back()
            return


cdef void hear(Production *p, uint64_t consumed) noexcept nogil:
    if consumed == STREAM_STOP:
        p.stop = True
    elif consumed > p.consumed:
        p.consumed = consumed


cdef void wake(Core *c, Production *p) noexcept nogil:
    """A thread or a coroutine may wait for what has just changed."""
    c.changed = True
    if p.sleeps:
        c.production_news = True
        if c.loop_fd >= 0:
            kick(c.loop_fd)


cdef void hear_in_queue(Core *c, Channel *ch, uint64_t seq, uint64_t consumed) noexcept nogil:
    """The call has not begun: its frame is what will be read."""
    cdef size_t i
    cdef ExecTask *t
    for i in range(c.exec_queue.size()):
        t = &c.exec_queue[i]
        if t.ch == ch and t.seq == seq:
            if (<TaskHead *>t.frame.data).flags & TASK_STREAM and t.frame.size >= sizeof(TaskHead) + sizeof(StreamStart):
                (<StreamStart *>(t.frame.data + sizeof(TaskHead))).consumed = consumed
            return


cdef void production_on_ack(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil:
    """STREAM_ACK. For a call that was answered or given back meanwhile it means nothing."""
    cdef Production *p = production_find(c, ch, h.seq)
    cdef uint64_t consumed
    if n < 8:
        return
    memcpy(&consumed, body, 8)
    if p == NULL:
        hear_in_queue(c, ch, h.seq, consumed)
        return
    hear(p, consumed)
    wake(c, p)


cdef void production_on_cancel(Core *c, Channel *ch, uint64_t seq) noexcept nogil:
    """CANCEL: methods are not interrupted, but one that yields can be left where it does."""
    cdef Production *p = production_find(c, ch, seq)
    if p != NULL and c.is_actor:
        p.cancelled = True
        wake(c, p)


cdef void production_channel_died(Core *c, Channel *ch) noexcept nogil:
    """The caller is dead: nobody wants more."""
    cdef size_t i
    for i in range(c.productions.size()):
        if c.productions[i].ch == ch:
            c.productions[i].stop = True
            wake(c, c.productions[i])


# --- conditions that a generator waits for -------------------------------------------------------------------------

cdef bint production_over(Core *c, Production *p) noexcept nogil:
    return p.stop or p.cancelled or p.ch.state != CH_OPEN or not c.node_alive


cdef bint production_has_room(Core *c, void *arg) noexcept nogil:
    cdef Production *p = <Production *>arg
    return production_over(c, p) or not stream_paused(p.window, p.produced, p.consumed)


cdef bint production_queue_short(Core *c, void *arg) noexcept nogil:
    cdef Production *p = <Production *>arg
    return production_over(c, p) or p.ch.outq_bytes < QUEUED_BYTES // 2


cdef bint production_ungated(Core *c, void *arg) noexcept nogil:
    return c.pending_adds == 0 or (<Production *>arg).ch.state != CH_OPEN or not c.node_alive


# --- sending --------------------------------------------------------------------------------------------------------

cdef void production_send(Core *c, Production *p, Buf *b, vector[ObjEntry *] *inner) noexcept nogil:
    """Send an item, or have it wait until the refs in it are registered; later ones do not overtake it."""
    cdef string frame
    cdef FrameHeader *h
    cdef size_t i
    cdef uint64_t size = FRAME_HEADER + b.len
    p.produced += 1
    if p.ch.state != CH_OPEN:
        return
    refs_drain(c)
    segments_drain(c)
    for i in range(inner.size()):
        refs_expose(c, inner[0][i])
        borrow_grant(c, inner[0][i], &p.ch.worker)
    if c.pending_adds == 0 or not (p.gated or inner.size()):
        memcpy(chan_begin(c, p.ch, size, F_STREAM_ITEM, 0, 0, p.seq), b.data, b.len)
        chan_commit(c, p.ch, size)
        return
    p.gated = True
    frame.resize(size)
    h = <FrameHeader *>frame.data()
    h.size = <uint32_t>size
    h.kind = F_STREAM_ITEM
    h.flags = 0
    h.aux = 0
    h.seq = p.seq
    memcpy(<char *>frame.data() + FRAME_HEADER, b.data, b.len)
    borrow_send(c, p.ch, &frame)
