"""What generator tasks of ours yield: from the frame to the consumer. Needs the core lock."""

from libc.stdint cimport uint64_t
from ftray._core.channel cimport FrameHeader
from ftray._core.types cimport Channel, Core, ObjEntry, Stream, TaskRec

cdef Stream *intake_open(Core *c, TaskRec *t, uint64_t window, bint dynamic) noexcept nogil
cdef char *intake_begin(Core *c, TaskRec *t, char *p) noexcept nogil
cdef void intake_item(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil
cdef ObjEntry *intake_next(Core *c, Stream *st) noexcept nogil
cdef bint intake_outcome(Core *c, TaskRec *t, char *p, char *end) noexcept nogil
cdef void intake_over(Core *c, TaskRec *t) noexcept nogil
cdef void intake_stop(Core *c, TaskRec *t) noexcept nogil
cdef void intake_dropped(Core *c, Stream *st) noexcept nogil
