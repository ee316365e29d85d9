"""Recorded calls of an exactly-once actor, run again for recovery, where only their method has a part in them.

Owns: which calls those are (`PLAIN`: finished by this code, without outside values, blobs and refs among their arguments, of methods
that are no coroutines), and what one of them takes: its ledger entry, its context, its arguments, its reply compared as bytes.
Invariants: a call that is none of them is left untouched, for whoever sees to all others; of one that is, the ledger has the entry
before its method runs, and every reply is compared, here or, if its bytes differ, by who asked.

Leaves to others: reading the journal and what all other records mean (checkpoint.replay), replies that differ in their bytes
(checkpoint.compare), outside values (checkpoint.values).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.contextvars cimport PyContextVar_Reset, PyContextVar_Set
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from ftray._core.answers cimport encode_results, end_if_forked
from ftray._core.buf cimport Buf, buf_clear, buf_free, buf_init
from ftray._core.callargs cimport decode_args
from ftray._core.context cimport Context, context_begin, context_durable, context_end, thread_call
from ftray._core.identity cimport call_digest
from ftray._core.ledger cimport Ledger
from ftray._core.ledgerrules cimport ledger_replay
from ftray._core.records cimport HEAD_OK, RECORD_CALL, CallHead, RecordHead, head_check
from ftray._core.rules cimport REPLY_OK
from ftray._core.types cimport Blob, blob_drop, blob_value

cdef enum:
    NO_DEPS = 2                 # size of an args body before the argument bytes, without refs
    RECORDED_LIMIT = 1 << 31    # as in execution.pyx
    NO_PLAIN_METHOD = 0x20 | 0x80 | 0x100 | 0x200     # flags of code: generators and coroutines

cdef tuple PLAIN_RESULTS = (type(None), bool, int, float, str, bytes, list, tuple, dict, set, frozenset)


cdef struct View:               # of the record, as long as its bytes are there
    const CallHead *head
    const char *method
    const char *body            # of the arguments: the number of refs, none,
    const char *args            # and what is behind it
    const char *reply
    size_t head_size, method_size, args_size, reply_size
    uint64_t digest
    uint8_t status


cdef bint view(const char *p, size_t size, uint64_t code_version, View *v) noexcept nogil:
    """Is this the whole record of a call of the kind that runs here? What is wrong with one is for others to say."""
    cdef RecordHead h
    if size < sizeof(h):
        return False
    memcpy(&h, p, sizeof(h))
    if h.kind != RECORD_CALL or h.flags or h.nvalues or h.reserved[0] or h.reserved[1] or h.reserved[2] or h.code_version != code_version:
        return False
    p += sizeof(h)
    size -= sizeof(h)
    if h.head_size > size or h.method_size > size - h.head_size or h.args_size > size - h.head_size - h.method_size:
        return False
    if h.reply_size != size - h.head_size - h.method_size - h.args_size or h.args_size < NO_DEPS:
        return False
    v.head = <const CallHead *>p
    v.head_size, v.method_size, v.args_size, v.reply_size = h.head_size, h.method_size, h.args_size - NO_DEPS, h.reply_size
    v.method = p + v.head_size
    v.body = v.method + v.method_size
    v.args = v.body + NO_DEPS
    v.reply = v.args + v.args_size
    v.digest, v.status = h.digest, h.status
    if v.body[0] or v.body[1] or head_check(p, v.head_size) != HEAD_OK:
        return False
    return call_digest(v.method, v.method_size, v.body, NO_DEPS, v.args, v.args_size) == v.digest


cdef class Reruns:
    """The plain calls of one recovery.

    Parameters
    ----------
    once : ftray.checkpoint.exactly_once.ExactlyOnce
        Its key is claimed, its ledger that of the snapshot restored.
    class_name : str
        Of the actor, for errors.

    Attributes
    ----------
    result : object
    error : Exception or None
        Of the call that has run last, if its reply is to be compared.
    """

    cdef Ledger ledger
    cdef object once, current, execution, awaited, is_awaited, no_loop, check_result
    cdef dict methods                   # by the bytes of their names: (name, function), or None
    cdef str class_name
    cdef uint64_t code_version
    cdef uint32_t epoch
    cdef Buf reply
    cdef readonly object result, error

    def __cinit__(self):
        buf_init(&self.reply)

    def __init__(self, once, str class_name not None):
        from ftray.checkpoint.drive import no_loop
        from ftray.checkpoint.running import awaited, check_result, is_awaited
        from ftray.checkpoint.values import Execution, current
        self.once, self.ledger, self.class_name = once, once.ledger, class_name
        self.code_version, self.epoch = once.code_version, once.log.epoch
        self.current, self.execution = current, Execution
        self.awaited, self.is_awaited, self.no_loop, self.check_result = awaited, is_awaited, no_loop, check_result
        self.methods = {}

    def __dealloc__(self):
        buf_free(&self.reply)

    def run(self, bytes payload not None, uint64_t position):
        """Run a record's call again.

        Returns
        -------
        bool or None
            True: it has run, and its reply is the one recorded. False: it has run, and `result` and `error` may say the same as the recorded
            reply, or not. None: it is not one for this, and nothing was done.

        Raises
        ------
        ReplayDivergedError
            It asked for an outside value, which it did not the first time.
        CheckpointOptionError
            It waits for what only an event loop could give.
        BaseException
            What is no reply but the end of the process.
        """
        cdef View v
        cdef const char *p = payload
        self.result = self.error = None
        if not view(p, len(payload), self.code_version, &v):
            return None
        name, function = self.method(&v)
        if function is None or not self.enter(&v, position):
            return None
        execution = self.execution(
            (<const char *>v.head)[:v.head_size], name, v.body[:NO_DEPS + v.args_size],
            PyBytes_FromStringAndSize(<const char *>v.head.call_id, 16), None)
        self.call(&v, execution, function)
        execution.ended()
        if self.error is not None or v.status != REPLY_OK or not self.same(&v, name):
            return False
        self.result = None
        return True

    cdef tuple method(self, const View *v):
        """The method of a call and its name; None in its place if that is not one for this."""
        cdef bytes key = v.method[:v.method_size]
        found = self.methods.get(key)
        if found is None:
            try:
                name = key.decode()
            except UnicodeDecodeError:
                name = ""
            function = self.once.find_method(name)
            code = getattr(getattr(function, "__func__", function), "__code__", None)
            if code is None or code.co_flags & NO_PLAIN_METHOD:
                function = None
            found = self.methods[key] = (name, function)
        return found

    cdef bint enter(self, const View *v, uint64_t position) except -1:
        """Have the ledger know the call. False: it contradicts what is there."""
        cdef Blob *reply = blob_value(v.reply, v.reply_size)
        if reply == NULL:
            raise MemoryError(f"no memory for a reply of {v.reply_size} bytes")
        if not ledger_replay(self.ledger.state, <const char *>v.head, v.digest, v.status, reply, position):
            blob_drop(reply)
            return False
        return True

    cdef int call(self, const View *v, execution, function) except -1:
        """See `checkpoint.running.run_method`: this is the same, without a coroutine for each step."""
        cdef Context saved
        cdef uint8_t task_id[24]
        cdef bint waits = False
        arguments = decode_args(v.args, v.args_size, None, None)
        memcpy(task_id, v.head.call_id, 16)
        memcpy(task_id + 16, v.head.parent, 8)
        token = PyContextVar_Set(self.current, execution)
        try:
            # What it submits is named by the call's head, as it was the first time.
            context_begin(&saved, task_id, v.head.call_id, 0, 0, v.head.nattempts + 1, <const char *>v.head, <uint32_t>v.head_size)
            context_durable(thread_call(), self.epoch)
            try:
                if arguments[1] is None:
                    result = function(*arguments[0])
                else:
                    result = function(*arguments[0], **arguments[1])
                if type(result) not in PLAIN_RESULTS and self.is_awaited(result):
                    coroutine = self.awaited(result)
                    try:
                        coroutine.send(None)
                        waits = True
                        coroutine.close()
                    except StopIteration as done:
                        result = done.value
            finally:
                end_if_forked()
                if context_end(&saved):
                    self.once.ended_calls.append(execution.call_id)
            if type(result) not in PLAIN_RESULTS:
                self.check_result(result)
            self.result = result
        except BaseException as error:
            if not execution.exits:
                if self.once.is_crash(error):
                    raise
                self.error = error
        finally:
            PyContextVar_Reset(self.current, token)
        if waits:
            raise self.no_loop()
        return 0

    cdef bint same(self, const View *v, str name) except -1:
        """Is the reply, byte for byte, the one recorded?"""
        cdef list refs = []
        buf_clear(&self.reply)
        try:
            encode_results(&self.reply, f"{self.class_name}.{name}", 1, self.result, refs, RECORDED_LIMIT)
        except Exception:               # then the reply is an error that says so
            return False
        return not refs and self.reply.len == v.reply_size and memcmp(self.reply.data, v.reply, v.reply_size) == 0
