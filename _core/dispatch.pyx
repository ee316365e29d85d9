"""Where frames go: what peers and ftrayd send is taken apart here and handed to whom it concerns. Needs the core lock.

Owns: the order in which a death is settled (drain what the dead process wrote, its calls, its borrows, its segments),
the reports of deaths (`Core.dead`), open answers of ftrayd (`Core.rpc_replies`), and the filling of Python's inbox
(`Core.py_inbox`). Invariants: a frame that is too short for its layout changes nothing; a process dies once, whatever
arrives again or late; a report is kept as long as an object of the dead process is known here or a channel to it is.

Leaves to others: reading sockets and rings (runtime.pyx, channel.pyx, nodelink.pyx), and every consequence.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.unordered_map cimport unordered_map
from libcpp.utility cimport pair
from libcpp.vector cimport vector

from ftray._core.actors cimport actor_after_death, actor_on_state
from ftray._core.borrows cimport borrow_answer, borrow_frame, borrow_owner_unknown, borrow_process_died
from ftray._core.cancels cimport cancel_asked
from ftray._core.channel cimport (F_CANCEL, F_CANCEL_OBJECT, F_REPLY, F_STREAM_ACK, F_STREAM_ITEM, F_WANT_ACK, FrameHeader, chan_break,
                                  chan_set_handlers)
from ftray._core.execqueue cimport exec_channel_died, exec_frame, exec_node_frame
from ftray._core.flows cimport flow_acknowledge
from ftray._core.inspect cimport inspect_answer
from ftray._core.intake cimport intake_item
from ftray._core.leases cimport class_fail, lease_granted, lease_reclaim
from ftray._core.nodelink cimport (N_ACTOR_STATE, N_DEATH_UNKNOWN, N_INSPECT, N_LEASE_GRANT, N_LEASE_INFEASIBLE, N_LEASE_RECLAIM, N_RPC_REPLY, N_SEG_FD,
                                   N_SEG_GONE, N_SEG_RESERVED, N_SEG_SHRINK, N_SPILL_ASK, N_SPILL_DONE, N_SPILL_RESTORED, N_WORKER_DIED, NodeHeader, node_lost,
                                   node_set_handlers)
from ftray._core.holds cimport hold_channel_broke
from ftray._core.productions cimport production_channel_died, production_on_ack, production_on_cancel
from ftray._core.recovery cimport recovery_install
from ftray._core.refs cimport refs_process_died
from ftray._core.segments cimport segment_gone, segment_map, segments_process_died, segments_trim
from ftray._core.spills cimport spill_frame
from ftray._core.tasks cimport tasks_fail_all, tasks_on_reply, tasks_process_died
from ftray._core.types cimport (CH_BROKEN, OBJ_INLINE, OBJ_OWNED, ActorClient, Blob, BlobP, Channel, Core, Id16, Id28, IdHash, blob_copy,
                                blob_drop, futex_wake)
from ftray._core.values cimport boxes_end, values_set_answer
from ftray._core.wire cimport ERR_GROUP_REMOVED, ERR_HEAD_DIED, ERR_RUNTIME_ENV, ERR_UNSCHEDULABLE

cdef enum:
    DEAD_KEPT = 1024            # reports of deaths that are kept for whoever still names a dead process


cdef void dispatch_install() noexcept nogil:
    """From now on frames come here."""
    chan_set_handlers(on_channel_frame, on_channel_break)
    node_set_handlers(on_node_frame, on_node_end)
    values_set_answer(borrow_answer)
    recovery_install()


# --- from peers -----------------------------------------------------------------------------------------------------

cdef void on_channel_frame(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil:
    if h.kind == F_REPLY:
        tasks_on_reply(c, ch, h, body, n)
    elif h.kind == F_STREAM_ITEM:
        intake_item(c, ch, h, body, n)
    elif h.kind == F_STREAM_ACK:
        production_on_ack(c, ch, h, body, n)
    elif h.kind == F_WANT_ACK:
        flow_acknowledge(c, ch, h.seq)
    elif h.kind == F_CANCEL_OBJECT and n >= 28:
        cancel_asked(c, <Id28 *>body, h.flags)
    else:
        if h.kind == F_CANCEL:
            production_on_cancel(c, ch, h.seq)
        if not exec_frame(c, ch, h, body, n):
            borrow_frame(c, ch, h, body, n)


cdef void on_channel_break(Core *c, Channel *ch) noexcept nogil:
    """The channel ended. What that means for calls is settled by the death report (which may be here already)."""
    if ch.lease != NULL:
        ch.lease.broken = 1
    if c.hold != NULL:
        hold_channel_broke(c, ch)
    if c.dead.count(ch.worker):
        bury_calls(c, ch, c.dead[ch.worker])


cdef void bury_calls(Core *c, Channel *ch, Blob *report) noexcept nogil:
    cdef ActorClient *a = ch.actor
    cdef size_t i
    ch.dead = 1
    for i in range(ch.inflight.size()):
        if a == NULL and ch.inflight[i] != NULL:
            a = ch.inflight[i].actor
    tasks_process_died(c, ch, report.data, report.size)
    exec_channel_died(c, ch)
    production_channel_died(c, ch)
    if a != NULL:
        actor_after_death(c, a, &ch.worker)


# --- from ftrayd ----------------------------------------------------------------------------------------------------

cdef void on_worker_died(Core *c, char *body, uint32_t n) noexcept nogil:
    """A process of the session is dead: drain what it had written, then settle everything that involves it."""
    cdef Id28 worker
    cdef vector[Channel *] concerned
    cdef Channel *ch
    cdef size_t i
    if n < 28:
        return
    memcpy(worker.b, body, 28)
    if c.dead.count(worker):
        return
    c.dead[worker] = blob_copy(body, n)
    c.dead_order.push_back(worker)
    for i in range(c.channels.size()):
        ch = c.channels[i]
        if ch != NULL and ch.worker == worker and not ch.dead:
            concerned.push_back(ch)
    for i in range(concerned.size()):
        if concerned[i].state != CH_BROKEN:
            chan_break(c, concerned[i])
        else:
            bury_calls(c, concerned[i], c.dead[worker])
    refs_process_died(c, &worker)
    borrow_process_died(c, &worker)
    segments_process_died(c, &worker)
    c.changed = True
    if c.dead_order.size() >= 2 * DEAD_KEPT:
        forget_deaths(c)


cdef void forget_deaths(Core *c) noexcept nogil:
    """Of the older half of the reports only those are kept that say why an object is lost, or that a channel needs.

    Who is named later by a process that has not heard of its death yet is found dead by other means (`chan_is_dead`).
    """
    cdef unordered_map[Id28, bint, IdHash] needed
    cdef size_t n = c.dead_order.size() - DEAD_KEPT
    cdef Id28 worker
    cdef size_t i
    for item in c.objects:
        if not item.second.flags & OBJ_OWNED and item.second.ext != NULL:
            needed[item.second.ext.owner] = True
    for i in range(c.channels.size()):
        if c.channels[i] != NULL:
            needed[c.channels[i].worker] = True
    for i in range(n):
        worker = c.dead_order.front()
        c.dead_order.pop_front()
        if needed.count(worker):
            c.dead_order.push_back(worker)
        else:
            blob_drop(c.dead[worker])
            c.dead.erase(worker)
            c.dead_forgotten = True


cdef void keep_reply(Core *c, uint64_t req, char *body, uint32_t n) noexcept nogil:
    if c.rpc_replies.count(req):
        c.rpc_replies[req] = blob_copy(body, n)
        c.changed = True


cdef void on_segment_fd(Core *c, NodeHeader *h, char *body) noexcept nogil:
    """SEG_FD: u8 ok, u64 segment, u64 size, and a descriptor when ok."""
    cdef uint64_t seg, size
    cdef int fd = -1
    cdef char result[8]
    cdef int code = -1
    memcpy(&seg, body + 1, 8)
    memcpy(&size, body + 9, 8)
    if body[0]:
        if c.node_fds.empty():
            node_lost(c)
            return
        fd = c.node_fds.front()
        c.node_fds.pop_front()
        code = segment_map(seg, fd, size)
    memset(result, 0, 8)
    memcpy(result, &code, 4)
    result[4] = body[0]
    keep_reply(c, h.req, result, 8)


cdef void to_inbox(Core *c, uint32_t kind, char *body, uint32_t n) noexcept nogil:
    cdef pair[uint32_t, BlobP] item
    item.first = kind
    item.second = blob_copy(body, n)
    c.py_inbox.push_back(item)
    wake_inbox(c)


cdef void wake_inbox(Core *c) noexcept nogil:
    c.py_gen += 1
    futex_wake(&c.py_gen, 1)


cdef void on_actor_state(Core *c, char *body, uint32_t n) noexcept nogil:
    """16s actor, u8 state, u32 incarnation, 28s worker, u32 slot, u32 pid, str socket, blob cause."""
    cdef uint32_t incarnation, size = 0
    cdef uint16_t name = 0
    cdef Id28 worker
    if n < 63:
        return
    memcpy(&incarnation, body + 17, 4)
    memcpy(worker.b, body + 21, 28)
    memcpy(&name, body + 57, 2)
    if n >= 59 + <uint32_t>name + 4:
        memcpy(&size, body + 59 + name, 4)
        if n < 63 + <uint32_t>name + size:
            return
        actor_on_state(c, <Id16 *>body, <uint8_t>body[16], incarnation, &worker, body + 63 + name, size)


cdef uint8_t infeasible_code(uint8_t fatal) noexcept nogil:
    """The error of a class that cannot be served, by LEASE_INFEASIBLE's field."""
    if fatal == 2:
        return ERR_RUNTIME_ENV
    return ERR_GROUP_REMOVED if fatal == 3 else ERR_UNSCHEDULABLE


cdef void on_lease_frame(Core *c, NodeHeader *h, char *body) noexcept nogil:
    cdef uint64_t key, lease
    cdef Id28 worker
    cdef uint16_t size
    cdef uint32_t assigned = 0
    if h.kind == N_LEASE_GRANT and h.size >= 58:
        memcpy(&key, body, 8)
        memcpy(&lease, body + 8, 8)
        memcpy(worker.b, body + 16, 28)
        # u32 slot, u32 pid, str socket, blob devices
        body += 52
        memcpy(&size, body, 2)
        if h.size >= 58 + <uint32_t>size:
            memcpy(&assigned, body + 2 + size, 4)
            assigned = min(assigned, h.size - 58 - size)
        lease_granted(c, key, lease, &worker, body + 6 + size, assigned)
    elif h.kind == N_LEASE_RECLAIM and h.size >= 8:
        memcpy(&lease, body, 8)
        lease_reclaim(c, lease)
    elif h.size >= 11:
        memcpy(&key, body, 8)
        memcpy(&size, body + 9, 2)
        if body[8]:
            class_fail(c, key, infeasible_code(<uint8_t>body[8]), body + 11, min(<uint32_t>size, h.size - 11))
        else:
            to_inbox(c, h.kind, body, h.size)


cdef void on_node_frame(Core *c, NodeHeader *h, char *body) noexcept nogil:
    cdef uint64_t seg
    if h.kind == N_LEASE_GRANT or h.kind == N_LEASE_RECLAIM or h.kind == N_LEASE_INFEASIBLE:
        on_lease_frame(c, h, body)
    elif h.kind == N_ACTOR_STATE:
        on_actor_state(c, body, h.size)
    elif h.kind == N_WORKER_DIED:
        on_worker_died(c, body, h.size)
    elif h.kind == N_DEATH_UNKNOWN and h.size >= 28:
        borrow_owner_unknown(c, <Id28 *>body)
    elif h.kind == N_RPC_REPLY or h.kind == N_SEG_RESERVED:
        keep_reply(c, h.req, body, h.size)
    elif h.kind == N_SEG_FD and h.size >= 17:
        on_segment_fd(c, h, body)
    elif h.kind == N_SEG_GONE and h.size >= 8:
        memcpy(&seg, body, 8)
        segment_gone(c, seg)
    elif h.kind == N_INSPECT:
        inspect_answer(c, h.req, body, h.size)
    elif h.kind == N_SEG_SHRINK:
        segments_trim(c, 0, True)
    elif h.kind == N_SPILL_ASK or h.kind == N_SPILL_DONE or h.kind == N_SPILL_RESTORED:
        spill_frame(c, h, body)
    elif not exec_node_frame(c, h, body):
        to_inbox(c, h.kind, body, h.size)


cdef void on_node_end(Core *c) noexcept nogil:
    """ftrayd died: every open call fails, a worker ends."""
    tasks_fail_all(c, ERR_HEAD_DIED)
    for item in c.objects:
        if item.second.state < OBJ_INLINE:
            item.second.lost = 2
    c.exit_requested = True
    boxes_end(c)
    wake_inbox(c)
