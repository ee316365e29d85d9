"""Measurements behind the constants of `_core/store.pyx` and `_core/store_sys.hpp`.

Run it on a quiet machine: ``python benchmarks/tune_store.py``. It prints what each choice gives here:

* cold: how a fresh segment gets its pages (first touch, fallocate, populate; 2 MB pages), with the copy;
* warm: memcpy, ``rep movsb`` and streaming stores into warm pages, by size, on one and two threads;
* reader: what a first look at a segment costs;
* put: the real allocator and store in a put loop, cold and warm.

Chosen from it on a 2-core virtual machine (EPYC, kernel 6.18, no 2 MB pages for shared memory):
MADV_POPULATE_WRITE in steps of 1 MB with a plain copy (cold puts are the kernel's page clearing: all ways are
within 20 %, and this one fails with a code), streaming stores from 256 KB on (1.3 to 2 times memcpy), and one
thread: two give 1.3 to 1.8 times more when the other core is idle, and take a worker's core when it is not.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SOURCE = r"""
#define _GNU_SOURCE
#include <emmintrin.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#define MB (1ul << 20)
typedef void (*copier)(void*, const void*, size_t);
static double now(void) {
    struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9;
}
static void plain(void* d, const void* s, size_t n) { memcpy(d, s, n); }
static void movsb(void* d, const void* s, size_t n) {
    __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(n)::"memory");
}
static void stream(void* d, const void* s, size_t n) {
    const __m128i* from = s; __m128i* to = d;
    for (size_t i = 0; i < n / 16; i++) _mm_stream_si128(to + i, _mm_loadu_si128(from + i));
    _mm_sfence();
}
static const copier copiers[] = {plain, movsb, stream};
static const char* copier_names[] = {"memcpy", "rep movsb", "streaming"};
struct job { copier copy; char* to; const char* from; size_t size; };
static void* run(void* arg) { struct job* j = arg; j->copy(j->to, j->from, j->size); return 0; }
static void copy_on(int threads, copier copy, char* to, const char* from, size_t n) {
    pthread_t helper; struct job half = {copy, to + n / 2, from + n / 2, n - n / 2};
    if (threads == 1) { copy(to, from, n); return; }
    pthread_create(&helper, 0, run, &half); copy(to, from, n / 2); pthread_join(helper, 0);
}
static int file(size_t n) {
    int fd = memfd_create("tune", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, n)) { perror("memfd"); exit(1); }
    return fd;
}
static char* map(int fd, size_t n, int huge) {
    char* area = mmap(0, n + 2 * MB, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    char* at = (char*)(((uintptr_t)area + 2 * MB - 1) & ~(2 * MB - 1));
    at = mmap(at, n, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
    if (huge) madvise(at, n, MADV_HUGEPAGE);
    return at;
}
enum { TOUCH, FALLOCATE, POPULATE };
static void cold(const char* name, int how, int huge, size_t step, copier copy, size_t n, const char* src,
                 int reps) {
    double best = 1e9, freeing = 1e9;
    while (reps--) {
        double start = now(); int fd = file(n);
        if (how == FALLOCATE && fallocate(fd, 0, 0, n)) perror("fallocate");
        char* at = map(fd, n, huge);
        for (size_t o = 0; o < n; o += step) {
            size_t m = n - o < step ? n - o : step;
            if (how == POPULATE && madvise(at + o, m, 23)) perror("MADV_POPULATE_WRITE");
            copy(at + o, src + o, m);
        }
        double done = now(); munmap(at, n); close(fd);
        if (done - start < best) best = done - start;
        if (now() - done < freeing) freeing = now() - done;
    }
    printf("cold  %-34s %6.2f GB/s   unmap and free %6.2f ms\n", name, n / best / 1e9, freeing * 1e3);
}
static void warm(size_t size, char* at, const char* src, size_t n, int reps) {
    for (int threads = 1; threads <= (size >= 32 * MB ? 2 : 1); threads++)
        for (int k = 0; k < 3; k++) {
            double best = 1e9;
            for (int r = 0; r < reps; r++) {
                size_t o = r % (n / size) * size; double start = now();
                copy_on(threads, copiers[k], at + o, src + o, size);
                if (now() - start < best) best = now() - start;
            }
            printf("warm  %7zu KB %d thread%s %-10s %6.2f GB/s\n", size >> 10, threads,
                   threads > 1 ? "s" : " ", copier_names[k], size / best / 1e9);
        }
}
int main(int argc, char** argv) {
    size_t n = strtoul(argv[1], 0, 10) * MB; int reps = atoi(argv[2]); char name[64];
    char* src = malloc(n); memset(src, 1, n);
    cold("first touch", TOUCH, 0, n, plain, n, src, reps);
    cold("fallocate", FALLOCATE, 0, n, plain, n, src, reps);
    cold("first touch, 2 MB pages asked for", TOUCH, 1, n, plain, n, src, reps);
    cold("populate all, 2 MB pages asked for", POPULATE, 1, n, plain, n, src, reps);
    for (size_t step = MB / 4; step <= 16 * MB && step <= n; step *= 4) for (int k = 0; k < 3; k++) {
        snprintf(name, sizeof name, "populate by %zu KB, %s", step >> 10, copier_names[k]);
        cold(name, POPULATE, 1, step, copiers[k], n, src, reps);
    }
    int fd = file(n); char* at = map(fd, n, 1); memset(at, 1, n);
    for (size_t size = MB / 8; size < n; size *= 2) warm(size, at, src, n, reps * 8);
    warm(n, at, src, n, reps * 2);
    for (int k = 0; k < 2; k++) {
        double start = now(), mapped; unsigned long sum = 0;
        char* view = mmap(0, n, PROT_READ, MAP_SHARED, fd, 0);
        if (k && madvise(view, n, 22)) perror("MADV_POPULATE_READ");
        mapped = now();
        for (size_t i = 0; i < n; i += 4096) sum += view[i];
        printf("reader %s: map %6.2f ms, first look at each page %6.2f ms (%lu)\n",
               k ? "populated" : "by faults", (mapped - start) * 1e3, (now() - mapped) * 1e3, sum * 4096 / n);
        munmap(view, n);
    }
    return 0;
}
"""


def run_native(size_mb: int, reps: int) -> None:
    """Compile and run the measurements that need no ftray."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise SystemExit("tune_store needs a C compiler (cc or gcc) on PATH")
    with tempfile.TemporaryDirectory() as where:
        source, program = Path(where, "tune.c"), Path(where, "tune")
        source.write_text(SOURCE)
        subprocess.run([compiler, "-O2", "-pthread", str(source), "-o", str(program)], check=True)
        sys.stdout.flush()
        subprocess.run([str(program), str(size_mb), str(reps)], check=True)


def run_put_loop(size_mb: int, reps: int) -> list[float]:
    """Put an object, then free the one before it, as a user's loop does; returns GB/s of each put."""
    from ftray._core.alloc import Allocator
    from ftray._core.store import Store

    allocator, store = Allocator(), Store()
    data = b"x" * (size_mb << 20)  # not zeros: those could all come from one cached page
    previous: tuple[int, int] | None = None
    rates = []
    for i in range(2 + reps * 4):
        start = time.perf_counter()
        code, block = allocator.py_alloc(len(data), i)
        if code == 1:
            seg_id = allocator.py_stats()["segments"] + 1
            store.py_create(seg_id, block["wanted_bytes"])
            allocator.py_add_segment(seg_id, block["wanted_bytes"], block["dedicated"], i)
            code, block = allocator.py_alloc(len(data), i)
        store.py_write(block["seg_id"], block["offset"], data)
        rates.append(len(data) / (time.perf_counter() - start) / 1e9)
        if previous is not None:
            allocator.py_free(*previous, i)
        previous = block["seg_id"], block["offset"]
    store.py_close()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the choices behind the shared-memory store.")
    parser.add_argument("--size-mb", type=int, default=100, help="size of a big object (default 100)")
    parser.add_argument("--reps", type=int, default=4, help="repetitions; the best one counts (default 4)")
    parser.add_argument("--smoke", action="store_true", help="4 MB, once: only shows that it runs")
    options = parser.parse_args()
    size_mb, reps = (4, 1) if options.smoke else (options.size_mb, options.reps)
    setting = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
    print("2 MB pages for shared memory:", setting.read_text().strip() if setting.exists() else "not known")
    run_native(size_mb, reps)
    rates = run_put_loop(size_mb, reps)
    warm = rates[2:]
    print(
        f"put   {size_mb} MB: cold {rates[0]:.2f} GB/s, "
        f"warm median {statistics.median(warm):.2f} best {max(warm):.2f}"
    )


if __name__ == "__main__":
    main()
