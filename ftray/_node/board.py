"""The board: shared memory in which each process has a slot with its heartbeat and its doorbell words.

Owns: the memfd, its header, handing out slots and reading heartbeats.
Invariants: a slot is zero when it is handed out; one that was given back is handed out again only after
``release``, which the node calls when every process has acknowledged the death of its last user.
Leaves to others: everything that processes write into slots.
"""

from __future__ import annotations

import mmap
import os
import struct
from heapq import heappop, heappush

MAGIC = 0x46545259
VERSION = 1
HEADER_BYTES = 4096
SLOT_BYTES = 1024
SLOT_COUNT = 4096
# A process that lives writes its heartbeat at least so often: HEARTBEAT_NS of the core.
HEARTBEAT_S = 1.0
_HEADER = struct.Struct("<IIIIQ")
_BUSY = struct.Struct("<I")
_HEARTBEAT = struct.Struct("<QI")


class BoardFull(Exception):
    """More processes than slots."""


class Board:
    """The node's side of the board."""

    def __init__(self, slot_count: int = SLOT_COUNT, store_bytes: int = 0) -> None:
        self.fd = os.memfd_create("ftray-board", os.MFD_CLOEXEC)
        size = HEADER_BYTES + SLOT_BYTES * slot_count
        os.ftruncate(self.fd, size)
        self._memory = mmap.mmap(self.fd, size)
        self._slot_count = slot_count
        _HEADER.pack_into(self._memory, 0, MAGIC, VERSION, slot_count, SLOT_BYTES, store_bytes)
        self._released: list[int] = []
        self._next = 0

    def acquire(self, pid: int) -> int:
        """Return a zeroed slot, the lowest free one, with ``pid`` in it.

        Raises
        ------
        BoardFull
            When every slot is taken.
        """
        if self._released:
            slot = heappop(self._released)
        elif self._next < self._slot_count:
            slot = self._next
            self._next += 1
        else:
            raise BoardFull(f"all {self._slot_count} slots of the board are taken; end some actors or tasks")
        at = self._offset(slot)
        self._memory[at : at + SLOT_BYTES] = bytes(SLOT_BYTES)
        _HEARTBEAT.pack_into(self._memory, at, 0, pid)
        return slot

    def release(self, slot: int) -> None:
        """Take back a slot whose user is dead and acknowledged by all."""
        heappush(self._released, slot)

    def heartbeat_ms(self, slot: int) -> int:
        """Return the CLOCK_MONOTONIC time that the process wrote last, 0 when it has not yet."""
        return int(_HEARTBEAT.unpack_from(self._memory, self._offset(slot))[0])

    def overdue_s(self, slot: int, now_s: float, since_s: float) -> float:
        """Return for how long a heartbeat has been overdue; silence before ``since_s`` does not count."""
        return now_s - max(self.heartbeat_ms(slot) / 1000, since_s) - HEARTBEAT_S

    def is_busy(self, slot: int) -> bool:
        """Whether the process's main thread runs a call."""
        return bool(_BUSY.unpack_from(self._memory, self._offset(slot) + 12)[0])

    def _offset(self, slot: int) -> int:
        return HEADER_BYTES + SLOT_BYTES * slot

    def close(self) -> None:
        """Unmap and close."""
        self._memory.close()
        os.close(self.fd)
