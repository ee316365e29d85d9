"""The caller's side of actors: order per caller, incarnations, what a death means for calls. Needs the core lock."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from ftray._core.types cimport ActorClient, Core, Id16, Id28

cdef ActorClient *actor_client(Core *c, const Id16 *id) noexcept nogil
cdef void actor_pump(Core *c, ActorClient *a) noexcept nogil
cdef void actor_on_state(Core *c, const Id16 *id, uint8_t state, uint32_t incarnation, const Id28 *worker, const char *cause,
                         uint64_t size) noexcept nogil
cdef void actor_subscribe(Core *c, ActorClient *a) noexcept nogil
cdef void actor_after_death(Core *c, ActorClient *a, const Id28 *worker) noexcept nogil
cdef void actors_pump_waiting(Core *c) noexcept nogil
