"""Values that this process makes: `put`, and placing what is large into shared memory.

Owns: the way of an encoded value into a block, and the buffer that small values are encoded in. Invariants: a block is
written between `segment_begin_write` and `segment_end_write` without the lock and without the GIL; values are encoded
before any lock is taken, since that runs user code; a buffer that is in use further up the stack is not used again.

Leaves to others: which block of which segment (alloc.pyx, segments.pyx), the encoding (serial.pyx).
"""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from ftray._core.alloc cimport Block
from ftray._core.buf cimport Buf, Scratch, buf_init, scratch_give, scratch_take
from ftray._core.context cimport Context, context, put_id
from ftray._core.nodeask cimport node_ask
from ftray._core.nodelink cimport N_SEG_RESERVE
from ftray._core.objects cimport ObjectRef, blank_ref, fill_ref
from ftray._core.refs cimport refs_contain, refs_new
from ftray._core.guards cimport the_guard
from ftray._core.runtime cimport core, core_enter, core_leave, core_make_room, core_try, session_alive
from ftray._core.segments cimport (SEG_NEED_RESERVE, SEG_OK, segment_alloc, segment_begin_write, segment_create, segment_end_write,
                                   segments_trim)
from ftray._core.serial cimport INLINE_LIMIT, EncodedValue, encode_into, encode_small
from ftray._core.session cimport check_usable, raise_no_room
from ftray._core.sites cimport current_site
from ftray._core.store cimport WriteWindow, window_write
from ftray._core.types cimport OBJ_INLINE, OBJ_SHM, Blob, Core, Id28, ObjEntry, blob_copy, has_room, large_add, store8

cdef Scratch scratch
buf_init(&scratch.kept)
scratch.taken = False


cdef enum:
    FLAG_OPTIONAL = 2           # of SEG_RESERVE: only if there is room right now
    RESERVED = 1                # answers to it
    LOOK_AGAIN = 2


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
    cdef int code
    while True:
        raw = <bytes>node_ask(c, N_SEG_RESERVE, &wanted, 8, -1, FLAG_OPTIONAL if wanted > b.minimum_bytes else 0)
        if raw[0] == RESERVED:
            break
        if raw[0] == LOOK_AGAIN:            # objects were spilled: their blocks may be our own
            return 0
        if wanted > b.minimum_bytes:
            wanted = b.minimum_bytes
            with nogil:                     # our own warm segments first
                core_enter(c)
                segments_trim(c, 0, True)
                core_leave(c)
            continue
        from ftray import _system_errors
        raise _system_errors.store_full(size, raw)
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
    cdef Core *c = core()
    cdef Buf own
    cdef Buf *b
    cdef list refs = []
    cdef EncodedValue big = None
    cdef Blob *blob = NULL
    cdef uint64_t seg = 0, off = 0, size = 0
    if not has_room(c) and core_make_room(c) != 0:
        raise_no_room(c)
    b = scratch_take(&scratch, &own)
    try:
        if not encode_small(b, value, INLINE_LIMIT):
            big = encode_into(b, value, INLINE_LIMIT, refs)
        if big is None:
            blob = blob_copy(b.data, b.len)
            if blob == NULL:
                raise MemoryError()
        else:
            refs = big.refs
            size = big.size
            place_shared(c, big, &seg, &off)
    finally:
        scratch_give(&scratch, b)
    return finish_put(c, blob, seg, off, size, refs)


cdef ObjectRef finish_put(Core *c, Blob *blob, uint64_t seg, uint64_t off, uint64_t size, list refs):
    cdef ObjectRef r = blank_ref()
    cdef ObjEntry *e
    cdef Id28 id
    cdef ObjectRef inner
    cdef uint32_t site = current_site(c) if c.record_sites else 0
    put_id(context(), id.b)
    if not core_try(c):
        with nogil:
            core_enter(c)
    e = refs_new(c, &id, True)
    fill_ref(c, r, e)
    if c.record_sites:
        c.sites[e] = site
    if blob != NULL:
        e.blob = blob
        store8(&e.state, OBJ_INLINE)
    else:
        e.seg, e.off, e.size = seg, off, size
        large_add(c, e)
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


cdef object placeholder_ref():
    """A ref in place of one that an earlier run of the same method had: its value is asked for under the guard only."""
    cdef Core *c = core()
    cdef Id28 id
    cdef ObjectRef r = blank_ref()
    cdef ObjEntry *e
    cdef Context *x = context()
    with nogil:
        core_enter(c)
        put_id(x, id.b)
        e = refs_new(c, &id, True)
        e.lost = 2
        fill_ref(c, r, e)
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
    MemoryError
        This process gets no more memory.
    """
    if not session_alive(core().session):
        from ftray import _engine
        engine = _engine.ensure()
        if not session_alive(core().session):
            return engine.put(value)
    check_usable()
    if type(value) is ObjectRef:
        raise TypeError("put() of an ObjectRef is not allowed: it is a reference already (wrap it in a list to store the ref itself)")
    if not core().guards:
        return put_value(value)
    if the_guard().puts():
        return placeholder_ref()
    try:
        return put_value(value)
    except Exception as error:
        the_guard().not_sent(error)
        raise
