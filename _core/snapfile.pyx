"""Snapshot files on a local disk, written and read without the GIL (rules: docs/storage-format.md, "Save").

Owns: the checksum of payloads (CRC-64/XZ), the steps by which a file is published, and memory that large contents are read into. A
save beside a busy actor wants the interpreter's lock three times, not for each system call: each time the actor stands still until it
has it back. A large state's first touch of its memory takes longer than reading it; so it gets huge pages where there are some.

Left to others: what is in the file (`checkpoint.format`), what a failed step means (`checkpoint.stores.local`), when to save.
"""
# distutils: language = c++

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint64_t
from libc.string cimport memchr, memcpy
from libcpp cimport bool as cbool
from libcpp.memory cimport make_shared, shared_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

import os

cdef extern from "crc64.hpp" nogil:
    """
    static inline uint64_t crc64_plain(const char *p, size_t size, uint64_t crc) noexcept { return ~crc64_by_tables(p, size, ~crc); }
    """
    uint64_t crc64_of(const char *p, size_t size, uint64_t crc) noexcept
    uint64_t crc64_plain(const char *p, size_t size, uint64_t crc) noexcept

cdef extern from "Python.h":
    object PyByteArray_FromStringAndSize(const char *content, Py_ssize_t size)
    char *PyByteArray_AS_STRING(object)

cdef extern from "unistd.h" nogil:
    int getpid()

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
    cdef cppclass Filling:
        vector[iovec] parts
        uint64_t crc
        long long done
        int fd, error
        cbool claim() noexcept
        void wait() noexcept
    int start_filling(const shared_ptr[Filling] &filling) noexcept
    void huge_pages(char *memory, size_t size) noexcept
    long long read_summed(int fd, char *into, size_t size, uint64_t &crc, int &error) noexcept
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


# --- reading

cdef enum:
    NOGIL_MIN = 256 << 10           # copying less takes no longer than giving up the GIL


def unset_memory(Py_ssize_t size):
    """A bytearray of this size whose content is whatever: for who writes all of it."""
    memory = PyByteArray_FromStringAndSize(NULL, size)
    huge_pages(PyByteArray_AS_STRING(memory), size)
    return memory


def read_into(int fd, memory, uint64_t crc=0):
    """Read from where a descriptor stands until all of `memory`, writable, is filled. Without the GIL.

    Returns
    -------
    int
        How many bytes there were: fewer only at the end of the file.
    int
        CRC-64/XZ of them, going on from `crc`.

    Raises
    ------
    OSError
    """
    cdef Py_buffer into
    cdef long long got
    cdef int err = 0
    PyObject_GetBuffer(memory, &into, PyBUF_WRITABLE)
    try:
        with nogil:
            got = read_summed(fd, <char *>into.buf, into.len, crc, err)
    finally:
        PyBuffer_Release(&into)
    if err:
        raise OSError(err, os.strerror(err))
    return got, crc


cdef class ReadAhead:
    """Memory that is filled from a descriptor by a thread of its own, which needs no interpreter.

    Parameters
    ----------
    fd : int
        Where it stands is where reading begins; it moves on with it. It may be closed meanwhile.
    parts : sequence of bytearray
        Filled one after the other. Nobody may look at them before `take` has returned.

    Raises
    ------
    OSError
        There is no thread to be had.
    """

    cdef shared_ptr[Filling] filling
    cdef Pieces pieces
    cdef int maker

    def __init__(self, int fd, parts):
        cdef iovec one
        cdef size_t i
        cdef int failed
        self.pieces = Pieces(parts)
        self.maker = getpid()
        self.filling = make_shared[Filling]()
        for i in range(self.pieces.held.size()):
            one.iov_base, one.iov_len = self.pieces.held[i].buf, self.pieces.held[i].len
            self.filling.get().parts.push_back(one)
        self.filling.get().fd = os.dup(fd)
        failed = start_filling(self.filling)
        if failed:
            self.filling.reset()
            raise OSError(failed, os.strerror(failed))

    def take(self):
        """What was read, waiting for it if that is under way.

        Returns
        -------
        (int, int) or None
            How many bytes there were, fewer only at the end of the file, and their CRC-64/XZ. None: the thread has not got to run, and
            will not read any more.

        Raises
        ------
        OSError
        """
        cdef Filling *filling = self.filling.get()
        if filling == NULL or not self.over():
            return None
        if filling.error:
            raise OSError(filling.error, os.strerror(filling.error))
        return filling.done, filling.crc

    cdef bint over(self):
        """Whether the thread has read, and has ended; it does not begin any more."""
        cdef Filling *filling = self.filling.get()
        if self.maker != getpid():       # a fork has no such thread
            return False
        if filling.claim():
            self.filling.reset()
            return False
        with nogil:
            filling.wait()
        return True

    def __dealloc__(self):
        if self.filling.get() != NULL:
            self.over()


cdef class Source:
    """What an unpickler reads, in memory. It asks for large contents with `readinto`: they are copied once, without the GIL, into memory
    that has huge pages.

    Parameters
    ----------
    data : bytes-like
        Held as long as this object lives, and not to be changed.
    """

    cdef Py_buffer held
    cdef size_t at, size

    def __cinit__(self, data):
        PyObject_GetBuffer(data, &self.held, PyBUF_SIMPLE)
        self.size = self.held.len

    def __dealloc__(self):
        PyBuffer_Release(&self.held)

    cdef bytes take(self, size_t size):
        cdef bytes taken = PyBytes_FromStringAndSize(NULL, size)
        self.copy(PyBytes_AS_STRING(taken), size)
        return taken

    cdef int copy(self, char *into, size_t size) except -1:
        cdef const char *begin = <const char *>self.held.buf + self.at
        if size < NOGIL_MIN:
            memcpy(into, begin, size)
        else:
            with nogil:
                huge_pages(into, size)
                memcpy(into, begin, size)
        self.at += size
        return 0

    def read(self, Py_ssize_t size=-1):
        """See `io.BufferedIOBase.read`."""
        cdef size_t left = self.size - self.at
        return self.take(left if size < 0 or <size_t>size > left else <size_t>size)

    def readline(self):
        """See `io.IOBase.readline`."""
        cdef const char *begin = <const char *>self.held.buf + self.at
        cdef size_t left = self.size - self.at
        cdef const char *end = <const char *>memchr(begin, 10, left) if left else NULL
        return self.take(left if end == NULL else <size_t>(end - begin) + 1)

    def readinto(self, memory):
        """See `io.BufferedIOBase.readinto`."""
        cdef Py_buffer into
        cdef size_t size
        PyObject_GetBuffer(memory, &into, PyBUF_WRITABLE)
        try:
            size = min(<size_t>into.len, self.size - self.at)
            self.copy(<char *>into.buf, size)
        finally:
            PyBuffer_Release(&into)
        return size
