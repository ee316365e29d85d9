"""Answers that wait until what they tell of is durable."""

from libc.stdint cimport uint64_t
from ftray._core.types cimport Channel, Core

cdef void held_push(Core *c, Channel *ch, uint64_t position, bint gated, const char *frame, uint64_t size) noexcept nogil
cdef void held_release(Core *c, uint64_t position) noexcept nogil
cdef void held_journal_says(void *core, uint64_t position) noexcept nogil
cdef void held_limit(Core *c, uint64_t position, uint64_t ceiling) noexcept nogil
