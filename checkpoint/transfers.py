"""How far a long transfer is, for whoever watches it: bytes that were read from a store, and written to it.

Owns the count. What moves the bytes says so (`moved`, `counted`), which costs nothing unless somebody
watches in the same thread.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, BinaryIO

Progress = Callable[[int, int], None]

_PIECE = 32 << 20  # so much is asked for at once: object stores read the pieces of that side by side


class Meter:
    """Counts up to a total, and never back.

    Parameters
    ----------
    progress : callable
        ``progress(done_bytes, total_bytes)``.
    total : int
        0: not known yet.
    """

    def __init__(self, progress: Progress, total: int = 0) -> None:
        self._progress = progress
        self.done, self.total = 0, total

    def expect(self, total: int) -> None:
        """So many bytes are going to be moved."""
        self.total = max(self.total, total)

    def reach(self, done: int) -> None:
        """So many have been moved by now."""
        done = min(done, self.total)
        if done > self.done:
            self.done = done
            self._progress(done, self.total)

    def add(self, size: int) -> None:
        """So many more have been moved."""
        self.reach(self.done + size)


_watching: ContextVar[Meter | None] = ContextVar("watching", default=None)


@contextmanager
def watch(progress: Progress | None, total: int = 0) -> Iterator[Meter]:
    """Have what is moved inside of the block counted, and told to `progress`, up to the total at its end."""
    meter = Meter(progress or _nobody, total)
    token = _watching.set(meter if progress is not None else None)
    try:
        yield meter
        meter.reach(meter.total)
    finally:
        _watching.reset(token)


def _nobody(_done: int, _total: int) -> None:
    """Is told nothing."""


def watched() -> bool:
    """Whether somebody is told."""
    return _watching.get() is not None


def expect(total: int) -> None:
    """So many bytes are going to be moved, all in all."""
    meter = _watching.get()
    if meter is not None:
        meter.expect(total)


def moved(size: int) -> None:
    """So many bytes have been read or written."""
    meter = _watching.get()
    if meter is not None:
        meter.add(size)


def counted(file: BinaryIO) -> BinaryIO:
    """Return a file of which all that is read is counted; the same one if nobody watches."""
    meter = _watching.get()
    if meter is None:
        return file
    found: Any = _Counted(file, meter)
    return found  # type: ignore[no-any-return]


class _Counted(io.RawIOBase):
    """Another file, read in pieces."""

    def __init__(self, file: BinaryIO, meter: Meter) -> None:
        self._file, self._meter = file, meter

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._meter.add(len(data))
        return data

    def readinto(self, buffer: Any) -> int:
        got: int = self._file.readinto(memoryview(buffer)[:_PIECE])  # type: ignore[attr-defined]
        self._meter.add(got)
        return got
