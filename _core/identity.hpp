// Identities of exactly-once calls, and the digest by which a repeated call is known to be the same one.
//
// Both end up in journals and snapshots: what these functions compute is part of the storage format and never changes
// (tests/unit/test_identity.py holds values of version 1).
//
// An identity is made by three invertible steps of 128 bits, one for each of parent, callee key and number: of two calls
// that differ in only one of them, the identities differ for certain; of any other two, except with the chance of two
// random 128-bit numbers. Nobody gains by making two collide: parents are nonces or hashes, and so are keys.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

typedef unsigned __int128 ftray_u128;

static inline ftray_u128 ftray_load128(const void *p) {
    ftray_u128 v;
    memcpy(&v, p, 16);   // little-endian machines only, as everything that is stored
    return v;
}

static constexpr ftray_u128 ftray_wide(uint64_t high, uint64_t low) { return (ftray_u128)high << 64 | low; }

// Multiplications by odd numbers and shifts to the right are invertible; together they spread every bit over all 128.
static inline ftray_u128 ftray_spread(ftray_u128 x) {
    constexpr ftray_u128 GOLDEN = ftray_wide(0x9E3779B97F4A7C15, 0xF39CC0605CEDC835);   // 2^128 / golden ratio
    constexpr ftray_u128 LCG = ftray_wide(0x2360ED051FC65DA4, 0x4385DF649FCCF645);      // L'Ecuyer 1999, 128 bits
    x ^= x >> 67;
    x *= GOLDEN;
    x ^= x >> 59;
    x *= LCG;
    return x ^ x >> 65;
}

static inline void derive_call_id(const uint8_t *parent16, const uint8_t *key16, uint32_t n, uint16_t retry, uint8_t *out16) noexcept {
    constexpr ftray_u128 PI = ftray_wide(0x243F6A8885A308D3, 0x13198A2E03707344);   // so that zeros do not stay zeros
    ftray_u128 x = ftray_spread(ftray_load128(parent16) ^ PI);
    x = ftray_spread(x ^ ftray_load128(key16));
    x = ftray_spread(x ^ ((uint64_t)retry << 32 | n));
    memcpy(out16, &x, 16);
}

// The digest: both halves of a 64 x 64 bit product folded into one, for each 16 bytes.
static inline uint64_t ftray_fold(uint64_t a, uint64_t b) {
    ftray_u128 product = (ftray_u128)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static inline uint64_t digest_bytes(const char *p, size_t size, uint64_t seed) noexcept {
    constexpr uint64_t A = 0xA0761D6478BD642F, B = 0xE7037ED1A0B428DB, C = 0x8EBC6AF09C88C6E3;
    uint64_t h = ftray_fold(seed ^ A, (uint64_t)size ^ B), words[2];
    size_t left = size;
    for (; left >= 16; p += 16, left -= 16) {
        memcpy(words, p, 16);
        // The sum keeps what came before when a factor happens to be zero.
        h = ftray_fold(words[0] ^ B, words[1] ^ h) + (h ^ words[0]);
    }
    words[0] = words[1] = 0;
    if (left) memcpy(words, p, left);   // padded by zeros: the length is in the first step
    h = ftray_fold(words[0] ^ C, words[1] ^ h) + (h ^ words[0]);
    return ftray_fold(h ^ A, h ^ C) ^ h;
}

// A handle of an actor inside of arguments: this mark, then where the actor lives (node, id, owner), which is another place
// in every session. What makes it the same actor, its callee key, follows behind that.
static constexpr unsigned char FTRAY_HANDLE_MARK[16] = {0xB1, 0x75, 0x68, 0xA0, 0x20, 0x85, 0xF5, 0x20, 0xB7, 0xE4, 0x1E, 0x17, 0x4F, 0x04, 0x22, 0xAD};
static constexpr size_t FTRAY_HANDLE_PLACE = 3 * 28;

// Like digest_bytes, but blind to where actors live.
static inline uint64_t digest_arguments(const char *p, size_t size, uint64_t seed) noexcept {
    const size_t mark = sizeof FTRAY_HANDLE_MARK;
    for (;;) {
        const char *at = size < mark + FTRAY_HANDLE_PLACE ? nullptr : (const char *)memmem(p, size, FTRAY_HANDLE_MARK, mark);
        if (!at || (size_t)(p + size - at) < mark + FTRAY_HANDLE_PLACE) return digest_bytes(p, size, seed);
        seed = digest_bytes(p, at - p + mark, seed);
        size -= at - p + mark + FTRAY_HANDLE_PLACE;
        p = at + mark + FTRAY_HANDLE_PLACE;
    }
}

// The digest of a call: of its method's name, its arguments given by reference (by value here; none: two zero bytes, the
// count) and its argument bytes, each with its length, so that no byte can pass from one to the next unseen.
static inline uint64_t call_digest(const char *method, size_t method_size, const char *deps, size_t deps_size, const char *args,
                                   size_t args_size) noexcept {
    static const char none[2] = {0, 0};
    uint64_t h = digest_bytes(method, method_size, 0x66747261792D6431);   // "ftray-d1"
    h = deps_size ? digest_arguments(deps, deps_size, h) : digest_bytes(none, 2, h);
    return digest_arguments(args, args_size, h);
}
