"""The connection to ftrayd: frames out (buffered, sent once per lock section) and frames in."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from ftray._core.types cimport ActorClient, Blob, Core, Id16, Id28, Lease, SchedClass

cdef enum NodeFrame:
    N_LEASE_REQUEST = 10
    N_LEASE_GRANT = 11
    N_LEASE_RETURN = 12
    N_LEASE_RECLAIM = 13
    N_LEASE_INFEASIBLE = 14
    N_BLOCKED = 20
    N_UNBLOCKED = 21
    N_ACTOR_CREATE = 30
    N_ACTOR_SUBSCRIBE = 31
    N_ACTOR_STATE = 32
    N_ACTOR_KILL = 33
    N_ACTOR_READY = 34
    N_ACTOR_START = 35
    N_ACTOR_EXIT = 36
    N_ACTOR_TERMINATE = 37
    N_CALLERS_DONE = 38
    N_SEG_RESERVE = 40
    N_SEG_RESERVED = 41
    N_SEG_REGISTER = 42
    N_SEG_RELEASE = 43
    N_SEG_OPEN = 44
    N_SEG_FD = 45
    N_SEG_GONE = 46
    N_SEG_SHRINK = 47
    N_DEATH_ACK = 48
    N_SEG_UNHOLD = 49
    N_WORKER_DIED = 50
    N_WORKER_KILL = 51
    N_EXIT = 52
    N_EXIT_DECLINED = 53
    N_SPILL_ASK = 54
    N_SPILL_OFFER = 55
    N_SPILL_DONE = 56
    N_SPILL_SETTLED = 57
    N_SPILL_RESTORE = 58
    N_SPILL_RESTORED = 59
    N_LOG = 60
    N_WARN = 61
    N_DEATH_ASK = 62
    N_DEATH_UNKNOWN = 63
    N_EVENTS_RING = 70
    N_FUNCTION_NAME = 71
    N_INSPECT = 72
    N_INSPECTED = 73
    N_RPC = 100
    N_RPC_REPLY = 101

cdef enum:
    MAX_PAYLOAD = 1 << 30
    MAX_MESSAGE = MAX_PAYLOAD - 65536   # from here: ftrayd passes some on with a few words of its own

cdef packed struct NodeHeader:
    uint32_t size            # of the payload
    uint16_t kind
    uint16_t flags
    uint64_t req

ctypedef void (*node_handler)(Core *c, NodeHeader *h, char *body) noexcept nogil
ctypedef void (*node_end_handler)(Core *c) noexcept nogil

cdef void node_set_handlers(node_handler on_frame, node_end_handler on_end) noexcept nogil
cdef void node_put(Core *c, uint16_t kind, uint64_t req, const void *payload, uint64_t size) noexcept nogil
cdef void node_put_flagged(Core *c, uint16_t kind, uint16_t flags, uint64_t req, const void *payload, uint64_t size) noexcept nogil
cdef void node_put_fd(Core *c, uint16_t kind, uint64_t req, const void *payload, uint64_t size, int fd) noexcept nogil
cdef void node_flush(Core *c) noexcept nogil
cdef void node_readable(Core *c) noexcept nogil
cdef void node_pending(Core *c) noexcept nogil
cdef void node_lost(Core *c) noexcept nogil
cdef void node_lease_request(Core *c, SchedClass *k, uint32_t wanted) noexcept nogil
cdef void node_lease_return(Core *c, uint64_t lease_id, uint8_t reusable) noexcept nogil
cdef void node_actor_kill(Core *c, const Id16 *actor, uint8_t no_restart, uint8_t reason) noexcept nogil
