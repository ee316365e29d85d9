// The execution context is one thread-local record; it lives in the context extension alone.
#pragma once
#include <cstdint>
#include <cstring>
struct Context {
    uint8_t task_id[24];
    uint8_t actor_id[16];
    uint8_t call_id[16];
    uint64_t unique;
    uint32_t attempt, depth;
    uint64_t children, puts;
    uint64_t key;  // of the call (call_key), 0 outside calls
    bool set;
};
