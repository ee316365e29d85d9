"""Answers that wait until what they tell of is durable."""

from libc.stdint cimport uint8_t, uint64_t
from ftray._core.types cimport Channel, Core

cdef void held_push(Core *c, Channel *ch, uint64_t position, bint gated, const char *frame, uint64_t size) noexcept nogil
cdef void held_release(Core *c, uint64_t position) noexcept nogil
cdef void held_journal_says(void *core, uint64_t position) noexcept nogil
cdef void held_limit(Core *c, uint64_t position, uint64_t ceiling) noexcept nogil
# Have a caller say which replies it has, after all answers up to `position` have left. `seq`: of a call of its that waits.
cdef void held_ask(Core *c, Channel *ch, uint64_t seq, uint64_t position) noexcept nogil
cdef void held_caller(Core *c, uint64_t position, const uint8_t *call_id) noexcept nogil
