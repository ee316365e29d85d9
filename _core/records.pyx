"""Encodes and decodes call heads and journal records (layouts: records.pxd).

Owns: no state. Decoding is strict: a record is taken only if every size in it fits, nothing is left over, every number is
one that encoding writes, and the digest is that of the method and arguments; otherwise `RecordFormatError` (or, for a head,
`CallHeadError`) says what is wrong. Nothing is read beyond the bytes given. Leaves to others: checksums, positions and
epochs (the journal's framing), what is in a blob, what the bytes of arguments and replies mean.
"""

cimport cython

from collections import namedtuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from ftray._core.buf cimport Buf, buf_extend, buf_free, buf_init, buf_put
from ftray._core.identity cimport call_digest


class CallHeadError(ValueError):
    """The head of an exactly-once call is cut, or says what no caller writes."""


class RecordFormatError(ValueError):
    """A journal record is cut, or says what no writer writes."""


Head = namedtuple("Head", "root_kind keyed retry n acked root parent call_id history attempts chain")
Head.__doc__ = "The head of a call. `attempts` is a tuple of int, `chain` one of 16-byte callee keys."
CallRecord = namedtuple(
    "CallRecord", "head digest code_version method args args_blob values status reply reply_blob")
CallRecord.__doc__ = """A finished call. `head` is its bytes (`decode_head` reads them). Of `args` and `args_blob`, and of `reply` and
`reply_blob`, one is None: the bytes are here, or in the store's blob of that name."""
StartRecord = namedtuple("StartRecord", "head digest code_version method args args_blob values")
StartRecord.__doc__ = "A call that has sent something before it ended: it is run again at its place, with these values first."
ValueRecord = namedtuple("ValueRecord", "call_id nth data")
ValueRecord.__doc__ = "An outside value that a started call has got."
ReleaseRecord = namedtuple("ReleaseRecord", "parents roots")
ReleaseRecord.__doc__ = "Callers, and roots with all their callers, that can never call again."
SeenRecord = namedtuple("SeenRecord", "head")
SeenRecord.__doc__ = "A call that was known came from a newer attempt of its caller: the older ones are refused from now on."

HEAD_FAULTS = {
    HEAD_CUT: "it is cut",
    HEAD_LONG: "there are bytes after its end",
    HEAD_KIND: "the kind of its root is none of 0 (session), 1 (job), 2 (process)",
    HEAD_FLAGS: "it has unknown flags",
    HEAD_NUMBER: "calls are numbered from 1",
    HEAD_PARENT: "it names no caller and has no call_key",
    HEAD_KEYED_CALLER: "a call with a call_key has no parent, number or acknowledgement",
    HEAD_CALL_ID: "the call has no identity",
}


# --- heads

cdef size_t head_measure(const char *p, size_t available) noexcept nogil:
    cdef CallHead h
    cdef size_t size
    if available < sizeof(CallHead):
        return 0
    memcpy(&h, p, sizeof(CallHead))
    size = head_size(h.nattempts, h.nchain)
    return size if size <= available else 0


cdef bint no_id(const uint8_t *id) noexcept nogil:
    cdef uint64_t words[2]
    memcpy(words, id, 16)
    return words[0] == 0 and words[1] == 0


cdef HeadFault head_check(const char *p, size_t size) noexcept nogil:
    cdef const CallHead *h = <const CallHead *>p        # packed: any address will do
    cdef size_t measured = head_measure(p, size)
    if measured == 0:
        return HEAD_CUT
    if measured != size:
        return HEAD_LONG
    if h.root_kind > ROOT_PROCESS:
        return HEAD_KIND
    if h.flags & ~HEAD_KEYED:
        return HEAD_FLAGS
    if no_id(h.call_id):
        return HEAD_CALL_ID
    if h.flags & HEAD_KEYED:
        return HEAD_OK if no_id(h.parent) and h.n == 0 and h.acked == 0 else HEAD_KEYED_CALLER
    if h.n == 0:
        return HEAD_NUMBER
    return HEAD_PARENT if no_id(h.parent) else HEAD_OK


cdef raise_head_fault(HeadFault fault, size_t size):
    raise CallHeadError(f"the head of this call ({size} bytes) is not valid: {HEAD_FAULTS[fault]}. Caller and callee must "
                        "run the same version of ftray")


cdef int put_id(uint8_t *out, value, str name) except -1:
    if not isinstance(value, bytes) or PyBytes_GET_SIZE(value) != 16:
        raise ValueError(f"{name} is an identity, 16 bytes, not {value!r}")
    memcpy(out, PyBytes_AS_STRING(value), 16)
    return 0


def encode_head(*, int root_kind, bytes root not None, bytes parent not None, bytes call_id not None, uint32_t n, uint16_t retry=0, uint32_t acked=0,
                uint64_t history=0, bint keyed=False, attempts=(), chain=()):
    """The bytes of a head.

    Raises
    ------
    CallHeadError
        The parts do not make a valid head.
    ValueError, OverflowError
        An identity is not of 16 bytes, or a number does not fit.
    """
    cdef CallHead h
    cdef Buf out
    cdef uint32_t attempt
    cdef uint8_t key[16]
    cdef HeadFault fault
    memset(&h, 0, sizeof(h))
    h.root_kind, h.flags, h.retry, h.n, h.acked, h.history = root_kind, HEAD_KEYED if keyed else 0, retry, n, acked, history
    h.nattempts, h.nchain = len(attempts), len(chain)
    put_id(h.root, root, "root")
    put_id(h.parent, parent, "parent")
    put_id(h.call_id, call_id, "call_id")
    buf_init(&out)
    try:
        put(&out, &h, sizeof(h))
        for attempt in attempts:
            put(&out, &attempt, 4)
        for each in chain:
            put_id(key, each, "chain")
            put(&out, key, 16)
        fault = head_check(out.data, out.len)
        if fault:
            raise_head_fault(fault, out.len)
        return out.data[:out.len]
    finally:
        buf_free(&out)


def decode_head(bytes head not None):
    """Parts of a head.

    Parameters
    ----------
    head : bytes
        Exactly one head.

    Returns
    -------
    Head

    Raises
    ------
    CallHeadError
        It is cut, too long, or says what no caller writes.
    """
    cdef const char *p = head
    cdef const CallHead *h = <const CallHead *>p
    cdef HeadFault fault = head_check(p, len(head))
    cdef uint32_t attempt
    cdef int i
    if fault:
        raise_head_fault(fault, len(head))
    attempts = []
    p += sizeof(CallHead)
    for i in range(h.nattempts):
        memcpy(&attempt, p, 4)
        attempts.append(attempt)
        p += 4
    chain = [p[16 * i:16 * i + 16] for i in range(h.nchain)]
    return Head(h.root_kind, bool(h.flags & HEAD_KEYED), h.retry, h.n, h.acked, id_bytes(h.root), id_bytes(h.parent),
                id_bytes(h.call_id), h.history, tuple(attempts), tuple(chain))


cdef bytes id_bytes(const uint8_t *id):
    return (<const char *>id)[:16]


# --- calls: writing

cdef uint64_t view_digest(const CallView *c) noexcept nogil:
    return call_digest(c.method, c.method_size, c.deps, c.deps_size, c.args, c.args_size)


cdef Py_ssize_t deps_measure(const char *body, size_t size) noexcept nogil:
    cdef uint16_t ndeps
    cdef uint64_t length
    cdef size_t at = 2
    cdef int i
    if size < 2:
        return -1
    memcpy(&ndeps, body, 2)
    for i in range(ndeps):
        if size - at < 8:
            return -1
        memcpy(&length, body + at, 8)
        at += 8
        if length > size - at:
            return -1
        at += length
    return at


cdef int record_write(Buf *out, uint8_t kind, uint8_t flags, const CallView *c, uint64_t digest, uint64_t code_version,
                      uint8_t status, const char *reply, size_t reply_size) noexcept nogil:
    cdef RecordHead h
    cdef size_t deps_size = 0 if flags & ARGS_BLOB else c.deps_size if c.deps_size else 2
    cdef size_t total
    cdef char *p
    memset(&h, 0, sizeof(h))
    h.kind, h.flags, h.status = kind, flags, status
    h.method_size, h.head_size, h.nvalues = <uint16_t>c.method_size, <uint32_t>c.head_size, c.nvalues
    h.digest, h.code_version = digest, code_version
    h.args_size, h.reply_size = deps_size + c.args_size, reply_size
    total = sizeof(h) + c.head_size + c.method_size + h.args_size + c.values_size + reply_size
    p = buf_extend(out, total)
    if p == NULL:
        return -1
    p = append(p, &h, sizeof(h))
    p = append(p, c.head, c.head_size)
    p = append(p, c.method, c.method_size)
    if deps_size and not c.deps_size:
        memset(p, 0, deps_size)
        p += deps_size
    elif deps_size:
        p = append(p, c.deps, deps_size)
    p = append(p, c.args, c.args_size)
    p = append(p, c.values, c.values_size)
    append(p, reply, reply_size)
    return 0


cdef inline char *append(char *at, const void *src, size_t size) noexcept nogil:
    if size:
        memcpy(at, src, size)
    return at + size


cdef int put(Buf *out, const void *src, size_t size) except -1:
    if buf_put(out, src, size) < 0:
        raise MemoryError(f"no memory for {size} more bytes of a record")
    return 0


cdef bytes encode_run(uint8_t kind, bytes head, str method, args, args_blob, values, uint64_t code_version, int status, reply, reply_blob, digest):
    """A CALL or START record."""
    cdef CallView c
    cdef Buf out, listed
    cdef Py_ssize_t deps
    cdef uint8_t flags = (ARGS_BLOB if args_blob is not None else 0) | (REPLY_BLOB if reply_blob is not None else 0)
    cdef bytes name = method.encode()
    cdef bytes body = one_of(args, args_blob, "args")
    cdef bytes answer = one_of(reply, reply_blob, "reply") if kind == RECORD_CALL else b""
    cdef HeadFault fault = head_check(head, len(head))
    if fault:
        raise_head_fault(fault, len(head))
    if len(name) > 0xffff:
        raise ValueError(f"a method's name has at most 65535 bytes, not {len(name)}")
    memset(&c, 0, sizeof(c))
    c.head, c.head_size, c.method, c.method_size, c.args, c.args_size = head, len(head), name, len(name), body, len(body)
    if args_blob is None:
        deps = deps_measure(body, len(body))
        if deps < 0:
            raise ValueError("args is not an args body: a count of refs, their values, the argument bytes")
        c.deps, c.deps_size, c.args, c.args_size = c.args, deps, c.args + deps, c.args_size - deps
    elif digest is None:
        raise ValueError("the digest of arguments that are in a blob must be given")
    buf_init(&listed)
    buf_init(&out)
    try:
        put_values(&listed, values)
        c.values, c.values_size, c.nvalues = listed.data, listed.len, len(values)
        if record_write(&out, kind, flags, &c, view_digest(&c) if digest is None else digest, code_version, status, answer, len(answer)) < 0:
            raise MemoryError("no memory for a record")
        return out.data[:out.len]
    finally:
        buf_free(&listed)
        buf_free(&out)


cdef bytes one_of(content, blob, str name):
    if (content is None) == (blob is None):
        raise ValueError(f"either {name} or {name}_blob is given, not both or none")
    return content if blob is None else (<str>blob).encode()


cdef int put_values(Buf *out, values) except -1:
    cdef bytes value
    cdef uint64_t size
    for value in values:
        size = len(value)
        put(out, &size, 8)
        put(out, <const char *>value, size)
    return 0


def digest(str method not None, bytes args not None):
    """The digest by which a repeated call is known to be the same: 64 bits over the method's name and the args body.

    Raises
    ------
    ValueError
        `args` is not an args body.
    """
    cdef bytes name = method.encode()
    cdef const char *body = args
    cdef Py_ssize_t deps = deps_measure(body, len(args))
    if deps < 0:
        raise ValueError("args is not an args body: a count of refs, their values, the argument bytes")
    return call_digest(name, len(name), body, deps, body + deps, len(args) - deps)


def encode_call(bytes head not None, str method not None, bytes args, values, int status, bytes reply, *, uint64_t code_version,
                str args_blob=None, str reply_blob=None, digest=None):
    """A CALL record. Either the bytes of the args body and of the reply are given, or names of blobs that have them; with a blob for
    the args, `digest` too."""
    if not 0 <= status <= 255:
        raise ValueError(f"status is from 0 to 255, not {status}")
    return encode_run(RECORD_CALL, head, method, args, args_blob, values, code_version, status, reply, reply_blob, digest)


def encode_start(bytes head not None, str method not None, bytes args, values, *, uint64_t code_version, str args_blob=None, digest=None):
    """A START record."""
    return encode_run(RECORD_START, head, method, args, args_blob, values, code_version, 0, None, None, digest)


def encode_value(bytes call_id not None, uint32_t nth, bytes data not None):
    """A VALUE record."""
    cdef ValueHead h
    memset(&h, 0, sizeof(h))
    h.kind, h.nth, h.size = RECORD_VALUE, nth, len(data)
    put_id(h.call_id, call_id, "call_id")
    return (<char *>&h)[:sizeof(h)] + data


def encode_release(parents, roots):
    """A RELEASE record."""
    cdef ReleaseHead h
    cdef uint8_t id[16]
    memset(&h, 0, sizeof(h))
    h.kind, h.nparents, h.nroots = RECORD_RELEASE, len(parents), len(roots)
    for each in (*parents, *roots):
        put_id(id, each, "a released caller")
    return (<char *>&h)[:sizeof(h)] + b"".join(parents) + b"".join(roots)


def encode_seen(bytes head not None):
    """A SEEN record."""
    cdef SeenHead h
    cdef HeadFault fault = head_check(head, len(head))
    if fault:
        raise_head_fault(fault, len(head))
    memset(&h, 0, sizeof(h))
    h.kind, h.head_size = RECORD_SEEN, <uint32_t>len(head)
    return (<char *>&h)[:sizeof(h)] + head


# --- reading

@cython.internal
cdef class Reader:
    """Takes parts off the front of a record; what is not there raises."""
    cdef bytes record
    cdef const char *at
    cdef size_t left

    def __cinit__(self, bytes record):
        self.record = record
        self.at = record
        self.left = len(record)

    cdef const char *take(self, uint64_t size, str part) except NULL:
        cdef const char *p = self.at
        if size > self.left:
            raise RecordFormatError(f"this record is cut: its {part} has {size} bytes, of which {self.left} are there")
        self.at += size
        self.left -= size
        return p

    cdef bytes take_bytes(self, uint64_t size, str part):
        return PyBytes_FromStringAndSize(self.take(size, part), size)

    cdef str take_text(self, uint64_t size, str part):
        try:
            return self.take_bytes(size, part).decode()
        except UnicodeDecodeError as failure:
            raise RecordFormatError(f"the {part} of this record is no UTF-8: {failure}") from None

    cdef int end(self) except -1:
        if self.left:
            raise RecordFormatError(f"this record has {self.left} bytes after its end")
        return 0


def decode_record(record):
    """The parts of a journal record.

    Parameters
    ----------
    record : bytes-like
        The payload of one journal record.

    Returns
    -------
    CallRecord, StartRecord, ValueRecord, ReleaseRecord or SeenRecord

    Raises
    ------
    RecordFormatError
        It is cut, has bytes too many, is of no known kind, or contradicts itself.
    """
    cdef Reader r = Reader(record if type(record) is bytes else bytes(record))
    kind = (<const uint8_t *>r.at)[0] if r.left else 0
    if kind == RECORD_CALL or kind == RECORD_START:
        return read_run(r)
    if kind == RECORD_VALUE:
        return read_value(r)
    if kind == RECORD_RELEASE:
        return read_release(r)
    if kind == RECORD_SEEN:
        return read_seen(r)
    if not len(r.record):
        raise RecordFormatError("this record is empty")
    raise RecordFormatError(f"records of kind {kind} are not known to this version of ftray: a later one wrote it, or the journal is damaged")


cdef read_run(Reader r):
    cdef RecordHead h
    cdef uint64_t size
    cdef HeadFault fault
    cdef uint32_t i
    memcpy(&h, r.take(sizeof(h), "head"), sizeof(h))
    if h.flags & ~(ARGS_BLOB | REPLY_BLOB) or memcmp(h.reserved, b"\0\0\0", 3):
        raise RecordFormatError("this record has unknown flags: a later version of ftray wrote it, or the journal is damaged")
    if h.kind == RECORD_START and (h.status or h.reply_size or h.flags & REPLY_BLOB):
        raise RecordFormatError("this record is of a call that had only started, and has a reply")
    head = r.take_bytes(h.head_size, "call head")
    fault = head_check(head, len(head))
    if fault:
        raise RecordFormatError(f"the call head in this record is not valid: {HEAD_FAULTS[fault]}")
    method = r.take_text(h.method_size, "method")
    args = args_blob = reply = reply_blob = None
    if h.flags & ARGS_BLOB:
        args_blob = r.take_text(h.args_size, "name of the arguments' blob")
    else:
        args = r.take_bytes(h.args_size, "arguments")
        check_digest(method, args, h.digest)
    values = []
    for i in range(h.nvalues):
        memcpy(&size, r.take(8, "value's size"), 8)
        values.append(r.take_bytes(size, "value"))
    if h.kind == RECORD_START:
        r.end()
        return StartRecord(head, h.digest, h.code_version, method, args, args_blob, tuple(values))
    if h.flags & REPLY_BLOB:
        reply_blob = r.take_text(h.reply_size, "name of the reply's blob")
    else:
        reply = r.take_bytes(h.reply_size, "reply")
    r.end()
    return CallRecord(head, h.digest, h.code_version, method, args, args_blob, tuple(values), h.status, reply, reply_blob)


cdef int check_digest(str method, bytes args, uint64_t expected) except -1:
    if deps_measure(args, len(args)) < 0:
        raise RecordFormatError("the arguments in this record are cut")
    if digest(method, args) != expected:
        raise RecordFormatError(f"the digest of method {method!r} and its arguments is not the one recorded")
    return 0


cdef read_value(Reader r):
    cdef ValueHead h
    memcpy(&h, r.take(sizeof(h), "head"), sizeof(h))
    if h.flags or h.reserved:
        raise RecordFormatError("this record has unknown flags: a later version of ftray wrote it, or the journal is damaged")
    data = r.take_bytes(h.size, "value")
    r.end()
    return ValueRecord(id_bytes(h.call_id), h.nth, data)


cdef read_seen(Reader r):
    cdef SeenHead h
    cdef HeadFault fault
    memcpy(&h, r.take(sizeof(h), "head"), sizeof(h))
    if h.flags or h.reserved:
        raise RecordFormatError("this record has unknown flags: a later version of ftray wrote it, or the journal is damaged")
    head = r.take_bytes(h.head_size, "call head")
    fault = head_check(head, len(head))
    if fault:
        raise RecordFormatError(f"the call head in this record is not valid: {HEAD_FAULTS[fault]}")
    r.end()
    return SeenRecord(head)


cdef read_release(Reader r):
    cdef ReleaseHead h
    cdef uint32_t i
    memcpy(&h, r.take(sizeof(h), "head"), sizeof(h))
    if h.flags or h.reserved or h.reserved2:
        raise RecordFormatError("this record has unknown flags: a later version of ftray wrote it, or the journal is damaged")
    # Looked at before a list is made: the counts may be damaged.
    if 16 * (<uint64_t>h.nparents + h.nroots) != r.left:
        raise RecordFormatError(f"this record names {h.nparents} callers and {h.nroots} roots in {r.left} bytes")
    parents = tuple([r.take_bytes(16, "caller") for i in range(h.nparents)])
    roots = tuple([r.take_bytes(16, "root") for i in range(h.nroots)])
    return ReleaseRecord(parents, roots)
