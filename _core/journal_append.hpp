/* The appending half of a local journal: its state, the fence word, segments that are used one after the other, records.
   What the bytes mean is in docs/storage-format.md; threads and the medium are journal_sys.hpp's. */
#pragma once
#include "journal_base.hpp"

namespace ftj {

struct Appender : Maker {
    std::atomic<uint32_t> refs{1};
    uint32_t born;
    std::mutex lock;
    std::condition_variable work, progress, prepared, news;
    /* Under `lock`. */
    Segment cur, next;
    int next_state = NEXT_NONE;
    bool next_failed = false, stopping = false, stopped = false, asleep = false, flush_wanted = false;
    size_t next_size = 0;
    std::vector<Segment> retired;
    std::vector<char> pending;                /* POWER: framed, without CRC */
    uint64_t limit = UINT64_MAX;              /* POWER: records from here on wait in `pending` */
    bool gathering = false;                   /* POWER: the thread waits for the appender to rest */
    std::atomic<bool> busy{false};            /* POWER: somebody who says when he rests has appended, and has not yet said so */
    std::atomic<bool> rests{false};           /* there is such a one */
    uint64_t tell_from = 0;                   /* whoever waits in `wait_news` wants no position below */
    int error = 0;
    const char* step = "";
    std::atomic<int> failure{OK};
    std::atomic<uint64_t> last{0}, durable{0}, synced{0};
    std::atomic<uint64_t> n_records{0}, n_commits{0}, n_bytes{0};
    std::atomic<uint64_t> durable_bytes{0};   /* POWER: how many of `n_bytes` are durable */
    char* life = nullptr;
    bool life_writable = false;
    bool named = false;                       /* PROCESS, the journal's thread: the names of all segments are durable */
    char own_claim[40], next_claim[40];
    /* Callbacks: under `called`, so that nobody is called after `silence`. */
    std::recursive_mutex called;
    Durable on_durable = nullptr;
    Failed on_failed = nullptr;
    void* arg = nullptr;

    explicit Appender(const Config& config) : Maker(config), born(generation.load()) {}

    virtual ~Appender() {
        cur.close_all(); next.close_all();
        for (auto& s : retired) s.close_all();
        if (life) munmap(life, LIFE);
        if (c.life_fd >= 0) ::close(c.life_fd);
        if (c.dir_fd >= 0) ::close(c.dir_fd);
    }

    void take() noexcept { refs.fetch_add(1, std::memory_order_relaxed); }
    static void drop(Appender* j) noexcept { if (j->refs.fetch_sub(1, std::memory_order_acq_rel) == 1) delete j; }

    /* -- failing ------------------------------------------------- */
    /* Under `lock`. The first failure stays. */
    void fail_locked(int code, int err, const char* where) noexcept {
        if (failure.load() != OK) return;
        error = err; step = where;
        failure = code;
        progress.notify_all(); work.notify_all(); prepared.notify_all(); news.notify_all();
    }
    void fail(int code, int err, const char* where) noexcept {
        std::lock_guard<std::mutex> guard(lock);
        fail_locked(code, err, where);
    }
    void tell_failed() noexcept {
        std::lock_guard<std::recursive_mutex> guard(called);
        if (on_failed) { Failed f = on_failed; on_failed = nullptr; f(arg); }
    }
    void silence() noexcept {
        std::lock_guard<std::recursive_mutex> guard(called);
        on_durable = nullptr; on_failed = nullptr;
    }

    /* -- the fence ------------------------------------------------- */
    bool fence_set() const noexcept {
        return reinterpret_cast<const std::atomic<uint64_t>*>(life + L_FENCE)->load(std::memory_order_relaxed) != 0;
    }
    /* 0: no later claim, and the own one is there. ENOENT: fenced. Else it cannot be told. */
    int look_at_claims() const noexcept {
        if (faccessat(c.dir_fd, next_claim, F_OK, AT_SYMLINK_NOFOLLOW) == 0) return ENOENT;
        if (errno != ENOENT) return errno;
        return faccessat(c.dir_fd, own_claim, F_OK, AT_SYMLINK_NOFOLLOW) == 0 ? 0 : errno;
    }
    bool fence_open() noexcept {
        std::atomic_thread_fence(std::memory_order_seq_cst);
        if (!fence_set()) return true;
        fail(FENCED, 0, "fence");
        return false;
    }
    bool holds() noexcept {
        std::atomic_thread_fence(std::memory_order_seq_cst);
        int err = fence_set() ? ENOENT : look_at_claims();
        if (!err) return true;
        if (err == ENOENT) fail(FENCED, 0, "fence");
        else fail(MEDIUM, err, "look for later claims");
        return false;
    }

    /* -- segments ------------------------------------------------- */
    size_t size_for(size_t record) const noexcept {
        size_t least = (HEADER + record + RECORD + 4095) & ~size_t(4095);
        return next_size > least ? next_size : least;
    }
    /* What is prepared takes room on the disk: large only for who has filled many. */
    void grow_next() noexcept {
        size_t most = c.mode == PROCESS && n_bytes.load() < 32 * STEADY && c.max_size > STEADY ? STEADY : c.max_size;
        next_size = next_size * 4 < most ? next_size * 4 : most;
    }

    /* Under `lock`: a segment that was made and never used. */
    void forget_next() noexcept {
        if (next_state != NEXT_READY) return;
        char name[64];
        segment_name(name, sizeof name, next.number);
        unlinkat(c.dir_fd, name, 0);
        next.close_all();
        next = Segment();
        next_state = NEXT_NONE;
    }

    static void* prepare_main(void* p) {
        Appender* j = static_cast<Appender*>(p);
        j->prepare();
        drop(j);
        return nullptr;
    }
    void prepare() noexcept {
        Segment s;
        const char* where = "";
        uint32_t number; size_t size;
        { std::lock_guard<std::mutex> guard(lock); number = cur.number + 1; size = size_for(0); }
        int err = make_segment(s, number, 0, size, c.mode == POWER, where);
        std::lock_guard<std::mutex> guard(lock);
        if (err) { next_state = NEXT_NONE; next_failed = true; }
        else { next = s; next_state = NEXT_READY; }
        if (stopped) forget_next();
        prepared.notify_all();
    }
    bool spawn(void* (*main)(void*)) noexcept {
        pthread_t thread;
        pthread_attr_t attr;
        if (pthread_attr_init(&attr)) return false;
        pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attr, 256 << 10);
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);   /* signals are for the threads that Python knows */
        take();
        bool made = pthread_create(&thread, &attr, main, this) == 0;
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        pthread_attr_destroy(&attr);
        if (!made) refs.fetch_sub(1);
        return made;
    }
    /* Under `lock`: the next segment is made before this one is full. */
    void look_ahead() noexcept {
        if (next_state != NEXT_NONE || next_failed || cur.used < cur.size / 2) return;
        next_state = NEXT_MAKING;
        if (!spawn(prepare_main)) { next_state = NEXT_NONE; next_failed = true; }
    }
    /* Under `guard`: take the next segment into `out`, made now if need be (then, in PROCESS, without fsync). */
    int next_segment(std::unique_lock<std::mutex>& guard, Segment& out, size_t record, const char*& where) noexcept {
        while (next_state == NEXT_MAKING) prepared.wait(guard);
        if (next_state == NEXT_READY && next.size >= HEADER + record + RECORD) {
            out = next;
        } else {
            forget_next();   /* too small for this record */
            uint32_t number = cur.number + 1;
            size_t size = size_for(record);
            next_state = NEXT_MAKING;
            if (c.mode == POWER) guard.unlock();
            int err = make_segment(out, number, 0, size, c.mode == POWER, where);
            if (c.mode == POWER) guard.lock();
            next_state = NEXT_NONE;
            if (err) return err;
        }
        next = Segment(); next_state = NEXT_NONE; next_failed = false;
        grow_next();
        return 0;
    }

    /* -- records ------------------------------------------------- */
    static void seal_record(Head& h, uint32_t seed, const char* payload, size_t size) noexcept {
        h.crc = crc32(crc32(seed, reinterpret_cast<char*>(&h) + 4, RECORD - 4), payload, size);
    }
    Head bare(int kind, uint32_t seed, uint64_t position) const noexcept {
        Head h{0, uint32_t(kind) << 28, position, synced.load()};
        seal_record(h, seed, nullptr, 0);
        return h;
    }
    int put_bare(Segment& s, const Head& h) noexcept {
        int err = 0;
        if (s.map) memcpy(s.map + s.used, &h, RECORD);
        else err = write_at(s.fd, reinterpret_cast<const char*>(&h), RECORD, off_t(s.used));
        s.used += RECORD;
        return err;
    }

    /* PROCESS, under `guard`. A record's head is written last: until then there is no record. */
    int put_record(std::unique_lock<std::mutex>& guard, const Part* parts, int n, size_t size) noexcept {
        size_t need = framed(size);
        if (cur.used + need + RECORD > cur.size) {
            Segment fresh;
            const char* where = "";
            int err = next_segment(guard, fresh, need, where);
            if (err) { fail_locked(MEDIUM, err, where); return 0; }
            if (failure.load() != OK) { fresh.close_all(); return 0; }
            err = put_bare(cur, bare(END, cur.seed, last.load()));
            if (!err) err = hit(P_ENDED);
            cur.ends = last.load();
            retired.push_back(cur);
            cur = fresh;
            if (err) { fail_locked(MEDIUM, err, "end a journal segment"); return 0; }
        }
        Head h{0, uint32_t(DATA) << 28 | uint32_t(size), last.load(std::memory_order_relaxed) + 1,
               synced.load(std::memory_order_relaxed)};
        uint32_t crc = crc32(cur.seed, reinterpret_cast<char*>(&h) + 4, RECORD - 4);
        for (int i = 0; i < n; i++) crc = crc32(crc, parts[i].data, parts[i].size);
        h.crc = crc;
        if (cur.map) {
            char* to = cur.map + cur.used + RECORD;
            for (int i = 0; i < n; i++) { memcpy(to, parts[i].data, parts[i].size); to += parts[i].size; }
            if (int err = hit(P_HALF)) { fail_locked(MEDIUM, err, "write a record"); return 0; }
            std::atomic_signal_fence(std::memory_order_seq_cst);
            std::atomic_thread_fence(std::memory_order_release);
            memcpy(cur.map + cur.used, &h, RECORD);
        } else {
            std::vector<char>& b = pending;
            b.resize(need);
            memcpy(b.data(), &h, RECORD);
            char* to = b.data() + RECORD;
            for (int i = 0; i < n; i++) { memcpy(to, parts[i].data, parts[i].size); to += parts[i].size; }
            memset(to, 0, size_t(b.data() + need - to));
            int err = hit(P_HALF);
            if (!err) err = write_at(cur.fd, b.data(), need, off_t(cur.used));
            if (err) { fail_locked(MEDIUM, err, "write a record"); return 0; }
        }
        cur.used += need;
        last.store(h.position, std::memory_order_relaxed);
        return 1;
    }

    void queue_record(const Part* parts, int n, size_t size) {   /* throws bad_alloc */
        size_t at = pending.size(), need = framed(size);
        pending.resize(at + need);
        Head h{0, uint32_t(DATA) << 28 | uint32_t(size), last.load() + 1, 0};
        memcpy(pending.data() + at, &h, RECORD);
        char* to = pending.data() + at + RECORD;
        for (int i = 0; i < n; i++) { memcpy(to, parts[i].data, parts[i].size); to += parts[i].size; }
        memset(to, 0, size_t(pending.data() + at + need - to));
        last.store(h.position);
    }

    /* Bytes of records that are in memory only. In PROCESS a record is in the page cache when `append` returns. Counted
       after the lock was left, so that a commit may be ahead: no call pays for more. */
    uint64_t waiting() const noexcept {
        if (c.mode != POWER) return 0;
        uint64_t durable_now = durable_bytes.load(std::memory_order_relaxed), all = n_bytes.load(std::memory_order_relaxed);
        return all > durable_now ? all - durable_now : 0;
    }

    /* Under `lock`: is there a record that may be written? */
    bool takeable() const noexcept {
        if (pending.empty()) return false;
        Head h;
        memcpy(&h, pending.data(), RECORD);
        return h.position < limit;
    }
    /* Returns the position; 0: see `code`. */
    uint64_t append(const Part* parts, int n, int& code) noexcept {
        size_t size = 0;
        for (int i = 0; i < n; i++) size += parts[i].size;
        if (!size || size > MAX_RECORD) { code = BAD_SIZE; return 0; }
        if (generation.load(std::memory_order_relaxed) != born) { code = FORKED; return 0; }
        uint64_t position = 0;
        bool wake = false;   /* told after the lock is free: who is woken under it sleeps again at once */
        try {
            std::unique_lock<std::mutex> guard(lock);
            if ((code = failure.load(std::memory_order_relaxed)) != OK) return 0;
            if (stopping) { code = CLOSED; return 0; }
            if (c.mode == POWER) {
                queue_record(parts, n, size);
                position = last.load(std::memory_order_relaxed);
                busy.store(rests.load(std::memory_order_relaxed), std::memory_order_relaxed);
                if (asleep && takeable()) { asleep = false; wake = true; }
            } else if (put_record(guard, parts, n, size)) {
                int err = hit(P_WRITTEN);
                if (err) fail_locked(MEDIUM, err, "write a record");
                /* The record is in the page cache; then, and only then, is the key still held? */
                std::atomic_thread_fence(std::memory_order_seq_cst);
                if (fence_set()) fail_locked(FENCED, 0, "fence");
                if (failure.load(std::memory_order_relaxed) == OK) {
                    position = last.load(std::memory_order_relaxed);
                    durable.store(position, std::memory_order_release);
                }
                look_ahead();
                wake = asleep || !retired.empty();
                asleep = false;
            }
            code = failure.load();   /* the journal's thread tells of it */
        } catch (...) { code = NO_MEMORY; return 0; }
        if (wake) work.notify_one();
        if (code != OK) return 0;
        if (position) { n_records.fetch_add(1, std::memory_order_relaxed); n_bytes.fetch_add(size, std::memory_order_relaxed); }
        return position;
    }
};

}  // namespace ftj
