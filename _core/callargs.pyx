# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# distutils: language = c++
"""Arguments of a call <-> bytes.

Owns the argument format: either a value (see serial) that is a pickled ``(args, kwargs or None)`` in which
each top-level ref is a `_Slot`, or, for up to 65535 positional scalars and refs, the fast form ``'F'``, u16
count, then per argument tag | tag + 8 bytes | tag + u32 length + bytes | TAG_SLOT + u32 index.

Invariants: the order of `deps` is the order of the slots; after a failure Buf, `deps` and `refs` are as they
were.

Leaves to others: the class of refs is registered by the module that has it; resolving dependencies.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_GET_BUFFER
from cpython.object cimport PyObject_TypeCheck, PyTypeObject
from libc.stdint cimport UINT32_MAX, uint16_t, uint32_t
from libc.string cimport memcpy

cimport cython

from ftray._core.buf cimport Buf, buf_extend, buf_free, buf_init
from ftray._core.pickler cimport pickle_value
from ftray._core.serial cimport (
    ARGS_FAST, INLINE_LIMIT, TAG_BYTES, TAG_FALSE, TAG_FLOAT64, TAG_INT64, TAG_NONE, TAG_SLOT, TAG_STR,
    TAG_TRUE,
    EncodedValue, corrupt, decode_text, decode_value, decode_word, joined, place, put_scalar,
)

cdef PyTypeObject* _ref_type = NULL
cdef object _ref_type_owner = None          # the same, kept alive


cpdef object register_ref_type(object ref_type):
    """Make instances of ``ref_type`` the top-level arguments that become dependencies.

    Parameters
    ----------
    ref_type
        A class, or None for no class.

    Returns
    -------
    type or None
        The class that was registered before.
    """
    global _ref_type, _ref_type_owner
    cdef object previous = _ref_type_owner
    if ref_type is not None and not isinstance(ref_type, type):
        raise TypeError(f"register_ref_type() needs a class, got {ref_type!r}")
    _ref_type_owner = ref_type
    if ref_type is None:
        _ref_type = NULL
    else:
        _ref_type = <PyTypeObject*>ref_type
    return previous


cdef inline bint _is_ref(object value) noexcept:
    return _ref_type != NULL and PyObject_TypeCheck(value, _ref_type)


@cython.final
@cython.freelist(16)
cdef class _Slot:
    """Stands for a top-level ref in pickled arguments."""

    cdef readonly Py_ssize_t index

    def __init__(self, Py_ssize_t index):
        self.index = index

    def __reduce__(self):
        return _Slot, (self.index,)


cdef int _put_args(Buf* b, tuple args, list deps, size_t limit) except -1:
    """Fast form; 0 when some argument is no scalar or the whole exceeds the limit (the caller rewinds)."""
    cdef size_t start = b.len
    cdef uint16_t count = <uint16_t>len(args)
    cdef uint32_t index
    cdef char* at = buf_extend(b, 3)
    if at == NULL:
        raise MemoryError("no memory for arguments")
    at[0] = ARGS_FAST
    memcpy(at + 1, &count, 2)
    for value in args:
        if not put_scalar(b, value, limit, True):
            if not _is_ref(value):
                return 0
            at = buf_extend(b, 5)
            if at == NULL:
                raise MemoryError("no memory for arguments")
            index = <uint32_t>len(deps)
            at[0] = TAG_SLOT
            memcpy(at + 1, &index, 4)
            deps.append(value)
        if b.len - start > limit:
            return 0
    return 1


cdef object _slot(object value, list deps):
    if not _is_ref(value):
        return value
    deps.append(value)
    return _Slot(len(deps) - 1)


cdef EncodedValue encode_args(Buf* b, tuple args, dict kwargs, list deps, list refs, size_t limit):
    cdef size_t start = b.len
    cdef Py_ssize_t n_deps = len(deps)
    cdef Py_ssize_t n_refs = len(refs) if refs is not None else 0
    cdef int done = 0
    if not kwargs and len(args) <= 0xFFFF:
        try:
            done = _put_args(b, args, deps, min(limit, <size_t>UINT32_MAX))
        finally:
            if not done:
                b.len = start
                del deps[n_deps:]
        if done:
            return None
    try:
        slotted = (tuple([_slot(v, deps) for v in args]),
                   {k: _slot(v, deps) for k, v in kwargs.items()} if kwargs else None)
        return place(b, pickle_value(slotted, refs, True), limit, refs, n_refs)
    except:
        b.len = start
        del deps[n_deps:]
        raise


cdef object _dep(size_t index, list dep_values, size_t n):
    cdef size_t count = len(dep_values) if dep_values is not None else 0
    if index >= count:
        raise corrupt(f"it refers to dependency {index} of {count}", n)
    return dep_values[index]


cdef tuple _take_args(const char* p, size_t n, list dep_values):
    cdef size_t at = 3
    cdef uint16_t count
    cdef uint32_t length
    cdef char tag
    cdef list args = []
    if n < 3:
        raise corrupt("the argument count is missing", n)
    memcpy(&count, p + 1, 2)
    for _ in range(count):
        if at >= n:
            raise corrupt(f"it claims {count} arguments", n)
        tag = p[at]
        at += 1
        if tag == TAG_INT64 or tag == TAG_FLOAT64:
            if n - at < 8:
                raise corrupt("an argument is cut", n)
            args.append(decode_word(tag, p + at))
            at += 8
        elif tag == TAG_STR or tag == TAG_BYTES or tag == TAG_SLOT:
            if n - at < 4:
                raise corrupt("an argument is cut", n)
            memcpy(&length, p + at, 4)
            at += 4
            if tag == TAG_SLOT:
                args.append(_dep(length, dep_values, n))
                continue
            if length > n - at:
                raise corrupt(f"an argument claims {length} bytes", n)
            if tag == TAG_STR:
                args.append(decode_text(p + at, length))
            else:
                args.append(PyBytes_FromStringAndSize(p + at, length))
            at += length
        elif tag >= 0 and tag <= TAG_FALSE:
            args.append(None if tag == TAG_NONE else tag == TAG_TRUE)
        else:
            raise corrupt(f"unknown argument tag {<unsigned char>tag}", n)
    if at != n:
        raise corrupt("bytes follow the last argument", n)
    return tuple(args), None


cdef object _filled(object value, list dep_values, size_t n):
    return _dep((<_Slot>value).index, dep_values, n) if type(value) is _Slot else value


cdef tuple decode_args(const char* p, size_t n, list dep_values, object base):
    cdef object value
    if n and p[0] == ARGS_FAST:
        return _take_args(p, n, dep_values)
    value = decode_value(p, n, base)
    if type(value) is not tuple or len(<tuple>value) != 2 or type((<tuple>value)[0]) is not tuple or (
            (<tuple>value)[1] is not None and type((<tuple>value)[1]) is not dict):
        raise corrupt("these are no arguments", n)
    args, kwargs = <tuple>value
    args = tuple([_filled(v, dep_values, n) for v in <tuple>args])
    if kwargs is not None:
        kwargs = {k: _filled(v, dep_values, n) for k, v in (<dict>kwargs).items()}
    return args, kwargs


def serialize_args(tuple args, dict kwargs, list deps, list refs=None) -> bytes:
    """Encode call arguments; top-level refs are appended to ``deps``, others to ``refs``."""
    cdef Buf b
    cdef EncodedValue rest
    buf_init(&b)
    try:
        rest = encode_args(&b, args, kwargs, deps, refs, INLINE_LIMIT)
        if rest is not None and refs is not None:
            refs.extend(rest.refs)
        return joined(&b, rest)
    finally:
        buf_free(&b)


def deserialize_args(data, list dep_values=None, *, bint zero_copy=False) -> tuple:
    """Decode what `serialize_args` made: ``(args, kwargs or None)``, refs replaced by ``dep_values``."""
    cdef object view = memoryview(data).cast("B")
    cdef Py_buffer* raw = PyMemoryView_GET_BUFFER(view)
    return decode_args(<const char*>raw.buf, raw.len, dep_values, view if zero_copy else None)
