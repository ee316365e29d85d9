"""The process that writes spilled objects to files and reads them back, for ``ftrayd``, one at a time.

A process of its own, so that a slow disk, a full one or a library of some URL holds up nobody and can be
killed.
It gets segments and gives new ones as descriptors over its socket, and ends when ``ftrayd`` does.

Owns: the mappings while it copies, and the memfd of what it reads.
Invariants: every operation is answered once; a segment that it gives away is sealed, as a producer's is.
Leaves to others: what to write when (``spilling``), the format of files (``spill_files``).

``FTRAY_SPILL_FAULT=<point>@<path>`` kills it at a point (``half-written``, ``written``, ``half-read``), once:
it makes the file ``path`` and does nothing when that exists. Several stand with commas between them.
"""

from __future__ import annotations

import errno
import fcntl
import marshal
import mmap
import os
import signal
import socket

from ftray._node.spill_files import DamagedError, LocalFiles, UrlFiles, open_place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

MESSAGE_BYTES = 1 << 16
# Outcomes of an operation, in the first field of an answer.
OK, FAILED, DISK_FULL, DAMAGED, NO_MEMORY = "ok", "failed", "disk full", "damaged", "no memory"
_NO_DISK = (errno.ENOSPC, errno.EDQUOT)
_SEALS = fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


def fault(point: str) -> None:
    """Die here if the environment says so."""
    for order in os.environ.get("FTRAY_SPILL_FAULT", "").split(","):
        wanted, _, path = order.partition("@")
        if wanted == point and not os.path.exists(path):
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
            os.kill(os.getpid(), signal.SIGKILL)


def write(place: LocalFiles | UrlFiles, name: str, fd: int, offset: int, size: int) -> tuple[Any, ...]:
    """Write ``size`` bytes of a segment to a file; the answer has their checksum."""
    try:
        # Unmapped with its last view: a traceback may still hold one when this ends.
        segment = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
        return OK, place.write(name, memoryview(segment)[offset : offset + size], fault)
    except OSError as error:
        if error.errno in _NO_DISK:
            free_bytes = place.free_bytes()
            return DISK_FULL, f"no space for {size} bytes in {place.path} ({free_bytes} bytes are free)"
        return FAILED, f"{place.where(name)} cannot be written: {type(error).__name__}: {error}"
    except Exception as error:  # any library behind a URL
        return FAILED, f"{place.where(name)} cannot be written: {type(error).__name__}: {error}"


def read(place: LocalFiles | UrlFiles, name: str, size: int, crc: int) -> tuple[tuple[Any, ...], int]:
    """Read a file into a new, sealed segment: the answer with its size, and its descriptor or -1."""
    length = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    fd = os.memfd_create("ftray", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, length)
        os.posix_fallocate(fd, 0, length)
    except OSError as error:
        os.close(fd)
        return (NO_MEMORY, f"no memory for {size} bytes: {error}"), -1
    try:
        segment = mmap.mmap(fd, length)
        fault("half-read")
        place.read(name, memoryview(segment)[:size], crc)
        del segment
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except Exception as error:  # any library behind a URL
        os.close(fd)
        kind = DAMAGED if isinstance(error, DamagedError) else FAILED
        return (kind, str(error) if kind == DAMAGED else f"{place.where(name)}: {error!r}"), -1
    return (OK, length), fd


def serve(sock: socket.socket, location: str) -> None:
    """Carry out operations until the other side closes, or has everything wiped."""
    place: LocalFiles | UrlFiles | None = None
    while True:
        data, fds, _flags, _address = socket.recv_fds(sock, MESSAGE_BYTES, 1)
        if not data:
            return
        kind, number, name, *values = marshal.loads(data)
        answer: tuple[Any, ...]
        out = -1
        try:
            if place is None:
                place = open_place(location)
            if kind == "write":
                answer = write(place, name, fds[0], *values)
            elif kind == "read":
                answer, out = read(place, name, *values)
            elif kind == "wipe":
                place.wipe()
                return
            else:
                place.remove(name)
                continue
        except Exception as error:  # no place, or a file that cannot be removed
            answer = (FAILED, f"{location}: {type(error).__name__}: {error}")
            if kind == "remove":
                continue
        finally:
            for fd in fds:
                os.close(fd)
        socket.send_fds(sock, [marshal.dumps((kind, number, *answer))], [out] if out >= 0 else [])
        if out >= 0:
            os.close(out)


def main(sock: socket.socket, location: str) -> None:
    """Be the process."""
    from ftray._core import procs

    procs.set_name("ftray-spill")
    procs.set_pdeathsig(signal.SIGKILL)  # also from a disk that hangs
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        serve(sock, location)
    except (BrokenPipeError, ConnectionResetError):
        return  # ftrayd is gone
