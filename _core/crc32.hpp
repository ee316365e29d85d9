// CRC-32 of IEEE 802.3, as zlib and gzip have it: eight bytes at a time by tables, after Kounavis and Berry (IEEE ISCC 2005), or
// 64 by carry-less multiplication where the processor has it. The folding is that of crc64.hpp, with this polynomial.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

struct Crc32Tables {
    uint32_t of[8][256];
    constexpr Crc32Tables() : of() {
        for (uint32_t i = 0; i < 256; i++) {
            uint32_t c = i;
            for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ 0xEDB88320u : c >> 1;
            of[0][i] = c;
        }
        for (int t = 1; t < 8; t++)
            for (uint32_t i = 0; i < 256; i++) of[t][i] = of[t - 1][i] >> 8 ^ of[0][of[t - 1][i] & 0xff];
    }
};

// Both take and return the register as it is between two bytes, without the inversions at start and end.
static inline uint32_t crc32_by_tables(const char *p, size_t size, uint32_t crc) noexcept {
    static constexpr Crc32Tables tables;
    const auto &t = tables.of;
    for (; size >= 8; p += 8, size -= 8) {
        uint32_t a, b;
        memcpy(&a, p, 4);
        memcpy(&b, p + 4, 4);
        a ^= crc;
        crc = t[7][a & 0xff] ^ t[6][a >> 8 & 0xff] ^ t[5][a >> 16 & 0xff] ^ t[4][a >> 24] ^ t[3][b & 0xff] ^ t[2][b >> 8 & 0xff] ^
              t[1][b >> 16 & 0xff] ^ t[0][b >> 24];
    }
    for (; size; p++, size--) crc = crc >> 8 ^ t[0][(crc ^ (uint8_t)*p) & 0xff];
    return crc;
}

#if defined(__x86_64__)
// x^n modulo the polynomial, reflected, at the upper end of a word: bit 63 is the coefficient of x^0.
static constexpr uint64_t crc32_power(int n) {
    uint32_t r = 0x80000000u;
    for (; n; n--) r = r & 1 ? r >> 1 ^ 0xEDB88320u : r >> 1;
    return uint64_t(r) << 32;
}

__attribute__((target("pclmul,sse2"))) static inline __m128i crc32_moved(__m128i a, __m128i by, const __m128i *onto) noexcept {
    __m128i sum = _mm_xor_si128(_mm_clmulepi64_si128(a, by, 0x00), _mm_clmulepi64_si128(a, by, 0x11));
    return _mm_xor_si128(sum, _mm_loadu_si128(onto));
}

// At least 64 bytes.
__attribute__((target("pclmul,sse2"))) static inline uint32_t crc32_by_folding(const char *p, size_t size, uint32_t crc) noexcept {
    constexpr uint64_t low_512 = crc32_power(64 + 512 - 1), high_512 = crc32_power(512 - 1);
    constexpr uint64_t low_128 = crc32_power(64 + 128 - 1), high_128 = crc32_power(128 - 1);
    const __m128i by_512 = _mm_set_epi64x((long long)high_512, (long long)low_512);
    const __m128i by_128 = _mm_set_epi64x((long long)high_128, (long long)low_128);
    const __m128i *block = reinterpret_cast<const __m128i *>(p);
    __m128i part[4];
    part[0] = _mm_xor_si128(_mm_loadu_si128(block), _mm_cvtsi32_si128((int)crc));
    for (int i = 1; i < 4; i++) part[i] = _mm_loadu_si128(block + i);
    for (block += 4, size -= 64; size >= 64; block += 4, size -= 64)
        for (int i = 0; i < 4; i++) part[i] = crc32_moved(part[i], by_512, block + i);
    __m128i a = part[0];
    for (int i = 1; i < 4; i++) a = crc32_moved(a, by_128, &part[i]);
    for (; size >= 16; block++, size -= 16) a = crc32_moved(a, by_128, block);
    char left[16];
    _mm_storeu_si128(reinterpret_cast<__m128i *>(left), a);
    return crc32_by_tables(reinterpret_cast<const char *>(block), size, crc32_by_tables(left, 16, 0));
}

static inline bool crc32_can_fold() noexcept {
    static const bool can = __builtin_cpu_supports("pclmul");
    return can;
}
#endif

static inline uint32_t crc32_of(const char *p, size_t size, uint32_t crc = 0) noexcept {
#if defined(__x86_64__)
    if (size >= 64 && crc32_can_fold()) return ~crc32_by_folding(p, size, ~crc);
#endif
    return ~crc32_by_tables(p, size, ~crc);
}
