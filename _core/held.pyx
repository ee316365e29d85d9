"""Answers of an exactly-once actor that wait for its journal.

Owns: `Core.held`, in the order of the journal's positions, and `Core.durable_position`, up to which answers leave: what
the journal says, but not above `Core.held_ceiling` (what depends on a method that no record can repeat).
Invariants: an answer leaves after everything whose position is not above its own is durable; answers leave in the order
in which they were made; a channel with a held answer is not freed (`exec_pending` counts it).

Leaves to others: what is durable (the journal), and the bytes of answers (answers.pyx). Needs the core lock, but for
`held_journal_says`, which the journal's own thread calls.
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from ftray._core.borrows cimport borrow_send
from ftray._core.channel cimport F_REPLY, FRAME_HEADER, FrameHeader, chan_begin, chan_commit
from ftray._core.runtime cimport core_enter, core_leave
from ftray._core.types cimport CH_OPEN, Channel, Core, HeldReply


cdef void held_push(Core *c, Channel *ch, uint64_t position, bint gated, const char *frame, uint64_t size) noexcept nogil:
    """Keep an answer (a whole frame) until `position` is durable."""
    c.held.emplace_back()
    cdef HeldReply *h = &c.held.back()
    h.position = position
    h.ch = ch
    h.gated = gated
    h.frame.assign(frame, size)


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
    p = chan_begin(c, h.ch, size, F_REPLY, head.flags, head.aux, head.seq)
    memcpy(p, h.frame.data() + FRAME_HEADER, size - FRAME_HEADER)
    chan_commit(c, h.ch, size)


cdef void held_release(Core *c, uint64_t position) noexcept nogil:
    """The journal is durable up to here."""
    position = min(position, c.held_ceiling)
    if position > c.durable_position:
        c.durable_position = position
    while not c.held.empty() and c.held.front().position <= c.durable_position:
        send(c, &c.held.front())
        c.held.pop_front()


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
