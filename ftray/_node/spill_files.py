"""Spill files: their format, and the two places where they can be: a directory, or a URL of fsspec.

Owns: one file an object: its bytes, then a trailer with magic, size and CRC-32; names, modes, and the order
of writing (a name that can be read is a whole file).
Invariants: what is read is what was written, or ``DamagedError``; a failed write leaves nothing behind.
Leaves to others: which object is in which file (``spilling``), memory (``spill_process``).
"""

from __future__ import annotations

import os
import struct
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Fault = Callable[[str], None]

MAGIC = b"FTRSPIL1"
TRAILER = struct.Struct("<8sQI")
# Large enough for the disk, small enough that the checksum finds the bytes in the cache.
STEP_BYTES = 1 << 20


class DamagedError(Exception):
    """A file is gone, cut short, or holds other bytes than were written."""


def _copy_out(data: memoryview, write: Callable[[memoryview], Any], fault: Fault) -> int:
    """Write everything and the trailer; return the checksum."""
    crc = 0
    for at in range(0, len(data), STEP_BYTES):
        step = data[at : at + STEP_BYTES]
        crc = zlib.crc32(step, crc)
        write(step)
        if at <= len(data) // 2 < at + STEP_BYTES:
            fault("half-written")
    write(memoryview(TRAILER.pack(MAGIC, len(data), crc)))
    return crc


def _copy_in(read_into: Callable[[memoryview], int], target: memoryview, crc: int, name: str) -> None:
    """Fill ``target`` and check it against the trailer and against ``crc``."""
    found = 0
    for at in range(0, len(target), STEP_BYTES):
        step = target[at : at + STEP_BYTES]
        if _read_all(read_into, step) < len(step):
            raise DamagedError(f"{name} is cut short")
        found = zlib.crc32(step, found)
    trailer = bytearray(TRAILER.size + 1)
    if _read_all(read_into, memoryview(trailer)) != TRAILER.size:
        raise DamagedError(f"{name} does not have the size of what was written")
    if TRAILER.unpack(trailer[:-1]) != (MAGIC, len(target), crc) or found != crc:
        raise DamagedError(f"{name} does not hold what was written (checksum {found:08x}, not {crc:08x})")


def _read_all(read_into: Callable[[memoryview], int], target: memoryview) -> int:
    done = 0
    while done < len(target):
        count = read_into(target[done:])
        if not count:
            break
        done += count
    return done


class LocalFiles:
    """Spill files in a directory of this machine."""

    def __init__(self, path: str) -> None:
        self.path = path

    def where(self, name: str) -> str:
        """Return the file's path."""
        return os.path.join(self.path, name)

    def write(self, name: str, data: memoryview, fault: Fault) -> int:
        """Write a file; return its checksum."""
        os.makedirs(self.path, mode=0o700, exist_ok=True)
        part = self.where(name) + ".part"
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            try:
                crc = _copy_out(data, lambda step: _write_all(fd, step), fault)
            finally:
                os.close(fd)
            fault("written")
            os.rename(part, self.where(name))
        except OSError:
            os.unlink(part)
            raise
        return crc

    def read(self, name: str, target: memoryview, crc: int) -> None:
        """Fill ``target`` from a file."""
        try:
            fd = os.open(self.where(name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            raise DamagedError(f"{self.where(name)} is gone") from None
        try:
            _copy_in(lambda step: os.readv(fd, [step]), target, crc, self.where(name))
        finally:
            os.close(fd)

    def remove(self, name: str) -> None:
        """Remove a file and what an ended writer left of it."""
        for path in (self.where(name), self.where(name) + ".part"):
            try:
                os.unlink(path)
            except FileNotFoundError:
                continue

    def free_bytes(self) -> int:
        """Return how much room the file system has."""
        found = os.statvfs(self.path if os.path.isdir(self.path) else os.path.dirname(self.path))
        return found.f_bavail * found.f_frsize

    def wipe(self) -> None:
        """Remove the directory."""
        import shutil

        shutil.rmtree(self.path, ignore_errors=True)


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


class UrlFiles:
    """Spill files below a URL that fsspec knows."""

    def __init__(self, url: str) -> None:
        import fsspec

        self.path = url
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._made = False

    def where(self, name: str) -> str:
        """Return the file's URL."""
        return f"{self.path}/{name}"

    def write(self, name: str, data: memoryview, fault: Fault) -> int:
        """Write a file; return its checksum."""
        if not self._made:
            self._fs.makedirs(self._root, exist_ok=True)
            self._made = True
        target = f"{self._root}/{name}"
        try:
            # Not every file system renames; the trailer tells a whole file from a part of one.
            with self._fs.open(target, "wb") as file:
                crc = _copy_out(data, file.write, fault)
        except Exception:
            if self._fs.exists(target):
                self._fs.rm_file(target)
            raise
        fault("written")
        return crc

    def read(self, name: str, target: memoryview, crc: int) -> None:
        """Fill ``target`` from a file."""
        try:
            with self._fs.open(f"{self._root}/{name}", "rb") as file:
                _copy_in(lambda step: _read_into(file, step), target, crc, self.where(name))
        except FileNotFoundError:
            raise DamagedError(f"{self.where(name)} is gone") from None

    def remove(self, name: str) -> None:
        """Remove a file."""
        try:
            self._fs.rm_file(f"{self._root}/{name}")
        except FileNotFoundError:
            return

    def free_bytes(self) -> int:
        """Return -1: nobody knows."""
        return -1

    def wipe(self) -> None:
        """Remove everything below the URL."""
        if self._fs.exists(self._root):
            self._fs.rm(self._root, recursive=True)


def _read_into(file: Any, target: memoryview) -> int:
    data = file.read(len(target))
    target[: len(data)] = data
    return len(data)


def open_place(place: str) -> LocalFiles | UrlFiles:
    """Return the place of a path or URL."""
    return UrlFiles(place) if "://" in place else LocalFiles(place)
