"""What generator tasks of ours yield: items come in, the consumer takes them, the task ends, or the consumer leaves.

A stream is made with its task and lives as long as the task or the consumer. Item i is the object with index i + 2 of the
task; index 1 is the *completion*, an ordinary return. The consumer (a generator object, generators.pyx) holds the *gate*,
an entry that nobody else can name: it is "ready" while the consumer need not wait, so that whoever can wait for an object
can wait for the next item, and its local count is that of generator objects, so that the last one's end is noticed as that
of a ref is (CMD_STREAM_DROPPED). A *dynamic* stream has no gate: its items are kept for the value of the completion.

Owns: the items between their arrival and the consumer (each is held), the gate's state, STREAM_ACK. Invariants: a frame
belongs to the call that is in flight on its channel under its number, so that no item of an earlier attempt counts;
whatever is not taken is freed with its shared memory and the refs in it; when the task's record goes, the stream has an end.

Leaves to others: the numbers (streams.pyx decides), the producer (yields.pyx), retries (rules.pyx).

Items in shared memory are reported to lineage as they come; one that is lost later is made again by another attempt
(replays.pyx), whose items go through here as well.
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from ftray._core.channel cimport FRAME_HEADER, F_STREAM_ACK, FrameHeader, chan_begin, chan_commit
from ftray._core.lineage cimport lineage_item, lineage_missing
from ftray._core.refs cimport refs_check, refs_expose, refs_find, refs_new, refs_unhold
from ftray._core.replays cimport replay_done, replay_fail, replay_item, replay_outcome
from ftray._core.streams cimport (END_CLEAN, END_ERROR, END_SHORT, ITEM_GAP, ITEM_STALE, ITEM_TAKE, STREAM_STOP, EndVerdict, ItemVerdict, stream_begin, stream_drop,
                                  stream_end, stream_item, stream_ready, stream_renew, stream_take, stream_word_due)
from ftray._core.types cimport (CH_OPEN, NO_END, OBJ_INLINE, OBJ_IS_ERROR, OBJ_PENDING, OBJ_STREAM, TASK_DYNAMIC, TASK_PUSHED, TASK_STREAM,
                                Channel, Core, Id28, ObjEntry, Stream, TaskRec, blob_hold, blob_value, store8)
from ftray._core.values cimport entry_set_error, entry_set_inline, read_value
from ftray._core.wire cimport ERR_LOST, ERR_REPLAY, FIRST_ITEM, RetHead, StreamItem, StreamStart


cdef Stream *intake_open(Core *c, TaskRec *t, uint64_t window, bint dynamic) noexcept nogil:
    """The stream of a new task, whose completion is there. The caller counts the generator object in the gate's `local`."""
    cdef Stream *st = new Stream()
    cdef Id28 id
    st.task = t
    st.done = t.ret0
    st.dynamic = dynamic
    st.s.window = window
    t.stream = st
    t.flags |= TASK_STREAM | (TASK_DYNAMIC if dynamic else 0)
    if not dynamic:
        memcpy(id.b, t.id, 24)
        id.b[24] = id.b[25] = id.b[26] = id.b[27] = 0
        st.gate = refs_new(c, &id, True)
        st.gate.flags |= OBJ_STREAM
        st.gate.seg = <uint64_t>st
        st.done.holds += 1
    return st


cdef char *intake_begin(Core *c, TaskRec *t, char *p) noexcept nogil:
    """The task goes to a process: write its StreamStart; what follows it."""
    cdef Stream *st = t.stream
    cdef StreamStart *start = <StreamStart *>p
    if st.dynamic:
        stream_renew(&st.s)
        free_items(c, st)
    stream_begin(&st.s, t.attempt)
    start.window = st.s.window
    start.consumed = STREAM_STOP if replay_done(t) else st.s.next
    if t.items != NULL:
        t.items.again = False
    return p + sizeof(StreamStart)


cdef Id28 item_id(TaskRec *t, uint64_t index) noexcept nogil:
    cdef Id28 id
    cdef uint32_t place = <uint32_t>(index + FIRST_ITEM)
    memcpy(id.b, t.id, 24)
    memcpy(id.b + 24, &place, 4)
    return id


cdef ObjEntry *new_item(Core *c, TaskRec *t, uint64_t index) noexcept nogil:
    cdef Id28 id = item_id(t, index)
    return refs_new(c, &id, True)


cdef void open_gate(Core *c, Stream *st) noexcept nogil:
    """The consumer need not wait (any more). The gate's value is always the same None, so readers need no lock."""
    if st.gate != NULL and st.gate.state < OBJ_INLINE:
        entry_set_inline(c, st.gate, blob_value(b"\0", 1), False)


cdef void keep(Core *c, Stream *st, ObjEntry *e) noexcept nogil:
    e.holds += 1
    st.items.push_back(e)
    if st.dynamic:
        refs_expose(c, e)               # the completion's value names it
    open_gate(c, st)


cdef void free_items(Core *c, Stream *st) noexcept nogil:
    cdef ObjEntry *e
    while not st.items.empty():
        e = st.items.front()
        st.items.pop_front()
        refs_unhold(c, e)


cdef void tell(Core *c, TaskRec *t, uint64_t consumed) noexcept nogil:
    """STREAM_ACK to the producer; one that has not begun, or begins again, is told by the frame of the call."""
    cdef char *p
    if t.state != TASK_PUSHED or t.ch == NULL or t.ch.state != CH_OPEN:
        return
    p = chan_begin(c, t.ch, FRAME_HEADER + 8, F_STREAM_ACK, 0, 0, t.seq)
    memcpy(p, &consumed, 8)
    chan_commit(c, t.ch, FRAME_HEADER + 8)


cdef void tell_if_due(Core *c, Stream *st) noexcept nogil:
    cdef uint64_t consumed = 0
    if st.task != NULL and stream_word_due(&st.s, &consumed):
        tell(c, st.task, consumed)


cdef void free_value(Core *c, char *p, char *end, const Id28 *sender) noexcept nogil:
    """A value that nobody wants: its shared memory and the refs in it go as those of an object do."""
    cdef Id28 id
    cdef ObjEntry *e
    id.b[0] = 0
    e = refs_new(c, &id, True)
    read_value(c, e, p, end, sender, True)
    refs_check(c, e)


cdef void intake_item(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil:
    """STREAM_ITEM."""
    cdef StreamItem *head = <StreamItem *>body
    cdef char *p = body + sizeof(StreamItem)
    cdef uint64_t at = h.seq - ch.base_seq
    cdef TaskRec *t = ch.inflight[at] if at < ch.inflight.size() else NULL
    cdef ItemVerdict v
    cdef ObjEntry *e
    if n < sizeof(StreamItem) + sizeof(RetHead):
        return
    if t == NULL or t.stream == NULL:
        free_value(c, p, body + n, &ch.worker)
        return
    v = stream_item(&t.stream.s, head.index, head.attempt)
    e = lineage_missing(t, head.index) if v != ITEM_STALE and v != ITEM_GAP else NULL
    if e != NULL:
        if v == ITEM_TAKE and t.stream.replay:
            keep(c, t.stream, e)
        replay_item(c, t, e, p, body + n, &ch.worker)
        if replay_done(t):
            tell(c, t, STREAM_STOP)
    elif v == ITEM_TAKE:
        take_item(c, t, head.index, p, body + n, &ch.worker)
    else:
        free_value(c, p, body + n, &ch.worker)
    tell_if_due(c, t.stream)


cdef void take_item(Core *c, TaskRec *t, uint64_t index, char *p, char *end, const Id28 *sender) noexcept nogil:
    cdef Id28 id
    cdef ObjEntry *e = NULL
    if t.stream.replay:
        id = item_id(t, index)
        e = refs_find(c, &id)
    if e != NULL:
        free_value(c, p, end, sender)       # it was not lost
    else:
        e = new_item(c, t, index)
        if read_value(c, e, p, end, sender, True) == NULL:
            entry_set_error(c, e, ERR_LOST, b"the item could not be read", 26)
        lineage_item(t, e)
    keep(c, t.stream, e)


cdef ObjEntry *intake_next(Core *c, Stream *st) noexcept nogil:
    """The next item, whose hold becomes the caller's; NULL when there is none now."""
    cdef ObjEntry *e
    if not stream_take(&st.s):
        return NULL
    e = st.items.front()
    st.items.pop_front()
    if not stream_ready(&st.s):
        store8(&st.gate.state, OBJ_PENDING)
    tell_if_due(c, st)
    return e


# --- the end --------------------------------------------------------------------------------------------------------

cdef void last_item(Core *c, TaskRec *t, ObjEntry *like) noexcept nogil:
    """The error of `like` is what the consumer gets last."""
    cdef ObjEntry *e = new_item(c, t, t.stream.s.received - 1)
    entry_set_inline(c, e, blob_hold(like.blob), True)
    keep(c, t.stream, e)


cdef bint intake_outcome(Core *c, TaskRec *t, char *p, char *end) noexcept nogil:
    """The reply of a streaming task, as its completion: None, whether it raised (the exception is the last item) or not.

    False when the reply is to be taken as it is.
    """
    cdef Stream *st = t.stream
    cdef EndVerdict v
    cdef bint failed
    cdef ObjEntry *e
    replay_outcome(c, t, p, end)
    if st.dynamic or st.replay or p + sizeof(RetHead) > end:
        return False
    failed = (<RetHead *>p).is_error
    v = stream_end(&st.s, failed)
    if v == END_SHORT:
        short_of(c, t)
        return True
    if v == END_ERROR:
        e = new_item(c, t, st.s.received - 1)
        if read_value(c, e, p, end, &c.worker_id, True) == NULL:
            entry_set_error(c, e, ERR_LOST, b"the error could not be read", 27)
        keep(c, st, e)
    entry_set_inline(c, t.ret0, blob_value(b"\0", 1), False)
    return True


cdef void short_of(Core *c, TaskRec *t) noexcept nogil:
    """A later attempt yielded fewer items than were delivered before."""
    cdef uint64_t counts[2]
    counts[0] = t.stream.s.seen
    counts[1] = t.stream.s.received - 1
    entry_set_error(c, t.ret0, ERR_REPLAY, <const char *>counts, 16)
    last_item(c, t, t.ret0)


cdef void intake_over(Core *c, TaskRec *t) noexcept nogil:
    """The task has ended and its completion is settled: so is the stream. The record goes."""
    cdef Stream *st = t.stream
    cdef bint failed = t.ret0 != NULL and t.ret0.flags & OBJ_IS_ERROR
    replay_fail(c, t, ERR_LOST, b"the generator has ended", 23)        # who ended the task has said more, as a rule
    if st.dynamic or st.replay:
        free_items(c, st)                   # what the completion's value names, that holds
    elif st.s.end == NO_END:            # no reply said so: a death, a cancellation, a dependency's error
        if stream_end(&st.s, failed) != END_CLEAN:
            last_item(c, t, t.ret0)
    st.task = NULL
    t.stream = NULL
    open_gate(c, st)
    if st.gate == NULL and not st.leaving:
        del st


cdef bint watched(ObjEntry *done) noexcept nogil:
    """Does anybody but the stream want to know how the task ends?"""
    return done.local > done.drops or done.holds > 1


cdef void intake_stop(Core *c, TaskRec *t) noexcept nogil:
    """The attempt that runs is of no use any more."""
    tell(c, t, STREAM_STOP)


cdef void intake_dropped(Core *c, Stream *st) noexcept nogil:
    """The last generator object is gone: free what was not taken; the producer stops at its next yield, unless somebody
    has the completion."""
    cdef TaskRec *t = st.task
    st.leaving = False
    stream_drop(&st.s, watched(st.done))
    free_items(c, st)
    refs_unhold(c, st.done)
    if t == NULL:
        del st
    elif st.s.stopped:
        if replay_done(t):
            tell(c, t, STREAM_STOP)
    else:
        tell_if_due(c, st)
