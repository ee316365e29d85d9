"""The task manager of a submitter: from a call that was made to its outcome. Needs the core lock."""

from libc.stdint cimport uint8_t, uint64_t
from ftray._core.channel cimport FrameHeader
from ftray._core.types cimport Channel, Core, TaskRec

cdef void task_submit(Core *c, TaskRec *t) noexcept nogil
cdef void tasks_run_ready(Core *c) noexcept nogil
cdef void tasks_on_reply(Core *c, Channel *ch, FrameHeader *h, char *body, uint64_t n) noexcept nogil
cdef void tasks_process_died(Core *c, Channel *ch, const char *report, uint64_t size) noexcept nogil
cdef void tasks_delayed(Core *c, uint64_t now_ns) noexcept nogil
cdef void tasks_fail_all(Core *c, uint8_t code) noexcept nogil
