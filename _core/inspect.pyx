"""What this process knows of its own tasks and objects, for people who ask (`ftray.util.state`).

ftrayd asks with INSPECT, whoever leads the I/O answers with INSPECTED: no Python runs, so a process answers whatever its
interpreter is busy with. A task that waits or runs for long may have its records overwritten in the history; here its
owner has it still.

Owns: the layouts of the answer. INSPECT: u8 what (1 tasks, 2 objects), u32 limit. INSPECTED: u8 what, and a blob (u32 size
first): u64 how many there are, u32 how many of them follow, then for tasks units as in events.hpp,
for objects ObjectRow, and after these the call sites that rows name by index + 1: u32 count, then u16 length and bytes each.
"""

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from libcpp.string cimport string
from libcpp.unordered_map cimport unordered_map
from libcpp.vector cimport vector

from ftray._core.events cimport EV_ARGS, EV_PUSHED, EV_QUEUED, EV_RUNNING, EventUnit, event_describe
from ftray._core.nodelink cimport N_INSPECTED, node_put
from ftray._core.types cimport (OBJ_ACTOR, OBJ_OWNED, OBJ_SHM, OBJ_SPILLED, OBJ_INLINE, TASK_PUSHED, TASK_QUIET, TASK_WAITS_DEPS, Core, ObjEntry, ObjEntryP, TaskList, TaskRec)

cdef enum:
    WHAT_TASKS = 1
    WHAT_OBJECTS = 2

cdef packed struct ObjectRow:
    uint8_t id[28]
    uint8_t state            # ObjState
    uint8_t flags            # ObjFlag
    uint8_t task_state       # TaskState of what makes it, 0 when that has ended
    uint8_t lost
    uint32_t local           # refs and views of this process
    uint32_t tasks           # tasks in flight that use it
    uint32_t contained       # values that contain it
    uint32_t borrowers       # other processes that hold it
    uint32_t attempt
    uint32_t site            # index + 1 of the call site, 0 when not known
    uint64_t size            # bytes, 0 while it is not there

cdef cppclass Answer:
    string rows
    uint64_t total
    uint32_t shown
    uint32_t limit


cdef void add_task(Core *c, Answer *a, TaskRec *t) noexcept nogil:
    cdef EventUnit u
    if t.flags & TASK_QUIET:
        return
    a.total += 1
    if a.shown >= a.limit:
        return
    a.shown += 1
    if t.state == TASK_PUSHED and t.ch != NULL:
        event_describe(c, &u, t, EV_PUSHED, t.attempt, t.ch.worker.b)
    else:
        event_describe(c, &u, t, EV_ARGS if t.state == TASK_WAITS_DEPS else EV_QUEUED, t.attempt, NULL)
    a.rows.append(<const char *>&u, sizeof(EventUnit))


cdef void add_list(Core *c, Answer *a, TaskList *l) noexcept nogil:
    cdef TaskRec *t = l.head
    while t != NULL:
        add_task(c, a, t)
        t = t.next


cdef void add_running(Core *c, Answer *a) noexcept nogil:
    """What runs here beside the main thread (the ring's header has what that is in)."""
    cdef EventUnit u
    for item in c.running_calls:
        memset(&u, 0, sizeof(EventUnit))
        u.kind = EV_RUNNING
        u.task = item.first
        u.attempt = item.second.attempt
        u.started = item.second.since
        a.rows.append(<const char *>&u, sizeof(EventUnit))


cdef void tasks_of(Core *c, Answer *a) noexcept nogil:
    cdef size_t i, j
    add_running(c, a)
    for i in range(c.channels.size()):
        if c.channels[i] == NULL:
            continue
        for j in range(c.channels[i].inflight.size()):
            if c.channels[i].inflight[j] != NULL:
                add_task(c, a, c.channels[i].inflight[j])
    add_list(c, a, &c.waiting)
    for item in c.classes:
        add_list(c, a, &item.second.queue)
    for entry in c.actors:
        add_list(c, a, &entry.second.limbo)
        add_list(c, a, &entry.second.queue)


cdef void count_contained(vector[ObjEntry *] *entries, unordered_map[ObjEntryP, uint32_t] *counts) noexcept nogil:
    cdef size_t i, k
    cdef ObjEntry *e
    for i in range(entries.size()):
        e = entries[0][i]
        if not e.live or e.ext == NULL:
            continue
        for k in range(e.ext.contained.size()):
            counts[0][e.ext.contained[k]] += 1


cdef void add_object(Core *c, Answer *a, ObjEntry *e, uint32_t contained) noexcept nogil:
    cdef ObjectRow r
    cdef uint32_t borrowers = 0
    a.total += 1
    if a.shown >= a.limit:
        return
    a.shown += 1
    memset(&r, 0, sizeof(ObjectRow))
    if e.ext != NULL:
        for item in e.ext.borrowers:
            borrowers += 1 if item.second > 0 else 0
    memcpy(r.id, e.id.b, 28)
    r.state = e.state
    r.flags = e.flags
    r.lost = e.lost
    r.local = <uint32_t>max(e.local - e.drops, <int32_t>0)
    r.contained = contained
    r.borrowers = borrowers
    r.tasks = <uint32_t>max(e.holds - <int32_t>(contained + borrowers), <int32_t>0)
    if e.task != NULL:
        r.task_state = e.task.state
        r.attempt = e.task.attempt
    if e.state == OBJ_SHM or e.state == OBJ_SPILLED:
        r.size = e.size
    elif e.state == OBJ_INLINE and e.blob != NULL:
        r.size = e.blob.size
    if c.record_sites and c.sites.count(e):
        r.site = c.sites[e] + 1
    a.rows.append(<const char *>&r, sizeof(ObjectRow))


cdef void objects_of(Core *c, Answer *a) noexcept nogil:
    cdef vector[ObjEntry *] entries
    cdef unordered_map[ObjEntryP, uint32_t] counts
    cdef size_t i
    cdef ObjEntry *e
    c.entry_slab.collect(&entries)
    count_contained(&entries, &counts)
    for i in range(entries.size()):
        e = entries[i]
        if e.live and e.flags & OBJ_OWNED:
            add_object(c, a, e, counts[e] if counts.count(e) else 0)


cdef void add_sites(Core *c, string *out) noexcept nogil:
    cdef uint32_t n = <uint32_t>c.site_names.size()
    cdef uint16_t size
    cdef size_t i
    out.append(<const char *>&n, 4)
    for i in range(n):
        size = <uint16_t>c.site_names[i].size()
        out.append(<const char *>&size, 2)
        out.append(c.site_names[i].data(), size)


cdef void inspect_answer(Core *c, uint64_t req, const char *body, uint64_t size) noexcept nogil:
    cdef Answer a
    cdef string out
    cdef uint8_t what
    cdef uint32_t length = 0
    if size < 5:
        return
    what = <uint8_t>body[0]
    memcpy(&a.limit, body + 1, 4)
    a.total = 0
    a.shown = 0
    if what == WHAT_TASKS:
        tasks_of(c, &a)
    elif what == WHAT_OBJECTS:
        objects_of(c, &a)
    out.append(<const char *>&what, 1)
    out.append(<const char *>&length, 4)
    out.append(<const char *>&a.total, 8)
    out.append(<const char *>&a.shown, 4)
    out.append(a.rows)
    if what == WHAT_OBJECTS:
        add_sites(c, &out)
    length = <uint32_t>out.size() - 5
    memcpy(<char *>out.data() + 1, &length, 4)
    node_put(c, N_INSPECTED, req, out.data(), out.size())
