"""Waiting for values without blocking a thread: `await ref` in an event loop, and `ref.future()`.

Each event loop has a *watch*, and all futures of the process have one *board*. Both own a box (types.hpp), in which the
core puts the tickets whose values are there; the first one of a batch wakes the loop (by an eventfd) or the thread of
the board (which waits like a thread in `get`), and the whole batch is taken at once. Of a loop's futures only the
end is known: the value is made by who awaits it, in its own task.

A loop that awaits something watches the core's epoll descriptor, too, and does the I/O itself: the answer to a call
goes through no other thread. The loop of an async actor does that anyway (worker.pyx).

Owns: boxes and their descriptors, which futures belong to which ticket. Invariants: who stops waiting (cancelled, or
its loop is gone) closes its ticket, and the task runs on; a box lives until no entry points to it; when the session
or ftrayd ends, every future is told. asyncio and concurrent.futures are imported by who uses them, not here.

Leaves to others: when a ticket is done (values.pyx), what a value is or why there is none (gets.pyx).
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.vector cimport vector
from posix.unistd cimport close as close_fd

from ftray._core.borrows cimport borrow_fetch
from ftray._core.gets cimport lend_cpus, take_back_cpus, value_of
from ftray._core.objects cimport ObjectRef, usable
from ftray._core.runtime cimport (arm_bell, core, core_enter, core_enter_in, core_leave, core_try, in_fork, poll_now, wait_python,
                                  wake_waiters)
from ftray._core.session cimport check_usable
from ftray._core.spills cimport spill_restore
from ftray._core.types cimport (OBJ_FETCHING, OBJ_INLINE, OBJ_SPILLED, OBJ_UNKNOWN, AwaitBox, Core, ObjEntry, futex_wait, futex_wake, load8,
                                lock_drop, lock_take, mono_ns)
from ftray._core.values cimport box_close, box_open, box_remove

import os
import weakref

cdef enum:
    LEND_AFTER_NS = 60000       # as long as a blocking wait in a task

cdef double LEND_AFTER_S = 0.0005       # a loop's timers are coarser

cdef dict watches = {}          # id of an event loop -> weak reference to its watch, which the loop's readers hold
cdef FutureBoard board = None


# --- tickets --------------------------------------------------------------------------------------------------------

cdef inline bint settled(Core *c, ObjEntry *e) noexcept nogil:
    cdef uint8_t state = load8(&e.state)
    return (state >= OBJ_INLINE and state != OBJ_SPILLED) or e.lost or not c.node_alive


cdef bint ticket_open(Core *c, AwaitBox *box, ObjEntry *e, uint64_t ticket) noexcept nogil:
    """Have the box told of the value. False when there is nothing to wait for. Needs the lock."""
    if settled(c, e):
        return False
    if e.state == OBJ_UNKNOWN and not e.flags & OBJ_FETCHING:
        borrow_fetch(c, e)
        if settled(c, e):
            return False
    box_open(c, box, ticket, e)
    if e.state == OBJ_SPILLED:
        spill_restore(c, e)
    if box.polls and not box.armed:
        box.armed = True
        arm_bell(c)
    return True


cdef void give_back_loan(Core *c, AwaitBox *box) noexcept nogil:
    """Nothing is awaited any more: the task uses its CPUs again. Needs the lock."""
    if box.lent and box.open.empty():
        box.lent = False
        c.lent -= 1
        take_back_cpus(c)


cdef bint may_lend(Core *c) noexcept nogil:
    """Is this a plain task, on which others may wait in vain while it waits for them?"""
    return c.running_key != 0 and not c.is_driver and not c.is_actor


cdef void lend(Core *c, AwaitBox *box) noexcept nogil:
    if not box.lent and not box.open.empty() and may_lend(c):
        box.lent = True
        c.lent += 1
        lend_cpus(c)


cdef void loops_take_back_cpus(Core *c) noexcept nogil:
    """The task ends, and with it whatever its loops lent. Needs the lock."""
    cdef size_t i
    for i in range(c.boxes.size()):
        if c.boxes[i].lent:
            c.boxes[i].lent = False
            c.lent -= 1
            take_back_cpus(c)


cdef AwaitBox *new_box(Core *c, int fd, bint polls) noexcept nogil:
    cdef AwaitBox *box = new AwaitBox()
    box.fd = fd
    box.polls = polls
    core_enter(c)
    box.ended = not c.node_alive
    c.boxes.push_back(box)
    core_leave(c)
    return box


cdef void drop_box(AwaitBox *box, uint64_t session):
    """Entries of an ended session, and those of a forked child, are touched by nobody any more."""
    cdef Core *c = core()
    if not in_fork():
        with nogil:
            if core_enter_in(c, session):
                box_remove(c, box)
                give_back_loan(c, box)
                core_leave(c)
            else:
                lock_take(&c.lock)
                if c.session == session:        # it is about to end, and somebody may still put something in
                    box_remove(c, box)
                lock_drop(&c.lock)
    if box.fd >= 0:
        close_fd(box.fd)
    del box


# --- event loops ----------------------------------------------------------------------------------------------------

cdef class LoopWatch:
    """What one event loop awaits. Only the loop's own thread uses it, until it is dropped."""

    def __cinit__(self):
        self.poll_fd = -1
        self.waiting = {}

    def __dealloc__(self):
        self.free()

    cdef void free(self):
        if self.box != NULL:
            drop_box(self.box, self.session)
            self.box = NULL
        if self.poll_fd >= 0:
            close_fd(self.poll_fd)
            self.poll_fd = -1

    cdef int begin(self, object loop, bint polls) except -1:
        cdef Core *c = core()
        cdef int fd
        key = id(loop)

        def gone(ref):
            if watches.get(key) is ref:
                del watches[key]

        self.session = c.session
        self.loop_ref = weakref.ref(loop)
        if polls:
            try:
                self.poll_fd = os.dup(c.epoll_fd)   # a number of our own: the core's is closed, and used again, by others
            except OSError:
                check_usable()                  # the session has ended meanwhile
                raise
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        with nogil:
            self.box = new_box(c, fd, polls)
        loop.add_reader(fd, self.woken)
        watches[key] = weakref.ref(self, gone)
        return 0

    cdef uint64_t open(self, ObjectRef ref, object future, object loop) except? 0:
        """`future` becomes done with the value. The ticket, or 0 when the value is there already."""
        cdef Core *c = core()
        cdef ObjEntry *e = usable(ref)
        cdef uint64_t ticket = self.tickets + 1
        cdef bint opened
        if self.poll_fd >= 0 and not self.polling:
            self.polling = True
            loop.add_reader(self.poll_fd, self.step)
        if core_try(c):
            opened = ticket_open(c, self.box, e, ticket)
            core_leave(c)
        else:
            with nogil:
                opened = core_enter_in(c, self.session)
                if opened:
                    opened = ticket_open(c, self.box, e, ticket)
                    core_leave(c)
        if not opened:
            return 0
        self.tickets = ticket
        self.waiting[ticket] = future
        if not self.lend_due and not self.box.lent and may_lend(c):
            self.lend_due = True
            loop.call_later(LEND_AFTER_S, self.lend)
        return ticket

    cdef int close(self, uint64_t ticket) except -1:
        """Nobody waits on this ticket any more."""
        cdef Core *c = core()
        if self.waiting.pop(ticket, None) is None or self.box == NULL or in_fork():
            return 0
        with nogil:
            if core_enter_in(c, self.session):
                box_close(c, self.box, ticket)
                give_back_loan(c, self.box)
                core_leave(c)
        return 0

    cdef void expect(self) noexcept nogil:
        """What comes now is collected by the loop itself: nobody has to wake it. Needs the lock."""
        if self.box != NULL:
            self.box.told = True

    cdef void collect(self, Core *c) noexcept nogil:
        """Take what is done. Needs the lock."""
        if self.box == NULL:
            return
        self.box.told = False
        self.came.insert(self.came.end(), self.box.done.begin(), self.box.done.end())
        self.box.done.clear()
        give_back_loan(c, self.box)
        if self.box.polls:
            self.box.armed = not self.box.open.empty()
            if self.box.armed:
                arm_bell(c)

    cdef int resolve(self) except -1:
        """Wake who awaited what was collected."""
        cdef size_t i
        for i in range(self.came.size()):
            future = self.waiting.pop(self.came[i], None)
            if future is not None and not future.done():
                future.set_result(None)
        self.came.clear()
        return 0

    def step(self):
        """The core's descriptors have something: do the I/O."""
        cdef Core *c = core()
        cdef bint idle = False
        if self.box == NULL:
            return
        with nogil:
            if core_enter_in(c, self.session):
                idle = self.box.open.empty()
                self.expect()
                poll_now(c)
                self.collect(c)
                core_leave(c)
        if self.over():
            self.finish(self.loop_ref())
            return
        if idle and self.polling:           # others do the I/O when this loop has nothing to wait for
            self.polling = False
            self.loop_ref().remove_reader(self.poll_fd)
        self.resolve()

    def woken(self):
        """Another thread took something off a ring, or all is over."""
        cdef Core *c = core()
        if self.box == NULL:
            return
        try:
            os.eventfd_read(self.box.fd)
        except BlockingIOError:
            return
        with nogil:
            if core_enter_in(c, self.session):
                self.collect(c)
                core_leave(c)
        if self.over():
            self.finish(self.loop_ref())
        else:
            self.resolve()

    cdef bint over(self) noexcept:
        """Will nothing come any more?"""
        return self.box.ended or self.session != core().session

    def lend(self):
        """A plain task that awaits for longer lends its CPUs, as one in `get` does."""
        cdef Core *c = core()
        self.lend_due = False
        if self.box == NULL:
            return
        with nogil:
            if core_enter_in(c, self.session):
                lend(c, self.box)
                core_leave(c)

    cdef int finish(self, object loop) except -1:
        """The session is over: who still waits looks again, and finds out why."""
        cdef dict waiting = self.waiting
        self.waiting = {}
        watches.pop(id(loop), None)
        loop.remove_reader(self.box.fd)
        if self.poll_fd >= 0:
            loop.remove_reader(self.poll_fd)
        self.free()
        for future in waiting.values():
            if not future.done():
                future.set_result(None)
        return 0


cdef LoopWatch watch_of(object loop):
    """The watch of a running loop."""
    cdef LoopWatch watch
    known = watches.get(id(loop))
    if known is not None:
        watch = known()
        if watch is not None and watch.loop_ref() is loop:
            if watch.session == core().session:
                return watch
            watch.finish(loop)
    watch = LoopWatch()
    watch.begin(loop, True)
    return watch


cdef LoopWatch watch_actor_loop(object loop):
    """The watch of an async actor's own loop, which does the I/O anyway and calls `collect` itself."""
    cdef LoopWatch watch = LoopWatch()
    watch.begin(loop, False)
    return watch


cdef object running_loop():
    from asyncio import get_running_loop
    try:
        return get_running_loop()
    except RuntimeError:
        raise RuntimeError("an ObjectRef can be awaited where an asyncio event loop runs; elsewhere use ftray.get(ref)") from None


def wait_for(ObjectRef ref):
    """The iterator of ``await ref``."""
    cdef LoopWatch watch
    cdef uint64_t ticket
    while not settled(core(), usable(ref)):
        loop = running_loop()
        watch = watch_of(loop)
        future = loop.create_future()
        ticket = watch.open(ref, future, loop)
        if ticket == 0:
            break
        try:
            yield from future
        finally:
            watch.close(ticket)
        if usable(ref).state == OBJ_SPILLED:
            break                   # it could not be brought back: `value_of` tries once more, and says why
    return value_of(ref, -1)


# --- futures --------------------------------------------------------------------------------------------------------

cdef bint something_to_do(Core *c, void *arg) noexcept nogil:
    cdef AwaitBox *box = <AwaitBox *>arg
    return box.told or box.open.empty() or box.ended or not c.node_alive


cdef class FutureBoard:
    """Completes concurrent futures, on a thread of its own that waits like one in `get` while any is open."""

    cdef AwaitBox *box
    cdef uint64_t session
    cdef uint64_t tickets
    cdef dict waiting           # open ticket -> (future, ref)
    cdef object thread

    def __cinit__(self):
        cdef Core *c = core()
        self.waiting = {}
        self.session = c.session
        with nogil:
            self.box = new_box(c, -1, False)

    def __dealloc__(self):
        drop_box(self.box, self.session)

    cdef int start(self) except -1:
        import threading
        self.thread = threading.Thread(target=self.run, name="ftray-futures", daemon=True)
        self.thread.start()
        return 0

    cdef int open(self, ObjectRef ref, object future) except -1:
        from functools import partial
        cdef Core *c = core()
        cdef ObjEntry *e = usable(ref)
        cdef uint64_t ticket
        cdef bint opened = False
        self.tickets += 1
        ticket = self.tickets
        self.waiting[ticket] = (future, ref)
        with nogil:
            if core_enter_in(c, self.session):
                opened = not self.box.ended and ticket_open(c, self.box, e, ticket)
                if opened and self.box.open.size() == 1:
                    self.box.gen += 1
                    futex_wake(&self.box.gen, 1)
                elif opened:                    # the thread is asleep already, perhaps since an earlier task
                    lend(c, self.box)
                core_leave(c)
        if opened:
            future.add_done_callback(partial(self.given_up, ticket))
        else:
            self.complete(ticket)
        return 0

    def given_up(self, ticket, future):
        """A future that its holder cancelled needs no value. (The task runs on.)"""
        cdef Core *c = core()
        cdef uint64_t number = ticket
        if not future.cancelled() or self.waiting.pop(ticket, None) is None or in_fork():
            return
        with nogil:
            if core_enter_in(c, self.session):
                box_close(c, self.box, number)
                give_back_loan(c, self.box)
                if self.box.open.empty():
                    self.box.told = True        # it looks, even if the next ticket is opened before that
                    wake_waiters(c)
                core_leave(c)

    cdef int complete(self, ticket) except -1:
        found = self.waiting.pop(ticket, None)
        if found is not None:
            complete_future(found[0], <ObjectRef>found[1])
        return 0

    cdef list next_batch(self):
        """Wait for tickets that are done; None when nothing will come any more."""
        cdef Core *c = core()
        cdef uint32_t seen
        cdef bint idle = True
        cdef bint ended = False
        cdef vector[uint64_t] came
        with nogil:
            while True:
                lock_take(&c.lock)
                seen = self.box.gen
                ended = self.box.ended
                idle = self.box.open.empty() and self.box.done.empty() and not ended
                lock_drop(&c.lock)
                if not idle:
                    break
                futex_wait(&self.box.gen, seen, -1)
        if ended:
            return None
        if wait_python(c, something_to_do, <void *>self.box, <int64_t>mono_ns() + LEND_AFTER_NS) == 0:
            with nogil:
                if core_enter_in(c, self.session):
                    lend(c, self.box)
                    core_leave(c)
            wait_python(c, something_to_do, <void *>self.box, -1)
        with nogil:
            lock_take(&c.lock)
            self.box.told = False
            came.swap(self.box.done)
            ended = self.box.ended
            give_back_loan(c, self.box)
            lock_drop(&c.lock)
        return None if ended else came

    def run(self):
        """The thread."""
        cdef list came
        while True:
            came = self.next_batch()
            if came is None:
                break
            for ticket in came:
                self.complete(ticket)
        for ticket in list(self.waiting):
            self.complete(ticket)


cdef int complete_future(object future, ObjectRef ref) except -1:
    if not future.set_running_or_notify_cancel():
        return 0
    try:
        value = value_of(ref, -1)
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(value)
    return 0


def future_of(ObjectRef ref):
    """The concurrent future of a ref."""
    global board
    cdef Core *c = core()
    from concurrent.futures import Future
    cdef bint now = settled(c, usable(ref))
    future = Future()
    if now:
        complete_future(future, ref)
        return future
    if board is None or board.session != c.session:
        board = FutureBoard()
        board.start()
    board.open(ref, future)
    return future


def end_futures():
    """After the end of a session: wait until its futures are told. Not on their own thread, which a callback may be on."""
    global board
    import threading
    ended, board = board, None
    if ended is not None and not in_fork() and (<FutureBoard>ended).thread is not threading.current_thread():
        (<FutureBoard>ended).thread.join(5)
