/* Publishing a file on a local disk, step by step, without Python. Rules: docs/storage-format.md, "Save". Failures are codes. */
#pragma once
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

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

}
