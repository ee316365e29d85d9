"""Generators that run again for items that were lost: the stream of such a task, and its items. Needs the core lock."""

from libc.stdint cimport uint8_t, uint64_t
from ftray._core.types cimport Blob, Core, Id28, ObjEntry, TaskRec

cdef void replay_open(TaskRec *t) noexcept nogil
cdef bint replay_done(TaskRec *t) noexcept nogil
cdef void replay_item(Core *c, TaskRec *t, ObjEntry *e, char *p, char *end, const Id28 *sender) noexcept nogil
cdef void replay_outcome(Core *c, TaskRec *t, char *p, char *end) noexcept nogil
cdef void replay_fail(Core *c, TaskRec *t, uint8_t code, const char *payload, uint64_t size) noexcept nogil
cdef void replay_fail_like(Core *c, TaskRec *t, Blob *error) noexcept nogil
