"""What a benchmark must know about processes: their memory, whose they are, how to end one for sure.

Reads ``/proc`` only. A process belongs to a runtime when it descends from the driver or carries the driver's
mark in its environment: daemons may have another parent by now.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from pathlib import Path

MARK = "FTRAY_BENCH_MARK"
DEATH_TIMEOUT_S = 10.0


def kill_and_confirm(pid: int, timeout_s: float = DEATH_TIMEOUT_S) -> None:
    """SIGKILL a process through a pidfd and return when it is dead.

    Raises
    ------
    ProcessLookupError
        When there is no such process.
    TimeoutError
        When it lives on for longer than `timeout_s`.
    """
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            raise TimeoutError(f"process {pid} is still there {timeout_s:.0f} s after SIGKILL")
    finally:
        os.close(fd)


def pss_bytes(pid: int) -> int:
    """Proportional set size of one process: its private pages and its share of the shared ones."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"/proc/{pid}/smaps_rollup has no line 'Pss:'")


def runtime_pids(root_pid: int, mark: str) -> list[int]:
    """The process `root_pid`, what descends from it, and what has `MARK` set to `mark` in its environment."""
    parents = _parents()
    found = {root_pid}
    for pid in parents:
        if _descends(pid, root_pid, parents) or _carries(pid, mark):
            found.add(pid)
    return sorted(found)


def runtime_pss_bytes(root_pid: int, mark: str) -> int:
    """Sum of `pss_bytes` over `runtime_pids`; a process that ends meanwhile counts nothing."""
    total = 0
    for pid in runtime_pids(root_pid, mark):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += pss_bytes(pid)
    return total


def _parents() -> dict[int, int]:
    parents = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name in brackets may contain anything: the fields start after the last bracket.
            fields = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                parents[int(entry)] = int(fields[1])
    return parents


def _descends(pid: int, root_pid: int, parents: dict[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == root_pid:
            return True
    return False


def _carries(pid: int, mark: str) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return f"{MARK}={mark}".encode() in environment.split(b"\0")
