/* The writing side of a local journal: segments, group commit, fence word. No Python in here; everything is noexcept and
   failures are codes. What the bytes mean is in docs/storage-format.md, what the class promises in journal.pyx.

   Threads. Callers append under `lock`, which nobody holds over an fsync. One thread per journal (`run`) makes durable:
   in POWER it writes what has gathered and calls fdatasync, in PROCESS it calls fdatasync now and then. A segment is
   made by a short-lived thread of its own (`prepare`) before it is needed. Each thread owns a reference. */
#pragma once
#include "journal_append.hpp"

namespace ftj {

struct Journal : Appender {
    explicit Journal(const Config& config) : Appender(config) {}

    /* -- the journal's own thread ------------------------------------------------- */
    static void* run_main(void* p) {
        Journal* j = static_cast<Journal*>(p);
        if (j->c.mode == POWER) j->run_power(); else j->run_process();
        j->ended();
        drop(j);
        return nullptr;
    }
    void ended() noexcept {
        if (failure.load() != OK) tell_failed();
        std::lock_guard<std::mutex> guard(lock);
        stopped = true;
        forget_next();
        progress.notify_all(); news.notify_all();
    }

    /* The own segment with its name, and what older epochs have left: durable before anything is said to be. */
    int sync_past(const char*& where) noexcept {
        where = "fsync a new journal segment";
        if (fsync(cur.fd)) return errno;
        where = "fsync an older journal segment";
        for (const auto& name : c.past) {
            int fd = openat(c.dir_fd, name.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
            if (fd < 0) { if (errno == ENOENT) continue; return errno; }
            int err = fdatasync(fd) ? errno : 0;
            ::close(fd);
            if (err) return err;
        }
        where = "fsync the directory";
        if (fsync(c.dir_fd)) return errno;
        return hit(P_PAST_SYNCED);
    }

    int write_chunk(const char* data, size_t size, const char*& where) noexcept {
        where = "write to the journal";
        size_t half = fault_point.load() == P_HALF ? size / 2 : 0;
        int err = half ? write_at(cur.fd, data, half, off_t(cur.used)) : 0;
        if (!err) err = hit(P_HALF);
        if (!err) err = write_at(cur.fd, data + half, size - half, off_t(cur.used + half));
        cur.used += size;
        return err;
    }
    int end_segment(size_t need, const char*& where) noexcept {
        Segment fresh, old;
        std::unique_lock<std::mutex> guard(lock);
        int err = next_segment(guard, fresh, need, where);
        if (err) return err;
        old = cur;
        cur = fresh;
        guard.unlock();
        where = "end a journal segment";
        err = put_bare(old, bare(END, old.seed, written));
        if (!err) err = hit(P_ENDED);
        if (!err) { where = "fdatasync the journal"; err = fdatasync(old.fd) ? errno : 0; }
        old.close_all();
        return err;
    }
    uint64_t written = 0;   /* position of the last record that `write_batch` has given to the kernel or is about to */

    int write_batch(std::vector<char>& batch, uint64_t& bytes, const char*& where) noexcept {
        size_t start = 0, at = 0;
        while (at < batch.size()) {
            Head h;
            memcpy(&h, batch.data() + at, RECORD);
            size_t size = h.word & 0x0FFFFFFF, need = framed(size);
            if (cur.used + (at - start) + need + RECORD > cur.size) {
                int err = at > start ? write_chunk(batch.data() + start, at - start, where) : 0;
                if (!err) err = end_segment(need, where);
                if (err) return err;
                start = at;
            }
            h.synced = synced.load(std::memory_order_relaxed);
            seal_record(h, cur.seed, batch.data() + at + RECORD, size);
            memcpy(batch.data() + at, &h, RECORD);
            written = h.position;
            bytes += size;
            at += need;
        }
        int err = write_chunk(batch.data() + start, at - start, where);
        return err ? err : hit(P_WRITTEN);
    }

    /* True: everything up to `upto` may be answered. */
    bool commit(std::vector<char>& batch, uint64_t upto) noexcept {
        const char* where = "";
        uint64_t bytes = 0;
        set_doubt(1 + durable.load());
        int err = write_batch(batch, bytes, where);
        if (!err) { where = "fdatasync the journal"; err = fdatasync(cur.fd) ? errno : hit(P_SYNCED); }
        if (err) { fail(MEDIUM, err, where); return false; }
        set_doubt(0);
        if (!holds()) return false;   /* append, make durable, and only then look at the fence */
        if ((err = hit(P_RECHECKED))) { fail(MEDIUM, err, "re-check the fence"); return false; }
        synced = upto;
        durable_bytes.fetch_add(bytes, std::memory_order_relaxed);   /* first: who is told looks at it */
        advance(upto);
        n_commits.fetch_add(1, std::memory_order_relaxed);
        return true;
    }
    void advance(uint64_t upto) noexcept {
        {
            std::lock_guard<std::mutex> guard(lock);
            durable.store(upto, std::memory_order_release);
            progress.notify_all();
            if (upto >= tell_from) news.notify_all();   /* else a thread would wake for each commit, to find nothing to do */
        }
        std::lock_guard<std::recursive_mutex> guard(called);
        if (on_durable) on_durable(arg, upto);
    }
    /* Says on the medium what is durable, so that damage there is told from a torn tail. Not synced itself. */
    int put_mark(uint64_t position, int kind) noexcept {
        if (cur.used + (kind == MARK ? 2 : 1) * RECORD > cur.size) return 0;
        int err = put_bare(cur, bare(kind, cur.seed, position));
        return err ? err : hit(P_MARKED);
    }
    void mark_process(int kind) noexcept {
        std::lock_guard<std::mutex> guard(lock);
        if (failure.load() != OK) return;
        if (int err = put_mark(last.load(), kind)) fail_locked(MEDIUM, err, "mark the journal");
    }
    /* Without the lock: a write may have to wait for the one that goes on. Only this thread writes in POWER. */
    void mark_power(int kind) noexcept {
        if (int err = put_mark(written, kind)) fail(MEDIUM, err, "mark the journal");
    }
    /* A page that an fsync failed on is clean in the page cache, and no later fsync says so: whoever reads what was
       written now, after us, must not take it for durable. 0 takes it back. */
    void set_doubt(uint64_t value) noexcept {
        if (life_writable) reinterpret_cast<std::atomic<uint64_t>*>(life + L_DOUBT)->store(value);
        else write_at(c.life_fd, reinterpret_cast<char*>(&value), 8, L_DOUBT);
    }

    /* Under `lock`: move what may be written to `batch`; returns the position of the last of it. */
    uint64_t take_batch(std::vector<char>& batch) {   /* throws bad_alloc, and then nothing is moved */
        batch.clear();
        if (limit > last.load()) {
            batch.swap(pending);
            return last.load();
        }
        size_t at = 0;
        uint64_t upto = 0;
        while (at < pending.size()) {
            Head h;
            memcpy(&h, pending.data() + at, RECORD);
            if (h.position >= limit) break;
            upto = h.position;
            at += framed(h.word & 0x0FFFFFFF);
        }
        batch.assign(pending.begin(), pending.begin() + at);
        pending.erase(pending.begin(), pending.begin() + at);
        return upto;
    }
    /* Records from `position` on are not written before this is called again. */
    bool hold_back(uint64_t position) noexcept {
        if (c.mode != POWER) return false;
        std::lock_guard<std::mutex> guard(lock);
        limit = position;
        if (takeable()) { asleep = false; work.notify_one(); }   /* else it would sleep on, and nobody would wake it */
        return true;
    }

    /* Whoever appends has no more at hand. Without this word the thread waits a bounded time. */
    void rest() noexcept {
        rests.store(true, std::memory_order_relaxed);
        if (!busy.load(std::memory_order_relaxed)) return;
        std::lock_guard<std::mutex> guard(lock);
        hurry();
    }
    /* Under `lock`: somebody waits for what was appended. */
    void hurry() noexcept {
        busy.store(false, std::memory_order_relaxed);
        if (gathering) work.notify_one();
    }
    /* Under `guard`, after a commit that took so long: records of an appender who goes on are left to become more, for
       twice as long at most. A third of the commits do then, each of which costs the processor what many records cost. */
    void gather(std::unique_lock<std::mutex>& guard, std::chrono::nanoseconds took) noexcept {
        if (!busy.load(std::memory_order_relaxed) || !takeable()) return;
        gathering = true;
        work.wait_for(guard, std::min(2 * took, std::chrono::nanoseconds(GATHER_NS)), [&] {
            return !busy.load(std::memory_order_relaxed) || stopping || failure.load() != OK; });
        gathering = false;
    }

    void run_power() noexcept {
        using Clock = std::chrono::steady_clock;
        const char* where = "";
        if (int err = sync_past(where)) { fail(MEDIUM, err, where); return; }
        if (!holds()) return;
        written = synced = c.first_position - 1;
        advance(c.first_position - 1);
        std::vector<char> batch;
        bool marked = true;
        for (;;) {
            uint64_t upto;
            {
                std::unique_lock<std::mutex> guard(lock);
                auto ready = [&] { return takeable() || (stopping && pending.empty()) || failure.load() != OK; };
                asleep = true;
                if (!marked && !work.wait_for(guard, std::chrono::milliseconds(100), ready)) {
                    guard.unlock(); mark_power(MARK); marked = true; guard.lock();
                }
                asleep = true;
                if (marked) work.wait(guard, ready);
                asleep = false;
                if (failure.load() != OK) return;
                if (pending.empty()) break;
                try { upto = take_batch(batch); }
                catch (...) { fail_locked(MEDIUM, ENOMEM, "write to the journal"); return; }
            }
            auto begun = Clock::now();
            if (!commit(batch, upto)) return;
            marked = false;
            if (batch.capacity() > (8u << 20)) std::vector<char>().swap(batch);
            std::unique_lock<std::mutex> guard(lock);
            look_ahead();
            gather(guard, Clock::now() - begun);
        }
        mark_power(ENDED);
        if (hit(P_CLOSED)) fail(MEDIUM, EIO, "close the journal");
    }

    /* What is full, and the present segment as well if `whole`, with their names. */
    int sync_process(std::vector<Segment>& full, int fd, bool whole) noexcept {
        int err = 0;
        for (auto& s : full) {
            s.unmap();          /* first: to clean a page that is mapped interrupts every processor that runs a thread of ours */
            if (!err && fdatasync(s.fd)) err = errno;
            s.close_all();
        }
        if (!err && whole && fdatasync(fd)) err = errno;
        if (!err && !named && fsync(c.dir_fd)) err = errno;
        return err ? err : hit(P_SYNCED);
    }
    /* A full segment is synced at once, the present one only now and then: its pages have just been written with zeros,
       which would go to the medium once more, and each would be write-protected on the way and fault when a record comes. */
    void run_process() noexcept {
        using Clock = std::chrono::steady_clock;
        const auto interval = std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(c.sync_interval_s));
        uint64_t done = c.first_position - 1;
        bool last_round = false;
        auto due = Clock::now() + interval;
        while (!last_round) {
            std::vector<Segment> full;
            uint64_t upto;
            int fd;
            bool whole;
            {
                std::unique_lock<std::mutex> guard(lock);
                auto called_for = [&] { return stopping || !retired.empty() || flush_wanted || failure.load() != OK; };
                if (last.load() == done && !called_for()) {
                    asleep = true;
                    work.wait(guard, [&] { return !asleep || called_for(); });
                    asleep = false;
                    due = Clock::now() + interval;
                }
                work.wait_until(guard, due, called_for);
                if (failure.load() != OK) return;
                last_round = stopping;
                whole = stopping || flush_wanted || Clock::now() >= due;
                flush_wanted = false;
                full.swap(retired);
                upto = whole ? last.load() : full.empty() ? done : full.back().ends;
                fd = cur.fd;
            }
            bool grown = upto != done;
            if (!full.empty()) named = false;       /* the present segment is a new one */
            if (grown) {
                if (int err = sync_process(full, fd, whole)) { fail(MEDIUM, err, "fdatasync the journal"); return; }
                named = true;
                n_commits.fetch_add(1, std::memory_order_relaxed);
                done = upto;
                synced = upto;
            }
            if (last_round) mark_process(ENDED);
            else if (grown && whole) mark_process(MARK);    /* else the records that follow say so */
            if (whole) due = Clock::now() + interval;
            if (fence_set()) { fail(FENCED, 0, "fence"); return; }
        }
        if (fdatasync(cur.fd)) { fail(MEDIUM, errno, "fdatasync the journal"); return; }
        if (hit(P_CLOSED)) fail(MEDIUM, EIO, "close the journal");
    }

    /* -- opening, waiting, closing ------------------------------------------------- */
    int open(const char*& where) noexcept {
        where = "map the life file";
        struct stat status;
        if (fstat(c.life_fd, &status)) return errno;
        if (size_t(status.st_size) < LIFE) return EINVAL;
        life_writable = c.in_place;
        void* map = mmap(nullptr, LIFE, life_writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, c.life_fd, 0);
        if (map == MAP_FAILED) return errno;
        life = static_cast<char*>(map);
        madvise(map, LIFE, MADV_DONTFORK);
        mlock(map, LIFE);
        snprintf(own_claim, sizeof own_claim, "epoch-%010llu.claim", (unsigned long long)c.epoch);
        snprintf(next_claim, sizeof next_claim, "epoch-%010llu.claim", (unsigned long long)c.epoch + 1);
        last = c.first_position - 1;
        next_size = c.first_size;
        int err = make_segment(cur, 1, c.first_position, c.first_size, false, where);
        if (err) return err;
        grow_next();
        if (c.mode == PROCESS) { durable = c.first_position - 1; synced = 0; }
        where = "start the journal's thread";
        return spawn(run_main) ? 0 : EAGAIN;
    }
    /* 0: durable; 1: not yet; else see `failure`. */
    int wait(uint64_t position, double timeout_s) noexcept {
        std::unique_lock<std::mutex> guard(lock);
        auto over = [&] { return durable.load() >= position || failure.load() != OK || stopped; };
        if (!over()) hurry();
        progress.wait_for(guard, std::chrono::duration<double>(timeout_s), over);
        if (durable.load() >= position) return 0;
        return failure.load() != OK || stopped ? 2 : 1;
    }
    /* What grew beyond `seen` and reaches what is wanted, or a failure or the end: for the thread that tells Python. */
    void wait_news(uint64_t seen) noexcept {
        std::unique_lock<std::mutex> guard(lock);
        news.wait(guard, [&] {
            uint64_t now = durable.load();
            return (now > seen && now >= tell_from) || failure.load() != OK || stopped;
        });
    }
    void want_news(uint64_t from) noexcept {
        std::lock_guard<std::mutex> guard(lock);
        tell_from = from;
        if (durable.load() >= from) news.notify_all();
    }
    void flush() noexcept {
        std::lock_guard<std::mutex> guard(lock);
        if (c.mode == POWER) { hurry(); return; }   /* else `append` has woken the thread, or it comes back */
        flush_wanted = true; asleep = false;
        work.notify_one();
    }
    void stop() noexcept {
        std::lock_guard<std::mutex> guard(lock);
        stopping = true; asleep = false;
        work.notify_all();
    }
    bool wait_stopped(double timeout_s) noexcept {
        std::unique_lock<std::mutex> guard(lock);
        return progress.wait_for(guard, std::chrono::duration<double>(timeout_s), [&] { return stopped; });
    }

    /* -- the life file ------------------------------------------------- */
    /* The flag is down while the CallID changes: a death in between is one between calls. */
    void running(const char* id) noexcept {
        if (generation.load(std::memory_order_relaxed) != born) return;
        char none[LIFE - L_RUNNING];
        uint32_t row;
        memcpy(&row, life + L_ROW, 4);
        bool over = !id && row && !memcmp(life + L_CALL, life + L_ROW_CALL, 16);
        if (life_writable) {
            auto* flag = reinterpret_cast<std::atomic<uint32_t>*>(life + L_RUNNING);
            if (over && flag->load(std::memory_order_relaxed)) memset(life + L_ROW, 0, 4);
            flag->store(0, std::memory_order_release);
            std::atomic_signal_fence(std::memory_order_seq_cst);
            if (!id) return;
            memcpy(life + L_CALL, id, 16);
            flag->store(1, std::memory_order_release);
            return;
        }
        size_t size = L_ROW + 4 - L_RUNNING;
        memcpy(none, life + L_RUNNING, size);
        uint32_t flag, set = id ? 1 : 0;
        memcpy(&flag, none, 4);
        if (over && flag) memset(none + (L_ROW - L_RUNNING), 0, 4);
        memcpy(none, &set, 4);
        if (id) memcpy(none + (L_CALL - L_RUNNING), id, 16);
        write_at(c.life_fd, none, size, L_RUNNING);
    }
};

/* For the successor: after this returns, the old one's writer sees the word or its record is read. */
static inline int set_fence(int fd, uint64_t epoch) noexcept {
    int err = write_at(fd, reinterpret_cast<const char*>(&epoch), 8, L_FENCE);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    return err;
}

}  // namespace ftj
