"""Starting and stopping the runtime of this process."""

from ftray._core.types cimport Core

cdef int runtime_open(Core *c) except -1
cdef int runtime_start(Core *c) except -1
cdef void runtime_stop(Core *c) noexcept nogil
cdef void runtime_close(Core *c) noexcept nogil
