"""Answers to calls: encoding what came of them, and what has to be registered before an answer leaves.

Owns: the layout of F_REPLY (ReplyHead, a RetHead and bytes for each return with the refs it contains, then refs of the
caller that this process still holds, and when the call ran). Invariants: values are encoded before any lock is taken, since that runs user
code; an answer that hands over or keeps refs leaves only after these are registered with their owners (borrows.pyx
holds it back as long as an acknowledgement is missing), for it ends the protection by the call; a process that the user's code
forked answers nothing, for the rings, the memory and the journal are its parent's.

Leaves to others: running calls, and which status an outcome has (worker.pyx).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.string cimport string
from libcpp.vector cimport vector

from ftray._core.borrows cimport borrow_grant, borrow_register_all, borrow_send
from ftray._core.buf cimport Buf, buf_extend, buf_free, buf_init, buf_put
from ftray._core.channel cimport FRAME_HEADER, F_REPLY, FrameHeader, chan_begin, chan_commit
from ftray._core.held cimport held_push
from ftray._core.objects cimport ObjectRef, usable
from ftray._core.puts cimport place_shared
from ftray._core.refs cimport refs_drain, refs_expose, refs_register
from ftray._core.rules cimport REPLY_LAST
from ftray._core.runtime cimport core, in_fork
from ftray._core.segments cimport segments_drain
from ftray._core.serial cimport INLINE_LIMIT, EncodedValue, decode_value, encode_error, encode_into
from ftray._core.types cimport CH_OPEN, OBJ_OWNED, Channel, Core, ObjEntry, same_id
from ftray._core.wire cimport VALUE_INLINE, VALUE_SHM, REPLY_TIMES, ReplyHead, ReplyTimes, RetHead

cdef enum:
    MOST_INLINE_BYTES = 0x7FFFFFFF          # the length of a frame has 32 bits


cdef str no_refs(str name):
    return (f"{name} returned something that contains an ObjectRef: an exactly-once actor keeps its replies, and a ref does "
            "not outlive its owner. Return the value itself")


cpdef int end_if_forked() except -1:
    """What the user's code forked came back from it: it ends, as it would at the end of a program. Asked wherever that
    code returns or raises, before anything of the runtime is touched: its locks are as other threads left them."""
    if not in_fork():
        return 0
    import os
    try:
        os.write(2, f"process {os.getpid()} was forked in a call and came back from it: it ends, only its parent's "
                    "result counts\n".encode())
    finally:
        os._exit(0)


cdef class Yielded:
    """See answers.pxd."""

    def __cinit__(self):
        self.refs = []

    def __dealloc__(self):
        buf_free(&self.b)

    cdef int add(self, object value) except -1:
        return encode_result(&self.b, value, self.refs)

    cdef int add_failure(self, bytes payload, uint16_t n) except -1:
        return encode_failure(&self.b, payload, n)


cdef int encode_result(Buf *b, object value, list refs, size_t inline_limit=INLINE_LIMIT) except -1:
    """Append one return value: RetHead, bytes, contained refs."""
    cdef size_t at = b.len
    cdef list inner = []
    cdef EncodedValue big
    cdef uint64_t seg = 0, off = 0
    cdef RetHead *r
    if buf_extend(b, sizeof(RetHead)) == NULL:
        raise MemoryError()
    try:
        big = encode_into(b, value, inline_limit, inner)
        if big is not None:
            inner = big.refs
            place_shared(core(), big, &seg, &off)
    except BaseException:
        b.len = at
        raise
    r = <RetHead *>(b.data + at)
    memset(r, 0, sizeof(RetHead))
    if big is None:
        r.kind = VALUE_INLINE
        r.size = b.len - at - sizeof(RetHead)
    else:
        r.kind = VALUE_SHM
        r.seg, r.off, r.size = seg, off, big.size
    r.ncontained = <uint32_t>len(inner)
    for ref in inner:
        encode_ref(b, ref)
    refs.extend(inner)
    return 0


cdef int encode_ref(Buf *b, ObjectRef ref) except -1:
    cdef ObjEntry *e = usable(ref)
    buf_put(b, e.id.b, 28)
    if e.flags & OBJ_OWNED:
        buf_put(b, core().worker_id.b, 28)
    else:
        buf_put(b, e.ext.owner.b, 28)
    return 0


cdef int encode_failure(Buf *b, bytes payload, uint16_t nret) except -1:
    """The same error for every return."""
    cdef size_t at
    cdef RetHead *r
    cdef uint16_t i
    for i in range(nret):
        at = b.len
        if buf_extend(b, sizeof(RetHead)) == NULL:
            raise MemoryError()
        encode_error(b, payload)
        r = <RetHead *>(b.data + at)
        memset(r, 0, sizeof(RetHead))
        r.kind = VALUE_INLINE
        r.is_error = 1
        r.size = b.len - at - sizeof(RetHead)
    return 0


cdef int encode_results(Buf *b, str name, uint16_t nret, object result, list refs, size_t inline_limit=INLINE_LIMIT) except -1:
    """What a call returned: one value, or as many as were asked for. Refs inside are appended to `refs`; what is larger than
    the limit goes to shared memory."""
    if type(result) is Yielded:
        if buf_put(b, (<Yielded>result).b.data, (<Yielded>result).b.len) < 0:
            raise MemoryError()
        refs.extend((<Yielded>result).refs)
        return 0
    if nret == 1:
        return encode_result(b, result, refs, inline_limit)
    if nret == 0:
        return 0
    values = list(result)
    if len(values) != nret:
        raise ValueError(f"{name} should return num_returns={nret} values, but returned {len(values)}")
    for v in values:
        encode_result(b, v, refs, inline_limit)
        if b.len > MOST_INLINE_BYTES:
            raise ValueError(f"the results of {name} are larger than 2 GiB even without those that go to shared memory")
    return 0


cdef int count_results(const char *p, size_t size) noexcept nogil:
    """How many values stand here, all of them inline and without refs; -1: they do not."""
    cdef const char *end = p + size
    cdef int n = 0
    while p + sizeof(RetHead) <= end:
        size = (<const RetHead *>p).size
        if (<const RetHead *>p).kind != VALUE_INLINE or (<const RetHead *>p).ncontained:
            return -1
        p += sizeof(RetHead)
        if size > <size_t>(end - p):
            return -1
        p += size
        n += 1
    return n if p == end else -1


cdef void send_reply(Core *c, Channel *ch, uint64_t seq, bint brought, Buf *b, vector[ObjEntry *] *inner,
                     uint64_t started, uint64_t ended, uint64_t position) noexcept nogil:
    """Register what the answer hands over or keeps, then send it (or hold it until that is acknowledged).

    `brought`: the call's arguments had refs. Only then, or with refs inside the answer, can it release protection.
    `started`, `ended`: when it ran (events.hpp); `ended` 0: not told. `position`: up to where the actor's journal has to
    be durable before the answer may leave; 0: it may at once.
    """
    cdef vector[ObjEntry *] mine
    cdef ReplyHead *r = <ReplyHead *>b.data
    cdef FrameHeader *h
    cdef uint64_t size
    cdef string frame
    cdef size_t i
    cdef char *p
    cdef bint gated
    cdef uint8_t flags = REPLY_LAST if c.spent else 0
    if ch.state != CH_OPEN:
        ch.exec_pending -= 1
        return
    refs_drain(c)
    segments_drain(c)
    for i in range(inner.size()):
        refs_expose(c, inner[0][i])
        borrow_grant(c, inner[0][i], &ch.worker)
    register_kept(c, ch, &mine)
    r.nborrow = <uint32_t>mine.size()
    size = FRAME_HEADER + b.len + 28 * mine.size()
    if ended:
        r.held |= REPLY_TIMES
        size += sizeof(ReplyTimes)
    gated = c.pending_adds != 0 and (brought or not inner.empty())
    if not gated and position <= c.durable_position:
        ch.exec_pending -= 1
        p = chan_begin(c, ch, size, F_REPLY, flags, 0, seq)
        fill_reply(p, b, &mine, started, ended)
        chan_commit(c, ch, size)
        return
    frame.resize(size)
    h = <FrameHeader *>frame.data()
    h.size = <uint32_t>size
    h.kind = F_REPLY
    h.flags = flags
    h.aux = 0
    h.seq = seq
    fill_reply(<char *>frame.data() + FRAME_HEADER, b, &mine, started, ended)
    if position > c.durable_position:
        held_push(c, ch, position, gated, frame.data(), size)
        return
    ch.exec_pending -= 1
    borrow_send(c, ch, &frame)


cdef void register_kept(Core *c, Channel *ch, vector[ObjEntry *] *mine) noexcept nogil:
    """Register borrowed refs that this process still holds; those that the caller owns go into the answer (`mine`)."""
    cdef size_t i
    if c.unregistered.empty():
        return
    if c.running_ch != ch:
        # Several calls run at once: what this caller owns may have come with another's call, whose end could
        # overtake this reply. Every registration is acknowledged first.
        borrow_register_all(c, NULL)
        return
    for i in range(c.unregistered.size()):
        if same_id(&c.unregistered[i].ext.owner, &ch.worker):
            mine.push_back(c.unregistered[i])
    for i in range(mine.size()):
        refs_register(c, mine[0][i])
    borrow_register_all(c, &ch.worker)


cdef void fill_reply(char *p, Buf *b, vector[ObjEntry *] *mine, uint64_t started, uint64_t ended) noexcept nogil:
    cdef ReplyTimes times
    cdef size_t i
    memcpy(p, b.data, b.len)
    p += b.len
    for i in range(mine.size()):
        memcpy(p, mine[0][i].id.b, 28)
        p += 28
    if ended:
        times.started = started
        times.ended = ended
        memcpy(p, &times, sizeof(ReplyTimes))


def encode_outcome(str name, object result, bytes failure, uint16_t nret=1):
    """A reply as an exactly-once actor records it: `nret` values, or the pickled error `failure` in their place."""
    cdef Buf b
    cdef list refs = []
    buf_init(&b)
    try:
        if failure is None:
            encode_results(&b, name, nret, result, refs, <size_t>1 << 31)
            if refs:
                raise TypeError(no_refs(name))
        else:
            encode_failure(&b, failure, nret)
        return PyBytes_FromStringAndSize(b.data, b.len)
    finally:
        buf_free(&b)


def count_outcome(bytes reply not None):
    """Of how many values a recorded reply is."""
    cdef int n = count_results(<const char *>reply, len(reply))
    if n < 0:
        raise ValueError("the bytes are not a recorded reply")
    return n


def decode_outcome(bytes reply not None):
    """The values of a recorded reply: a list of values, or of exceptions where it is an error's."""
    cdef const char *p = reply
    cdef const char *end = p + len(reply)
    cdef RetHead *r
    count_outcome(reply)
    out = []
    while p < end:
        r = <RetHead *>p
        p += sizeof(RetHead)
        out.append(decoded(p, r.size, r.is_error))
        p += r.size
    return out


cdef object decoded(const char *p, size_t size, bint is_error):
    try:
        return decode_value(p, size, None)
    except Exception as error:
        if not is_error:
            raise
        return error
