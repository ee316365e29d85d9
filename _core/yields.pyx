"""Generators that run here: a call whose function yields is run to its end, and what it yields leaves item by item.

Three kinds, by what the caller asked for: *streaming* (each value is a STREAM_ITEM; the answer says only that it is over),
*dynamic* (the same, and the answer is a list of refs to the items), and a number of returns (the values are encoded as they
are yielded, and are the answer).

Owns: a generator while it runs, and coroutines that wait for its consumer. Invariants: values are encoded before any lock is
taken, since that runs user code; the answer leaves after all items; a generator that is not run to its end is closed, so
that its `finally` runs.

Who stops a generator: its consumer has left or its caller has died (it is closed at its next yield, without an error), or
it is cancelled (by an interrupt in a plain worker; in an actor at its next yield).

Leaves to others: what runs when, and the answer (worker.pyx, answers.pyx); what the consumer says, and the frames of items
(productions.pyx).
"""

from libc.stdint cimport uint16_t, uint64_t
from libcpp.vector cimport vector

from ftray._core.answers cimport Yielded, encode_failure, encode_result, end_if_forked
from ftray._core.buf cimport Buf, buf_clear, buf_extend, buf_free, buf_init
from ftray._core.generators cimport sealed_items
from ftray._core.invocation cimport Call, Callables
from ftray._core.gets cimport wait_blocking
from ftray._core.objects cimport ObjectRef, usable
from ftray._core.productions cimport (QUEUED_BYTES, production_find, production_has_room, production_over, production_queue_short,
                                      production_send, production_ungated)
from ftray._core.runtime cimport core, core_enter, core_leave, core_try, wait_python
from ftray._core.session cimport check_usable
from ftray._core.types cimport TASK_DYNAMIC, TASK_STREAM, Core, ObjEntry, Production
from ftray._core.wire cimport FIRST_ITEM, LAST_ITEM, StreamItem, TaskHead

cdef enum:
    BREATHE = 32                # items after which a coroutine lets others of its event loop run

cdef list sleepers = []         # (Producer, future) of coroutines that wait for room; only their loop's thread uses it


cdef class Producer:
    """One generator of this process, while it runs."""

    cdef Call call
    cdef Callables callables
    cdef Production *p          # NULL for a number of returns: nothing leaves before the answer
    cdef Buf b
    cdef Yielded values         # for a number of returns
    cdef uint64_t count         # of these
    cdef uint64_t turns         # of the event loop's

    def __dealloc__(self):
        buf_free(&self.b)

    cdef int begin(self, Call call, Callables callables) except -1:
        cdef Core *c = core()
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        self.call = call
        self.callables = callables
        buf_init(&self.b)
        if not h.flags & TASK_STREAM:
            self.values = Yielded()
            return 0
        with nogil:
            core_enter(c)
            self.p = production_find(c, call.t.ch, call.t.seq)
            core_leave(c)
        if self.p == NULL:
            raise RuntimeError("a generator that was not begun")
        return 0

    cdef int check(self, object source) except -1:
        if (<TaskHead *>self.call.t.frame.data).flags & TASK_STREAM and not is_generator(source):
            kind = "dynamic" if (<TaskHead *>self.call.t.frame.data).flags & TASK_DYNAMIC else "streaming"
            raise ValueError(
                f"{self.call.name} was called with num_returns={kind!r}, which needs a generator function (one that uses "
                f"'yield'), but it returned {type(source).__name__}"
            )
        return 0

    cdef bint take(self, object value) except -1:
        """A value was yielded; False when no more are wanted."""
        end_if_forked()
        if self.p == NULL:
            if self.count == self.call.nret:
                complain(f"{self.call.name} yields more than num_returns={self.call.nret} values: the others are left out")
                return False
            self.values.add(value)
            self.count += 1
            return True
        self.emit(value)
        return self.wanted()

    cdef int emit(self, object value) except -1:
        """Encode a value and send it."""
        cdef list refs = []
        if self.p.produced >= LAST_ITEM - FIRST_ITEM:
            raise OverflowError(f"{self.call.name} yields more than {LAST_ITEM - FIRST_ITEM} values")
        self.start_item()
        encode_result(&self.b, value, refs)
        return self.send(refs)

    cdef int emit_failure(self, bytes payload) except -1:
        self.start_item()
        encode_failure(&self.b, payload, 1)
        return self.send([])

    cdef int start_item(self) except -1:
        cdef StreamItem *s
        buf_clear(&self.b)
        s = <StreamItem *>buf_extend(&self.b, sizeof(StreamItem))
        if s == NULL:
            raise MemoryError()
        s.index = self.p.produced
        s.attempt = (<TaskHead *>self.call.t.frame.data).attempt
        return 0

    cdef int send(self, list refs) except -1:
        cdef Core *c = core()
        cdef vector[ObjEntry *] inner
        for ref in refs:
            inner.push_back(usable(<ObjectRef>ref))
        if core_try(c):
            production_send(c, self.p, &self.b, &inner)
            core_leave(c)
        else:
            with nogil:
                core_enter(c)
                production_send(c, self.p, &self.b, &inner)
                core_leave(c)
        if self.p.ch.outq_bytes > QUEUED_BYTES:     # the caller is slow to read, or has much to do: it will not be long
            wait_python(c, production_queue_short, <void *>self.p, -1)
        return 0

    cdef bint wanted(self) except -1:
        """Shall the generator go on? Raises when it is cancelled, and when ftrayd is gone: to end then would say that
        there is no more, and the caller, who may not have noticed yet, would believe it."""
        if self.p.cancelled:
            raise KeyboardInterrupt
        if not core().node_alive:
            check_usable()
        return not production_over(core(), self.p)

    cdef bint must_pause(self):
        return self.p != NULL and not production_has_room(core(), <void *>self.p)

    # --- running

    cdef object run(self, object source):
        """Run a generator on this thread."""
        cdef Core *c = core()
        self.check(source)
        try:
            if PyAsyncGen_CheckExact(source):
                from asyncio import run
                return run(self.run_async(source))
            try:
                for value in source:
                    if not self.take(value):
                        break
                    value = None
                    if self.must_pause():
                        wait_blocking(c, production_has_room, <void *>self.p, -1)
                        if not self.wanted():
                            break
            finally:
                source.close()
        except Exception as e:
            return self.finish(e)
        return self.finish(None)

    async def run_async(self, source):
        """Run a generator in an event loop: one that awaits, or one that does not."""
        self.check(source)
        try:
            if PyAsyncGen_CheckExact(source):
                try:
                    async for value in source:
                        if not (self.take(value) and await self.breathe()):
                            break
                        value = None
                finally:
                    await source.aclose()
            else:
                try:
                    for value in source:
                        if not (self.take(value) and await self.breathe()):
                            break
                        value = None
                finally:
                    source.close()
        except Exception as e:
            return self.finish(e)
        return self.finish(None)

    async def breathe(self):
        """Between two items: others of the loop have their turn, and a consumer who is behind catches up."""
        cdef Core *c = core()
        self.turns += 1
        if self.turns % BREATHE == 0:
            from asyncio import sleep
            await sleep(0)
        if self.p == NULL:
            return True
        while self.must_pause():
            if c.loop_fd < 0:                   # the loop is the generator's own: nobody else minds that it stands still
                wait_blocking(c, production_has_room, <void *>self.p, -1)
                continue
            from asyncio import get_running_loop
            future = get_running_loop().create_future()
            sleepers.append((self, future))
            if not self.fall_asleep():          # a word came between the two looks
                future.set_result(None)
            try:
                await future
            finally:
                sleepers[:] = [item for item in sleepers if item[1] is not future]
                self.p.sleeps = False
        return self.wanted()

    cdef bint fall_asleep(self):
        """From now on a word of the consumer wakes the event loop. False when there is no need to wait any more."""
        cdef Core *c = core()
        cdef bint room
        with nogil:
            core_enter(c)
            self.p.sleeps = True
            room = production_has_room(c, <void *>self.p)
            core_leave(c)
        return not room

    # --- the end

    cdef object finish(self, object error):
        """The result of the call. An exception is raised on, or stands where the values end."""
        cdef TaskHead *h = <TaskHead *>self.call.t.frame.data
        cdef Yielded out
        end_if_forked()
        self.settle()
        if self.p == NULL:
            return self.finish_returns(error)
        if not h.flags & TASK_DYNAMIC:
            if error is not None:
                raise error
            return None
        if error is not None:
            self.emit_failure(self.payload(error))
            self.settle()
        out = Yielded()
        out.add(sealed_items(<const char *>h.id, self.p.produced, <const char *>self.p.ch.worker.b))
        out.error = error
        return out

    cdef object finish_returns(self, object error):
        """As many values as were asked for: what is missing is the error, or that they are missing."""
        cdef Yielded out = self.values
        cdef uint64_t missing = self.call.nret - self.count
        out.error = error
        if missing:
            if error is None:
                error = out.error = ValueError(
                    f"{self.call.name} should yield num_returns={self.call.nret} values, but yielded {self.count}")
            out.add_failure(self.payload(error), <uint16_t>missing)
        return out

    cdef bytes payload(self, object error):
        from ftray._task_errors import make_task_error
        import os
        return make_task_error(error, self.call.name, os.getpid(), actor_repr=self.callables.describe())

    cdef int settle(self) except -1:
        """No answer overtakes an item that waits for an acknowledgement."""
        if self.p != NULL and self.p.gated:
            wait_python(core(), production_ungated, <void *>self.p, -1)
        return 0


cdef int complain(str text) except -1:
    import sys
    print(text, file=sys.stderr)
    return 0


cdef object run_generator(Call call, object source, Callables callables):
    """Run what a call has returned, on this thread; the result to answer with. Raises what the generator raises."""
    cdef Producer producer = Producer()
    producer.begin(call, callables)
    return producer.run(source)


cdef object run_generator_async(Call call, object source, Callables callables):
    """The same in an event loop: a coroutine."""
    cdef Producer producer = Producer()
    producer.begin(call, callables)
    return producer.run_async(source)


cdef int resume_generators() except -1:
    """Coroutines whose consumers have caught up go on. On the loop's thread."""
    cdef Producer producer
    core().production_news = False
    for producer, future in sleepers:
        if not producer.must_pause() and not future.done():
            future.set_result(None)
    return 0
