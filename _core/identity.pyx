"""Identities of exactly-once calls for Python (identity.hpp says how they are made).

Owns nothing. The identity of a call depends on who makes it, on whom it is made to, and on its number: never on time,
chance, attempts or processes, so that a caller that is executed again makes the same calls.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libcpp.algorithm cimport sort
from libcpp.vector cimport vector

from hashlib import blake2b


def call_id(bytes parent not None, bytes callee_key not None, n, retry):
    """The CallID of a call.

    Parameters
    ----------
    parent : bytes
        CallID of the caller, or a root; for a call with a key of its own the hash of that key. 16 bytes.
    callee_key : bytes
        What `derive_callee_key` gives for the callee's checkpoint key. 16 bytes.
    n : int
        Number of this call among those of its parent to this callee, from 1; 0 for a call with a key of its own.
    retry : int
        How many application-level retries came before it.

    Returns
    -------
    bytes
        16 bytes.

    Raises
    ------
    ValueError
        A part has another length, or a number does not fit.
    """
    cdef uint8_t out[16]
    if len(parent) != 16 or len(callee_key) != 16:
        raise ValueError(f"an identity is made of 16 bytes of the parent and 16 of the callee's key, not of {len(parent)} and {len(callee_key)}")
    if not 0 <= n < 1 << 32:
        raise ValueError(f"the number of a call is from 0 to {(1 << 32) - 1}, not {n}: start a new task for more calls to one actor")
    if not 0 <= retry < 1 << 16:
        raise ValueError(f"the retry of a call is from 0 to {(1 << 16) - 1}, not {retry}")
    derive_call_id(<const uint8_t *><const char *>parent, <const uint8_t *><const char *>callee_key, n, retry, out)
    return (<char *>out)[:16]


def derive_callee_key(str text not None):
    """The callee key of a checkpoint key: 16 bytes.

    Parameters
    ----------
    text : str
        The checkpoint key as the store has it.
    """
    return blake2b(b"key\0" + text.encode(), digest_size=16).digest()


cdef struct Pair:
    uint64_t high
    uint64_t low


cdef bint pair_less(const Pair &a, const Pair &b) noexcept nogil:
    return a.high < b.high or (a.high == b.high and a.low < b.low)


def nearby_collisions(uint32_t parents, uint32_t numbers, uint32_t retries):
    """For tests: how many equal identities there are among those of parents, keys and calls that differ in few bits."""
    cdef vector[Pair] made
    cdef uint8_t parent[16]
    cdef uint8_t key[16]
    cdef uint32_t p, n, r
    cdef Pair pair
    cdef size_t i, equal = 0
    with nogil:
        made.reserve(<size_t>parents * numbers * retries)
        for p in range(parents):
            for n in range(16):
                parent[n] = key[n] = 0
            (<uint32_t *>parent)[0] = p & 0xff      # few bits, in both
            (<uint32_t *>key)[0] = p >> 8
            for n in range(numbers):
                for r in range(retries):
                    derive_call_id(parent, key, n, <uint16_t>r, <uint8_t *>&pair)
                    made.push_back(pair)
        sort(made.begin(), made.end(), pair_less)
        for i in range(1, made.size()):
            equal += made[i].high == made[i - 1].high and made[i].low == made[i - 1].low
    return equal
