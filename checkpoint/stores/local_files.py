"""System calls of the stores on a local disk: whole writes, fsyncs, directories, and what lies under a
path."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .. import faults
from ..journal import Buffer

CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITEV_PARTS = 512


def fsync_path(path: str, flags: int) -> None:
    """Make a file or directory durable by its path."""
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_directory(path: str) -> None:
    """Make the names in a directory durable."""
    fsync_path(path, os.O_RDONLY | os.O_DIRECTORY)


def make_directories(path: str) -> None:
    """Create `path` with its parents, mode 0700, each durable in its own parent before the next."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    make_directories(parent)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    if faults.active:
        faults.hit("file.mkdir.created")
    fsync_directory(parent)


def write_all(fd: int, parts: Sequence[Buffer]) -> None:
    """Write all of `parts` with few system calls: each one gives up the GIL and has to get it back."""
    left = [memoryview(part) for part in parts if len(part)]
    while left:
        written = os.writev(fd, left[:_WRITEV_PARTS])
        done = 0
        while done < len(left) and written >= len(left[done]):
            written -= len(left[done])
            done += 1
        del left[:done]
        if written:
            left[0] = left[0][written:]


def remove_file(path: str) -> None:
    """Remove a file that may be gone already."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def empty_directory(directory: str) -> None:
    """Delete a flat directory; others may be deleting the same one."""
    try:
        for name in os.listdir(directory):
            remove_file(os.path.join(directory, name))
        os.rmdir(directory)
    except FileNotFoundError:
        pass


def file_system(path: str) -> str:
    """Return the type of the file system of `path` (or its nearest parent), "" if it cannot be told."""
    while not os.path.exists(path):
        path = os.path.dirname(path)
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        with open("/proc/self/mountinfo") as lines:
            for line in lines:
                left, _, right = line.partition(" - ")
                if left.split()[2] == wanted:
                    return right.split()[0]
    except OSError:
        return ""
    return ""
