"""What a task waits for before it can run: the values of its arguments. Needs the core lock."""

from ftray._core.types cimport Core, ObjEntry, TaskRec

cdef bint depends_wait(Core *c, TaskRec *t) noexcept nogil
cdef void depends_forget(Core *c, TaskRec *t) noexcept nogil
cdef void depends_lost(Core *c, ObjEntry *e) noexcept nogil
