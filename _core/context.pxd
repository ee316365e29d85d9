"""What the current thread is executing: the parent of what it submits."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ftray._core.types cimport Blob, Flow

cdef extern from "context.hpp" nogil:
    cppclass Context:
        uint8_t task_id[24]
        uint8_t actor_id[16]
        uint8_t call_id[16]
        uint64_t unique
        uint32_t attempt, depth
        uint64_t children, puts
        uint64_t key
        Flow *flow
        const char *block
        uint32_t block_size, epoch
        uint8_t durable
        bint touched, stray, set

cdef class CallContext:
    """The context of one call of an async actor, in whose event loop several calls take turns."""
    cdef Context c
    cdef Blob *frame        # what `c.block` points into,
    cdef bytes keep         # or this

cdef Context *context() noexcept
cdef Context *thread_call() noexcept nogil
cdef void context_fill(Context *x, const uint8_t *task_id, const uint8_t *call_id, uint64_t key, uint32_t attempt, uint32_t depth,
                       const char *block, uint32_t block_size) noexcept nogil
cdef void context_begin(Context *saved, const uint8_t *task_id, const uint8_t *call_id, uint64_t key, uint32_t attempt, uint32_t depth,
                        const char *block, uint32_t block_size) noexcept nogil
cdef bint context_end(Context *saved) noexcept nogil
cdef void context_durable(Context *x, uint32_t epoch) noexcept nogil
cdef object context_variable()
cdef void context_root(uint64_t root, uint32_t job) noexcept nogil
cdef void context_main(const uint8_t *root_call, uint64_t run_ns) noexcept nogil
cdef uint32_t context_root_depth() noexcept nogil
cdef void child_task_id(Context *x, uint32_t job, uint8_t *actor_tail, uint8_t *out) noexcept nogil
cdef void put_id(Context *x, uint8_t *out) noexcept nogil
