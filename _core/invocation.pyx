"""A call that has come in: from its frame to the function and the arguments.

Owns: the functions that callers have defined, loaded once each, and the actor whose methods are called.
Invariants: a frame that is cut short raises, whatever it says of its own sizes; an argument that is a ref is borrowed
from its owner for as long as the call keeps it; a call that an exactly-once actor has accepted loses no argument.

Leaves to others: running the call (worker.pyx), the bytes of arguments (callargs.pyx).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ftray._core.buf cimport Buf, buf_put, buf_put_u64
from ftray._core.callargs cimport decode_args
from ftray._core.flows cimport frame_head
from ftray._core.gets cimport value_bytes, value_of
from ftray._core.objects cimport ObjectRef, blank_ref, fill_ref
from ftray._core.borrows cimport borrow_announce
from ftray._core.refs cimport refs_borrowed
from ftray._core.runtime cimport core, core_enter, core_leave
from ftray._core.serial cimport decode_value
from ftray._core.types cimport OBJ_FETCHING, OBJ_INLINE, OBJ_OWNED, TASK_STREAM, Blob, Channel, Core, ExecTask, Id28, ObjEntry, blob_drop, same_id
from ftray._core.values cimport entry_set_shm
from ftray._core.wire cimport VALUE_ASK, VALUE_INLINE, VALUE_SHM, DepHead, StreamStart, TaskHead


cdef class Call:
    """A call on its way through this process."""

    def __dealloc__(self):
        blob_drop(self.t.frame)

    cdef int release(self) except -1:
        """Drop everything of the call, so that refs it does not keep are gone when the answer is made."""
        self.args = None
        self.kwargs = None
        self.keep = None
        self.function = None
        return 0


cdef class Callables:
    """What can be called in this process."""

    def __cinit__(self):
        self.loaded = {}
        self.entry_points = {}

    cdef tuple lookup(self, Channel *ch, uint32_t fn):
        cdef Blob *b
        if fn >= ch.fns.size() or ch.fns[fn].defn == NULL:
            raise RuntimeError(f"call of an unknown function (index {fn})")
        if ch.fns[fn].py != NULL:
            return <tuple>ch.fns[fn].py
        b = ch.fns[fn].defn
        definition = PyBytes_FromStringAndSize(b.data, b.size)
        entry = self.loaded.get(definition)
        if entry is None:
            entry = self.load(definition)
            self.loaded[definition] = entry
        ch.fns[fn].py = <void *>entry       # kept alive by `loaded`
        return entry

    cdef tuple load(self, bytes definition):
        from ftray._pickling import unpickle_function
        if definition[0] == 1:
            return self.load_method(definition, unpickle_function)
        if self.before_load is not None:
            self.before_load()
            self.before_load = None
        at = 3 + int.from_bytes(definition[1:3], "little")
        name = definition[3:at].decode("utf-8", "replace")
        max_calls = int.from_bytes(definition[at:at + 4], "little")
        size = int.from_bytes(definition[at + 4:at + 8], "little")
        at += 8
        retry = unpickle_function(definition[at:at + size]) if size else None
        return unpickle_function(definition[at + size:]), name, retry, "", name, [max_calls] if max_calls else None

    cdef tuple load_method(self, bytes definition, unpickle):
        """See `method_definition` in calls.pyx."""
        parts = []
        at = 1
        for _ in range(3):
            size = int.from_bytes(definition[at:at + 2], "little")
            parts.append(definition[at + 2:at + 2 + size].decode("utf-8", "replace"))
            at += 2 + size
        name, group, label = parts
        if self.instance is None:
            raise RuntimeError(f"method {name!r} was called, but no actor lives here")
        function = self.entry_points.get(name)
        if function is None:
            function = own_method(self.instance, name) if name.startswith("__ray_") else getattr(self.instance, name)
        retry = unpickle(definition[at:]) if at < len(definition) else None
        return function, label or f"{self.class_name}.{name}", retry, group, name, None

    cdef str describe(self):
        """The actor that lives here, for error messages."""
        if self.instance is None:
            return ""
        try:
            return repr(self.instance)[:200]
        except Exception:
            return f"<{self.class_name} whose repr() failed>"

    cdef int decode(self, Call call) except -1:
        """Fill function and arguments in."""
        cdef char *p = call.t.frame.data
        cdef char *end = p + call.t.frame.size
        cdef TaskHead *h = <TaskHead *>p
        cdef DepHead *d
        cdef list values = None
        cdef uint16_t i
        call.nret = h.nret
        call.function, call.name, call.retry, _, call.method, call.left = self.lookup(call.t.ch, h.fn)
        p += sizeof(TaskHead)
        if h.flags & TASK_STREAM:
            p += sizeof(StreamStart)
        if h.ndeps:
            values = []
            call.keep = []
            for i in range(h.ndeps):
                d = <DepHead *>p
                p += sizeof(DepHead)
                if p > end or (d.kind == VALUE_INLINE and d.size > <uint64_t>(end - p)):
                    raise RuntimeError("the frame of a call is cut short")
                values.append(dep_value(call, i, d, p))
                if d.kind == VALUE_INLINE:
                    p += d.size
        if p > end or h.args_size > <uint64_t>(end - p):
            raise RuntimeError("the frame of a call is cut short")
        call.args, call.kwargs = decode_args(p, h.args_size, values, None)
        return 0


cdef const char *call_head(ExecTask *t) noexcept nogil:
    """The call head of a call, NULL when it has none."""
    return frame_head(t.frame.data, t.frame.size)


cdef object own_method(instance, str name):
    """A method that every actor has."""
    from ftray._own_methods import OWN_METHODS
    return OWN_METHODS[name].__get__(instance)


cdef int put_dependency(Buf *b, DepHead *d, char *inline_bytes, const Id28 *caller) except -1:
    """Append a top-level argument that was a ref, by value: u64 size and the bytes of the value."""
    cdef ObjectRef r
    if d.kind == VALUE_INLINE:
        if buf_put_u64(b, d.size) < 0 or buf_put(b, inline_bytes, d.size) < 0:
            raise MemoryError()
        return 0
    r = dep_ref(d, caller)
    data = value_bytes(r)
    if buf_put_u64(b, len(data)) < 0 or buf_put(b, <const char *>data, len(data)) < 0:
        raise MemoryError()
    return 0


cdef object kept_value(bytes deps, uint16_t index):
    """A value out of what `put_dependency` has made, behind the number of them."""
    cdef const char *p = <const char *>deps + 2
    cdef uint64_t size
    memcpy(&size, p, 8)
    for _ in range(index):
        p += 8 + size
        memcpy(&size, p, 8)
    return decode_value(p + 8, size, None)


cdef object dep_value(Call call, uint16_t index, DepHead *d, char *inline_bytes):
    """The value of a top-level argument that was a ref.

    An accepted call may have waited for its turn since, and its caller be dead, with the value: an error would be recorded, as
    what the call gets for good, though the caller is made again and sends it again.
    """
    cdef ObjectRef r
    if d.kind == VALUE_INLINE:
        return decode_value(inline_bytes, d.size, None)
    r = dep_ref(d, &call.t.ch.worker)
    call.keep.append(r)
    if call.deps is None:
        return value_of(r, -1)
    try:
        return value_of(r, -1)              # not copied once more, as long as it is there
    except Exception:
        return kept_value(call.deps, index)


cdef ObjectRef dep_ref(DepHead *d, const Id28 *caller):
    """A ref of an argument that is not inline.

    Where it is, the caller may say, unless the owner has been asked already: it counts us among those who will be told.
    """
    cdef Core *c = core()
    cdef ObjectRef r
    cdef ObjEntry *e
    r = blank_ref()
    with nogil:
        core_enter(c)
        e = refs_borrowed(c, <Id28 *>d.id, <Id28 *>d.owner)
        fill_ref(c, r, e)
        if e.flags & OBJ_OWNED:
            pass                            # it is made again, and is not there any more
        elif d.kind == VALUE_SHM and e.state < OBJ_INLINE and not e.flags & OBJ_FETCHING:
            entry_set_shm(c, e, d.seg, d.off, d.size)
        elif d.kind == VALUE_ASK and not same_id(<Id28 *>d.owner, caller):
            borrow_announce(c, e)           # or the owner would not hear when we are done with it
        core_leave(c)
    return r
