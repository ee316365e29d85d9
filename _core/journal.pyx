"""The writing side of a journal on a local disk (rules: docs/storage-format.md; the protocol: checkpoint/journal.py).

Owns the segments of one epoch, the thread that makes them durable, and the mapped life file with the fence word.

`process`: a record is a copy into a segment that is mapped, preallocated and written with zeros: complete stores are
in the page cache, which outlives the process. Then a full fence, then the fence word: no system call. Where a file
system takes space for overwriting (btrfs, overlays) the record goes by pwrite instead.

`power`: a record is copied to a buffer. The journal's thread writes what has gathered, calls fdatasync, and after that
looks at the fence word and at the claim files; only then `durable_position` grows.

Invariants: no fsync on a thread of the caller; no lock held over one; an fsync or write that failed ends the journal
and is not repeated; space is taken before it is mapped, so a store into the map cannot find the disk full.

Left to others: claims, fencing and reading (`checkpoint.stores`), when a record is due (the gate).
"""
# distutils: language = c++
import _thread

from cython.operator cimport dereference as deref
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string

cdef extern from "journal_sys.hpp" namespace "ftj" nogil:
    """
    #include "journal_sys.hpp"
    namespace ftj {
    static inline uint64_t get(const std::atomic<uint64_t>& a) noexcept { return a.load(std::memory_order_acquire); }
    static inline uint64_t durable_of(Journal* j) noexcept { return get(j->durable); }
    static inline uint64_t last_of(Journal* j) noexcept { return get(j->last); }
    static inline uint64_t synced_of(Journal* j) noexcept { return get(j->synced); }
    static inline uint64_t records_of(Journal* j) noexcept { return get(j->n_records); }
    static inline uint64_t commits_of(Journal* j) noexcept { return get(j->n_commits); }
    static inline uint64_t segments_of(Journal* j) noexcept { return get(j->n_segments); }
    static inline uint64_t bytes_of(Journal* j) noexcept { return get(j->n_bytes); }
    static inline uint64_t waiting_of(Journal* j) noexcept { return j->waiting(); }
    static inline int failure_of(Journal* j) noexcept { return j->failure.load(std::memory_order_acquire); }
    static inline bool forked_since(Journal* j) noexcept { return generation.load() != j->born; }
    static inline void set_callbacks(Journal* j, Durable d, Failed f, void* arg) noexcept {
        std::lock_guard<std::recursive_mutex> guard(j->called);
        j->on_durable = d; j->on_failed = f; j->arg = arg;
    }
    static inline void drop(Journal* j) noexcept { Journal::drop(j); }
    }
    """
    uint64_t durable_of(Journal*) noexcept
    uint64_t last_of(Journal*) noexcept
    uint64_t synced_of(Journal*) noexcept
    uint64_t records_of(Journal*) noexcept
    uint64_t commits_of(Journal*) noexcept
    uint64_t segments_of(Journal*) noexcept
    uint64_t bytes_of(Journal*) noexcept
    uint64_t waiting_of(Journal*) noexcept
    int failure_of(Journal*) noexcept
    cbool forked_since(Journal*) noexcept
    void set_callbacks(Journal*, Durable, Failed, void*) noexcept
    void drop(Journal*) noexcept
    void watch_forks() noexcept
    int c_set_fence "ftj::set_fence"(int fd, uint64_t epoch) noexcept
    uint32_t c_crc32 "ftj::crc32"(uint32_t crc, const void* data, size_t size) noexcept

POINTS = (
    "file.journal.segment_created",
    "file.journal.segment_zeroed",
    "file.journal.segment_synced",
    "file.journal.segment_renamed",
    "file.journal.segment_dir_synced",
    "file.journal.past_synced",
    "file.journal.half_written",
    "file.journal.written",
    "file.journal.synced",
    "file.journal.rechecked",
    "file.journal.ended",
    "file.journal.marked",
    "file.journal.closed",
)
cdef dict _ACTIONS = {"exit": ACT_EXIT, "raise": ACT_RAISE, "stall": ACT_STALL, "stop": ACT_STOP}
cdef double _SLICE_S = 0.05
_REASONS = {FENCED: "fenced", MEDIUM: "medium", CLOSED: "closed", FORKED: "forked", BAD_SIZE: "size", NO_MEMORY: "memory"}

watch_forks()


def set_fence(int fd, uint64_t epoch):
    """Write the fence word of a life file, then order it before all reads that follow."""
    cdef int err = c_set_fence(fd, epoch)
    if err:
        raise OSError(err, "cannot write the fence word")


def crc32(data, uint32_t crc=0):
    """CRC-32 as `zlib.crc32`: here to be held against it."""
    cdef bytes raw = bytes(data)
    return c_crc32(crc, <const char*>raw, len(raw))


def _notify(LocalJournal journal):
    """Body of the thread that tells Python users; it ends with the journal."""
    # In `process` a position is durable when `append` returns: there is only a failure to be told.
    cdef bint power = "power" in journal.survives
    cdef uint64_t seen = 0 if power else UINT64_MAX
    cdef uint64_t now
    while True:
        with nogil:
            journal.j.wait_news(seen)
        now = journal.durable_c()
        if now > seen:
            seen = now
            if journal._durable_cb is not None:
                journal._durable_cb(now)
        elif journal.failure_c() != OK:
            if journal._failure_cb is not None and not journal._closed:
                journal._failure_cb(journal._failed())
            return
        else:
            return


cdef class LocalJournal:
    """One epoch's journal. Made by `LocalStore.open_journal`, which claims and fences before.

    Parameters
    ----------
    dir_fd, life_fd : int
        The key's directory and the epoch's life file; the journal closes them.
    error_of : callable
        ``(reason, step, errno) -> exception``: reason is one of fenced, medium, closed, forked, size, memory.
    past : sequence of str
        Names of the segments of older epochs, which `power` makes durable before anything else.
    fault : tuple of (str, str, int), optional
        A fault point to arm from the start: name, action (see `inject`), n-th time.
    """

    def __cinit__(self):
        self.j = NULL

    def __init__(
        self,
        int dir_fd,
        int life_fd,
        str key,
        uint64_t epoch,
        uint64_t first_position,
        *,
        bint power,
        bint in_place,
        bytes boot,
        error_of,
        past=(),
        size_t first_size=256 << 10,
        size_t max_size=16 << 20,
        double sync_interval_s=2.0,
        on_durable=None,
        on_failure=None,
        fault=None,
    ):
        cdef Config config
        cdef const char* where = ""
        cdef int err
        if self.j != NULL:
            raise RuntimeError("a journal is opened once")
        config.dir_fd, config.life_fd = dir_fd, life_fd
        config.mode = POWER if power else PROCESS
        config.in_place, config.epoch, config.first_position = in_place, epoch, first_position
        config.key, config.boot = key.encode(), boot
        if len(boot) != 16 or config.key.size() > 1900 or first_position < 1:
            raise ValueError(f"boot of {len(boot)} bytes, key of {config.key.size()}, first {first_position}")
        config.first_size, config.max_size = first_size, max(first_size, max_size)
        config.sync_interval_s = sync_interval_s
        for name in past:
            config.past.push_back(<string>(<str>name).encode())
        self.survives = frozenset({"process", "power"} if power else {"process"})
        self._error_of = error_of
        self.j = new Journal(config)
        if fault is not None:
            self.inject(*fault)
        with nogil:
            err = self.j.open(where)
        if err:
            error = error_of("medium", where.decode(), err)
            drop(self.j)
            self.j = NULL
            raise error
        self.on_durable, self.on_failure = on_durable, on_failure

    def __dealloc__(self):
        if self.j == NULL or forked_since(self.j):
            return
        self.j.stop()
        self.j.silence()
        drop(self.j)

    cdef uint64_t append_c(self, const Part* parts, int n, int* code) noexcept nogil:
        return self.j.append(parts, n, deref(code))

    cdef uint64_t durable_c(self) noexcept nogil:
        return durable_of(self.j)

    cdef uint64_t last_c(self) noexcept nogil:
        return last_of(self.j)

    cdef uint64_t waiting_c(self) noexcept nogil:
        return waiting_of(self.j)

    cdef bint holds_c(self) noexcept nogil:
        return not forked_since(self.j) and failure_of(self.j) == OK and self.j.holds()

    cdef bint open_c(self) noexcept nogil:
        return not forked_since(self.j) and failure_of(self.j) == OK and self.j.fence_open()

    cdef void running_c(self, const char* call_id) noexcept nogil:
        self.j.running(call_id)

    cdef void set_callbacks_c(self, Durable on_durable, Failed on_failed, void* arg) noexcept nogil:
        set_callbacks(self.j, on_durable, on_failed, arg)

    cdef void silence_c(self) noexcept nogil:
        self.j.silence()

    cdef void rest_c(self) noexcept nogil:
        self.j.rest()

    cdef int failure_c(self) noexcept nogil:
        return failure_of(self.j)

    cdef object _error(self, int code):
        if code == FENCED or code == MEDIUM:
            return self._failed()
        return self._error_of(_REASONS[code], "append", 0)

    cdef object _failed(self):
        """The exception of the failure, always the same one."""
        if self._failure is None:
            code = failure_of(self.j)
            self._failure = self._error_of(_REASONS[code], self.j.step.decode(), self.j.error)
        return self._failure

    @property
    def last_position(self):
        return last_of(self.j)

    @property
    def durable_position(self):
        return durable_of(self.j)

    @property
    def waiting_bytes(self):
        return waiting_of(self.j)

    @property
    def on_durable(self):
        return self._durable_cb

    @on_durable.setter
    def on_durable(self, callback):
        self._durable_cb = callback
        self._start_notifying()

    @property
    def on_failure(self):
        return self._failure_cb

    @on_failure.setter
    def on_failure(self, callback):
        self._failure_cb = callback
        self._start_notifying()

    cdef object _start_notifying(self):
        if self._notifying or (self._durable_cb is None and self._failure_cb is None):
            return
        self._notifying = True
        _thread.start_new_thread(_notify, (self,))      # `threading` would wait until it has got a core

    def tell_from(self, position):
        """Call `on_durable` for no position below this one; None: for none at all, until this is called again."""
        self.j.want_news(UINT64_MAX if position is None else position)

    def append(self, payload):
        """Append one record and return its position."""
        cdef Part part
        cdef int code = OK
        cdef uint64_t position
        cdef bytes data
        data = <bytes>payload if type(payload) is bytes else _joined(payload)
        part.data, part.size = <const char*>data, len(data)
        position = self.j.append(&part, 1, code)
        if not position:
            raise self._error(code)
        return position

    def flush(self):
        """Begin to make durable now what was appended."""
        self._check_process()
        self.j.flush()

    def rest(self):
        """Say that no further record is at hand.

        Who has said so once is expected to say it again each time: until then records that come while others are
        made durable (`power`) wait for more to be written with them, for up to a millisecond.
        """
        self._check_process()
        self.rest_c()

    def hold_back(self, position):
        """Write no record from `position` on (None: write all) until this is called again; False in `process`."""
        self._check_process()
        return self.j.hold_back(UINT64_MAX if position is None else position)

    def fail(self, error):
        """End the journal because of `error`, which waits, appends and `on_failure` get; an earlier failure stays."""
        self._check_process()
        if failure_of(self.j) == OK:
            self._failure = error
            self.j.fail(MEDIUM, 0, "write what a record names")

    def wait(self, uint64_t position, double timeout_s):
        """Wait until `position` is durable."""
        cdef double left = timeout_s
        cdef double part
        cdef int state
        self._check_process()
        while True:
            part = max(0.0, min(left, _SLICE_S))
            with nogil:
                state = self.j.wait(position, part)
            if state == 0:
                return
            if state == 2:
                raise self._failed() if failure_of(self.j) != OK else self._error_of("closed", "wait", 0)
            left -= part
            if left <= 0:
                raise self._error_of("timeout", f"position {position} after {timeout_s} s", 0)

    def running(self, call_id):
        """Note which call runs."""
        if call_id is None:
            self.j.running(NULL)
            return
        cdef bytes raw = bytes(call_id)
        if len(raw) != 16:
            raise ValueError(f"a CallID has 16 bytes, got {len(raw)}")
        self.j.running(raw)

    def holds(self):
        """Look now whether the key is still held."""
        return self.holds_c()

    def close(self, double timeout_s):
        """Make all durable, then end the journal's thread."""
        cdef cbool ended = False
        cdef double left = timeout_s
        self._check_process()
        closed, self._closed = self._closed, True
        self.j.stop()
        while not ended:
            with nogil:
                ended = self.j.wait_stopped(max(0.0, min(left, _SLICE_S)))
            left -= _SLICE_S
            if not ended and left <= 0:
                raise self._error_of("timeout", f"closing after {timeout_s} s", 0)
        if failure_of(self.j) != OK and not closed:
            raise self._failed()

    def stats(self):
        """Counters: records, bytes, commits (groups made durable), segments, synced position."""
        return {
            "records": records_of(self.j),
            "bytes": bytes_of(self.j),
            "commits": commits_of(self.j),
            "segments": segments_of(self.j),
            "synced": synced_of(self.j),
        }

    def _check_process(self):
        if forked_since(self.j):
            raise self._error_of("forked", "use", 0)

    def inject(self, str point, str action, int nth=1):
        """For tests: act when a step is reached for the n-th time.

        ``exit`` ends the process, ``raise`` makes the step fail with EIO, ``stall`` keeps the thread there until
        `release` (one that holds the GIL keeps it), ``stop`` stops the process with SIGSTOP.
        """
        self.j.arm(POINTS.index(point) + 1, _ACTIONS[action], nth)

    def release(self):
        """For tests: go on after a stall, and disarm."""
        self.j.release()

    def wait_stalled(self, double timeout_s):
        """For tests: wait until a stall was reached; False if it was not."""
        cdef cbool reached
        with nogil:
            reached = self.j.wait_stalled(timeout_s)
        return reached


cdef bytes _joined(payload):
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    return b"".join(payload)
