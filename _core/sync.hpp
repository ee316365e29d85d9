// Small primitives that Cython has no words for: atomics on plain (possibly shared) memory, futexes, a clock.
//
// Everything here is inline, allocation-free and free of state. Words in shared memory are plain integers accessed
// through the compiler's atomic builtins, because std::atomic promises nothing about layout between processes.
#pragma once
#include <cstdint>
#include <cerrno>
#include <ctime>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline uint64_t load64(const uint64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint32_t load32(const uint32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline uint8_t load8(const uint8_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void store64(uint64_t *p, uint64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void store32(uint32_t *p, uint32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void store8(uint8_t *p, uint8_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline uint64_t or64(uint64_t *p, uint64_t v) { return __atomic_fetch_or(p, v, __ATOMIC_SEQ_CST); }
static inline uint64_t and64(uint64_t *p, uint64_t v) { return __atomic_fetch_and(p, v, __ATOMIC_SEQ_CST); }
static inline uint64_t take64(uint64_t *p) { return __atomic_exchange_n(p, (uint64_t)0, __ATOMIC_SEQ_CST); }
static inline uint32_t swap32(uint32_t *p, uint32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_SEQ_CST); }
static inline int32_t add32(int32_t *p, int32_t v) { return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
static inline bool cas32(uint32_t *p, uint32_t want, uint32_t v) {
    return __atomic_compare_exchange_n(p, &want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline bool cas64(uint64_t *p, uint64_t want, uint64_t v) {
    return __atomic_compare_exchange_n(p, &want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline bool cas_ptr(void **p, void *want, void *v) {
    return __atomic_compare_exchange_n(p, &want, v, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}
static inline void *take_ptr(void **p) { return __atomic_exchange_n(p, (void *)nullptr, __ATOMIC_SEQ_CST); }
static inline void full_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void cpu_relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

static inline uint64_t mono_ns() {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

// 0 when woken (or spuriously), -1 on time-out; timeout_ns < 0 waits without bound.
static inline int futex_wait(uint32_t *word, uint32_t seen, int64_t timeout_ns) {
    struct timespec t, *tp = nullptr;
    if (timeout_ns >= 0) {
        t.tv_sec = timeout_ns / 1000000000ll;
        t.tv_nsec = timeout_ns % 1000000000ll;
        tp = &t;
    }
    long r = syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, tp, nullptr, 0);
    return (r < 0 && errno == ETIMEDOUT) ? -1 : 0;
}
static inline void futex_wake(uint32_t *word, int n) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, nullptr, nullptr, 0); }

// A futex mutex: the try-lock is one instruction, and an uncontended unlock is one too. 0 free, 1 held, 2 held with waiters.
struct CoreLock {
    uint32_t word = 0;
};
static inline bool lock_try(CoreLock *l) { return cas32(&l->word, 0, 1); }
static inline void lock_take(CoreLock *l) {
    if (lock_try(l)) return;
    for (int i = 0; i < 100; i++) {
        cpu_relax();
        if (load32(&l->word) == 0 && lock_try(l)) return;
    }
    while (swap32(&l->word, 2) != 0) futex_wait(&l->word, 2, -1);
}
static inline void lock_drop(CoreLock *l) {
    if (swap32(&l->word, 0) == 2) futex_wake(&l->word, 1);
}

static inline uint64_t mix64(uint64_t x) {  // splitmix64 finaliser (Steele, Lea, Flood 2014)
    x += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}
