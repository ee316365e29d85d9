"""An exactly-once actor's calls in its process: what the gate says of a call that has come, and its record when it has run.

Owns: calls that wait for room among the kept replies or in the journal (`parked`), and repetitions of a call under way (`attached`).
Invariants: a call that changes the state runs only after the gate has entered it, and its answer carries the position of
its record; calls of a caller enter in the order in which they came; a call that has asked for an outside value or has
sent something goes through the toolkit's `Execution`, any other never leaves this file and the gate.

Leaves to others: running and answering calls (execution.pyx, asynccalls.pyx), when an answer may leave (held.pyx), the
ledger and the journal (gate.pyx), snapshots and replay (the toolkit).
"""

import collections

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport UINT64_MAX, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ftray._core.buf cimport Buf, buf_free, buf_init, buf_put_u16
from ftray._core.gate cimport Gate
from ftray._core.held cimport held_ask, held_journal_says, held_limit
from ftray._core.invocation cimport Call, Callables, call_head, put_dependency
from ftray._core.journal cimport LocalJournal
from ftray._core.ledgerrules cimport HELD_BACK, IN_PROGRESS, NEW, RECORDED, STALE_ATTEMPT, ledger_acknowledge, ledger_find
from ftray._core.records cimport HEAD_OK, CallHead, CallView, head_check
from ftray._core.runtime cimport core, core_enter, core_leave
from ftray._core.types cimport TASK_STREAM, Blob, Core
from ftray._core.wire cimport DepHead, ReplyHead, StreamStart, TaskHead, VALUE_INLINE

cdef object executions = None           # checkpoint.values.Execution, once needed


cdef class DurableCalls:
    """The calls of one incarnation.

    Parameters
    ----------
    once : ftray.checkpoint.exactly_once.ExactlyOnce
        Whose gate is open.
    epoch : int
        History and epoch of the incarnation.
    """

    def __init__(self, once, uint64_t epoch):
        self.once = once
        self.gate = once.gate
        self.journal = once.journal
        self.local = once.journal if type(once.journal) is LocalJournal else None
        from ftray.checkpoint.exactly_once import UNJOURNALLED
        from ftray.checkpoint.figures import STATUS_METHOD
        self.own = UNJOURNALLED
        self.figures = STATUS_METHOD
        self.readonly = frozenset(once.readonly_names)
        self.by_snapshot = frozenset(once.nondeterministic_names)
        self.poison = once.poison
        self.epoch = epoch
        self.parked = collections.deque()
        self.attached = {}
        self.verifier = None
        if once.options.verify:
            from ftray.checkpoint.verify import Verifier
            self.verifier = Verifier(once.session, once)
        once.releases.listen(self.advanced)
        if self.local is not None:
            self.local.set_callbacks_c(held_journal_says, NULL, core())
            # Answers are held here, not there: the journal's thread sends them, and a thread of Python's need not wake for
            # each commit. What was committed before it was asked is told now.
            once.releases.tell_by(self.local.tell_from)
            once.releases.durable(self.local.durable_position)

    def advanced(self, uint64_t position, uint64_t ceiling):
        """The journal, or the ceiling of what may leave, has moved.

        An answer that was held below the old ceiling until we had the lock may stand behind the position that we came
        with, and nobody else would come for it: so we look again.
        """
        cdef uint64_t told
        position = max(position, self.may_leave())
        while True:
            told = position
            with nogil:
                core_enter(core())
                held_limit(core(), told, ceiling)
                core_leave(core())
            position = self.may_leave()
            if position <= told:
                return

    cdef void rest(self) noexcept:
        """No call is at hand: what was journalled need not wait for more."""
        if self.local is not None:
            self.local.rest_c()

    cdef int view(self, Call call, CallView *v) except -1:
        """The call as records have it; good as long as the call's frame and `deps` are there."""
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        cdef char *p = call.t.frame.data + sizeof(TaskHead)
        cdef char *end = call.t.frame.data + call.t.frame.size
        cdef Py_ssize_t size
        memset(v, 0, sizeof(CallView))
        v.head = call_head(&call.t)
        if v.head == NULL:
            raise RuntimeError("a call of an exactly-once actor came without its head")
        v.head_size = h.head_size
        v.method = PyUnicode_AsUTF8AndSize(call.method, &size)
        v.method_size = size
        if h.flags & TASK_STREAM:
            p += sizeof(StreamStart)
        if h.ndeps:
            p = self.skip_deps(call, p, end)
            v.deps = call.deps
            v.deps_size = len(call.deps)
        v.args = p
        v.args_size = h.args_size
        if p > end or h.args_size > <uint64_t>(end - p):
            raise RuntimeError("the frame of a call is cut short")
        return 0

    cdef char *skip_deps(self, Call call, char *p, char *end) except NULL:
        """Where the arguments begin; what was given by reference is kept by value in `call.deps`."""
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        cdef DepHead *d
        cdef Buf b
        cdef uint16_t i
        cdef bint fill = call.deps is None
        buf_init(&b)
        try:
            if fill and buf_put_u16(&b, h.ndeps) < 0:
                raise MemoryError()
            for i in range(h.ndeps):
                d = <DepHead *>p
                p += sizeof(DepHead)
                if p > end or (d.kind == VALUE_INLINE and d.size > <uint64_t>(end - p)):
                    raise RuntimeError("the frame of a call is cut short")
                if fill:
                    put_dependency(&b, d, p, &call.t.ch.worker)
                if d.kind == VALUE_INLINE:
                    p += d.size
            if fill:
                call.deps = PyBytes_FromStringAndSize(b.data, b.len)
        finally:
            buf_free(&b)
        return p

    # --- a call comes

    cdef Entrance enter(self, Callables callables, Call call) except *:
        """What to do with a call that has come."""
        cdef TaskHead *h = <TaskHead *>call.t.frame.data
        cdef CallView v
        cdef int outcome
        cdef bint stops
        call.nret = h.nret
        entry = callables.lookup(call.t.ch, h.fn)
        call.name, call.method = entry[1], entry[4]
        if h.flags & TASK_STREAM:
            from ftray.exceptions import NotSupportedError
            raise NotSupportedError(f'{call.name}: num_returns="streaming" and "dynamic" are not supported for exactly-once actors, whose '
                                    "answers wait until what they tell of is durable. Return a list")
        if call.method is not self.usual:
            if call.method in self.readonly:
                return self.enter_read(call)
            self.usual = None if call.method in self.by_snapshot else call.method
        self.view(call, &v)
        stops = self.stops(call)
        if (stops or (self.parked and not call.parked)) and ledger_find(self.gate.ledger.state, v.head) == NULL:    # else it needs no room
            ledger_acknowledge(self.gate.ledger.state, v.head)      # may make room for those before it
            self.park(call, stops)
            return ENTER_WAIT
        outcome = self.gate.admit_c(&v, True)
        call.position = self.gate.verdict_position          # also of a refusal, when it says something of its caller
        if outcome == NEW:
            if self.poison and self.call_id(&v) in self.poison:
                return self.poisoned(&v, call)
            call.entered = call.accepted = True
            return ENTER_RUN
        if outcome == RECORDED:
            self.status = self.gate.verdict_status
            self.reply = self.gate.verdict_reply.data[:self.gate.verdict_reply.size]
            return ENTER_REPLY
        if outcome == IN_PROGRESS:
            self.attached.setdefault(self.call_id(&v), []).append(call)
            return ENTER_ATTACHED
        if outcome == HELD_BACK:
            self.park(call, False)
            return ENTER_WAIT
        self.error = self.refusal(outcome, &v, call)
        return ENTER_ERROR

    cdef Entrance enter_read(self, Call call) except *:
        """A read-only method: it enters nothing, but what its caller knows must be of this history and attempt."""
        cdef CallView v
        cdef int outcome
        memset(&v, 0, sizeof(CallView))
        v.head = call_head(&call.t)
        if call.method == self.figures:
            return ENTER_RUN                    # for people: waits neither for the journal nor for a store that may not answer
        call.reads = True
        self.sees(call)
        if call.method in self.own:
            return ENTER_RUN                    # what every actor has says nothing of a history
        if self.stops(call):
            self.park(call, True)               # else it would be before calls that its caller made before it
            return ENTER_WAIT
        if v.head == NULL:
            return ENTER_RUN
        v.head_size = (<TaskHead *>call.t.frame.data).head_size
        outcome = self.gate.admit_c(&v, False)
        call.seen = max(call.seen, self.gate.verdict_position)
        if outcome == NEW:
            return ENTER_RUN
        call.reads = False
        self.error = self.refusal(outcome, &v, call)
        return ENTER_ERROR

    def full(self):
        """See `full_c`."""
        return self.full_c()

    cdef bint full_c(self) except -1:
        """Does so much wait for the journal that no call may start? Records, or answers: those of read-only methods have no other bound."""
        return (self.gate.full_c() or core().held_bytes > self.gate.most_waiting) and not self.once.releases.failed

    cdef bint stops(self, Call call) except -1:
        """Does a call wait for the journal, first or behind others? Where calls run beside each other those that may start have turns
        (`checkpoint.turns`), which look at the bound themselves."""
        return not core().beside and (self.stopped and not call.parked or self.full_c())

    cdef int sees(self, Call call) except -1:
        """A read-only call begins: its answer waits for all that it can see."""
        cdef uint64_t last = self.once.seen() if self.local is None or core().held_ceiling == 0 else self.local.last_c()
        call.seen = max(call.seen, last)
        return 0

    cdef int park(self, Call call, bint stops) except -1:
        """It waits for the journal (`stops`), or for room among the kept replies. The first asks for what all of them need."""
        if not call.parked:
            call.parked = True
            self.parked.append(call)
        if self.parked[0] is call:
            self.stopped = stops
            if stops:
                self.once.ask_room()
            else:
                self.ask(call)
        return 0

    cdef int unpark(self) except -1:
        """The first that waits goes on."""
        self.parked.popleft()
        self.stopped = self.stopped and len(self.parked) > 0
        return 0

    cdef int ask(self, Call call) except -1:
        """Its caller may have got replies since it sent the call, and send nothing more that says so. Asked once for each answer."""
        cdef Core *c = core()
        cdef uint64_t last = (self.journal.last_position if self.local is None else self.local.last_c()) + 1
        if call.asked == last:
            return 0
        call.asked = last
        with nogil:
            core_enter(c)
            held_ask(c, call.t.ch, call.t.seq, last - 1)
            core_leave(c)
        return 0

    cdef bytes call_id(self, const CallView *v):
        return PyBytes_FromStringAndSize(<const char *>(<const CallHead *>v.head).call_id, 16)

    cdef Entrance poisoned(self, const CallView *v, Call call) except *:
        """It has killed too often: it gets its error for good."""
        from ftray.checkpoint.replay import poisoned
        head = v.head[:v.head_size]
        self.status, self.reply, call.position = self.once.refuse(head, call.method, self.body(v), poisoned(head, call.method))
        return ENTER_REPLY

    cdef object refusal(self, int outcome, const CallView *v, Call call):
        from ftray._core.gate import Outcome
        from ftray.checkpoint.serving import refusal
        return refusal(Outcome(outcome), v.head[:v.head_size], call.method)

    # --- it runs, and has run

    cdef int begin(self, Call call) except -1:
        """An entered call starts to run."""
        cdef const char *head = call_head(&call.t)
        if self.local is not None:
            self.local.running_c(<const char *>(<const CallHead *>head).call_id)
        else:
            self.journal.running(PyBytes_FromStringAndSize(<const char *>(<const CallHead *>head).call_id, 16))
        return 0

    cdef bytes body(self, const CallView *v):
        return (v.deps[:v.deps_size] if v.deps_size else b"\0\0") + v.args[:v.args_size]

    cdef object execution_of(self, Call call):
        """The toolkit's record of an entered call: made when it first asks for something outside."""
        global executions
        cdef CallView v
        if call.outside is None:
            if executions is None:
                from ftray.checkpoint.values import Execution as executions
            self.view(call, &v)
            call.outside = executions(v.head[:v.head_size], call.method, self.body(&v), self.call_id(&v), self.gate)
        return call.outside

    cdef int finish(self, Call call, uint8_t status, Buf *b) except -1:
        """An entered call has run, and `b` (behind its ReplyHead) is its reply: record both. Its answer gets a position.

        `settle` comes next, when the answer has left: whoever waits for it does not wait for our books.
        """
        cdef CallView v
        cdef const char *reply = b.data + sizeof(ReplyHead)
        cdef size_t size = b.len - sizeof(ReplyHead)
        if call.outside is not None or (call.method is not self.usual and call.method in self.by_snapshot):
            call.position = self.once.finish(self.execution_of(call), status, PyBytes_FromStringAndSize(reply, size))
            if call.outside.callers:
                from ftray._checkpoint_host import tell_over
                tell_over(self.once, call.position, call.outside.callers)
        else:
            self.view(call, &v)
            if call.refused:
                self.once.will_not_run(v.head[:v.head_size])
            call.position = self.gate.record_c(&v, status, reply, size)
            call.unsettled = True
            if self.local is not None:
                self.local.running_c(NULL)
            else:
                self.journal.running(None)
        call.entered = False
        call.recorded = True
        return 0

    cdef int settle(self, Call call, uint8_t status) except -1:
        """A call that was recorded is entered as answered."""
        if call.unsettled:
            call.unsettled = False
            self.gate.settle_c(call_head(&call.t), (<TaskHead *>call.t.frame.data).head_size, status)
        return 0

    cdef int set_aside(self, Call call) except -1:
        """A call that is verified begins: keep the state before it. What every actor has is no method of the user's."""
        if call.entered or call.method not in self.own:
            call.before = self.verifier.before()
        return 0

    cdef object verify(self, Call call, uint8_t status, Buf *b):
        """Has it done what it would do again, or, read-only, nothing? The error otherwise."""
        from ftray.checkpoint.drive import drive
        from ftray.checkpoint.errors import CheckpointError
        before, call.before = call.before, None
        try:
            if not call.entered:
                self.verifier.unchanged(before, call.method)
                return None
            reply = PyBytes_FromStringAndSize(b.data + sizeof(ReplyHead), b.len - sizeof(ReplyHead))
            function = self.once.find_method(call.method)
            drive(self.verifier.run_again(before, self.execution_of(call), function, (status, reply)))
        except CheckpointError as error:
            return error
        return None

    async def verify_awaited(self, Call call, object result, object error):
        """`verify` on the event loop of an async actor. What changes the state still has its turn, so nothing runs beside it."""
        from ftray.checkpoint.errors import CheckpointError
        before, call.before = call.before, None
        try:
            if not call.entered:
                self.verifier.unchanged(before, call.method)
                return None
            reply = self.once.codec.encode_outcome(call.method, result, error, call.nret)
            function = self.once.find_method(call.method)
            await self.verifier.run_again(before, self.execution_of(call), function, reply)
        except CheckpointError as found:
            return found
        return None

    cdef int look(self, Call call) except -1:
        """A read-only call has run: its answer waits for what it has seen, and needs a look at the fence that is later than its
        beginning: a successor may have answered calls meanwhile. Without the key it is never answered, and this process ends."""
        cdef bint held
        if self.local is not None:
            held = self.local.open_c()
        else:
            held = self.journal.holds()
        call.position = call.seen if held else UINT64_MAX
        if not held:
            from ftray.checkpoint.errors import FencedError
            self.once.crash(FencedError("this incarnation does not hold its checkpoint key any more"))
        return 0

    cdef bint may_start(self, Call call) except -1:
        """An entered call that has waited has its turn. False: `error` says why it must not begin any more."""
        cdef CallView v
        if not self.gate.stale_c(call_head(&call.t)):
            return True
        self.view(call, &v)
        self.error = self.refusal(STALE_ATTEMPT, &v, call)
        self.forget(call)
        return False

    cdef uint64_t may_leave(self) except? 0:
        """Up to which position answers may leave now."""
        return self.local.durable_c() if self.local is not None else self.journal.durable_position

    cdef bint is_crash(self, object error) except -1:
        """Is this no reply but the end of the process?"""
        return not isinstance(error, Exception) or isinstance(error, MemoryError)

    cdef int crash(self, object error) except -1:
        """The method was interrupted half-way: this process ends as if it had been killed."""
        self.once.crash(error)
        return 0

    cdef object repetitions(self, Call call):
        """Calls that repeat `call`, which has just been answered. One that was not let in (a stale one, say, or another one with
        the same key) has none: who has the same name repeats the call that was."""
        cdef const char *head
        if not call.accepted or not self.attached:
            return ()
        head = call_head(&call.t)
        return self.attached.pop(PyBytes_FromStringAndSize(<const char *>(<const CallHead *>head).call_id, 16), ())

    cdef int forget(self, Call call) except -1:
        """An entered call will not run."""
        cdef const char *head = call_head(&call.t)
        call.entered = False
        self.gate.forget_c(head, (<TaskHead *>call.t.frame.data).head_size)
        return 0


cdef int acknowledged(DurableCalls d, Blob *frame) except -1:
    """ACK: a call head, of which only `acked` and the attempts count."""
    if head_check(frame.data, frame.size) == HEAD_OK:
        ledger_acknowledge(d.gate.ledger.state, frame.data)
    return 0


cdef int callers_done(DurableCalls d, Blob *frame) except -1:
    """CALLERS_DONE: u32 size, CallIDs, u32 size, roots. What was answered to them is not wanted any more."""
    cdef uint32_t parents, roots
    if frame.size < 8:
        return 0
    memcpy(&parents, frame.data, 4)
    if frame.size < 8 + <uint64_t>parents:
        return 0
    memcpy(&roots, frame.data + 4 + parents, 4)
    if frame.size < 8 + <uint64_t>parents + roots:
        return 0
    d.once.release(ids(frame.data + 4, parents), ids(frame.data + 8 + parents, roots))
    return 0


cdef list ids(const char *p, uint32_t size):
    return [p[at:at + 16] for at in range(0, size - size % 16, 16)]
