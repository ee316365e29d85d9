"""Borrowers let go of the places of objects, so that these can leave shared memory. Needs the core lock."""

from libc.stdint cimport uint64_t
from ftray._core.channel cimport FrameHeader
from ftray._core.types cimport Channel, Core, Large, ObjEntry

# The owner's side: ask those who may know the place (not more often than makes sense).
cdef void recall_ask(Core *c, ObjEntry *e) noexcept nogil
cdef bint recall_done(Large *g) noexcept nogil      # no borrower knows the place
cdef bint recall_open(Large *g) noexcept nogil      # answers may still come
# Both sides.
cdef void recall_frame(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil
