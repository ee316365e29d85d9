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
from ftray._core.flows cimport FLOW_LIVE, flow_end
from ftray._core.records cimport ROOT_JOB, RUN_NUMBERS, CallHead
from ftray._core.types cimport blob_drop, mix64

cdef extern from *:
    """
    #include "context.hpp"
    #include <sys/syscall.h>
    #include <unistd.h>
    static thread_local Context thread_context = {};
    static thread_local int8_t is_main = -1;        // of this thread; looked at when first needed
    static Context root_context = {};
    static Context stray_context = {};
    static thread_local int apart = 0;              // how many `Apart` this thread is inside of
    static bool main_flow() {
        if (is_main < 0) is_main = syscall(SYS_gettid) == getpid();
        return is_main > 0;
    }
    """
    Context thread_context
    Context root_context
    Context stray_context
    int apart
    bint main_flow() noexcept nogil

cdef char[128] run_head       # the call head that a driver which may be run again is under

cdef enum:
    PUT_INDEX_BASE = 0x80000000u
    STRAY_PUTS = 0x40000000u
    STRAY_CHILDREN = 0x4000000000u


cdef class CallContext:
    """See context.pxd."""

    def __dealloc__(self):
        flow_end(&self.c)
        blob_drop(self.frame)


cdef class HeadContext:
    """Runs code as a call is run: what it submits is named by the call that `head` (CallHead) describes.

    Parameters
    ----------
    head : bytes
    epoch : int
        Of the exactly-once actor whose method it is.
    """

    cdef bytes head
    cdef uint32_t epoch
    cdef Context saved
    cdef object token
    cdef CallContext own
    cdef readonly bint over     # it has ended, and had called exactly-once actors, which have all answered

    def __init__(self, bytes head not None, uint32_t epoch):
        if <size_t>len(head) < sizeof(CallHead):
            raise ValueError("not a call head")
        self.head, self.epoch = head, epoch

    cdef int fill(self, Context *x) except -1:
        cdef const char *p = self.head
        cdef const CallHead *h = <const CallHead *>p
        cdef uint8_t task_id[24]
        memcpy(task_id, h.call_id, 16)
        memcpy(task_id + 16, h.parent, 8)
        context_fill(x, task_id, h.call_id, 0, 0, h.nattempts + 1, p, <uint32_t>len(self.head))
        x.unique = mix64(x.unique ^ mix64(self.epoch))      # no two processes make the same objects
        memcpy(x.task_id, &x.unique, 8)
        context_durable(x, self.epoch)
        return 0

    def __enter__(self):
        if async_call is None:
            memcpy(&self.saved, &thread_context, sizeof(Context))
            self.fill(&thread_context)
        else:
            self.own = CallContext.__new__(CallContext)
            self.fill(&self.own.c)
            self.own.keep = self.head
            self.token = async_call.set(self.own)
        return self

    def __exit__(self, *exc_info):
        if self.token is not None:
            async_call.reset(self.token)
            self.over = flow_end(&self.own.c)
        else:
            self.over = context_end(&self.saved)


cdef class Apart:
    """Runs requests of the runtime itself, like those to a store: they belong to no call, whatever this thread executes,
    and the guard of an exactly-once actor lets them pass.

    For code that neither awaits nor calls a user's code.
    """

    cdef Context saved
    cdef object token

    def __enter__(self):
        global apart
        memcpy(&self.saved, &thread_context, sizeof(Context))
        memset(&thread_context, 0, sizeof(Context))
        if async_call is not None:
            self.token = async_call.set(None)
        apart += 1
        return self

    def __exit__(self, *exc_info):
        global apart
        apart -= 1
        if self.token is not None:
            async_call.reset(self.token)
            self.token = None
        memcpy(&thread_context, &self.saved, sizeof(Context))


def context_epoch():
    """The epoch of the method that the calling code belongs to, 0 for one that runs for the first time."""
    return context().epoch


def is_apart():
    """Whether this thread is inside of `Apart`."""
    return apart > 0


cdef object async_call = None       # the ContextVar, once this process is an async actor


cdef object context_variable():
    """The variable that holds the `CallContext` of a call; from now on it is looked at."""
    global async_call
    import contextvars
    if async_call is None:
        async_call = contextvars.ContextVar("ftray_call", default=None)
    return async_call


cdef Context *thread_call() noexcept nogil:
    """The context of the call that this thread executes (not of an event loop's)."""
    return &thread_context


cdef Context *context() noexcept:
    """What the calling code belongs to. The result is good as long as this code runs."""
    if thread_context.set:
        return &thread_context
    if async_call is not None:
        call = get_value(async_call)
        if call is not None:
            return &(<CallContext>call).c       # the variable keeps it
    return &root_context if main_flow() else &stray_context


cdef void context_fill(Context *x, const uint8_t *task_id, const uint8_t *call_id, uint64_t key, uint32_t attempt, uint32_t depth,
                       const char *block, uint32_t block_size) noexcept nogil:
    """The context of a call that begins. `block`: its call head, which stays where it is until `context_end`."""
    memcpy(x.task_id, task_id, 24)
    memcpy(x.call_id, call_id, 16)
    memcpy(&x.unique, task_id, 8)
    x.key = key
    x.attempt = attempt
    x.depth = depth
    x.children = 0
    x.puts = 0
    x.flow = NULL
    x.block = block
    x.block_size = block_size
    x.epoch = 0
    x.durable = 0
    x.touched = False
    x.stray = False
    x.set = True


cdef void context_begin(Context *saved, const uint8_t *task_id, const uint8_t *call_id, uint64_t key, uint32_t attempt, uint32_t depth,
                        const char *block, uint32_t block_size) noexcept nogil:
    """This thread starts to execute a call."""
    memcpy(saved, &thread_context, sizeof(Context))
    context_fill(&thread_context, task_id, call_id, key, attempt, depth, block, block_size)


cdef bint context_end(Context *saved) noexcept nogil:
    """The call is over. Has it called exactly-once actors, which have all answered?"""
    cdef bint touched = flow_end(&thread_context)
    memcpy(&thread_context, saved, sizeof(Context))
    return touched


cdef void context_durable(Context *x, uint32_t epoch) noexcept nogil:
    """The call is a mutating method of an exactly-once actor: what it calls names that in its chain, and in place
    of an attempt 0, or `epoch` when it runs again after the death of an incarnation that had begun it."""
    x.durable = FLOW_LIVE
    x.epoch = epoch


cdef void context_root(uint64_t root, uint32_t job) noexcept nogil:
    """What runs in this process outside of any call: its main thread, and its other ones, whose children and puts are
    numbered apart."""
    own_context(&root_context, root, job)
    own_context(&stray_context, root, job)
    stray_context.children = STRAY_CHILDREN
    stray_context.puts = STRAY_PUTS


cdef void own_context(Context *x, uint64_t root, uint32_t job) noexcept nogil:
    cdef uint64_t more = mix64(root + 0x9e3779b97f4a7c15ull)
    flow_end(x)
    memset(x, 0, sizeof(Context))
    x.unique = root
    memcpy(x.task_id, &root, 8)
    memset(x.task_id + 8, 0xff, 12)
    memcpy(x.task_id + 20, &job, 4)
    memcpy(x.call_id, &root, 8)
    memcpy(x.call_id + 8, &more, 8)
    x.stray = True


cdef void context_main(const uint8_t *root_call, uint64_t run_ns) noexcept nogil:
    """The main thread is the flow that all CallIDs of a driver's work come from. `run_ns`: when this run of a driver began
    that may be run again, else 0. It stands before the attempts of all that is called, as seconds and nanoseconds."""
    cdef CallHead *h = <CallHead *>run_head
    cdef uint32_t *run = <uint32_t *>(run_head + sizeof(CallHead))
    memcpy(root_context.call_id, root_call, 16)
    root_context.stray = False
    if run_ns == 0:
        return
    memset(run_head, 0, sizeof(CallHead))
    h.root_kind = ROOT_JOB
    h.nattempts = RUN_NUMBERS
    memcpy(h.root, root_call, 16)
    run[0] = <uint32_t>(run_ns // 1000000000)
    run[1] = <uint32_t>(run_ns % 1000000000)
    root_context.block = run_head
    root_context.block_size = sizeof(CallHead) + 4 * RUN_NUMBERS
    root_context.depth = RUN_NUMBERS


cdef uint32_t context_root_depth() noexcept nogil:
    """How many numbers stand before the attempt of a task that the driver itself submits."""
    return root_context.depth


cdef void child_task_id(Context *x, uint32_t job, uint8_t *actor_tail, uint8_t *out) noexcept nogil:
    """The id of the next task that this context submits; `actor_tail`: the actor's 16 bytes for an actor call."""
    cdef uint64_t unique
    x.children += 1
    unique = mix64(x.unique ^ mix64((<uint64_t>x.attempt << 40) + x.children))
    memcpy(out, &unique, 8)
    if actor_tail != NULL:
        memcpy(out + 8, actor_tail, 16)
    else:
        memset(out + 8, 0xff, 12)
        memcpy(out + 20, &job, 4)


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
