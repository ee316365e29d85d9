"""Who leads the I/O, how threads wait, and where frames go.

One thread at a time *leads*: it looks at the inbox on the board, spins for a moment, then sleeps in epoll. Other
Python threads that wait are *followers* on a futex. When no Python thread leads, the background thread, which never
needs the GIL, does the owner's duties: within a millisecond while the process is active (it is `parked`, with ticks),
at once when the process is idle (it leads itself), and it sleeps altogether while a Python thread leads for long.

The core lock is dropped while a thread spins or sleeps. Nothing under it takes the GIL; a thread that holds the GIL
takes the lock only by trying, and otherwise drops the GIL first.
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.utility cimport pair
from libcpp.vector cimport vector
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close, getpid

from ftray._core.actors cimport actor_after_death, actor_on_state, actors_pump_waiting
from ftray._core.borrows cimport borrow_answer, borrow_carry_out, borrow_fetch, borrow_frame, borrow_process_died
from ftray._core.channel cimport (FrameHeader, chan_accept, chan_break, chan_drain, chan_free, chan_ring_dirty, chan_set_handlers,
                                  chan_event, F_REPLY)
from ftray._core.context cimport Context, context, context_root
from ftray._core.execqueue cimport exec_channel_died, exec_frame, exec_node_frame
from ftray._core.nodelink cimport (N_ACTOR_START, N_ACTOR_STATE, N_ACTOR_TERMINATE, N_EXIT, N_LEASE_GRANT, N_LEASE_INFEASIBLE,
                                   N_LEASE_RECLAIM, N_LOG, N_RPC_REPLY, N_SEG_FD, N_SEG_GONE, N_SEG_RESERVED, N_SEG_SHRINK, N_WARN,
                                   N_WORKER_DIED, NodeHeader, node_flush, node_lost, node_pending, node_readable, node_set_handlers)
from ftray._core.refs cimport refs_drain, refs_process_died
from ftray._core.segments cimport (segment_gone, segment_map, segment_take_dead, segments_close, segments_drain, segments_next_trim_ms, segments_open, segments_process_died, segments_trim)
from ftray._core.store cimport DeadMapping, bury as bury_mapping
from ftray._core.tasks cimport (class_fail, lease_granted, lease_reclaim, leases_idle, tasks_fail_all, tasks_on_reply, tasks_process_died,
                                tasks_run_ready, tasks_set_hooks)
from ftray._core.actors cimport actor_pump
from ftray._core.types cimport (CH_BROKEN, CH_CONNECTING, OBJ_INLINE, ActorClient, Blob, BlobP, Channel, Core, Id16, Id28, ObjEntry, Slot, blob_copy, blob_drop, cas64,
                                cpu_relax, full_fence, futex_wait, futex_wake, load32, load64, lock_drop, lock_take, lock_try,
                                mono_ns, renew_core, store32, store64, swap32, take64)
from ftray._core.wire cimport ERR_HEAD_DIED

cdef extern from *:
    """
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/socket.h>
    #include <pthread.h>
    #include <csignal>
    #include "types.hpp"
    static int poll_events(int ep, uint64_t *tags, uint32_t *events, int n, int64_t timeout_ns) {
        struct epoll_event e[32];
        if (n > 32) n = 32;
        struct timespec t = {timeout_ns / 1000000000, timeout_ns % 1000000000};
        int r = -1;
        if (timeout_ns > 0) {                          // epoll_pwait2 (Linux 5.11) knows nanoseconds
            r = (int)syscall(441, ep, e, n, &t, nullptr, 0);
            if (r < 0 && errno == ENOSYS) r = epoll_wait(ep, e, n, (int)((timeout_ns + 999999) / 1000000));
        } else {
            r = epoll_wait(ep, e, n, timeout_ns < 0 ? -1 : 0);
        }
        for (int i = 0; i < r; i++) { tags[i] = e[i].data.u64; events[i] = e[i].events; }
        return r;
    }
    static int watch_tag(int ep, int fd, uint64_t tag) {
        struct epoll_event e = {}; e.events = EPOLLIN | EPOLLRDHUP; e.data.u64 = tag;
        return epoll_ctl(ep, EPOLL_CTL_ADD, fd, &e);
    }
    static int start_thread(unsigned long *t, void *(*f)(void *), void *arg) {
        sigset_t all, old; sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);     // signals belong to Python's threads
        pthread_attr_t a; pthread_attr_init(&a); pthread_attr_setstacksize(&a, 512 * 1024);
        pthread_t id; int r = pthread_create(&id, &a, f, arg);
        pthread_attr_destroy(&a);
        pthread_sigmask(SIG_SETMASK, &old, nullptr);
        *t = (unsigned long)id; return r;
    }
    static void join_thread(unsigned long t) { pthread_join((pthread_t)t, nullptr); }
    static unsigned long this_thread() { return (unsigned long)pthread_self(); }
    static void kick_fd(int fd) { uint64_t one = 1; ssize_t r = write(fd, &one, 8); (void)r; }
    static void drain_fd(int fd) { uint64_t n; ssize_t r = read(fd, &n, 8); (void)r; }
    static bool forked = false;
    static void after_fork() { forked = true; }
    static void watch_forks() { static bool once = false; if (!once) { once = true; pthread_atfork(nullptr, nullptr, after_fork); } }
    static bool in_fork() { return forked; }
    static void end_connection(int fd) { if (fd >= 0) shutdown(fd, SHUT_RDWR); }
    static int count_bits_from(uint64_t v) { return __builtin_ctzll(v); }
    """
    int poll_events(int, uint64_t *, uint32_t *, int, int64_t) nogil
    int watch_tag(int, int, uint64_t) nogil
    int start_thread(unsigned long *, void *(*)(void *) noexcept nogil, void *) nogil
    void join_thread(unsigned long) nogil
    unsigned long this_thread() nogil
    void kick_fd(int) nogil
    void drain_fd(int) nogil
    int count_bits_from(uint64_t) nogil
    void end_connection(int) nogil
    void watch_forks() nogil
    bint in_fork() nogil
    int epoll_create1(int) nogil
    int eventfd(unsigned, int) nogil
    int EPOLL_CLOEXEC, EFD_CLOEXEC, EFD_NONBLOCK

cdef enum:
    TAG_LISTEN = 1
    TAG_NODE = 2
    TAG_EVENT = 3
    TICK_NS = 1000000
    TICKS_TO_REST = 5
    HEARTBEAT_NS = 1000000000
    SPIN_GRACE_NS = 5000
    BG_EPOLL = 0
    BG_PARKED = 1
    BG_ASLEEP = 2
    MAX_DEAD = 8192

cdef Core the_core
cdef bint in_use = False


cdef Core *core() noexcept nogil:
    return &the_core


cdef bint session_alive(uint64_t session) noexcept nogil:
    """May something that was made in this session still touch the core?"""
    return the_core.session == session and the_core.running and not in_fork()


cdef int check_usable() except -1:
    """Raise unless the runtime is connected and this is the process that connected it."""
    from ftray import exceptions
    if the_core.running and not in_fork():
        if not the_core.node_alive:
            from ftray import _lifecycle
            words = _lifecycle.last_words()
            raise exceptions.HeadDiedError(f"{exceptions.HeadDiedError._default()}\n{words}" if words else "")
        return 0
    if the_core.running:
        raise exceptions.ForkedProcessError(the_core.pid, getpid())
    raise exceptions.NotInitializedError()


# --- lock sections --------------------------------------------------------------------------------------------------

cdef inline void note_activity(Core *c) noexcept nogil:
    c.activity += 1
    if c.bg_mode != BG_PARKED:
        park_background(c)


cdef void park_background(Core *c) noexcept nogil:
    """The process is active: the background thread shall tick instead of reacting to every bell."""
    if c.bg_mode == BG_EPOLL:
        c.bg_mode = BG_PARKED
        kick_fd(c.event_fd)
    elif c.bg_mode == BG_ASLEEP:
        c.bg_mode = BG_PARKED
        c.bg_word += 1
        futex_wake(&c.bg_word, 1)


cdef bint core_try(Core *c) noexcept nogil:
    """For a thread with the GIL: enter without waiting, or not at all."""
    if not lock_try(&c.lock):
        return False
    note_activity(c)
    return True


cdef void core_enter(Core *c) noexcept nogil:
    lock_take(&c.lock)
    note_activity(c)


cdef void settle(Core *c) noexcept nogil:
    """Everything that follows from what was done under the lock: continuations, commands, bells, frames to ftrayd."""
    while not c.ready.empty() or not c.commands.empty():
        tasks_run_ready(c)
        borrow_carry_out(c)
    if not c.dirty.empty():
        chan_ring_dirty(c)
    if not c.node_out.empty() and not c.node_blocked:
        node_flush(c)
    if not c.graveyard.empty():
        bury(c)


cdef void core_leave(Core *c) noexcept nogil:
    settle(c)
    lock_drop(&c.lock)


cdef void bury(Core *c) noexcept nogil:
    """Free channels of dead peers that nothing refers to any more."""
    cdef size_t i = 0
    cdef Channel *ch
    while i < c.graveyard.size():
        ch = c.graveyard[i]
        if ch.inflight.empty() and ch.exec_pending == 0 and not ch.dirty and ch.lease == NULL and ch.actor == NULL:
            c.graveyard[i] = c.graveyard.back()
            c.graveyard.pop_back()
            chan_free(c, ch)
        else:
            i += 1


# --- frames ---------------------------------------------------------------------------------------------------------

cdef void on_channel_frame(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil:
    if h.kind == F_REPLY:
        tasks_on_reply(c, ch, h, body, n)
    elif not exec_frame(c, ch, h, body, n):
        borrow_frame(c, ch, h, body, n)


cdef void on_channel_break(Core *c, Channel *ch) noexcept nogil:
    """The channel ended. What that means for calls is settled by the death report (which may be here already)."""
    if ch.lease != NULL:
        ch.lease.broken = 1
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
    if a != NULL:
        actor_after_death(c, a, &ch.worker)


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


cdef void on_lease_frame(Core *c, NodeHeader *h, char *body) noexcept nogil:
    cdef uint64_t key, lease
    cdef Id28 worker
    cdef uint16_t size
    if h.kind == N_LEASE_GRANT and h.size >= 44:
        memcpy(&key, body, 8)
        memcpy(&lease, body + 8, 8)
        memcpy(worker.b, body + 16, 28)
        lease_granted(c, key, lease, &worker)
    elif h.kind == N_LEASE_RECLAIM and h.size >= 8:
        memcpy(&lease, body, 8)
        lease_reclaim(c, lease)
    elif h.size >= 11:
        memcpy(&key, body, 8)
        memcpy(&size, body + 9, 2)
        if body[8]:
            class_fail(c, key, body + 11, min(<uint32_t>size, h.size - 11))
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
    elif h.kind == N_RPC_REPLY or h.kind == N_SEG_RESERVED:
        keep_reply(c, h.req, body, h.size)
    elif h.kind == N_SEG_FD and h.size >= 17:
        on_segment_fd(c, h, body)
    elif h.kind == N_SEG_GONE and h.size >= 8:
        memcpy(&seg, body, 8)
        segment_gone(c, seg)
    elif h.kind == N_SEG_SHRINK:
        segments_trim(c, 0, True)
    elif not exec_node_frame(c, h, body):
        to_inbox(c, h.kind, body, h.size)


cdef void on_node_end(Core *c) noexcept nogil:
    """ftrayd died: every open call fails, a worker ends."""
    tasks_fail_all(c, ERR_HEAD_DIED)
    for item in c.objects:
        if item.second.state < OBJ_INLINE:
            item.second.lost = 2
    c.exit_requested = True
    c.changed = True
    wake_inbox(c)


# --- leading --------------------------------------------------------------------------------------------------------

cdef bint drain_inbox(Core *c) noexcept nogil:
    """Handle what peers have published since the last look."""
    cdef uint64_t summary, word
    cdef size_t w, bit, i
    cdef Channel *ch
    if load64(&c.me.summary) == 0:
        return False
    summary = take64(&c.me.summary)
    while summary:
        w = count_bits_from(summary)
        summary &= summary - 1
        word = take64(&c.me.words[w])
        while word:
            bit = count_bits_from(word) + 64 * w
            word &= word - 1
            i = bit
            while i < c.channels.size():         # more channels than bits share them
                ch = c.channels[i]
                if ch != NULL and ch.state != CH_CONNECTING:
                    chan_drain(c, ch)
                i += 4096
    return True


cdef bint core_poll(Core *c) noexcept nogil:
    """One look at everything that needs no system call. True when something happened."""
    cdef bint progress = drain_inbox(c)
    cdef uint64_t now
    progress = refs_drain(c) or progress
    progress = segments_drain(c) or progress
    if c.timer_ns:
        now = mono_ns()
        if now >= c.timer_ns:
            leases_idle(c, now)
            actors_pump_waiting(c)
    settle(c)
    return progress


cdef bint spin(Core *c) noexcept nogil:
    """Watch the inbox for about as long as a wake-up would cost. Without the lock. True when something came."""
    cdef uint64_t start, now, until
    cdef int i, place = -1
    if c.max_spinners == 0 or c.spin_ns == 0:
        return False
    if c.spin_score <= 0:
        c.spin_skip += 1
        if c.spin_skip & 31:
            return False
    start = mono_ns()
    now = start
    while now - start < c.spin_ns:
        for i in range(32):
            if load64(&c.me.summary):
                if place >= 0:
                    store64(&c.spinners[place], 0)
                c.n_spin_hits += 1
                c.spin_score = min(c.spin_score + 2, 16)
                return True
            cpu_relax()
        now = mono_ns()
        if place < 0:
            place = take_spinner_place(c, now)
            if place < 0 and now - start > SPIN_GRACE_NS:
                return False
    if place >= 0:
        store64(&c.spinners[place], 0)
    c.n_spin_misses += 1
    c.spin_score = max(c.spin_score - 1, -8)
    return False


cdef int take_spinner_place(Core *c, uint64_t now) noexcept nogil:
    """One of the machine's few places for spinners, or -1. A place whose holder died is free when its turn is over."""
    cdef int i
    cdef uint64_t until
    for i in range(c.max_spinners):
        until = load64(&c.spinners[i])
        if until < now and cas64(&c.spinners[i], until, now + c.spin_ns):
            return i
    return -1


cdef int64_t bounded(Core *c, int64_t timeout_ns) noexcept nogil:
    """The time to sleep: until the caller's deadline, or a timer."""
    cdef uint64_t now
    cdef int64_t left
    if c.timer_ns == 0:
        return timeout_ns
    now = mono_ns()
    left = 0 if c.timer_ns <= now else <int64_t>(c.timer_ns - now)
    return left if timeout_ns < 0 or left < timeout_ns else timeout_ns


cdef int rest(Core *c, int64_t timeout_ns) noexcept nogil:
    """Sleep in epoll and handle what comes. The lock is dropped meanwhile. 1 something came, 0 time-out, -1 a signal."""
    cdef uint64_t tags[32]
    cdef uint32_t events[32]
    cdef int n, i
    settle(c)
    swap32(&c.me.asleep, 1)
    full_fence()
    if load64(&c.me.summary) or c.drop_list != NULL:
        store32(&c.me.asleep, 1 if c.loop_armed else 0)
        return 1
    timeout_ns = bounded(c, timeout_ns)
    c.n_sleeps += 1
    lock_drop(&c.lock)
    n = poll_events(c.epoll_fd, tags, events, 32, timeout_ns)
    lock_take(&c.lock)
    store32(&c.me.asleep, 1 if c.loop_armed else 0)     # an event loop that sleeps beside us still needs the bell
    if n < 0:
        return -1 if errno == EINTR else 0
    for i in range(n):
        if tags[i] == TAG_LISTEN:
            chan_accept(c)
        elif tags[i] == TAG_NODE:
            node_flush(c)
            node_readable(c)
        elif tags[i] == TAG_EVENT:
            drain_fd(c.event_fd)
        else:
            chan_event(c, tags[i], events[i])
    return 1 if n else 0


cdef void poll_sockets(Core *c) noexcept nogil:
    """A look at the sockets without sleeping, for a leader that is always busy."""
    rest(c, 0)


cdef void poll_now(Core *c) noexcept nogil:
    """One look at everything, sockets included, for an event loop that watches our epoll descriptor."""
    poll_sockets(c)
    core_poll(c)


cdef int lead(Core *c, int64_t timeout_ns, bint may_spin) noexcept nogil:
    """One step of leading: look, spin, sleep. Codes as `rest`."""
    cdef bint hit
    cdef int code
    if core_poll(c):
        c.sem_exec += 1
        if c.sem_exec & 255 == 0:
            poll_sockets(c)
        return 1
    if may_spin and timeout_ns != 0:
        lock_drop(&c.lock)
        hit = spin(c)
        lock_take(&c.lock)
        if hit:
            core_poll(c)
            return 1
    c.leader_blocked = True
    code = rest(c, timeout_ns)
    c.leader_blocked = False
    core_poll(c)
    return code


cdef void tell_followers(Core *c) noexcept nogil:
    if c.changed or not c.leading:
        c.changed = False
        c.gen += 1
        if c.followers:
            futex_wake(&c.gen, 1 << 30)


cdef int core_wait(Core *c, condition done, void *arg, int64_t deadline_ns, int64_t slice_ns) noexcept nogil:
    """Wait, leading or following, until `done`. Lock held on entry and exit, no GIL.

    1 done, 0 past the deadline, -1 the slice is over or a signal came (look at Python's signals, then come again).
    """
    cdef int64_t now, left, end
    cdef uint32_t seen
    cdef int code
    cdef bint leader = False
    cdef int outcome = -2
    if done(c, arg):
        return 1
    end = <int64_t>mono_ns() + slice_ns
    while outcome == -2:
        if not leader and not c.leading:
            leader = True
            c.leading = True
        now = <int64_t>mono_ns()
        left = end - now
        if deadline_ns >= 0 and deadline_ns - now < left:
            left = max(deadline_ns - now, <int64_t>0)
        if leader:
            code = lead(c, left, True)
            if c.followers and c.changed:
                tell_followers(c)
        else:
            seen = c.gen
            c.followers += 1
            core_leave(c)
            code = futex_wait(&c.gen, seen, left)
            core_enter(c)
            c.followers -= 1
        if done(c, arg):
            outcome = 1
        elif deadline_ns >= 0 and <int64_t>mono_ns() >= deadline_ns:
            outcome = 0
        elif code < 0 or <int64_t>mono_ns() >= end:
            outcome = -1
    if leader:
        c.leading = False
        tell_followers(c)
        if c.bg_mode == BG_ASLEEP:
            park_background(c)
    return outcome


cdef int wait_python(Core *c, condition done, void *arg, int64_t deadline_ns) except -2:
    """`core_wait` for a thread that holds the GIL and not the lock. 1 done, 0 past the deadline; signals may raise."""
    cdef int code
    cdef int64_t slice_ns = 200000000 if this_thread() == c.main_thread else 3600000000000
    while True:
        with nogil:
            core_enter(c)
            code = core_wait(c, done, arg, deadline_ns, slice_ns)
            core_leave(c)
        if code >= 0:
            return code
        PyErr_CheckSignals()


cdef void wake_leader(Core *c) noexcept nogil:
    """Make whoever sleeps in epoll look again."""
    kick_fd(c.event_fd)


# --- the background thread ------------------------------------------------------------------------------------------

cdef void beat(Core *c) noexcept nogil:
    store64(&c.me.heartbeat_ms, mono_ns() // 1000000)


cdef void trim_idle(Core *c) noexcept nogil:
    cdef int64_t at = segments_next_trim_ms()
    cdef uint64_t now = mono_ns() // 1000000
    if at >= 0 and <uint64_t>at <= now:
        segments_trim(c, now, False)


cdef void return_memory(Core *c) noexcept nogil:
    """Unmap what nobody uses any more; that takes long for large segments, so the lock is dropped meanwhile."""
    cdef DeadMapping dead
    while segment_take_dead(&dead):
        lock_drop(&c.lock)
        bury_mapping(&dead)
        lock_take(&c.lock)


cdef void *background(void *arg) noexcept nogil:
    """See the module's text. Runs until the runtime stops; takes the lock, never the GIL."""
    cdef Core *c = <Core *>arg
    cdef uint64_t seen = 0
    cdef uint32_t word
    cdef int calm = 0
    lock_take(&c.lock)
    while not c.stopping:
        beat(c)
        trim_idle(c)
        return_memory(c)
        if c.bg_mode == BG_EPOLL:
            if c.leading:
                c.bg_mode = BG_PARKED
                continue
            c.leading = True
            core_poll(c)
            rest(c, HEARTBEAT_NS)
            core_poll(c)
            c.leading = False
            tell_followers(c)
            continue
        word = c.bg_word
        settle(c)
        lock_drop(&c.lock)
        futex_wait(&c.bg_word, word, HEARTBEAT_NS if c.bg_mode == BG_ASLEEP else TICK_NS)
        lock_take(&c.lock)
        if c.bg_mode == BG_ASLEEP:
            continue
        calm = calm + 1 if c.activity == seen or (c.leading and c.leader_blocked) else 0
        seen = c.activity
        if not c.leading:
            c.leading = True
            core_poll(c)
            poll_sockets(c)
            core_poll(c)
            c.leading = False
            tell_followers(c)
        if calm >= TICKS_TO_REST:
            calm = 0
            c.bg_mode = BG_ASLEEP if c.leading else BG_EPOLL
    settle(c)
    lock_drop(&c.lock)
    return NULL


# --- start and stop -------------------------------------------------------------------------------------------------

cdef void set_handlers() noexcept:
    chan_set_handlers(on_channel_frame, on_channel_break)
    node_set_handlers(on_node_frame, on_node_end)


def attach(int node_fd, int board_fd, int dir_fd, int listen_fd, bytes worker_id, bytes node_id, uint32_t slot, uint32_t job,
           bint is_driver, int cpus, uint64_t spin_ns, uint64_t root, bytes pending=b""):
    """Take over a registered connection to ftrayd and start the runtime (descriptors become the runtime's)."""
    import os
    cdef Core *c = &the_core
    cdef unsigned long thread = 0
    cdef const char *raw
    if c.running:
        raise RuntimeError("the runtime is attached already")
    reset_core(c)
    c.session += 1
    c.pid = getpid()
    c.is_driver = is_driver
    raw = worker_id
    memcpy(c.worker_id.b, raw, 28)
    raw = node_id
    memcpy(c.node_id.b, raw, 28)
    c.slot = slot
    c.job = job
    c.root = root
    map_board(c, board_fd)
    os.close(board_fd)
    c.node_fd, c.dir_fd, c.listen_fd = node_fd, dir_fd, listen_fd
    c.epoll_fd = epoll_create1(EPOLL_CLOEXEC)
    c.event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if c.epoll_fd < 0 or c.event_fd < 0:
        raise OSError(errno, "epoll_create1/eventfd")
    watch_tag(c.epoll_fd, listen_fd, TAG_LISTEN)
    watch_tag(c.epoll_fd, node_fd, TAG_NODE)
    watch_tag(c.epoll_fd, c.event_fd, TAG_EVENT)
    c.max_spinners = min(max(cpus - 1, 0), 8)
    c.spin_ns = spin_ns
    c.main_thread = this_thread()
    watch_forks()
    set_handlers()
    tasks_set_hooks(borrow_fetch, borrow_answer, actor_pump, NULL)
    context_root(root, job)
    segments_open(c)
    c.node_in.assign(<const char *>pending, len(pending))
    c.node_alive = True
    c.running = True
    c.stopping = False
    if start_thread(&thread, background, <void *>c) != 0:
        raise RuntimeError("cannot start the runtime's thread")
    c.bg = thread
    c.bg_started = True
    if pending:
        with nogil:
            core_enter(c)
            node_pending(c)
            core_leave(c)


cdef int map_board(Core *c, int fd) except -1:
    cdef uint32_t header[4]
    import os
    data = os.pread(fd, 16, 0)
    raw = <bytes>data
    memcpy(header, <const char *>raw, 16)
    if header[0] != 0x46545259 or header[1] != 1 or header[3] != 1024 or c.slot >= header[2]:
        raise RuntimeError(f"not a board of this version: {data!r}")
    c.nslots = header[2]
    c.board_len = 4096 + <uint64_t>c.nslots * 1024
    c.board = <char *>mmap(NULL, c.board_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if c.board == <char *>MAP_FAILED:
        raise OSError(errno, "mapping the board")
    c.me = <Slot *>(c.board + 4096 + <uint64_t>c.slot * 1024)
    c.spinners = <uint64_t *>(c.board + 64)
    return 0


def detach():
    """Stop the runtime: no more I/O, descriptors closed, open calls are forgotten. Refs of this session become inert."""
    cdef Core *c = &the_core
    cdef size_t i
    if not c.running:
        return
    if in_fork():
        c.running = False               # a forked child: nothing here is ours to close
        return
    with nogil:
        core_enter(c)
        core_poll(c)
        c.stopping = True
        c.bg_word += 1
        futex_wake(&c.bg_word, 1)
        kick_fd(c.event_fd)
        core_leave(c)
        join_thread(c.bg)
    c.running = False
    c.node_alive = False
    with nogil:
        let_waiters_go(c)
    c.session += 1
    segments_close()
    end_connection(c.node_fd)               # a forked child of ours may hold a copy of the descriptor
    for i in range(c.channels.size()):
        if c.channels[i] != NULL:
            end_connection(c.channels[i].fd)
    for fd in (c.node_fd, c.listen_fd, c.dir_fd, c.epoll_fd, c.event_fd, c.loop_fd):
        if fd >= 0:
            close(fd)
    with nogil:
        for i in range(c.channels.size()):
            if c.channels[i] != NULL:
                chan_free(c, c.channels[i])
    munmap(c.board, c.board_len)
    c.board = NULL
    c.me = NULL
    wake_inbox(c)


cdef void let_waiters_go(Core *c) noexcept nogil:
    """Threads that still wait in `core_wait` see that the runtime stopped, and leave."""
    lock_take(&c.lock)
    while c.followers or c.leading:
        c.gen += 1
        futex_wake(&c.gen, 1 << 30)
        kick_fd(c.event_fd)
        lock_drop(&c.lock)
        futex_wait(&c.bg_word, c.bg_word, 100000)
        lock_take(&c.lock)
    lock_drop(&c.lock)


cdef void reset_core(Core *c):
    """A new session starts from an empty record; what the old one still pointed to stays allocated, stale refs are inert."""
    cdef uint64_t session = c.session
    renew_core(c)
    c.session = session


# --- for Python -----------------------------------------------------------------------------------------------------

def attached():
    """Is the runtime connected in this very process?"""
    return the_core.running and not in_fork()


cdef bint inbox_has(Core *c) noexcept nogil:
    return not c.py_inbox.empty()


def inbox_next():
    """Wait for messages to Python (logs, warnings): a list of (frame type, payload); None once the runtime stops."""
    cdef Core *c = &the_core
    cdef uint32_t seen
    cdef pair[uint32_t, BlobP] item
    cdef uint64_t session = c.session
    out = []
    while True:
        with nogil:
            lock_take(&c.lock)
            seen = c.py_gen
            if c.py_inbox.empty() and c.running and not c.stopping and c.session == session and c.node_alive:
                lock_drop(&c.lock)
                futex_wait(&c.py_gen, seen, 1000000000)
                lock_take(&c.lock)
            lock_drop(&c.lock)
        while True:
            with nogil:
                lock_take(&c.lock)
                item.second = NULL
                if c.session == session and not c.py_inbox.empty():
                    item = c.py_inbox.front()
                    c.py_inbox.pop_front()
                lock_drop(&c.lock)
            if item.second == NULL:
                break
            out.append((item.first, item.second.data[:item.second.size]))
            blob_drop(item.second)
        if out:
            return out
        if not c.running or c.stopping or c.session != session or not c.node_alive:
            return None


def inbox_close():
    """Wake whoever waits in `inbox_next`."""
    wake_inbox(&the_core)


def current_context():
    """What this thread executes: (task id, actor part, attempt, depth, job, node id, worker id, call id)."""
    cdef Core *c = &the_core
    cdef Context *x = context()
    return {"task_id": x.task_id[:24], "attempt": x.attempt, "depth": x.depth, "job_id": c.job, "node_id": c.node_id.b[:28],
            "worker_id": c.worker_id.b[:28], "call_id": x.call_id[:16], "is_driver": c.is_driver, "in_task": bool(x.set)}


def debug_counters():
    """Counters of live things, for tests and for people who look for leaks."""
    cdef Core *c = &the_core
    cdef size_t i
    cdef uint64_t inflight = 0, open_channels = 0
    with nogil:
        core_enter(c)
        core_poll(c)
        for i in range(c.channels.size()):
            if c.channels[i] != NULL:
                open_channels += 1
                inflight += c.channels[i].ninflight
        core_leave(c)
    return {"entries": c.n_entries, "pending_tasks": c.n_tasks, "exposed": c.objects.size(), "unregistered": c.unregistered.size(),
            "channels": open_channels, "inflight": inflight, "leases": c.leases.size(), "actors": c.actors.size(),
            "pushed": c.n_pushed, "replies": c.n_replies, "doorbells": c.n_doorbells, "sleeps": c.n_sleeps,
            "spin_hits": c.n_spin_hits, "spin_misses": c.n_spin_misses, "gated": c.gated.size(), "exec_queue": c.exec_queue.size()}
