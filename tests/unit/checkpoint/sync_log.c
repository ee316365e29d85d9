/* Preloaded into a process: tells in the file $SYNC_LOG, one line per call, what it asks the kernel to write, to make durable and to
   rename, in which order and on which thread ("main" or "other"). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *base(const char *path) {
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

static void tell(const char *what, const char *about, long size) {
    static int log_fd = -1;
    char line[4400];
    int n;
    if (log_fd < 0) log_fd = open(getenv("SYNC_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    n = snprintf(line, sizeof line, "%s %s %s %ld\n", syscall(SYS_gettid) == getpid() ? "main" : "other", what, base(about), size);
    if (syscall(SYS_write, log_fd, line, n) != n) abort();
}

static void tell_fd(const char *what, int fd, long size) {
    char link[64], path[4096];
    ssize_t n;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, sizeof path - 1);
    path[n < 0 ? 0 : n] = 0;
    tell(what, path, size);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

int fsync(int fd) {
    int result = REAL(fsync)(fd);
    tell_fd("fsync", fd, result);
    return result;
}

int fdatasync(int fd) {
    int result = REAL(fdatasync)(fd);
    tell_fd("fsync", fd, result);
    return result;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    ssize_t result = REAL(pwrite)(fd, data, size, at);
    tell_fd("write", fd, result);
    return result;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    ssize_t result = REAL(pwrite64)(fd, data, size, at);
    tell_fd("write", fd, result);
    return result;
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
    ssize_t result = REAL(writev)(fd, parts, n);
    tell_fd("write", fd, result);
    return result;
}

int fallocate(int fd, int mode, off_t at, off_t size) {
    int result = REAL(fallocate)(fd, mode, at, size);
    tell_fd("allocate", fd, size);
    return result;
}

int fallocate64(int fd, int mode, off64_t at, off64_t size) {
    int result = REAL(fallocate64)(fd, mode, at, size);
    tell_fd("allocate", fd, size);
    return result;
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    int result = REAL(renameat)(from_dir, from, to_dir, to);
    tell("rename", to, result);
    return result;
}

long syscall(long number, ...) {   /* glibc has no function for renameat2 everywhere */
    long a[6], result;
    va_list list;
    va_start(list, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(list, long);
    va_end(list);
    result = REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
    if (number == SYS_renameat2) tell("rename", (const char *)a[3], result);
    return result;
}
