"""Identity of what runs here (see context.pxd).

TaskIDs are 24 bytes: 8 unique, then the 16 of the actor (or ones and the job for a plain task), as in Ray. The unique part
of a child is a mix of its parent's, the parent's attempt and the child's index, so two attempts of a task never make
the same child, and ObjectIDs (TaskID and index) inherit that. A thread that executes nothing (a driver's threads, a
worker's own threads) uses the process's root context.

Calls of an async actor take turns on one thread: there a `contextvars.ContextVar` says which one it is, which the
asyncio tasks that a call makes inherit.
"""

from cpython.contextvars cimport get_value
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from ftray._core.types cimport mix64

cdef extern from *:
    """
    #include "context.hpp"
    static thread_local Context thread_context = {};
    static Context root_context = {};
    """
    Context thread_context
    Context root_context

cdef enum:
    PUT_INDEX_BASE = 0x80000000u


cdef object async_call = None       # the ContextVar, once this process is an async actor


cdef object context_variable():
    """The variable that holds the `CallContext` of a call; from now on it is looked at."""
    global async_call
    import contextvars
    if async_call is None:
        async_call = contextvars.ContextVar("ftray_call", default=None)
    return async_call


cdef Context *context() noexcept:
    """What the calling code belongs to. The result is good as long as this code runs."""
    if thread_context.set:
        return &thread_context
    if async_call is not None:
        call = get_value(async_call)
        if call is not None:
            return &(<CallContext>call).c       # the variable keeps it
    return &root_context


cdef void context_fill(Context *x, const uint8_t *task_id, const uint8_t *call_id, uint64_t key, uint32_t attempt, uint32_t depth) noexcept nogil:
    """The context of a call that begins."""
    memcpy(x.task_id, task_id, 24)
    memcpy(x.call_id, call_id, 16)
    memcpy(&x.unique, task_id, 8)
    x.key = key
    x.attempt = attempt
    x.depth = depth
    x.children = 0
    x.puts = 0
    x.set = True


cdef void context_begin(Context *saved, const uint8_t *task_id, const uint8_t *call_id, uint64_t key, uint32_t attempt, uint32_t depth) noexcept nogil:
    """This thread starts to execute a call."""
    saved[0] = thread_context
    context_fill(&thread_context, task_id, call_id, key, attempt, depth)


cdef void context_end(Context *saved) noexcept nogil:
    thread_context = saved[0]


cdef void context_root(uint64_t root, uint32_t job) noexcept nogil:
    """The process's own context: the driver's main flow, and threads outside any call."""
    memset(&root_context, 0, sizeof(Context))
    root_context.unique = root
    memcpy(root_context.task_id, &root, 8)
    memset(root_context.task_id + 8, 0xff, 12)
    memcpy(root_context.task_id + 20, &job, 4)
    memcpy(root_context.call_id, &root, 8)


cdef void child_task_id(Context *x, uint32_t job, uint8_t *actor_tail, uint8_t *out, uint8_t *call_out) noexcept nogil:
    """The id of the next task that this context submits; `actor_tail`: the actor's 16 bytes for an actor call."""
    cdef uint64_t unique, call
    x.children += 1
    unique = mix64(x.unique ^ mix64((<uint64_t>x.attempt << 40) + x.children))
    memcpy(out, &unique, 8)
    if actor_tail != NULL:
        memcpy(out + 8, actor_tail, 16)
    else:
        memset(out + 8, 0xff, 12)
        memcpy(out + 20, &job, 4)
    memcpy(&call, x.call_id, 8)
    call = mix64(call ^ mix64(x.children))      # without the attempt: a re-executed parent names the same calls
    memcpy(call_out, &call, 8)
    call = mix64(call)
    memcpy(call_out + 8, &call, 8)


cdef void put_id(Context *x, uint8_t *out) noexcept nogil:
    """The ObjectID of the next put of this context."""
    cdef uint32_t index
    cdef uint64_t unique
    x.puts += 1
    index = PUT_INDEX_BASE + <uint32_t>x.puts
    unique = mix64(x.unique ^ mix64((<uint64_t>x.attempt << 40) + 0x7000000000000000ull))
    memcpy(out, x.task_id, 24)
    if x.attempt:
        memcpy(out, &unique, 8)
    memcpy(out + 24, &index, 4)
