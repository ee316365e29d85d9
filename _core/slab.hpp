// Records of one size, packed into chunks, after Bonwick's slab allocator (USENIX Summer 1994).
//
// A driver that queues a million calls makes millions of small records. From malloc each costs its own header, a page
// fault for every 4 KiB (1.5 us on a virtual machine), and, once they are freed in another order, a walk through the
// bins. Here a record that is taken after another lies beside it, all chunks but the first ask for huge pages, and a
// chunk whose last record goes is whole again: it is given back, or kept for the next burst until `trim` finds that
// there was none.
//
// Owns: the chunks. Invariants: a chunk is in exactly one place: current, full, on the list of those with room, or on
// that of the empty ones; `live` counts its records. A chunk with live records is never unmapped, even at the end of
// the slab, because a stale ref may still point to one.
//
// The lock is held for a few instructions (a new chunk: two system calls), so that a thread may wait for it with the
// GIL held.
#pragma once
#include "sync.hpp"
#include <algorithm>
#include <cstdlib>
#include <new>
#include <set>
#include <sys/mman.h>
#include <utility>
#include <vector>

// What `new` does when it fails: whether it is worth trying again, because somebody gave memory up.
static inline bool memory_given_up() {
    std::new_handler give_up = std::get_new_handler();
    if (!give_up) return false;
    try {
        give_up();
    } catch (const std::bad_alloc &) {
        return false;
    }
    return true;
}

template <class T> class Slab {
    static constexpr uintptr_t CHUNK = 2u << 20;
    static constexpr uint32_t KEPT = 8;   // empty chunks

    struct Chunk {
        Chunk *prev, *next;   // while it is on a list
        void *free;           // records that were given back, linked through their first word
        uint32_t fresh, live; // never used so far; in use
        bool full;
    };
    static constexpr uint32_t HEAD = (sizeof(Chunk) + 63) & ~63u;
    static constexpr uint32_t ROOM = (uint32_t)((CHUNK - HEAD) / sizeof(T));

    CoreLock lock_;
    Chunk *current_ = nullptr, *partial_ = nullptr, *empty_ = nullptr;
    uint32_t n_empty_ = 0, least_empty_ = 0;
    bool grown_ = false;
    std::vector<Chunk *> chunks_;
#if defined(__SANITIZE_ADDRESS__)
    std::set<T *> all_;
#endif

    static Chunk *home(void *p) { return (Chunk *)((uintptr_t)p & ~(CHUNK - 1)); }
    static void push(Chunk **list, Chunk *k) {
        k->prev = nullptr;
        k->next = *list;
        if (*list) (*list)->prev = k;
        *list = k;
    }
    static void take(Chunk **list, Chunk *k) {
        (k->prev ? k->prev->next : *list) = k->next;
        if (k->next) k->next->prev = k->prev;
    }
    static void whole(Chunk *k) {
        k->free = nullptr;
        k->fresh = ROOM;
        k->full = false;
    }

    Chunk *map() {
        char *p;
        while ((p = (char *)mmap(nullptr, 2 * CHUNK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)) ==
               (char *)MAP_FAILED)
            if (!memory_given_up()) throw std::bad_alloc();
        char *k = (char *)(((uintptr_t)p + CHUNK - 1) & ~(CHUNK - 1));
        if (k > p) munmap(p, (size_t)(k - p));
        munmap(k + CHUNK, (size_t)(p + CHUNK - k));
        // Advice: a kernel without huge pages refuses it, and nothing is lost.
        madvise(k, CHUNK, grown_ ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
        grown_ = true;
        whole((Chunk *)k);
        ((Chunk *)k)->live = 0;
        chunks_.push_back((Chunk *)k);
        return (Chunk *)k;
    }

    void unmap(Chunk *k) {
        chunks_.erase(std::find(chunks_.begin(), chunks_.end(), k));
        munmap(k, CHUNK);
    }

    void renew_current() {
        if (current_) current_->full = true;
        if (partial_) {
            current_ = partial_;
            take(&partial_, current_);
        } else if (empty_) {
            current_ = empty_;
            take(&empty_, current_);
            if (--n_empty_ < least_empty_) least_empty_ = n_empty_;
        } else {
            current_ = nullptr;
            current_ = map();
        }
    }

    void emptied(Chunk *k) {
        whole(k);
        if (k == current_) return;
        if (n_empty_ == KEPT) {
            unmap(k);
            return;
        }
        push(&empty_, k);
        n_empty_++;
    }

  public:
    Slab() = default;
    Slab(const Slab &) = delete;
    Slab &operator=(const Slab &) = delete;
    ~Slab() {
        least_empty_ = n_empty_;
        trim();
        if (current_ && !current_->live) unmap(current_);
    }

    template <class... A> T *make(A &&...a) {
#if defined(__SANITIZE_ADDRESS__)
        T *made = new T(std::forward<A>(a)...);   // so that the sanitizer sees what is used after it went
        lock_take(&lock_);
        all_.insert(made);
        lock_drop(&lock_);
        return made;
#else
        lock_take(&lock_);
        if (!current_ || (!current_->free && !current_->fresh)) renew_current();
        Chunk *k = current_;
        void *p = k->free;
        if (p) k->free = *(void **)p;
        else p = (char *)k + HEAD + (size_t)(ROOM - k->fresh--) * sizeof(T);
        k->live++;
        lock_drop(&lock_);
        return new (p) T(std::forward<A>(a)...);
#endif
    }

    void drop(T *t) {
#if defined(__SANITIZE_ADDRESS__)
        lock_take(&lock_);
        all_.erase(t);
        lock_drop(&lock_);
        delete t;
#else
        t->~T();
        lock_take(&lock_);
        Chunk *k = home(t);
        *(void **)t = k->free;
        k->free = t;
        bool was_full = k->full;
        if (--k->live == 0) {
            if (!was_full && k != current_) take(&partial_, k);
            emptied(k);
        } else if (was_full) {
            k->full = false;
            push(&partial_, k);
        }
        lock_drop(&lock_);
#endif
    }

    // Every record that is in use, and perhaps some that were: a record must tell by itself whether it is.
    void collect(std::vector<T *> *out) {
        lock_take(&lock_);
#if defined(__SANITIZE_ADDRESS__)
        out->assign(all_.begin(), all_.end());
#else
        for (Chunk *k : chunks_)
            for (uint32_t i = 0; k->live && i < ROOM - k->fresh; i++) out->push_back((T *)((char *)k + HEAD) + i);
#endif
        lock_drop(&lock_);
    }

    // Give back the empty chunks that nobody needed since the last call.
    void trim() {
        lock_take(&lock_);
        for (; least_empty_; least_empty_--, n_empty_--) {
            Chunk *k = empty_;
            take(&empty_, k);
            unmap(k);
        }
        least_empty_ = n_empty_;
        lock_drop(&lock_);
    }
};
