"""The value of an object's entry: how it arrives, who hears of it, and how it stands in a frame. Needs the core lock.

Owns: `state`, `blob`, `seg`, `off`, `size` and `waiters` of an entry, the boxes of those who `await`, and the layout of a value on the wire (RetHead,
inline bytes, contained refs). Invariants: an inline value, once its state says that it is there, never changes (readers take no
lock); one in shared memory may be lost, and the entry is pending again (recovery.pyx); a waiter is told exactly once, and a task that waits goes to `Core.ready` and not on from here.

Leaves to others: how long entries live (refs.pyx), what becomes of tasks (outcomes.pyx, tasks.pyx), and the frame that
answers a borrower (borrows.pyx, which builds on this module and is therefore called through a hook), and what a loop does
with its box (awaits.pyx).
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from cython.operator cimport dereference as deref
from libc.string cimport memcpy, memset

from ftray._core.refs cimport refs_borrowed, refs_check, refs_contain, refs_drop_local, refs_register
from ftray._core.segments cimport segment_owned
from ftray._core.types cimport (OBJ_FETCHING, OBJ_INLINE, OBJ_IS_ERROR, OBJ_OWNED, OBJ_SHM, AwaitBox, Blob, Channel, Core, Id28,
                                ObjEntry, TaskRec, Waiter, blob_value, blob_drop, blob_new, futex_wake, large_add,
                                store8)
from ftray._core.wire cimport ERR_LOST, SYSTEM_ERROR, VALUE_INLINE, VALUE_LOST, VALUE_SHM, RetHead

cdef extern from *:
    """
    #include <cstdint>
    #include <unistd.h>
    static void kick_box(int fd) { uint64_t one = 1; ssize_t r = write(fd, &one, 8); (void)r; }
    """
    void kick "kick_box"(int) nogil

cdef enum:
    WAITS_TASK = 0
    WAITS_BORROWER = 1
    WAITS_BOX = 2

cdef answer_fn answer_fetch = NULL


cdef void values_set_answer(answer_fn answer) noexcept nogil:
    global answer_fetch
    answer_fetch = answer


cdef void entry_add_waiter(ObjEntry *e, uint8_t kind, TaskRec *t, Channel *ch, uint64_t token) noexcept nogil:
    cdef Waiter *w = new Waiter()
    w.kind = kind
    w.task = t
    w.ch = ch
    w.token = token
    w.next = e.waiters
    e.waiters = w


cdef void entry_ready(Core *c, ObjEntry *e) noexcept nogil:
    """The value is there: whoever waits for it hears of it. May free the entry."""
    cdef Waiter *w = e.waiters
    cdef Waiter *following
    c.changed = True
    e.waiters = NULL
    e.holds += 1
    while w != NULL:
        following = w.next
        if w.kind == WAITS_TASK:
            w.task.deps_pending -= 1
            if w.task.deps_pending == 0:
                c.ready.push_back(w.task)
        elif w.kind == WAITS_BORROWER:
            answer_fetch(c, e, w.ch, w.token)
        else:
            box_put(c, w.box, w.token, e)
        del w
        w = following
    e.holds -= 1


# --- boxes: who waits without a thread of its own -------------------------------------------------------------------

cdef void box_open(Core *c, AwaitBox *box, uint64_t ticket, ObjEntry *e) noexcept nogil:
    """The box hears of the entry's value, once. An open ticket keeps the entry as a ref does."""
    entry_add_waiter(e, WAITS_BOX, NULL, NULL, ticket)
    e.waiters.box = box
    e.local += 1
    if box.polls and box.open.empty():
        c.awaited += 1
    box.open[ticket] = e


cdef void box_forget(Core *c, AwaitBox *box, uint64_t ticket, ObjEntry *e) noexcept nogil:
    box.open.erase(ticket)
    if box.polls and box.open.empty():
        c.awaited -= 1
    refs_drop_local(c, e)


cdef void box_put(Core *c, AwaitBox *box, uint64_t ticket, ObjEntry *e) noexcept nogil:
    box.done.push_back(ticket)
    box_tell(box)
    box_forget(c, box, ticket, e)


cdef void box_tell(AwaitBox *box) noexcept nogil:
    """Wake the loop, unless it has been woken and has not looked yet."""
    if not box.told:
        box.told = True
        if box.fd >= 0:
            kick(box.fd)


cdef void box_close(Core *c, AwaitBox *box, uint64_t ticket) noexcept nogil:
    """Nobody waits for this ticket any more (or it is done, and nothing happens)."""
    cdef ObjEntry *e
    cdef Waiter **at
    cdef Waiter *w
    if box.open.count(ticket) == 0:
        return
    e = box.open[ticket]
    at = &e.waiters
    while at[0] != NULL:
        w = at[0]
        if w.kind == WAITS_BOX and w.box == box and w.token == ticket:
            at[0] = w.next
            del w
            break
        at = &w.next
    box_forget(c, box, ticket, e)


cdef void box_remove(Core *c, AwaitBox *box) noexcept nogil:
    """The box goes: no entry may point to it."""
    cdef size_t i
    while not box.open.empty():
        box_close(c, box, deref(box.open.begin()).first)
    for i in range(c.boxes.size()):
        if c.boxes[i] == box:
            c.boxes[i] = c.boxes.back()
            c.boxes.pop_back()
            return


cdef void boxes_end(Core *c) noexcept nogil:
    """Nothing will come any more: everybody who awaits something hears that."""
    cdef size_t i
    for i in range(c.boxes.size()):
        c.boxes[i].ended = True
        box_tell(c.boxes[i])
        c.boxes[i].gen += 1
        futex_wake(&c.boxes[i].gen, 1)
    c.changed = True


# --- setting a value ------------------------------------------------------------------------------------------------


cdef void entry_set_inline(Core *c, ObjEntry *e, Blob *b, bint is_error) noexcept nogil:
    """Takes over the blob's hold."""
    if e.blob != NULL:
        blob_drop(e.blob)
    e.blob = b
    if is_error:
        e.flags |= OBJ_IS_ERROR
    e.flags &= ~OBJ_FETCHING
    store8(&e.state, OBJ_INLINE)
    entry_ready(c, e)


cdef void entry_set_error(Core *c, ObjEntry *e, uint8_t code, const char *payload, uint64_t size) noexcept nogil:
    cdef Blob *b = blob_new(size + 2)
    b.data[0] = <char>SYSTEM_ERROR
    b.data[1] = <char>code
    if size:
        memcpy(&b.data[2], payload, size)
    entry_set_inline(c, e, b, True)


cdef void entry_set_shm(Core *c, ObjEntry *e, uint64_t seg, uint64_t off, uint64_t size) noexcept nogil:
    e.seg = seg
    e.off = off
    e.size = size
    if e.flags & OBJ_OWNED:
        large_add(c, e)
    e.flags &= ~OBJ_FETCHING
    store8(&e.state, OBJ_SHM)
    entry_ready(c, e)


cdef uint64_t value_size(ObjEntry *e) noexcept nogil:
    """Bytes of `write_value`."""
    cdef uint64_t n = sizeof(RetHead)
    if e.state == OBJ_INLINE:
        n += e.blob.size
    if e.ext != NULL:
        n += 56 * e.ext.contained.size()
    return n


cdef char *write_value(Core *c, ObjEntry *e, char *p) noexcept nogil:
    """RetHead, inline bytes, contained refs with their owners."""
    cdef RetHead *r = <RetHead *>p
    cdef size_t i
    memset(r, 0, sizeof(RetHead))
    p += sizeof(RetHead)
    r.is_error = 1 if e.flags & OBJ_IS_ERROR else 0
    if e.state == OBJ_INLINE:
        r.kind = VALUE_INLINE
        r.size = e.blob.size
        memcpy(p, e.blob.data, e.blob.size)
        p += e.blob.size
    elif e.state == OBJ_SHM:
        r.kind = VALUE_SHM
        r.seg = e.seg
        r.off = e.off
        r.size = e.size
    else:
        r.kind = VALUE_LOST
    if e.ext != NULL:
        r.ncontained = <uint32_t>e.ext.contained.size()
        for i in range(e.ext.contained.size()):
            memcpy(p, e.ext.contained[i].id.b, 28)
            if e.ext.contained[i].flags & OBJ_OWNED:
                memcpy(p + 28, c.worker_id.b, 28)
            else:
                memcpy(p + 28, e.ext.contained[i].ext.owner.b, 28)
            p += 56
    return p


cdef char *read_value(Core *c, ObjEntry *e, char *p, char *end, const Id28 *sender, bint contained_granted) noexcept nogil:
    """Take a value off the wire into `e` (NULL: skip it). Returns what follows it, or NULL when it makes no sense.

    `contained_granted`: the sender has registered us with the owners of the contained refs.
    """
    cdef RetHead *r = <RetHead *>p
    cdef char *bytes_at
    cdef ObjEntry *inner
    cdef uint32_t i
    cdef bint skip
    if p + sizeof(RetHead) > end:
        return NULL
    p += sizeof(RetHead)
    bytes_at = p
    if r.kind == VALUE_INLINE:
        if r.size > <uint64_t>(end - p):
            return NULL
        p += r.size
    if <uint64_t>r.ncontained * 56 > <uint64_t>(end - p):
        return NULL
    skip = e == NULL or e.state >= OBJ_INLINE
    for i in range(r.ncontained):
        inner = refs_borrowed(c, <Id28 *>p, <Id28 *>(p + 28))
        if contained_granted and not inner.flags & OBJ_OWNED:
            refs_register(c, inner)
        if skip:
            refs_check(c, inner)        # what was registered in our name is given back
        else:
            refs_contain(e, inner)
        p += 56
    if skip:
        return p
    if r.kind == VALUE_INLINE:
        entry_set_inline(c, e, blob_value(bytes_at, r.size), r.is_error)
    elif r.kind == VALUE_SHM:
        if e.flags & OBJ_OWNED:
            segment_owned(c, r.seg, sender)
        entry_set_shm(c, e, r.seg, r.off, r.size)
    else:
        entry_set_error(c, e, ERR_LOST, NULL, 0)
    return p
