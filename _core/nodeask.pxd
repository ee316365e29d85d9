"""Requests to ftrayd, for threads that hold the GIL."""

from libc.stdint cimport int64_t, uint16_t, uint64_t
from ftray._core.types cimport Core

cdef bytes node_ask(Core *c, uint16_t kind, const void *payload, uint64_t size, int64_t deadline_ns=*, uint16_t flags=*)
