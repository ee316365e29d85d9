"""The executing side: what this worker process is, and its main loop.

The main thread leads the I/O while it has nothing to run. A plain worker and a plain actor run calls on it one at a
time. With `max_concurrency` > 1 or concurrency groups it hands calls to threads (pools.pyx); an async actor's event loop
runs on it and watches our epoll descriptor itself (asynccalls.pyx).

Owns: what this process is (a plain worker, or one actor in one of three modes) and the call that the main thread is in.
Invariants: before a call begins, its number is written to the `started` word of the channel's ring, where the caller
can read it after our death (what had not begun then has had no effect); each call that was taken is answered once, or
this process ends.

Leaves to others: the queue (execqueue.pyx), what a call's frame says (invocation.pyx), running and answering one call
(execution.pyx).
"""

from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from ftray._core.asynccalls cimport AsyncCalls
from ftray._core.beside cimport Beside
from ftray._core.context cimport context
from ftray._core.durable cimport DurableCalls, acknowledged, callers_done
from ftray._core.execqueue cimport EXEC_ACK, EXEC_ACTION, EXEC_ASSIGN, EXEC_CALLERS_DONE, EXEC_TERMINATE, exec_begin, exec_runnable
from ftray._core.execution cimport Execution
from ftray._core.invocation cimport Call
from ftray._core.pools cimport Pools
from ftray._core.runtime cimport core, core_enter, core_leave, core_poll, core_try, wait_python
from ftray._core.types cimport Core, load64


cdef bint work_here(Core *c, void *arg) noexcept nogil:
    return exec_runnable(c) or c.exit_requested or not c.cancels.empty()


cdef class Executor(Execution):
    """Runs calls. One per worker process."""

    cdef public object start_actor          # callback: (payload bytes) -> None
    cdef public object on_terminate         # callback: graceful end
    cdef public object assign               # callback: (JSON bytes) -> None, the devices of the lease that begins
    cdef Pools pools
    cdef AsyncCalls async_calls
    cdef Beside calls                       # either of them, None when calls run one at a time

    cdef Call next_call(self):
        """The next thing to run, waiting for it; None when this process shall end."""
        cdef Core *c = core()
        cdef Call call = Call.__new__(Call)
        while True:
            if core_try(c):
                if load64(&c.me.summary) != 0:
                    core_poll(c)    # a cancellation that was sent before the last call ended counts before the next begins
                if exec_runnable(c):
                    call.key = exec_begin(c, &call.t)
                    core_leave(c)
                    return call
                core_leave(c)
            if c.exit_requested:
                return None
            if self.pools is not None:
                self.pools.cancel_asked()
            c.exec_tick = 0
            if self.durable is not None and self.calls is None:
                self.durable.rest()
            wait_python(c, work_here, NULL, -1)

    def run(self):
        """Run calls until ftrayd says that it is enough (or is gone)."""
        cdef Call call
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
                if call.t.seq == EXEC_CALLERS_DONE:
                    self.callers_done(call)
                    continue
                if call.t.seq == EXEC_ACK:
                    self.acknowledged(call)
                    continue
                if call.t.seq == EXEC_ASSIGN:
                    self.assign(call.t.frame.data[:call.t.frame.size])
                    continue
                start_in_loop = self.start_actor(call.t.frame.data[:call.t.frame.size])
                if start_in_loop is not None:
                    return self.run_async(start_in_loop)
            elif self.pools is not None:
                self.pools.hand(call)
            elif self.execute(call):
                self.on_exit()
            call = None

    cdef int acknowledged(self, Call call) except -1:
        """ACK: a caller whose call waits for room says which replies it has."""
        if self.durable is not None:
            acknowledged(self.durable, call.t.frame)
            self.enter_parked()
        return 0

    cdef int callers_done(self, Call call) except -1:
        """CALLERS_DONE: u32 size, CallIDs, u32 size, roots. What was answered to them is not wanted any more."""
        if self.durable is not None:
            callers_done(self.durable, call.t.frame)
        return 0

    cdef int run_parked(self, Call call) except -1:
        if self.async_calls is not None:
            return self.async_calls.run_parked(call)
        return Execution.run_parked(self, call)

    # --- actors

    def become_durable(self, once, uint64_t epoch):
        """The actor is an exactly-once one: calls go through its gate. `epoch`: history and epoch, as replies carry them."""
        self.durable = DurableCalls(once, epoch)
        once.on_room = self.make_room

    def set_own_key(self, bytes key not None):
        """The callee key of the exactly-once actor that lives here, for the chains of its calls."""
        cdef Core *c = core()
        cdef const char *p = key
        if len(key) != 16:
            raise ValueError(f"a callee key has 16 bytes, not {len(key)}")
        with nogil:
            core_enter(c)
            memcpy(c.own_key.b, p, 16)
            core_leave(c)

    def make_room(self):
        """Replies were released, or the journal has moved: calls that wait for that may begin. Any thread."""
        if self.durable.parked or self.async_calls is not None:
            self.post(self.enter_parked)

    def enter_parked(self):
        Execution.enter_parked(self)
        if self.async_calls is not None:
            self.async_calls.go_on()

    def n_parked(self):
        """How many calls were taken off the queue and have not begun."""
        return 0 if self.durable is None else len(self.durable.parked)

    def call_outside(self):
        """What the toolkit records of the exactly-once call that the calling code belongs to; None when it belongs to none,
        "reading" in a read-only method."""
        cdef Call call = self.running if self.async_calls is None else self.async_calls.current()
        if call is None or not context().set:
            return None
        if call.entered:
            return self.durable.execution_of(call)
        return "reading" if call.reads else None

    def become_actor(self, instance, checkpoints, int max_concurrency, bint is_async, dict groups):
        """From now on this process is an actor. `groups`: concurrency groups and how many calls of each run together."""
        self.instance = self.callables.instance = instance
        if checkpoints is not None:
            self.after_call = checkpoints.after_call
            self.counter = checkpoints.counter
            self.callables.entry_points = checkpoints.entry_points
            if max_concurrency > 1 or groups:
                self.before_call = checkpoints.before_call
        if is_async:
            self.async_calls.limit(max_concurrency, groups)
        elif max_concurrency > 1 or groups:
            self.beside = core().beside = True
            self.calls = self.pools = Pools(self, max_concurrency, groups)

    def run_async(self, start):
        self.beside = core().beside = True
        self.calls = self.async_calls = AsyncCalls(self)
        self.async_calls.on_terminate = self.on_terminate
        self.async_calls.run(start)

    def name(self, str class_name):
        """The actor's class, which is what its output is labelled with from now on."""
        self.callables.class_name = self.current = class_name

    def before_first_function(self, action):
        """Have `action` run before the first function is loaded; None: nothing any more."""
        self.callables.before_load = action

    def call_name(self):
        """The name of the call that this thread, or this task of the event loop, is in; None outside calls."""
        cdef Call call = self.call_here()
        if call is not None:
            return call.name
        if not context().set or self.beside:
            return None
        return self.current if self.instance is None else self.label

    def function_named(self, str name):
        """The function or method that calls of this name run, None when there is none."""
        for entry in self.callables.loaded.values():
            if entry[1] == name:
                return entry[0]
        return None

    def refuse_calls(self):
        """There will be no instance: calls stay unbegun, and end with this process."""
        core().is_actor = False

    cdef Call call_here(self):
        """The call beside others that the calling code belongs to, None when there is none."""
        return None if self.calls is None else self.calls.current()

    def exit_actor(self):
        """The actor leaves when the calls that run now have ended; nothing else begins."""
        cdef Call call = self.call_here()
        self.exiting = True
        if call is not None:
            call.exits = True
        if self.calls is not None:
            self.post(self.leave_when_done)
        elif context().set:
            self.left = True
        else:
            self.post(self.on_exit)             # a thread of the user's own: after the method that runs now

    def leave_when_done(self):
        self.calls.leave_when_done()

    # --- cancellation

    def retire(self):
        """The task that runs now is this process's last, as if it had been the last of `max_calls`."""
        core().spent = True

    def cancel_due(self):
        """Is a cancellation under way for exactly the call that the main thread is in?"""
        cdef Core *c = core()
        return c.running_key != 0 and c.cancel_key == c.running_key

    def is_cancelled(self):
        """Was the call that the calling code belongs to cancelled?"""
        cdef Call call = self.call_here()
        if call is not None:
            return bool(call.cancelled)
        return bool(context().set) and self.cancel_due()
