"""The calls of an async actor: an event loop on the main thread, which watches our epoll descriptor itself.

Owns: the event loop, and how many coroutines of each concurrency group run.
Invariants: a call of a group begins when fewer than its limit run, in the order in which calls came; without groups,
calls that cannot begin stay in the queue, where their caller can have them back; a call is answered once, also when it
is cancelled before its first step; after exit_actor() nothing begins; while this process leaves, nothing begins and calls
stay in the queue, from where their callers send them elsewhere.

Leaves to others: finding a call and leaving (beside.pyx), the queue (execqueue.pyx), outcomes and answers (execution.pyx).
"""

import collections

from libc.stdint cimport uint32_t, uint64_t

from ftray._core.answers cimport end_if_forked
from ftray._core.awaits cimport LoopWatch, watch_actor_loop
from ftray._core.beside cimport Beside
from ftray._core.context cimport CallContext, context_durable, context_fill, context_variable
from ftray._core.durable cimport acknowledged, callers_done
from ftray._core.execqueue cimport EXEC_ACK, EXEC_ACTION, EXEC_CALLERS_DONE, exec_begin, exec_runnable
from ftray._core.execution cimport Execution, refuse_generator
from ftray._core.flows cimport flow_end
from ftray._core.guards cimport the_guard
from ftray._core.invocation cimport DROPPED, RUNNING, WAITING, Call, call_head
from ftray._core.objects cimport ObjectRef
from ftray._core.runtime cimport core, core_enter, core_leave, poll_now
from ftray._core.types cimport TASK_STREAM, Core, blob_hold, full_fence, load64, store32, swap32
from ftray._core.wire cimport TaskHead
from ftray._core.yields cimport is_generator, resume_generators, run_generator_async


cdef class Lane:
    def __init__(self, int limit):
        self.limit = limit
        self.waiting = collections.deque()


cdef class AsyncCalls(Beside):
    """Runs the event loop until this process ends."""

    def __init__(self, Execution execution):
        self.execution = execution
        self.lanes = {}

    def limit(self, int max_concurrency, dict groups):
        """How many coroutines may run, of no group and of each group."""
        self.default = Lane(max_concurrency)
        self.lanes = {"": self.default, **{group: Lane(limit) for group, limit in groups.items()}}

    def run(self, start):
        """Run the loop; `start` makes the instance inside it."""
        import asyncio
        self.variable = context_variable()
        try:
            asyncio.run(self.main(start))
        except SystemExit as e:         # of a task that a call has made: it passes every handler
            self.execution.leave(e)

    async def main(self, start):
        import asyncio
        import os
        cdef Core *c = core()
        self.loop = self.execution.loop = asyncio.get_running_loop()
        self.watch = watch_actor_loop(self.loop)
        self.limit(1, {})
        await start()                       # the constructor may use the running loop
        self.stop = stop = self.loop.create_future()
        c.loop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.loop.add_reader(c.epoll_fd, self.step)
        self.loop.add_reader(c.loop_fd, self.woken)
        self.loop.call_soon(self.step)
        await stop
        if c.guards:
            the_guard().loop_ends()
        self.loop.remove_reader(c.epoll_fd)

    def woken(self):
        """The background thread took calls off a ring while the loop slept."""
        import os
        try:
            os.eventfd_read(core().loop_fd)
        except BlockingIOError:
            return
        self.step()

    def step(self):
        """Take what has come, start it, and let peers ring the bell while the loop is busy elsewhere."""
        cdef Core *c = core()
        cdef Call call
        cdef LoopWatch watch = self.watch
        while not self.stop.done():
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
                if not self.next_call(call):
                    break
                if call.t.ch != NULL:
                    self.take(call)
                elif call.t.seq == EXEC_CALLERS_DONE:
                    if self.execution.durable is not None:
                        callers_done(self.execution.durable, call.t.frame)
                elif call.t.seq == EXEC_ACK:
                    if self.execution.durable is not None:
                        acknowledged(self.execution.durable, call.t.frame)
                        self.execution.enter_parked()
                elif call.t.seq != EXEC_ACTION:
                    self.on_terminate(1)        # this process leaves when its methods have ended
            self.cancel_asked()
            if c.production_news:
                resume_generators()
            if c.exit_requested:
                self.stop.set_result(None)
                return
            if self.may_sleep():
                return

    cdef bint next_call(self, Call call) except -1:
        """Take the first call off the queue if it can be begun, or wait in its group's lane."""
        cdef Core *c = core()
        cdef bint found
        cdef bint full = self.default.running >= self.default.limit and len(self.lanes) == 1 or self.execution.leaving
        with nogil:
            core_enter(c)
            found = exec_runnable(c) and (not full or c.exec_queue.front().ch == NULL)
            self.stalled = not found and exec_runnable(c)
            if found:
                call.key = exec_begin(c, &call.t)
            core_leave(c)
        return found

    cdef bint may_sleep(self) except -1:
        """Nothing has come meanwhile: from now on the bell wakes the loop."""
        cdef Core *c = core()
        cdef bint more
        with nogil:
            core_enter(c)
            c.loop_armed = True
            swap32(&c.me.asleep, 1)
            full_fence()
            more = load64(&c.me.summary) != 0 or (exec_runnable(c) and not self.stalled)
            if more:
                if not c.leading:               # else a thread may sleep, which needs its bell
                    store32(&c.me.asleep, 0)
                c.loop_armed = False
            core_leave(c)
        return not more

    # --- calls

    cdef Lane lane_of(self, Call call):
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        if len(self.lanes) == 1:
            return self.default
        try:
            return self.lanes.get(self.execution.callables.lookup(call.t.ch, h.fn)[3]) or self.default
        except Exception:                       # whoever decodes it finds the same error, and answers with it
            return self.default

    cdef int take(self, Call call) except -1:
        cdef Lane lane = self.lane_of(call)
        if self.execution.exiting:
            return 0                            # it ends with this process
        if self.execution.durable is not None and not self.execution.enter(call):
            return 0
        self.open[call.key] = call
        if self.execution.durable is not None:
            return self.queue_up(call)
        self.begin_or_wait(call, lane)
        return 0

    cdef int begin_or_wait(self, Call call, Lane lane) except -1:
        if lane.running < lane.limit:
            self.begin(call, lane)
        else:
            lane.waiting.append(call)
        return 0

    cdef int queue_up(self, Call call) except -1:
        """A call of an exactly-once actor: methods that change the state run alone, from start to end."""
        if self.turns is None:
            from ftray.checkpoint.turns import Turns
            self.turns = Turns(self.execution.durable.full)
            self.tickets = {}
        call.ticket, begun = self.turns.arrive(bool(call.entered), call.method in self.execution.durable.own)
        self.tickets[call.ticket] = call
        self.begin_turns(begun)
        return 0

    cdef int run_parked(self, Call call) except -1:
        """It has waited for room among the kept replies."""
        self.open[call.key] = call
        return self.queue_up(call)

    cdef int begin_turns(self, list begun) except -1:
        cdef Call call
        if self.execution.leaving:
            return 0
        for ticket in begun:
            call = self.tickets[ticket]
            self.begin_or_wait(call, self.lane_of(call))
        if self.turns.stopped:
            self.execution.durable.once.ask_room()
        return 0

    cdef int go_on(self) except -1:
        """The journal has moved."""
        if self.turns is not None:
            self.begin_turns(self.turns.go_on())
        return 0

    cdef int leave_turn(self, Call call) except -1:
        """Its turn is over, or it will not have one."""
        ticket, call.ticket = call.ticket, None
        del self.tickets[ticket]
        self.begin_turns(self.turns.leave(ticket))
        return 0

    cdef int begin(self, Call call, Lane lane) except -1:
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        if call.entered and not self.execution.durable.may_start(call):
            return self.refuse_stale(call)
        try:
            self.execution.callables.decode(call)
        except Exception as e:
            call.name = call.name or "?"
            call.nret = h.nret
            self.open.pop(call.key, None)
            if call.entered:
                call.refused = True
                if self.execution.before_call is not None:
                    self.execution.before_call(call.method)     # what is recorded counts as ended, so it has to begin
            self.execution.answer(call, None, e)
            if call.ticket is not None:
                self.leave_turn(call)
            return 0
        lane.running += 1
        call.task = self.loop.create_task(self.coroutine(call, lane))
        return 0

    cdef int refuse_stale(self, Call call) except -1:
        """While it waited for its turn its caller was executed again."""
        self.open.pop(call.key, None)
        self.execution.answer(call, None, self.execution.durable.error)
        self.leave_turn(call)
        return 0

    async def coroutine(self, Call call, Lane lane):
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        cdef CallContext own = CallContext.__new__(CallContext)
        if call.stage == DROPPED:
            self.ended(call, lane)
            return
        call.stage = RUNNING
        own.frame = blob_hold(call.t.frame)
        context_fill(&own.c, h.id, h.call_id, call.key, h.attempt, h.depth, call_head(&call.t), h.head_size)
        self.variable.set(own)
        if call.entered:
            context_durable(&own.c, 0)
            self.execution.durable.begin(call)
        elif call.reads:
            self.execution.durable.sees(call)       # it may have waited for the turns of calls that change the state
        verifies = (call.entered or call.reads) and self.execution.durable.verifier is not None
        if verifies:
            self.execution.durable.set_aside(call)
        result = error = None
        begun = False
        try:
            if self.execution.before_call is not None:
                self.execution.before_call(call.method)
            begun = True
            try:
                result = call.function(*call.args, **(call.kwargs or {}))
                if type(result) is not ObjectRef and hasattr(result, "__await__"):      # a ref is a result like others
                    result = await result
                if call.entered:
                    refuse_generator(result)
                elif h.flags & TASK_STREAM or is_generator(result):
                    result = await run_generator_async(call, result, self.execution.callables)
            finally:
                end_if_forked()
        except SystemExit as e:
            if not call.exits:
                self.execution.leave(e)
        except BaseException as e:
            error = e
            if call.entered and self.execution.durable.is_crash(e) and not call.exits:
                self.execution.durable.crash(e)
        call.touched = flow_end(&own.c)
        if begun and not call.entered:
            error = self.execution.after(call, error)
        if verifies and call.before is not None and not call.exits:
            found = await self.execution.durable.verify_awaited(call, result, error)
            if found is not None:
                self.execution.unverified(call, found)      # this process ends
        if not call.exits:
            self.execution.answer(call, result, error)
        elif call.entered:
            self.execution.record_last(call)
            if begun:
                self.execution.after(call, None)
        self.ended(call, lane)

    cdef int ended(self, Call call, Lane lane) except -1:
        """A coroutine is over: the next of its group may begin."""
        self.open.pop(call.key, None)
        call.task = None
        lane.running -= 1
        if call.ticket is not None:
            self.leave_turn(call)
        if self.execution.exiting:
            self.leave_when_done()
        while lane.waiting and lane.running < lane.limit and not (self.execution.exiting or self.execution.leaving):
            self.begin(lane.waiting.popleft(), lane)
        if self.stalled:
            self.stalled = False
            self.loop.call_soon(self.step)
        return 0

    cdef int leave(self) except -1:
        self.execution.on_exit()
        return 0

    # --- cancellation

    cdef int cancel(self, uint64_t key, bint recursive) except -1:
        cdef Call call = self.open.get(key)
        cdef Lane lane
        if call is None:
            return 0
        if call.stage == WAITING:               # not one step was made: its coroutine, if there is one, ends at once
            call.stage = DROPPED
            self.open.pop(key, None)
            if call.task is None:
                lane = self.lane_of(call)
                if call in lane.waiting:
                    lane.waiting.remove(call)
            if call.entered:
                self.execution.durable.forget(call)
            self.execution.answer_cancelled(call)
            if call.ticket is not None and call.task is None:
                self.leave_turn(call)
            return 0
        if recursive:
            self.execution.cancel_submitted(call)
        if call.entered:
            call.cancelled = True               # half of its effect cannot be recorded: it runs to its end
        else:
            call.task.cancel()
        return 0
