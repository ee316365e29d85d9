/* Copies large memory on several threads: one thread gets about half of what the memory of most machines can do.

   Threads take pieces by a counter, so that one which gets no processor takes none, and what it does not take the
   caller copies. The caller is the last to leave. No thread outlives the call. */

#pragma once

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>

#include <algorithm>
#include <atomic>

namespace ftw {

enum : size_t { PIECE = 4u << 20, MOST_THREADS = 4 };

struct Job {
    char *to;
    const char *from;
    size_t size;
    std::atomic<size_t> next{0};

    void work() noexcept {
        for (;;) {
            size_t at = next.fetch_add(PIECE, std::memory_order_relaxed);
            if (at >= size) return;
            memcpy(to + at, from + at, std::min(size - at, (size_t)PIECE));
        }
    }
};

static inline size_t processors() noexcept {
    cpu_set_t set;
    return sched_getaffinity(0, sizeof set, &set) == 0 ? (size_t)CPU_COUNT(&set) : 1;
}

/* Returns how many threads had a part in it; where none can be made it is the caller alone. */
static inline size_t copy(char *to, const char *from, size_t size) noexcept {
    Job job{to, from, size};
    size_t wanted = std::min({(size + PIECE - 1) / PIECE, processors(), (size_t)MOST_THREADS}), made = 0;
    pthread_t threads[MOST_THREADS];
    auto run = [](void *arg) -> void * {
        static_cast<Job *>(arg)->work();
        return nullptr;
    };
    sigset_t all, before;   /* signals are for the threads that Python knows */
    sigfillset(&all);
    if (wanted > 1) {
        pthread_sigmask(SIG_SETMASK, &all, &before);
        while (made + 1 < wanted && pthread_create(&threads[made], nullptr, run, &job) == 0) made++;
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
    }
    job.work();
    for (size_t i = 0; i < made; i++) pthread_join(threads[i], nullptr);
    return made + 1;
}

}
