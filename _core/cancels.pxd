"""Cancellation at the side of the submitter and of the owner. Needs the core lock."""

from libc.stdint cimport uint8_t, uint64_t
from ftray._core.types cimport Core, Id28, ObjEntry, TaskRec

cdef void task_cancel(Core *c, TaskRec *t, bint force, bint recursive) noexcept nogil
cdef void cancel_at_owner(Core *c, ObjEntry *e, uint8_t flags) noexcept nogil
cdef void cancel_asked(Core *c, Id28 *id, uint8_t flags) noexcept nogil
cdef void cancel_children(Core *c, uint64_t parent, bint force) noexcept nogil
cdef void cancel_kill(Core *c, Id28 *worker) noexcept nogil
cdef void cancel_due_kills(Core *c, uint64_t now_ns) noexcept nogil
