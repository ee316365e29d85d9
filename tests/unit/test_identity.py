"""Identities of calls: what they are made of, that they never change, and that no two calls share one."""

from __future__ import annotations

import random
from collections.abc import Callable
from hashlib import blake2b

import pytest

from ftray._core.identity import call_id, derive_callee_key, nearby_collisions

MASK = (1 << 128) - 1
PARENT = bytes(range(16))
KEY = derive_callee_key("default/counter")


def spread(x: int) -> int:
    x ^= x >> 67
    x = x * 0x9E3779B97F4A7C15F39CC0605CEDC835 & MASK
    x ^= x >> 59
    x = x * 0x2360ED051FC65DA44385DF649FCCF645 & MASK
    return x ^ x >> 65


def reference(parent: bytes, key: bytes, n: int, retry: int) -> bytes:
    x = spread(int.from_bytes(parent, "little") ^ 0x243F6A8885A308D313198A2E03707344)
    x = spread(x ^ int.from_bytes(key, "little"))
    return spread(x ^ (retry << 32 | n)).to_bytes(16, "little")


def test_identities_of_version_1_stay() -> None:
    """They are in journals and snapshots."""
    assert call_id(bytes(16), bytes(16), 0, 0).hex() == "6a34f3c6a73b1761c6543b6b96259f6e"
    assert call_id(PARENT, KEY, 1, 0).hex() == "ee6ac7840b978470c4442c940aa3a5c6"
    assert call_id(PARENT, KEY, (1 << 32) - 1, (1 << 16) - 1).hex() == "aa516a26da802ba0acbe8dc04a1a13a0"
    assert KEY.hex() == "0e8523e3f029765e0f6fae9242885625"


def test_an_identity_is_what_the_formula_says() -> None:
    some = random.Random(7)
    for _ in range(500):
        parts = (some.randbytes(16), some.randbytes(16), some.randrange(1 << 32), some.randrange(1 << 16))
        assert call_id(*parts) == reference(*parts)


def test_the_key_of_a_callee_is_a_hash_of_its_text() -> None:
    assert derive_callee_key("a/ß") == blake2b(b"key\0a/" + "ß".encode(), digest_size=16).digest()
    assert derive_callee_key("") != derive_callee_key("\0")


Parts = tuple[bytes, bytes, int, int]


def flip(word: bytes, bit: int) -> bytes:
    return (int.from_bytes(word, "little") ^ 1 << bit).to_bytes(16, "little")


@pytest.mark.parametrize(
    ("change", "bits"),
    [
        (lambda p, k, n, r, bit: (flip(p, bit), k, n, r), 128),
        (lambda p, k, n, r, bit: (p, flip(k, bit), n, r), 128),
        (lambda p, k, n, r, bit: (p, k, n ^ 1 << bit, r), 32),
        (lambda p, k, n, r, bit: (p, k, n, r ^ 1 << bit), 16),
    ],
    ids=["parent", "key", "number", "retry"],
)
def test_a_changed_bit_changes_half_of_the_bits(change: Callable[..., Parts], bits: int) -> None:
    """Every bit of the input, on average and for each bit of the output."""
    some = random.Random(3)
    changed = [0] * 128
    trials = 0
    for bit in range(bits):
        for _ in range(40 * 128 // bits):
            parts = (some.randbytes(16), some.randbytes(16), some.randrange(1, 5000), some.randrange(3))
            pair = [int.from_bytes(call_id(*p), "little") for p in (parts, change(*parts, bit))]
            difference = pair[0] ^ pair[1]
            assert 20 < difference.bit_count() < 108  # 64 +- 7.8 standard deviations
            trials += 1
            for i in range(128):
                changed[i] += difference >> i & 1
    assert all(0.45 < count / trials < 0.55 for count in changed)


def test_ten_million_calls_that_differ_in_few_bits_have_identities_of_their_own() -> None:
    assert nearby_collisions(1000, 2500, 4) == 0


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ((b"short", KEY, 1, 0), "16 bytes"),
        ((PARENT, KEY + b"!", 1, 0), "16 bytes"),
        ((PARENT, KEY, -1, 0), "number of a call"),
        ((PARENT, KEY, 1 << 32, 0), "number of a call"),
        ((PARENT, KEY, 1, 1 << 16), "retry of a call"),
        ((PARENT, KEY, 1, -1), "retry of a call"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts: Parts, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call_id(*parts)


def test_what_is_no_bytes_is_refused() -> None:
    with pytest.raises(TypeError):
        call_id("x" * 16, KEY, 1, 0)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        derive_callee_key(b"bytes")  # type: ignore[arg-type]
