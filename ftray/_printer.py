"""Prints what workers print, and what ftrayd warns of, in the driver.

A thread of its own waits in the core (without the GIL) for messages. Equal lines of many workers are printed
once, with a count (`LineCollapser`), which follows after some seconds also when nothing else is printed.
"""

from __future__ import annotations

import struct
import sys
import time

from ftray import _core
from ftray._node.logs import LineCollapser

_LEASE_INFEASIBLE, _LOG, _WARN = 14, 60, 61


def run(log_to_driver: bool) -> None:
    """Print until the runtime stops."""
    lines = {1: LineCollapser(), 2: LineCollapser()}
    while True:
        messages = _core.inbox_next(_until_counts(lines))
        if messages is None:
            break
        for kind, payload in messages:
            if kind == _LOG and log_to_driver:
                _log(lines, payload)
            elif kind == _WARN:
                _write(2, [f"ftray: {_text(payload, 0)}"])
            elif kind == _LEASE_INFEASIBLE:
                _write(2, [f"ftray: {_text(payload, 9)}"])
        for stream, collapser in lines.items():
            _write(stream, collapser.flush_due(time.monotonic()))
    for stream, collapser in lines.items():
        _write(stream, collapser.flush())


def _until_counts(lines: dict[int, LineCollapser]) -> float:
    """Return after how many seconds a count has to be printed, -1 without one."""
    due = [moment for collapser in lines.values() if (moment := collapser.next_flush_s()) is not None]
    return max(0.0, min(due) - time.monotonic()) if due else -1.0


def _text(payload: bytes, at: int) -> str:
    (size,) = struct.unpack_from("<H", payload, at)
    return payload[at + 2 : at + 2 + size].decode("utf-8", "replace")


def _log(lines: dict[int, LineCollapser], payload: bytes) -> None:
    pid, stream, size = struct.unpack_from("<IBH", payload, 0)
    name = payload[7 : 7 + size].decode("utf-8", "replace")
    text = payload[11 + size :].decode("utf-8", "replace")
    source = f"({name} pid={pid}) " if name else f"(pid={pid}) "
    now = time.monotonic()
    out: list[str] = []
    for line in text.splitlines():
        out += lines[stream].line(source, line, now)
    _write(stream, out)


def _write(stream: int, out: list[str]) -> None:
    if not out:
        return
    target = sys.stdout if stream == 1 else sys.stderr
    try:
        target.write("\n".join(out) + "\n")
        target.flush()
    except (OSError, ValueError):
        return  # the driver has closed its output: there is nobody to tell
