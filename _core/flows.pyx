"""Names of calls that stay the same when their caller is executed again.

TaskIDs are seeded by the parent's attempt (context.pyx), so that two attempts never make the same object. A CallID is
not: it is made of the caller's own CallID, the callee's key and how often this caller has called that callee. An
exactly-once actor tells by it whether it has run a call already. docs/exactly-once.md has the protocol.

Owns: what each flow of control has called so far (`Flow`), the call heads of calls, and what calls inherit from their
caller: the root, the attempts of all callers above, and the exactly-once actors whose methods are on the way.
Invariants: everything here is touched under the core lock; a call's head is made when it is submitted and changes only
when the callee has asked for an application-level retry; a call that inherits nothing out of the ordinary carries no
head (no attempt above 0, no exactly-once method on the way, the flow of its job's own driver).

Leaves to others: what the callee does with it (ledgerrules.pyx), where the head stands in a frame (wire.pxd).
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from libcpp.string cimport string
from libcpp.vector cimport vector

from ftray._core.channel cimport FRAME_HEADER, F_ACK, chan_begin, chan_commit
from ftray._core.context cimport Context, context_root_depth
from ftray._core.identity cimport derive_call_id
from ftray._core.nodelink cimport N_CALLERS_DONE, node_put
from ftray._core.runtime cimport core, core_enter, core_leave
from ftray._core.records cimport HEAD_KEYED, ROOT_JOB, ROOT_PROCESS, CallHead, head_size
from ftray._core.types cimport (CH_OPEN, Channel, add32, ActorClient, Blob, CallNote, Callee, Core, Id16, TaskRec, blob_drop, blob_new, callee_done, callee_drop, callee_settle,
                                mix64, mono_ns, note_new)
from ftray._core.wire cimport GROUP_SIZE, HEAD_IN_GROUP, TaskHead

cdef extern from *:
    """
    #include "flows.hpp"
    #include "context.hpp"
    static Callee *flow_callee(Context *x, const Id16 *key) {
        if (!x->flow) x->flow = new Flow();
        Callee *&k = x->flow->durable[*key];
        if (!k) k = new Callee();
        return k;
    }
    static uint32_t flow_next(Context *x, const Id16 *key) {
        if (!x->flow) x->flow = new Flow();
        return flow_count(x->flow, key);
    }
    static bool flow_settled(Context *x) { return !x->flow || x->flow->all_answered(); }
    static void flow_free(Context *x) { delete x->flow; x->flow = nullptr; }
    """
    Callee *flow_callee(Context *, const Id16 *) noexcept nogil
    uint32_t flow_next(Context *, const Id16 *) noexcept nogil
    bint flow_settled(Context *) noexcept nogil
    void flow_free(Context *) noexcept nogil

cdef enum:
    REPORT_NS = 20000000
    REPORT_SIZE = 256
    NESTED = 1              # CallNote.n of a task (with `touched`): it is over for good with the call `CallNote.named`
    ROOT_OF_JOB = 255       # in heads of calls to others than exactly-once actors: whoever needs it asks ftrayd


cdef void callee_key(const char *data, size_t size, Id16 *out) noexcept nogil:
    """The key of a function or a plain actor, of its name."""
    cdef uint64_t a = 0x9E3779B97F4A7C15ull ^ size, b = 0xC2B2AE3D27D4EB4Full + size, word
    cdef size_t at = 0
    while at < size:
        word = 0
        memcpy(&word, data + at, min(<size_t>8, size - at))
        a = mix64(a ^ word)
        b = mix64(b + word) ^ a
        at += 8
    memcpy(out.b, &a, 8)
    memcpy(out.b + 8, &b, 8)


cdef void flow_name(Context *x, const Id16 *key, uint8_t *call_id) noexcept nogil:
    """The CallID of the next call of this flow to a callee that keeps no books."""
    derive_call_id(x.call_id, key.b, flow_next(x, key), 0, call_id)


cdef bint inherits(Context *x) noexcept nogil:
    """Is there anything to tell that a callee would not assume?"""
    return x.block != NULL or x.set and (x.attempt != 0 or x.durable != 0)


cdef void flow_name_call(Core *c, Context *x, TaskRec *t) noexcept nogil:
    """Give a call that is being submitted its CallID, and the head that it needs."""
    cdef ActorClient *a = t.actor
    if a != NULL and a.durable:
        name_durable(c, x, t, a)
        return
    flow_name(x, &c.fn_keys[t.fn] if a == NULL else &a.key, t.call_id)
    if inherits(x):
        t.note = note_new()
        t.note.head = make_head(c, x, t, x.call_id, NULL, 0)


cdef void name_durable(Core *c, Context *x, TaskRec *t, ActorClient *a) noexcept nogil:
    """A call to an exactly-once actor: numbered among those of this flow to it, or named by the user."""
    cdef Callee *k
    cdef CallNote *note = t.note
    x.touched = True                            # also by name: a task that calls by name may call otherwise too
    if note != NULL:                            # with call_key
        derive_call_id(note.named.b, a.key.b, 0, 0, t.call_id)
        note.head = make_head(c, x, t, NULL, NULL, HEAD_KEYED)
        return
    note = t.note = note_new()
    k = flow_callee(x, &a.key)
    k.kept = x.durable != 0
    k.n += 1
    add32(&k.holders, 1)
    note.callee = k
    note.n = k.n
    derive_call_id(x.call_id, a.key.b, k.n, 0, t.call_id)
    note.head = make_head(c, x, t, x.call_id, k, 0)


cdef Blob *make_head(Core *c, Context *x, TaskRec *t, const uint8_t *parent, Callee *k, uint8_t flags) noexcept nogil:
    """The head of a call that `x` submits. `k`: what `x` knows of the callee, NULL for one that keeps no books."""
    cdef const CallHead *above = <const CallHead *>x.block
    cdef uint32_t attempts = x.depth, known = above.nattempts if above != NULL else 0
    cdef uint32_t chain = (above.nchain if above != NULL else 0) + (1 if x.durable else 0)
    cdef uint32_t i, own = x.epoch if x.durable else x.attempt
    cdef Blob *b = blob_new(head_size(<uint16_t>attempts, <uint16_t>chain))
    cdef CallHead *h = <CallHead *>b.data
    cdef char *p = b.data + sizeof(CallHead)
    memset(b.data, 0, b.size)
    h.flags = flags
    h.nattempts = <uint16_t>attempts
    h.nchain = <uint16_t>chain
    write_root(c, x, h)
    if parent != NULL:
        memcpy(h.parent, parent, 16)
    memcpy(h.call_id, t.call_id, 16)
    if k != NULL:
        h.n = k.n                               # `acked` and `history` are written when it is sent
    elif flags & HEAD_KEYED:
        h.root_kind = ROOT_JOB                  # whoever asks again: the user has said that it is the same call
        memset(h.root, 0, 16)
    for i in range(attempts):
        if i < known:
            memcpy(p, x.block + sizeof(CallHead) + 4 * i, 4)
        elif i + 1 == attempts:
            memcpy(p, &own, 4)
        p += 4
    if above != NULL:
        memcpy(p, x.block + sizeof(CallHead) + 4 * known, 16 * above.nchain)
        p += 16 * above.nchain
    if x.durable:
        memcpy(p, c.own_key.b, 16)
    return b


cdef void write_root(Core *c, Context *x, CallHead *h) noexcept nogil:
    """Whose work the call is, as far as that is known here."""
    cdef const CallHead *above = <const CallHead *>x.block
    if x.stray:
        h.root_kind = ROOT_PROCESS
        memcpy(h.root, x.call_id, 16)
    elif above != NULL and above.root_kind != ROOT_OF_JOB:
        h.root_kind = above.root_kind
        memcpy(h.root, above.root, 16)
    elif c.root_job == c.job:
        h.root_kind = c.root_kind
        memcpy(h.root, c.root_call.b, 16)
    else:
        h.root_kind = ROOT_OF_JOB


cdef bint flow_needs_root(Core *c, Context *x) noexcept nogil:
    """Has ftrayd to be asked first whose work this process does?"""
    return not x.stray and c.root_job != c.job and (x.block == NULL or (<const CallHead *>x.block).root_kind == ROOT_OF_JOB)


cdef bint flow_end(Context *x) noexcept nogil:
    """The flow is over. Has it called exactly-once actors, and has it all their answers?"""
    cdef bint settled = x.touched and flow_settled(x)
    if x.flow != NULL:
        flow_free(x)
    return settled


cdef void flow_stamp(TaskRec *t, char *head) noexcept nogil:
    """The call is sent, for the first time or again: its head, as written to `head`, says what its caller knows now.

    What a method of an exactly-once actor has got it may ask for again, unless that is durable in its own journal, which
    is not known here: it acknowledges nothing, and its calls are released when its own record is durable.
    """
    cdef CallHead *h = <CallHead *>head
    cdef Callee *k = t.note.callee
    t.note.sent = True
    if k == NULL:
        return
    h.history = k.history
    h.acked = k.acked if not k.kept else 0


cdef void flow_acknowledge(Core *c, Channel *ch, uint64_t seq) noexcept nogil:
    """The actor holds a call back because replies that nobody has acknowledged fill its bound: say again what has come."""
    cdef uint64_t at = seq - ch.base_seq, size
    cdef TaskRec *t
    cdef char *p
    if at >= ch.inflight.size() or ch.state != CH_OPEN:
        return
    t = ch.inflight[at]
    if t == NULL or t.note == NULL or t.note.callee == NULL:
        return
    callee_settle(t.note.callee)                # room is needed
    size = FRAME_HEADER + t.note.head.size
    p = chan_begin(c, ch, size, F_ACK, 0, 0, seq)
    memcpy(p, t.note.head.data, t.note.head.size)
    flow_stamp(t, p)
    chan_commit(c, ch, size)


# --- what becomes of a call -----------------------------------------------------------------------------------------

cdef void flow_retried(TaskRec *t) noexcept nogil:
    """The callee wants the call to be made again because of its exception: that is another call."""
    cdef CallHead *h
    if t.note == NULL or t.actor == NULL or not t.actor.durable:
        return
    h = <CallHead *>t.note.head.data
    h.retry += 1
    t.note.sent = False
    if t.note.keyed:
        derive_call_id(t.note.named.b, t.actor.key.b, h.n, h.retry, t.call_id)
    else:
        derive_call_id(h.parent, t.actor.key.b, h.n, h.retry, t.call_id)
    memcpy(h.call_id, t.call_id, 16)


cdef void flow_learn(TaskRec *t, uint64_t epoch) noexcept nogil:
    """A reply of an exactly-once actor says which history of it has answered."""
    if t.note != NULL and t.note.callee != NULL and epoch >> 32 > t.note.callee.history:
        t.note.callee.history = epoch >> 32


cdef vector[Id16] *done_nested = new vector[Id16]()     # pairs to be told: a task that is over, and the call that has made it
cdef Id16 running_call                  # of the call that the main thread is in; under the core lock
cdef uint64_t child_touched = 0         # the call (`Core.running_unique`) of which a task has called exactly-once actors


cdef void note_child(uint64_t parent) noexcept nogil:
    global child_touched
    child_touched = parent


cdef void flow_touched(Core *c, TaskRec *t) noexcept nogil:
    """The call was answered, and it, or a task of it, had called exactly-once actors."""
    cdef bint nested = not c.is_driver or t.depth != context_root_depth() + 1
    if t.actor != NULL and t.actor.durable:
        return                                  # a method: the actor itself tells when its record is durable (held.pyx)
    if nested:
        if c.running_ch == NULL or t.parent != c.running_unique:
            return                              # whose it was has ended: its calls are released with their root
        note_child(t.parent)
    elif c.root_kind == ROOT_JOB:
        return                                  # it may be made again by the next run of its driver
    if t.note == NULL:
        t.note = note_new()
    t.note.touched = True
    if nested:
        t.note.n = NESTED
        t.note.named = running_call             # without which it may be made again
    memcpy(t.note.call.b, t.call_id, 16)


cdef void flow_running(const char *frame) noexcept nogil:
    """The main thread takes this call."""
    memcpy(running_call.b, (<const TaskHead *>frame).call_id, 16)


cdef bint flow_nested(Core *c) noexcept nogil:
    """Has the call that the main thread has run had tasks that called exactly-once actors?"""
    global child_touched
    cdef bint touched = child_touched != 0 and child_touched == c.running_unique
    child_touched = 0
    return touched


cdef void flow_answered(Core *c, TaskRec *t) noexcept nogil:
    """The call has its outcome: the callee need not keep the reply for this run of the caller.

    Of one that was sent and got no reply it keeps what it has, for who asks what became of it, as long as it has room.
    """
    cdef CallNote *note = t.note
    if note.callee != NULL:
        if note.fate or not note.sent:
            callee_done(note.callee, note.n)
        else:
            note.callee.unanswered.push_back(note.n)
        callee_drop(note.callee)
        note.callee = NULL
    flow_timer(c)


cdef void take_spent(Core *c) noexcept nogil:
    """Records that have gone: whatever those calls were, they will not be made again."""
    cdef CallNote *note
    cdef size_t i
    for i in range(c.spent_notes.size()):
        note = c.spent_notes[i]
        if note.callee != NULL:
            callee_done(note.callee, note.n)
            callee_drop(note.callee)
        if note.touched and note.n == NESTED:
            done_nested.push_back(note.call)
            done_nested.push_back(note.named)
        elif note.touched:
            c.done_callers.push_back(note.call)
        if note.head != NULL:
            blob_drop(note.head)
        del note
    c.spent_notes.clear()


cdef uint64_t report_ns = 0             # when the last batch was wanted at the latest


cdef void flow_timer(Core *c) noexcept nogil:
    """Reports go in batches, soon."""
    global report_ns
    if c.timer_ns == 0 or c.timer_ns > report_ns:       # else somebody will look soon enough
        report_ns = mono_ns() + REPORT_NS
        if c.timer_ns == 0 or report_ns < c.timer_ns:
            c.timer_ns = report_ns
    if c.spent_notes.size() >= REPORT_SIZE:
        flow_report(c)


cdef void flow_over(Core *c, const Id16 *call) noexcept nogil:
    """The record of a method that has called exactly-once actors is durable: it will not make these calls again."""
    c.done_callers.push_back(call[0])
    flow_timer(c)


def callers_over(calls):
    """Report that no call of `calls` (CallIDs) can run again and make the calls that it has made.

    Parameters
    ----------
    calls : sequence of bytes
    """
    cdef Core *c = core()
    cdef Id16 id
    for each in calls:
        if len(each) != 16:
            raise ValueError(f"a CallID has 16 bytes, not {len(each)}")
        memcpy(id.b, <const char *>(<bytes>each), 16)
        with nogil:
            core_enter(c)
            flow_over(c, &id)
            core_leave(c)


cdef void flow_report(Core *c) noexcept nogil:
    """Tell ftrayd, and through it the exactly-once actors, which tasks can never run again."""
    cdef uint32_t none = 0
    cdef string payload
    take_spent(c)
    if c.done_callers.empty() and done_nested.empty():
        return
    put_ids(&payload, &c.done_callers)
    payload.append(<const char *>&none, 4)
    put_ids(&payload, done_nested)
    node_put(c, N_CALLERS_DONE, 0, payload.data(), payload.size())


cdef void put_ids(string *payload, vector[Id16] *ids) noexcept nogil:
    cdef uint32_t size = <uint32_t>(16 * ids.size())
    payload.append(<const char *>&size, 4)
    payload.append(<const char *>ids.data(), size)
    ids.clear()


# --- frames ---------------------------------------------------------------------------------------------------------

cdef const char *frame_head(const char *frame, uint64_t size) noexcept nogil:
    """The call head in a TASK frame, NULL when it has none (or one that cannot be whole)."""
    cdef const TaskHead *t = <const TaskHead *>frame
    cdef uint64_t behind = GROUP_SIZE if t.flags & HEAD_IN_GROUP else 0
    cdef const char *p = frame + size - behind - t.head_size
    if t.head_size < sizeof(CallHead) or size < sizeof(TaskHead) + t.args_size + t.head_size + behind:
        return NULL
    return p if head_size((<const CallHead *>p).nattempts, (<const CallHead *>p).nchain) == t.head_size else NULL


cdef bint frame_comes_back(Core *c, const char *frame, uint64_t size) noexcept nogil:
    """Is a method of the exactly-once actor that lives here on the way of this call?"""
    cdef const char *p = frame_head(frame, size)
    cdef uint16_t i
    if p == NULL:
        return False
    for i in range((<const CallHead *>p).nchain):
        if memcmp(p + sizeof(CallHead) + 4 * <size_t>(<const CallHead *>p).nattempts + 16 * <size_t>i, c.own_key.b, 16) == 0:
            return True
    return False
