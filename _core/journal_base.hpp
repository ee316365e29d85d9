/* What the journal's writer stands on: constants of the format, CRC-32, whole writes, a segment's descriptor and map,
   one armed fault point, the making of segments. See journal_sys.hpp. */
#pragma once
#include <algorithm>
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
#include "crc32.hpp"
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

namespace ftj {

enum { PROCESS = 1, POWER = 2 };
enum { DATA = 1, MARK = 2, END = 3, ENDED = 4 };
enum JournalCode { OK = 0, FENCED = 1, MEDIUM = 2, CLOSED = 3, FORKED = 4, BAD_SIZE = 5, NO_MEMORY = 6 };
enum { ACT_NONE = 0, ACT_EXIT = 1, ACT_RAISE = 2, ACT_STALL = 3, ACT_STOP = 4 };
enum { P_NONE, P_CREATED, P_ZEROED, P_SEG_SYNCED, P_RENAMED, P_DIR_SYNCED, P_PAST_SYNCED, P_HALF, P_WRITTEN, P_SYNCED,
       P_RECHECKED, P_ENDED, P_MARKED, P_CLOSED };
enum { NEXT_NONE, NEXT_MAKING, NEXT_READY };
static constexpr size_t HEADER = 4096, COPY = 2048, RECORD = 24, MAX_RECORD = 64u << 20, STEADY = 4u << 20;
static constexpr int64_t GATHER_NS = 1000000;
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

static inline uint32_t crc32(uint32_t crc, const void* data, size_t size) noexcept {
    return crc32_of(static_cast<const char*>(data), size, crc);
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
    uint64_t ends = 0;           /* once it is full: position of its last record */
    void unmap() noexcept {
        if (map) munmap(map, size);
        map = nullptr;
    }
    void close_all() noexcept {
        unmap();
        if (fd >= 0) ::close(fd);
        fd = -1;
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

/* One armed fault: for tests. A step that is not armed costs one load of a field. */
struct Faults {
    std::atomic<int> fault_point{P_NONE};
    int fault_action = ACT_NONE, fault_nth = 0;
    std::mutex fault_lock;
    std::condition_variable fault_changed;
    bool stalled = false;

    int hit(int point) noexcept {
        if (__builtin_expect(fault_point.load(std::memory_order_relaxed) != point, 1)) return 0;
        std::unique_lock<std::mutex> guard(fault_lock);
        if (fault_point.load() != point || --fault_nth > 0) return 0;
        if (fault_action == ACT_EXIT) _exit(86);
        if (fault_action == ACT_RAISE) { fault_point = P_NONE; return EIO; }
        if (fault_action == ACT_STOP) { fault_point = P_NONE; raise(SIGSTOP); return 0; }   /* hung here, until SIGCONT */
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
};

/* Makes the segments of one epoch. Needs no lock: whoever calls it has the number to himself. */
struct Maker : Faults {
    Config c;
    std::atomic<uint64_t> n_segments{0};
    explicit Maker(const Config& config) : c(config) {}

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
};

}  // namespace ftj
