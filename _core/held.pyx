"""Answers of an exactly-once actor that wait for its journal.

Owns: `Core.held`, in the order of the journal's positions, and `Core.durable_position`, up to which answers leave: what
the journal says, but not above `Core.held_ceiling` (what depends on a method that no record can repeat).
Invariants: an answer leaves after everything whose position is not above its own is durable; answers leave in the order
in which they were made; a channel with a held answer is not freed (`exec_pending` counts it).

Leaves to others: what is durable (the journal), and the bytes of answers (answers.pyx). Needs the core lock, but for
`held_journal_says`, which the journal's own thread calls.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from ftray._core.borrows cimport borrow_send
from ftray._core.channel cimport FRAME_HEADER, F_WANT_ACK, FrameHeader, chan_begin, chan_commit
from ftray._core.flows cimport flow_over
from ftray._core.runtime cimport core_enter, core_leave
from ftray._core.types cimport CH_OPEN, Channel, Core, HeldCaller, HeldReply

cdef enum:
    SPARE_FRAMES = 1024     # as many as callers have in flight, as a rule
    SPARE_SIZE = 512


cdef void held_push(Core *c, Channel *ch, uint64_t position, bint gated, const char *frame, uint64_t size) noexcept nogil:
    """Keep an answer (a whole frame) until `position` is durable."""
    c.held.emplace_back()
    cdef HeldReply *h = &c.held.back()
    h.position = position
    h.ch = ch
    h.gated = gated
    if not c.spare_frames.empty():
        h.frame.swap(c.spare_frames.back())
        c.spare_frames.pop_back()
    h.frame.assign(frame, size)
    c.held_bytes += size


cdef void send(Core *c, HeldReply *h) noexcept nogil:
    cdef FrameHeader *head = <FrameHeader *>h.frame.data()
    cdef uint64_t size = h.frame.size()
    cdef char *p
    h.ch.exec_pending -= 1
    if h.ch.state != CH_OPEN:
        return
    if h.gated:
        borrow_send(c, h.ch, &h.frame)
        return
    p = chan_begin(c, h.ch, size, head.kind, head.flags, head.aux, head.seq)
    memcpy(p, h.frame.data() + FRAME_HEADER, size - FRAME_HEADER)
    chan_commit(c, h.ch, size)


cdef void held_release(Core *c, uint64_t position) noexcept nogil:
    """The journal is durable up to here."""
    position = min(position, c.held_ceiling)
    if position > c.durable_position:
        c.durable_position = position
    while not c.held.empty() and c.held.front().position <= c.durable_position:
        c.held_bytes -= c.held.front().frame.size()
        send(c, &c.held.front())
        if c.spare_frames.size() < SPARE_FRAMES and c.held.front().frame.capacity() <= SPARE_SIZE:
            c.spare_frames.emplace_back()
            c.spare_frames.back().swap(c.held.front().frame)
        c.held.pop_front()
    while not c.held_callers.empty() and c.held_callers.front().position <= c.durable_position:
        flow_over(c, &c.held_callers.front().id)
        c.held_callers.pop_front()


cdef void held_ask(Core *c, Channel *ch, uint64_t seq, uint64_t position) noexcept nogil:
    cdef FrameHeader frame
    if ch.state != CH_OPEN:
        return
    if position <= c.durable_position:
        chan_begin(c, ch, FRAME_HEADER, F_WANT_ACK, 0, 0, seq)
        chan_commit(c, ch, FRAME_HEADER)
        return
    memset(&frame, 0, sizeof(frame))
    frame.size, frame.kind, frame.seq = FRAME_HEADER, F_WANT_ACK, seq
    ch.exec_pending += 1
    held_push(c, ch, position, False, <const char *>&frame, FRAME_HEADER)


cdef void held_caller(Core *c, uint64_t position, const uint8_t *call_id) noexcept nogil:
    """A method that has called exactly-once actors has ended: they are told when its record, at `position`, is durable."""
    cdef HeldCaller h
    h.position = position
    memcpy(h.id.b, call_id, 16)
    c.held_callers.push_back(h)
    held_release(c, 0)


cdef void held_limit(Core *c, uint64_t position, uint64_t ceiling) noexcept nogil:
    """The journal, or the ceiling, has moved."""
    c.held_ceiling = ceiling
    held_release(c, position)


cdef void held_journal_says(void *arg, uint64_t position) noexcept nogil:
    """The journal's thread: as `held_release`, with what follows from it."""
    cdef Core *c = <Core *>arg
    core_enter(c)
    held_release(c, position)
    core_leave(c)
