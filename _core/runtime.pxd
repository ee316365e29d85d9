"""The runtime of this process: the one Core, its lock, who leads the I/O, and waiting."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from ftray._core.types cimport Core, Id28

ctypedef bint (*condition)(Core *c, void *arg) noexcept nogil

cdef Core *core() noexcept nogil
cdef bint session_alive(uint64_t session) noexcept nogil
cdef int check_usable() except -1
cdef bint core_try(Core *c) noexcept nogil
cdef void core_enter(Core *c) noexcept nogil
cdef void core_leave(Core *c) noexcept nogil
cdef int core_wait(Core *c, condition done, void *arg, int64_t deadline_ns, int64_t slice_ns) noexcept nogil
cdef int wait_python(Core *c, condition done, void *arg, int64_t deadline_ns) except -2
cdef bint core_poll(Core *c) noexcept nogil
cdef void wake_inbox(Core *c) noexcept nogil
cdef void wake_leader(Core *c) noexcept nogil
cdef void poll_now(Core *c) noexcept nogil
