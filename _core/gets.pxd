"""Waiting for an entry, and the value behind a ref."""

from libc.stdint cimport int64_t

from ftray._core.objects cimport ObjectRef
from ftray._core.runtime cimport condition
from ftray._core.types cimport Core

cdef object value_of(ObjectRef r, int64_t deadline_ns)
cdef bytes value_bytes(ObjectRef r)
cdef void lend_cpus(Core *c) noexcept nogil
cdef void take_back_cpus(Core *c) noexcept nogil
cdef int wait_blocking(Core *c, condition done, void *arg, int64_t deadline_ns) except -1
cdef int64_t deadline_of(object timeout) except -2
