"""Reading task events: records of many processes become one row for each attempt of a task (see events.hpp).

Pure: pieces in, rows out. An attempt is described by its owner, while it is in hand or when it is over; that a process
executes it, and the text of its error, come from that process. What is known of an attempt that nobody describes (its
record was overwritten, or its events are off) makes no row. Reading the same records twice changes nothing.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.math cimport isfinite
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libcpp.string cimport string
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from ftray._core.events cimport EV_FAILED, EV_FINISHED, EV_MORE, EV_RUNNING, EV_TASK, EV_TEXT, EventUnit
from ftray._core.types cimport mix64

cdef enum:
    UNIT = 64
    TEXT_UNITS = 4
    SHORT_TICKS = 1000000

cdef cppclass Attempt:
    EventUnit unit
    uint64_t owner, runner
    int64_t submitted_ns, pushed_ns, started_ns, over_ns
    uint8_t described
    string text

cdef struct Clock:
    uint64_t tick0
    int64_t mono0
    double ns_per_tick


cdef int64_t ns_of(Clock *k, uint64_t tick) noexcept:
    return k.mono0 + <int64_t>(<double><int64_t>(tick - k.tick0) * k.ns_per_tick)


cdef int64_t later(Clock *k, int64_t from_ns, float ticks) noexcept:
    """0 when it is not known."""
    if not isfinite(ticks) or ticks < 0:
        return 0
    return from_ns + <int64_t>(ticks * k.ns_per_tick)


cdef class EventTable:
    """Attempts by task and number.

    `rows` gives tuples: unique part of the task's id (8 bytes), attempt, owner, fn, is method, first bytes of the actor's
    id or the job (4 bytes), unique part of the parent (8 bytes), state (1 waits for arguments, 2 queued, 3 pushed, 4
    finished, 5 failed), error code, the process that executes it now (0 none does), first 4 bytes of the id of the one
    that it was given to, text of the error, then the times in ns (CLOCK_MONOTONIC, 0 when not known): submitted, pushed,
    started, over.
    """

    cdef vector[Attempt] attempts
    cdef unordered_map[uint64_t, size_t] index

    cdef Attempt *at(self, uint64_t task, uint32_t attempt):
        cdef uint64_t key = mix64(task ^ mix64(attempt + 1))
        cdef Attempt fresh
        it = self.index.find(key)
        if it != self.index.end():
            return &self.attempts[self.index[key]]
        fresh.described = 0
        fresh.owner = fresh.runner = 0
        fresh.submitted_ns = fresh.pushed_ns = fresh.started_ns = fresh.over_ns = 0
        fresh.unit.task = task
        fresh.unit.attempt = attempt
        self.index[key] = self.attempts.size()
        self.attempts.push_back(fresh)
        return &self.attempts[self.attempts.size() - 1]

    def add(self, bytes piece, uint64_t process, tuple clock):
        """Take the records of one process in; returns how many units make no sense.

        `clock`: a moment in ticks and in ns, and a later one (or, for ticks that are ns, the same).
        """
        cdef const char *data = piece
        cdef size_t n = len(piece) // UNIT
        cdef size_t i = 0, used
        cdef uint64_t strange = 0
        cdef Clock k = make_clock(clock)
        while i < n:
            used = self.take(<EventUnit *>(data + i * UNIT), n - i, process, &k)
            strange += used == 0
            i += max(used, <size_t>1)
        return strange

    def add_running(self, uint64_t task, uint32_t attempt, uint64_t since, uint64_t process, bint alive, tuple clock):
        """A process is in this call; or was, when it died (not `alive`)."""
        cdef Clock k = make_clock(clock)
        cdef Attempt *a = self.at(task, attempt)
        a.started_ns = ns_of(&k, since)
        if alive:
            a.runner = process

    cdef size_t take(self, EventUnit *u, size_t left, uint64_t process, Clock *k):
        cdef Attempt *a
        if u.kind == EV_TASK:
            self.describe(u, process, k)
            return 1
        if u.kind == EV_TEXT:
            return self.take_text(u, left)
        if u.kind != EV_RUNNING:
            return 0
        a = self.at(u.task, u.attempt)
        a.runner = process
        a.started_ns = ns_of(k, u.started)
        return 1

    cdef void describe(self, EventUnit *u, uint64_t process, Clock *k):
        cdef Attempt *a = self.at(u.task, u.attempt)
        if a.described and a.unit.state >= EV_FINISHED:
            return                      # it was in hand when somebody asked, and is over by now
        a.described = 1
        a.unit = u[0]
        a.owner = process
        a.submitted_ns = ns_of(k, u.submitted)
        a.pushed_ns = later(k, a.submitted_ns, u.pushed)
        if u.started:
            a.started_ns = ns_of(k, u.started)
        if u.state >= EV_FINISHED:
            a.over_ns = later(k, a.started_ns if u.started else a.submitted_ns, u.ran)

    cdef size_t take_text(self, EventUnit *u, size_t left):
        cdef size_t size = u.fn
        cdef size_t units = 1 + (size + 62) // 63
        cdef size_t i
        cdef Attempt *a
        if units > left or units > TEXT_UNITS:
            return 0
        a = self.at(u.task, u.attempt)
        a.text.clear()
        for i in range(1, units):
            if u[i].kind != EV_MORE:
                return i
            a.text.append(<const char *>&u[i] + 1, min(<size_t>63, size - 63 * (i - 1)))
        return units

    def rows(self):
        """One tuple for each attempt that is described."""
        cdef size_t i
        out = []
        for i in range(self.attempts.size()):
            if self.attempts[i].described:
                out.append(row_of(&self.attempts[i]))
        return out

    def __len__(self):
        return self.attempts.size()


cdef Clock make_clock(tuple clock):
    cdef Clock k
    cdef uint64_t tick0, tick1
    cdef int64_t mono0, mono1
    tick0, mono0, tick1, mono1 = clock
    k.tick0 = tick0
    k.mono0 = mono0
    k.ns_per_tick = <double>(mono1 - mono0) / <double>(tick1 - tick0) if tick1 > tick0 + SHORT_TICKS else 1.0
    return k


cdef tuple row_of(Attempt *a):
    cdef EventUnit *u = &a.unit
    cdef uint32_t of = u.of
    return (PyBytes_FromStringAndSize(<const char *>&u.task, 8), u.attempt, a.owner, u.fn, bool(u.method),
            PyBytes_FromStringAndSize(<const char *>&of, 4), PyBytes_FromStringAndSize(<const char *>&u.parent, 8), u.state, u.error,
            a.runner if u.state < EV_FINISHED else 0, u.worker, PyBytes_FromStringAndSize(a.text.data(), a.text.size()).decode("utf-8", "replace"),
            a.submitted_ns, a.pushed_ns, a.started_ns, a.over_ns)
