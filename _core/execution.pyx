"""One call at the executing side: run it on this thread, encode its outcome, send the answer.

Owns: what a call's outcome is (value, error, cancelled, to be retried), and what this process is for its calls: the
functions and the instance, hooks around calls, whether it is about to leave on purpose.
Invariants: a call that was taken is answered once, or this process ends.

Leaves to others: which call is next and where it runs (worker.pyx, pools.pyx, asynccalls.pyx), what a call's frame says
(invocation.pyx), the bytes of answers (answers.pyx).
"""

import collections

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.vector cimport vector

from ftray._core.answers cimport Yielded, count_results, encode_failure, encode_results, end_if_forked, no_refs, send_reply
from ftray._core.awaits cimport loops_take_back_cpus
from ftray._core.buf cimport Buf, buf_extend, buf_free, buf_init, buf_put
from ftray._core.cancels cimport cancel_children
from ftray._core.context cimport Context, context_begin, context_durable, context_end, thread_call
from ftray._core.durable cimport ENTER_ERROR, ENTER_REPLY, ENTER_RUN, ENTER_WAIT, DurableCalls, Entrance
from ftray._core.events cimport event_end, event_text
from ftray._core.execqueue cimport exec_give_back_all, exec_post
from ftray._core.flows cimport flow_nested
from ftray._core.held cimport held_caller, held_release
from ftray._core.invocation cimport Call, Callables, call_head
from ftray._core.objects cimport ObjectRef, usable
from ftray._core.productions cimport production_end
from ftray._core.serial cimport INLINE_LIMIT
from ftray._core.rules cimport REPLY_CANCELLED, REPLY_ERROR, REPLY_OK, REPLY_RETRY
from ftray._core.runtime cimport core, core_enter, core_leave, core_poll, core_try
from ftray._core.types cimport TASK_QUIET, TASK_STREAM, Channel, Core, ObjEntry, lock_drop, store32
from ftray._core.wire cimport GROUP_SIZE, HEAD_IN_GROUP, REPLY_RECORDED, REPLY_TOUCHED, ReplyHead, TaskHead
from ftray._core.yields cimport is_generator, run_generator


cdef enum:
    RECORDED_LIMIT = 1 << 31    # replies that are recorded stay inline, whatever their size


cdef class Execution:
    """Runs single calls; base of the worker's Executor.

    Attributes
    ----------
    current : str
        Name of what runs on the main thread (for the log's prefix), "" when idle.
    """

    def __cinit__(self):
        self.callables = Callables()
        self.durable = None
        self.actions = collections.deque()
        self.current = ""

    # --- answers

    cdef int answer(self, Call call, object result, object error) except -1:
        """Encode the outcome and send it. Never raises for what the user's values are."""
        cdef Buf b
        cdef list refs = []
        cdef uint8_t status = REPLY_OK
        buf_init(&b)
        try:
            if buf_extend(&b, sizeof(ReplyHead)) == NULL:
                raise MemoryError()
            if error is None:
                try:
                    encode_results(&b, call.name, call.nret, result, refs, RECORDED_LIMIT if call.entered else INLINE_LIMIT)
                    if refs and call.entered:
                        raise TypeError(no_refs(call.name))
                    if type(result) is Yielded and (<Yielded>result).error is not None:
                        status = self.error_status(call, (<Yielded>result).error)
                except Exception as e:
                    error = e
                    refs = []
                    b.len = sizeof(ReplyHead)
            result = None
            if error is not None:
                status = self.error_status(call, error)
                from ftray._task_errors import make_task_error
                import os
                self.tell_error(call, error)
                encode_failure(&b, make_task_error(error, call.name, os.getpid(), actor_repr=self.callables.describe()), call.nret)
                error = None
            call.release()
            if self.durable is not None:
                self.record(call, status, &b)
            self.send(call, status, &b, refs)
            if self.durable is not None:
                self.after_record(call, status, &b)
        finally:
            buf_free(&b)
        return 0

    cdef int answer_cancelled(self, Call call) except -1:
        """Whatever it was or returned: it was cancelled."""
        cdef Buf b
        buf_init(&b)
        try:
            if buf_extend(&b, sizeof(ReplyHead)) == NULL:
                raise MemoryError()
            call.release()
            if self.durable is not None:
                self.record(call, REPLY_CANCELLED, &b)
            self.send(call, REPLY_CANCELLED, &b, [])
            if self.durable is not None:
                self.after_record(call, REPLY_CANCELLED, &b)
        finally:
            buf_free(&b)
        return 0

    # --- exactly-once actors

    cdef int record(self, Call call, uint8_t status, Buf *b) except -1:
        """Before a call of an exactly-once actor is answered."""
        if call.before is not None:
            self.verified(call, status, b)
        if call.entered:
            try:
                self.durable.finish(call, status, b)
            except BaseException as e:
                self.durable.crash(e)       # what it did is in the state and in no record: nobody may see it
                raise
        elif call.reads:
            self.durable.look(call)
        return 0

    cdef int verified(self, Call call, uint8_t status, Buf *b) except -1:
        """In verify mode: what does not do the same twice is told to its caller, and this process ends."""
        error = self.durable.verify(call, status, b)
        return 0 if error is None else self.tell_difference(call, error, b)

    cdef int unverified(self, Call call, object error) except -1:
        """`verified` has found something, in an async actor."""
        cdef Buf b
        buf_init(&b)
        try:
            if buf_extend(&b, sizeof(ReplyHead)) == NULL:
                raise MemoryError()
            self.tell_difference(call, error, &b)
        finally:
            buf_free(&b)
        return 0

    cdef int tell_difference(self, Call call, object error, Buf *b) except -1:
        from ftray._task_errors import make_task_error
        b.len = sizeof(ReplyHead)
        encode_failure(b, make_task_error(error, call.name, 0), call.nret)
        self.send(call, REPLY_ERROR, b, [])
        flush_all()
        self.durable.crash(error)
        return 0

    cdef int after_record(self, Call call, uint8_t status, Buf *b) except -1:
        """The call was answered: so are its repetitions, and the next that wait for room may come."""
        cdef Call other
        if call.recorded:
            self.durable.settle(call, status)
            if self.after_call is not None:
                self.tell_after(call.method)    # it counts now that it is recorded: a snapshot has both or neither
        for other in self.durable.repetitions(call):
            other.position = max(other.position, call.position)
            self.repeat(other, status, (b.data + sizeof(ReplyHead))[:b.len - sizeof(ReplyHead)], call.recorded)
        if self.durable.parked:
            self.post(self.enter_parked)
        return 0

    cdef int repeat(self, Call call, uint8_t status, bytes reply, bint recorded) except -1:
        """The call has run, perhaps for somebody else: this was its reply."""
        cdef Buf b
        buf_init(&b)
        try:
            if status == REPLY_ERROR or status == REPLY_RETRY:
                status = self.retried(call, reply)
            if status != REPLY_CANCELLED:
                status, reply = self.spread(call, status, reply)
            if buf_extend(&b, sizeof(ReplyHead)) == NULL or buf_put(&b, <const char *>reply, len(reply)) < 0:
                raise MemoryError()
            call.recorded = recorded
            self.send(call, status, &b, [])
        finally:
            buf_free(&b)
        return 0

    cdef uint8_t retried(self, Call call, bytes reply) except *:
        """The status of an error: its call may have run when nobody, or somebody else, said which errors are to be retried."""
        from ftray.checkpoint.errors import PoisonCallError
        call.retry = self.callables.lookup(call.t.ch, (<TaskHead *>call.t.frame.data).fn)[2]
        if not call.retry:
            return REPLY_ERROR
        error = self.durable.once.codec.decode_reply(REPLY_ERROR, reply)
        return REPLY_ERROR if isinstance(error, PoisonCallError) else self.error_status(call, error)

    cdef tuple spread(self, Call call, uint8_t status, bytes reply):
        """Status and reply as of as many values as the caller wants: the call may have run when nobody, or somebody else, said that."""
        cdef int n = count_results(reply, len(reply))
        if n < 0:
            raise RuntimeError(f"the recorded reply of {call.name} cannot be read")
        if n == call.nret:
            return status, reply
        if n and status != REPLY_OK:
            return status, reply[:len(reply) // n] * call.nret
        codec = self.durable.once.codec
        found = codec.decode_reply(status, reply)
        if n and status == REPLY_OK:
            return codec.encode_outcome(call.method, tuple(found) if n > 1 else found, None, call.nret)
        if status == REPLY_OK:
            from ftray.checkpoint.errors import ReplyExpiredError
            found = ReplyExpiredError(f"{call.name} has run, and is not run again: it was called with num_returns=0, so that "
                                      "nothing was kept of what it has returned")
            status = REPLY_ERROR
        return status, codec.encode_outcome(call.method, None, found, call.nret)[1]

    cdef bint enter(self, Call call) except -1:
        """Shall this call of an exactly-once actor run? If not it is answered, now or later."""
        cdef Entrance entrance
        try:
            entrance = self.durable.enter(self.callables, call)
        except Exception as e:
            call.name = call.name or "?"
            self.answer(call, None, e)
            return False
        return entrance == ENTER_RUN or self.entered(call, entrance)

    cdef bint entered(self, Call call, int entrance) except -1:
        if entrance == ENTER_REPLY:
            self.repeat(call, self.durable.status, self.durable.reply, True)
        elif entrance == ENTER_ERROR:
            self.answer(call, None, self.durable.error)
        return False

    def enter_parked(self):
        """Calls that wait for room: begin those that have it, in order."""
        cdef Call call
        cdef Entrance entrance
        while self.durable.parked and not self.exiting:
            call = self.durable.parked[0]
            entrance = self.durable.enter(self.callables, call)
            if entrance == ENTER_WAIT:
                return
            self.durable.unpark()
            if entrance == ENTER_RUN:
                self.run_parked(call)
            else:
                self.entered(call, entrance)

    cdef int run_parked(self, Call call) except -1:
        if self.run_call(call):
            self.on_exit()
        return 0

    cdef int cancel_submitted(self, Call call) except -1:
        """Cancel the tasks and actor calls that a call of this process has submitted."""
        cdef Core *c = core()
        cdef uint64_t unique
        memcpy(&unique, call.t.frame.data, 8)
        with nogil:
            core_enter(c)
            cancel_children(c, unique, False)
            core_leave(c)
        return 0

    cdef int tell_error(self, Call call, object error) except -1:
        """What people see of a failure beside its type."""
        cdef Core *c = core()
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        cdef bytes raw
        cdef const char *text
        cdef uint64_t n
        if c.events == NULL or h.flags & TASK_QUIET:
            return 0
        try:
            raw = f"{type(error).__name__}: {error}".encode("utf-8", "replace")
        except Exception:
            raw = f"{type(error).__name__} whose str() failed".encode()
        text = raw
        n = len(raw)
        with nogil:
            core_enter(c)
            event_text(c, h.id, h.attempt, text, n)
            core_leave(c)
        return 0

    cdef uint8_t error_status(self, Call call, object error):
        if isinstance(error, KeyboardInterrupt) or (self.loop is not None and is_cancellation(error)):
            return REPLY_CANCELLED
        if call.retry is True or (call.retry and isinstance(error, call.retry)):
            return REPLY_RETRY
        return REPLY_ERROR

    cdef int send(self, Call call, uint8_t status, Buf *b, list refs) except -1:
        cdef Core *c = core()
        cdef Channel *ch = call.t.ch
        cdef ReplyHead *r = <ReplyHead *>b.data
        cdef vector[ObjEntry *] inner
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        cdef bint brought = h.ndeps + h.nested > 0
        cdef uint64_t ended
        cdef bint beside = self.beside
        cdef bint streams = h.flags & TASK_STREAM
        cdef uint64_t may_leave = 0
        cdef bint recorded = self.durable is not None and call.position != 0 and not call.reads
        memset(r, 0, sizeof(ReplyHead))
        r.status = status
        if self.durable is not None:
            r.epoch = self.durable.epoch
            if call.recorded:
                r.held |= REPLY_RECORDED
            may_leave = self.durable.may_leave() if call.position else 0
        if call.touched and not recorded:
            r.held |= REPLY_TOUCHED
        r.nret = call.nret if status != REPLY_CANCELLED else 0
        for ref in refs:
            inner.push_back(usable(<ObjectRef>ref))
        if core_try(c):
            if streams:
                production_end(c, ch, call.t.seq)
            ended = event_end(c, h.id, not beside, ch)
            if may_leave:
                held_release(c, may_leave)
            send_reply(c, ch, call.t.seq, brought, b, &inner, call.t.started, ended, call.position)
            if recorded and call.touched:
                held_caller(c, call.position, h.call_id)
            if self.loop is not None:
                lock_drop(&c.lock)
                self.flush_soon()
            else:
                core_leave(c)
        else:
            with nogil:
                core_enter(c)
                if streams:
                    production_end(c, ch, call.t.seq)
                ended = event_end(c, h.id, not beside, ch)
                if may_leave:
                    held_release(c, may_leave)
                send_reply(c, ch, call.t.seq, brought, b, &inner, call.t.started, ended, call.position)
                if recorded and call.touched:
                    held_caller(c, call.position, h.call_id)
                core_leave(c)
        self.finished += 1
        return 0

    # --- running

    cdef int execute(self, Call call) except -1:
        """Run one call on this thread. 1: it has called exit_actor(), so that it is not answered."""
        if self.durable is not None and not self.enter(call):
            self.idle()
            return 0
        return self.run_call(call)

    cdef int idle(self) except -1:
        """Nothing runs on the main thread."""
        cdef Core *c = core()
        c.running_key = 0
        c.running_ch = NULL
        if not self.beside:
            store32(&c.me.busy, 0)
        return 0

    cdef int run_call(self, Call call) except -1:
        cdef Core *c = core()
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        cdef Context saved
        cdef object result = None, error = None
        cdef bint begun = False
        context_begin(&saved, h.id, h.call_id, call.key, h.attempt, h.depth, call_head(&call.t), h.head_size)
        if call.entered:
            self.running = call
            context_durable(thread_call(), 0)
            self.durable.begin(call)
        elif call.reads:
            self.running = call
        if self.running is not None and self.durable.verifier is not None:
            self.durable.set_aside(call)
        try:
            if h.flags & HEAD_IN_GROUP or self.in_group:
                self.enter_group(call)
            self.callables.decode(call)
            if self.instance is None:
                self.current = call.name
            elif not self.beside:
                self.method = call.method
                self.label = call.name
            if self.before_call is not None:
                self.before_call(call.method)
            begun = True
            try:
                if call.kwargs is None:
                    result = call.function(*call.args)
                else:
                    result = call.function(*call.args, **call.kwargs)
                if call.entered:
                    refuse_generator(result)
                elif h.flags & TASK_STREAM or is_generator(result):
                    result = run_generator(call, result, self.callables)
            finally:
                end_if_forked()
        except SystemExit as e:
            if not (self.left or call.exits):
                self.leave(e)
        except BaseException as e:
            error = e
            if call.entered and self.durable.is_crash(e):
                self.durable.crash(e)
        if self.left or call.exits:
            context_end(&saved)
            if call.entered:
                self.record_last(call)
            if begun:
                self.after(call, None)
            return 1
        if c.cancel_key == call.key:
            if self.instance is not None:
                call.cancelled = True           # a method is only told
            elif error is not None:
                error = KeyboardInterrupt()     # whatever the interruption looked like from inside
        if c.boxes.empty():
            c.running_key = 0
        else:
            with nogil:                         # in one step: what it lends from here on, nobody would take back
                core_enter(c)
                c.running_key = 0
                loops_take_back_cpus(c)
                core_leave(c)
        self.method = None
        self.running = None
        if flow_nested(c):
            thread_call().touched = True
        call.touched = context_end(&saved)
        if call.name is None:
            call.name = "?"
            call.nret = h.nret
        if begun and self.after_call is not None and not call.entered and not self.counted(call):
            error = self.after(call, error)
        if call.left is not None:
            self.count(call.left)
        call.refused = not begun
        if error is None and call.cancelled:
            self.answer_cancelled(call)
        else:
            self.answer(call, result, error)
        c.running_ch = NULL
        if not self.beside:
            store32(&c.me.busy, 0)
        if c.spent:
            with nogil:
                core_enter(c)
                exec_give_back_all(c)
                core_leave(c)
        return 0

    cdef int record_last(self, Call call) except -1:
        """The method has called exit_actor(): it has run, though nobody gets its reply."""
        cdef Buf b
        buf_init(&b)
        try:
            if buf_extend(&b, sizeof(ReplyHead)) == NULL:
                raise MemoryError()
            encode_results(&b, call.name, 1, None, [], RECORDED_LIMIT)
            self.durable.finish(call, REPLY_OK, &b)
            self.durable.settle(call, REPLY_OK)
        finally:
            buf_free(&b)
        return 0

    cdef int count(self, list left) except -1:
        """One run of a function with `max_calls` is over; after the last one this process begins no further call."""
        left[0] -= 1
        if left[0] == 0:
            core().spent = True
        return 0

    cdef int enter_group(self, Call call) except -1:
        """What the call submits knows the placement group that the call is in."""
        from ftray._core.calls import enter_group
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        cdef uint64_t at
        self.in_group = h.flags & HEAD_IN_GROUP != 0
        if not self.in_group:
            enter_group(None)
        elif call.t.frame.size >= sizeof(TaskHead) + GROUP_SIZE:
            at = call.t.frame.size - GROUP_SIZE
            enter_group(call.t.frame.data[at:at + GROUP_SIZE])
        else:
            raise RuntimeError("the frame of a call is cut short")
        return 0

    cdef inline bint counted(self, Call call) noexcept:
        """Whether all that was to be done after the call was to count it, which is done."""
        return self.counter is not None and self.counter.counted(call.method)

    cdef object after(self, Call call, object error):
        """The checkpoint session's hook; returns the error that the call ends with."""
        if self.after_call is None or self.left:
            return error                        # the end of the session counts the call that ends the actor
        try:
            self.tell_after(call.method or "?")
        except Exception as e:
            return e
        return error

    cdef int tell_after(self, str method) except -1:
        if self.counter is None:
            self.after_call(method)
            return 0
        return self.counter.count(method)

    def leave(self, error):
        """The user's code ends the process (sys.exit): as if it had died, but with its own code."""
        import os
        import sys
        code = error.code
        if not isinstance(code, int):
            if code is not None:
                print(code, file=sys.stderr)
            code = 0 if code is None else 1
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        flush_all()
        os._exit(code & 0xFF)

    # --- between calls

    def post(self, action):
        """Have `action` run soon on the main thread (the event loop of an async actor), between two calls. Any thread."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(action)
            return
        self.actions.append(action)
        with nogil:
            core_enter(core())
            exec_post(core())
            core_leave(core())

    def run_actions(self):
        while self.actions:
            self.actions.popleft()()

    cdef int flush_soon(self) except -1:
        """Answers of one turn of the event loop leave together."""
        if not self.flush_due:
            self.flush_due = True
            self.loop.call_soon(self.flush_async)
        return 0

    def flush_async(self):
        self.flush_due = False
        flush_all()


cdef int refuse_generator(object result) except -1:
    """What a method of an exactly-once actor has returned is not for its caller to run."""
    if is_generator(result):
        from ftray.checkpoint.running import check_result
        check_result(result)
    return 0


cdef bint is_cancellation(object error):
    import asyncio
    return isinstance(error, asyncio.CancelledError)


cdef void flush_all() noexcept:
    """Everything written so far leaves this process."""
    cdef Core *c = core()
    with nogil:
        core_enter(c)
        core_poll(c)
        core_leave(c)


def flush():
    """Send everything that this process has written so far."""
    flush_all()
