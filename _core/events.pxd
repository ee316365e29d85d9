"""What became of tasks: records that this process writes and ftrayd reads (see events.hpp). Needs the core lock."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from ftray._core.types cimport Channel, Core, TaskRec

cdef extern from "events.hpp" nogil:
    enum EventKind "EventKind":
        EV_MORE, EV_TASK, EV_RUNNING, EV_TEXT
    enum EventState "EventState":
        EV_ARGS, EV_QUEUED, EV_PUSHED, EV_FINISHED, EV_FAILED
    enum EventError "EventError":
        EV_EXCEPTION, EV_DEPENDENCY, EV_OUT_OF_MEMORY
    enum:
        EVENT_MAGIC
    cppclass EventUnit:
        uint8_t kind, state, method, error
        uint32_t fn
        uint64_t task, parent, submitted, started
        float ran, pushed
        uint32_t worker, attempt, of
    cppclass EventHeader:
        uint32_t magic, version, units, unit_bytes
        uint64_t head, root, tick0, mono0, running, since
        uint32_t attempt
    cppclass Ring "EventRing":
        EventHeader *h
        EventUnit *units
        uint64_t mask, head
    uint64_t ticks_now(const Core *) noexcept
    void event_clock(Core *) noexcept
    void event_describe(const Core *, EventUnit *, const TaskRec *, uint8_t, uint32_t, const uint8_t *) noexcept
    void event_submitted(Core *, TaskRec *) noexcept
    void event_pushed(Core *, TaskRec *) noexcept
    void event_answered(Core *, TaskRec *, uint8_t, uint64_t, uint64_t, Channel *) noexcept
    void event_failed(Core *, TaskRec *, uint32_t, uint8_t, const uint8_t *) noexcept
    void event_renewed(Core *, TaskRec *) noexcept
    uint8_t event_death(const char *, uint64_t, uint8_t) noexcept
    uint64_t event_begin(Core *, const uint8_t *, uint32_t, bint) noexcept
    uint64_t event_end(Core *, const uint8_t *, bint, Channel *) noexcept
    void event_text(Core *, const uint8_t *, uint32_t, const char *, uint64_t) noexcept

cdef int events_open(Core *c, uint32_t units, bint tsc) except -1
cdef void events_close(Core *c) noexcept
cdef void events_function(Core *c, uint32_t fn, const char *definition, uint64_t size) noexcept nogil
