/* Publishing a file on a local disk, step by step, and reading it, without Python. Rules: docs/storage-format.md, "Save". Failures
   are codes. */
#pragma once
#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
#include "crc64.hpp"

namespace fts {

enum Step { CREATED = 1, HALF_WRITTEN, WRITTEN, SYNCED, FENCE_CHECKED, RENAMED, DIR_SYNCED, FENCE_RECHECKED };
enum Result { DONE = 0, FAILED = 1, LOOK = 2, EXISTS = 3 };   /* LOOK: the fence is for somebody with more time to judge */

/* For tests: the next fsync of that kind fails, once. */
enum Medium { NO_MEDIUM = 0, A_FILE = 1, A_DIRECTORY = 2 };
static std::atomic<int> failing{NO_MEDIUM};

struct Publication {
    std::string directory, temp, final_path, own_claim, next_claim;
    unsigned long long epoch = 0;
    bool durable = true;
    std::vector<iovec> parts;   /* the caller keeps what they point to */
    size_t at = 0;
    int step = 0, error = 0, fd = -1, dir_fd = -1;

    ~Publication() { close_fd(fd); close_fd(dir_fd); }

    static void close_fd(int &which) noexcept { if (which >= 0) ::close(which); which = -1; }

    int write_parts(size_t upto) noexcept {
        while (at < upto) {
            size_t n = upto - at < 512 ? upto - at : 512;
            ssize_t done = ::writev(fd, &parts[at], int(n));
            if (done < 0) { if (errno == EINTR) continue; return errno; }
            if (done == 0 && parts[at].iov_len) return EIO;
            for (; at < upto && size_t(done) >= parts[at].iov_len; at++) done -= ssize_t(parts[at].iov_len);
            if (done) {
                parts[at].iov_base = static_cast<char *>(parts[at].iov_base) + done;
                parts[at].iov_len -= size_t(done);
            }
        }
        return 0;
    }
    static int open_at(const char *path, int flags, int &into) noexcept {
        do into = ::open(path, flags | O_CLOEXEC, 0600); while (into < 0 && errno == EINTR);
        return into < 0 ? errno : 0;
    }
    static int sync(int which, int medium) noexcept {   /* interrupted is not failed: nothing has been reported yet */
        if (failing.load(std::memory_order_relaxed) == medium && failing.exchange(NO_MEDIUM) == medium) return EIO;
        int failed;
        do failed = ::fsync(which); while (failed && errno == EINTR);
        return failed ? errno : 0;
    }
    static bool is_there(const char *path) noexcept { return faccessat(AT_FDCWD, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0; }

    int rename_new(int &result) noexcept {
#ifdef SYS_renameat2
        if (syscall(SYS_renameat2, AT_FDCWD, temp.c_str(), AT_FDCWD, final_path.c_str(), 1 /* RENAME_NOREPLACE */) == 0) return 0;
        if (errno == EEXIST) { result = EXISTS; return 0; }
        if (errno != EINVAL && errno != ENOSYS) return errno;   /* a file system that cannot do this in one step */
#endif
        struct stat there;
        if (::lstat(final_path.c_str(), &there) == 0) { result = EXISTS; return 0; }
        return ::rename(temp.c_str(), final_path.c_str()) ? errno : 0;
    }

    /* Whether the directory's claims are surely ours up to the highest. */
    bool holds_epoch() noexcept {
        if (dir_fd < 0 && open_at(directory.c_str(), O_RDONLY | O_DIRECTORY, dir_fd)) return false;
        DIR *list = fdopendir(dir_fd);
        if (!list) return false;
        dir_fd = -1;   /* `list` owns it */
        bool own = false, later = false;
        errno = 0;
        while (dirent *entry = readdir(list)) {
            const char *name = entry->d_name;
            size_t size = strlen(name);
            if (size < 13 || strncmp(name, "epoch-", 6) || strcmp(name + size - 6, ".claim")) continue;
            unsigned long long number = strtoull(name + 6, nullptr, 10);
            own |= number == epoch;
            later |= number > epoch;
        }
        bool whole = errno == 0;
        closedir(list);
        return whole && own && !later;
    }

    int take(int &result) noexcept {
        switch (step + 1) {
        case CREATED: return open_at(temp.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW, fd);
        case HALF_WRITTEN: return write_parts(parts.empty() ? 0 : 1);
        case WRITTEN: return write_parts(parts.size());
        case SYNCED: {
            int err = durable ? sync(fd, A_FILE) : 0;
            int closed = ::close(fd);
            fd = -1;
            return err ? err : closed && errno != EINTR ? errno : 0;
        }
        case FENCE_CHECKED:
            if (is_there(next_claim.c_str()) || !is_there(own_claim.c_str())) result = LOOK;
            return 0;
        case RENAMED: return rename_new(result);
        case DIR_SYNCED: {
            if (!durable) return 0;
            int err = open_at(directory.c_str(), O_RDONLY | O_DIRECTORY, dir_fd);
            return err ? err : sync(dir_fd, A_DIRECTORY);
        }
        case FENCE_RECHECKED:
            if (!holds_epoch()) result = LOOK;
            return 0;
        }
        return 0;
    }

    /* Go on to `upto`. A step that fails is not taken again; one that says LOOK has been taken. */
    int run(int upto) noexcept {
        int result = DONE;
        while (step < upto && result == DONE) {
            error = take(result);
            if (error) return FAILED;
            if (result == EXISTS) return EXISTS;
            step++;
        }
        return result;
    }
};

/* LOOK: nothing was removed. */
static inline int unlink_all(const std::vector<std::string> &paths, const std::string &own_claim, const std::string &next_claim,
                             int &error) noexcept {
    if (Publication::is_there(next_claim.c_str()) || !Publication::is_there(own_claim.c_str())) return LOOK;
    for (const auto &path : paths)
        if (::unlink(path.c_str()) && errno != ENOENT) {
            error = errno;
            return FAILED;
        }
    return DONE;
}

/* Memory that is about to be written for the first time: from 4 MiB on with huge pages if the kernel has some. A page fault for each
   4 KiB takes several times as long as the copy. */
static inline void huge_pages(char *memory, size_t size) noexcept {
#ifdef MADV_HUGEPAGE
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    size_t begin = (reinterpret_cast<size_t>(memory) + page - 1) & ~(page - 1);
    size_t end = (reinterpret_cast<size_t>(memory) + size) & ~(page - 1);
    if (size >= (size_t(4) << 20)) ::madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);   /* else: only slower */
#endif
}

/* Read until `into` is full or the file ends; returns how many bytes. What was read is summed while the cache has it. */
static inline long long read_summed(int fd, char *into, size_t size, uint64_t &crc, int &error) noexcept {
    size_t done = 0;
    while (done < size) {
        size_t part = size - done < (size_t(256) << 10) ? size - done : size_t(256) << 10;
        ssize_t got = ::read(fd, into + done, part);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) { error = errno; break; }
        if (got == 0) break;
        crc = crc64_of(into + done, size_t(got), crc);
        done += size_t(got);
    }
    return (long long)done;
}

/* Memory that a thread of its own fills from a descriptor. Whoever claims it first reads: the thread, when it has got a core, or
   who wants the content before that. The thread touches the memory only if it was first. */
struct Filling {
    std::vector<iovec> parts;   /* who made this keeps them until `claim` has succeeded or `wait` has returned */
    uint64_t crc = 0;
    long long done = 0;
    int fd = -1, error = 0;
    std::atomic<bool> claimed{false};
    std::mutex lock;
    std::condition_variable changed;
    bool over = false;

    ~Filling() { Publication::close_fd(fd); }

    bool claim() noexcept { return !claimed.exchange(true); }
    void fill() noexcept {
        for (const iovec &part : parts) {
            long long got = read_summed(fd, static_cast<char *>(part.iov_base), part.iov_len, crc, error);
            done += got;
            if (got < (long long)part.iov_len) break;
        }
        std::lock_guard<std::mutex> held(lock);
        over = true;
        changed.notify_all();
    }
    void wait() noexcept {
        std::unique_lock<std::mutex> held(lock);
        while (!over) changed.wait(held);
    }
};

using SharedFilling = std::shared_ptr<Filling>;

/* 0, or what went wrong. */
static inline int start_filling(const SharedFilling &filling) noexcept {
    auto *own = new (std::nothrow) SharedFilling(filling);
    if (!own) return ENOMEM;
    auto run = [](void *arg) -> void * {
        auto *mine = static_cast<SharedFilling *>(arg);
        if ((*mine)->claim()) (*mine)->fill();
        delete mine;
        return nullptr;
    };
    sigset_t all, before;   /* signals are for the threads that Python knows */
    sigfillset(&all);
    pthread_attr_t detached;
    int failed = pthread_attr_init(&detached);
    if (!failed) {
        pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
        pthread_t thread;
        pthread_sigmask(SIG_SETMASK, &all, &before);
        failed = pthread_create(&thread, &detached, run, own);
        pthread_sigmask(SIG_SETMASK, &before, nullptr);
        pthread_attr_destroy(&detached);
    }
    if (failed) delete own;
    return failed;
}

}
