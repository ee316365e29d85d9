"""What owners and borrowers say to each other (see refs.pyx for the rules that decide it).

A frame that releases protection (a reply whose arguments we still hold refs of, a value that hands refs of a third
process on, the end of a borrow) waits in `Core.gated` while any BORROW_ADD of ours is unanswered.
"""

from libc.errno cimport ECONNREFUSED, ENOENT
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.string cimport string
from libcpp.utility cimport move
from libcpp.vector cimport vector

from ftray._core.channel cimport (F_BLOCK_FREE, F_BORROW_ACK, F_BORROW_ADD, F_BORROW_REMOVE, F_GET_OBJ, F_OBJ_VALUE, F_RECALL, F_RECALLED,
                                  FRAME_HEADER, FrameHeader, chan_begin, chan_commit, chan_connect, chan_find, chan_is_dead,
                                  chan_no_descriptors)
from ftray._core.intake cimport intake_dropped
from ftray._core.nodelink cimport N_DEATH_ASK, node_actor_kill, node_put
from ftray._core.recalls cimport recall_frame
from ftray._core.refs cimport refs_borrower, refs_check, refs_drop_value, refs_find, refs_register, refs_unhold
from ftray._core.segments cimport segment_block_free, segment_producer
from ftray._core.spills cimport spill_free, spill_located, spill_restore
from ftray._core.types cimport (CH_OPEN, CMD_ACTOR_RELEASED, CMD_BORROW_REMOVE, CMD_FREE_BLOCK, CMD_SPILL_FREE, CMD_STREAM_DROPPED,
                                OBJ_FETCHING, OBJ_INLINE, OBJ_OWNED, OBJ_SHM, OBJ_SPILLED, OBJ_UNKNOWN, OBJ_UNREGISTERED_LISTED, Blob, Channel,
                                Command, Core, Gated, Id16, Id28, ObjEntry, Stream, blob_copy, blob_drop, same_id, store8)
from ftray._core.values cimport entry_add_waiter, entry_ready, entry_set_error, read_value, value_size, write_value
from ftray._core.wire cimport ERR_LOST, ERR_NO_DESCRIPTORS, ERR_OWNER_DIED


cdef enum:
    VALUE_COMES = 0             # in F_OBJ_VALUE, behind the id
    NOT_NOW = 2

cdef entry_fn value_lost = NULL
cdef entry_fn recover = NULL


cdef void borrows_set_recovery(entry_fn on_loss, entry_fn on_need) noexcept nogil:
    """Who makes values again (recovery.pyx, which builds on this module)."""
    global value_lost, recover
    value_lost = on_loss
    recover = on_need


cdef void fail_ownerless(Core *c, ObjEntry *e) noexcept nogil:
    """The owner is dead; its death report says how."""
    cdef Blob *report
    if e.ext != NULL and c.dead.count(e.ext.owner):
        report = c.dead[e.ext.owner]
        entry_set_error(c, e, ERR_OWNER_DIED, report.data, report.size)
    else:
        entry_set_error(c, e, ERR_OWNER_DIED, NULL, 0)


cdef void borrow_fetch(Core *c, ObjEntry *e) noexcept nogil:
    """Ask the owner for the value of a borrowed object. Our own is made again."""
    if e.flags & OBJ_OWNED:
        recover(c, e)
    else:
        ask_owner(c, e, NULL, 0)


cdef void borrow_lost(Core *c, ObjEntry *e) noexcept nogil:
    """The value of a borrowed object cannot be read where it was: its owner is told, and asked for another."""
    cdef uint64_t place[2]
    place[0] = e.seg
    place[1] = e.off
    refs_drop_value(c, e)
    if e.blob != NULL:
        blob_drop(e.blob)
        e.blob = NULL
    ask_owner(c, e, place, 16)


cdef void ask_owner(Core *c, ObjEntry *e, const void *place, uint64_t size) noexcept nogil:
    cdef Channel *ch
    cdef char *p
    if e.lost == 1:
        fail_ownerless(c, e)
        return
    if e.lost:
        entry_set_error(c, e, ERR_LOST, NULL, 0)
        return
    e.flags |= OBJ_FETCHING
    ch = chan_connect(c, &e.ext.owner)
    if ch == NULL:
        if c.dead.count(e.ext.owner):
            e.lost = 1
            fail_ownerless(c, e)
        elif c.connect_errno == ECONNREFUSED or c.connect_errno == ENOENT:
            # A living process has a socket. Its death report is on the way, or came before this process was made: the report
            # follows, or the word that there is none (`borrow_owner_unknown`).
            node_put(c, N_DEATH_ASK, 0, e.ext.owner.b, 28)
        elif chan_no_descriptors(c):
            entry_set_error(c, e, ERR_NO_DESCRIPTORS, NULL, 0)
        return                              # otherwise its death report is on the way
    p = chan_begin(c, ch, FRAME_HEADER + 28 + size, F_GET_OBJ, 0, 0, 0)
    memcpy(p, e.id.b, 28)
    if size:
        memcpy(p + 28, place, size)
    chan_commit(c, ch, FRAME_HEADER + 28 + size)


cdef void on_get(Core *c, Channel *ch, char *body, uint64_t n) noexcept nogil:
    cdef ObjEntry *e = refs_find(c, <Id28 *>body)
    cdef uint64_t place[2]
    cdef char *p
    if e != NULL and e.flags & OBJ_OWNED:
        e.holds += 1
        if n >= 44:                         # where the reader has failed: no news if the value is elsewhere by now
            memcpy(place, body + 28, 16)
            if e.state == OBJ_SHM and e.seg == place[0] and e.off == place[1]:
                value_lost(c, e)
        if e.state == OBJ_UNKNOWN:          # given up, and wanted again by a task that has it in its arguments
            recover(c, e)
    if e == NULL:
        p = chan_begin(c, ch, FRAME_HEADER + 29, F_OBJ_VALUE, 1, 0, 0)
        memcpy(p, body, 28)
        p[28] = 1
        chan_commit(c, ch, FRAME_HEADER + 29)
    elif e.state == OBJ_SPILLED:
        entry_add_waiter(e, 1, NULL, ch, ch.uid)
        spill_restore(c, e)
    elif e.state >= OBJ_INLINE:
        borrow_answer(c, e, ch, ch.uid)
    else:
        entry_add_waiter(e, 1, NULL, ch, ch.uid)
    if e != NULL and e.flags & OBJ_OWNED:
        refs_unhold(c, e)


cdef bint still_open(Core *c, Channel *ch, uint64_t uid) noexcept nogil:
    """Is this (possibly freed) channel still the one that was meant?"""
    cdef size_t i
    for i in range(c.channels.size()):
        if c.channels[i] == ch:
            return ch.uid == uid and ch.state == CH_OPEN
    return False


cdef void refuse_for_now(Core *c, ObjEntry *e, Channel *ch) noexcept nogil:
    """A spilled object could not be brought back; whoever asks again may have more luck."""
    cdef uint64_t size = FRAME_HEADER + 29 + e.blob.size
    cdef char *p = chan_begin(c, ch, size, F_OBJ_VALUE, 0, 0, 0)
    memcpy(p, e.id.b, 28)
    p[28] = NOT_NOW
    memcpy(p + 29, e.blob.data, e.blob.size)
    chan_commit(c, ch, size)


cdef void refused(Core *c, ObjEntry *e, const char *text, uint64_t size) noexcept nogil:
    """The owner has the value and cannot give it now. Readers raise that (`blob`), the next ones ask again."""
    if e.state >= OBJ_INLINE:
        return
    if e.blob != NULL:
        blob_drop(e.blob)
    e.blob = blob_copy(text, size)
    e.seg = e.off = 0
    e.flags &= ~OBJ_FETCHING
    store8(&e.state, OBJ_SPILLED)
    entry_ready(c, e)


cdef void borrow_answer(Core *c, ObjEntry *e, Channel *ch, uint64_t token) noexcept nogil:
    """Send a value to a process that asked for it; refs inside are granted to it first."""
    cdef string frame
    cdef FrameHeader *h
    cdef size_t i
    cdef char *p
    if not still_open(c, ch, token):
        return
    if e.state == OBJ_SPILLED:
        refuse_for_now(c, e, ch)
        return
    if e.state == OBJ_SHM and e.flags & OBJ_OWNED:
        spill_located(c, e, ch)
    if e.ext != NULL:
        for i in range(e.ext.contained.size()):
            borrow_grant(c, e.ext.contained[i], &ch.worker)
    frame.resize(FRAME_HEADER + 29 + value_size(e))
    h = <FrameHeader *>frame.data()
    h.size = <uint32_t>frame.size()
    h.kind = F_OBJ_VALUE
    h.flags = 0
    h.aux = 0
    h.seq = 0
    p = <char *>frame.data() + FRAME_HEADER
    memcpy(p, e.id.b, 28)
    p[28] = 0
    write_value(c, e, p + 29)
    borrow_send(c, ch, &frame)


cdef void on_value(Core *c, Channel *ch, char *body, uint64_t n) noexcept nogil:
    cdef ObjEntry *e = refs_find(c, <Id28 *>body)
    if n < 29:
        return
    if e == NULL:
        if body[28] == VALUE_COMES:
            read_value(c, NULL, body + 29, body + n, &ch.worker, True)
        return
    if body[28] == NOT_NOW:
        refused(c, e, body + 29, n - 29)
    elif body[28]:
        e.lost = 2
        entry_set_error(c, e, ERR_LOST, NULL, 0)
    elif read_value(c, e, body + 29, body + n, &ch.worker, True) == NULL:
        entry_set_error(c, e, ERR_LOST, NULL, 0)


# --- registrations --------------------------------------------------------------------------------------------------

cdef void add(Core *c, Id28 *owner, const Id28 *obj, const Id28 *borrower) noexcept nogil:
    """BORROW_ADD to the owner; releases wait until it has answered."""
    cdef Channel *ch = chan_connect(c, <Id28 *>owner)
    cdef char *p
    if ch == NULL:
        return                              # dead: nothing to protect any more
    c.pending_adds += 1
    c.adds_open[owner[0]] += 1
    p = chan_begin(c, ch, FRAME_HEADER + 56, F_BORROW_ADD, 0, 0, 0)
    memcpy(p, obj.b, 28)
    memcpy(p + 28, borrower.b, 28)
    chan_commit(c, ch, FRAME_HEADER + 56)


cdef void borrow_grant(Core *c, ObjEntry *inner, const Id28 *receiver) noexcept nogil:
    """A value with this ref inside goes to `receiver`: it is registered with the owner beforehand."""
    if inner.flags & OBJ_OWNED:
        refs_borrower(c, inner, receiver, 1)
    elif not same_id(&inner.ext.owner, receiver) and not inner.lost:
        add(c, &inner.ext.owner, &inner.id, receiver)


cdef void borrow_register_all(Core *c, const Id28 *piggyback_owner) noexcept nogil:
    """Register every new borrow, except those of `piggyback_owner`, whom the caller tells in its reply."""
    cdef size_t i = 0
    cdef ObjEntry *e
    while i < c.unregistered.size():
        e = c.unregistered[i]
        if piggyback_owner != NULL and same_id(&e.ext.owner, piggyback_owner):
            i += 1
            continue
        refs_register(c, e)                 # takes it off the list
        add(c, &e.ext.owner, &e.id, &c.worker_id)


cdef void on_add(Core *c, Channel *ch, FrameHeader *h, char *body) noexcept nogil:
    cdef ObjEntry *e = refs_find(c, <Id28 *>body)
    if e != NULL and not chan_is_dead(c, <Id28 *>(body + 28)):
        refs_borrower(c, e, <Id28 *>(body + 28), 1)
    chan_begin(c, ch, FRAME_HEADER, F_BORROW_ACK, 0, 0, h.seq)
    chan_commit(c, ch, FRAME_HEADER)


cdef void borrow_announce(Core *c, ObjEntry *e) noexcept nogil:
    """Register a new borrow now, if it is one."""
    if e.flags & OBJ_UNREGISTERED_LISTED:
        refs_register(c, e)
        add(c, &e.ext.owner, &e.id, &c.worker_id)


cdef void added(Core *c, Id28 *owner, uint32_t n) noexcept nogil:
    """So many BORROW_ADDs are answered (or their owner died)."""
    c.pending_adds -= n
    c.adds_open[owner[0]] -= n
    if c.adds_open[owner[0]] == 0:
        c.adds_open.erase(owner[0])
    if c.pending_adds == 0:
        open_gate(c)


cdef void open_gate(Core *c) noexcept nogil:
    cdef Gated g
    while not c.gated.empty() and c.pending_adds == 0:
        g = move(c.gated.front())
        c.gated.pop_front()
        if still_open(c, g.ch, g.ch_uid):
            send_frame(c, g.ch, &g.frame)


cdef void send_frame(Core *c, Channel *ch, string *frame) noexcept nogil:
    cdef FrameHeader *h = <FrameHeader *>frame.data()
    cdef char *p = chan_begin(c, ch, frame.size(), h.kind, h.flags, h.aux, h.seq)
    memcpy(p, frame.data() + FRAME_HEADER, frame.size() - FRAME_HEADER)
    chan_commit(c, ch, frame.size())


cdef void borrow_send(Core *c, Channel *ch, string *frame) noexcept nogil:
    """Send a frame that releases protection: now, or when our registrations are acknowledged."""
    cdef Gated g
    if c.pending_adds == 0:
        send_frame(c, ch, frame)
        return
    g.ch = ch
    g.ch_uid = ch.uid
    g.frame.swap(frame[0])
    c.gated.push_back(g)


cdef bint borrow_frame(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil:
    """Handle a frame of this module; False when it is none or too short."""
    cdef ObjEntry *e
    if h.kind == F_GET_OBJ and n >= 28:
        on_get(c, ch, body, n)
    elif h.kind == F_OBJ_VALUE and n >= 29:
        on_value(c, ch, body, n)
    elif h.kind == F_BORROW_ADD and n >= 56:
        on_add(c, ch, h, body)
    elif h.kind == F_BORROW_ACK:
        if c.adds_open.count(ch.worker):
            added(c, &ch.worker, 1)
    elif h.kind == F_BORROW_REMOVE and n >= 28:
        e = refs_find(c, <Id28 *>body)
        if e != NULL:
            refs_borrower(c, e, &ch.worker, -<int32_t>h.seq)
    elif h.kind == F_RECALL or h.kind == F_RECALLED:
        recall_frame(c, ch, h, body, n)
    elif h.kind == F_BLOCK_FREE and n >= 16:
        segment_block_free(c, (<uint64_t *>body)[0], (<uint64_t *>body)[1])
    else:
        return False
    return True


cdef void hear_of_no_owner(Core *c, vector[ObjEntry *] *waiting) noexcept nogil:
    """Nobody will answer for these. What one of them sets off may be the last that held another."""
    cdef size_t i
    for i in range(waiting.size()):
        waiting[0][i].holds += 1
    for i in range(waiting.size()):
        fail_ownerless(c, waiting[0][i])
    for i in range(waiting.size()):
        waiting[0][i].holds -= 1
        refs_check(c, waiting[0][i])


cdef void borrow_process_died(Core *c, const Id28 *worker) noexcept nogil:
    """Nobody will answer for a dead owner; whoever waits for its objects hears that."""
    cdef vector[ObjEntry *] waiting
    if c.adds_open.count(worker[0]):
        added(c, <Id28 *>worker, c.adds_open[worker[0]])
    for item in c.objects:
        if item.second.lost and item.second.state < OBJ_INLINE and (item.second.flags & OBJ_FETCHING or item.second.waiters != NULL):
            waiting.push_back(item.second)
    hear_of_no_owner(c, &waiting)


cdef void borrow_owner_unknown(Core *c, const Id28 *worker) noexcept nogil:
    """ftrayd knows no report of this owner, which has no socket: whoever waits for its objects hears that it is gone."""
    cdef vector[ObjEntry *] waiting
    for item in c.objects:
        if not item.second.flags & OBJ_OWNED and item.second.flags & OBJ_FETCHING and item.second.state < OBJ_INLINE and item.second.ext != NULL and item.second.ext.owner == worker[0]:
            item.second.lost = 1
            waiting.push_back(item.second)
    hear_of_no_owner(c, &waiting)


cdef void send_remove(Core *c, Command *cmd) noexcept nogil:
    cdef string frame
    cdef FrameHeader *h
    cdef Channel *ch = chan_connect(c, &cmd.peer)
    if ch == NULL:
        return
    frame.resize(FRAME_HEADER + 28)
    h = <FrameHeader *>frame.data()
    h.size = FRAME_HEADER + 28
    h.kind = F_BORROW_REMOVE
    h.flags = 0
    h.aux = 0
    h.seq = cmd.a
    memcpy(<char *>frame.data() + FRAME_HEADER, cmd.obj.b, 28)
    borrow_send(c, ch, &frame)


cdef void send_block_free(Core *c, uint64_t seg, uint64_t off) noexcept nogil:
    cdef Id28 producer
    cdef Channel *ch
    cdef char *p
    if not segment_producer(c, seg, &producer) or producer == c.worker_id:
        segment_block_free(c, seg, off)
        return
    ch = chan_find(c, &producer)
    if ch == NULL:
        segment_block_free(c, seg, off)
        return
    p = chan_begin(c, ch, FRAME_HEADER + 16, F_BLOCK_FREE, 0, 0, 0)
    memcpy(p, &seg, 8)
    memcpy(p + 8, &off, 8)
    chan_commit(c, ch, FRAME_HEADER + 16)
    segment_block_free(c, seg, off)


cdef void borrow_carry_out(Core *c) noexcept nogil:
    """Carry out what the reference counter decided."""
    cdef Command cmd
    while not c.commands.empty():
        cmd = c.commands.back()
        c.commands.pop_back()
        if cmd.kind == CMD_BORROW_REMOVE:
            send_remove(c, &cmd)
        elif cmd.kind == CMD_FREE_BLOCK:
            send_block_free(c, cmd.a, cmd.b)
        elif cmd.kind == CMD_SPILL_FREE:
            spill_free(c, cmd.a)
        elif cmd.kind == CMD_ACTOR_RELEASED:
            node_actor_kill(c, <Id16 *>(&cmd.obj.b[8]), 1, 1)
        elif cmd.kind == CMD_STREAM_DROPPED:
            intake_dropped(c, <Stream *>cmd.a)
