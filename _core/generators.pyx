"""ObjectRefGenerator, which hands out refs as a task yields, and DynamicObjectRefGenerator, the value that lists them all.

Owns: the Python object of a stream's consumer. Invariants: it holds nothing but the stream's gate, and drops that as an
ObjectRef drops its entry (any thread, any moment); a stream is touched under the core lock, or under the GIL by who holds
the gate; waiting for the next item is waiting for the gate, so `wait` and `await` treat it as the entry of a ref.

Leaves to others: items and the end of a stream (intake.pyx), `wait` (waits.pyx), `await` (awaits.pyx).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from ftray._core.intake cimport intake_next
from ftray._core.gets cimport wait_blocking
from ftray._core.objects cimport ObjectRef, blank_ref, fill_ref
from ftray._core.refs cimport refs_drop_local, refs_ext, refs_new
from ftray._core.runtime cimport core, core_enter, core_leave, core_try, session_alive
from ftray._core.session cimport check_usable
from ftray._core.types cimport NO_END, OBJ_INLINE, Core, Id28, ObjEntry, Stream, load8
from ftray._core.wire cimport FIRST_ITEM


cdef bint gate_open(Core *c, void *arg) noexcept nogil:
    return load8(&(<ObjEntry *>arg).state) >= OBJ_INLINE or not c.node_alive


cdef void hand_out(Core *c, ObjectRefGenerator g, ObjectRef r) noexcept nogil:
    """Make a blank ref that of the next item, if there is one. Needs the lock.

    Another thread may close the generator meanwhile; the gate outlives that until the lock is left.
    """
    cdef ObjEntry *gate = g.gate
    cdef ObjEntry *e = intake_next(c, <Stream *>gate.seg) if gate != NULL else NULL
    if e != NULL:
        fill_ref(c, r, e)
        e.holds -= 1


cdef object not_supported(str text):
    from ftray.exceptions import NotSupportedError
    return NotSupportedError(text)


cdef class ObjectRefGenerator:
    """The refs that a generator task yields, one after the other, while it runs.

    Made by ``.remote()`` of a function or method with ``num_returns="streaming"``, which generator functions have by
    default. ``for ref in generator`` and ``async for ref in generator`` end when the task does. If it raises, or its
    worker dies and no retry is left, the last ref raises that in `get`. When the generator is dropped or closed, what was
    not taken is freed, and the task is ended at its next ``yield``.
    """

    def __init__(self):
        raise TypeError("ObjectRefGenerator cannot be made directly: call .remote() on a function that yields")

    def __dealloc__(self):
        self.let_go()

    cdef void let_go(self) noexcept:
        cdef ObjEntry *gate = self.gate
        self.gate = NULL
        if gate != NULL and session_alive(self.session):
            refs_drop_local(core(), gate)

    cdef Stream *stream(self) noexcept:
        """NULL once it was closed."""
        return <Stream *>self.gate.seg if self.gate != NULL else NULL

    cdef int check(self) except -1:
        if not session_alive(self.session):
            check_usable()
            from ftray.exceptions import RaySystemError
            raise RaySystemError("this ObjectRefGenerator belongs to a session that has ended; its values are gone")
        return 0

    cdef ObjectRef take(self):
        """The next ref, or None when there is none now."""
        cdef Core *c = core()
        cdef ObjectRef r
        if load8(&self.gate.state) < OBJ_INLINE:
            return None
        r = blank_ref()
        if core_try(c):
            hand_out(c, self, r)
            core_leave(c)
        else:
            with nogil:
                core_enter(c)
                hand_out(c, self, r)
                core_leave(c)
        return r if r.e != NULL else None

    cdef ObjectRef ref_to(self, bint completion):
        """A ref to the completion, or to the gate, for those who can wait for refs (its value is None)."""
        cdef Core *c = core()
        cdef ObjectRef r = blank_ref()
        self.check()
        with nogil:
            core_enter(c)
            if self.gate != NULL:
                fill_ref(c, r, (<Stream *>self.gate.seg).done if completion else self.gate)
            core_leave(c)
        if r.e == NULL:
            raise ValueError("the generator is closed")
        return r

    def __iter__(self):
        return self

    def __next__(self):
        cdef Core *c = core()
        cdef ObjectRef r
        self.check()
        while not self.is_finished():
            r = self.take()
            if r is not None:
                return r
            if not c.node_alive:
                check_usable()
            r = self.ref_to(False)          # the gate outlives a close() by another thread
            wait_blocking(c, gate_open, <void *>r.e, -1)
        raise StopIteration

    def __aiter__(self):
        return self

    async def __anext__(self):
        cdef ObjectRef r
        self.check()
        while not self.is_finished():
            r = self.take()
            if r is not None:
                return r
            await self.ref_to(False)
        raise StopAsyncIteration

    def completed(self):
        """Return a ref that becomes ready when the task ends.

        Its value is None, also if the task raised: that is what the last ref does. It is the error of a task that was
        cancelled or whose worker died. Whoever has this ref keeps the task running when the generator is dropped.
        """
        return self.ref_to(True)

    @property
    def _generator_ref(self):
        return self.completed()

    def next_ready(self):
        """Whether ``next()`` would return a ref at once."""
        cdef Stream *st = self.stream()
        self.check()
        return st != NULL and st.s.next < st.s.received

    def is_finished(self):
        """Whether the task has ended and every ref was taken: ``next()`` would raise StopIteration."""
        cdef Stream *st = self.stream()
        self.check()
        return st == NULL or (st.s.end != NO_END and st.s.next == st.s.end)

    def task_id(self):
        """Return the id of the task that yields."""
        return self.completed().task_id()

    def close(self):
        """Take no more: as if the generator was dropped."""
        self.let_go()

    async def aclose(self):
        """Take no more: as if the generator was dropped."""
        self.let_go()

    def send(self, value):
        raise not_supported("send() is not supported: the task runs in another process and does not wait for its consumer")

    def throw(self, *error):
        raise not_supported("throw() is not supported: end the task with close() or ftray.cancel(generator)")

    async def asend(self, value):
        self.send(value)

    async def athrow(self, *error):
        self.throw(*error)

    @classmethod
    def __class_getitem__(cls, item):
        from types import GenericAlias
        return GenericAlias(cls, item)

    def __repr__(self):
        if not session_alive(self.session):
            return "ObjectRefGenerator(of a session that has ended)"
        if self.gate == NULL:
            return "ObjectRefGenerator(closed)"
        return f"ObjectRefGenerator({self.gate.id.b[:24].hex()})"

    def __reduce__(self):
        from ftray.exceptions import SerializationError
        raise SerializationError(
            f"{self!r} cannot be passed to a task or actor, returned or put: it has one consumer, in the process that called the "
            "task. Pass the refs that it gives, e.g. list(generator)"
        )


class DynamicObjectRefGenerator:
    """The refs that a task with ``num_returns="dynamic"`` has yielded: what ``get`` of its ref returns.

    It can be iterated any number of times, indexed, and passed on.
    """

    def __init__(self, refs):
        self._refs = list(refs)

    def __iter__(self):
        return iter(self._refs)

    def __len__(self):
        return len(self._refs)

    def __getitem__(self, index):
        return self._refs[index]

    def __repr__(self):
        return f"DynamicObjectRefGenerator({len(self._refs)} refs)"

    def __reduce__(self):
        return DynamicObjectRefGenerator, (self._refs,)


cdef ObjectRefGenerator blank_generator():
    return ObjectRefGenerator.__new__(ObjectRefGenerator)


cdef void fill_generator(Core *c, ObjectRefGenerator g, Stream *st) noexcept nogil:
    """Make a blank generator the consumer of a stream. Needs the lock."""
    st.gate.local += 1
    g.gate = st.gate
    g.session = c.session


cdef object sealed_items(const char *task_id, uint64_t n, const char *owner):
    """At the producer, the value of a completion: refs to the `n` items, which `owner` has (or is about to have).

    No borrows: these refs are pickled for the owner of what they name, and nobody here gets to see them.
    """
    cdef Core *c = core()
    cdef list refs = []
    cdef ObjectRef r
    cdef ObjEntry *e
    cdef Id28 id
    cdef uint32_t place
    cdef uint64_t i
    memcpy(id.b, task_id, 24)
    for i in range(n):
        r = blank_ref()
        place = <uint32_t>(i + FIRST_ITEM)
        memcpy(id.b + 24, &place, 4)
        with nogil:
            core_enter(c)
            e = refs_new(c, &id, False)
            memcpy(refs_ext(e).owner.b, owner, 28)
            fill_ref(c, r, e)
            core_leave(c)
        refs.append(r)
    return DynamicObjectRefGenerator(refs)
