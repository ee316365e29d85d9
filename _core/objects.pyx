"""ObjectRef, get, put and wait.

Fast paths take no lock: a ref holds its entry, and a value, once its state says that it is there, never changes.
Python objects are made and destroyed outside the core lock only, because that may run any code (garbage collection).
"""

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_GetSlice
from cpython.object cimport Py_TYPE, PyObject, PyTypeObject
from cpython.unicode cimport PyUnicode_FromString
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from ftray._core.alloc cimport Block
from ftray._core.borrows cimport borrow_fetch
from ftray._core.buf cimport Buf, buf_clear, buf_free, buf_init
from ftray._core.context cimport context, put_id
from ftray._core.execqueue cimport exec_give_back_all
from ftray._core.nodelink cimport N_BLOCKED, N_SEG_OPEN, N_SEG_RESERVE, N_UNBLOCKED, node_put
from ftray._core.refs cimport refs_borrowed, refs_contain, refs_drop_local, refs_expose, refs_new
from ftray._core.runtime cimport check_usable, core, core_enter, core_leave, core_try, core_wait, session_alive, wait_python
from ftray._core.segments cimport (SEG_FAILED, SEG_NEED_RESERVE, SEG_OK, segment_alloc, segment_begin_write, segment_create, segment_end_write,
                                   segment_known, segment_pin, segments_trim)
from ftray._core.serial cimport (INLINE_LIMIT, TAG_PICKLE_OOB, EncodedValue, Part, decode_value, encode, encode_into, encode_small)
from ftray._core.pickler cimport note_ref
from ftray._core.callargs cimport register_ref_type
from libc.stdlib cimport free, malloc
from ftray._core.store cimport Pin, PinnedBuffer, WriteWindow, window_write
from ftray._core.types cimport (OBJ_FETCHING, OBJ_INLINE, OBJ_IN_MAP, OBJ_OWNED, OBJ_SHM, OBJ_UNKNOWN, Blob, Core, Id28, ObjEntry, blob_copy,
                                blob_drop, blob_hold, load8, mono_ns, store8)
from ftray._core.wire cimport (ERR_ACTOR_DIED, ERR_ACTOR_UNAVAILABLE, ERR_CANCELLED, ERR_CRASHED, ERR_HEAD_DIED, ERR_LOST, ERR_OWNER_DIED,
                               ERR_UNSCHEDULABLE, SYSTEM_ERROR)

cdef Buf scratch
buf_init(&scratch)
cdef bint scratch_taken = False
cdef uint32_t wait_serial = 0


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
        from ftray._core.ids import TaskID
        return TaskID(self.binary()[:24])

    def is_nil(self):
        return False

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
        with nogil:
            core_enter(c)
            refs_expose(c, e)
            core_leave(c)
        return rebuild_ref, (e.id.b[:28], c.worker_id.b[:28] if e.flags & OBJ_OWNED else e.ext.owner.b[:28])

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self


register_ref_type(ObjectRef)


def raise_out_of_band(ref):
    raise TypeError(
        f"{ref!r} was pickled outside of ftray (pickle.dumps or another library): the bytes would not keep the object alive. "
        "Pass refs as arguments or inside values given to ftray, or pickle the value: ftray.get(ref)."
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


# --- waiting --------------------------------------------------------------------------------------------------------

cdef bint entry_settled(Core *c, void *arg) noexcept nogil:
    cdef ObjEntry *e = <ObjEntry *>arg
    return load8(&e.state) >= OBJ_INLINE or e.lost or not c.node_alive


cdef int wait_entry(ObjEntry *e, int64_t deadline_ns) except -1:
    """Wait until an entry has its value or never will. 1 settled, 0 past the deadline."""
    cdef Core *c = core()
    cdef int code
    if e.state == OBJ_UNKNOWN:
        with nogil:
            core_enter(c)
            if e.state == OBJ_UNKNOWN and not e.flags & OBJ_FETCHING:
                borrow_fetch(c, e)
            core_leave(c)
    return wait_blocking(c, entry_settled, <void *>e, deadline_ns)


ctypedef bint (*condition_t)(Core *c, void *arg) noexcept nogil


cdef int wait_blocking(Core *c, condition_t done, void *arg, int64_t deadline_ns) except -1:
    """Wait; a worker that waits inside a plain task lends its CPU and hands back what is queued behind the task."""
    cdef int code
    cdef int64_t first
    if c.running_ch == NULL or c.is_driver or c.is_actor:     # an actor's calls stay, in their order
        return wait_python(c, done, arg, deadline_ns)
    first = <int64_t>mono_ns() + 60000
    if deadline_ns >= 0 and deadline_ns < first:
        first = deadline_ns
    code = wait_python(c, done, arg, first)
    if code or first == deadline_ns:
        return code
    with nogil:
        core_enter(c)
        c.blocked_depth += 1
        if c.blocked_depth == 1:
            node_put(c, N_BLOCKED, 0, NULL, 0)
            exec_give_back_all(c)
        core_leave(c)
    try:
        return wait_python(c, done, arg, deadline_ns)
    finally:
        with nogil:
            core_enter(c)
            c.blocked_depth -= 1
            if c.blocked_depth == 0:
                node_put(c, N_UNBLOCKED, 0, NULL, 0)
            core_leave(c)


cdef int64_t deadline_of(object timeout) except -2:
    """Nanoseconds of the monotonic clock, or -1 for none."""
    cdef double t
    if timeout is None:
        return -1
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    t = timeout
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


cdef object shared_value(ObjEntry *e, int64_t deadline_ns):
    cdef Core *c = core()
    cdef Pin *pin = NULL
    cdef PinnedBuffer buffer
    cdef int code
    if not segment_known(e.seg):
        open_segment(c, e)
    if core_try(c):
        code = segment_pin(c, e, &pin)
        core_leave(c)
    else:
        with nogil:
            core_enter(c)
            code = segment_pin(c, e, &pin)
            core_leave(c)
    if code != 0:
        from ftray.exceptions import ObjectLostError
        raise ObjectLostError(e.id.b[:28].hex(), f"its shared memory cannot be read (code {code})")
    buffer = PinnedBuffer.wrap(pin)
    return decode_value(pin.data, pin.size, buffer)


cdef struct Reply:
    uint64_t req


cdef bint reply_here(Core *c, void *arg) noexcept nogil:
    return c.rpc_replies[(<Reply *>arg).req] != NULL or not c.node_alive


cdef bytes node_ask(Core *c, uint16_t kind, const void *payload, uint64_t size):
    """One request to ftrayd and its answer's payload."""
    cdef Reply r
    cdef Blob *b
    with nogil:
        core_enter(c)
        r.req = c.next_req
        c.next_req += 1
        c.rpc_replies[r.req] = NULL
        node_put(c, kind, r.req, payload, size)
        core_leave(c)
    try:
        wait_python(c, reply_here, <void *>&r, -1)
    finally:
        with nogil:
            core_enter(c)
            b = c.rpc_replies[r.req]
            c.rpc_replies.erase(r.req)
            core_leave(c)
    if b == NULL:
        check_usable()
        raise RuntimeError("no answer from ftrayd")
    answer = PyBytes_FromStringAndSize(b.data, b.size)
    blob_drop(b)
    return answer


def ask_node(int kind, bytes payload):
    """Send a request frame to ftrayd and return its answer's payload."""
    check_usable()
    return node_ask(core(), kind, <const char *>payload, len(payload))


def tell_node(int kind, bytes payload):
    """Send a frame to ftrayd that has no answer."""
    cdef Core *c = core()
    cdef const char *p = payload
    cdef uint64_t n = len(payload)
    cdef uint16_t k = kind
    check_usable()
    with nogil:
        core_enter(c)
        node_put(c, k, 0, p, n)
        core_leave(c)


cdef int open_segment(Core *c, ObjEntry *e) except -1:
    """Have ftrayd hand over the segment of an object that another process made."""
    cdef uint64_t seg = e.seg
    cdef int code = 0
    answer = node_ask(c, N_SEG_OPEN, &seg, 8)
    raw = <bytes>answer
    memcpy(&code, <const char *>raw, 4)
    if not raw[4] or code != 0:
        if segment_known(seg):
            return 0                # another thread was faster
        if not e.flags & OBJ_OWNED:
            report = owner_report(e)
            if report:
                from ftray import _system_errors
                raise _system_errors.owner_died(report, e.id.b[:28].hex())
        from ftray.exceptions import ObjectLostError
        raise ObjectLostError("", f"segment {seg:x} is gone" if not raw[4] else f"segment {seg:x} cannot be mapped (code {code})")
    return 0


cdef object value_of(ObjectRef r, int64_t deadline_ns):
    cdef ObjEntry *e = usable(r)
    if load8(&e.state) < OBJ_INLINE:
        if wait_entry(e, deadline_ns) == 0:
            from ftray.exceptions import GetTimeoutError
            raise GetTimeoutError(f"the value of {r!r} was not there in time")
        if load8(&e.state) < OBJ_INLINE:
            raise_without_value(e)
    if e.state == OBJ_INLINE:
        return inline_value(e)
    return shared_value(e, deadline_ns)


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
    cdef list out
    cdef int64_t deadline
    if type(refs) is ObjectRef:
        return value_of(refs, -1 if timeout is None else deadline_of(timeout))
    if not isinstance(refs, (list, tuple)):
        raise TypeError(f"get() takes an ObjectRef or a list of ObjectRefs, not {type(refs).__name__}: {refs!r:.100}")
    deadline = deadline_of(timeout)
    out = [None] * len(refs)
    for i, r in enumerate(refs):
        if type(r) is not ObjectRef:
            raise TypeError(f"get() takes an ObjectRef or a list of ObjectRefs; item {i} is {type(r).__name__}: {r!r:.100}")
    for i, r in enumerate(refs):
        out[i] = value_of(r, deadline)
    return out


# --- put ------------------------------------------------------------------------------------------------------------

cdef int write_parts(WriteWindow *w, EncodedValue v) noexcept nogil:
    cdef size_t i
    cdef int code
    for i in range(v.parts.size()):
        code = window_write(w, v.parts[i].offset, v.parts[i].src, v.parts[i].len)
        if code != 0:
            return code
    return 0


cdef int raise_store(int code, uint64_t size) except -1:
    from ftray import _system_errors
    raise _system_errors.store_error(code, size)


cdef int grow_store(Core *c, Block *b, uint64_t size) except -1:
    """Reserve and make the segment that the allocator asked for; smaller when ftrayd has not so much left."""
    cdef uint64_t wanted = b.wanted_bytes
    cdef uint64_t used, capacity
    cdef int code
    while True:
        raw = <bytes>node_ask(c, N_SEG_RESERVE, &wanted, 8)
        if raw[0]:
            break
        if wanted > b.minimum_bytes:
            wanted = b.minimum_bytes
            with nogil:                     # our own warm segments first
                core_enter(c)
                segments_trim(c, 0, True)
                core_leave(c)
            continue
        memcpy(&used, <const char *>raw + 1, 8)
        memcpy(&capacity, <const char *>raw + 9, 8)
        from ftray.exceptions import ObjectStoreFullError
        raise ObjectStoreFullError(
            f"an object of {size} bytes does not fit: {used} of {capacity} bytes of the object store are in use. Drop refs to "
            "objects that are not needed any more, or start with a larger object_store_memory=."
        )
    with nogil:
        core_enter(c)
        code = segment_create(c, wanted, b.dedicated)
        core_leave(c)
    if code != 0:
        raise_store(code, size)
    return 0


cdef int place_shared(Core *c, EncodedValue v, uint64_t *seg, uint64_t *off) except -1:
    """Write an encoded value into a block of shared memory."""
    cdef Block b
    cdef WriteWindow w
    cdef uint64_t size = v.size
    cdef int code, wrote = 0
    while True:
        with nogil:
            core_enter(c)
            code = segment_alloc(c, size, &b)
            if code == SEG_OK:
                wrote = segment_begin_write(&b, size, &w)
            core_leave(c)
        if code == SEG_OK:
            break
        if code != SEG_NEED_RESERVE:
            raise_store(-10, size)
        grow_store(c, &b, size)
    if wrote == 0:
        with nogil:
            wrote = write_parts(&w, v)
            core_enter(c)
            segment_end_write(&w)
            core_leave(c)
    if wrote != 0:
        raise_store(wrote, size)
    seg[0] = b.seg_id
    off[0] = b.offset
    return 0


cdef ObjectRef put_value(object value):
    """Put: encode, then a new owned entry with the value."""
    global scratch_taken
    cdef Core *c = core()
    cdef Buf own
    cdef Buf *b = &own
    cdef list refs = []
    cdef EncodedValue big = None
    cdef Blob *blob = NULL
    cdef uint64_t seg = 0, off = 0, size = 0
    if scratch_taken:
        buf_init(&own)
    else:
        scratch_taken = True
        b = &scratch
        buf_clear(b)
    try:
        if not encode_small(b, value, INLINE_LIMIT):
            big = encode_into(b, value, INLINE_LIMIT, refs)
        if big is None:
            blob = blob_copy(b.data, b.len)
        else:
            refs = big.refs
            size = big.size
            place_shared(c, big, &seg, &off)
    finally:
        if b == &own:
            buf_free(b)
        else:
            scratch_taken = False
    return finish_put(c, blob, seg, off, size, refs)


cdef ObjectRef finish_put(Core *c, Blob *blob, uint64_t seg, uint64_t off, uint64_t size, list refs):
    cdef ObjectRef r = blank_ref()
    cdef ObjEntry *e
    cdef Id28 id
    cdef ObjectRef inner
    put_id(context(), id.b)
    if not core_try(c):
        with nogil:
            core_enter(c)
    e = refs_new(c, &id, True)
    fill_ref(c, r, e)
    if blob != NULL:
        e.blob = blob
        store8(&e.state, OBJ_INLINE)
    else:
        e.seg, e.off, e.size = seg, off, size
        store8(&e.state, OBJ_SHM)
    core_leave(c)
    if refs:
        for item in refs:
            inner = item
            with nogil:
                core_enter(c)
                refs_contain(e, inner.e)
                core_leave(c)
    return r


def put(value):
    """Store a value and return a ref to it.

    Parameters
    ----------
    value : object
        Anything that pickles. Buffers (numpy arrays, bytes) of values over 100 KB are written once, into shared memory.

    Returns
    -------
    ObjectRef

    Raises
    ------
    TypeError
        `value` is an ObjectRef already, or cannot be pickled (the message names the attribute).
    ObjectStoreFullError
        The object store has no room.
    """
    if not session_alive(core().session):
        from ftray import _lifecycle
        _lifecycle.ensure()
    check_usable()
    if type(value) is ObjectRef:
        raise TypeError("put() of an ObjectRef is not allowed: it is a reference already (wrap it in a list to store the ref itself)")
    return put_value(value)


# --- wait -----------------------------------------------------------------------------------------------------------

cdef struct WaitFor:
    ObjEntry **entries
    size_t n
    size_t wanted


cdef bint enough(Core *c, void *arg) noexcept nogil:
    cdef WaitFor *w = <WaitFor *>arg
    cdef size_t i, have = 0
    if not c.node_alive:
        return True
    for i in range(w.n):
        if load8(&w.entries[i].state) >= OBJ_INLINE or w.entries[i].lost:
            have += 1
            if have >= w.wanted:
                return True
    return False


cdef int check_refs(list refs) except -1:
    """Every item an ObjectRef of this session, none twice. Marks entries with a serial in place of a set."""
    global wait_serial
    cdef Py_ssize_t i
    cdef ObjEntry *e
    cdef PyObject *item
    cdef uint64_t session = core().session
    cdef uint32_t serial
    wait_serial += 1
    if wait_serial == 0:
        wait_serial = 1
    serial = wait_serial
    for i in range(PyList_GET_SIZE(refs)):
        item = PyList_GET_ITEM(refs, i)
        if Py_TYPE(<object>item) != <PyTypeObject *>ObjectRef:
            raise TypeError(f"wait() takes a list of ObjectRefs; item {i} is {type(<object>item).__name__}")
        e = (<ObjectRef>item).e
        if (<ObjectRef>item).session != session or e == NULL:
            usable(<ObjectRef>item)
        if e.mark == serial:
            raise ValueError(f"wait() takes a list of unique ObjectRefs; item {i} stands in it twice: {<object>item!r}")
        e.mark = serial
    return 0


cdef int wait_for_some(list refs, Py_ssize_t num_returns, int64_t deadline_ns) except -1:
    cdef Py_ssize_t i, n = len(refs)
    cdef WaitFor w
    cdef ObjEntry *e
    cdef Core *c = core()
    w.entries = <ObjEntry **>malloc(n * sizeof(ObjEntry *))
    if w.entries == NULL:
        raise MemoryError()
    w.n = n
    w.wanted = num_returns
    for i in range(n):
        w.entries[i] = (<ObjectRef>refs[i]).e
    try:
        with nogil:
            core_enter(c)
            for i in range(n):
                e = w.entries[i]
                if e.state == OBJ_UNKNOWN and not e.flags & OBJ_FETCHING:
                    borrow_fetch(c, e)
            core_leave(c)
        return wait_blocking(c, enough, <void *>&w, deadline_ns)
    finally:
        free(w.entries)


cdef inline bint is_ready(PyObject *item) noexcept:
    cdef ObjEntry *e = (<ObjectRef>item).e
    return load8(&e.state) >= OBJ_INLINE or e.lost


cdef tuple split(list refs, Py_ssize_t num_returns):
    """The first `num_returns` ready refs, and the others, both in order."""
    cdef list ready = [], rest = []
    cdef Py_ssize_t i, n = PyList_GET_SIZE(refs)
    cdef PyObject *item
    for i in range(n):
        item = PyList_GET_ITEM(refs, i)
        if is_ready(item):
            ready.append(<object>item)
            if len(ready) == num_returns:
                i += 1
                if not rest:
                    return ready, PyList_GetSlice(refs, i, n)
                rest.extend(PyList_GetSlice(refs, i, n))
                return ready, rest
        else:
            rest.append(<object>item)
    return ready, rest


def wait(refs, *, num_returns=1, timeout=None, fetch_local=True):
    """Wait until some of the refs have their values.

    Parameters
    ----------
    refs : list of ObjectRef
        Unique refs.
    num_returns : int, default 1
        How many to wait for, 1 to ``len(refs)``.
    timeout : float, optional
        Seconds; None waits without bound.
    fetch_local : bool, default True
        Whether a value has to be on this machine to count. On one machine it always is.

    Returns
    -------
    (list, list)
        At most `num_returns` ready refs, and all others, each in the order given.

    Raises
    ------
    TypeError
        `refs` is not a list of ObjectRefs.
    ValueError
        A ref stands in the list twice, or `num_returns` is out of range.
    """
    cdef Py_ssize_t wanted
    cdef tuple out
    cdef int64_t deadline
    if type(refs) is not list:
        if type(refs) is ObjectRef:
            raise TypeError("wait() takes a list of ObjectRefs, not a single one: wait([ref])")
        if not isinstance(refs, (list, tuple)):
            raise TypeError(f"wait() takes a list of ObjectRefs, not {type(refs).__name__}")
        refs = list(refs)
    if isinstance(num_returns, bool) or not isinstance(num_returns, int):
        raise TypeError(f"num_returns must be an int, not {num_returns!r}")
    if not isinstance(fetch_local, bool):
        raise TypeError(f"fetch_local must be a bool, not {fetch_local!r}")
    wanted = num_returns
    deadline = deadline_of(timeout)
    if not refs:
        return [], []
    check_refs(refs)
    if wanted < 1 or wanted > PyList_GET_SIZE(refs):
        raise ValueError(f"num_returns={num_returns} is out of range: 1 to the {len(refs)} refs given")
    check_usable_fast()
    out = split(refs, wanted)
    if len(<list>out[0]) == wanted:
        return out
    if deadline >= 0 and deadline <= <int64_t>mono_ns() + 1000:
        deadline = <int64_t>mono_ns()
    wait_for_some(refs, wanted, deadline)
    return split(refs, wanted)


cdef int check_usable_fast() except -1:
    if not session_alive(core().session):
        check_usable()
    return 0
