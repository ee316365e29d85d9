"""The runtime of this process: the one Core, its lock, who leads the I/O, and waiting."""

from libc.stdint cimport int64_t, uint64_t
from ftray._core.types cimport Core

cdef enum:                      # what an epoll event says that it is of; other tags are channels (channel.pyx)
    TAG_LISTEN = 1
    TAG_NODE = 2
    TAG_EVENT = 3

ctypedef bint (*condition)(Core *c, void *arg) noexcept nogil

cdef Core *core() noexcept nogil
cdef bint session_alive(uint64_t session) noexcept nogil
cdef bint in_fork() noexcept nogil
cdef bint core_try(Core *c) noexcept nogil
cdef int core_make_room(Core *c) noexcept nogil
cdef void core_room_end(Core *c) noexcept nogil
cdef void core_enter(Core *c) noexcept nogil
cdef bint core_enter_in(Core *c, uint64_t session) noexcept nogil
cdef void core_leave(Core *c) noexcept nogil
cdef int wait_python(Core *c, condition done, void *arg, int64_t deadline_ns) except -2
cdef bint core_poll(Core *c) noexcept nogil
cdef void poll_now(Core *c) noexcept nogil
cdef void arm_bell(Core *c) noexcept nogil
cdef void wake_waiters(Core *c) noexcept nogil
cdef void adopt_thread(Core *c) noexcept nogil
cdef void *background(void *arg) noexcept nogil
