"""The runtime's one record: its lock, who leads the I/O, how threads wait, the background thread.

One thread at a time *leads*: it looks at the inbox on the board, spins for a moment, then sleeps in epoll. Other
Python threads that wait are *followers* on a futex. When no Python thread leads, the background thread, which never
needs the GIL, does the owner's duties: within a millisecond while the process is active (it is `parked`, with ticks),
at once when the process is idle (it leads itself), and it sleeps altogether while a Python thread leads for long.

Owns: the `Core` (everybody else gets a pointer to it), the epoll and event descriptors, leading. Invariants: the core
lock is dropped while a thread spins or sleeps; nothing under it takes the GIL; a thread that holds the GIL takes the
lock only by trying, and otherwise drops the GIL first; what follows from what was done under the lock is done in
`settle`, before it is dropped.

Leaves to others: what frames mean (dispatch.pyx), starting and stopping (startstop.pyx), and how a session begins and
ends (session.pyx).
"""

from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from ftray._core.actors cimport actors_pump_waiting
from ftray._core.cancels cimport cancel_due_kills
from ftray._core.borrows cimport borrow_carry_out
from ftray._core.channel cimport chan_accept, chan_drain, chan_event, chan_free, chan_ring_dirty
from ftray._core.events cimport event_clock
from ftray._core.flows cimport flow_report
from ftray._core.leases cimport leases_idle
from ftray._core.nodelink cimport node_flush, node_readable
from ftray._core.refs cimport refs_drain
from ftray._core.segments cimport segment_take_dead, segments_drain, segments_next_trim_ms, segments_trim
from ftray._core.store cimport DeadMapping, bury as bury_mapping
from ftray._core.tasks cimport tasks_delayed, tasks_run_ready
from ftray._core.values cimport boxes_end
from ftray._core.types cimport (CH_CONNECTING, Channel, Core, cas64, cpu_relax, full_fence, futex_wait, futex_wake, load64,
                                lock_drop, lock_take, lock_try, mono_ns, store32, store64, swap32, take64)

cdef extern from *:
    """
    #include <sys/epoll.h>
    #include <pthread.h>
    #include <sched.h>
    #include "spare.hpp"
    #include "types.hpp"
    // Never destroyed: when the process exits, and in a forked child of it, threads (or what they left half done) are
    // still in there.
    alignas(Core) static char core_room[sizeof(Core)];
    static bool core_made = (new (core_room) Core(), true);
    #define the_core (*reinterpret_cast<Core *>(core_room))
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
    static unsigned long this_thread() { return (unsigned long)pthread_self(); }
    static void kick_fd(int fd) { uint64_t one = 1; ssize_t r = write(fd, &one, 8); (void)r; }
    static void drain_fd(int fd) { uint64_t n; ssize_t r = read(fd, &n, 8); (void)r; }
    static bool forked = false;
    static void after_fork() { forked = true; }
    static void watch_forks() { static bool once = false; if (!once) { once = true; pthread_atfork(nullptr, nullptr, after_fork); } }
    static bool fork_seen() { return forked; }
    static int count_bits_from(uint64_t v) { return __builtin_ctzll(v); }
    """
    Core the_core
    int poll_events(int, uint64_t *, uint32_t *, int, int64_t) nogil
    unsigned long this_thread() nogil
    void kick_fd(int) nogil
    void drain_fd(int) nogil
    int count_bits_from(uint64_t) nogil
    void watch_forks() nogil
    bint fork_seen() nogil
    int sched_yield() noexcept nogil
    int spare_fill(Core *) nogil
    void spare_drop(Core *) nogil
    bint spare_waits

cdef enum:
    TICK_NS = 1000000
    TICKS_TO_REST = 5
    HEARTBEAT_NS = 1000000000
    SPIN_GRACE_NS = 5000
    HELD_SPINS = 12         # times `spin_ns`: most of an fdatasync of a fast disk
    SURE_SPINS = 25         # the same, with a score above SURE
    SURE = 12
    BG_EPOLL = 0
    BG_PARKED = 1
    BG_ASLEEP = 2


cdef Core *core() noexcept nogil:
    return &the_core


cdef bint session_alive(uint64_t session) noexcept nogil:
    """May something that was made in this session still touch the core?"""
    return the_core.session == session and the_core.running and not fork_seen()


cdef bint in_fork() noexcept nogil:
    """Is this a forked child of the process that attached? Nothing of the runtime is its own then."""
    return fork_seen()


cdef void adopt_thread(Core *c) noexcept nogil:
    """The calling thread is the one that Python's signals are for, and whose forks are foreign."""
    c.main_thread = this_thread()
    watch_forks()


cdef int core_make_room(Core *c) noexcept nogil:
    """Set memory aside for what new work may need while it is under way; -1 if there is not so much."""
    return spare_fill(c)


cdef void core_room_end(Core *c) noexcept nogil:
    """The session is over."""
    spare_drop(c)


# --- lock sections --------------------------------------------------------------------------------------------------

cdef inline void note_activity(Core *c) noexcept nogil:
    c.activity += 1
    if c.bg_mode != BG_PARKED:
        park_background(c)


cdef void park_background(Core *c) noexcept nogil:
    """The process is active: the background thread shall tick instead of reacting to every bell."""
    event_clock(c)
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


cdef bint core_enter_in(Core *c, uint64_t session) noexcept nogil:
    """Enter if the session still runs. It cannot end then before the lock is dropped."""
    lock_take(&c.lock)
    if c.session == session and c.running:
        note_activity(c)
        return True
    lock_drop(&c.lock)
    return False


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
            tasks_delayed(c, now)
            actors_pump_waiting(c)
            cancel_due_kills(c, now)
            flow_report(c)
    settle(c)
    return progress


cdef uint64_t patience(Core *c, bint held) noexcept nogil:
    """For how long to watch the inbox now: as long as a wake-up costs, and not at all when that has been in vain lately.

    Where it has been worth while all the time, something else has taken a processor for a moment: both sides would go to sleep and wake
    each other up, often on one processor, for many calls. So that is watched for longer. `held`: answers wait for the
    journal. Who gets one calls again, as a rule, so that the time of an fdatasync is watched as well; not where that
    takes much longer than waking up.
    """
    if c.max_spinners == 0:
        return 0
    if held and c.held_score > 0:
        return HELD_SPINS * c.spin_ns
    if c.spin_score > 0:
        return (SURE_SPINS if c.spin_score > SURE else 1) * c.spin_ns
    c.spin_skip += 1
    if c.spin_skip & 31:
        return 0
    return HELD_SPINS * c.spin_ns if held else c.spin_ns


cdef bint spin(Core *c, bint held) noexcept nogil:
    """Watch the inbox. Without the lock. True when something came. `held`: see `patience`.

    Who has one of the machine's few places watches without a pause, for `spin_ns`; before and after that whoever wants the processor
    gets it.
    """
    cdef uint64_t now, limit = patience(c, held)
    cdef uint64_t start = mono_ns() if limit else 0
    cdef int32_t *score = &c.held_score if limit == HELD_SPINS * c.spin_ns else &c.spin_score
    cdef int i, place = -1
    cdef bint lets_others = False
    now = start
    while now - start < limit:
        for i in range(32):
            if load64(&c.me.summary):
                leave_spinner_place(c, place)
                c.n_spin_hits += 1
                if lets_others and limit == SURE_SPINS * c.spin_ns:
                    score[0] -= 1       # if that is so each time, sleeping is better
                else:
                    score[0] = min(score[0] + 2, 16)
                return True
            cpu_relax()
        now = mono_ns()
        if lets_others:
            sched_yield()
        elif place < 0:
            place = take_spinner_place(c, now)
            if place < 0 and now - start > SPIN_GRACE_NS:
                if limit == c.spin_ns:
                    return False
                lets_others = True
        elif now - start > c.spin_ns:
            leave_spinner_place(c, place)
            place = -1
            lets_others = True
    leave_spinner_place(c, place)
    if limit:
        c.n_spin_misses += 1
        score[0] = max(score[0] - 1, -8)
    return False


cdef inline void leave_spinner_place(Core *c, int place) noexcept nogil:
    if place >= 0:
        store64(&c.spinners[place], 0)


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
        store32(&c.me.asleep, loop_asleep(c))
        return 1
    timeout_ns = bounded(c, timeout_ns)
    c.n_sleeps += 1
    lock_drop(&c.lock)
    n = poll_events(c.epoll_fd, tags, events, 32, timeout_ns)
    lock_take(&c.lock)
    event_clock(c)
    store32(&c.me.asleep, loop_asleep(c))
    if n < 0:
        return -1 if errno == EINTR else 0
    for i in range(n):
        on_event(c, tags[i], events[i])
    return 1 if n else 0


cdef inline uint32_t loop_asleep(Core *c) noexcept nogil:
    """Does an event loop sleep beside us (or may it do so soon), which needs the bell when we are awake?"""
    return 1 if c.loop_armed or c.awaited else 0


cdef void on_event(Core *c, uint64_t tag, uint32_t events) noexcept nogil:
    if tag == TAG_LISTEN:
        chan_accept(c)
    elif tag == TAG_NODE:
        node_flush(c)
        node_readable(c)
    elif tag == TAG_EVENT:
        drain_fd(c.event_fd)
    else:
        chan_event(c, tag, events)


cdef void poll_sockets(Core *c) noexcept nogil:
    """A look at the sockets without sleeping, for a leader that is always busy."""
    rest(c, 0)


cdef void poll_now(Core *c) noexcept nogil:
    """One look at everything, sockets included, for an event loop that watches our epoll descriptor.

    Another thread may lead, and be asleep or about to be. It has to look, too, when something changed, or when its bell
    rang and we heard it: so it is woken, by an event that we leave for it.
    """
    cdef uint64_t tags[32]
    cdef uint32_t events[32]
    cdef int n, i
    cdef bint before = c.changed, heard = False
    c.changed = False
    settle(c)
    n = poll_events(c.epoll_fd, tags, events, 32, 0)
    for i in range(n):
        if tags[i] != TAG_EVENT or not c.leading:
            on_event(c, tags[i], events[i])
            heard = True
    core_poll(c)
    if c.leading and (heard or c.changed):
        kick_fd(c.event_fd)
    elif c.followers and c.changed:
        tell_followers(c)
    c.changed = c.changed or before


cdef void wake_waiters(Core *c) noexcept nogil:
    """Have every thread in `core_wait` look at its condition again. Needs the lock."""
    c.changed = True
    if c.leading:
        kick_fd(c.event_fd)
    elif c.followers:
        tell_followers(c)


cdef void arm_bell(Core *c) noexcept nogil:
    """An event loop is about to sleep: who publishes something from now on rings. What came before is handled here."""
    while True:
        swap32(&c.me.asleep, 1)
        full_fence()
        if load64(&c.me.summary) == 0:
            return
        poll_now(c)


cdef int lead(Core *c, int64_t timeout_ns, bint may_spin) noexcept nogil:
    """One step of leading: look, spin, sleep. Codes as `rest`."""
    cdef bint hit, held, before
    cdef int code
    if core_poll(c):
        c.sem_exec += 1
        if c.sem_exec & 255 == 0:
            poll_sockets(c)
        return 1
    if may_spin and timeout_ns != 0:
        held, before, c.changed = not c.held.empty(), c.changed, False
        lock_drop(&c.lock)
        hit = spin(c, held)
        lock_take(&c.lock)
        hit, c.changed = hit or c.changed, c.changed or before      # another thread may have been faster: nobody rang for that
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


# --- waiting --------------------------------------------------------------------------------------------------------

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


# --- the background thread ------------------------------------------------------------------------------------------

cdef void beat(Core *c) noexcept nogil:
    store64(&c.me.heartbeat_ms, mono_ns() // 1000000)


cdef void trim_idle(Core *c) noexcept nogil:
    """Give back memory that was kept for a next burst which has not come."""
    cdef int64_t at = segments_next_trim_ms()
    cdef uint64_t now = mono_ns() // 1000000
    if now - c.trimmed_ms >= 1000:
        c.trimmed_ms = now
        c.entry_slab.trim()
        c.task_slab.trim()
        c.spare_frames.clear()
        if c.memory_short:
            spare_fill(c)
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
    global spare_waits
    spare_waits = True
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
        event_clock(c)
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
