"""The value behind a ref.

Owns: waiting for an entry (with what a worker does meanwhile: it lends its CPUs and gives back the calls behind the one that
waits), and `get`. Invariants: fast paths take no lock, since a ref holds its entry, and an inline value never changes (one in
shared memory may be lost: it is pinned under the lock).

Leaves to others: refs (objects.pyx), borrowed values (borrows.pyx), mapped memory (segments.pyx), `wait` (waits.pyx), `await`
and futures (awaits.pyx).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from ftray._core.borrows cimport borrow_fetch
from ftray._core.execqueue cimport exec_give_back_all
from ftray._core.guards cimport the_guard
from ftray._core.nodeask cimport node_ask
from ftray._core.nodelink cimport N_BLOCKED, N_SEG_OPEN, N_UNBLOCKED, node_put
from ftray._core.objects cimport ObjectRef, engine_of, usable
from ftray._core.recovery cimport value_lost
from ftray._core.runtime cimport condition, core, core_enter, core_leave, core_try, wait_python
from ftray._core.segments cimport segment_known, segment_pin
from ftray._core.serial cimport TAG_PICKLE_OOB, decode_value
from ftray._core.session cimport check_usable
from ftray._core.spills cimport RESTORE_FAILED, RESTORE_NO_ROOM, RESTORE_OK, restore_join, restore_leave, restore_seen, spill_restore
from ftray._core.store cimport Pin, PinnedBuffer
from ftray._core.types cimport (OBJ_FETCHING, OBJ_INLINE, OBJ_OWNED, OBJ_SHM, OBJ_SPILLED, OBJ_UNKNOWN, Blob, Core, ObjEntry, Restore, blob_drop, blob_hold,
                                load8, mono_ns)
from ftray._core.wire cimport ERR_LOST, ERR_STORE_FULL, SYSTEM_ERROR


cdef extern from *:
    """
    #include <pthread.h>
    static bool is_this_thread(pthread_t thread) { return pthread_equal(thread, pthread_self()); }
    static inline void prefetch_entry(const void *p) { __builtin_prefetch(p); }
    """
    void prefetch "prefetch_entry"(const void *) nogil
    bint is_this_thread(unsigned long) nogil

cdef enum:
    FETCH_AHEAD = 16

cdef bint warned_of_blocking = False


# --- waiting --------------------------------------------------------------------------------------------------------

cdef bint entry_settled(Core *c, void *arg) noexcept nogil:
    cdef ObjEntry *e = <ObjEntry *>arg
    return load8(&e.state) >= OBJ_INLINE or e.lost or not c.node_alive


cdef int wait_entry(ObjEntry *e, int64_t deadline_ns) except -1:
    """Wait until an entry has its value or never will. 1 settled, 0 past the deadline."""
    cdef Core *c = core()
    if e.state == OBJ_UNKNOWN:
        with nogil:
            core_enter(c)
            if e.state == OBJ_UNKNOWN and not e.flags & OBJ_FETCHING:
                borrow_fetch(c, e)
            core_leave(c)
    return wait_blocking(c, entry_settled, <void *>e, deadline_ns)


cdef int wait_blocking(Core *c, condition done, void *arg, int64_t deadline_ns) except -1:
    """Wait; a worker that waits inside a plain task lends its CPU and hands back what is queued behind the task."""
    cdef int code
    cdef int64_t first
    if c.running_ch == NULL or c.is_driver or c.is_actor:     # an actor's calls stay, in their order
        if c.loop_fd >= 0 and is_this_thread(c.main_thread):
            warn_of_blocking()
        return wait_python(c, done, arg, deadline_ns)
    first = <int64_t>mono_ns() + 60000
    if deadline_ns >= 0 and deadline_ns < first:
        first = deadline_ns
    code = wait_python(c, done, arg, first)
    if code or first == deadline_ns:
        return code
    with nogil:
        core_enter(c)
        lend_cpus(c)
        core_leave(c)
    try:
        return wait_python(c, done, arg, deadline_ns)
    finally:
        with nogil:
            core_enter(c)
            take_back_cpus(c)
            core_leave(c)


cdef void lend_cpus(Core *c) noexcept nogil:
    """The running task waits: others may have its CPUs, and nothing stays queued behind it. Needs the lock."""
    c.blocked_depth += 1
    if c.blocked_depth == 1:
        node_put(c, N_BLOCKED, 0, NULL, 0)
        exec_give_back_all(c)


cdef void take_back_cpus(Core *c) noexcept nogil:
    c.blocked_depth -= 1
    if c.blocked_depth == 0:
        node_put(c, N_UNBLOCKED, 0, NULL, 0)


cdef int warn_of_blocking() except -1:
    """The event loop of an async actor stands still while one of its methods blocks. Said once."""
    global warned_of_blocking
    if warned_of_blocking:
        return 0
    from ftray._core.context import is_apart
    if is_apart():
        return 0                        # no method's doing
    warned_of_blocking = True
    import warnings
    warnings.warn(
        "a blocking ftray.get or ftray.wait inside an async actor blocks its event loop; `await` the ref instead, or several "
        "with asyncio.gather or asyncio.wait", RuntimeWarning, stacklevel=2)
    return 0


cdef int64_t deadline_of(object timeout) except -2:
    """Nanoseconds of the monotonic clock, or -1 for none."""
    cdef double t
    if timeout is None:
        return -1
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    try:
        t = timeout
    except OverflowError:
        t = float("inf") if timeout > 0 else -1     # an integer beyond all floats
    if not t >= 0:
        raise ValueError(f"timeout must be a number of seconds >= 0, or None; got {timeout!r}")
    if t > 3e8:
        return -1
    return <int64_t>mono_ns() + <int64_t>(t * 1e9)


# --- get ------------------------------------------------------------------------------------------------------------

cdef class BlobHolder:
    """Keeps an inline value's bytes for views into them."""

    cdef Blob *blob

    def __dealloc__(self):
        blob_drop(self.blob)


cdef object inline_value(ObjEntry *e):
    cdef Blob *b = e.blob
    cdef BlobHolder holder
    cdef uint8_t tag = <uint8_t>b.data[0] if b.size else 0
    if tag == SYSTEM_ERROR:
        raise system_error(b.data + 1, b.size - 1)
    if tag != TAG_PICKLE_OOB:
        return decode_value(b.data, b.size, None)
    holder = BlobHolder.__new__(BlobHolder)
    holder.blob = blob_hold(b)
    return decode_value(b.data, b.size, holder)


cdef object system_error(const char *p, uint64_t n):
    """The exception for an error that was made without Python."""
    from ftray import _system_errors
    return _system_errors.build(<uint8_t>p[0] if n else 0, p[1:n] if n > 1 else b"")


cdef object NOWHERE = object()      # what `large_value` returns when the value is lost, and is being made again

cdef enum:
    PIN_CLOSED = 1              # its segment is not mapped yet
    PIN_MOVED = 2               # it has left shared memory


cdef int pin_here(Core *c, ObjEntry *e, Pin **pin, uint64_t *seg, bint restored) noexcept nogil:
    """Pin the object where it is now, or say what is missing for that. Needs the lock."""
    cdef int code
    if e.state != OBJ_SHM:
        return PIN_MOVED
    seg[0] = e.seg
    if not segment_known(e.seg):
        return PIN_CLOSED
    code = segment_pin(c, e, pin)
    if restored and code == 0:
        restore_seen(c, e)
    return code


cdef object large_value(ObjEntry *e, int64_t deadline_ns, bint asked, bint raw):
    """The value of an object that is in shared memory, or was spilled and comes back first; or NOWHERE.

    It may move, or be lost, at any moment, until it is pinned. `asked`: the caller has waited for the owner's answer.
    """
    cdef Core *c = core()
    cdef Pin *pin = NULL
    cdef PinnedBuffer buffer
    cdef uint64_t seg = 0
    cdef bint restored = False
    cdef int code
    while True:
        if core_try(c):
            code = pin_here(c, e, &pin, &seg, restored)
            core_leave(c)
        else:
            with nogil:
                core_enter(c)
                code = pin_here(c, e, &pin, &seg, restored)
                core_leave(c)
        if code == 0:
            break
        if code == PIN_CLOSED:
            open_segment(c, e, seg, restored)
        elif code != PIN_MOVED:
            from ftray.exceptions import ObjectLostError
            raise ObjectLostError(e.id.b[:28].hex(), f"its shared memory cannot be read (code {code})")
        elif load8(&e.state) != OBJ_SPILLED:
            return NOWHERE
        elif e.flags & OBJ_OWNED:
            restored = bring_back(c, e, deadline_ns)
        else:
            ask_again(c, e, asked)
            return NOWHERE
    buffer = PinnedBuffer.wrap(pin)
    if raw:
        return PyBytes_FromStringAndSize(pin.data, pin.size)
    return decode_value(pin.data, pin.size, buffer)


cdef int ask_again(Core *c, ObjEntry *e, bint asked) except -1:
    """The value of a borrowed object is with its owner; raise if that has just said that it cannot give it now."""
    cdef Blob *refusal = NULL
    with nogil:
        core_enter(c)
        if e.state == OBJ_SPILLED:
            if asked and e.blob != NULL:
                refusal = blob_hold(e.blob)
            else:
                spill_restore(c, e)
        core_leave(c)
    if refusal == NULL:
        return 0
    error = system_error(refusal.data + 1, refusal.size - 1)
    blob_drop(refusal)
    raise error


cdef bint restore_done(Core *c, void *arg) noexcept nogil:
    return (<Restore *>arg).done or not c.node_alive


cdef bint bring_back(Core *c, ObjEntry *e, int64_t deadline_ns) except -1:
    """Wait until a spilled object is in memory again. Whether this thread is one of those for whom it was brought."""
    cdef Restore *r
    cdef int code = RESTORE_OK
    cdef bint came = False
    cdef bytes text = b""
    with nogil:
        core_enter(c)
        r = restore_join(c, e)
        core_leave(c)
    if r == NULL:
        return False
    try:
        came = wait_blocking(c, restore_done, <void *>r, deadline_ns)
    finally:
        if came and r.done:
            code = r.code
            if r.text != NULL:
                text = r.text.data[:r.text.size]
        with nogil:
            core_enter(c)
            if r.done and not came:
                restore_seen(c, e)              # it is there, and this thread will not look
            restore_leave(c, r)
            core_leave(c)
    if not came:
        from ftray.exceptions import GetTimeoutError
        raise GetTimeoutError("the object was spilled to disk and not back in memory in time")
    check_usable()
    if code == RESTORE_NO_ROOM:
        raise system_error_of(ERR_STORE_FULL, text)
    if code == RESTORE_FAILED and load8(&e.state) == OBJ_SPILLED:
        raise system_error_of(ERR_LOST, text)
    return code == RESTORE_OK


cdef object system_error_of(int code, bytes text):
    from ftray import _system_errors
    return _system_errors.build(code, text)


cdef int open_segment(Core *c, ObjEntry *e, uint64_t seg, bint restored) except -1:
    """Have ftrayd hand over the segment of an object that another process made. If it has none, the value is lost."""
    cdef int code = 0
    raw = <bytes>node_ask(c, N_SEG_OPEN, &seg, 8)
    memcpy(&code, <const char *>raw, 4)
    if raw[4] and code == 0:
        return 0
    if segment_known(seg) or e.state != OBJ_SHM or e.seg != seg:
        return 0                    # another thread was faster, or it has moved
    if restored and raw[4]:
        with nogil:
            core_enter(c)
            restore_seen(c, e)      # this thread gives up
            core_leave(c)
    if not e.flags & OBJ_OWNED:
        report = owner_report(e)
        if report:
            from ftray import _system_errors
            raise _system_errors.owner_died(report, e.id.b[:28].hex())
    if raw[4]:
        from ftray.exceptions import ObjectLostError
        raise ObjectLostError(e.id.b[:28].hex(), f"segment {seg:x} cannot be mapped (code {code})")
    with nogil:
        core_enter(c)
        if e.state == OBJ_SHM and e.seg == seg:
            value_lost(c, e)
        core_leave(c)
    return 0


cdef object value_of(ObjectRef r, int64_t deadline_ns):
    return resolve(r, deadline_ns, False)


cdef bytes value_bytes(ObjectRef r):
    """A copy of the bytes that a value is encoded in."""
    return resolve(r, -1, True)


cdef object resolve(ObjectRef r, int64_t deadline_ns, bint raw):
    """The value of a ref, or its bytes."""
    cdef ObjEntry *e = usable(r)
    cdef object value = NOWHERE
    cdef bint asked = False
    while value is NOWHERE:
        if load8(&e.state) < OBJ_INLINE:
            if wait_entry(e, deadline_ns) == 0:
                from ftray.exceptions import GetTimeoutError
                raise GetTimeoutError(f"the value of {r!r} was not there in time")
            if load8(&e.state) < OBJ_INLINE and (e.lost or not core().node_alive):
                raise_without_value(e)
            asked = True
            continue
        if e.state == OBJ_INLINE:
            return PyBytes_FromStringAndSize(e.blob.data, e.blob.size) if raw else inline_value(e)
        value = large_value(e, deadline_ns, asked, raw)
    return value


cdef bytes owner_report(ObjEntry *e):
    """The death report of an object's owner, b"" when there is none."""
    cdef Core *c = core()
    cdef Blob *report = NULL
    with nogil:
        core_enter(c)
        if e.ext != NULL and c.dead.count(e.ext.owner):
            report = blob_hold(c.dead[e.ext.owner])
        core_leave(c)
    if report == NULL:
        return b""
    data = PyBytes_FromStringAndSize(report.data, report.size)
    blob_drop(report)
    return data


cdef int raise_without_value(ObjEntry *e) except -1:
    check_usable()
    from ftray import exceptions
    if e.lost == 1:
        from ftray import _system_errors
        raise _system_errors.owner_died(owner_report(e), e.id.b[:28].hex())
    raise exceptions.ObjectLostError(e.id.b[:28].hex(), "no copy of it is left")


def get(refs, *, timeout=None):
    """Return the value of a ref, or the values of a list of refs, waiting for them.

    Parameters
    ----------
    refs : ObjectRef or list of ObjectRef
        What to get. The order of the values is that of the refs.
    timeout : float, optional
        Seconds to wait in all; None waits without bound, 0 only looks.

    Returns
    -------
    object or list
        numpy arrays and other buffers of large objects are read-only views of shared memory, without a copy.

    Raises
    ------
    RayTaskError
        The task failed; the exception is also an instance of the user's exception class.
    GetTimeoutError
        Not all values were there in time.
    TypeError
        `refs` is neither a ref nor a list of refs.
    """
    if core().guards:
        return the_guard().get(refs, timeout)
    return plain_get(refs, timeout)


def plain_get(refs, timeout):
    """`get`, whatever guards this process."""
    cdef int64_t deadline
    if type(refs) is ObjectRef:
        return value_of(refs, -1 if timeout is None else deadline_of(timeout))
    if not isinstance(refs, (list, tuple)):
        if isinstance(refs, ObjectRef):
            return engine_of(refs).get(refs, timeout=timeout)
        from ftray._core.generators import ObjectRefGenerator
        if isinstance(refs, ObjectRefGenerator):
            return refs                 # as Ray does: what it stands for are its refs
        raise TypeError(f"get() takes an ObjectRef or a list of ObjectRefs, not {type(refs).__name__}: {refs!r:.100}")
    deadline = deadline_of(timeout)
    for i, r in enumerate(refs):
        if type(r) is not ObjectRef:
            if isinstance(r, ObjectRef):
                return engine_of(r).get(list(refs), timeout=timeout)
            raise TypeError(f"get() takes an ObjectRef or a list of ObjectRefs; item {i} is {type(r).__name__}: {r!r:.100}")
    return values_of(list(refs), deadline)


cdef list values_of(list refs, int64_t deadline_ns):
    """The values of a list that holds nothing but ObjectRefs (a copy: nobody changes it while we wait).

    A long list is far larger than the caches: the entries some places ahead are fetched while one is looked at.
    """
    cdef Py_ssize_t i, n = len(refs)
    cdef list out = [None] * n
    for i in range(n):
        if i + FETCH_AHEAD < n:
            prefetch((<ObjectRef>refs[i + FETCH_AHEAD]).e)
        out[i] = value_of(<ObjectRef>refs[i], deadline_ns)
    return out


def debug_object(ref):
    """Where a value is, for tests: state (`ObjState`), segment, offset, size, and whether lineage can make it again."""
    cdef Core *c = core()
    cdef ObjEntry *e = usable(<ObjectRef?>ref)
    cdef ObjEntry found
    cdef bint kept
    with nogil:
        core_enter(c)
        found = e[0]
        kept = e.ext != NULL and e.ext.maker != NULL
        core_leave(c)
    return {"state": found.state, "segment": found.seg, "offset": found.off, "size": found.size, "kept": kept}
