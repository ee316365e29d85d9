"""Channels between two processes of a session: two shared-memory rings and a Unix socket as doorbell and lifeline.

All functions need the core lock. `chan_begin` gives room for one whole frame (in the ring, or in the channel's queue
when the ring is full), `chan_commit` publishes it; the peer is told once per lock section, by `chan_ring_dirty`.
"""

from libc.errno cimport EMFILE, ENFILE, ENOMEM
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from ftray._core.types cimport Channel, Core, Id28

cdef enum:
    FRAME_HEADER = 16
    RING_CAPACITY = 262144
    MAX_RING_FRAME = 65536      # larger frames travel in pieces

cdef enum FrameType:
    F_TASK = 1
    F_REPLY = 2
    F_FN_DEF = 3
    F_TAKE_BACK = 4
    F_CANCEL = 5
    F_GET_OBJ = 6
    F_OBJ_VALUE = 7
    F_BORROW_ADD = 8
    F_BORROW_ACK = 9
    F_BORROW_REMOVE = 10
    F_BLOCK_FREE = 11
    F_PIECE = 12
    F_LINEAGE_RELEASE = 13
    F_CANCEL_OBJECT = 14
    F_ASSIGN = 15
    F_WANT_ACK = 16
    F_ACK = 17
    F_RECALL = 18
    F_RECALLED = 19
    F_STREAM_ITEM = 20
    F_STREAM_ACK = 21
    F_LAST = 22

cdef packed struct FrameHeader:
    uint32_t size               # of the whole frame, header included
    uint8_t kind
    uint8_t flags
    uint16_t aux
    uint64_t seq

ctypedef void (*frame_handler)(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil
ctypedef void (*break_handler)(Core *c, Channel *ch) noexcept nogil

cdef void chan_set_handlers(frame_handler on_frame, break_handler on_break) noexcept nogil
cdef Channel *chan_connect(Core *c, Id28 *worker) noexcept nogil
cdef Channel *chan_find(Core *c, Id28 *worker) noexcept nogil
cdef void chan_accept(Core *c) noexcept nogil
cdef void chan_event(Core *c, uint64_t tag, uint32_t events) noexcept nogil
cdef char *chan_begin(Core *c, Channel *ch, uint64_t size, uint8_t kind, uint8_t flags, uint16_t aux, uint64_t seq) noexcept nogil
cdef void chan_commit(Core *c, Channel *ch, uint64_t size) noexcept nogil
cdef bint chan_has_room(Channel *ch, uint64_t size) noexcept nogil
cdef void chan_drain(Core *c, Channel *ch) noexcept nogil
cdef void chan_ring_dirty(Core *c) noexcept nogil
cdef void chan_break(Core *c, Channel *ch) noexcept nogil
cdef void chan_free(Core *c, Channel *ch) noexcept nogil
cdef bint chan_is_dead(Core *c, Id28 *worker) noexcept nogil
cdef int unix_address(Core *c, Id28 *worker, void *address) noexcept nogil

cdef inline bint chan_no_descriptors(Core *c) noexcept nogil:
    """Was it this process's lack of descriptors (or memory) that kept `chan_connect` from connecting?"""
    return c.connect_errno == EMFILE or c.connect_errno == ENFILE or c.connect_errno == ENOMEM
