"""The life file of an epoch: the fence word its writer looks at, and which call it runs. Bytes only.

4096 bytes, little-endian, mapped by the writer, never fsynced; means nothing after a new boot:

    0 magic 8s, format version u16, zero 6s; 16 epoch u64; 24 boot id 16s; 40 fence word u64 (0: the key is
    held; else the epoch that took it); 48 doubt u64 (0; else 1 + the last position that may be taken for
    durable); 56 running u32, zero u32; 64 CallID of the call that runs 16s; 80 CallID that earlier
    incarnations died in 16s; 96 how many of them in a row u32
"""

from __future__ import annotations

import struct
from typing import NamedTuple

MAGIC = b"\x89FTLIV\r\n"
FORMAT_VERSION = 1
SIZE = 4096
_FIXED = struct.Struct("<8sHHIQ16sQQII16s16sI")


class Life(NamedTuple):
    """What a life file says."""

    epoch: int
    boot_id: bytes
    fenced_by: int
    doubt: int
    running: bytes | None
    row_call: bytes
    row: int

    def deaths(self) -> tuple[bytes, int] | None:
        """Return the call that this incarnation and those before it died in, if this one is dead."""
        if self.running is None:
            return (self.row_call, self.row) if self.row else None
        return self.running, 1 + (self.row if self.running == self.row_call else 0)


def encode(epoch: int, boot_id: bytes, past: tuple[bytes, int] | None) -> bytes:
    """Return the content of a new life file; `past` is what the one before it says."""
    call, row = past or (bytes(16), 0)
    fixed = _FIXED.pack(MAGIC, FORMAT_VERSION, 0, 0, epoch, boot_id, 0, 0, 0, 0, bytes(16), call, row)
    return fixed.ljust(SIZE, b"\0")


def decode(data: bytes) -> Life | None:
    """Read a life file; None if it is none, which a loss of power may make of it."""
    if len(data) < _FIXED.size:
        return None
    fields = _FIXED.unpack_from(data)
    magic, version, _, _, epoch, boot, fenced_by, doubt, running, _, call, row_call, row = fields
    if magic != MAGIC or version != FORMAT_VERSION:
        return None
    return Life(epoch, boot, fenced_by, doubt, call if running else None, row_call, row)
