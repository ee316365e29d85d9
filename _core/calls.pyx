"""Making calls: from `.remote(...)` to a task record (the rest of its way is tasks.pyx's and actors.pyx's).

A caller object knows everything about its function or method that does not change from call to call, so that a call is:
encode the arguments, make the ids, and hand one record over under the lock. Python objects (the refs returned) are made
before the lock is taken.
"""

from cpython.list cimport PyList_GET_ITEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from ftray._core.actors cimport actor_client, actor_on_state
from ftray._core.buf cimport Buf, Scratch, buf_clear, buf_free, buf_init, scratch_give, scratch_take
from ftray._core.callargs cimport encode_args
from ftray._core.context cimport Context, child_task_id, context
from ftray._core.events cimport events_function
from ftray._core.flows cimport callee_key, flow_name_call, flow_needs_root
from ftray._core.generators cimport ObjectRefGenerator, blank_generator, fill_generator
from ftray._core.intake cimport intake_open
from ftray._core.objects cimport ObjectRef, blank_ref, fill_ref, usable
from ftray._core.guards cimport the_guard
from ftray._core.puts cimport placeholder_ref, put_value
from ftray._core.refs cimport refs_new
from ftray._core.runtime cimport core, core_enter, core_leave, core_make_room, core_try, session_alive
from ftray._core.serial cimport INLINE_LIMIT, EncodedValue, encode
from ftray._core.session cimport check_usable, raise_no_room
from ftray._core.sites cimport current_site
from ftray._core.tasks cimport task_submit
from ftray._core.nodelink cimport node_actor_kill
from ftray._core.types cimport (ACTOR_ALIVE, ACTOR_DEAD, ActorClient, Blob, Core, Id16, Id28, ObjEntry, SchedClass,
                                TASK_QUIET, TaskRec, blob_copy, blob_drop, blob_hold, has_room, note_new)

cdef enum:
    DEF_FUNCTION = 0
    DEF_METHOD = 1
    LARGE_ARGS = 102400
    DYNAMIC = -1            # in place of a number of returns
    ELSEWHERE = 1
    STREAMING = -2          # and less: by how much is the number of items that may be unconsumed

cdef Scratch scratch
buf_init(&scratch.kept)
scratch.taken = False
cdef object group_now = None            # placement group of what runs here: 18 bytes id, 1 whether it captures; or None
cdef uint64_t bindings = 0              # counts changes of `group_now`: callers are bound anew after one
cdef dict fn_indices = {}
cdef uint64_t fn_session = 0


cdef int name_of(bytes definition, Id16 *key) except -1:
    """What a function is known by to all attempts of its callers: kind and name."""
    cdef const char *p = definition
    cdef uint16_t size
    memcpy(&size, p + 1, 2)
    callee_key(p, min(<size_t>size + 3, <size_t>len(definition)), key)
    return 0


cdef uint32_t function_index(Core *c, bytes definition) except? 0xFFFFFFFF:
    """The index of a definition in this process's function table; peers are told what it means when it is first used."""
    global fn_session
    cdef Blob *b
    cdef uint32_t index
    cdef Id16 key
    if fn_session != c.session:
        fn_indices.clear()
        fn_session = c.session
    known = fn_indices.get(definition)
    if known is not None:
        return known
    b = blob_copy(definition, len(definition))
    name_of(definition, &key)
    with nogil:
        core_enter(c)
        index = <uint32_t>c.fns.size()
        c.fns.push_back(b)
        c.fn_keys.push_back(key)
        events_function(c, index, b.data, b.size)
        core_leave(c)
    fn_indices[definition] = index
    return index


cdef SchedClass *sched_class(Core *c, uint64_t key, bytes request, bytes group, uint32_t window) except NULL:
    """The scheduling class of this key (tasks that can share a worker), made when first used."""
    cdef SchedClass *k
    cdef const char *p = request
    cdef uint64_t n = len(request)
    cdef const char *g = group
    cdef uint64_t m = len(group)
    with nogil:
        core_enter(c)
        if c.classes.count(key):
            k = c.classes[key]
        else:
            k = new SchedClass()
            k.key = key
            k.request.assign(p, n)
            k.group.assign(g, m)
            if window:
                k.window = min(k.window, window)
            c.classes[key] = k
        core_leave(c)
    return k


cdef tuple shrink_args(tuple args, dict kwargs):
    """Arguments that are too large to travel inline are put, and travel as refs."""
    cdef list out = []
    cdef dict named = None
    for a in args:
        out.append(put_value(a) if type(a) is not ObjectRef and encode(a).size > LARGE_ARGS else a)
    if kwargs:
        named = {}
        for name, a in kwargs.items():
            named[name] = put_value(a) if type(a) is not ObjectRef and encode(a).size > LARGE_ARGS else a
    return tuple(out), named


cdef Blob *no_args = NULL               # the argument bytes of every call without arguments


cdef Blob *encode_call(tuple args, dict kwargs, list deps, list refs) except NULL:
    """The argument bytes of a call; fills the top-level refs and those nested deeper."""
    global no_args
    if no_args != NULL and not args and kwargs is None:
        return blob_hold(no_args)
    cdef Buf own
    cdef Buf *b
    cdef Blob *blob
    cdef EncodedValue big
    b = scratch_take(&scratch, &own)
    try:
        big = encode_args(b, args, kwargs, deps, refs, INLINE_LIMIT)
        if big is not None:
            deps.clear()
            refs.clear()
            buf_clear(b)
            big = None
            args, kwargs = shrink_args(args, kwargs)
            big = encode_args(b, args, kwargs, deps, refs, <size_t>1 << 31)
            if big is not None:
                raise ValueError(f"the arguments of one call are larger than 2 GiB even without their large values ({big.size} bytes)")
        blob = blob_copy(b.data, b.len)
    finally:
        scratch_give(&scratch, b)
    if blob == NULL:
        raise MemoryError()
    if not args and kwargs is None:
        no_args = blob_hold(blob)
    return blob


cdef TaskRec *new_record(Blob *args, uint32_t fn, int nret, int max_retries, list deps, list refs, ObjEntry *handle) except NULL:
    """A record without ids and returns; its holds are taken when it is submitted. Takes `args` over."""
    cdef Core *c = core()
    cdef TaskRec *t
    cdef ObjEntry **needs = NULL
    cdef ObjEntry **rets = NULL
    cdef Py_ssize_t i, n = len(deps), m = len(refs), nested = m + (1 if handle != NULL else 0)
    if n > 65535 or m > 65534:
        blob_drop(args)
        raise ValueError(f"a call takes at most 65535 refs as arguments and as many nested in them, not {max(n, m)}")
    if n + nested:
        needs = <ObjEntry **>malloc((n + nested) * sizeof(ObjEntry *))
    if nret > 1:
        rets = <ObjEntry **>calloc(nret, sizeof(ObjEntry *))
    if (n + nested and needs == NULL) or (nret > 1 and rets == NULL) or (not has_room(c) and core_make_room(c) != 0):
        free(needs)
        free(rets)
        blob_drop(args)
        raise_no_room(c)
    t = c.task_slab.make()
    t.args = args
    t.fn = fn
    t.nret = <uint16_t>nret if nret >= 0 else 1
    t.retries_left = max_retries
    t.retriable = max_retries != 0
    t.ndeps = <uint16_t>n
    t.nnested = <uint16_t>nested
    t.deps = needs
    t.rets = rets
    for i in range(n):
        needs[i] = usable(<ObjectRef>deps[i])
    for i in range(m):
        needs[n + i] = usable(<ObjectRef>refs[i])
    if handle != NULL:
        needs[n + m] = handle
    return t


cdef void submit_locked(Core *c, TaskRec *t, Context *x) noexcept nogil:
    """Ids, holds, and off it goes."""
    cdef uint32_t i
    if t.actor != NULL:
        child_task_id(x, c.job, t.actor.id.b, t.id)
    else:
        child_task_id(x, c.job, NULL, t.id)
    t.depth = x.depth + 1
    t.parent = x.unique
    flow_name_call(c, x, t)
    for i in range(t.ndeps + t.nnested):
        t.deps[i].holds += 1


cdef ObjEntry *new_return(Core *c, TaskRec *t, uint32_t index) noexcept nogil:
    cdef Id28 id
    cdef ObjEntry *e
    memcpy(id.b, t.id, 24)
    index += 1
    memcpy(id.b + 24, &index, 4)
    e = refs_new(c, &id, True)
    e.task = t
    return e


cdef object placeholders(int nret):
    """What a call returns that an earlier run of the same method has made."""
    if nret == 1:
        return placeholder_ref()
    return [placeholder_ref() for _ in range(nret)] if nret else None


cdef object submit_one(Core *c, TaskRec *t):
    """The common case: one return."""
    cdef ObjectRef r = blank_ref()
    cdef uint32_t site = current_site(c) if c.record_sites else 0
    if not core_try(c):
        with nogil:
            core_enter(c)
    submit_locked(c, t, context())
    t.ret0 = new_return(c, t, 0)
    if c.record_sites:
        c.sites[t.ret0] = site
    fill_ref(c, r, t.ret0)
    task_submit(c, t)
    core_leave(c)
    return r


cdef object submit_many(Core *c, TaskRec *t, int nret):
    cdef list out = [blank_ref() for _ in range(nret)]
    cdef int i
    cdef ObjectRef r
    cdef uint32_t site = current_site(c) if c.record_sites else 0
    if not core_try(c):
        with nogil:
            core_enter(c)
    submit_locked(c, t, context())
    for i in range(nret):
        t.rets[i] = new_return(c, t, i)
        if c.record_sites:
            c.sites[t.rets[i]] = site
        fill_ref(c, <ObjectRef>PyList_GET_ITEM(out, i), t.rets[i])
    task_submit(c, t)
    core_leave(c)
    return out if nret else None


cdef object submit_stream(Core *c, TaskRec *t, int code):
    """A call of a generator: its one return is the completion, or with `DYNAMIC` the value that lists what it yielded."""
    cdef bint dynamic = code == DYNAMIC
    if c.guards:
        the_guard().refuse('a call with num_returns="streaming" or "dynamic"')
    cdef ObjectRef r = None
    cdef ObjectRefGenerator g = None
    cdef Context *x = context()
    if dynamic:
        r = blank_ref()
    else:
        g = blank_generator()
    with nogil:
        core_enter(c)
        submit_locked(c, t, x)
        t.ret0 = new_return(c, t, 0)
        intake_open(c, t, 0 if dynamic else STREAMING - code, dynamic)
        if dynamic:
            fill_ref(c, r, t.ret0)
        else:
            fill_generator(c, g, t.stream)
        task_submit(c, t)
        core_leave(c)
    return r if dynamic else g


cdef class FunctionCaller:
    """Base of RemoteFunction: everything that a call needs, bound to the running session on first use.

    Subclasses give `_bind()`, which starts ftray if need be and returns ``(definition, class_key, request, num_returns,
    max_retries, max_calls, group)``, or what is to be called instead when another engine runs. It is asked again when the placement group that the calling code runs in is another
    one. num_returns: -1 for "dynamic", -2 - n for "streaming" with n items that may be unconsumed (0: no bound).
    """

    cdef uint64_t session, bound
    cdef uint32_t fn
    cdef int nret, max_retries
    cdef Py_ssize_t least, most     # positional arguments that surely fit
    cdef SchedClass *cls
    cdef uint8_t quiet
    cdef object other               # on another engine: what to call

    def remote(self, *args, **kwargs):
        """Submit a task that calls the function with these arguments; returns a ref (or a list, or None)."""
        cdef Core *c = core()
        if kwargs or len(args) < self.least or len(args) > self.most:
            self._check_arguments(args, kwargs)
        if not session_alive(self.session) or self.bound != bindings:
            if self.bind() == ELSEWHERE:
                return self.other(*args, **kwargs)
        if not c.node_alive:
            check_usable()
        if not c.guards:
            return self.send(c, args, kwargs)
        if the_guard().sends(self.nret):
            return placeholders(self.nret)
        try:
            return self.send(c, args, kwargs)
        except Exception as error:
            the_guard().not_sent(error)
            raise

    cdef object send(self, Core *c, tuple args, dict kwargs):
        cdef list deps = [], refs = []
        cdef TaskRec *t
        t = new_record(encode_call(args, kwargs if kwargs else None, deps, refs), self.fn, self.nret, self.max_retries, deps, refs, NULL)
        t.cls = self.cls
        t.flags = self.quiet
        if self.nret == 1:
            return submit_one(c, t)
        if self.nret < 0:
            return submit_stream(c, t, self.nret)
        return submit_many(c, t, self.nret)

    cdef int bind(self) except -1:
        """Be ready for the running session; ELSEWHERE: it is another engine's, `other` is what to call."""
        cdef Core *c = core()
        cdef uint64_t bound = bindings
        binding = self._bind()
        if type(binding) is not tuple:
            self.other = binding
            return ELSEWHERE
        definition, key, request, nret, max_retries, max_calls, group = binding
        check_usable()
        self.fn = function_index(c, definition)
        self.cls = sched_class(c, key, request, group, max_calls)
        self.nret = nret
        self.max_retries = max_retries
        self.session = c.session
        self.bound = bound
        return 0

    def _limit_arguments(self, Py_ssize_t least, Py_ssize_t most):
        self.least = least
        self.most = most

    def _record_events(self, bint wanted):
        self.quiet = 0 if wanted else <uint8_t>TASK_QUIET


cdef class ActorTarget:
    """An actor as callers know it; what handles and their methods share (so that neither has to hold the other).

    Attributes
    ----------
    ref : ObjectRef
        Counts the handles of this process.
    """

    cdef readonly ObjectRef ref
    cdef ActorClient *a

    def __init__(self, ObjectRef ref, bint out_of_order=False, bytes key=b"", bint durable=False):
        cdef Core *c = core()
        cdef Id16 id
        cdef Id16 given
        memcpy(given.b, <const char *>key if len(key) == 16 else <const char *>(usable(ref).id.b + 8), 16)
        memcpy(id.b, usable(ref).id.b + 8, 16)
        self.ref = ref
        with nogil:
            core_enter(c)
            self.a = actor_client(c, &id)
            self.a.key = given
            self.a.durable = durable
            if out_of_order:
                self.a.out_of_order = 1
            core_leave(c)

    def actor_id(self):
        """Return the actor's 16 bytes."""
        return usable(self.ref).id.b[8:24]

    def kill(self, bint no_restart):
        """Have the actor's process ended; calls made from now on do not reach it."""
        cdef Core *c = core()
        if c.guards and the_guard().sends(0):
            return
        usable(self.ref)
        with nogil:
            core_enter(c)
            if self.a.state == ACTOR_ALIVE:
                self.a.killing = 1
            node_actor_kill(c, &self.a.id, no_restart, 0)
            core_leave(c)

    def fail(self, bytes cause):
        """The actor could not even be created: calls fail with this pickled cause."""
        cdef Core *c = core()
        cdef const char *p = cause
        cdef uint64_t n = len(cause)
        cdef Id28 nobody
        memset(nobody.b, 0, 28)
        with nogil:
            core_enter(c)
            actor_on_state(c, &self.a.id, ACTOR_DEAD, 1, &nobody, p, n)
            core_leave(c)

    cdef object call(self, Core *c, uint32_t fn, int nret, int max_retries, int64_t max_pending, uint8_t quiet, bytes call_key, tuple args, dict kwargs):
        if not c.guards:
            return self.send(c, fn, nret, max_retries, max_pending, quiet, call_key, args, kwargs)
        if the_guard().sends(nret):
            return placeholders(nret)
        try:
            return self.send(c, fn, nret, max_retries, max_pending, quiet, call_key, args, kwargs)
        except Exception as error:
            the_guard().not_sent(error)
            raise

    cdef object send(self, Core *c, uint32_t fn, int nret, int max_retries, int64_t max_pending, uint8_t quiet, bytes call_key, tuple args, dict kwargs):
        cdef list deps = [], refs = []
        cdef TaskRec *t
        cdef ObjEntry *handle = usable(self.ref)
        if not c.node_alive:
            check_usable()
        if max_pending >= 0 and self.a.npending >= <uint64_t>max_pending:
            from ftray.exceptions import PendingCallsLimitExceeded
            raise PendingCallsLimitExceeded(f"the actor has {self.a.npending} calls pending; max_pending_calls={max_pending}")
        t = new_record(encode_call(args, kwargs if kwargs else None, deps, refs), fn, nret, max_retries, deps, refs, handle)
        t.actor = self.a
        t.flags = quiet
        if self.a.durable:
            self.prepare(c, t, nret, call_key)
        if nret == 1:
            return submit_one(c, t)
        if nret < 0:
            return submit_stream(c, t, nret)
        return submit_many(c, t, nret)


    cdef int prepare(self, Core *c, TaskRec *t, int nret, bytes call_key) except -1:
        """What a call to an exactly-once actor needs before it is submitted."""
        if flow_needs_root(c, context()):
            from ftray import _lifecycle
            _lifecycle.learn_root()
        if call_key is not None:
            t.note = note_new()
            t.note.keyed = True
            memcpy(t.note.named.b, <const char *>call_key, 16)
        return 0


cdef class MethodCaller:
    """``handle.method``: base of ActorMethod."""

    cdef readonly ActorTarget _target
    cdef bytes definition
    cdef uint64_t session
    cdef uint32_t fn
    cdef int nret, max_retries
    cdef int64_t max_pending
    cdef uint8_t quiet
    cdef bytes call_key         # 16 bytes made of the user's name for the call, or None
    cdef Py_ssize_t least, most

    def __init__(self, ActorTarget target, bytes definition, int num_returns, int max_task_retries, int64_t max_pending,
                 Py_ssize_t least, Py_ssize_t most):
        self.least = least
        self.most = most
        self._target = target
        self.definition = definition
        self.nret = num_returns
        self.max_retries = max_task_retries
        self.max_pending = max_pending

    def _record_events(self, bint wanted):
        self.quiet = 0 if wanted else <uint8_t>TASK_QUIET

    def _name_call(self, bytes call_key):
        self.call_key = call_key

    def remote(self, *args, **kwargs):
        """Call the method on the actor; returns a ref (or a list, or None)."""
        cdef Core *c = core()
        if kwargs or len(args) < self.least or len(args) > self.most:
            self._check_arguments(args, kwargs)
        if not session_alive(self.session):
            check_usable()
            self.fn = function_index(c, self.definition)
            self.session = c.session
        return self._target.call(c, self.fn, self.nret, self.max_retries, self.max_pending, self.quiet, self.call_key, args, kwargs)


def current_group():
    """The placement group that the code of this process runs in: 18 bytes of id, 1 of whether it captures; or None."""
    return group_now


def enter_group(group):
    """From now on what runs here runs in this placement group (None: in none)."""
    global group_now, bindings
    if group != group_now:
        group_now = group
        bindings += 1


def method_definition(str name, str group="", str label="", bytes retry=b""):
    """The definition of an actor method for the function table: which method, its concurrency group, what errors call it,
    and pickled retry_exceptions."""
    out = bytes([DEF_METHOD])
    for raw in (name.encode(), group.encode(), label.encode()[:1000]):
        out += len(raw).to_bytes(2, "little") + raw
    return out + retry


def function_definition(str name, bytes retry, bytes function, uint32_t max_calls=0):
    """The definition of a function: its name, max_calls (0: no limit), pickled retry_exceptions, and the pickled function."""
    raw = name.encode()[:1000]
    head = bytes([DEF_FUNCTION]) + len(raw).to_bytes(2, "little") + raw + max_calls.to_bytes(4, "little")
    return head + len(retry).to_bytes(4, "little") + retry + function


def encode_constructor_args(tuple args, dict kwargs):
    """Argument bytes of a constructor, and the refs nested inside. Top-level refs must have been resolved."""
    cdef list deps = [], refs = []
    cdef Buf b
    cdef EncodedValue big
    buf_init(&b)
    try:
        big = encode_args(&b, args, kwargs if kwargs else None, deps, refs, <size_t>1 << 40)
        data = b.data[:b.len] if big is None else None
    finally:
        buf_free(&b)
    if deps:
        raise ValueError("constructor arguments still contain unresolved refs")
    return data, refs
