"""Answers to what ftrayd asks this process about its tasks and objects. Needs the core lock, not the GIL."""

from libc.stdint cimport uint64_t
from ftray._core.types cimport Core

cdef void inspect_answer(Core *c, uint64_t req, const char *body, uint64_t size) noexcept nogil
