// The execution context is one thread-local record; it lives in the context extension alone.
#pragma once
#include <cstdint>
#include <cstring>
struct Flow;   // flows.hpp
struct Context {
    uint8_t task_id[24];
    uint8_t actor_id[16];
    uint8_t call_id[16];
    uint64_t unique;
    uint32_t attempt, depth;
    uint64_t children, puts;
    uint64_t key;        // of the call (call_key), 0 outside calls
    Flow *flow;          // what it has called so far (flows.pyx); made when it first calls
    const char *block;   // the call head that came with the call: what its calls inherit; NULL: nothing out of the ordinary
    uint32_t block_size;
    uint32_t epoch;      // the call runs exclusively in an exactly-once actor of this epoch; 0: it does not
    uint8_t durable;     // FLOW_LIVE, FLOW_REPLAY: the call is a mutating method of an exactly-once actor
    bool touched;        // it has called an exactly-once actor
    bool stray;          // outside every task and the driver's main flow: its calls have names that nobody can repeat
    bool set;
};
