"""Who is at work at this moment, by what the processes themselves note in an append-only file.

A record is (role, pid, start time, monotonic time) at the beginning of a piece of work and the same with the
start time negated at its end. Pid and start time together name a process for ever, so nothing here can mean
a later process of that pid. A process that died with a beginning but no end was killed in the middle of its
work.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

RECORD = struct.Struct("<BxxxIqd")  # short enough that the kernel appends it in one piece
SERVER = 1
WORKER = 2


@contextmanager
def at_work(path: str, role: int) -> Iterator[None]:
    """Note on the board when this process begins and ends a piece of work; the killed never note the end."""
    since = started(os.getpid())
    if since is None:
        raise ProcessLookupError("/proc does not show this process")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, RECORD.pack(role, os.getpid(), since, time.monotonic()))
        try:
            yield
        finally:
            os.write(fd, RECORD.pack(role, os.getpid(), -since, time.monotonic()))
    finally:
        os.close(fd)


def started(pid: int) -> int | None:
    """When a process began, in clock ticks since boot; None if there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            # The name in brackets may contain anything: the fields start after the last bracket.
            return int(stat.read().rpartition(b")")[2].split()[19])
    except (FileNotFoundError, ProcessLookupError):
        return None


class Process(NamedTuple):
    """One process, told apart from all earlier and later ones with its pid."""

    role: int
    pid: int
    started: int


class Board:
    """Reads the file. Used by one thread."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._read_bytes = 0
        self._began: dict[Process, float] = {}  # a dict keeps the order of arrival
        self._lasted_s: dict[int, float] = {}  # by role: the newest piece of work that was ended

    @classmethod
    def create(cls, path: str) -> Board:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        return cls(path)

    def at_work(self, role: int) -> list[Process]:
        """Those who are at work now, in the order in which they began."""
        self._refresh()
        return [process for process in self._began if process.role == role]

    def began(self, process: Process) -> float | None:
        """When it began the piece of work that it is at, in monotonic time; None if it is at none."""
        self._refresh()
        return self._began.get(process)

    def usual_s(self, role: int) -> float:
        """How long a piece of work of this role takes: as long as the last one; 0 before the first."""
        return self._lasted_s.get(role, 0.0)

    def died_at_work(self, process: Process) -> bool:
        """Whether a process that is dead had begun a piece of work and not ended it."""
        self._refresh()
        found = process in self._began
        self.forget(process)
        return found

    def forget(self, process: Process) -> None:
        """Take a process that is gone off the board: it cannot do so itself."""
        self._began.pop(process, None)

    def _refresh(self) -> None:
        with open(self.path, "rb") as file:
            file.seek(self._read_bytes)
            news = file.read()
        whole = len(news) - len(news) % RECORD.size
        self._read_bytes += whole
        for role, pid, started, at in RECORD.iter_unpack(news[:whole]):
            process = Process(role, pid, abs(started))
            began = self._began.pop(process, None)
            if started > 0:
                self._began[process] = at
            elif began is not None:
                self._lasted_s[role] = at - began
