"""A session's begin and end in this process, and what Python is told of the runtime.

Owns: `attach` and `detach`, the mapping of the board, the check that a call of the API makes first, Python's inbox
(messages that ftrayd has for people) and the counters. Invariants: `Core.session` changes at each begin and each end,
which makes refs of other sessions inert; a forked child of an attached process touches nothing of it; after `detach`,
and after an `attach` that failed at any step, no thread is in the runtime and no descriptor of it is open.

Leaves to others: registration with ftrayd (`ftray/_lifecycle.py`, `ftray/_worker.py`), and the runtime (runtime.pyx,
startstop.pyx).
"""

from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.utility cimport pair
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close, getpid

from ftray._core.context cimport Context, context, context_main, context_root
from ftray._core.dispatch cimport dispatch_install, wake_inbox
from ftray._core.events cimport events_close, events_open
from ftray._core.lineage cimport lineage_clear
from ftray._core.nodelink cimport node_pending
from ftray._core.runtime cimport core, core_enter, core_leave, core_poll, in_fork
from ftray._core.records cimport ROOT_JOB, ROOT_SESSION, ROOT_PROCESS
from ftray._core.segments cimport segments_close, segments_open
from ftray._core.startstop cimport runtime_close, runtime_open, runtime_start, runtime_stop
from ftray._core.types cimport BlobP, Core, Slot, blob_drop, futex_wait, lock_drop, lock_take, mono_ns, renew_core


cdef int check_usable() except -1:
    """Raise unless the runtime is connected and this is the process that connected it."""
    cdef Core *c = core()
    from ftray import exceptions
    if c.running and not in_fork():
        if not c.node_alive:
            from ftray import _lifecycle
            words = _lifecycle.last_words()
            raise exceptions.HeadDiedError(f"{exceptions.HeadDiedError._default()}\n{words}" if words else "")
        return 0
    if c.running:
        raise exceptions.ForkedProcessError(c.pid, getpid())
    raise exceptions.NotInitializedError()


cdef int raise_no_room(Core *c) except -1:
    """There is no memory for another object or call, and for all that may follow from it."""
    raise MemoryError(f"no memory is left for another object or call; {c.n_entries} refs are open here: drop those that "
                      "are not needed any more, or get results before more is submitted")


# --- start and stop -------------------------------------------------------------------------------------------------

def attach(int node_fd, int board_fd, int dir_fd, int listen_fd, bytes worker_id, bytes node_id, uint32_t slot, uint32_t job,
           bint is_driver, int cpus, uint64_t spin_ns, uint64_t root, bytes pending=b"", uint32_t event_units=0, bint tsc=False,
           bint sites=False):
    """Take over a registered connection to ftrayd and start the runtime.

    The descriptors are the runtime's from the call on: it closes them at the end of the session, or when this fails.
    """
    cdef Core *c = core()
    cdef const char *raw
    cdef int fd
    if c.running:
        for fd in (node_fd, board_fd, dir_fd, listen_fd):
            close(fd)
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
    c.node_fd, c.dir_fd, c.listen_fd = node_fd, dir_fd, listen_fd
    c.max_spinners = min(max(cpus - 1, 0), 8)
    c.spin_ns = spin_ns
    c.record_sites = sites
    try:
        try:
            map_board(c, board_fd)
        finally:
            close(board_fd)
        runtime_open(c)
        dispatch_install()
        context_root(root, job)
        segments_open(c, store_bytes(c))
        c.node_in.assign(<const char *>pending, len(pending))
        c.node_alive = True
        if event_units:
            events_open(c, event_units, tsc)
        c.running = True
        runtime_start(c)
    except BaseException:
        c.running = c.node_alive = False
        close_all(c)
        raise
    if pending:
        with nogil:
            core_enter(c)
            node_pending(c)
            core_leave(c)


def set_root(bytes root, bint resumes, uint32_t job, uint64_t run_ns=0):
    """What all CallIDs of job `job` come from: 16 bytes, which are the same for every driver with its job_key when it
    `resumes`. b"": nobody knows any more. In that job's driver, its main thread is where they begin, and `run_ns` (Unix)
    tells this run from those before it."""
    cdef Core *c = core()
    cdef const char *raw = root
    cdef bint known = len(root) == 16
    with nogil:
        core_enter(c)
        c.root_job = job
        c.root_kind = (ROOT_JOB if resumes else ROOT_SESSION) if known else ROOT_PROCESS
        memset(c.root_call.b, 0, 16)
        if known:
            memcpy(c.root_call.b, raw, 16)
        if known and c.is_driver:
            context_main(<const uint8_t *>raw, run_ns if resumes else 0)
        core_leave(c)


def set_memory_retries(int retries, uint64_t delay_ms):
    """How often a task that the memory monitor ended is run again (-1: without bound), and the first pause before that."""
    cdef Core *c = core()
    c.memory_retries = retries
    c.memory_delay_ns = delay_ms * 1000000


cdef uint64_t store_bytes(Core *c) noexcept nogil:
    """Capacity of the object store, as the board has it."""
    return (<uint64_t *>c.board)[2]


cdef int map_board(Core *c, int fd) except -1:
    cdef uint32_t header[6]
    cdef char *at
    import os
    data = os.pread(fd, 24, 0)
    if len(data) < 24:
        raise RuntimeError(f"not a board of this version: {data!r}")
    raw = <bytes>data
    memcpy(header, <const char *>raw, 24)
    if header[0] != 0x46545259 or header[1] != 1 or header[3] != 1024 or c.slot >= header[2]:
        raise RuntimeError(f"not a board of this version: {data!r}")
    c.nslots = header[2]
    c.board_len = 4096 + <uint64_t>c.nslots * 1024
    if <uint64_t>os.fstat(fd).st_size < c.board_len:
        raise RuntimeError(f"a board of {os.fstat(fd).st_size} bytes cannot have {c.nslots} slots")
    at = <char *>mmap(NULL, c.board_len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if at == <char *>MAP_FAILED:
        raise OSError(errno, "mapping the board")
    c.board = at
    c.me = <Slot *>(c.board + 4096 + <uint64_t>c.slot * 1024)
    c.spinners = <uint64_t *>(c.board + 64)
    return 0


cdef void reset_core(Core *c):
    """A new session starts from an empty record; what the old one still pointed to stays allocated, stale refs are inert."""
    cdef uint64_t session = c.session
    renew_core(c)
    c.session = session


cdef int close_all(Core *c) except -1:
    """Give everything of a session back, however far its begin has come."""
    c.session += 1
    segments_close()
    lineage_clear(c)
    with nogil:
        runtime_close(c)
    events_close(c)
    if c.board != NULL:
        munmap(c.board, c.board_len)
        c.board = NULL
        c.me = NULL
        c.spinners = NULL
    return 0


def detach():
    """Stop the runtime: no more I/O, descriptors closed, open calls are forgotten. Refs of this session become inert."""
    cdef Core *c = core()
    if not c.running:
        return
    if in_fork():
        c.running = False               # a forked child: nothing here is ours to close
        return
    with nogil:
        runtime_stop(c)
    close_all(c)
    wake_inbox(c)
    import sys
    if "ftray._core.awaits" in sys.modules:
        sys.modules["ftray._core.awaits"].end_futures()


# --- for Python -----------------------------------------------------------------------------------------------------

def attached():
    """Is the runtime connected in this very process?"""
    return core().running and not in_fork()


cdef uint64_t inbox_closed_in = <uint64_t>-1     # the session whose inbox takes nothing more


def inbox_next(double timeout_s=-1):
    """Wait for messages to Python (logs, warnings): a list of (frame type, payload); None once the runtime stops.

    The list is empty if nothing came within ``timeout_s``; less than 0 waits without bound.
    """
    cdef Core *c = core()
    cdef uint32_t seen
    cdef pair[uint32_t, BlobP] item
    cdef uint64_t session = c.session
    cdef int64_t nap_ns = 1000000000
    cdef double until_s = mono_ns() / 1e9 + timeout_s
    out = []
    while True:
        with nogil:
            lock_take(&c.lock)
            seen = c.py_gen
            if c.py_inbox.empty() and inbox_open(c, session):
                lock_drop(&c.lock)
                if timeout_s >= 0:
                    nap_ns = <int64_t> (min(max(until_s - mono_ns() / 1e9, 0.0), 1.0) * 1e9)
                futex_wait(&c.py_gen, seen, nap_ns)
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
        if not inbox_open(c, session):
            return None
        if timeout_s >= 0 and mono_ns() / 1e9 >= until_s:
            return out


cdef bint inbox_open(Core *c, uint64_t session) noexcept nogil:
    return c.running and not c.stopping and c.session == session and c.node_alive and inbox_closed_in != session


def lineage_configure(bint enabled, uint64_t max_bytes):
    """Whether finished tasks are kept to make lost values again, and how many bytes of them."""
    cdef Core *c = core()
    with nogil:
        core_enter(c)
        c.lineage_off = not enabled
        c.max_lineage_bytes = max_bytes
        core_leave(c)


def inbox_close():
    """`inbox_next` gives out what is there already and then ends."""
    global inbox_closed_in
    inbox_closed_in = core().session
    wake_inbox(core())


def current_context():
    """What this thread executes: (task id, actor part, attempt, depth, job, node id, worker id, call id)."""
    cdef Core *c = core()
    cdef Context *x = context()
    return {"task_id": x.task_id[:24], "attempt": x.attempt, "depth": x.depth, "job_id": c.job, "node_id": c.node_id.b[:28],
            "worker_id": c.worker_id.b[:28], "call_id": x.call_id[:16], "is_driver": c.is_driver, "in_task": bool(x.set)}


def debug_counters():
    """Counters of live things, for tests and for people who look for leaks. {} where the core has never run."""
    cdef Core *c = core()
    cdef size_t i
    cdef uint64_t inflight = 0, open_channels = 0
    if c.session == 0:
        return {}
    with nogil:
        core_enter(c)
        core_poll(c)
        for i in range(c.channels.size()):
            if c.channels[i] != NULL:
                open_channels += 1
                inflight += c.channels[i].ninflight
        core_leave(c)
    return {"entries": c.n_entries, "pending_tasks": c.n_tasks, "kept_tasks": c.kept.n,
            "lineage_bytes": c.lineage_bytes, "recovered": c.n_recovered, "exposed": c.objects.size(), "unregistered": c.unregistered.size(),
            "channels": open_channels, "inflight": inflight, "leases": c.leases.size(), "actors": c.actors.size(),
            "pushed": c.n_pushed, "replies": c.n_replies, "doorbells": c.n_doorbells, "sleeps": c.n_sleeps,
            "spin_hits": c.n_spin_hits, "spin_misses": c.n_spin_misses, "gated": c.gated.size(), "exec_queue": c.exec_queue.size(),
            "death_reports": c.dead.size()}
