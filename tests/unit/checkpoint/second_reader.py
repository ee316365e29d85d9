"""A second reader of journal segments, written from docs/storage-format.md alone, without ftray's code."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator


def header(data: bytes) -> dict[str, object]:
    for at in (0, 2048):
        copy = data[at : at + 2048]
        if len(copy) < 80 or copy[:8] != bytes.fromhex("89 46 54 4A 4E 4C 0D 0A"):
            continue
        (key_length,) = struct.unpack_from("<I", copy, 72)
        end = 76 + key_length
        if end + 4 > 2048 or struct.unpack_from("<I", copy, end)[0] != zlib.crc32(copy[:end]):
            continue
        version, durability, number = struct.unpack_from("<HHI", copy, 8)
        assert version == 1
        epoch, first, size = struct.unpack_from("<QQQ", copy, 16)
        return {
            "durability": {1: "process", 2: "power"}[durability],
            "number": number,
            "epoch": epoch,
            "first": first,
            "size": size,
            "key": copy[76:end].decode(),
            "seed": zlib.crc32(copy[40:56] + struct.pack("<QI", epoch, number)),
            "boot": copy[56:72],
        }
    raise ValueError("no header")


def records(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(kind, position, payload) of all records up to the first place where none stands."""
    seed = header(data)["seed"]
    assert isinstance(seed, int)
    at = 4096
    while at + 24 <= len(data):
        crc, word = struct.unpack_from("<II", data, at)
        kind, length = word >> 28, word & 0xFFFFFFF
        if kind == 0 or zlib.crc32(data[at + 4 : at + 24 + length], seed) != crc:
            return
        yield kind, struct.unpack_from("<Q", data, at + 8)[0], data[at + 24 : at + 24 + length]
        at += 24 + (length + 7) // 8 * 8
