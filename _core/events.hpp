// What became of tasks: one record for each attempt that is over, in a ring that its owner writes and ftrayd reads.
//
// A call takes little more than a microsecond, so it may not cost more than a few nanoseconds to know of it afterwards.
// An attempt in hand has its record already, the owner's TaskRec, which is looked at when somebody asks (inspect.pyx).
// Only when it is over one cache line is written, with times that were at hand: submission and push take the time of the
// last look at the clock, and the executing process sends begin and end along with the reply. When calls of less than a
// millisecond come one upon another, it looks at the clock, and sends times, with every EVENT_SAMPLEth of them only.
//
// The ring is a memfd, written under the core lock: a process that is killed or hangs leaves its records, and what its
// main thread is in, readable. Nobody waits for a reader; the ring keeps the last `units` records, `head` tells how many
// there have been. Times are ticks: of the time stamp counter where the kernel trusts it too, else nanoseconds. The pair
// of clocks in the header, and one that the reader takes, make them CLOCK_MONOTONIC.
#pragma once
#include "types.hpp"

enum EventKind : uint8_t {
    EV_MORE = 0,       // belongs to the unit before it
    EV_TASK = 1,       // an attempt
    EV_RUNNING = 2,    // the process executes it; `started` is known, and task and attempt
    EV_TEXT = 3,       // why an attempt failed: `fn` bytes of text, which follow in further units (63 in each)
};
enum EventState : uint8_t { EV_ARGS = 1, EV_QUEUED = 2, EV_PUSHED = 3, EV_FINISHED = 4, EV_FAILED = 5 };
enum EventError : uint8_t { EV_EXCEPTION = 20, EV_DEPENDENCY = 21, EV_OUT_OF_MEMORY = 22 };
enum { EVENT_MAGIC = 0x56455246, EVENT_TEXT_UNITS = 4, EVENT_NO_TIME = -1, EVENT_SHIFT = 18, EVENT_SAMPLE = 16 };

struct EventUnit {
    uint8_t kind;
    uint8_t state : 4, method : 4;
    uint8_t error;         // SystemError, or EventError
    uint8_t attempt_high;
    uint32_t fn;           // index in the owner's function table
    uint64_t task, parent; // unique parts of the ids
    uint64_t submitted, started;   // ticks, 0 not known
    float ran;             // ticks from `started` to the end; from `submitted` when it did not start, or nobody knows when
    float pushed;          // ticks from `submitted`, EVENT_NO_TIME not known
    uint32_t unused;
    uint32_t worker;       // first 4 bytes of the executing process's id, 0 none
    uint32_t attempt;
    uint32_t of;           // a method: first 4 bytes of the actor's id, otherwise the job
};
static_assert(sizeof(EventUnit) == 64, "one cache line");

struct EventHeader {       // the first page
    uint32_t magic, version, units, unit_bytes;
    uint64_t head;         // (atomic) units ever written
    uint64_t root;         // unique part of the id that stands for the process's own flow
    uint64_t tick0, mono0; // the same moment
    alignas(64) uint64_t running;  // (atomic) unique part of the call that the main thread is in, 0 none
    uint64_t since;
    uint32_t attempt;
};
struct EventRing {
    EventHeader *h = nullptr;
    EventUnit *units = nullptr;
    uint64_t mask = 0;     // number of units - 1
    uint64_t head = 0;
};

static inline uint64_t ticks_now(const Core *c) {
#if defined(__x86_64__)
    if (c->tsc) return __builtin_ia32_rdtsc();
#endif
    return mono_ns();
}
static inline void event_clock(Core *c) { if (c->events) c->tick = ticks_now(c); }
static inline bool event_wanted(const Core *c, const TaskRec *t) { return c->events && !(t->flags & TASK_QUIET); }
static inline uint64_t event_task(const uint8_t *id) { uint64_t v; memcpy(&v, id, 8); return v; }
static inline float event_since(uint64_t from, uint64_t to) { return to ? (float)(int64_t)(to - from) : (float)EVENT_NO_TIME; }

// A record has room for the middle of a tick only, some days of it: a task is younger than that.
static inline uint32_t event_short(const Core *c) { return (uint32_t)(c->tick >> EVENT_SHIFT); }
static inline uint64_t event_long(const Core *c, uint32_t at) { return c->tick - ((uint64_t)(event_short(c) - at) << EVENT_SHIFT); }

static inline void event_describe(const Core *c, EventUnit *u, const TaskRec *t, uint8_t state, uint32_t attempt, const uint8_t *worker) {
    u->kind = EV_TASK; u->state = state; u->method = t->actor != nullptr; u->error = 0; u->attempt_high = 0;
    u->fn = t->fn; u->task = event_task(t->id); u->parent = t->parent;
    u->submitted = event_long(c, t->submitted); u->started = 0; u->ran = EVENT_NO_TIME; u->unused = 0;
    u->pushed = t->pushed ? event_since(u->submitted, event_long(c, t->pushed)) : (float)EVENT_NO_TIME;
    u->attempt = attempt;
    if (worker) memcpy(&u->worker, worker, 4); else u->worker = 0;
    memcpy(&u->of, t->actor ? t->id + 8 : t->id + 20, 4);
}
static inline EventUnit *event_unit(EventRing *r, uint64_t i) { return &r->units[(r->head + i) & r->mask]; }
static inline void event_publish(EventRing *r, uint64_t n) {
    r->head += n;
    __atomic_store_n(&r->h->head, r->head, __ATOMIC_RELEASE);
}

// Owner.
static inline void event_submitted(Core *c, TaskRec *t) { t->submitted = event_short(c); }
static inline void event_pushed(Core *c, TaskRec *t) { t->pushed = event_short(c); }
// It was answered; begin and end as the reply has them, 0 when it does not: like the last one of that process that had.
static inline void event_answered(Core *c, TaskRec *t, uint8_t error, uint64_t started, uint64_t ended, Channel *ch) {
    if (!c->events) return;
    if (ended) {
        ch->peer_tick = ended;
        if (ended > c->tick) c->tick = ended;
    } else {
        started = ended = ch->peer_tick;
    }
    if (t->flags & TASK_QUIET) return;
    EventUnit *u = event_unit(c->events, 0);
    event_describe(c, u, t, error ? EV_FAILED : EV_FINISHED, t->attempt, ch->worker.b);
    u->error = error;
    u->started = started;
    u->ran = started ? (float)(int64_t)(ended - started) : 0;
    event_publish(c->events, 1);
    __builtin_prefetch(event_unit(c->events, 1), 1);   // the line of the next but one: its cache miss happens meanwhile
}
// An attempt is over without an answer; it may have begun.
static inline void event_failed(Core *c, TaskRec *t, uint32_t attempt, uint8_t error, const uint8_t *worker) {
    if (!event_wanted(c, t)) return;
    c->tick = ticks_now(c);
    EventUnit *u = event_unit(c->events, 0);
    event_describe(c, u, t, EV_FAILED, attempt, worker);
    u->error = error;
    u->ran = event_since(u->submitted, c->tick);
    event_publish(c->events, 1);
}
// It will run again: what is known belongs to the next attempt.
static inline void event_renewed(Core *c, TaskRec *t) { t->submitted = event_short(c); t->pushed = 0; }
// What a process's death means, as its report (WORKER_DIED) has it.
static inline uint8_t event_death(const char *report, uint64_t size, uint8_t crashed) {
    const uint8_t kind = size > 32 ? (uint8_t)report[32] : 0;
    return kind == 3 || kind == 7 || kind == 8 ? (uint8_t)EV_OUT_OF_MEMORY : crashed;
}

// Executing process: returns when the call began. `main_thread`: calls come one after another; what follows another at
// once begins when that ended.
static inline uint64_t event_begin(Core *c, const uint8_t *id, uint32_t attempt, bool main_thread) {
    if (!c->events) return 0;
    if (!main_thread) {
        uint64_t now = ticks_now(c);
        c->running_calls[event_task(id)] = RunningCall{now, attempt};
        return now;
    }
    if (!c->exec_tick) { c->exec_tick = ticks_now(c); c->exec_seen = c->tick; }
    EventHeader *h = c->events->h;
    h->since = c->exec_tick;
    h->attempt = attempt;
    __atomic_store_n(&h->running, event_task(id), __ATOMIC_RELEASE);
    return c->exec_tick;
}
// When it ended; 0: just now, and it was one of many short ones. The background thread moves `tick` every millisecond.
static inline uint64_t event_end(Core *c, const uint8_t *id, bool main_thread, Channel *ch) {
    if (!c->events) return 0;
    if (!main_thread) { c->running_calls.erase(event_task(id)); return ticks_now(c); }
    __atomic_store_n(&c->events->h->running, (uint64_t)0, __ATOMIC_RELEASE);
    if (!c->exec.empty() && c->tick == c->exec_seen && ++c->exec_count % EVENT_SAMPLE && ch->times_sent) return 0;
    ch->times_sent = 1;
    c->exec_seen = c->tick;
    return c->exec_tick = ticks_now(c);
}
static inline void event_text(Core *c, const uint8_t *id, uint32_t attempt, const char *text, uint64_t size) {
    if (!c->events) return;
    if (size > 63 * (EVENT_TEXT_UNITS - 1)) size = 63 * (EVENT_TEXT_UNITS - 1);
    EventUnit *u = event_unit(c->events, 0);
    memset((void *)u, 0, sizeof *u);
    u->kind = EV_TEXT; u->fn = (uint32_t)size; u->attempt = attempt; u->task = event_task(id);
    uint64_t n = 1;
    for (uint64_t at = 0; at < size; at += 63, n++) {
        char *p = (char *)event_unit(c->events, n);
        uint64_t k = size - at < 63 ? size - at : 63;
        p[0] = EV_MORE;
        memcpy(p + 1, text + at, k);
        memset(p + 1 + k, 0, 63 - k);
    }
    event_publish(c->events, n);
}
