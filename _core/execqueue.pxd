"""Calls that this process shall run: their queue, and frames about them. Needs the core lock."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from ftray._core.channel cimport FrameHeader
from ftray._core.nodelink cimport NodeHeader
from ftray._core.types cimport Channel, Core, ExecTask

cdef enum:
    EXEC_CALL = 0
    EXEC_ACTOR_START = 1     # seq of an ExecTask without channel
    EXEC_TERMINATE = 2
    EXEC_ACTION = 3
    EXEC_ASSIGN = 4
    EXEC_CALLERS_DONE = 5
    EXEC_ACK = 6

cdef bint exec_frame(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil
cdef bint exec_node_frame(Core *c, NodeHeader *h, char *body) noexcept nogil
cdef void exec_channel_died(Core *c, Channel *ch) noexcept nogil
cdef void exec_give_back_all(Core *c) noexcept nogil
cdef void exec_reply_status(Core *c, Channel *ch, uint64_t seq, uint8_t status, uint16_t aux) noexcept nogil
cdef void exec_post(Core *c) noexcept nogil
cdef bint exec_runnable(Core *c) noexcept nogil
cdef uint64_t exec_begin(Core *c, ExecTask *out) noexcept nogil
