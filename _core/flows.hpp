// What a flow of control (a task, a method's run, a driver's main thread) has called so far. See flows.pyx.
#pragma once
#include "types.hpp"

struct Callee {            // an exactly-once actor, as one flow knows it
    int32_t holders = 1;   // (atomic) the flow, and each call that is open
    uint32_t n = 0;        // calls made
    uint32_t acked = 1;    // the replies of all calls below this number have come
    std::deque<uint8_t> done;  // of the calls from `acked` on
    bool kept = false;     // the caller is a method of an exactly-once actor
    uint64_t history = 0;  // of the callee, as its last reply said; 0: none yet
    std::vector<uint32_t> unanswered;  // calls that were sent and failed without a reply: not acknowledged unless room is needed
};
static inline void callee_drop(Callee *k) { if (k && add32(&k->holders, -1) == 0) delete k; }
static inline void callee_done(Callee *k, uint32_t n) {
    if (n < k->acked) return;
    size_t at = n - k->acked;
    if (k->done.size() <= at) k->done.resize(at + 1);
    k->done[at] = 1;
    while (!k->done.empty() && k->done.front()) { k->done.pop_front(); k->acked++; }
}
// Nobody will ask any more what became of calls that had no reply.
static inline void callee_settle(Callee *k) {
    for (uint32_t n : k->unanswered) callee_done(k, n);
    k->unanswered.clear();
}

struct Flow {
    std::unordered_map<Id16, uint32_t, IdHash> calls;   // by callee key: functions, plain actors, classes
    std::unordered_map<Id16, Callee *, IdHash> durable; // by callee key: exactly-once actors
    Id16 last;             // the callee called last, and its count
    uint32_t *count = nullptr;
    bool all_answered() const {  // every call to an exactly-once actor has its reply
        for (auto &i : durable) {
            callee_settle(i.second);
            if (i.second->acked <= i.second->n) return false;
        }
        return true;
    }
    ~Flow() { for (auto &i : durable) callee_drop(i.second); }
};
static inline uint32_t flow_count(Flow *f, const Id16 *key) {
    if (!f->count || !(f->last == *key)) { f->count = &f->calls[*key]; f->last = *key; }
    return ++*f->count;
}

// What a call carries beside what every call has: calls to exactly-once actors, and calls whose callers are out of the ordinary.
struct CallNote {
    Blob *head = nullptr;      // CallHead as it goes into the frame
    Callee *callee = nullptr;
    uint32_t n = 0;
    bool touched = false;      // it (a task) has called exactly-once actors: they are told when it can never run again
    bool keyed = false;        // the user has named the call: `named`
    bool sent = false;         // under its present CallID
    uint8_t fate = 0;          // CallFate, once it was answered
    Id16 named{};
    Id16 call{};               // with `touched`: its CallID
};
static inline CallNote *note_new() { return new CallNote(); }
