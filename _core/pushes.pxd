"""Write a task's frame on a channel. Needs the core lock."""

from ftray._core.types cimport Channel, Core, TaskRec

cdef void task_push(Core *c, TaskRec *t, Channel *ch) noexcept nogil
