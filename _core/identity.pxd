"""Identities of exactly-once calls (identity.hpp). Pure; part of the storage format."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "identity.hpp" nogil:
    const unsigned char FTRAY_HANDLE_MARK[16]
    # CallID of the n-th call (from 1; 0 when the caller named it by a key) of a parent to a callee, and of its
    # application-level retries.
    void derive_call_id(const uint8_t *parent16, const uint8_t *key16, uint32_t n, uint16_t retry, uint8_t *out16) noexcept
    uint64_t digest_bytes(const char *p, size_t size, uint64_t seed) noexcept
    uint64_t call_digest(const char *method, size_t method_size, const char *deps, size_t deps_size, const char *args, size_t args_size) noexcept
