/* The store's lock-free release list, its system calls and its copy loop. Everything here is noexcept: failures are
   return values with errno. What they are for is said in store.pyx. */
#pragma once
#include <cerrno>
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fcntl.h>
#include <new>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#if defined(__SSE2__)
#include <emmintrin.h>
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

static std::atomic<int64_t> ft_live_mappings{0}, ft_live_pins{0};
static inline void ft_count_mapping(int n) noexcept { ft_live_mappings += n; }
static inline int64_t ft_mappings() noexcept { return ft_live_mappings; }
static inline int64_t ft_pins() noexcept { return ft_live_pins; }

/* Where dying views leave their pins. Any thread pushes, one (under the caller's lock) takes everything. It lives
   until the store and the last pin are gone: `users` counts them. P is the Pin of store.pxd. */
struct FtReleases {
    std::atomic<void*> head{nullptr};
    std::atomic<uint64_t> users{1};
    int pid;
};

static inline FtReleases* ft_list(void* releases) noexcept { return static_cast<FtReleases*>(releases); }

static inline void* ft_new_releases(int pid) noexcept {
    auto* list = new (std::nothrow) FtReleases;
    if (list) list->pid = pid;
    return list;
}

static inline bool ft_any_pins(void* releases) noexcept {
    return ft_list(releases)->head.load(std::memory_order_relaxed) != nullptr;
}

/* Oldest first. */
template <class P> static inline P* ft_take_pins(void* releases, P*) noexcept {
    P* pin = static_cast<P*>(ft_list(releases)->head.exchange(nullptr, std::memory_order_acquire));
    P* oldest = nullptr;
    while (pin) { P* next = pin->next; pin->next = oldest; oldest = pin; pin = next; }
    return oldest;
}

template <class P> static inline void ft_new_user(P* pin, void* releases) noexcept {
    pin->releases = releases;
    ft_list(releases)->users.fetch_add(1, std::memory_order_relaxed);
    ft_live_pins += 1;
}

template <class P> static inline void ft_free_pin(P* pin) noexcept { ft_live_pins -= 1; free(pin); }

/* The last user frees the list with what nobody will drain any more. */
template <class P> static inline void ft_leave(void* releases, P* type) noexcept {
    if (ft_list(releases)->users.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
    P* pin = ft_take_pins(releases, type);
    while (pin) { P* next = pin->next; ft_free_pin(pin); pin = next; }
    delete ft_list(releases);
}

/* A dead view's pin goes to the store; in a forked child nothing happens. */
template <class P> static inline void ft_let_go(P* pin) noexcept {
    void* releases = pin->releases;
    if (getpid() != ft_list(releases)->pid) return;
    auto& head = ft_list(releases)->head;
    void* seen = head.load(std::memory_order_relaxed);
    do { pin->next = static_cast<P*>(seen); }
    while (!head.compare_exchange_weak(seen, pin, std::memory_order_release, std::memory_order_relaxed));
    ft_leave(releases, pin);
}

template <class M, class V> static inline int ft_insert(M& m, uint64_t k, const V& v) noexcept {
    try { m.emplace(k, v); return 0; } catch (...) { return -1; }
}
template <class V, class T> static inline int ft_append(V& v, const T& x) noexcept {
    try { v.push_back(x); return 0; } catch (...) { return -1; }
}
template <class M> static inline auto ft_at(M& m, uint64_t k) noexcept -> decltype(&m.begin()->second) {
    auto it = m.find(k); return it == m.end() ? nullptr : &it->second;
}

/* Address space for `size` bytes, aligned so that 2 MB pages are possible; nullptr with errno. */
static inline char* ft_map(uint64_t size, int prot, int fd) noexcept {
    const uint64_t huge = 2u << 20, slack = size >= huge ? huge : 0;
    void* area = mmap(nullptr, size + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED) return nullptr;
    uintptr_t start = reinterpret_cast<uintptr_t>(area);
    uint64_t skip = slack ? (huge - (start & (huge - 1))) & (huge - 1) : 0;
    char* base = static_cast<char*>(area) + skip;
    if (skip) munmap(area, skip);
    if (slack > skip) munmap(base + size, slack - skip);
    if (mmap(base, size, prot, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED) {
        int saved = errno; munmap(base, size); errno = saved; return nullptr;
    }
    if (slack) madvise(base, size, MADV_HUGEPAGE);      /* a hint: the kernel may not offer them for memfds */
    return base;
}
static inline bool ft_can_populate() noexcept {
    long page = sysconf(_SC_PAGESIZE);
    void* p = mmap(nullptr, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return false;
    bool ok = madvise(p, page, MADV_POPULATE_WRITE) == 0;
    munmap(p, page);
    return ok;
}
static inline int ft_memfd() noexcept { return memfd_create("ftray", MFD_CLOEXEC | MFD_ALLOW_SEALING); }
static inline int ft_seal(int fd) noexcept {
    int seals = F_SEAL_GROW | F_SEAL_SHRINK | F_SEAL_SEAL;
    if (fcntl(fd, F_ADD_SEALS, seals | F_SEAL_FUTURE_WRITE) == 0) return 0;
    return errno == EINVAL ? fcntl(fd, F_ADD_SEALS, seals) : -1;    /* kernels before 5.1 */
}
static inline bool ft_is_sealed(int fd) noexcept {
    int seals = fcntl(fd, F_GET_SEALS);
    return seals >= 0 && (seals & F_SEAL_SHRINK);
}
static inline int ft_stat(int fd, uint64_t* size, uint64_t* inode) noexcept {
    struct stat st;
    if (fstat(fd, &st) != 0) return -1;
    *size = st.st_size; *inode = st.st_ino; return 0;
}

/* Copies of big pieces go around the caches: they would push out everything else, and a plain memcpy reads each
   target line before it writes it. */
static inline void ft_copy(char* target, const char* source, uint64_t size) noexcept {
#if defined(__SSE2__)
    if (size >= (256u << 10)) {
        uint64_t head = (64 - (reinterpret_cast<uintptr_t>(target) & 63)) & 63;
        memcpy(target, source, head);
        target += head; source += head; size -= head;
        for (; size >= 64; target += 64, source += 64, size -= 64) {
            const __m128i* from = reinterpret_cast<const __m128i*>(source);
            __m128i* to = reinterpret_cast<__m128i*>(target);
            __m128i a = _mm_loadu_si128(from), b = _mm_loadu_si128(from + 1);
            __m128i c = _mm_loadu_si128(from + 2), d = _mm_loadu_si128(from + 3);
            _mm_stream_si128(to, a); _mm_stream_si128(to + 1, b);
            _mm_stream_si128(to + 2, c); _mm_stream_si128(to + 3, d);
        }
        _mm_sfence();
    }
#endif
    memcpy(target, source, size);
}

/* Make the segment's pages from its start up to `end` (W is the WriteWindow of store.pxd); -1 with w->error. */
template <class W> static inline int ft_back(W* w, uint64_t end) noexcept {
    end = (end + 4095) & ~(uint64_t)4095;
    if (end > w->segment_size) end = w->segment_size;
    for (int tries = 0; w->backed < end; ++tries) {
        if (madvise(w->base + w->backed, end - w->backed, MADV_POPULATE_WRITE) == 0) { w->backed = end; break; }
        if ((errno != EAGAIN && errno != EINTR) || tries == 100) { w->error = errno; return -1; }
    }
    return 0;
}

/* What has pages is copied at full speed; beyond, pages are made and filled step by step while they are cached. */
template <class W>
static inline int ft_window_write(W* w, uint64_t position, const char* from, uint64_t size) noexcept {
    const uint64_t step_bytes = 1u << 20;
    uint64_t start = static_cast<uint64_t>(w->data - w->base) + position;
    uint64_t warm = start >= w->backed ? 0 : std::min(size, w->backed - start);
    ft_copy(w->base + start, from, warm);
    for (uint64_t done = warm; done < size;) {
        uint64_t step = std::min(size - done, step_bytes);
        if (ft_back(w, start + done + step) != 0) return -1;
        memcpy(w->base + start + done, from + done, step);
        done += step;
    }
    return 0;
}
