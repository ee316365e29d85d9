"""Messages between owners and borrowers: fetch a value, register and end a borrow, give a block back."""

from libc.stdint cimport uint8_t, uint64_t
from libcpp.string cimport string
from ftray._core.channel cimport FrameHeader
from ftray._core.types cimport Channel, Core, Id28, ObjEntry

ctypedef void (*entry_fn)(Core *c, ObjEntry *e) noexcept nogil

cdef void borrows_set_recovery(entry_fn on_loss, entry_fn on_need) noexcept nogil
cdef void borrow_fetch(Core *c, ObjEntry *e) noexcept nogil
cdef void borrow_lost(Core *c, ObjEntry *e) noexcept nogil
cdef void borrow_answer(Core *c, ObjEntry *e, Channel *ch, uint64_t token) noexcept nogil
cdef bint borrow_frame(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil
cdef void borrow_grant(Core *c, ObjEntry *inner, const Id28 *receiver) noexcept nogil
cdef void borrow_register_all(Core *c, const Id28 *piggyback_owner) noexcept nogil
cdef void borrow_announce(Core *c, ObjEntry *e) noexcept nogil
cdef void borrow_process_died(Core *c, const Id28 *worker) noexcept nogil
cdef void borrow_owner_unknown(Core *c, const Id28 *worker) noexcept nogil
cdef void borrow_carry_out(Core *c) noexcept nogil
cdef void borrow_send(Core *c, Channel *ch, string *frame) noexcept nogil
