"""Copies large contents into memory that is there, on as many threads as help (widecopy.hpp).

The interpreter's lock is kept: what is copied is the state of an actor, which Python code of other threads could
change meanwhile.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer


cdef extern from "widecopy.hpp" namespace "ftw" nogil:
    size_t c_copy "ftw::copy"(char *to, const char *source, size_t size) noexcept


def copy_wide(into, data):
    """Copy `data` into the writable buffer `into`, which has its length; returns how many threads did it."""
    cdef Py_buffer to, source
    PyObject_GetBuffer(into, &to, PyBUF_WRITABLE)
    try:
        PyObject_GetBuffer(data, &source, PyBUF_SIMPLE)
        try:
            if to.len != source.len:
                raise ValueError(f"{source.len} bytes do not fit into exactly {to.len}")
            return c_copy(<char *>to.buf, <const char *>source.buf, source.len)
        finally:
            PyBuffer_Release(&source)
    finally:
        PyBuffer_Release(&to)
