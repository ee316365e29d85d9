"""Lineage: which finished tasks are kept to make their values again, and what a lost value needs. Decisions only."""

from libc.stdint cimport uint8_t, uint64_t
from libcpp.vector cimport vector
from ftray._core.types cimport Core, ObjEntry, TaskRec

cdef enum Unmade:            # why a value cannot be made again; `ObjExt.unmade`, and in the payload of ERR_UNMADE
    UNMADE_UNKNOWN = 0
    UNMADE_OFF = 1
    UNMADE_RETRIES = 2
    UNMADE_EVICTED = 3
    UNMADE_METHOD = 4
    UNMADE_CANCELLED = 5
    UNMADE_PUT = 6

cdef bint lineage_keep(Core *c, TaskRec *t) noexcept nogil
cdef void lineage_evict(Core *c, vector[ObjEntry *] *loose) noexcept nogil
cdef void lineage_forget(Core *c, ObjEntry *e, vector[ObjEntry *] *loose) noexcept nogil
cdef void lineage_plan(Core *c, ObjEntry *e, vector[TaskRec *] *run, vector[ObjEntry *] *hopeless) noexcept nogil
cdef void lineage_item(TaskRec *t, ObjEntry *e) noexcept nogil
cdef ObjEntry *lineage_missing(TaskRec *t, uint64_t number) noexcept nogil
cdef void lineage_made(TaskRec *t, ObjEntry *e) noexcept nogil
cdef uint8_t lineage_reason(ObjEntry *e) noexcept nogil
cdef void lineage_loosen(vector[ObjEntry *] *loose, ObjEntry *e) noexcept nogil
cdef void lineage_free(Core *c, TaskRec *t) noexcept nogil
cdef void lineage_clear(Core *c) noexcept nogil

cdef inline ObjEntry *task_return(TaskRec *t, int i) noexcept nogil:
    """A return's entry; NULL when a kept task's return is not referenced any more."""
    return t.ret0 if t.nret == 1 else t.rets[i]
