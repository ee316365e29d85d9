"""Reading the event ring of a process (``_core/events.hpp``) while it writes.

Owns: the descriptor of one ring. Invariants: nothing is mapped, so that a ring that is cut short cannot
hurt its reader; the writer is never waited for; what it overwrites meanwhile is counted and not returned.
Leaves to others: what records mean, and keeping them (``task_events``).
"""

from __future__ import annotations

import os
import struct

from ftray._node.task_events import UNIT_BYTES, Piece, Running

MAGIC = 0x56455246
VERSION = 1
HEADER_BYTES = 4096
MAX_UNITS = 1 << 20
# magic, version, units, bytes of a unit, head, root, tick0, mono0; running, since, attempt at 64.
_HEADER = struct.Struct("<IIIIQQQQ16xQQI")
# The writer may be in the middle of a record beyond the head.
_LONGEST_RECORD_UNITS = 4


class BadRing(Exception):
    """What the process handed over is no ring of this version."""


class EventRing:
    """The ring of one process.

    Parameters
    ----------
    fd
        Of the ring; this object's from now on.
    process
        What stands for the process in task events.

    Attributes
    ----------
    root
        Unique part of the id that stands for the process's own flow: the parent of what it submits
        outside tasks.
    """

    def __init__(self, fd: int, process: int) -> None:
        self._fd = fd
        self._process = process
        magic, version, units, unit_bytes, _head, root, *_rest = self._header()
        if (magic, version, unit_bytes) != (MAGIC, VERSION, UNIT_BYTES) or not 0 < units <= MAX_UNITS:
            raise BadRing(f"magic {magic:#x}, version {version}, {units} units of {unit_bytes} bytes")
        self._units: int = units
        self.root: int = root

    def _header(self) -> tuple[int, ...]:
        raw = os.pread(self._fd, _HEADER.size, 0)
        if len(raw) < _HEADER.size:
            raise BadRing(f"a header of {len(raw)} bytes")
        return _HEADER.unpack(raw)

    def read(self, tick1: int, mono1: int) -> tuple[Piece, int]:
        """Return the last records, and how many others were overwritten since the process began.

        ``tick1`` and ``mono1`` are now, in ticks and ns.
        """
        _magic, _version, _units, _bytes, head, _root, tick0, mono0, task, since, attempt = self._header()
        start = max(0, head - self._units)
        data = self._copy(start, head)
        after = self._header()
        safe = after[4] + _LONGEST_RECORD_UNITS - self._units
        skip = min(max(0, safe - start), head - start)
        same = after[8:] == (task, since, attempt)  # else the call ended, or another began, while we read
        running = Running(task, attempt, since) if same else Running(0, 0, 0)
        clock = (tick0, mono0, tick1, mono1)
        return Piece(self._process, data[skip * UNIT_BYTES :], clock, running), start + skip

    def _copy(self, start: int, end: int) -> bytes:
        first = start % self._units
        count = end - start
        upper = min(count, self._units - first)
        data = os.pread(self._fd, upper * UNIT_BYTES, HEADER_BYTES + first * UNIT_BYTES)
        if upper < count:
            data += os.pread(self._fd, (count - upper) * UNIT_BYTES, HEADER_BYTES)
        if len(data) != count * UNIT_BYTES:
            raise BadRing(f"{len(data)} bytes where {count * UNIT_BYTES} should be")
        return data

    def close(self) -> None:
        """Close the ring."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
