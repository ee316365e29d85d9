// CRC-64/XZ (ECMA-182, reflected): eight bytes at a time by tables, or 64 by carry-less multiplication where the processor
// has it. The folding is that of Gopal et al. (Intel, 2009), with constants worked out here.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static constexpr uint64_t CRC64_POLY = 0xC96C5795D7870F42u;

struct Crc64Tables {
    uint64_t of[8][256];
    constexpr Crc64Tables() : of() {
        for (uint64_t i = 0; i < 256; i++) {
            uint64_t c = i;
            for (int k = 0; k < 8; k++) c = c & 1 ? c >> 1 ^ CRC64_POLY : c >> 1;
            of[0][i] = c;
        }
        for (int t = 1; t < 8; t++)
            for (int i = 0; i < 256; i++) of[t][i] = of[t - 1][i] >> 8 ^ of[0][of[t - 1][i] & 0xff];
    }
};

// Both take and return the register as it is between two bytes, without the inversions at start and end.
static inline uint64_t crc64_by_tables(const char *p, size_t size, uint64_t crc) noexcept {
    static constexpr Crc64Tables tables;
    const auto &t = tables.of;
    for (; size >= 8; p += 8, size -= 8) {
        uint64_t word;
        memcpy(&word, p, 8);
        crc ^= word;
        crc = t[7][crc & 0xff] ^ t[6][crc >> 8 & 0xff] ^ t[5][crc >> 16 & 0xff] ^ t[4][crc >> 24 & 0xff] ^ t[3][crc >> 32 & 0xff] ^
              t[2][crc >> 40 & 0xff] ^ t[1][crc >> 48 & 0xff] ^ t[0][crc >> 56];
    }
    for (; size; p++, size--) crc = crc >> 8 ^ t[0][(crc ^ (uint8_t)*p) & 0xff];
    return crc;
}

#if defined(__x86_64__)
// x^n modulo the polynomial, reflected: bit 63 is the coefficient of x^0.
static constexpr uint64_t crc64_power(int n) {
    uint64_t r = uint64_t(1) << 63;
    for (; n; n--) r = r & 1 ? r >> 1 ^ CRC64_POLY : r >> 1;
    return r;
}

// An accumulator of 128 bits stands for what was read; its low word has the higher powers. To move it `bits` further each word is
// multiplied by a power of x; the product of two reflected words is reflected with one power too many, hence the - 1.
struct Crc64Fold {
    uint64_t low, high;
    constexpr explicit Crc64Fold(int bits) : low(crc64_power(64 + bits - 1)), high(crc64_power(bits - 1)) {}
};

__attribute__((target("pclmul,sse2"))) static inline __m128i crc64_moved(__m128i a, __m128i by, __m128i onto) noexcept {
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(a, by, 0x00), _mm_clmulepi64_si128(a, by, 0x11)), onto);
}

__attribute__((target("pclmul,sse2"))) static inline uint64_t crc64_by_folding(const char *p, size_t size, uint64_t crc) noexcept {
    static constexpr Crc64Fold wide(512), narrow(128);
    const __m128i by_512 = _mm_set_epi64x((long long)wide.high, (long long)wide.low);
    const __m128i by_128 = _mm_set_epi64x((long long)narrow.high, (long long)narrow.low);
    const __m128i *block = reinterpret_cast<const __m128i *>(p);
    __m128i a = _mm_xor_si128(_mm_loadu_si128(block), _mm_set_epi64x(0, (long long)crc));
    __m128i b = _mm_loadu_si128(block + 1), c = _mm_loadu_si128(block + 2), d = _mm_loadu_si128(block + 3);
    for (block += 4, size -= 64; size >= 64; block += 4, size -= 64) {
        a = crc64_moved(a, by_512, _mm_loadu_si128(block));
        b = crc64_moved(b, by_512, _mm_loadu_si128(block + 1));
        c = crc64_moved(c, by_512, _mm_loadu_si128(block + 2));
        d = crc64_moved(d, by_512, _mm_loadu_si128(block + 3));
    }
    a = crc64_moved(crc64_moved(crc64_moved(a, by_128, b), by_128, c), by_128, d);
    char left[16];
    _mm_storeu_si128(reinterpret_cast<__m128i *>(left), a);
    return crc64_by_tables(reinterpret_cast<const char *>(block), size, crc64_by_tables(left, 16, 0));
}

static inline bool crc64_can_fold() noexcept {
    static const bool can = __builtin_cpu_supports("pclmul");
    return can;
}
#endif

static inline uint64_t crc64_of(const char *p, size_t size, uint64_t crc = 0) noexcept {
#if defined(__x86_64__)
    if (size >= 128 && crc64_can_fold()) return ~crc64_by_folding(p, size, ~crc);
#endif
    return ~crc64_by_tables(p, size, ~crc);
}
