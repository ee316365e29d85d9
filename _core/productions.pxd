"""Generators that run here, as seen from the channel: words of their consumers come in, items go out. Needs the core lock."""

from libc.stdint cimport uint64_t
from libcpp.vector cimport vector
from ftray._core.buf cimport Buf
from ftray._core.channel cimport FrameHeader
from ftray._core.types cimport Channel, Core, ExecTask, ObjEntry, Production

cdef enum:
    QUEUED_BYTES = 1 << 20      # that wait for room in the channel, after which a generator waits, too

cdef void production_begin(Core *c, ExecTask *t) noexcept nogil
cdef void production_end(Core *c, Channel *ch, uint64_t seq) noexcept nogil
cdef Production *production_find(Core *c, Channel *ch, uint64_t seq) noexcept nogil
cdef void production_send(Core *c, Production *p, Buf *b, vector[ObjEntry *] *inner) noexcept nogil
cdef void production_on_ack(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil
cdef void production_on_cancel(Core *c, Channel *ch, uint64_t seq) noexcept nogil
cdef void production_channel_died(Core *c, Channel *ch) noexcept nogil

# Conditions for `wait_python`; the argument is the Production.
cdef bint production_over(Core *c, Production *p) noexcept nogil
cdef bint production_has_room(Core *c, void *arg) noexcept nogil
cdef bint production_queue_short(Core *c, void *arg) noexcept nogil
cdef bint production_ungated(Core *c, void *arg) noexcept nogil
