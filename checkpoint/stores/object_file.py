"""A large object as a seekable file: small reads through a window, large ones in several requests at once."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

from .objects import Objects

_CHUNK = 8 << 20
_AT_ONCE = 4


class ObjectFile(io.RawIOBase):
    """Reads an immutable object of known length; short where the object is shorter than that."""

    def __init__(self, objects: Objects, name: str, length: int) -> None:
        self._objects, self._name, self._length = objects, name, length
        self._position = 0
        self._window, self._window_start = b"", 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; return the new position."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` as far as there is something; large buffers by several requests at once."""
        view = memoryview(buffer).cast("B")
        wanted = min(len(view), self._length - self._position)
        if wanted <= 0:
            return 0
        got = self._from_window(view[:wanted]) or (
            self._fetch(view[:wanted]) if wanted > _CHUNK else self._through_window(view[:wanted])
        )
        self._position += got
        return got

    def _from_window(self, view: memoryview) -> int:
        start = self._position - self._window_start
        if not 0 <= start < len(self._window):
            return 0
        piece = self._window[start : start + len(view)]
        view[: len(piece)] = piece
        return len(piece)

    def _through_window(self, view: memoryview) -> int:
        end = min(self._position + _CHUNK, self._length)
        self._window = self._objects.read(self._name, self._position, end)
        self._window_start = self._position
        return self._from_window(view)

    def _fetch(self, view: memoryview) -> int:
        ranges: list[tuple[int, int]] = [
            (start, min(start + _CHUNK, len(view))) for start in range(0, len(view), _CHUNK)
        ]

        def one(span: tuple[int, int]) -> int:
            data = self._objects.read(self._name, self._position + span[0], self._position + span[1])
            view[span[0] : span[0] + len(data)] = data
            return len(data)

        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(_AT_ONCE, "checkpoint-read") as pool:
            return _contiguous(ranges, pool.map(one, ranges))


def _contiguous(ranges: list[tuple[int, int]], got: Iterator[int]) -> int:
    """Return how many bytes are there from the start without a gap."""
    total = 0
    for (start, end), size in zip(ranges, got, strict=True):
        total += size
        if size < end - start:
            break
    return total
