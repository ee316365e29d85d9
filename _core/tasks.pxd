"""The task manager of a submitter: from a call that was made to the values of its returns. Needs the core lock."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from ftray._core.channel cimport FrameHeader
from ftray._core.types cimport ActorClient, Blob, Channel, Core, Id28, Lease, ObjEntry, SchedClass, TaskRec

cdef void task_submit(Core *c, TaskRec *t) noexcept nogil
cdef void task_push(Core *c, TaskRec *t, Channel *ch) noexcept nogil
cdef bint tasks_fail_dep(Core *c, TaskRec *t) noexcept nogil
cdef void class_pump(Core *c, SchedClass *k) noexcept nogil
cdef void tasks_run_ready(Core *c) noexcept nogil
cdef void tasks_on_reply(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil
cdef void task_fail(Core *c, TaskRec *t, uint8_t code, const char *payload, uint64_t size) noexcept nogil
cdef void tasks_process_died(Core *c, Channel *ch, const char *report, uint64_t size) noexcept nogil
cdef void task_cancel(Core *c, TaskRec *t, bint force, bint recursive) noexcept nogil
cdef void tasks_cancel_children(Core *c, uint64_t parent) noexcept nogil
cdef void lease_granted(Core *c, uint64_t class_key, uint64_t lease_id, Id28 *worker) noexcept nogil
cdef void leases_idle(Core *c, uint64_t now_ns) noexcept nogil
cdef void tasks_fail_all(Core *c, uint8_t code) noexcept nogil
cdef void entry_set_inline(Core *c, ObjEntry *e, Blob *b, bint is_error) noexcept nogil
cdef void entry_set_error(Core *c, ObjEntry *e, uint8_t code, const char *payload, uint64_t size) noexcept nogil
cdef void entry_set_shm(Core *c, ObjEntry *e, uint64_t seg, uint64_t off, uint64_t size) noexcept nogil
cdef void entry_add_waiter(ObjEntry *e, uint8_t kind, TaskRec *t, Channel *ch, uint64_t token) noexcept nogil
cdef char *read_value(Core *c, ObjEntry *e, char *p, char *end, const Id28 *sender, bint contained_granted) noexcept nogil
cdef uint64_t value_size(ObjEntry *e) noexcept nogil
cdef char *write_value(Core *c, ObjEntry *e, char *p) noexcept nogil

ctypedef void (*fetch_fn)(Core *c, ObjEntry *e) noexcept nogil
ctypedef void (*answer_fn)(Core *c, ObjEntry *e, Channel *ch, uint64_t token) noexcept nogil
ctypedef void (*actor_fn)(Core *c, ActorClient *a) noexcept nogil
ctypedef void (*wake_fn)(Core *c, ObjEntry *e, uint64_t token) noexcept nogil
cdef void tasks_set_hooks(fetch_fn fetch, answer_fn answer, actor_fn pump_actor, wake_fn wake) noexcept nogil
cdef void lease_reclaim(Core *c, uint64_t lease_id) noexcept nogil
cdef void class_fail(Core *c, uint64_t class_key, const char *text, uint32_t size) noexcept nogil
