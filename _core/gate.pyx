"""The gate of an exactly-once actor: ledger, records and journal, as an engine calls them around a call.

    admit    may it run? (from the ledger; nothing is written)
    start    it is about to send something: recorded so far, to be run again at its place after a crash
    value    a started call has got an outside value
    finish   it has run: recorded with its reply, then entered as answered
    full     does so much wait for the medium that no further call may start?
    release  callers that can never call again: recorded, then forgotten

Owns: the ledger, and the order "first the record, then the ledger": an append that raises leaves the call accepted. Invariants: a call
is finished, started or forgotten only while it is accepted. Leaves to others: when a record is durable and an answer
may leave (position), which call runs, and replay (`replayed` takes the records that the session reads).
"""

from collections import namedtuple
from enum import IntEnum

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from ftray._core.buf cimport Buf, buf_clear, buf_free, buf_init
from ftray._core.identity cimport derive_call_id
from ftray._core.journal cimport LocalJournal, Part
from ftray._core.ledger cimport Ledger
from ftray._core.ledgerrules cimport (CYCLE, DEFAULT_BOUND_BYTES, DEFAULT_BOUND_CALLS, EXPIRED, HELD_BACK, IN_PROGRESS, MISMATCH, NEW,
                                      RECORDED, ROLLED_BACK, STALE_ATTEMPT, Admission, ledger_admit, ledger_find, ledger_forget,
                                      ledger_release_caller, ledger_settle, ledger_stale)
from ftray._core.ledgertypes cimport ENTRY_ACCEPTED, Entry
from ftray._core.records cimport (ARGS_BLOB, RECORD_CALL, RECORD_START, REPLY_BLOB, ROOT_SESSION, CallHead, CallView, HeadFault, deps_measure,
                                  head_check, head_write, raise_head_fault, record_write, view_digest)
from ftray._core.records import (CallRecord, ReleaseRecord, SeenRecord, StartRecord, ValueRecord, encode_release, encode_seen,
                                 encode_value)
from ftray._core.types cimport Blob, Id16, blob_drop, blob_value, mono_ns

Verdict = namedtuple("Verdict", "outcome status reply position")
Verdict.__doc__ = """What `Gate.admit` says. `status`, `reply` and `position` are those of a recorded call; otherwise 0, None and 0. Whatever the
outcome, its answer waits for `position`."""


Outcome = IntEnum("Outcome", {
    "NEW": NEW,                         # entered as accepted: run it
    "IN_PROGRESS": IN_PROGRESS,         # the same call is being run: answer both
    "RECORDED": RECORDED,               # answer this, when its position is durable
    "MISMATCH": MISMATCH,               # a known identity, another method or other arguments
    "STALE_ATTEMPT": STALE_ATTEMPT,     # its caller has been executed again since
    "EXPIRED": EXPIRED,                 # it has run, and its reply is gone
    "ROLLED_BACK": ROLLED_BACK,         # its caller knows a history that was given up
    "CYCLE": CYCLE,                     # the chain of calls comes back to this actor
    "HELD_BACK": HELD_BACK,             # too many replies without acknowledgement: its caller asks again, later
}, module=__name__)
Outcome.__doc__ = "What becomes of a call."


cdef class NullJournal:
    """A journal that keeps nothing: positions count up, nothing waits. For models, and to measure what is beside the journal."""

    def append(self, payload):
        """Position of a record that is dropped."""
        self.last_position += 1
        return self.last_position


cdef uint64_t append_null(object journal, const char *payload, size_t size) except 0:
    (<NullJournal>journal).last_position += 1
    return (<NullJournal>journal).last_position


cdef uint64_t append_local(object journal, const char *payload, size_t size) except 0:
    cdef Part part
    cdef int code = 0
    cdef uint64_t position
    part.data, part.size = payload, size
    position = (<LocalJournal>journal).append_c(&part, 1, &code)
    if position == 0:
        raise (<LocalJournal>journal)._error(code)
    return position


cdef AppendFunction append_function(object journal):
    """The C function that appends to journals of this type. A journal implemented in C gets its line here; it must be final, or a
    subclass that overrides `append` would be passed by."""
    if type(journal) is NullJournal:
        return append_null
    if type(journal) is LocalJournal:
        return append_local
    return NULL


cdef class Gate:
    """The gate of one incarnation of an actor.

    Parameters
    ----------
    journal : Journal
        Its `append(payload: bytes) -> int` gives positions from 1; `full` looks at its `waiting_bytes`.
    callee_key : bytes
        Of the actor, 16 bytes.
    history : int
        Number of the present history of the state.
    code_version : int
        Hash of the actor's code, for its records: 64 bits.
    reply_bound_bytes, reply_bound_calls : int
        See `Ledger`.
    put_blob : callable, optional
        ``put_blob(content: bytes) -> str`` makes a blob durable in the store and returns its name. Without it records contain
        everything.
    blob_bytes : int
        Arguments and replies above this size go as blobs.
    most_waiting : int
        With more bytes on their way to the medium, records and blobs together, the gate is `full`.
    """

    def __cinit__(self):
        buf_init(&self.scratch)
        self.ledger = Ledger.__new__(Ledger)        # so that there is one whatever __init__ raises
        self.blobs = {}

    def __init__(self, journal, callee_key, uint64_t history, uint64_t code_version, *, reply_bound_bytes=DEFAULT_BOUND_BYTES,
                 reply_bound_calls=DEFAULT_BOUND_CALLS, put_blob=None, size_t blob_bytes=65536, uint64_t most_waiting=UINT64_MAX):
        self.ledger = Ledger(callee_key, history, reply_bound_bytes=reply_bound_bytes, reply_bound_calls=reply_bound_calls)
        self.journal = journal
        self.append_python = journal.append
        self.append_c = append_function(journal)
        self.local = journal if type(journal) is LocalJournal else None
        self.most_waiting = most_waiting
        self.code_version = code_version
        self.put_blob = put_blob
        self.blob_bytes = blob_bytes if put_blob is not None else <size_t>UINT64_MAX

    def __dealloc__(self):
        buf_free(&self.scratch)
        if self.unsettled != NULL:
            blob_drop(self.unsettled)

    # --- for engines in C

    cdef int admit_c(self, const CallView *c, bint mutating) except -1:
        cdef Entry *e
        cdef HeadFault fault = head_check(c.head, c.head_size)
        cdef Admission outcome
        if fault:
            raise_head_fault(fault, c.head_size)
        outcome = ledger_admit(self.ledger.state, c.head, view_digest(c) if mutating else 0, mutating, &e)
        self.verdict_reply = NULL
        self.verdict_position = 0
        if self.ledger.state.newer:
            return self.admit_newer(c, outcome)
        if outcome == RECORDED:
            self.verdict_status, self.verdict_position, self.verdict_reply = e.status, e.position, e.reply
        return outcome

    cdef int admit_newer(self, const CallView *c, int outcome) except -1:
        """A call that enters nothing comes from a newer attempt of its caller: that is recorded before it is answered, or a
        successor would let the older attempt in."""
        cdef bytes head = PyBytes_FromStringAndSize(c.head, c.head_size)
        cdef Entry *e
        payload = encode_seen(head)
        self.verdict_position = self.append(payload, len(payload))
        if outcome == RECORDED:
            e = ledger_find(self.ledger.state, c.head)      # after what may have been Python code
            if e == NULL or e.reply == NULL:
                raise LookupError(f"call {call_id_of(c.head).hex()} has gone from the ledger")
            self.verdict_status, self.verdict_reply = e.status, e.reply
        return outcome

    cdef bint full_c(self) except -1:
        cdef uint64_t records = self.local.waiting_c() if self.local is not None else self.journal.waiting_bytes
        return records + self.blobs_waiting > self.most_waiting

    cdef bint stale_c(self, const char *head) noexcept nogil:
        return ledger_stale(self.ledger.state, head)

    cdef int forget_c(self, const char *head, size_t head_size) except -1:
        cdef Entry *e = accepted(self.ledger, head, head_size)
        self.blobs.pop(call_id_of(head), None)
        ledger_forget(self.ledger.state, e)
        return 0

    cdef uint64_t start_c(self, const CallView *c) except 0:
        cdef Entry *e = accepted(self.ledger, c.head, c.head_size)
        return self.log(RECORD_START, c, e.digest, 0, NULL, 0)

    cdef uint64_t record_c(self, const CallView *c, uint8_t status, const char *reply, size_t reply_size) except 0:
        cdef Entry *e = accepted(self.ledger, c.head, c.head_size)
        cdef Blob *answer
        if self.unsettled != NULL:
            raise RuntimeError("a call was recorded and never settled")
        answer = blob_value(reply, reply_size)
        if answer == NULL:
            raise MemoryError(f"no memory for a reply of {reply_size} bytes")
        try:
            self.unsettled_position = self.log(RECORD_CALL, c, e.digest, status, reply, reply_size)
        except:
            blob_drop(answer)
            raise
        self.unsettled = answer
        return self.unsettled_position

    cdef int settle_c(self, const char *head, size_t head_size, uint8_t status) except -1:
        cdef Entry *e = accepted(self.ledger, head, head_size)      # after what may have been Python code
        ledger_settle(self.ledger.state, e, status, self.unsettled, self.unsettled_position)
        self.unsettled = NULL
        return 0

    cdef uint64_t finish_c(self, const CallView *c, uint8_t status, const char *reply, size_t reply_size) except 0:
        cdef uint64_t position = self.record_c(c, status, reply, reply_size)
        self.settle_c(c.head, c.head_size, status)
        return position

    cdef uint64_t log(self, uint8_t kind, const CallView *c, uint64_t digest, uint8_t status, const char *reply, size_t reply_size) except 0:
        """Append a CALL or START record."""
        if c.method_size > 0xffff:
            raise ValueError(f"a method's name has at most 65535 bytes, not {c.method_size}")
        if c.deps_size + c.args_size > self.blob_bytes or reply_size > self.blob_bytes:
            return self.log_large(kind, c, digest, status, PyBytes_FromStringAndSize(reply, reply_size))
        buf_clear(&self.scratch)
        if record_write(&self.scratch, kind, 0, c, digest, self.code_version, status, reply, reply_size) < 0:
            raise MemoryError(f"no memory for the record of a call with {c.args_size} bytes of arguments")
        return self.append(self.scratch.data, self.scratch.len)

    cdef uint64_t log_large(self, uint8_t kind, const CallView *c, uint64_t digest, uint8_t status, bytes reply) except 0:
        """The same, with blobs in place of what is large; they are durable before the record that names them."""
        cdef CallView small = c[0]
        cdef uint8_t flags = 0
        cdef bytes call_id = call_id_of(c.head)
        cdef bytes args_name
        if c.deps_size + c.args_size > self.blob_bytes:
            if call_id not in self.blobs:
                self.blobs[call_id] = self.put_blob(body_of(c))
            args_name = (<str>self.blobs[call_id]).encode()
            small.args, small.args_size, small.deps, small.deps_size = args_name, len(args_name), <const char *>NULL, 0
            flags |= ARGS_BLOB
        if <size_t>len(reply) > self.blob_bytes:
            reply = (<str>self.put_blob(reply)).encode()
            flags |= REPLY_BLOB
        buf_clear(&self.scratch)
        if record_write(&self.scratch, kind, flags, &small, digest, self.code_version, status, reply, len(reply)) < 0:
            raise MemoryError("no memory for the record of a call")
        position = self.append(self.scratch.data, self.scratch.len)
        if kind == RECORD_CALL:
            self.blobs.pop(call_id, None)
        return position

    cdef uint64_t append(self, const char *payload, size_t size) except 0:
        if self.append_c != NULL:
            return self.append_c(self.journal, payload, size)
        position = self.append_python(payload[:size])
        if position < 1:
            raise ValueError(f"the journal gave position {position}; positions count from 1")
        return position

    # --- for engines in Python

    def admit(self, bytes head not None, str method not None, bytes args not None, bint mutating):
        """May this call run?

        Parameters
        ----------
        head, method, args
            The call's head, its method's name, and its args body.
        mutating : bool
            False for a read-only method: it is not entered, only its caller is checked.

        Returns
        -------
        Verdict

        Raises
        ------
        CallHeadError, ValueError
            The head or the args body is not valid.
        """
        cdef CallView c
        name = method.encode()
        fill(&c, head, name, args)
        outcome = Outcome(self.admit_c(&c, mutating))
        if self.verdict_reply == NULL:
            return Verdict(outcome, 0, None, self.verdict_position)
        return Verdict(outcome, self.verdict_status, self.verdict_reply.data[:self.verdict_reply.size], self.verdict_position)

    @property
    def full(self):
        """Whether no further call may start for now: more than `most_waiting` is on its way to the medium. What runs goes on, so that
        it may become more by what one call brings."""
        return self.full_c()

    def blobs_wait(self, int64_t size):
        """So many bytes of blobs more are on their way; negative: fewer."""
        self.blobs_waiting += size

    def forget(self, bytes head not None):
        """An accepted call did not run, and never will: it may come again.

        Raises
        ------
        LookupError
            No such call is under way.
        """
        self.forget_c(head, len(head))

    def stale(self, bytes head not None):
        """Whether an accepted call must not start: a newer attempt of its caller has come since, and did not ask for it."""
        return self.ledger.stale(head)

    def start(self, bytes head not None, str method not None, bytes args not None, values):
        """Record that a call has begun, with the outside values that it has so far; returns the position.

        Raises
        ------
        LookupError
            No such call is under way.
        """
        cdef CallView c
        name = method.encode()
        fill(&c, head, name, args)
        listed = listing(values)
        c.values, c.values_size, c.nvalues = <const char *>listed, len(listed), len(values)
        return self.start_c(&c)

    def value(self, bytes call_id not None, uint32_t nth, bytes data not None):
        """Record the n-th outside value, from 0, of a started call; returns the position."""
        payload = encode_value(call_id, nth, data)
        return self.append(payload, len(payload))

    def finish(self, bytes head not None, str method not None, bytes args not None, values, uint8_t status, bytes reply not None):
        """Record a call that has run, with all its outside values and its reply; returns the position.

        Raises
        ------
        LookupError
            No such call is under way.
        Exception
            What the journal raises; the call is still under way.
        """
        cdef CallView c
        name = method.encode()
        fill(&c, head, name, args)
        listed = listing(values)
        c.values, c.values_size, c.nvalues = <const char *>listed, len(listed), len(values)
        return self.finish_c(&c, status, reply, len(reply))

    def release(self, parents, roots):
        """Record and forget callers, and roots with all their callers, that can never call again and have been answered.

        Those that are not known are not recorded.
        """
        parents = [each for each in parents if self.ledger.knows_caller(each)]
        roots = [each for each in roots if self.ledger.knows_root(each)]
        if not parents and not roots:
            return
        payload = encode_release(parents, roots)
        self.append(payload, len(payload))
        self.forget_callers(parents, roots)

    def replayed(self, record, uint64_t position=0):
        """Take over a record that is read back from the journal; nothing is written.

        Parameters
        ----------
        record : CallRecord, StartRecord, ValueRecord, ReleaseRecord or SeenRecord
            With its reply, also if a blob has it (``record._replace(reply=...)``).
        position : int
            Its position in the journal. 0, which is durable in every journal, when nobody asks.

        Raises
        ------
        ValueError
            The ledger has the call already or with another digest, or the record lacks its reply.
        """
        if isinstance(record, CallRecord):
            if record.reply is None:
                raise ValueError(f"this record needs its reply: read blob {record.reply_blob!r} and replace `reply`")
            self.ledger.replay(record.head, record.digest, record.status, record.reply, position)
        elif isinstance(record, StartRecord):
            self.ledger.replay(record.head, record.digest, 0, None, position)
        elif isinstance(record, ReleaseRecord):
            self.forget_callers(record.parents, record.roots)
        elif isinstance(record, SeenRecord):
            self.ledger.see(record.head)
        elif not isinstance(record, ValueRecord):
            raise TypeError(f"what is replayed is a decoded record, not {record!r}")

    def forget_callers(self, parents, roots):
        """Forget callers without a record."""
        for each in parents:
            self.ledger.release_caller(each)
        for each in roots:
            self.ledger.release_root(each)


cdef Entry *accepted(Ledger ledger, const char *head, size_t size) except NULL:
    """The entry of a call that is under way."""
    cdef HeadFault fault = head_check(head, size)
    cdef Entry *e
    if fault:
        raise_head_fault(fault, size)
    e = ledger_find(ledger.state, head)
    if e == NULL or e.state != ENTRY_ACCEPTED:
        raise LookupError(f"call {call_id_of(head).hex()} is not under way: it was never accepted, or it has ended")
    return e


cdef bytes call_id_of(const char *head):
    return PyBytes_FromStringAndSize(<const char *>(<const CallHead *>head).call_id, 16)


cdef bytes body_of(const CallView *c):
    return (c.deps[:c.deps_size] if c.deps_size else b"\0\0") + c.args[:c.args_size]


cdef int fill(CallView *c, bytes head, bytes method, bytes args) except -1:
    """A view of Python objects, which must outlive it."""
    cdef const char *body = args
    cdef Py_ssize_t deps = deps_measure(body, len(args))
    if deps < 0:
        raise ValueError("args is not an args body: a count of refs, their values, the argument bytes")
    memset(c, 0, sizeof(CallView))
    c.head, c.head_size, c.method, c.method_size = head, len(head), method, len(method)
    c.deps, c.deps_size, c.args, c.args_size = body, deps, body + deps, len(args) - deps
    return 0


cdef bytes listing(values):
    return b"".join([len(<bytes>each).to_bytes(8, "little") + each for each in values])


def churn(Gate gate, uint32_t calls, uint32_t callers, uint32_t calls_each, uint32_t args_size, bint own_root):
    """For tests and figures: so many calls through the C API from callers that take turns; one that has made `calls_each` is released, and
    another begins. With `own_root` callers are roots themselves.

    Returns
    -------
    float
        Nanoseconds per call.
    """
    cdef CallHead h
    cdef CallView c
    cdef char head[76]
    cdef uint32_t attempt = 0
    cdef uint32_t i, turn, generation
    cdef uint8_t key[16]
    cdef bytes args = bytes(args_size)
    cdef const char *reply = b"reply"
    cdef uint64_t began
    memset(&h, 0, sizeof(h))
    memset(&c, 0, sizeof(c))
    memcpy(key, &gate.ledger.state.key, 16)
    h.root_kind, h.nattempts = ROOT_SESSION, 1
    c.head, c.head_size, c.method, c.method_size = head, sizeof(head), "incr", 4
    c.args, c.args_size = args, args_size
    began = mono_ns()
    for i in range(calls):
        turn = i // callers
        generation = turn // calls_each
        h.n = h.acked = turn % calls_each + 1
        (<uint32_t *>h.parent)[0], (<uint32_t *>h.parent)[1] = i % callers + 1, generation
        if own_root:
            memcpy(h.root, h.parent, 16)
        derive_call_id(h.parent, key, h.n, 0, h.call_id)
        head_write(head, &h, &attempt, NULL)
        if gate.admit_c(&c, True) != NEW:
            raise AssertionError(f"call {i} is not new")
        gate.finish_c(&c, 0, reply, 5)
        if h.n == calls_each:
            ledger_release_caller(gate.ledger.state, <const Id16 *>h.parent)
    return (mono_ns() - began) / <double>max(calls, 1)
