"""Blobs: large arguments and replies beside the journal. Names, and the one format in all stores.

Layout (little-endian): 32 bytes of prefix (magic 8s, format version u16, zero u16, CRC-32 of the content u32,
length of the content u64, zero u32, CRC-32 of the 28 bytes before u32), then the content.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Sequence

from .errors import CheckpointFormatError, CheckpointOptionError
from .journal import Buffer

MAGIC = b"\x89FTBLB\r\n"
FORMAT_VERSION = 1
_PREFIX = struct.Struct("<8sHHIQI")
_CRC = struct.Struct("<I")
PREFIX_SIZE = _PREFIX.size + _CRC.size
_NAME = re.compile(r"[A-Za-z0-9_-]{1,100}")


def check_name(name: str) -> str:
    """Return `name`, or raise `CheckpointOptionError`."""
    if not _NAME.fullmatch(name):
        raise CheckpointOptionError(
            f"{name!r} is not the name of a blob; allowed: 1 to 100 ASCII letters, digits, '-' and '_'"
        )
    return name


def encode(parts: Sequence[Buffer]) -> list[Buffer]:
    """Return the parts of a blob, in order, without copying the content."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    length = sum(memoryview(part).nbytes for part in parts)
    start = _PREFIX.pack(MAGIC, FORMAT_VERSION, 0, crc, length, 0)
    return [start + _CRC.pack(zlib.crc32(start)), *parts]


def decode(data: bytes) -> bytes:
    """Undo `encode`; raises `CheckpointFormatError` if a byte has changed."""
    if len(data) < PREFIX_SIZE:
        raise CheckpointFormatError(f"truncated: {len(data)} of {PREFIX_SIZE} bytes of a blob's prefix")
    magic, version, _, crc, length, _ = _PREFIX.unpack_from(data)
    if magic != MAGIC:
        raise CheckpointFormatError(f"not a blob: begins with {magic!r}")
    if zlib.crc32(data[: _PREFIX.size]) != _CRC.unpack_from(data, _PREFIX.size)[0]:
        raise CheckpointFormatError("the prefix of the blob does not match its checksum")
    if version != FORMAT_VERSION:
        raise CheckpointFormatError(
            f"blob of format version {version}; this release reads version {FORMAT_VERSION}"
        )
    content = data[PREFIX_SIZE:]
    if len(content) != length:
        raise CheckpointFormatError(f"a blob of {len(content)} bytes where {length} were written")
    if zlib.crc32(content) != crc:
        raise CheckpointFormatError("the blob does not match its checksum")
    return content
