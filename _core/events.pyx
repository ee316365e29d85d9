"""The ring of task events of this process: making it and handing it to ftrayd (see events.hpp).

Owns: the ring's memory. Invariants: ftrayd gets the descriptor before the first record is written; a process without a
ring (events are off, or no memory could be had) writes nothing.

Leaves to others: writing records (inline, where it happens: tasks.pyx, pushes.pyx, outcomes.pyx, actors.pyx, worker.pyx),
reading them (`ftray/_node/event_rings.py`, eventfold.pyx).
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.string cimport string
from posix.mman cimport MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from posix.unistd cimport close, ftruncate

from ftray._core.nodelink cimport N_EVENTS_RING, N_FUNCTION_NAME, node_put, node_put_fd
from ftray._core.types cimport Core, EventRing, mono_ns

cdef extern from *:
    """
    #include <fcntl.h>
    #include <sys/mman.h>
    static int ring_memory() { return memfd_create("ftray-events", MFD_CLOEXEC | MFD_ALLOW_SEALING); }
    static void ring_seal(int fd) { fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL); }
    static EventRing *ring_new() { return new EventRing(); }
    static void ring_delete(EventRing *r) { delete r; }
    static uint64_t counter() {
    #if defined(__x86_64__)
        return __builtin_ia32_rdtsc();
    #else
        return 0;
    #endif
    }
    """
    int ring_memory() nogil
    void ring_seal(int) nogil
    EventRing *ring_new() nogil
    void ring_delete(EventRing *) nogil
    uint64_t counter() nogil

cdef enum:
    PAGE = 4096


cdef int events_open(Core *c, uint32_t units, bint tsc) except -1:
    """Make the ring (`units`: a power of two) and give it to ftrayd. Without memory for it calls go on without events."""
    cdef size_t size = PAGE + units * sizeof(EventUnit)
    cdef int fd = ring_memory()
    cdef char *at
    cdef Ring *r
    if fd < 0:
        return 0
    if ftruncate(fd, size) != 0:
        close(fd)
        return 0
    ring_seal(fd)
    at = <char *>mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
    if at == <char *>MAP_FAILED:
        close(fd)
        return 0
    c.tsc = tsc
    r = <Ring *>ring_new()
    r.h = <EventHeader *>at
    r.units = <EventUnit *>(at + PAGE)
    r.mask = units - 1
    r.h.magic = EVENT_MAGIC
    r.h.version = 1
    r.h.units = units
    r.h.unit_bytes = sizeof(EventUnit)
    r.h.root = c.root
    c.tick = r.h.tick0 = ticks_now(c)
    r.h.mono0 = mono_ns()
    node_put_fd(c, N_EVENTS_RING, 0, &units, 4, fd)
    close(fd)
    c.events = <EventRing *>r
    return 0


cdef void events_close(Core *c) noexcept:
    """The session ends: nobody writes any more."""
    cdef Ring *r = <Ring *>c.events
    if r == NULL:
        return
    c.events = NULL
    munmap(r.h, PAGE + (r.mask + 1) * sizeof(EventUnit))
    ring_delete(<EventRing *>r)


cdef void events_function(Core *c, uint32_t fn, const char *definition, uint64_t size) noexcept nogil:
    """What the index `fn` in records means: u32 index, u8 kind, str name (see `function_definition`, and
    `method_definition`: the name of a single call, its third text, goes before the method's, its first)."""
    cdef string payload
    cdef uint16_t n = 0, label = 0
    cdef const char *name = definition + 3
    cdef uint64_t at = 1
    cdef int i
    if size < 3:
        return
    memcpy(&n, definition + 1, 2)
    n = <uint16_t>min(<uint64_t>n, size - 3)
    if definition[0] == 1:
        for i in range(2):
            if at + 2 <= size:
                memcpy(&label, definition + at, 2)
                at += 2 + label
        label = 0
        if at + 2 <= size:
            memcpy(&label, definition + at, 2)
        if label and at + 2 + label <= size:
            name = definition + at + 2
            n = label
    n = min(n, <uint16_t>1000)
    payload.append(<const char *>&fn, 4)
    payload.append(definition, 1)
    payload.append(<const char *>&n, 2)
    payload.append(name, n)
    node_put(c, N_FUNCTION_NAME, 0, payload.data(), payload.size())


def clock_pair(bint tsc):
    """The time in ticks (see events.hpp; `tsc`: they are of the time stamp counter) and in CLOCK_MONOTONIC ns."""
    cdef uint64_t mono = mono_ns()
    return (counter() if tsc else mono), mono
