"""The executing side's queue (worker.pyx runs what is in it).

Calls stand in the order of arrival. One that has not begun can be taken back by its owner, is given back when this
process has to wait inside a call (so that nothing waits behind a waiting call), and is dropped when its caller died.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.deque cimport deque

from ftray._core.cancels cimport cancel_children, cancel_kill
from ftray._core.channel cimport (F_ACK, F_ASSIGN, F_CANCEL, F_FN_DEF, F_REPLY, F_TAKE_BACK, F_TASK, FRAME_HEADER, FrameHeader, chan_begin,
                                  chan_commit)
from ftray._core.events cimport event_begin
from ftray._core.flows cimport flow_running, frame_comes_back
from ftray._core.holds cimport hold_began, hold_next
from ftray._core.nodelink cimport N_ACTOR_START, N_ACTOR_TERMINATE, N_CALLERS_DONE, N_EXIT, N_EXIT_DECLINED, NodeHeader, node_put
from ftray._core.productions cimport production_begin
from ftray._core.rules cimport REPLY_CANCELLED, REPLY_ERROR, REPLY_GIVEN_BACK
from ftray._core.types cimport (CH_OPEN, OBJ_OWNED, TASK_STREAM, Blob, CancelAsk, Channel, Core, ExecTask, blob_copy, blob_drop, call_key,
                                store32, store64)
from ftray._core.wire cimport (CANCEL_FORCE, CANCEL_RECURSIVE, ERR_CALL_CYCLE, KIND_TASK, SYSTEM_ERROR, VALUE_INLINE, ReplyHead, RetHead,
                               TaskHead)

cdef enum:
    EXIT_IF_IDLE = 1

cdef extern from *:
    """
    #include <pthread.h>
    #include <csignal>
    #include <unistd.h>
    static void kick_loop(int fd) { uint64_t one = 1; ssize_t r = write(fd, &one, 8); (void)r; }
    static void interrupt_thread(unsigned long t) { pthread_kill((pthread_t)t, SIGINT); }
    """
    void interrupt_thread(unsigned long) nogil
    void kick "kick_loop"(int) nogil


cdef void exec_reply_status(Core *c, Channel *ch, uint64_t seq, uint8_t status, uint16_t aux) noexcept nogil:
    """A reply without values: cancelled, or given back."""
    cdef ReplyHead *r
    if ch.state != CH_OPEN:
        return
    r = <ReplyHead *>chan_begin(c, ch, FRAME_HEADER + sizeof(ReplyHead), F_REPLY, 0, aux, seq)
    memset(r, 0, sizeof(ReplyHead))
    r.status = status
    chan_commit(c, ch, FRAME_HEADER + sizeof(ReplyHead))


cdef void push(Core *c, Channel *ch, uint64_t seq, Blob *frame) noexcept nogil:
    cdef ExecTask t
    t.ch = ch
    t.seq = seq
    t.frame = frame
    t.order = c.exec_order
    c.exec_order += 1
    if ch != NULL:
        ch.exec_pending += 1
    c.exec_queue.push_back(t)
    c.changed = True
    if c.loop_armed:                # an event loop sleeps
        c.loop_armed = False
        kick(c.loop_fd)


cdef void exec_post(Core *c) noexcept nogil:
    """The main thread has something to do that is no call."""
    push_first(c, EXEC_ACTION, NULL)
    kick(c.event_fd)


cdef void push_first(Core *c, uint64_t what, Blob *frame) noexcept nogil:
    """Something that is no call and goes before all calls."""
    cdef ExecTask t
    t.ch = NULL
    t.seq = what
    t.frame = frame
    t.order = 0
    c.exec_queue.push_front(t)
    c.changed = True


cdef void drop(ExecTask *t) noexcept nogil:
    blob_drop(t.frame)
    if t.ch != NULL:
        t.ch.exec_pending -= 1


cdef void refuse_cycle(Core *c, Channel *ch, uint64_t seq, uint16_t nret) noexcept nogil:
    """Answer a call that could never run with an error for each of its returns."""
    cdef uint64_t size = FRAME_HEADER + sizeof(ReplyHead) + nret * (sizeof(RetHead) + 2)
    cdef char *p
    cdef uint16_t i
    if ch.state != CH_OPEN:
        return
    p = chan_begin(c, ch, size, F_REPLY, 0, 0, seq)
    memset(p, 0, size - FRAME_HEADER)
    (<ReplyHead *>p).status = REPLY_ERROR
    (<ReplyHead *>p).nret = nret
    p += sizeof(ReplyHead)
    for i in range(nret):
        (<RetHead *>p).kind = VALUE_INLINE
        (<RetHead *>p).is_error = 1
        (<RetHead *>p).size = 2
        p += sizeof(RetHead)
        p[0] = <char>SYSTEM_ERROR
        p[1] = <char>ERR_CALL_CYCLE
        p += 2
    chan_commit(c, ch, size)


cdef void on_call(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil:
    cdef TaskHead *t = <TaskHead *>body
    if n < sizeof(TaskHead) or t.args_size > n - sizeof(TaskHead):
        return
    if (c.blocked_depth > 0 or c.spent) and t.kind == KIND_TASK:
        exec_reply_status(c, ch, h.seq, REPLY_GIVEN_BACK, 1)
        return
    if c.guards and frame_comes_back(c, body, n):
        refuse_cycle(c, ch, h.seq, t.nret)      # here: the main thread may be in that very method, and wait for it
        return
    push(c, ch, h.seq, blob_copy(body, n))


cdef void on_function(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil:
    if h.seq > 10000000:
        return
    if ch.fns.size() <= h.seq:
        ch.fns.resize(h.seq + 1)
    if ch.fns[h.seq].defn == NULL:
        ch.fns[h.seq].defn = blob_copy(body, n)


cdef void give_back(Core *c, Channel *ch, uint64_t wanted) noexcept nogil:
    """From the end of the queue: up to `wanted` calls of this caller that have not begun."""
    cdef int64_t i = <int64_t>c.exec_queue.size() - 1
    while i >= 0 and wanted:
        if c.exec_queue[i].ch == ch:
            exec_reply_status(c, ch, c.exec_queue[i].seq, REPLY_GIVEN_BACK, 0)
            drop(&c.exec_queue[i])
            c.exec_queue.erase(c.exec_queue.begin() + i)
            wanted -= 1
        i -= 1
    exec_reply_status(c, ch, 0, REPLY_GIVEN_BACK, 0)        # that was all


cdef void exec_give_back_all(Core *c) noexcept nogil:
    """This process has to wait inside a plain task, or begins no further one: nothing may wait here."""
    cdef ExecTask t
    cdef deque[ExecTask] keep
    while not c.exec_queue.empty():
        t = c.exec_queue.front()
        c.exec_queue.pop_front()
        if t.ch == NULL:
            keep.push_back(t)
            continue
        exec_reply_status(c, t.ch, t.seq, REPLY_GIVEN_BACK, 1)
        drop(&t)
    c.exec_queue.swap(keep)


cdef uint64_t exec_begin(Core *c, ExecTask *out) noexcept nogil:
    """Take the first call off the queue and mark it as begun; returns its key."""
    cdef TaskHead *h
    out[0] = c.exec_queue.front()
    c.exec_queue.pop_front()
    if c.hold != NULL:
        hold_began(c, out)
    if out.ch == NULL:
        if out.seq == EXEC_ACTOR_START:
            memcpy(&c.job, out.frame.data + 12, 4)      # what the constructor submits belongs to the job of the actor's id
        return 0
    h = <TaskHead *>out.frame.data
    out.started = event_begin(c, h.id, h.attempt, not c.beside)
    memcpy(&c.job, out.frame.data + 20, 4)      # what this call submits belongs to its job
    if h.flags & TASK_STREAM:
        production_begin(c, out)
    if out.ch.map != NULL:
        store64(&out.ch.out.h.started, out.seq)
    if not c.beside:
        store32(&c.me.busy, 1)
        c.running_ch = out.ch
        c.running_key = call_key(out.ch, out.seq)
        memcpy(&c.running_unique, out.frame.data, 8)
        flow_running(out.frame.data)
    return call_key(out.ch, out.seq)


cdef void on_cancel(Core *c, Channel *ch, uint64_t seq, uint8_t flags) noexcept nogil:
    cdef CancelAsk ask
    cdef size_t i
    for i in range(c.exec_queue.size()):
        if c.exec_queue[i].ch == ch and c.exec_queue[i].seq == seq:
            exec_reply_status(c, ch, seq, REPLY_CANCELLED, 0)
            drop(&c.exec_queue[i])
            c.exec_queue.erase(c.exec_queue.begin() + i)
            return
    if c.running_key == call_key(ch, seq):
        on_cancel_running(c, flags)
    elif c.beside:
        ask.key = call_key(ch, seq)
        ask.recursive = flags & CANCEL_RECURSIVE
        c.cancels.push_back(ask)
        c.changed = True
        if c.loop_fd >= 0:
            kick(c.loop_fd)


cdef void on_cancel_running(Core *c, uint8_t flags) noexcept nogil:
    """The call that the main thread is in: a task is interrupted (its process ended, with force), a method can ask."""
    cdef bint force = flags & CANCEL_FORCE and not c.is_actor
    if flags & CANCEL_RECURSIVE:
        cancel_children(c, c.running_unique, force)
    c.cancel_key = c.running_key
    if force:
        cancel_kill(c, &c.worker_id)
    elif not c.is_actor:
        interrupt_thread(c.main_thread)


cdef bint exec_frame(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil:
    """Handle a frame of this module; False when it is none."""
    if h.kind == F_TASK:
        on_call(c, ch, h, body, n)
    elif h.kind == F_FN_DEF:
        on_function(c, ch, h, body, n)
    elif h.kind == F_TAKE_BACK:
        give_back(c, ch, h.seq)
    elif h.kind == F_CANCEL:
        on_cancel(c, ch, h.seq, h.flags)
    elif h.kind == F_ASSIGN:
        push(c, NULL, EXEC_ASSIGN, blob_copy(body, n))
    elif h.kind == F_ACK:
        push_first(c, EXEC_ACK, blob_copy(body, n))
        if c.loop_fd >= 0:
            kick(c.loop_fd)
    else:
        return False
    return True


cdef void push_start(Core *c, Blob *frame) noexcept nogil:
    """The actor is made before anything else: calls of fast callers may be here already."""
    push_first(c, EXEC_ACTOR_START, frame)
    c.is_actor = True


cdef bint owns_something(Core *c) noexcept nogil:
    """Does this process own objects that others may still want?"""
    for item in c.objects:
        if item.second.flags & OBJ_OWNED:
            return True
    return c.n_tasks > 0


cdef bint exec_runnable(Core *c) noexcept nogil:
    """Is there something to run now? Methods wait until ftrayd has said which actor this is."""
    cdef ExecTask *t
    if c.exec_queue.empty() or (c.hold != NULL and not hold_next(c)):
        return False
    t = &c.exec_queue.front()
    return t.ch == NULL or c.is_actor or (<TaskHead *>t.frame.data).kind == KIND_TASK


cdef bint exec_node_frame(Core *c, NodeHeader *h, char *body) noexcept nogil:
    if h.kind == N_ACTOR_START:
        push_start(c, blob_copy(body, h.size))
    elif h.kind == N_CALLERS_DONE:
        push_first(c, EXEC_CALLERS_DONE, blob_copy(body, h.size))
        if c.loop_fd >= 0:
            kick(c.loop_fd)
    elif h.kind == N_ACTOR_TERMINATE:
        push(c, NULL, EXEC_TERMINATE, NULL)
    elif h.kind == N_EXIT:
        if h.flags & EXIT_IF_IDLE and (owns_something(c) or c.is_actor or not c.exec_queue.empty() or c.running_ch != NULL):
            node_put(c, N_EXIT_DECLINED, 0, NULL, 0)
        else:
            c.exit_requested = True
            c.changed = True
            if c.loop_fd >= 0:
                kick(c.loop_fd)
    else:
        return False
    return True


cdef void exec_channel_died(Core *c, Channel *ch) noexcept nogil:
    """The caller is gone: what it asked for and has not begun is not wanted any more."""
    cdef int64_t i = <int64_t>c.exec_queue.size() - 1
    while i >= 0:
        if c.exec_queue[i].ch == ch:
            drop(&c.exec_queue[i])
            c.exec_queue.erase(c.exec_queue.begin() + i)
        i -= 1
