# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
# distutils: language = c++
"""From a Python object to pickle frames and buffers, not yet laid out.

Owns: the two picklers (plain C pickle, and cloudpickle for what a worker cannot import by name), the registry
of the user's serializers, the reusable encoders, and the per-thread capture of refs met while a value is
encoded or decoded.

Invariants: an idle encoder refers to nothing of the user's; a dump that needs cloudpickle starts again from
nothing, so that one pickle never mixes two memos; a failed dump leaves `refs` as it was.

Leaves to others: the layout of the bytes (serial), the wording of failures (ftray._pickling), what a ref
means.
"""

import _pickle
import sys

cimport cython
from cpython.bytes cimport PyBytes_CheckExact, PyBytes_GET_SIZE
from cpython.object cimport Py_TPFLAGS_HEAPTYPE, PyObject, PyTypeObject
from cpython.ref cimport Py_INCREF, Py_XDECREF
from cpython.type cimport PyType_Check

cdef extern from *:
    """
    /* Strong reference to the list that collects refs for the encode or decode running on this thread. */
    static thread_local PyObject *ftray_capture = nullptr;
    """
    PyObject* ftray_capture

cdef extern from "Python.h":
    bint PyFunction_Check(object)

cdef enum:
    ENCODER_REUSE_MAX = 1 << 18     # a pickler's memo table keeps the size of the largest value it has seen
    IDLE_ENCODERS = 8

cdef dict _custom = {}              # class -> (serializer, deserializer)
cdef list _idle = []                # encoders that can be used again; the GIL guards it


# --- captured refs --------------------------------------------------------------------------------

cdef object begin_capture(list refs):
    cdef object previous = None
    if ftray_capture != NULL:
        previous = <object>ftray_capture
    _set_capture(refs)
    return previous


cdef void end_capture(object previous) noexcept:
    _set_capture(previous)


cdef inline void _set_capture(object refs) noexcept:
    global ftray_capture
    cdef PyObject* old = ftray_capture
    if refs is None:
        ftray_capture = NULL
    else:
        Py_INCREF(refs)
        ftray_capture = <PyObject*>refs
    Py_XDECREF(old)


cpdef bint note_ref(object ref) except -1:
    """Record ``ref`` with the encode that runs on this thread; False when there is none."""
    if ftray_capture == NULL:
        return False
    (<list>ftray_capture).append(ref)
    return True


# --- pickling -------------------------------------------------------------------------------------

class _NeedByValue(Exception):
    """Something in the value cannot be imported by name elsewhere: the dump starts again with cloudpickle."""


cdef bint _importable(object obj) except -1:
    """Whether workers find class or function ``obj`` by name (and the user did not ask for by-value)."""
    cdef object module = getattr(obj, "__module__", None)
    cdef object name = getattr(obj, "__qualname__", None)
    cdef dict modules = sys.modules
    if type(module) is not str or type(name) is not str or module == "__main__" or module == "__mp_main__":
        return False
    cloudpickle = modules.get("cloudpickle.cloudpickle")
    if cloudpickle is not None and cloudpickle.list_registry_pickle_by_value():
        return False
    found = modules.get(module)
    if found is None:
        return False
    for part in (<str>name).split("."):
        found = getattr(found, part, None)
    return found is obj


cdef object _reduce(object obj):
    """What both picklers do first: the user's serializers. None when there is none for this object."""
    if not _custom:
        return None
    pair = _custom.get(type(obj))
    if pair is None:
        return None
    serializer, deserializer = pair
    return deserializer, (serializer(obj),)


cdef bint _known_by_value(type cls) except -1:
    # Static types cannot come from a script. Objects of typing (TypeVar, NewType) pickle as a bare name even
    # when that name lives in __main__; cloudpickle knows them.
    if not (<PyTypeObject*>cls).tp_flags & Py_TPFLAGS_HEAPTYPE:
        return False
    module = cls.__module__
    return module == "__main__" or module == "__mp_main__" or module == "typing"


class _FastPickler(_pickle.Pickler):
    def reducer_override(self, obj):
        """Called for everything but builtin scalars and containers."""
        if PyFunction_Check(obj) or PyType_Check(obj):
            if obj is type(None) or obj is type(...) or obj is type(NotImplemented) or _importable(obj):
                return NotImplemented
            raise _NeedByValue
        reduced = _reduce(obj)
        if reduced is not None:
            return reduced
        if _known_by_value(type(obj)):
            raise _NeedByValue
        return NotImplemented


@cython.final
cdef class Encoder:
    """File object, buffer collector and reusable state of one pickler; also what one dump produced."""

    def __cinit__(self):
        self.chunks = []
        self.views = []

    def write(self, data):
        """The pickler hands over whole frames, and large bytes objects uncopied."""
        if not PyBytes_CheckExact(data):
            data = bytes(data)      # a bytearray could change before it is copied to its place
        self.chunks.append(data)
        self.pickle_len += PyBytes_GET_SIZE(data)
        return PyBytes_GET_SIZE(data)

    def take_buffer(self, buffer):
        """Pickler callback: every buffer goes out of band (a false result says so)."""
        self.views.append(buffer.raw())
        return None

    cdef int attach_pickler(self) except -1:
        self.pickler = _FastPickler(self, 5, buffer_callback=self.take_buffer)
        self.dump = self.pickler.dump
        self.clear_memo = self.pickler.clear_memo
        return 0

    cdef void detach_pickler(self) noexcept:
        self.pickler = self.dump = self.clear_memo = None   # the pickler holds our bound methods


cdef Encoder _acquire_encoder():
    cdef Encoder encoder
    if _idle:
        return <Encoder>_idle.pop()
    encoder = Encoder()
    encoder.attach_pickler()
    return encoder


cdef int release_encoder(Encoder encoder) except -1:
    """Drop everything the encoder still refers to; keep it when it stayed small."""
    if encoder.pickler is None:
        return 0
    if encoder.pickle_len > ENCODER_REUSE_MAX or len(_idle) >= IDLE_ENCODERS:
        encoder.detach_pickler()
        return 0
    encoder.clear_memo()
    encoder.pickle_len = 0
    encoder.chunks.clear()
    encoder.views.clear()
    _idle.append(encoder)
    return 0


cdef Encoder pickle_value(object value, list refs, bint is_args):
    cdef Encoder encoder = _acquire_encoder()
    cdef Py_ssize_t n_refs = len(refs) if refs is not None else 0
    cdef object previous = begin_capture(refs)
    try:
        encoder.dump(value)
        return encoder
    except BaseException as exc:
        encoder.detach_pickler()
        _drop_refs(refs, n_refs)
        if isinstance(exc, MemoryError) or not isinstance(exc, Exception):
            raise
        try:
            return _pickle_by_value(value, exc, is_args)
        except:
            _drop_refs(refs, n_refs)
            raise
    finally:
        end_capture(previous)


cdef int _drop_refs(list refs, Py_ssize_t n) except -1:
    if refs is not None:
        del refs[n:]
    return 0


cdef Encoder _pickle_by_value(object value, object first_failure, bint is_args):
    """Second attempt, by cloudpickle: also for what plain pickle refuses. Raises SerializationError."""
    from ftray import _pickling

    cdef Encoder encoder = Encoder()
    if isinstance(first_failure, _pickling.RayError):
        raise first_failure         # ours, raised by an ObjectRef or a handle: it says what is wrong
    if isinstance(first_failure, RecursionError):
        raise _pickling.explain(value, first_failure, is_args) from first_failure
    try:
        _pickling.dump_by_value(value, encoder, encoder.take_buffer, _reduce_or_not_implemented)
    except (MemoryError, _pickling.RayError):
        raise
    except Exception as exc:
        raise _pickling.explain(value, exc, is_args) from exc
    return encoder


def _reduce_or_not_implemented(obj):
    reduced = _reduce(obj)
    return NotImplemented if reduced is None else reduced


def probe(value) -> int:
    """Pickle a value and throw the result away: its size in bytes, or the plain failure."""
    from ftray import _pickling

    cdef Encoder encoder = Encoder()
    cdef object previous = begin_capture([])
    try:
        _pickling.dump_by_value(value, encoder, encoder.take_buffer, _reduce_or_not_implemented)
        return encoder.pickle_len + sum([view.nbytes for view in encoder.views])
    finally:
        end_capture(previous)


# --- the user's serializers -----------------------------------------------------------------------

def register_serializer(cls, *, serializer, deserializer):
    """Pickle instances of exactly ``cls`` in this process as ``deserializer(serializer(obj))``.

    Parameters
    ----------
    cls
        A class; builtin scalars and containers cannot be overridden.
    serializer
        ``obj -> anything that can be pickled``.
    deserializer
        The inverse. It travels with each value, so that other processes need no registration.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_serializer() needs a class, got {cls!r}")
    if cls in _BUILTIN:
        raise ValueError(f"ftray itself encodes instances of {cls.__name__}; wrap them in a class of yours")
    for name, function in (("serializer", serializer), ("deserializer", deserializer)):
        if not callable(function):
            raise TypeError(f"{name} must be callable, got {function!r}")
    _custom[cls] = (serializer, deserializer)


def deregister_serializer(cls):
    """Undo `register_serializer`; nothing happens when ``cls`` has none."""
    if not isinstance(cls, type):
        raise TypeError(f"deregister_serializer() needs a class, got {cls!r}")
    _custom.pop(cls, None)


cdef frozenset _BUILTIN = frozenset({
    type(None), bool, int, float, complex, str, bytes, bytearray, tuple, list, dict, set, frozenset, type,
    type(register_serializer), type(lambda: None),
})
