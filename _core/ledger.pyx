"""The ledger of an exactly-once actor as an object of Python's: checks what it is given, and asks the rules (ledgerrules.pyx)."""

from libc.stdint cimport INT64_MAX, uint8_t, uint64_t
from libcpp.vector cimport vector
from ftray._core.ledgerfile cimport DumpFault, ledger_dump, ledger_load
from ftray._core.ledgerrules cimport (DEFAULT_BOUND_BYTES, DEFAULT_BOUND_CALLS, RECORDED, Admission, id_at, ledger_admit, ledger_find, ledger_forget,
                                      ledger_release_caller, ledger_release_root, ledger_replay, ledger_see, ledger_settle, ledger_stale)
from ftray._core.ledgertypes cimport ENTRY_ACCEPTED, ENTRY_DONE, Caller, CallerP, Entry, LedgerState
from ftray._core.records cimport HEAD_KEYED, HEAD_OK, CallHead, HeadFault, head_check, raise_head_fault
from ftray._core.types cimport Blob, Id16, blob_drop, blob_value


class LedgerFormatError(ValueError):
    """These bytes are not a whole, unchanged ledger of a version that is known."""


cdef const char *checked(bytes head) except NULL:
    cdef const char *p = head
    cdef HeadFault fault = head_check(p, len(head))
    if fault != HEAD_OK:
        raise_head_fault(fault, len(head))
    return p


cdef Id16 id_of(id) except *:
    if not isinstance(id, bytes) or len(id) != 16:
        raise ValueError(f"an identity is 16 bytes, not {id!r}")
    return id_at(<const char *>id)


cdef class Ledger:
    """The ledger of one actor; `ledgerrules.pyx` says its rules.

    Parameters
    ----------
    callee_key : bytes
        The actor's own, 16 bytes (`identity.derive_callee_key`).
    history : int
        Number of the present history of its state, from 1; 0 when nothing was ever rolled back and no caller knows one.
    reply_bound_bytes, reply_bound_calls : int
        Bytes of kept replies, and calls accepted or answered, beyond which replies go.
    """

    def __cinit__(self):
        self.state = new LedgerState()

    def __init__(self, callee_key, uint64_t history=0, *, uint64_t reply_bound_bytes=DEFAULT_BOUND_BYTES, uint64_t reply_bound_calls=DEFAULT_BOUND_CALLS):
        cdef Id16 key = id_of(callee_key)
        if reply_bound_calls == 0 or reply_bound_calls > <uint64_t>INT64_MAX or reply_bound_bytes > <uint64_t>INT64_MAX:
            raise ValueError(f"the reply bounds are from 1 call and 0 bytes to 2**63 - 1, not {reply_bound_calls} calls, {reply_bound_bytes} bytes")
        self.state.clear()
        self.state.key = key
        self.state.history = history
        self.state.bound_bytes = reply_bound_bytes
        self.state.bound_calls = reply_bound_calls

    def __dealloc__(self):
        del self.state

    @property
    def history(self):
        """Number of the present history."""
        return self.state.history

    def accept(self, bytes head not None, uint64_t digest, bint mutating=True):
        """May this call run?

        Parameters
        ----------
        head : bytes
            Its head.
        digest : int
            Of its method and arguments (`records.digest`).
        mutating : bool
            False: it is not entered, only its caller is checked.

        Returns
        -------
        tuple
            Outcome (a number of `gate.Outcome`), status, reply (None unless recorded), position.

        Raises
        ------
        CallHeadError
            The head is not valid.
        """
        cdef Entry *e
        cdef Admission outcome = ledger_admit(self.state, checked(head), digest, mutating, &e)
        if outcome != RECORDED:
            return outcome, 0, None, 0
        return outcome, e.status, e.reply.data[:e.reply.size], e.position

    def look(self, bytes head not None):
        """What is known of a call; changes nothing.

        Returns
        -------
        tuple
            "done", "accepted", "expired", "absent", or "unknown" (of a caller that never called, or was released), then status, reply
            (None unless done) and position.
        """
        cdef const char *p = checked(head)
        cdef const CallHead *h = <const CallHead *>p
        cdef Entry *e = ledger_find(self.state, p)
        cdef Caller *c
        if e != NULL and e.state == ENTRY_DONE:
            return "done", e.status, e.reply.data[:e.reply.size], e.position
        if e != NULL:
            return "accepted", 0, None, 0
        if h.flags & HEAD_KEYED:
            return "expired" if self.state.keyed_expired.find(id_at(h.call_id)) != NULL else "absent", 0, None, 0
        c = self.state.caller(id_at(h.parent))
        if c != NULL and c.released:
            return "unknown", 0, None, 0
        if c != NULL and ((c.forgets and h.n < c.acked) or c.expired.contains(h.n)):
            return "expired", 0, None, 0
        return "absent" if c != NULL else "unknown", 0, None, 0

    def forget(self, bytes head not None):
        """An accepted call did not run, and never will: it may come again.

        Raises
        ------
        LookupError
            No such call is under way.
        """
        ledger_forget(self.state, self.accepted_entry(head))

    def finish(self, bytes head not None, uint8_t status, bytes reply not None, uint64_t position):
        """An accepted call has this reply, whose record has this position.

        Raises
        ------
        LookupError
            No such call is under way.
        """
        cdef Entry *e = self.accepted_entry(head)
        ledger_settle(self.state, e, status, blob_of(reply), position)

    cdef Entry *accepted_entry(self, bytes head) except NULL:
        cdef Entry *e = ledger_find(self.state, checked(head))
        if e == NULL or e.state != ENTRY_ACCEPTED:
            raise LookupError(f"call {head[40:56].hex()} is not under way: it was never accepted, or it has ended")
        return e

    def replay(self, bytes head not None, uint64_t digest, uint8_t status, bytes reply, uint64_t position):
        """Enter a call that a journal has; without a reply (None) one that had only started.

        Raises
        ------
        ValueError
            The ledger has the call already, or with another digest.
        """
        cdef Blob *answer = NULL
        cdef const char *p = checked(head)
        if reply is not None:
            answer = blob_of(reply)
        if not ledger_replay(self.state, p, digest, status, answer, position):
            blob_drop(answer)
            raise ValueError(f"call {head[40:56].hex()} is recorded twice, or with different arguments")

    def stale(self, bytes head not None):
        """Has a newer attempt of the caller come since this call was accepted, and not asked for it?"""
        return ledger_stale(self.state, checked(head))

    def see(self, bytes head not None):
        """The attempt that this head comes from has been seen."""
        ledger_see(self.state, checked(head))

    def release_caller(self, parent):
        """This caller can never run again, and its calls have been answered."""
        cdef Id16 id = id_of(parent)
        ledger_release_caller(self.state, &id)

    def release_root(self, root):
        """No caller of this root can ever run again, but for those inside of methods of exactly-once actors."""
        cdef Id16 id = id_of(root)
        ledger_release_root(self.state, &id)

    def knows_caller(self, parent):
        """Is anything known of this caller?"""
        return self.state.caller(id_of(parent)) != NULL

    def knows_root(self, root):
        """Is anything known of a caller of this root that its end releases?"""
        cdef vector[CallerP] callers
        cdef size_t i
        self.state.callers_of(id_of(root), &callers)
        for i in range(callers.size()):
            if not callers[i].inside:
                return True
        return False

    def begin_history(self, uint64_t number):
        """The state was taken back, and the ledger with it: heads that name another history are refused from now on.

        What the ledger has is in that state, and stays.

        Raises
        ------
        ValueError
            Histories only count up.
        """
        if number <= self.state.history:
            raise ValueError(f"a new history has a number above the present one, {self.state.history}, not {number}")
        self.state.history = number

    def dump(self):
        """All but the calls under way, as bytes (docs/storage-format.md)."""
        return ledger_dump(self.state)

    def load(self, bytes dump not None):
        """Become what a dump has; key and bounds stay, and replies beyond these go when calls come.

        Raises
        ------
        LedgerFormatError
            It is damaged, or of an unknown version; nothing changed.
        """
        cdef LedgerState *fresh = new LedgerState()
        cdef DumpFault fault
        fresh.key = self.state.key
        fresh.bound_bytes = self.state.bound_bytes
        fresh.bound_calls = self.state.bound_calls
        fault = ledger_load(fresh, dump, len(dump))
        if fault.reason != NULL:
            del fresh
            raise LedgerFormatError(f"this ledger of {len(dump)} bytes cannot be used, at byte {fault.at}: {fault.reason.decode()}")
        fresh.duplicates, fresh.mismatches = self.state.duplicates, self.state.mismatches
        fresh.refused, fresh.held_back = self.state.refused, self.state.held_back
        del self.state
        self.state = fresh

    def counters(self):
        """Figures for people.

        Returns
        -------
        dict of str to int
            `callers`; `calls` (accepted or answered), of which `accepted` are under way; `reply_bytes`; `expired`: identities without
            a reply; `released`: callers of which only the name is kept; and since the process began `duplicates`, `mismatches`,
            `refused` and `held_back`.
        """
        cdef LedgerState *l = self.state
        return {"callers": l.caller_count(), "calls": l.calls, "accepted": l.accepted, "reply_bytes": l.reply_bytes, "expired": l.expired,
                "released": l.ntombs, "duplicates": l.duplicates, "mismatches": l.mismatches, "refused": l.refused, "held_back": l.held_back}

    def __len__(self):
        return self.state.calls


cdef Blob *blob_of(bytes content) except NULL:
    cdef Blob *b = blob_value(content, len(content))
    if b == NULL:
        raise MemoryError(f"no memory for a reply of {len(content)} bytes")
    return b
