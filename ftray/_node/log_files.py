"""Workers' output in files, for ``ftray logs``.

Owns: ``<session>/logs/worker-<number>.out`` and ``.err`` (directory 0700, files 0600). Invariants: a file
is at most ``max_bytes`` long and has one predecessor (``.1``); the files of at most ``MAX_ENDED`` ended
workers are kept; a disk that is full ends the writing of that file, with a report, and never the worker's
output to the driver.
Leaves to others: pipes and labels (``log_service``), reading (``ftray/_cli``).
"""

from __future__ import annotations

import os
from collections import deque

from ftray._node import settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

DIRECTORY = "logs"
SUFFIXES = {1: "out", 2: "err"}
DEFAULT_MAX_BYTES = 4 << 20
MAX_ENDED = 100


def max_bytes() -> int:
    """Return the longest a file may get: ``FTRAY_ROTATION_MAX_BYTES``, or Ray's name for it; 0: no files."""
    return settings.integer("ROTATION_MAX_BYTES", DEFAULT_MAX_BYTES, 0, meaning=" (0: no files)")


def path_of(session_dir: str, number: int, stream: int) -> str:
    """Return where a worker's output goes."""
    return os.path.join(session_dir, DIRECTORY, f"worker-{number}.{SUFFIXES[stream]}")


class LogFiles:
    """The files of all workers of a session; one is made when there is something to write.

    Parameters
    ----------
    session_dir
        The session's directory.
    limit_bytes
        See `max_bytes`.
    report
        Told of a file that cannot be written.
    """

    def __init__(self, session_dir: str, limit_bytes: int, report: Callable[[str], None]) -> None:
        self._session_dir = session_dir
        self._limit_bytes = limit_bytes
        self._report = report
        self._open: dict[tuple[int, int], tuple[int, int]] = {}  # (number, stream) -> descriptor, size
        self._given_up: set[tuple[int, int]] = set()
        self._ended: deque[int] = deque()

    def write(self, number: int, stream: int, text: bytes) -> None:
        """Append whole lines."""
        key = (number, stream)
        if not self._limit_bytes or key in self._given_up:
            return
        try:
            fd, size = self._open.get(key) or self._create(number, stream)
            if size and size + len(text) > self._limit_bytes:
                os.close(fd)
                del self._open[key]
                path = path_of(self._session_dir, number, stream)
                os.replace(path, path + ".1")
                fd, size = self._create(number, stream)
            text = text[-self._limit_bytes :]
            self._open[key] = (fd, size + len(text))
            while text:
                text = text[os.write(fd, text) :]
        except OSError as error:
            self._given_up.add(key)
            self._report(f"output of worker {number} is no longer written to {DIRECTORY}: {error}")

    def _create(self, number: int, stream: int) -> tuple[int, int]:
        path = path_of(self._session_dir, number, stream)
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._open[number, stream] = (fd, 0)
        return fd, 0

    def ended(self, number: int) -> None:
        """The worker is gone: its files are closed, and removed when many others ended after it."""
        wrote = False
        for stream in SUFFIXES:
            self._given_up.discard((number, stream))
            fd = self._open.pop((number, stream), (-1, 0))[0]
            if fd >= 0:
                os.close(fd)
                wrote = True
        if wrote:
            self._ended.append(number)
        while len(self._ended) > MAX_ENDED:
            self._remove(self._ended.popleft())

    def _remove(self, number: int) -> None:
        for stream in SUFFIXES:
            path = path_of(self._session_dir, number, stream)
            for name in (path, path + ".1"):
                try:
                    os.unlink(name)
                except FileNotFoundError:
                    continue

    def close(self) -> None:
        """Close every file."""
        for fd, _size in self._open.values():
            os.close(fd)
        self._open.clear()
