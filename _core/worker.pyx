"""The executing side: take a call from the queue, run it, have it answered.

The main thread leads the I/O while it has nothing to run. A plain worker and a plain actor run calls on it one at a
time. With `max_concurrency` > 1 the main thread hands calls to a pool of threads; an async actor's event loop runs on
the main thread and watches our epoll descriptor itself.

Owns: what this process is (a plain worker, or one actor in one of three modes) and the call that the main thread is in.
Invariants: before a call begins, its number is written to the `started` word of the channel's ring, where the caller
can read it after our death (what had not begun then has had no effect); each call that was taken is answered once, or
this process ends.

Leaves to others: the queue (execqueue.pyx), what a call's frame says (invocation.pyx), encoding and sending answers
(answers.pyx).
"""

import collections
from _thread import get_ident

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.vector cimport vector

from ftray._core.answers cimport Yielded, encode_failure, encode_results, send_reply
from ftray._core.awaits cimport LoopWatch, loops_take_back_cpus, watch_actor_loop
from ftray._core.buf cimport Buf, buf_extend, buf_free, buf_init
from ftray._core.context cimport Context, context, context_begin, context_end
from ftray._core.events cimport event_begin, event_end, event_text
from ftray._core.execqueue cimport EXEC_ACTION, EXEC_ACTOR_START, EXEC_TERMINATE, exec_post, exec_runnable
from ftray._core.invocation cimport Call, Callables
from ftray._core.objects cimport ObjectRef, usable
from ftray._core.productions cimport production_begin, production_end
from ftray._core.rules cimport REPLY_CANCELLED, REPLY_ERROR, REPLY_OK, REPLY_RETRY
from ftray._core.runtime cimport core, core_enter, core_leave, core_poll, core_try, poll_now, wait_python
from ftray._core.types cimport (TASK_QUIET, TASK_STREAM, Channel, Core, ExecTask, ObjEntry, full_fence, load64, lock_drop, store32, store64, swap32)
from ftray._core.wire cimport GROUP_SIZE, HEAD_IN_GROUP, ReplyHead, TaskHead
from ftray._core.yields cimport is_generator, resume_generators, run_generator, run_generator_async

cdef enum:
    MODE_SYNC = 0
    MODE_THREADS = 1
    MODE_ASYNC = 2


cdef bint work_here(Core *c, void *arg) noexcept nogil:
    return exec_runnable(c) or c.exit_requested


cdef class Executor:
    """Runs calls. One per worker process.

    Attributes
    ----------
    current : str
        Name of what runs on the main thread (for the log's prefix), "" when idle.
    """

    cdef Callables callables
    cdef readonly object instance
    cdef readonly str current
    cdef readonly str method    # of the actor, while it runs on the main thread
    cdef object after_call      # the checkpoint session's hook, or None
    cdef object pool            # SimpleQueue of the thread pool
    cdef dict thread_calls      # thread -> name of the call that it is in (the main thread's: `current`, `method`)
    cdef object loop
    cdef int mode
    cdef uint64_t finished
    cdef public object start_actor          # callback: (payload bytes) -> None
    cdef public object on_terminate         # callback: graceful end
    cdef LoopWatch watch        # of what the methods of an async actor await
    cdef dict running_async                 # seq -> task, for cancellation
    cdef object actions                     # what runs between two calls on the main thread
    cdef object before_call
    cdef bint flush_due
    cdef bint in_group          # the last call of this plain worker ran in a placement group
    cdef Py_ssize_t coroutines, max_coroutines  # of an async actor
    cdef bint stalled           # calls wait for a coroutine to end
    cdef object stop

    def __init__(self):
        self.callables = Callables()
        self.actions = collections.deque()
        self.current = ""
        self.running_async = {}
        self.thread_calls = {}

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
                    encode_results(&b, call.name, call.nret, result, refs)
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
            self.send(call, status, &b, refs)
        finally:
            buf_free(&b)
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
        cdef bint streams = h.flags & TASK_STREAM
        memset(r, 0, sizeof(ReplyHead))
        r.status = status
        r.nret = call.nret if status != REPLY_CANCELLED else 0
        for ref in refs:
            inner.push_back(usable(<ObjectRef>ref))
        if core_try(c):
            if streams:
                production_end(c, ch, call.t.seq)
            ended = event_end(c, h.id, self.mode == MODE_SYNC, ch)
            send_reply(c, ch, call.t.seq, brought, b, &inner, call.t.started, ended)
            if self.mode == MODE_ASYNC:
                lock_drop(&c.lock)
                self.flush_soon()
            else:
                core_leave(c)
        else:
            with nogil:
                core_enter(c)
                if streams:
                    production_end(c, ch, call.t.seq)
                ended = event_end(c, h.id, self.mode == MODE_SYNC, ch)
                send_reply(c, ch, call.t.seq, brought, b, &inner, call.t.started, ended)
                core_leave(c)
        self.finished += 1
        return 0

    # --- running

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

    cdef Call next_call(self):
        """The next thing to run, waiting for it; None when this process shall end."""
        cdef Core *c = core()
        cdef Call call = Call.__new__(Call)
        while True:
            if core_try(c):
                if exec_runnable(c):
                    begin(c, &call.t, self.mode)
                    core_leave(c)
                    return call
                core_leave(c)
            if c.exit_requested:
                return None
            c.exec_tick = 0
            wait_python(c, work_here, NULL, -1)

    def run(self):
        """Run calls until ftrayd says that it is enough (or is gone)."""
        cdef Call call
        cdef Core *c = core()
        while True:
            call = self.next_call()
            if call is None:
                return
            if self.actions:
                self.run_actions()
            if call.t.ch == NULL:
                if call.t.seq == EXEC_ACTION:
                    continue
                if call.t.seq == EXEC_TERMINATE:
                    self.on_terminate(1)
                    return
                start_in_loop = self.start_actor(call.t.frame.data[:call.t.frame.size])
                if start_in_loop is not None:
                    return self.run_async(start_in_loop)
            elif self.mode == MODE_THREADS:
                self.pool.put(call)
            else:
                self.execute(call)
            call = None

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

    cdef int execute(self, Call call) except -1:
        """Run one call on this thread."""
        cdef Core *c = core()
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        cdef Context saved
        cdef object result = None, error = None
        context_begin(&saved, h.id, h.call_id, h.attempt, h.depth)
        try:
            if h.flags & HEAD_IN_GROUP or self.in_group:
                self.enter_group(call)
            self.callables.decode(call)
            if self.instance is None:
                self.current = call.name
            else:
                self.method = bare(call.name)
                if self.pool is not None:
                    self.thread_calls[get_ident()] = call.name
            if self.before_call is not None:
                self.before_call(bare(call.name))
            if call.kwargs is None:
                result = call.function(*call.args)
            else:
                result = call.function(*call.args, **call.kwargs)
            if h.flags & TASK_STREAM or is_generator(result):
                result = run_generator(call, result, self.callables)
        except SystemExit as e:
            self.leave(e)
        except BaseException as e:
            error = e
        if error is not None and c.cancel_seq == call.t.seq and c.cancel_ch == call.t.ch:
            error = KeyboardInterrupt()     # whatever the interruption looked like from inside
        c.running_seq = 0
        if c.lent:
            with nogil:
                core_enter(c)
                loops_take_back_cpus(c)
                core_leave(c)
        self.method = None
        context_end(&saved)
        if call.name is None:
            call.name = "?"
            call.nret = h.nret
        if self.after_call is not None:
            try:
                self.after_call(bare(call.name))
            except Exception as e:
                error = e
        self.answer(call, result, error)
        c.running_ch = NULL
        return 0

    def leave(self, error):
        """The user's code ends the process (sys.exit, exit_actor): as if it had died, but with its own code."""
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

    def become_actor(self, instance, checkpoints, int max_concurrency, bint is_async):
        """From now on this process is an actor."""
        import threading
        import queue
        self.instance = self.callables.instance = instance
        if checkpoints is not None:
            self.after_call = checkpoints.after_call
            self.callables.entry_points = checkpoints.entry_points
            if max_concurrency > 1:
                self.before_call = checkpoints.before_call
        if is_async:
            self.mode = MODE_ASYNC
            self.max_coroutines = max_concurrency
        elif max_concurrency > 1:
            self.mode = MODE_THREADS
            self.pool = queue.SimpleQueue()
            for i in range(max_concurrency):
                threading.Thread(target=self.serve, name=f"ftray-call-{i}", daemon=True).start()

    def name(self, str class_name):
        """The actor's class, which is what its output is labelled with from now on."""
        self.callables.class_name = self.current = class_name

    def before_first_function(self, action):
        """Have `action` run before the first function is loaded; None: nothing any more."""
        self.callables.before_load = action

    def call_name(self):
        """The name of the call that this thread, or this task of the event loop, is in; None outside calls."""
        cdef Core *c = core()
        if self.loop is not None:
            import asyncio
            try:
                task = asyncio.current_task()
            except RuntimeError:
                return None
            return task.get_name() if task in self.running_async.values() else None
        if self.pool is not None:
            return self.thread_calls.get(get_ident())
        if not context().set:
            return None
        return self.current if self.instance is None else f"{self.callables.class_name}.{self.method}"

    def function_named(self, str name):
        """The function or method that calls of this name run, None when there is none."""
        for function, known, _retry in self.callables.loaded.values():
            if known == name:
                return function
        return None

    def refuse_calls(self):
        """There will be no instance: calls stay unbegun, and end with this process."""
        core().is_actor = False

    def serve(self):
        """One thread of a threaded actor."""
        cdef Call call
        while True:
            call = self.pool.get()
            self.execute(call)
            call = None

    def cancel_due(self):
        """Is a cancellation under way for exactly the call that the main thread is in?"""
        cdef Core *c = core()
        return c.running_seq != 0 and c.cancel_seq == c.running_seq and c.cancel_ch == c.running_ch

    # --- async actors

    def run_async(self, start):
        import asyncio
        asyncio.run(self.async_main(start))

    async def async_main(self, start):
        import asyncio
        import os
        cdef Core *c = core()
        self.loop = asyncio.get_running_loop()
        self.watch = watch_actor_loop(self.loop)
        start()                             # the constructor may use the running loop
        self.stop = stop = self.loop.create_future()
        c.loop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.loop.add_reader(c.epoll_fd, self.async_step, stop)
        self.loop.add_reader(c.loop_fd, self.async_woken, stop)
        self.loop.call_soon(self.async_step, stop)
        await stop
        self.loop.remove_reader(c.epoll_fd)

    def async_woken(self, stop):
        """The background thread took calls off a ring while the loop slept."""
        import os
        try:
            os.eventfd_read(core().loop_fd)
        except BlockingIOError:
            return
        self.async_step(stop)

    def async_step(self, stop):
        """Take what has come, start it, and let peers ring the bell while the loop is busy elsewhere."""
        cdef Core *c = core()
        cdef Call call
        cdef LoopWatch watch = self.watch
        cdef bint more = True
        while more:
            with nogil:
                core_enter(c)
                c.loop_armed = False
                watch.expect()
                poll_now(c)
                watch.collect(c)
                core_leave(c)
            if watch.came.size():
                watch.resolve()
            while True:
                call = Call.__new__(Call)
                with nogil:
                    core_enter(c)
                    more = exec_runnable(c) and (self.coroutines < self.max_coroutines or c.exec_queue.front().ch == NULL)
                    self.stalled = not more and exec_runnable(c)
                    if more:
                        begin(c, &call.t, MODE_ASYNC)
                    core_leave(c)
                if not more:
                    break
                if call.t.ch == NULL:
                    if call.t.seq == EXEC_ACTION:
                        continue
                    self.on_terminate(1)
                    stop.set_result(None)
                    return
                self.start_async(call)
            self.cancel_async()
            if c.production_news:
                resume_generators()
            if c.exit_requested:
                if not stop.done():
                    stop.set_result(None)
                return
            with nogil:
                core_enter(c)
                c.loop_armed = True
                swap32(&c.me.asleep, 1)
                full_fence()
                more = load64(&c.me.summary) != 0 or (exec_runnable(c) and not self.stalled)
                if more:
                    if not c.leading:           # else a thread may sleep, which needs its bell
                        store32(&c.me.asleep, 0)
                    c.loop_armed = False
                core_leave(c)

    cdef int cancel_async(self) except -1:
        """Cancel the coroutines whose callers ask for it."""
        cdef Core *c = core()
        cdef vector[uint64_t] wanted
        cdef size_t i
        if c.cancels.empty():
            return 0
        with nogil:
            core_enter(c)
            wanted.swap(c.cancels)
            core_leave(c)
        for i in range(wanted.size()):
            task = self.running_async.get(wanted[i])
            if task is not None:
                task.cancel()
        return 0

    cdef int start_async(self, Call call) except -1:
        cdef Context saved
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        try:
            self.callables.decode(call)
        except Exception as e:
            call.name = call.name or "?"
            call.nret = h.nret
            self.answer(call, None, e)
            return 0
        task = self.loop.create_task(self.run_coroutine(call), name=call.name)
        self.running_async[call.t.seq] = task
        self.coroutines += 1
        return 0

    cdef int flush_soon(self) except -1:
        """Answers of one turn of the event loop leave together."""
        if not self.flush_due:
            self.flush_due = True
            self.loop.call_soon(self.flush_async)
        return 0

    def flush_async(self):
        self.flush_due = False
        flush_all()

    async def run_coroutine(self, Call call):
        cdef Core *c = core()
        result = error = None
        try:
            result = call.function(*call.args, **(call.kwargs or {}))
            if type(result) is not ObjectRef and hasattr(result, "__await__"):      # a ref is a result like others
                result = await result
            if (<TaskHead *>call.t.frame.data).flags & TASK_STREAM or is_generator(result):
                result = await run_generator_async(call, result, self.callables)
        except SystemExit as e:
            self.leave(e)
        except BaseException as e:
            error = e
        if self.after_call is not None:
            try:
                self.after_call(bare(call.name))
            except Exception as e:
                error = e
        self.running_async.pop(call.t.seq, None)
        self.answer(call, result, error)
        self.coroutines -= 1
        if self.stalled:
            self.stalled = False
            self.loop.call_soon(self.async_step, self.stop)


cdef bint is_cancellation(object error):
    import asyncio
    return isinstance(error, asyncio.CancelledError)


cdef str bare(str name):
    """The method's own name."""
    return name.rpartition(".")[2]


cdef void begin(Core *c, ExecTask *out, int mode) noexcept nogil:
    """Take the first call off the queue and mark it as begun. Needs the lock."""
    cdef TaskHead *h
    out[0] = c.exec_queue.front()
    c.exec_queue.pop_front()
    if out.ch != NULL:
        h = <TaskHead *>out.frame.data
        out.started = event_begin(c, h.id, h.attempt, mode == MODE_SYNC)
        memcpy(&c.job, out.frame.data + 20, 4)      # what this call submits belongs to its job
        if (<TaskHead *>out.frame.data).flags & TASK_STREAM:
            production_begin(c, out)
        if out.ch.map != NULL:
            store64(&out.ch.out.h.started, out.seq)
        if mode == MODE_SYNC:
            c.running_ch = out.ch
            c.running_seq = out.seq
            memcpy(&c.running_unique, out.frame.data, 8)
    elif out.seq == EXEC_ACTOR_START:
        memcpy(&c.job, out.frame.data + 12, 4)      # and what the constructor submits to that of the actor's id


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
