/* The writing side of a local journal: segments, group commit, fence word. No Python in here; everything is noexcept and
   failures are codes. What the bytes mean is in docs/storage-format.md, what the class promises in journal.pyx.

   Threads. Callers append under `lock`, which nobody holds over an fsync. One thread per journal (`run`) makes durable:
   in POWER it writes what has gathered and calls fdatasync, in PROCESS it calls fdatasync now and then. A segment is
   made by a short-lived thread of its own (`prepare`) before it is needed. Each thread owns a reference. */
#pragma once
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <mutex>
#include <new>
#include <csignal>
#include <pthread.h>
#include <string>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>
#include <vector>
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace ftj {

enum { PROCESS = 1, POWER = 2 };
enum { DATA = 1, MARK = 2, END = 3, ENDED = 4 };
enum JournalCode { OK = 0, FENCED = 1, MEDIUM = 2, CLOSED = 3, FORKED = 4, BAD_SIZE = 5, NO_MEMORY = 6 };
enum { ACT_NONE = 0, ACT_EXIT = 1, ACT_RAISE = 2, ACT_STALL = 3 };
enum { P_NONE, P_CREATED, P_ZEROED, P_SEG_SYNCED, P_RENAMED, P_DIR_SYNCED, P_PAST_SYNCED, P_HALF, P_WRITTEN, P_SYNCED,
       P_RECHECKED, P_ENDED, P_MARKED, P_CLOSED };
enum { NEXT_NONE, NEXT_MAKING, NEXT_READY };
static constexpr size_t HEADER = 4096, COPY = 2048, RECORD = 24, MAX_RECORD = 64u << 20;
static constexpr size_t L_FENCE = 40, L_DOUBT = 48, L_RUNNING = 56, L_CALL = 64, L_ROW_CALL = 80, L_ROW = 96, LIFE = 4096;

struct Part { const char* data; size_t size; };
struct Head { uint32_t crc, word; uint64_t position, synced; };
static_assert(sizeof(Head) == RECORD, "no padding");
typedef void (*Durable)(void* arg, uint64_t position);
typedef void (*Failed)(void* arg);

/* A child of fork() has none of the threads: it must not append. */
static std::atomic<uint32_t> generation{0};
static inline void forked() { generation.fetch_add(1, std::memory_order_relaxed); }
static inline void watch_forks() noexcept { pthread_atfork(nullptr, nullptr, forked); }

/* CRC-32 as in zlib, which every language has; eight bytes at a time. */
struct Table {
    uint32_t t[8][256];
    Table() noexcept {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++) c = (c >> 1) ^ (0xEDB88320u & (0u - (c & 1)));
            t[0][i] = c;
        }
        for (int k = 1; k < 8; k++)
            for (uint32_t i = 0; i < 256; i++) t[k][i] = (t[k - 1][i] >> 8) ^ t[0][t[k - 1][i] & 255];
    }
};
static const Table table;

static inline uint32_t crc32(uint32_t crc, const void* data, size_t size) noexcept {
    const unsigned char* p = static_cast<const unsigned char*>(data);
    const auto& t = table.t;
    crc = ~crc;
    while (size >= 8) {
        uint64_t v;
        memcpy(&v, p, 8);
        v ^= crc;
        crc = t[7][v & 255] ^ t[6][v >> 8 & 255] ^ t[5][v >> 16 & 255] ^ t[4][v >> 24 & 255] ^
              t[3][v >> 32 & 255] ^ t[2][v >> 40 & 255] ^ t[1][v >> 48 & 255] ^ t[0][v >> 56];
        p += 8; size -= 8;
    }
    while (size--) crc = (crc >> 8) ^ t[0][(crc ^ *p++) & 255];
    return ~crc;
}

static inline size_t padded(size_t n) noexcept { return (n + 7) & ~size_t(7); }
static inline size_t framed(size_t payload) noexcept { return RECORD + padded(payload); }

static inline int write_at(int fd, const char* data, size_t size, off_t at) noexcept {
    while (size) {
        ssize_t n = pwrite(fd, data, size, at);
        if (n < 0) { if (errno == EINTR) continue; return errno; }
        if (!n) return EIO;
        data += n; size -= size_t(n); at += n;
    }
    return 0;
}

struct Segment {
    int fd = -1;
    char* map = nullptr;
    size_t size = 0, used = 0;
    uint32_t number = 0, seed = 0;
    void close_all() noexcept {
        if (map) munmap(map, size);
        if (fd >= 0) ::close(fd);
        map = nullptr; fd = -1;
    }
};

struct Config {
    int dir_fd = -1, life_fd = -1, mode = PROCESS;
    bool in_place = false;       /* overwriting never needs space: the segment may be mapped */
    uint64_t epoch = 0, first_position = 1;
    std::string key, boot;       /* boot: 16 bytes */
    size_t first_size = 256 << 10, max_size = 16 << 20;
    double sync_interval_s = 2.0;
    std::vector<std::string> past;   /* segments of older epochs, which POWER makes durable first */
};

struct Journal {
    Config c;
    std::atomic<uint32_t> refs{1};
    uint32_t born;
    std::mutex lock;
    std::condition_variable work, progress, prepared;
    /* Under `lock`. */
    Segment cur, next;
    int next_state = NEXT_NONE;
    bool next_failed = false, stopping = false, stopped = false, asleep = false, flush_wanted = false;
    size_t next_size = 0;
    std::vector<Segment> retired;
    std::vector<char> pending;                /* POWER: framed, without CRC */
    int error = 0;
    const char* step = "";
    std::atomic<int> failure{OK};
    std::atomic<uint64_t> last{0}, durable{0}, synced{0};
    std::atomic<uint64_t> n_records{0}, n_commits{0}, n_segments{0}, n_bytes{0};
    char* life = nullptr;
    bool life_writable = false;
    char own_claim[40], next_claim[40];
    /* Callbacks: under `called`, so that nobody is called after `silence`. */
    std::recursive_mutex called;
    Durable on_durable = nullptr;
    Failed on_failed = nullptr;
    void* arg = nullptr;
    /* One armed fault. */
    std::atomic<int> fault_point{P_NONE};
    int fault_action = ACT_NONE, fault_nth = 0;
    std::mutex fault_lock;
    std::condition_variable fault_changed;
    bool stalled = false;

    explicit Journal(const Config& config) : c(config), born(generation.load()) {}

    ~Journal() {
        cur.close_all(); next.close_all();
        for (auto& s : retired) s.close_all();
        if (life) munmap(life, LIFE);
        if (c.life_fd >= 0) ::close(c.life_fd);
        if (c.dir_fd >= 0) ::close(c.dir_fd);
    }

    void take() noexcept { refs.fetch_add(1, std::memory_order_relaxed); }
    static void drop(Journal* j) noexcept { if (j->refs.fetch_sub(1, std::memory_order_acq_rel) == 1) delete j; }

    /* -- faults ------------------------------------------------- */
    int hit(int point) noexcept {
        if (__builtin_expect(fault_point.load(std::memory_order_relaxed) != point, 1)) return 0;
        std::unique_lock<std::mutex> guard(fault_lock);
        if (fault_point.load() != point || --fault_nth > 0) return 0;
        if (fault_action == ACT_EXIT) _exit(86);
        if (fault_action == ACT_RAISE) { fault_point = P_NONE; return EIO; }
        stalled = true;
        fault_changed.notify_all();
        while (stalled) fault_changed.wait(guard);
        return 0;
    }
    void arm(int point, int action, int nth) noexcept {
        std::lock_guard<std::mutex> guard(fault_lock);
        fault_action = action; fault_nth = nth; fault_point = point;
    }
    void release() noexcept {
        std::lock_guard<std::mutex> guard(fault_lock);
        fault_point = P_NONE; stalled = false;
        fault_changed.notify_all();
    }
    bool wait_stalled(double timeout_s) noexcept {
        std::unique_lock<std::mutex> guard(fault_lock);
        return fault_changed.wait_for(guard, std::chrono::duration<double>(timeout_s), [&] { return stalled; });
    }

    /* -- failing ------------------------------------------------- */
    /* Under `lock`. The first failure stays. */
    void fail_locked(int code, int err, const char* where) noexcept {
        if (failure.load() != OK) return;
        error = err; step = where;
        failure = code;
        progress.notify_all(); work.notify_all(); prepared.notify_all();
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
    bool claim_stands() const noexcept {
        if (faccessat(c.dir_fd, next_claim, F_OK, AT_SYMLINK_NOFOLLOW) == 0) return false;
        return faccessat(c.dir_fd, own_claim, F_OK, AT_SYMLINK_NOFOLLOW) == 0 || errno != ENOENT;
    }
    bool holds() noexcept {
        std::atomic_thread_fence(std::memory_order_seq_cst);
        if (!fence_set() && claim_stands()) return true;
        fail(FENCED, 0, "fence");
        return false;
    }

    /* -- segments ------------------------------------------------- */
    void segment_name(char* to, size_t size, uint32_t number) const noexcept {
        snprintf(to, size, "journal-%010llu-%06u.%s", (unsigned long long)c.epoch, number,
                 c.mode == POWER ? "power" : "process");
    }

    uint32_t write_header(char* block, uint32_t number, uint64_t first, uint64_t size) const noexcept {
        memset(block, 0, HEADER);
        memcpy(block, "\x89" "FTJNL\r\n", 8);
        uint16_t version = 1, mode = uint16_t(c.mode);
        uint32_t key_length = uint32_t(c.key.size());
        char nonce[16];
        if (getrandom(nonce, 16, 0) != 16) memcpy(nonce, &size, 8);
        memcpy(block + 8, &version, 2); memcpy(block + 10, &mode, 2); memcpy(block + 12, &number, 4);
        memcpy(block + 16, &c.epoch, 8); memcpy(block + 24, &first, 8); memcpy(block + 32, &size, 8);
        memcpy(block + 40, nonce, 16); memcpy(block + 56, c.boot.data(), 16);
        memcpy(block + 72, &key_length, 4); memcpy(block + 76, c.key.data(), key_length);
        uint32_t crc = crc32(0, block, 76 + key_length);
        memcpy(block + 76 + key_length, &crc, 4);
        memcpy(block + COPY, block, COPY);
        uint32_t seed = crc32(0, nonce, 16);
        seed = crc32(seed, &c.epoch, 8);
        return crc32(seed, &number, 4);
    }

    /* All space is taken, and every page written, before anything is mapped or counts. */
    int fill_segment(Segment& s, uint64_t first) noexcept {
        if (fallocate(s.fd, 0, 0, off_t(s.size)) && errno != EOPNOTSUPP && errno != ENOSYS) return errno;
        const size_t chunk = 256 << 10;
        char* zeros = static_cast<char*>(calloc(1, chunk));
        if (!zeros) return ENOMEM;
        s.seed = write_header(zeros, s.number, first, s.size);
        int err = 0;
        for (size_t at = 0; at < s.size && !err; at += chunk) {
            err = write_at(s.fd, zeros, s.size - at < chunk ? s.size - at : chunk, off_t(at));
            if (!at) memset(zeros, 0, HEADER);
        }
        free(zeros);
        return err;
    }
    int map_segment(Segment& s) noexcept {
        if (!c.in_place || c.mode != PROCESS) return 0;
        void* map = mmap(nullptr, s.size, PROT_READ | PROT_WRITE, MAP_SHARED, s.fd, 0);
        if (map == MAP_FAILED) return errno;
        s.map = static_cast<char*>(map);
        madvise(map, s.size, MADV_DONTFORK);
        madvise(map, s.size, MADV_POPULATE_WRITE);
        mlock(map, s.size);   /* where the limit allows: a page that stays is never read back from a failing disk */
        return 0;
    }

    /* Leaves nothing behind when it fails, but a temporary file when the process dies. `sync`: durable with its name. */
    int make_segment(Segment& out, uint32_t number, uint64_t first, size_t size, bool sync, const char*& where) noexcept {
        char temp[64], name[64];
        snprintf(temp, sizeof temp, ".tmp-%010llu-journal-%06u-%d", (unsigned long long)c.epoch, number, int(getpid()));
        segment_name(name, sizeof name, number);
        Segment s;
        s.number = number; s.size = size; s.used = HEADER;
        where = "create a journal segment";
        s.fd = openat(c.dir_fd, temp, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (s.fd < 0) return errno;
        int err = hit(P_CREATED);
        if (!err) { where = "preallocate a journal segment"; err = fill_segment(s, first); }
        if (!err) err = hit(P_ZEROED);
        if (!err && sync) {
            where = "fsync a new journal segment";
            err = fsync(s.fd) ? errno : hit(P_SEG_SYNCED);
        }
        if (!err) { where = "map a journal segment"; err = map_segment(s); }
        if (!err) {
            where = "rename a journal segment";
            err = renameat(c.dir_fd, temp, c.dir_fd, name) ? errno : hit(P_RENAMED);
            if (!err && sync) { where = "fsync the directory"; err = fsync(c.dir_fd) ? errno : hit(P_DIR_SYNCED); }
            if (err) unlinkat(c.dir_fd, name, 0);
        }
        if (err) { unlinkat(c.dir_fd, temp, 0); s.close_all(); return err; }
        n_segments.fetch_add(1, std::memory_order_relaxed);
        out = s;
        return 0;
    }

    size_t size_for(size_t record) const noexcept {
        size_t least = (HEADER + record + RECORD + 4095) & ~size_t(4095);
        return next_size > least ? next_size : least;
    }
    void grow_next() noexcept { next_size = next_size * 4 < c.max_size ? next_size * 4 : c.max_size; }

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
        Journal* j = static_cast<Journal*>(p);
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

    /* Returns the position; 0: see `code`. */
    uint64_t append(const Part* parts, int n, int& code) noexcept {
        size_t size = 0;
        for (int i = 0; i < n; i++) size += parts[i].size;
        if (!size || size > MAX_RECORD) { code = BAD_SIZE; return 0; }
        if (generation.load(std::memory_order_relaxed) != born) { code = FORKED; return 0; }
        uint64_t position = 0;
        bool failed_now = false;
        try {
            std::unique_lock<std::mutex> guard(lock);
            if ((code = failure.load(std::memory_order_relaxed)) != OK) return 0;
            if (stopping) { code = CLOSED; return 0; }
            if (c.mode == POWER) {
                queue_record(parts, n, size);
                position = last.load(std::memory_order_relaxed);
                if (asleep) { asleep = false; work.notify_one(); }
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
                if (asleep || !retired.empty()) { asleep = false; work.notify_one(); }
            }
            code = failure.load();
            failed_now = code != OK;
        } catch (...) { code = NO_MEMORY; return 0; }
        if (failed_now) { tell_failed(); return 0; }
        if (position) { n_records.fetch_add(1, std::memory_order_relaxed); n_bytes.fetch_add(size, std::memory_order_relaxed); }
        return position;
    }

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
        progress.notify_all();
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

    int write_batch(std::vector<char>& batch, const char*& where) noexcept {
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
            at += need;
        }
        int err = write_chunk(batch.data() + start, at - start, where);
        return err ? err : hit(P_WRITTEN);
    }

    /* True: everything up to `upto` may be answered. */
    bool commit(std::vector<char>& batch, uint64_t upto) noexcept {
        const char* where = "";
        set_doubt(1 + durable.load());
        int err = write_batch(batch, where);
        if (!err) { where = "fdatasync the journal"; err = fdatasync(cur.fd) ? errno : hit(P_SYNCED); }
        if (err) { fail(MEDIUM, err, where); return false; }
        set_doubt(0);
        if (!holds()) return false;   /* append, make durable, and only then look at the fence */
        if ((err = hit(P_RECHECKED))) { fail(MEDIUM, err, "re-check the fence"); return false; }
        synced = upto;
        advance(upto);
        n_commits.fetch_add(1, std::memory_order_relaxed);
        return true;
    }
    void advance(uint64_t upto) noexcept {
        {
            std::lock_guard<std::mutex> guard(lock);
            durable.store(upto, std::memory_order_release);
            progress.notify_all();
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

    void run_power() noexcept {
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
                auto ready = [&] { return !pending.empty() || stopping || failure.load() != OK; };
                asleep = true;
                if (!marked && !work.wait_for(guard, std::chrono::milliseconds(100), ready)) {
                    guard.unlock(); mark_power(MARK); marked = true; guard.lock();
                }
                asleep = true;
                if (marked) work.wait(guard, ready);
                asleep = false;
                if (failure.load() != OK) return;
                if (pending.empty()) break;
                batch.clear();
                batch.swap(pending);
                upto = last.load();
            }
            if (!commit(batch, upto)) return;
            marked = false;
            if (batch.capacity() > (8u << 20)) std::vector<char>().swap(batch);
            std::lock_guard<std::mutex> guard(lock);
            look_ahead();
        }
        mark_power(ENDED);
        if (hit(P_CLOSED)) fail(MEDIUM, EIO, "close the journal");
    }

    void run_process() noexcept {
        uint64_t done = c.first_position - 1;
        bool last_round = false;
        while (!last_round) {
            std::vector<Segment> old;
            uint64_t upto;
            int fd;
            {
                std::unique_lock<std::mutex> guard(lock);
                auto called_for = [&] { return stopping || !retired.empty() || flush_wanted || failure.load() != OK; };
                if (last.load() == done && !called_for()) {
                    asleep = true;
                    work.wait(guard, [&] { return !asleep || called_for(); });
                    asleep = false;
                }
                work.wait_for(guard, std::chrono::duration<double>(c.sync_interval_s), called_for);
                if (failure.load() != OK) return;
                last_round = stopping;
                flush_wanted = false;
                old.swap(retired);
                upto = last.load();
                fd = cur.fd;
            }
            int err = 0;
            for (auto& s : old) { if (!err && fdatasync(s.fd)) err = errno; s.close_all(); }
            if (upto != done) {
                if (!err) err = fdatasync(fd) ? errno : hit(P_SYNCED);
                if (err) { fail(MEDIUM, err, "fdatasync the journal"); return; }
                n_commits.fetch_add(1, std::memory_order_relaxed);
                done = upto;
                synced = upto;
                mark_process(last_round ? ENDED : MARK);
            } else if (err) { fail(MEDIUM, err, "fdatasync the journal"); return; }
            else if (last_round) mark_process(ENDED);
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
        progress.wait_for(guard, std::chrono::duration<double>(timeout_s), over);
        if (durable.load() >= position) return 0;
        return failure.load() != OK || stopped ? 2 : 1;
    }
    /* What grew beyond `seen`, or a failure or the end: for threads that tell Python. */
    void wait_news(uint64_t seen) noexcept {
        std::unique_lock<std::mutex> guard(lock);
        progress.wait(guard, [&] { return durable.load() > seen || failure.load() != OK || stopped; });
    }
    void flush() noexcept {
        std::lock_guard<std::mutex> guard(lock);
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
