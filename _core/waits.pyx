"""`wait`: which of some refs have their values.

Owns: the check of its arguments, and `mark` of an entry, by which one call tells refs that stand in its list twice.
Invariants: the order of both lists is that of the argument; when enough values are there at once, no lock is taken.

Leaves to others: waiting itself (gets.pyx, runtime.pyx).
"""

from cpython.list cimport PyList_GET_ITEM, PyList_GET_SIZE, PyList_GetSlice
from cpython.object cimport PyTypeObject, Py_TYPE
from cpython.ref cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from ftray._core.borrows cimport borrow_fetch
from ftray._core.generators cimport ObjectRefGenerator
from ftray._core.gets cimport deadline_of, wait_blocking
from ftray._core.objects cimport ObjectRef, engine_of, usable
from ftray._core.guards cimport the_guard
from ftray._core.runtime cimport core, core_enter, core_leave, session_alive
from ftray._core.session cimport check_usable
from ftray._core.types cimport OBJ_FETCHING, OBJ_INLINE, OBJ_UNKNOWN, Core, ObjEntry, load8, mono_ns

cdef uint32_t wait_serial = 0


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
    """Every item an ObjectRef of this session, none twice. Marks entries with a serial in place of a set.

    1 as soon as there is a generator, or a ref of another engine: `wait_mixed` looks at the rest.
    """
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
            if isinstance(<object>item, (ObjectRef, ObjectRefGenerator)):
                return 1
            raise_not_a_ref(i, <object>item)
        e = (<ObjectRef>item).e
        if (<ObjectRef>item).session != session or e == NULL:
            usable(<ObjectRef>item)
        if e.mark == serial:
            raise ValueError(f"wait() takes a list of unique ObjectRefs; item {i} stands in it twice: {<object>item!r}")
        e.mark = serial
    return 0


cdef int raise_not_a_ref(Py_ssize_t i, object item) except -1:
    raise TypeError(f"wait() takes a list of ObjectRefs and ObjectRefGenerators; item {i} is {type(item).__name__}")


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


cdef list waited_for(list refs):
    """For each ref itself, and for each generator a ref that is ready when its next ref is, or its end."""
    cdef list out = []
    for i, item in enumerate(refs):
        if type(item) is ObjectRefGenerator:
            item = (<ObjectRefGenerator>item).ref_to(False)
        elif type(item) is not ObjectRef:
            raise_not_a_ref(i, item)
        out.append(item)
    return out


cdef tuple wait_mixed(list refs, object num_returns, object timeout, object fetch_local):
    """`wait` with generators among the refs, or refs of another engine."""
    for item in refs:
        if type(item) is not ObjectRef and type(item) is not ObjectRefGenerator and isinstance(item, (ObjectRef, ObjectRefGenerator)):
            return engine_of(item).wait(refs, num_returns=num_returns, timeout=timeout, fetch_local=fetch_local)
    cdef list gates = waited_for(refs)
    cdef dict item_of = dict(zip(gates, refs))
    if len(item_of) != len(refs):
        raise ValueError("wait() takes a list of unique ObjectRefs and ObjectRefGenerators; one stands in it twice")
    ready, rest = wait(gates, num_returns=num_returns, timeout=timeout, fetch_local=fetch_local)
    return [item_of[gate] for gate in ready], [item_of[gate] for gate in rest]


def wait(refs, *, num_returns=1, timeout=None, fetch_local=True):
    """Wait until some of the refs have their values.

    Parameters
    ----------
    refs : list of ObjectRef or ObjectRefGenerator
        Unique ones. A generator is ready when ``next()`` need not wait: there is a ref, or the end.
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
        `refs` is not a list of these.
    ValueError
        A ref stands in the list twice, or `num_returns` is out of range.
    """
    if core().guards:
        return the_guard().wait(refs, num_returns, timeout, fetch_local)
    return plain_wait(refs, num_returns, timeout, fetch_local)


def plain_wait(refs, num_returns, timeout, fetch_local):
    """`wait`, whatever guards this process."""
    cdef Py_ssize_t wanted
    cdef tuple out
    cdef int64_t deadline
    if type(refs) is not list:
        if isinstance(refs, ObjectRef):
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
    if check_refs(refs):
        return wait_mixed(refs, num_returns, timeout, fetch_local)
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
