"""Reads journal segments: whole files from their end to their start, and the records in their bytes (docs/storage-format.md).

Owns no state. `checkpoint.segments` says what a segment is and has the parts that only damage needs; here is what every recovery goes
through, without the GIL: beside it another thread reads the snapshot. Nothing is read beyond the bytes given, whatever they say.
"""
# distutils: language = c++

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.errno cimport EINTR, EIO, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from libcpp.vector cimport vector

import os

cdef extern from "crc32.hpp" nogil:
    uint32_t crc32_of(const char *p, size_t size, uint32_t crc) noexcept

cdef extern from "fcntl.h" nogil:
    int open(const char *path, int flags, ...)
    enum: O_RDONLY
    enum: O_CLOEXEC
    enum: O_NOFOLLOW

cdef extern from "sys/stat.h" nogil:
    cdef struct stat:
        long long st_size
    int fstat(int fd, stat *found)

cdef extern from "unistd.h" nogil:
    int close(int fd)
    ssize_t pread(int fd, void *into, size_t size, long long at)

cdef enum:
    CHUNK = 64 << 10
    RECORD_SIZE = 24            # struct Head
    MAX_PAYLOAD = 64 << 20      # checkpoint.journal.MAX_RECORD_BYTES
    DATA = 1
    END = 3
    CLOSED = 4

cdef packed struct Head:
    uint32_t crc
    uint32_t word               # kind in the upper 4 bits, length of the payload in the others
    uint64_t position
    uint64_t synced

cdef struct Found:
    uint64_t offset, position, synced
    uint32_t kind, length


cdef int read_down(int fd, char *into, size_t size) noexcept nogil:
    """Read a file from its end to its start; 0, or what went wrong."""
    cdef size_t at = size, part, done
    cdef ssize_t got
    while at:
        part = at % CHUNK if at % CHUNK else CHUNK
        at -= part
        done = 0
        while done < part:
            got = pread(fd, into + at + done, part - done, at + done)
            if got < 0 and errno == EINTR:
                continue
            if got <= 0:
                return errno if got < 0 else EIO
            done += got
    return 0


def read_descending(str path not None):
    """Read a file from its end to its start.

    Whoever appends to it at the same time writes upwards: what is seen of a record means that all before it is seen whole.

    Raises
    ------
    OSError
    """
    cdef bytes name = os.fsencode(path), data
    cdef const char *c_name = name
    cdef char *into
    cdef stat found
    cdef int fd, failed = 0
    with nogil:
        fd = open(c_name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
        if fd < 0 or fstat(fd, &found):
            failed = errno
    try:
        if not failed:
            data = PyBytes_FromStringAndSize(NULL, found.st_size)
            into = PyBytes_AS_STRING(data)
            with nogil:
                failed = read_down(fd, into, found.st_size)
    finally:
        if fd >= 0:
            close(fd)
    if failed:
        raise OSError(failed, os.strerror(failed), path)
    return data


cdef bint record_at(const char *data, size_t size, size_t offset, uint32_t seed, Found *found) noexcept nogil:
    """Is there a record at this offset that verifies?"""
    cdef Head h
    cdef size_t end, padding
    if offset > size or size - offset < RECORD_SIZE:
        return False
    memcpy(&h, data + offset, RECORD_SIZE)
    found.offset, found.position, found.synced = offset, h.position, h.synced
    found.kind, found.length = h.word >> 28, h.word & 0x0fffffff
    if found.kind < DATA or found.kind > CLOSED or (found.kind == DATA) != (found.length != 0) or found.length > MAX_PAYLOAD:
        return False
    end = offset + RECORD_SIZE + found.length
    padding = -<size_t>found.length & 7
    if end > size or size - end < padding or h.synced > h.position:
        return False
    if nonzero(data, end + padding, end) != end + padding:
        return False
    return crc32_of(data + offset + 4, RECORD_SIZE - 4 + found.length, seed) == h.crc


cdef size_t nonzero(const char *data, size_t size, size_t at) noexcept nogil:
    """Where the first byte from `at` on stands that is not zero; `size` if all are."""
    cdef uint64_t words[8]
    cdef size_t i
    while at < size and size - at >= sizeof(words):
        memcpy(words, data + at, sizeof(words))
        if words[0] | words[1] | words[2] | words[3] | words[4] | words[5] | words[6] | words[7]:
            break
        at += sizeof(words)
    while at < size and data[at] == 0:
        at += 1
    return at if at < size else size


def record(bytes data not None, size_t offset, uint32_t seed):
    """The record at an offset, if one stands there that verifies, as a tuple (offset, kind, position, synced, length); else None."""
    cdef Found f
    if not record_at(data, len(data), offset, seed, &f):
        return None
    return f.offset, f.kind, f.position, f.synced, f.length


def records(bytes data not None, size_t offset, uint32_t seed, uint64_t first):
    """The unbroken run of records from an offset on.

    Parameters
    ----------
    data : bytes
        A whole segment.
    offset : int
        Where its records begin.
    seed : int
        Where their CRC begins.
    first : int
        Position of the first one, 0 if that one says it.

    Returns
    -------
    list of tuple
        As `record` returns them.
    int
        The offset behind the last of them.
    """
    cdef vector[Found] run
    cdef Found f
    cdef const char *p = data
    cdef size_t size = PyBytes_GET_SIZE(data), i
    cdef uint64_t last = first - 1
    cdef bint known = first != 0
    with nogil:
        while record_at(p, size, offset, seed, &f):
            # The first one of a later segment says its own position; marks have that of the last record.
            if known and f.position != last + (f.kind == DATA):
                break
            run.push_back(f)
            last = f.position
            known = True
            offset += RECORD_SIZE + f.length + (-<size_t>f.length & 7)
            if f.kind == END or f.kind == CLOSED:
                break
    return [(run[i].offset, run[i].kind, run[i].position, run[i].synced, run[i].length) for i in range(run.size())], offset


def first_nonzero(bytes data not None, size_t offset):
    """Where the first byte from `offset` on stands that is not zero; None if all are."""
    cdef const char *p = data
    cdef size_t size = PyBytes_GET_SIZE(data)
    with nogil:
        offset = nonzero(p, size, offset)
    return None if offset >= size else offset
