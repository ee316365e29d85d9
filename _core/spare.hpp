// Memory set aside for what is under way when the process has none left.
//
// Deep inside the core an allocation that fails has nobody to tell: records, queues and tables grow under the core
// lock, without the GIL, in code that must not throw, and `new` would end the process. So some address space is set
// aside, which nobody ever touches (it costs no memory). When an allocation fails, it is given up, the allocation is
// tried again, and whatever is under way can be finished. New work (`put`, a call) is refused with MemoryError from then
// on, until as much could be set aside again. The table of objects is one block: what is set aside has room for
// its next size as well.
//
// Owns: the address space, this process's new_handler. Included by runtime.pyx alone, whose extension has the one state.
#pragma once
#include "types.hpp"
#include <ctime>
#include <new>
#include <sys/mman.h>

struct Spare {
    static constexpr size_t LEAST = 16u << 20, PAGE = 4096;
    static constexpr size_t PER_BUCKET = 3 * sizeof(void *);   // a table grows to a prime above twice its buckets
    CoreLock lock;
    void *at = nullptr;
    size_t size = 0;
    Core *core = nullptr;
    std::new_handler before = nullptr;
    bool installed = false;

    void drop() {
        if (at) munmap(at, size);
        at = nullptr;
    }
};
// Never destroyed, as the Core.
static Spare &spare() {
    static Spare *made = new Spare();
    return *made;
}

// The background thread has nobody to tell at all, and others may be about to give memory back: it waits for that.
static thread_local bool spare_waits = false;
static thread_local uint64_t spare_short_since_ns = 0, spare_short_last_ns = 0;
static constexpr uint64_t SPARE_WAIT_NS = 10000000000ull, SPARE_PAUSE_NS = 2000000ull;

static bool spare_wait() {
    uint64_t now = mono_ns();
    if (now - spare_short_last_ns > SPARE_WAIT_NS) spare_short_since_ns = now;   // not the same shortage any more
    if (!spare_waits || now - spare_short_since_ns > SPARE_WAIT_NS) return false;
    struct timespec pause = {0, (long)SPARE_PAUSE_NS};
    nanosleep(&pause, nullptr);
    spare_short_last_ns = mono_ns();
    return true;
}

// Called by `new`, and by whoever has no memory: returns if it is worth trying again, else throws bad_alloc.
static void spare_give_up() {
    Spare &s = spare();
    lock_take(&s.lock);
    bool was = s.at != nullptr;
    s.drop();
    if (was) store32(&s.core->memory_short, 1);
    lock_drop(&s.lock);
    if (was || spare_wait()) return;
    if (s.before) s.before();
    else throw std::bad_alloc();
}

// Set aside what the tables need now; -1 if there is not so much.
static int spare_fill(Core *c) {
    Spare &s = spare();
    uint64_t buckets = c->objects.bucket_count();
    size_t size = (Spare::LEAST + Spare::PER_BUCKET * buckets + Spare::PAGE - 1) & ~(Spare::PAGE - 1);
    void *p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) {
        store32(&c->memory_short, 1);
        return -1;
    }
    lock_take(&s.lock);
    s.drop();
    s.at = p;
    s.size = size;
    s.core = c;
    if (!s.installed) {
        s.installed = true;
        s.before = std::set_new_handler(spare_give_up);
    }
    c->spare_buckets = buckets;
    store32(&c->memory_short, 0);
    lock_drop(&s.lock);
    return 0;
}

// The session is over.
static void spare_drop(Core *c) {
    Spare &s = spare();
    lock_take(&s.lock);
    if (s.core == c) s.drop();
    lock_drop(&s.lock);
}
