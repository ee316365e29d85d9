"""Values of objects: set them, wait for them, write them into frames and read them. Needs the core lock."""

from libc.stdint cimport uint8_t, uint64_t
from ftray._core.types cimport AwaitBox, Blob, Channel, Core, Id28, ObjEntry, TaskRec

ctypedef void (*answer_fn)(Core *c, ObjEntry *e, Channel *ch, uint64_t token) noexcept nogil

cdef void values_set_answer(answer_fn answer) noexcept nogil
cdef void entry_add_waiter(ObjEntry *e, uint8_t kind, TaskRec *t, Channel *ch, uint64_t token) noexcept nogil
cdef void box_open(Core *c, AwaitBox *box, uint64_t ticket, ObjEntry *e) noexcept nogil
cdef void box_close(Core *c, AwaitBox *box, uint64_t ticket) noexcept nogil
cdef void box_remove(Core *c, AwaitBox *box) noexcept nogil
cdef void boxes_end(Core *c) noexcept nogil
cdef void entry_ready(Core *c, ObjEntry *e) noexcept nogil
cdef void entry_set_inline(Core *c, ObjEntry *e, Blob *b, bint is_error) noexcept nogil
cdef void entry_set_error(Core *c, ObjEntry *e, uint8_t code, const char *payload, uint64_t size) noexcept nogil
cdef void entry_set_shm(Core *c, ObjEntry *e, uint64_t seg, uint64_t off, uint64_t size) noexcept nogil
cdef uint64_t value_size(ObjEntry *e) noexcept nogil
cdef char *write_value(Core *c, ObjEntry *e, char *p) noexcept nogil
cdef char *read_value(Core *c, ObjEntry *e, char *p, char *end, const Id28 *sender, bint contained_granted) noexcept nogil
