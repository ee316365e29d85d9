// CRC-32 of IEEE 802.3, as zlib and gzip have it; eight bytes at a time, after Kounavis and Berry (IEEE ISCC 2005).
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

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

static inline uint32_t crc32_of(const char *p, size_t size, uint32_t crc = 0) noexcept {
    static constexpr Crc32Tables tables;
    const auto &t = tables.of;
    crc = ~crc;
    for (; size >= 8; p += 8, size -= 8) {
        uint32_t a, b;
        memcpy(&a, p, 4);
        memcpy(&b, p + 4, 4);
        a ^= crc;
        crc = t[7][a & 0xff] ^ t[6][a >> 8 & 0xff] ^ t[5][a >> 16 & 0xff] ^ t[4][a >> 24] ^ t[3][b & 0xff] ^ t[2][b >> 8 & 0xff] ^
              t[1][b >> 16 & 0xff] ^ t[0][b >> 24];
    }
    for (; size; p++, size--) crc = crc >> 8 ^ t[0][(crc ^ (uint8_t)*p) & 0xff];
    return ~crc;
}
