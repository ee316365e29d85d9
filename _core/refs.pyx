"""The reference counter (see refs.pxd for the contract).

An entry stands for an object that this process owns or borrows. It lives while any of these holds:

* `local`: ObjectRefs and buffer views of this process. A view counts like a ref, so a block of shared memory is reused
  only when the last view of the last process has died. Only the lock's holder changes `local`; a dying ref adds to
  `drops` and, when it is the first, pushes the entry on a lock-free list that the next I/O step drains. Because `local`
  still contains what is in `drops`, no other path can free an entry that somebody is about to push.
* `holds`: tasks in flight that use it, values that contain it, and each process that borrows it.
* `task`: the task that makes it has not finished.

An entry that none of these holds, but that a kept task would need to run again (`ext.lineage`), gives up what it has in
shared memory and stays as a record of how it was made (lineage.pyx).

Borrowing. A process that unpickles a ref of another owner has a *borrowed* entry. Before anything that protects the
object on its behalf is released, the borrower is registered with the owner: with the reply of the task that brought
the ref, or by BORROW_ADD. Registrations are counted per process (a value that contains the ref registers its receiver
beforehand), and a borrower that is done gives back as many as were made in its name; the two may cross, so a count
may be negative for a moment. (The scheme is Ray's distributed reference counting, Wang et al., NSDI 2021, with
acknowledged registrations in place of merged borrower trees.)
"""

from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, malloc
from libc.string cimport memcpy
from libcpp.set cimport set as cppset
from libcpp.vector cimport vector

from ftray._core.lineage cimport (lineage_evict, lineage_forget, lineage_free, lineage_item, lineage_keep, lineage_loosen, lineage_made, lineage_plan,
                                  task_return)
from ftray._core.types cimport (CMD_ACTOR_RELEASED, CMD_BORROW_REMOVE, CMD_FREE_BLOCK, CMD_SPILL_FREE, CMD_STREAM_DROPPED, OBJ_ACTOR,
                                OBJ_IN_MAP, OBJ_INLINE, OBJ_OWNED, OBJ_PENDING, OBJ_REGISTERED, OBJ_SHM, OBJ_STREAM,
                                OBJ_UNKNOWN, OBJ_UNREGISTERED_LISTED, Command, Core, Id28, ObjEntry, ObjExt, Stream, TaskRec, add32,
                                blob_drop, blob_new, cas_ptr, large_drop, large_told, same_id, store8, swap32, take_ptr)


cdef extern from *:
    """
    #include <unistd.h>
    #include <cstdint>
    static void kick_event(int fd) { uint64_t one = 1; ssize_t r = write(fd, &one, 8); (void)r; }
    """
    void kick "kick_event"(int) nogil


cdef ObjEntry *refs_new(Core *c, const Id28 *id, bint owned) noexcept nogil:
    """A fresh entry that nobody holds yet; the caller gives it a holder before the lock is dropped."""
    cdef ObjEntry *e = c.entry_slab.make()
    e.live = 1
    e.id = id[0]
    e.flags = OBJ_OWNED if owned else 0
    e.state = OBJ_PENDING if owned else OBJ_UNKNOWN
    c.n_entries += 1
    return e


cdef ObjEntry *refs_find(Core *c, const Id28 *id) noexcept nogil:
    it = c.objects.find(id[0])
    if it == c.objects.end():
        return NULL
    return c.objects[id[0]]


cdef void refs_expose(Core *c, ObjEntry *e) noexcept nogil:
    """From now on other processes may name the object: it must be found by its id."""
    if not e.flags & OBJ_IN_MAP:
        e.flags |= OBJ_IN_MAP
        c.objects[e.id] = e


cdef ObjExt *refs_ext(ObjEntry *e) noexcept nogil:
    if e.ext == NULL:
        e.ext = new ObjExt()
    return e.ext


cdef ObjEntry *refs_borrowed(Core *c, const Id28 *id, const Id28 *owner) noexcept nogil:
    """The entry of an object by id, made as a borrow when this process does not know the object yet."""
    cdef ObjEntry *e = refs_find(c, id)
    if e != NULL:
        return e
    e = refs_new(c, id, False)
    refs_ext(e).owner = owner[0]
    refs_expose(c, e)
    if same_id(owner, &c.worker_id):
        e.lost = 2                      # ours once, and freed: whoever passed the ref on has died while doing so
        return e
    e.flags |= OBJ_UNREGISTERED_LISTED
    c.unregistered.push_back(e)
    return e


cdef void refs_register(Core *c, ObjEntry *e) noexcept nogil:
    """The owner knows (or is being told) that we borrow it, once more."""
    e.flags |= OBJ_REGISTERED
    refs_ext(e).grants += 1
    unlist(c, e)


cdef void unlist(Core *c, ObjEntry *e) noexcept nogil:
    cdef size_t i
    if not e.flags & OBJ_UNREGISTERED_LISTED:
        return
    e.flags &= ~OBJ_UNREGISTERED_LISTED
    for i in range(c.unregistered.size()):
        if c.unregistered[i] == e:
            c.unregistered[i] = c.unregistered.back()
            c.unregistered.pop_back()
            return


cdef void refs_drop_local(Core *c, ObjEntry *e) noexcept nogil:
    """A ref or view died. Any thread, any moment: two atomic operations, no lock, no allocation."""
    cdef void *head
    if add32(&e.drops, 1) != 1:
        return
    while True:
        head = c.drop_list
        e.next_drop = <ObjEntry *>head
        if cas_ptr(&c.drop_list, head, <void *>e):
            break
    if head == NULL and c.bg_mode == 0 and c.event_fd >= 0:
        kick(c.event_fd)            # an idle process: its background thread sleeps in epoll


cdef bint refs_drain(Core *c) noexcept nogil:
    """Take note of every ref that died since the last time; True when there were any."""
    cdef ObjEntry *e
    cdef ObjEntry *following
    if c.drop_list == NULL:
        return False
    e = <ObjEntry *>take_ptr(&c.drop_list)
    while e != NULL:
        following = e.next_drop
        e.local -= <int32_t>swap32(<uint32_t *>&e.drops, 0)
        refs_check(c, e)
        e = following
    return True


cdef void refs_hold(ObjEntry *e) noexcept nogil:
    e.holds += 1


cdef void refs_unhold(Core *c, ObjEntry *e) noexcept nogil:
    e.holds -= 1
    refs_check(c, e)


cdef inline bint alive(ObjEntry *e) noexcept nogil:
    return e.local > 0 or e.holds > 0 or e.task != NULL or e.waiters != NULL


cdef void refs_check(Core *c, ObjEntry *e) noexcept nogil:
    """Free the object if nothing holds it, and then what only it held (a list, not recursion: chains can be long)."""
    cdef vector[ObjEntry *] work
    if alive(e):
        return
    if e.ext == NULL:
        forget(c, e)
        return
    lineage_loosen(&work, e)
    settle_loose(c, &work)


cdef void settle_loose(Core *c, vector[ObjEntry *] *work) noexcept nogil:
    cdef ObjEntry *e
    while not work.empty():
        e = work.back()
        work.pop_back()
        e.listed = 0
        if alive(e):
            continue
        if e.ext == NULL:
            forget(c, e)
        elif e.ext.lineage > 0:
            retire(c, e, work)
        else:
            let_go_inside(e, work)
            lineage_forget(c, e, work)
            forget(c, e)


cdef void let_go_inside(ObjEntry *e, vector[ObjEntry *] *work) noexcept nogil:
    """The value goes: it contains nothing any more."""
    cdef size_t i
    for i in range(e.ext.contained.size()):
        e.ext.contained[i].holds -= 1
        lineage_loosen(work, e.ext.contained[i])
    e.ext.contained.clear()


cdef void retire(Core *c, ObjEntry *e, vector[ObjEntry *] *work) noexcept nogil:
    """Only lineage needs it: what is in shared memory can be made again, and an actor needs no handle to have been called."""
    if e.state >= OBJ_SHM:
        leave_place(c, e)
        store8(&e.state, OBJ_UNKNOWN)
        let_go_inside(e, work)
    if e.flags & OBJ_ACTOR:
        command(c, CMD_ACTOR_RELEASED, e, 0, 0)
        e.flags &= ~OBJ_ACTOR
        let_go_inside(e, work)          # its constructor does not run again


cdef void refs_drop_value(Core *c, ObjEntry *e) noexcept nogil:
    """The value is lost. The entry must be held by somebody."""
    cdef vector[ObjEntry *] work
    if e.flags & OBJ_OWNED and e.state >= OBJ_SHM:
        leave_place(c, e)
    store8(&e.state, OBJ_UNKNOWN)
    if e.ext != NULL:
        let_go_inside(e, &work)
        settle_loose(c, &work)


cdef bint keep(Core *c, TaskRec *t) noexcept nogil:
    """The returns of a finished task have values in shared memory: keep it as lineage if it may serve.

    True: the record has a new owner, and its arguments have given their holds back (or go on being borrowed).
    """
    cdef vector[ObjEntry *] work
    cdef int i
    cdef ObjEntry *e
    if not lineage_keep(c, t):
        return False
    for i in range(t.ndeps + t.nnested):
        e = t.deps[i]
        if e.flags & OBJ_OWNED:
            e.holds -= 1
            lineage_loosen(&work, e)
    lineage_evict(c, &work)
    settle_loose(c, &work)
    return True


cdef void refs_finish_shared(Core *c, TaskRec *t) noexcept nogil:
    """Values in shared memory can be lost: the record is kept if it may serve to make them again."""
    cdef vector[ObjEntry *] returns
    cdef size_t i
    cdef ObjEntry *e
    cdef int k
    for k in range(t.nret):
        e = task_return(t, k)
        if e != NULL:
            e.task = t                      # none goes before it is looked at
            returns.push_back(e)
    c.n_tasks -= 1
    if t.actor != NULL:
        t.actor.npending -= 1
        if not t.handleless:
            t.handleless = 1                # to be lost does not keep an actor alive
            t.nnested -= 1
            refs_unhold(c, t.deps[t.ndeps + t.nnested])
    if not keep(c, t):                 # else it is no more ours, and may be gone already
        for k in range(t.ndeps + t.nnested):
            refs_unhold(c, t.deps[k])
        lineage_free(c, t)
    for i in range(returns.size()):
        returns[i].task = NULL
        refs_check(c, returns[i])


cdef void command(Core *c, uint8_t kind, ObjEntry *e, uint64_t a, uint64_t b) noexcept nogil:
    cdef Command cmd
    cmd.kind = kind
    cmd.a = a
    cmd.b = b
    cmd.obj = e.id
    cmd.entry = NULL
    if e.ext != NULL:
        cmd.peer = e.ext.owner
    c.commands.push_back(cmd)


cdef void leave_place(Core *c, ObjEntry *e) noexcept nogil:
    """A large value goes: what it has in shared memory and on disk is free."""
    cdef uint64_t spill = e.seg
    if e.state == OBJ_SHM:
        command(c, CMD_FREE_BLOCK, e, e.seg, e.off)
        spill = large_drop(c, e)
    if spill:
        c.spills.erase(spill)
        command(c, CMD_SPILL_FREE, e, spill, 0)


cdef void forget(Core *c, ObjEntry *e) noexcept nogil:
    if e.flags & OBJ_OWNED:
        if e.state >= OBJ_SHM:
            leave_place(c, e)
        if e.flags & OBJ_ACTOR:
            command(c, CMD_ACTOR_RELEASED, e, 0, 0)
        elif e.flags & OBJ_STREAM:
            (<Stream *>e.seg).gate = NULL
            (<Stream *>e.seg).leaving = True
            command(c, CMD_STREAM_DROPPED, e, e.seg, 0)
    elif e.flags & OBJ_REGISTERED and not e.lost:
        command(c, CMD_BORROW_REMOVE, e, e.ext.grants, 0)
    unlist(c, e)
    if e.flags & OBJ_IN_MAP:
        c.objects.erase(e.id)
    if e.blob != NULL:
        blob_drop(e.blob)
    if e.ext != NULL:
        del e.ext
    c.n_entries -= 1
    if c.record_sites:
        c.sites.erase(e)
    store8(&e.live, 0)              # atomic: a plain store just before the end of an object's life may be left out
    c.entry_slab.drop(e)


cdef void refs_borrower(Core *c, ObjEntry *e, const Id28 *worker, int32_t n) noexcept nogil:
    """At the owner: `n` more (or fewer) registrations of a borrowing process."""
    cdef ObjExt *x = refs_ext(e)
    cdef int32_t before = x.borrowers[worker[0]]
    cdef int32_t after = before + n
    large_told(c, e, worker[0])     # what it says of itself from now on may be of another record than before
    if after == 0:
        x.borrowers.erase(worker[0])
    else:
        x.borrowers[worker[0]] = after
    if before <= 0 and after > 0:
        e.holds += 1
    elif before > 0 and after <= 0:
        refs_unhold(c, e)


cdef void refs_contain(ObjEntry *outer, ObjEntry *inner) noexcept nogil:
    """The value of `outer` has a ref to `inner` pickled inside."""
    inner.holds += 1
    refs_ext(outer).contained.push_back(inner)


cdef void refs_process_died(Core *c, const Id28 *worker) noexcept nogil:
    """A process is gone: it borrows nothing any more, and what it owned has lost its owner."""
    cdef vector[ObjEntry *] touched
    cdef cppset[ObjEntry *] lost
    cdef ObjEntry *e
    cdef size_t i
    cdef int32_t n
    for item in c.objects:
        e = item.second
        if e.ext == NULL:
            continue
        if e.flags & OBJ_OWNED:
            if e.ext.borrowers.count(worker[0]):
                touched.push_back(e)
        elif e.ext.owner == worker[0] and not e.lost:
            touched.push_back(e)
            lost.insert(e)
    for i in range(touched.size()):     # ending one borrow may free what others of these are inside
        touched[i].holds += 1
    for i in range(touched.size()):     # the lost ones first: ending a borrow may free what contains them
        if not touched[i].flags & OBJ_OWNED:
            touched[i].lost = 1
            unlist(c, touched[i])
    for i in range(touched.size()):
        e = touched[i]
        if lost.count(e) == 0:
            n = e.ext.borrowers[worker[0]]
            refs_borrower(c, e, worker, -n)
    for i in range(touched.size()):
        refs_unhold(c, touched[i])


cdef class RefTable:
    """A reference counter without a runtime around it, for tests: ids are small integers, commands come out as tuples."""

    cdef Core core
    cdef dict tasks

    def __init__(self):
        self.tasks = {}

    cdef Id28 make_id(self, n):
        cdef Id28 i
        cdef bytes raw = int(n).to_bytes(28, "big")
        memcpy(i.b, <const char *>raw, 28)
        return i

    cdef ObjEntry *entry(self, n) except NULL:
        cdef Id28 i = self.make_id(n)
        cdef ObjEntry *e = refs_find(&self.core, &i)
        if e == NULL:
            raise KeyError(n)
        return e

    def own(self, n):
        cdef Id28 i = self.make_id(n)
        cdef ObjEntry *e = refs_new(&self.core, &i, True)
        e.state = OBJ_INLINE
        e.local = 1
        refs_expose(&self.core, e)

    def borrow(self, n, owner):
        cdef Id28 i = self.make_id(n), o = self.make_id(owner)
        refs_borrowed(&self.core, &i, &o).local += 1

    def ref(self, n):
        self.entry(n).local += 1

    def drop(self, n):
        refs_drop_local(&self.core, self.entry(n))

    def drain(self):
        refs_drain(&self.core)

    def hold(self, n):
        refs_hold(self.entry(n))

    def unhold(self, n):
        refs_unhold(&self.core, self.entry(n))

    def contain(self, outer, inner):
        refs_contain(self.entry(outer), self.entry(inner))

    def borrower(self, n, worker, int count):
        cdef Id28 w = self.make_id(worker)
        refs_borrower(&self.core, self.entry(n), &w, count)

    def register(self, n):
        refs_register(&self.core, self.entry(n))

    def in_shared_memory(self, n, seg, off):
        cdef ObjEntry *e = self.entry(n)
        e.state = OBJ_SHM
        e.seg = seg
        e.off = off

    def actor_handle(self, n):
        self.entry(n).flags |= OBJ_ACTOR

    def died(self, worker):
        cdef Id28 w = self.make_id(worker)
        refs_process_died(&self.core, &w)

    def lost(self, n):
        return self.entry(n).lost

    def commands(self):
        cdef size_t i
        names = {CMD_BORROW_REMOVE: "borrow_remove", CMD_FREE_BLOCK: "free_block", CMD_ACTOR_RELEASED: "actor_released"}
        out = []
        for i in range(self.core.commands.size()):
            out.append((names[self.core.commands[i].kind], int.from_bytes(self.core.commands[i].obj.b[:28], "big"),
                        self.core.commands[i].a, self.core.commands[i].b))
        self.core.commands.clear()
        return out

    def known(self):
        out = set()
        for item in self.core.objects:
            out.add(int.from_bytes(item.second.id.b[:28], "big"))
        return out

    def unregistered(self):
        cdef size_t i
        return {int.from_bytes(self.core.unregistered[i].id.b[:28], "big") for i in range(self.core.unregistered.size())}

    # --- tasks, and lineage

    cdef TaskRec *record(self, number) except NULL:
        cdef TaskRec *t = <TaskRec *><size_t>self.tasks[number]
        return t

    def task(self, number, list deps, list nested, list returns, int retries):
        """A task with arguments, and refs inside of them; its returns are pending, and referenced once each."""
        cdef TaskRec *t = self.core.task_slab.make()
        cdef Id28 id
        cdef int i
        cdef list needs = deps + nested
        t.number = number
        t.args = blob_new(8)
        t.retries_left = retries
        t.ndeps, t.nnested, t.nret = len(deps), len(nested), len(returns)
        t.deps = <ObjEntry **>malloc((len(needs) + 1) * sizeof(ObjEntry *))
        for i in range(len(needs)):
            t.deps[i] = self.entry(needs[i])
            t.deps[i].holds += 1
        if t.nret > 1:
            t.rets = <ObjEntry **>calloc(t.nret, sizeof(ObjEntry *))
        for i in range(t.nret):
            id = self.make_id(returns[i])
            if t.nret > 1:
                t.rets[i] = refs_new(&self.core, &id, True)
            else:
                t.ret0 = refs_new(&self.core, &id, True)
            task_return(t, i).task = t
            task_return(t, i).local = 1
            refs_expose(&self.core, task_return(t, i))
        self.core.n_tasks += 1
        self.tasks[number] = <size_t>t

    def finish(self, number, list values):
        """The task is done; `values`: for each return its block (segment, offset), or None for an inline value.

        True for each return that took its value, in their order.
        """
        cdef TaskRec *t = self.record(number)
        cdef ObjEntry *e
        cdef int i
        took = []
        for i in range(t.nret):
            e = task_return(t, i)
            took.append(e != NULL and e.state < OBJ_INLINE)
            if not took[i]:
                continue
            if values[i] is None:
                e.blob = blob_new(4)
                e.state = OBJ_INLINE
            else:
                e.seg, e.off = values[i]
                e.state = OBJ_SHM
        refs_finish_shared(&self.core, t)
        return took

    def item(self, number, n, seg, off):
        """A generator that runs has yielded a value that is in shared memory; it is referenced once."""
        cdef Id28 id = self.make_id(n)
        cdef ObjEntry *e = refs_new(&self.core, &id, True)
        e.local = 1
        e.state = OBJ_SHM
        e.seg, e.off = seg, off
        refs_expose(&self.core, e)
        lineage_item(self.record(number), e)

    def fill_item(self, number, n, place):
        """A generator that runs again has yielded an item that is missing; how many still are."""
        cdef TaskRec *t = self.record(number)
        cdef ObjEntry *e = self.entry(n)
        cdef uint32_t missing
        if place is None:
            e.blob = blob_new(4)
            e.state = OBJ_INLINE
        else:
            e.seg, e.off = place
            e.state = OBJ_SHM
        lineage_made(t, e)
        missing = t.items.missing
        refs_check(&self.core, e)
        return missing

    def lose(self, n):
        """The object's value is lost: numbers of the tasks that have to run, and objects that cannot be had again."""
        cdef vector[TaskRec *] run
        cdef vector[ObjEntry *] hopeless
        cdef size_t i
        cdef ObjEntry *e = self.entry(n)
        refs_hold(e)
        refs_drop_value(&self.core, e)
        lineage_plan(&self.core, e, &run, &hopeless)
        numbers = [run[i].number for i in range(run.size())]
        given_up = [int.from_bytes(hopeless[i].id.b[:28], "big") for i in range(hopeless.size())]
        for i in range(hopeless.size()):
            if hopeless[i].state < OBJ_INLINE:
                hopeless[i].blob = blob_new(4)
                hopeless[i].state = OBJ_INLINE
        self.core.n_tasks += run.size()
        refs_unhold(&self.core, e)
        return numbers, given_up

    def kept(self):
        """Numbers and bytes of the tasks that are kept, oldest first."""
        cdef TaskRec *t = self.core.kept.head
        out = []
        while t != NULL:
            out.append((t.number, t.kept_bytes))
            t = t.next
        assert self.core.lineage_bytes == sum([size for _, size in out]) and self.core.kept.n == len(out)
        return out

    def limit(self, uint64_t size_bytes):
        """From now on no more than this is kept."""
        cdef vector[ObjEntry *] loose
        self.core.max_lineage_bytes = size_bytes
        lineage_evict(&self.core, &loose)
        settle_loose(&self.core, &loose)

    def has_value(self, n):
        return self.entry(n).state >= OBJ_INLINE

    def __len__(self):
        return self.core.n_entries
