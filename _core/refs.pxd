"""The reference counter: who keeps an object alive, and what follows when nobody does.

Decisions only: functions change entries and append to `Core.commands`; the runtime carries the commands out. Everything
needs the core lock, except `refs_drop_local`, which any thread may call at any moment (garbage collection).
"""

from libc.stdint cimport int32_t, uint32_t, uint64_t
from ftray._core.types cimport Core, Id28, ObjEntry, ObjExt, TaskRec

cdef ObjEntry *refs_new(Core *c, const Id28 *id, bint owned) noexcept nogil
cdef ObjEntry *refs_find(Core *c, const Id28 *id) noexcept nogil
cdef void refs_expose(Core *c, ObjEntry *e) noexcept nogil
cdef ObjEntry *refs_borrowed(Core *c, const Id28 *id, const Id28 *owner) noexcept nogil
cdef ObjExt *refs_ext(ObjEntry *e) noexcept nogil
cdef void refs_drop_local(Core *c, ObjEntry *e) noexcept nogil
cdef bint refs_drain(Core *c) noexcept nogil
cdef void refs_hold(ObjEntry *e) noexcept nogil
cdef void refs_unhold(Core *c, ObjEntry *e) noexcept nogil
cdef void refs_check(Core *c, ObjEntry *e) noexcept nogil
cdef void refs_borrower(Core *c, ObjEntry *e, const Id28 *worker, int32_t n) noexcept nogil
cdef void refs_contain(ObjEntry *outer, ObjEntry *inner) noexcept nogil
cdef void refs_process_died(Core *c, const Id28 *worker) noexcept nogil
cdef void refs_drop_value(Core *c, ObjEntry *e) noexcept nogil
cdef void refs_finish_shared(Core *c, TaskRec *t) noexcept nogil
cdef void refs_register(Core *c, ObjEntry *e) noexcept nogil
