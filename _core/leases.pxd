"""Leases of workers: granted, fed, taken back, given back. Needs the core lock."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from ftray._core.types cimport Core, Id28, Lease, SchedClass

cdef void class_pump(Core *c, SchedClass *k) noexcept nogil
cdef void class_fail(Core *c, uint64_t class_key, uint8_t code, const char *text, uint32_t size) noexcept nogil
cdef void lease_granted(Core *c, uint64_t class_key, uint64_t lease_id, Id28 *worker, const char *assigned, uint32_t size) noexcept nogil
cdef void lease_is_idle(Core *c, Lease *l) noexcept nogil
cdef void lease_reclaim(Core *c, uint64_t lease_id) noexcept nogil
cdef void drop_lease(Core *c, Lease *l, uint8_t reusable) noexcept nogil
cdef void leases_idle(Core *c, uint64_t now_ns) noexcept nogil
