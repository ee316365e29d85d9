"""ObjectRef: the Python object of a reference.

Owns: that object, how it is pickled, and when it may be used. Invariants: a ref holds its entry; it is of one session, and
inert in another one; Python objects are made and destroyed outside the core lock only, because that may run any code
(garbage collection).

Leaves to others: how long entries live (refs.pyx), the value behind a ref (gets.pyx), handles of actors (actorrefs.pyx), `put`
(puts.pyx), `await` and futures (awaits.pyx, which is only loaded when they are used).
"""

cimport cython
from libc.string cimport memcpy

from ftray._core.callargs cimport register_ref_type
from ftray._core.guards cimport the_guard
from ftray._core.pickler cimport note_ref
from ftray._core.refs cimport refs_borrowed, refs_drop_local, refs_expose
from ftray._core.runtime cimport core, core_enter, core_leave, session_alive
from ftray._core.session cimport check_usable
from ftray._core.types cimport OBJ_OWNED, Core, Id28, ObjEntry


cdef object awaits = None           # the module of that name, from the first `await` or future on


cdef object awaits_module():
    global awaits
    if awaits is None:
        from ftray._core import awaits as module
        awaits = module
    return awaits


@cython.freelist(1024)
cdef class ObjectRef:
    """A reference to a value that is, or will be, somewhere in the session.

    Refs are made by ``.remote()`` and `put`; they can be passed to tasks and actors, stored and returned. The process
    that made a ref owns the object. The object is freed when no process holds a ref to it any more.
    """

    def __init__(self):
        raise TypeError("ObjectRef cannot be made directly: call .remote() on a function or method, or ftray.put(value)")

    def __dealloc__(self):
        if self.e != NULL and session_alive(self.session):
            refs_drop_local(core(), self.e)

    def binary(self):
        """Return the 28 bytes of the object's id."""
        return usable(self).id.b[:28]

    def hex(self):
        """Return the object's id in hexadecimal."""
        return self.binary().hex()

    def task_id(self):
        """Return the id of the task that makes the object, or of the one that put it."""
        from ftray._ids import TaskID
        return TaskID(self.binary()[:24])

    def is_nil(self):
        return False

    def __await__(self):
        if core().guards:
            return the_guard().awaited(self).__await__()
        return self._plain_await()

    def _plain_await(self):
        return awaits_module().wait_for(self)

    def future(self):
        """Return a `concurrent.futures.Future` of the value, for threads and for ``asyncio.wrap_future``.

        Cancelling it ends the waiting, not the task.
        """
        if core().guards:
            the_guard().refuse("ref.future()")
        return awaits_module().future_of(self)

    def as_future(self):
        """Return an `asyncio.Future` of the value in the running event loop, as ``asyncio.ensure_future(ref)`` does.

        Cancelling it ends the waiting, not the task.
        """
        from asyncio import ensure_future
        return ensure_future(self)

    @classmethod
    def __class_getitem__(cls, item):
        from types import GenericAlias
        return GenericAlias(cls, item)

    def __eq__(self, other):
        if type(other) is not ObjectRef:
            return NotImplemented
        cdef ObjectRef o = other
        return self.session == o.session and (self.e == o.e)

    def __hash__(self):
        return <Py_ssize_t><size_t>self.e >> 4

    def __repr__(self):
        if not session_alive(self.session):
            return "ObjectRef(of a session that has ended)"
        return f"ObjectRef({self.hex()})"

    def __reduce__(self):
        cdef ObjEntry *e = usable(self)
        cdef Core *c = core()
        if not note_ref(self):
            raise_out_of_band(self)
        return rebuild_ref, exposed(c, e)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


register_ref_type(ObjectRef)


def raise_out_of_band(ref):
    raise TypeError(
        f"{ref!r} was pickled outside of ftray (pickle.dumps or another library): the bytes would not keep the object alive. "
        "Pass refs as arguments or inside values given to ftray, or pickle the value: ftray.get(ref). The state of an actor with "
        "checkpoints is loaded when the value may be gone, with its owner or the session: keep the value, or what makes it."
    )


def rebuild_ref(bytes id, bytes owner):
    """Unpickle a ref: this process borrows the object (or owns it)."""
    cdef Id28 i, o
    cdef Core *c = core()
    cdef ObjectRef r = blank_ref()
    check_usable()
    if len(id) != 28 or len(owner) != 28:
        raise ValueError("not the pickle of an ObjectRef")
    memcpy(i.b, <const char *>id, 28)
    memcpy(o.b, <const char *>owner, 28)
    with nogil:
        core_enter(c)
        fill_ref(c, r, refs_borrowed(c, &i, &o))
        core_leave(c)
    return r


cdef tuple exposed(Core *c, ObjEntry *e):
    """What names an object to others, who may ask for it from now on: its id and its owner's."""
    with nogil:
        core_enter(c)
        refs_expose(c, e)
        core_leave(c)
    return e.id.b[:28], c.worker_id.b[:28] if e.flags & OBJ_OWNED else e.ext.owner.b[:28]


cdef ObjectRef blank_ref():
    return ObjectRef.__new__(ObjectRef)


cdef void fill_ref(Core *c, ObjectRef r, ObjEntry *e) noexcept nogil:
    """Make a blank ref point to an entry. Needs the lock."""
    e.local += 1
    r.e = e
    r.session = c.session


cdef ObjEntry *usable(ObjectRef r) except NULL:
    """The entry of a ref of the running session."""
    if r.e == NULL or not session_alive(r.session):
        check_usable()
        from ftray.exceptions import RaySystemError
        raise RaySystemError("this ObjectRef belongs to a session that has ended; its value is gone")
    return r.e


cdef object engine_of(ref):
    """The engine that knows a ref whose class is derived from ours (or a generator, likewise)."""
    return ref._engine()
