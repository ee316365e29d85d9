"""The end of a task: values, or one error for all of its returns. Needs the core lock; frees the record."""

from libc.stdint cimport uint8_t, uint16_t, uint64_t
from ftray._core.types cimport Core, Id28, TaskRec

cdef void complete(Core *c, TaskRec *t, char *p, char *end, uint16_t nret, const Id28 *sender) noexcept nogil
cdef void task_fail(Core *c, TaskRec *t, uint8_t code, const char *payload, uint64_t size) noexcept nogil
cdef void fail_crashed(Core *c, TaskRec *t, const Id28 *worker, const char *report, uint64_t size) noexcept nogil
cdef bint tasks_fail_dep(Core *c, TaskRec *t) noexcept nogil
cdef void refuse_values(Core *c, char *p, char *end, uint16_t nret, const Id28 *sender) noexcept nogil
