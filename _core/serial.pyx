# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# distutils: language = c++
"""Value codec of the call path: Python values <-> bytes.

Owns the value format and its layout in memory.

Value: u8 tag, then (little-endian)

====== ================================================================================================
0 1 2  None, True, False
3 4    int64, float64
5 6    str as utf-8, bytes: the rest of the value
7      pickle (protocol 5) without out-of-band buffers
8      7 zero bytes, u64 n, u64 pickle length, n x (u64 offset, u64 length), pickle, buffers. Offsets count
       from the start of the value; buffers of ZERO_COPY_MIN bytes and more are aligned to 64 bytes
9      error: payload for ftray._task_errors.load_error
====== ================================================================================================

Invariants: only exact builtin types use tags 0-6; what comes out of a buffer is read-only whatever its size
and whether it was copied or mapped; every length read from the input is checked before it is used; a Buf is
unchanged after a failure.

Leaves to others: where values are placed and for how long memory stays mapped (`base` objects), pickling
itself and refs inside values (pickler), arguments (callargs), how failures are worded (ftray._pickling,
ftray.exceptions).
"""

import _pickle

cimport cython
from cpython.buffer cimport PyBUF_FORMAT, PyBUF_ND, PyBUF_READ, PyBUF_STRIDES, PyBUF_WRITABLE
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_AsLongLongAndOverflow, PyLong_CheckExact
from cpython.memoryview cimport PyMemoryView_FromMemory, PyMemoryView_FromObject, PyMemoryView_GET_BUFFER
from cpython.unicode cimport PyUnicode_AsUTF8String, PyUnicode_DecodeUTF8
from libc.stdint cimport UINT32_MAX, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from ftray._core.buf cimport Buf, buf_extend, buf_free, buf_init, buf_put_u8
from ftray._core.pickler cimport Encoder, pickle_value, release_encoder

cdef extern from *:
    """
    static char ftray_byte_format[] = "B";
    """
    char* BYTE_FORMAT "ftray_byte_format"

cdef extern from "Python.h":
    bint PyUnicode_CheckExact(object)
    bint PyUnicode_IS_COMPACT_ASCII(object)
    Py_ssize_t PyUnicode_GET_LENGTH(object)
    void* PyUnicode_DATA(object)

cdef enum:
    OOB_HEADER = 24                 # tag, padding, count, pickle length
    OOB_ENTRY = 16
    BUFFER_ALIGN = 64               # cache line, and what vectorised readers want
    SMALL_ALIGN = 8
    ZERO_COPY_MIN = 4096            # smaller ones are copied out: a tiny array must not pin shared memory
    NOGIL_MIN = 1 << 20             # releasing the GIL for less costs more than it gives

cdef char[16] TAG_BYTES_TABLE
for _i in range(16):
    TAG_BYTES_TABLE[_i] = _i

cdef object _loads = _pickle.loads


# --- values ---------------------------------------------------------------------------------------

cdef inline int _put_word(Buf* b, char tag, const void* word) except -1:
    cdef char* at = buf_extend(b, 9)
    if at == NULL:
        raise MemoryError("no memory for a value of 9 bytes")
    at[0] = tag
    memcpy(at + 1, word, 8)
    return 1


cdef inline int _put_bytes(Buf* b, char tag, const char* src, size_t n, bint framed) except -1:
    cdef uint32_t length = <uint32_t>n
    cdef size_t head = 5 if framed else 1
    cdef char* at = buf_extend(b, head + n)
    if at == NULL:
        raise MemoryError(f"no memory for a value of {n} bytes")
    at[0] = tag
    if framed:
        memcpy(at + 1, &length, 4)
    memcpy(at + head, src, n)
    return 1


cdef int _put_text(Buf* b, object value, size_t limit, bint framed) except -1:
    cdef bytes encoded
    if <size_t>PyUnicode_GET_LENGTH(value) > limit:
        return 0
    if PyUnicode_IS_COMPACT_ASCII(value):
        return _put_bytes(b, TAG_STR, <const char*>PyUnicode_DATA(value), PyUnicode_GET_LENGTH(value), framed)
    try:
        encoded = PyUnicode_AsUTF8String(value)
    except UnicodeEncodeError:
        return 0                    # lone surrogates: pickle can carry them
    if <size_t>PyBytes_GET_SIZE(encoded) > limit:
        return 0
    return _put_bytes(b, TAG_STR, PyBytes_AS_STRING(encoded), PyBytes_GET_SIZE(encoded), framed)


cdef int put_scalar(Buf* b, object value, size_t limit, bint framed) except -1:
    cdef int overflow = 0
    cdef int64_t integer
    cdef double real
    if PyLong_CheckExact(value):
        integer = PyLong_AsLongLongAndOverflow(value, &overflow)
        return 0 if overflow else _put_word(b, TAG_INT64, &integer)
    if PyUnicode_CheckExact(value):
        return _put_text(b, value, limit, framed)
    if PyFloat_CheckExact(value):
        real = PyFloat_AS_DOUBLE(value)
        return _put_word(b, TAG_FLOAT64, &real)
    if PyBytes_CheckExact(value):
        if <size_t>PyBytes_GET_SIZE(value) > limit:
            return 0
        return _put_bytes(b, TAG_BYTES, PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value), framed)
    if value is None or value is True or value is False:
        if buf_put_u8(b, TAG_NONE if value is None else TAG_TRUE if value is True else TAG_FALSE) < 0:
            raise MemoryError("no memory for a value of 1 byte")
        return 1
    return 0


cdef int encode_small(Buf* b, object value, size_t limit) except -1:
    return put_scalar(b, value, min(limit, <size_t>UINT32_MAX), False)


cdef inline void _copy(char* dst, const Part* parts, size_t n) noexcept nogil:
    """Parts are in order of offset; what lies between them is zeroed."""
    cdef size_t at = 0
    cdef size_t i
    for i in range(n):
        if parts[i].offset > at:
            memset(dst + at, 0, parts[i].offset - at)
        if parts[i].len:
            memcpy(dst + parts[i].offset, parts[i].src, parts[i].len)
        at = parts[i].offset + parts[i].len


@cython.final
cdef class EncodedValue:
    """A value that is pickled but not copied yet."""

    cdef void copy_parts(self, char* dst) noexcept nogil:
        _copy(dst, self.parts.data(), self.parts.size())

    cdef void write_to(self, char* dst) noexcept:
        if self.size > NOGIL_MIN:
            with nogil:
                self.copy_parts(dst)
        else:
            self.copy_parts(dst)


cdef inline int _add_part(EncodedValue value, const char* src, size_t n, size_t align) except -1:
    cdef Part part
    part.src = src
    part.len = n
    part.offset = (value.size + align - 1) & ~(align - 1)
    value.parts.push_back(part)
    value.size = part.offset + n
    return 0


cdef EncodedValue _tagged(char tag, bytes payload):
    cdef EncodedValue value = EncodedValue.__new__(EncodedValue)
    value.refs = []
    value.keep = payload
    _add_part(value, &TAG_BYTES_TABLE[tag], 1, 1)
    _add_part(value, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), 1)
    return value


cdef EncodedValue _gather(Encoder encoder):
    """Lay out what the encoder collected. The result owns chunks and buffers, the encoder can be released."""
    cdef EncodedValue value = EncodedValue.__new__(EncodedValue)
    cdef bytes head
    cdef object item
    cdef Py_buffer* view
    cdef size_t align
    value.refs = []
    if encoder.views:
        head = PyBytes_FromStringAndSize(NULL, OOB_HEADER + OOB_ENTRY * len(encoder.views))
        value.keep = (head, encoder.chunks, encoder.views)
        _add_part(value, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head), 1)
    else:
        head = b""
        value.keep = encoder.chunks
        _add_part(value, &TAG_BYTES_TABLE[TAG_PICKLE], 1, 1)
    for item in encoder.chunks:
        _add_part(value, PyBytes_AS_STRING(item), PyBytes_GET_SIZE(item), 1)
    for item in encoder.views:
        view = PyMemoryView_GET_BUFFER(item)
        align = BUFFER_ALIGN if view.len >= ZERO_COPY_MIN else SMALL_ALIGN
        _add_part(value, <const char*>view.buf, view.len, align)
    if encoder.views:
        _fill_head(PyBytes_AS_STRING(head), value, len(encoder.views), encoder.pickle_len)
    encoder.chunks = []
    encoder.views = []
    return value


cdef void _fill_head(char* head, EncodedValue value, size_t n_views, uint64_t pickle_len) noexcept:
    cdef uint64_t n = n_views
    cdef size_t first = value.parts.size() - n_views
    cdef size_t i
    memset(head, 0, 8)
    head[0] = TAG_PICKLE_OOB
    memcpy(head + 8, &n, 8)
    memcpy(head + 16, &pickle_len, 8)
    for i in range(n_views):
        memcpy(head + OOB_HEADER + OOB_ENTRY * i, &value.parts[first + i].offset, 8)
        memcpy(head + OOB_HEADER + OOB_ENTRY * i + 8, &value.parts[first + i].len, 8)


cdef EncodedValue place(Buf* b, Encoder encoder, size_t limit, list refs, Py_ssize_t n_refs):
    """Append what the encoder collected when it is within the limit, else return it; releases the encoder."""
    cdef EncodedValue value
    cdef bytes chunk
    cdef char* at
    if len(encoder.chunks) == 1 and not encoder.views and encoder.pickle_len < limit:
        chunk = <bytes>encoder.chunks[0]
        _put_bytes(b, TAG_PICKLE, PyBytes_AS_STRING(chunk), PyBytes_GET_SIZE(chunk), False)
        release_encoder(encoder)
        return None
    value = _gather(encoder)
    release_encoder(encoder)
    if value.size <= limit:
        at = buf_extend(b, value.size)
        if at == NULL:
            raise MemoryError(f"no memory for a value of {value.size} bytes")
        value.copy_parts(at)
        return None
    if refs is not None:
        value.refs = refs[n_refs:]
        del refs[n_refs:]
    return value


cdef EncodedValue encode_into(Buf* b, object value, size_t limit, list refs):
    cdef Py_ssize_t n_refs
    if encode_small(b, value, limit):
        return None
    if PyBytes_CheckExact(value):
        return _tagged(TAG_BYTES, <bytes>value)
    n_refs = len(refs) if refs is not None else 0
    return place(b, pickle_value(value, refs, False), limit, refs, n_refs)


cdef EncodedValue encode(object value):
    cdef Buf small
    cdef EncodedValue encoded
    cdef list refs = []
    if PyBytes_CheckExact(value):
        return _tagged(TAG_BYTES, <bytes>value)
    buf_init(&small)
    try:
        if encode_small(&small, value, UINT32_MAX):
            return _tagged(small.data[0], PyBytes_FromStringAndSize(small.data + 1, small.len - 1))
    finally:
        buf_free(&small)
    encoder = pickle_value(value, refs, False)
    encoded = _gather(encoder)
    release_encoder(encoder)
    encoded.refs = refs
    return encoded


cdef int encode_error(Buf* b, bytes payload) except -1:
    return _put_bytes(b, TAG_ERROR, PyBytes_AS_STRING(payload), PyBytes_GET_SIZE(payload), False)


# --- decoding -------------------------------------------------------------------------------------

@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class _View:
    """Read-only window on memory that `base` keeps mapped."""

    cdef object base
    cdef const char* data
    cdef Py_ssize_t n, stride

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        if flags & PyBUF_WRITABLE:
            raise BufferError("objects in shared memory are read-only; copy the value to change it")
        buffer.buf = <void*>self.data
        buffer.obj = self
        buffer.len = self.n
        buffer.itemsize = 1
        buffer.readonly = 1
        buffer.ndim = 1
        buffer.format = BYTE_FORMAT if flags & PyBUF_FORMAT else NULL
        buffer.shape = &self.n if flags & PyBUF_ND else NULL
        buffer.strides = &self.stride if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
        buffer.suboffsets = NULL
        buffer.internal = NULL


cdef object _buffer(const char* p, size_t n, object base):
    cdef _View view
    if base is None or n < ZERO_COPY_MIN:
        return PyBytes_FromStringAndSize(p, n)
    view = _View.__new__(_View)
    view.base = base
    view.data = p
    view.n = n
    view.stride = 1
    return PyMemoryView_FromObject(view)


cdef object corrupt(str what, size_t n):
    from ftray.exceptions import DeserializationError

    return DeserializationError(
        f"corrupt value of {n} bytes: {what}. "
        "It was cut or overwritten, or written by another version of ftray."
    )


cdef object _unpickle(const char* p, size_t n, object buffers):
    # A pickle that is small is copied: cheaper than a memoryview. Neither is kept by anything that was
    # unpickled.
    cdef object data
    if n < 2048:
        data = PyBytes_FromStringAndSize(p, n)
    else:
        data = PyMemoryView_FromMemory(<char*>p, n, PyBUF_READ)
    try:
        if buffers is None:
            return _loads(data)
        return _loads(data, buffers=buffers)
    except MemoryError:
        raise
    except Exception as exc:
        from ftray import _pickling
        if isinstance(exc, _pickling.RayError):
            raise
        raise _pickling.deserialization_error(exc, n) from exc


cdef inline uint64_t _u64(const char* p) noexcept nogil:
    cdef uint64_t v
    memcpy(&v, p, 8)
    return v


cdef inline uint32_t _u32(const char* p) noexcept nogil:
    cdef uint32_t v
    memcpy(&v, p, 4)
    return v


cdef object _unpickle_oob(const char* p, size_t n, object base):
    cdef uint64_t count, pickle_len, offset, length
    cdef size_t table_end, i
    cdef list buffers = []
    if n < OOB_HEADER:
        raise corrupt("the table of buffers is incomplete", n)
    count = _u64(p + 8)
    pickle_len = _u64(p + 16)
    if count > (n - OOB_HEADER) // OOB_ENTRY:
        raise corrupt(f"it claims {count} buffers", n)
    table_end = OOB_HEADER + OOB_ENTRY * count
    if pickle_len > n - table_end:
        raise corrupt(f"it claims a pickle of {pickle_len} bytes", n)
    for i in range(count):
        offset = _u64(p + OOB_HEADER + OOB_ENTRY * i)
        length = _u64(p + OOB_HEADER + OOB_ENTRY * i + 8)
        if offset < table_end + pickle_len or offset > n or length > n - offset:
            raise corrupt(f"buffer {i} claims bytes {offset} to {offset + length}", n)
        buffers.append(_buffer(p + offset, length, base))
    return _unpickle(p + table_end, pickle_len, buffers)


cdef object decode_text(const char* p, size_t n):
    try:
        return PyUnicode_DecodeUTF8(p, n, NULL)
    except UnicodeDecodeError as exc:
        raise corrupt(f"its text is not utf-8 ({exc.reason} at {exc.start})", n) from None


cdef object decode_word(char tag, const char* p):
    cdef int64_t integer
    cdef double real
    if tag == TAG_INT64:
        memcpy(&integer, p, 8)
        return integer
    memcpy(&real, p, 8)
    return real


cdef object decode_value(const char* p, size_t n, object base):
    cdef char tag
    if n == 0:
        raise corrupt("it is empty", 0)
    tag = p[0]
    if tag == TAG_INT64 or tag == TAG_FLOAT64:
        if n != 9:
            raise corrupt("a number takes 9 bytes", n)
        return decode_word(tag, p + 1)
    if tag <= TAG_FALSE and tag >= 0:
        if n != 1:
            raise corrupt("a constant takes 1 byte", n)
        return None if tag == TAG_NONE else tag == TAG_TRUE
    if tag == TAG_STR:
        return decode_text(p + 1, n - 1)
    if tag == TAG_BYTES:
        return PyBytes_FromStringAndSize(p + 1, n - 1)
    if tag == TAG_PICKLE:
        return _unpickle(p + 1, n - 1, None)
    if tag == TAG_PICKLE_OOB:
        return _unpickle_oob(p, n, base)
    if tag == TAG_ERROR:
        from ftray._task_errors import load_error
        raise load_error(PyBytes_FromStringAndSize(p + 1, n - 1))
    raise corrupt(f"unknown tag {<unsigned char>tag}", n)


# --- for Python callers off the hot path ----------------------------------------------------------

cdef bytes joined(Buf* b, EncodedValue rest):
    cdef bytes out
    if rest is None:
        return PyBytes_FromStringAndSize(b.data, b.len)
    out = PyBytes_FromStringAndSize(NULL, rest.size)
    rest.write_to(PyBytes_AS_STRING(out))
    return out


def serialize(value, list refs=None) -> bytes:
    """Encode a value.

    Parameters
    ----------
    value
        Anything that pickle or cloudpickle can carry.
    refs
        Receives the ObjectRefs found inside. None: they are not captured.

    Raises
    ------
    ftray.exceptions.SerializationError
        Says which part of the value cannot be pickled.
    """
    cdef Buf b
    cdef EncodedValue rest
    buf_init(&b)
    try:
        rest = encode_into(&b, value, INLINE_LIMIT, refs)
        if rest is not None and refs is not None:
            refs.extend(rest.refs)
        return joined(&b, rest)
    finally:
        buf_free(&b)


def deserialize(data, *, bint zero_copy=False):
    """Decode what `serialize` made.

    Parameters
    ----------
    data
        A contiguous bytes-like object.
    zero_copy
        Large buffers stay views on ``data``, which lives as long as any of them and must not change.

    Raises
    ------
    ftray.exceptions.DeserializationError
        The input is corrupt, or something it needs cannot be imported here.
    """
    cdef object view = memoryview(data).cast("B")
    cdef Py_buffer* raw = PyMemoryView_GET_BUFFER(view)
    return decode_value(<const char*>raw.buf, raw.len, view if zero_copy else None)
