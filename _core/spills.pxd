"""The owner's side of spilling objects to disk and bringing them back. Needs the core lock."""

from libc.stdint cimport uint8_t, uint64_t
from ftray._core.nodelink cimport NodeHeader
from ftray._core.types cimport Blob, Channel, Core, ObjEntry, Restore

cdef enum RestoreCode:
    RESTORE_OK = 0
    RESTORE_NO_ROOM = 1         # nothing has changed: it may be tried again
    RESTORE_LOST = 2            # the file is gone or damaged
    RESTORE_FAILED = 3          # it cannot be read; nothing has changed

ctypedef void (*lost_fn)(Core *c, ObjEntry *e, const char *text, uint64_t size) noexcept nogil

cdef void spills_set_recovery(lost_fn on_loss) noexcept nogil
cdef void spill_frame(Core *c, NodeHeader *h, char *body) noexcept nogil
cdef void spill_located(Core *c, ObjEntry *e, Channel *ch) noexcept nogil
cdef void spill_free(Core *c, uint64_t spill) noexcept nogil
cdef void spill_restore(Core *c, ObjEntry *e) noexcept nogil
# For a thread that waits: join, wait until `done` (or ftrayd's end), take the text, leave; `seen` after it looked.
cdef Restore *restore_join(Core *c, ObjEntry *e) noexcept nogil
cdef void restore_leave(Core *c, Restore *r) noexcept nogil
cdef void restore_seen(Core *c, ObjEntry *e) noexcept nogil
