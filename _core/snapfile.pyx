"""Snapshot files on a local disk, written without the GIL (rules: docs/storage-format.md, "Save").

Owns: the checksum of payloads (CRC-64/XZ) and the steps by which a file is published. A save beside a busy actor wants the
interpreter's lock three times, not for each system call: each time the actor stands still until it has it back.

Left to others: what is in the file (`checkpoint.format`), what a failed step means (`checkpoint.stores.local`), when to save.
"""
# distutils: language = c++

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint64_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector

import os

cdef extern from "crc64.hpp" nogil:
    """
    static inline uint64_t crc64_plain(const char *p, size_t size, uint64_t crc) noexcept { return ~crc64_by_tables(p, size, ~crc); }
    """
    uint64_t crc64_of(const char *p, size_t size, uint64_t crc) noexcept
    uint64_t crc64_plain(const char *p, size_t size, uint64_t crc) noexcept

cdef extern from "sys/uio.h" nogil:
    cdef struct iovec:
        void *iov_base
        size_t iov_len

cdef extern from "snapfile_sys.hpp" namespace "fts" nogil:
    enum: FAILED
    enum: LOOK
    enum: EXISTS
    cdef cppclass Steps "fts::Publication":
        string directory, temp, final_path, own_claim, next_claim
        unsigned long long epoch
        cbool durable
        vector[iovec] parts
        int step, error
        int run(int upto) noexcept
    void c_fail_next "fts::failing.store"(int medium) noexcept
    int c_unlink_all "fts::unlink_all"(
        const vector[string] &paths, const string &own_claim, const string &next_claim, int &error) noexcept

STEPS = (
    "temp_created",
    "half_written",
    "written",
    "synced",
    "fence_checked",
    "renamed",
    "dir_synced",
    "fence_rechecked",
)


def fail_next_sync(str medium not None):
    """For tests: the next fsync of a "file", or of a "directory", fails with EIO, once."""
    c_fail_next({"file": 1, "directory": 2}[medium])


cdef class Pieces:
    """Memory of Python objects, held as long as this object lives."""

    cdef vector[Py_buffer] held

    def __init__(self, pieces):
        cdef Py_buffer buffer
        for piece in pieces:
            PyObject_GetBuffer(piece, &buffer, PyBUF_SIMPLE)
            self.held.push_back(buffer)

    def __dealloc__(self):
        for i in range(self.held.size()):
            PyBuffer_Release(&self.held[i])


def crc64(pieces, uint64_t crc=0):
    """CRC-64/XZ over a sequence of bytes-like objects, going on from `crc`. Without the GIL."""
    cdef Pieces held = Pieces(pieces)
    cdef size_t i
    with nogil:
        for i in range(held.held.size()):
            crc = crc64_of(<const char *>held.held[i].buf, held.held[i].len, crc)
    return crc


def crc64_by_tables(bytes data not None, uint64_t crc=0):
    """The same for processors that cannot multiply without carry: here to be held against it."""
    return crc64_plain(<const char *>data, len(data), crc)


def unlink_all(paths, str own_claim not None, str next_claim not None):
    """Remove files, in this order; those that are gone already are passed over.

    Returns
    -------
    bool
        False if it could not be told that the epoch is still held: then nothing was removed.

    Raises
    ------
    OSError
        Of the first that cannot be removed; later ones are not tried.
    """
    cdef vector[string] encoded
    cdef string own = os.fsencode(own_claim), following = os.fsencode(next_claim)
    cdef int result, err = 0
    for path in paths:
        encoded.push_back(os.fsencode(path))
    with nogil:
        result = c_unlink_all(encoded, own, following, err)
    if result == FAILED:
        raise OSError(err, os.strerror(err))
    return result != LOOK


cdef class Publication:
    """A file that appears under its final name as a whole, `STEPS` by `STEPS`.

    Parameters
    ----------
    directory, temp, final : str
        Absolute paths: of the directory, and in it of the unfinished file and of the finished one.
    own_claim, next_claim : str
        Paths of the claim of `epoch`, and of the one that would supersede it first.
    epoch : int
    parts : sequence of bytes-like
        The content; held until this object goes.
    durable : bool
        Whether file and directory are fsynced.
    """

    cdef Steps steps
    cdef Pieces pieces

    def __init__(self, str directory not None, str temp not None, str final not None, str own_claim not None,
                 str next_claim not None, uint64_t epoch, parts, bint durable):
        cdef iovec one
        cdef size_t i
        self.steps.directory, self.steps.temp = os.fsencode(directory), os.fsencode(temp)
        self.steps.final_path = os.fsencode(final)
        self.steps.own_claim, self.steps.next_claim = os.fsencode(own_claim), os.fsencode(next_claim)
        self.steps.epoch, self.steps.durable = epoch, durable
        self.pieces = Pieces(parts)
        for i in range(self.pieces.held.size()):
            one.iov_base, one.iov_len = self.pieces.held[i].buf, self.pieces.held[i].len
            self.steps.parts.push_back(one)

    @property
    def step(self):
        """How many of `STEPS` are done."""
        return self.steps.step

    def run(self, int upto):
        """Go on until `upto` steps are done, without the GIL.

        Returns
        -------
        bool
            False if the step that was done last could not tell that the epoch is still held: look, and go on.

        Raises
        ------
        FileExistsError
            There is a file with the final name.
        OSError
            The step after the last that is done has failed.
        """
        cdef int result
        with nogil:
            result = self.steps.run(upto)
        if result == EXISTS:
            raise FileExistsError(17, "exists already")
        if result == FAILED:
            raise OSError(self.steps.error, os.strerror(self.steps.error))
        return result != LOOK
