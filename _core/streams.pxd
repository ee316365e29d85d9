"""Rules about what a generator task yields, at the owner: pure functions of a stream's numbers, without I/O.

Items are numbered from 0. An attempt yields them in order; a later attempt begins at 0 again, and what came before is not
taken twice.
"""

from libc.stdint cimport uint32_t, uint64_t
from ftray._core.types cimport StreamState

cdef enum ItemVerdict:
    ITEM_TAKE = 1        # for the consumer
    ITEM_REPEAT = 2      # an earlier attempt has delivered it
    ITEM_UNWANTED = 3    # the consumer is gone
    ITEM_STALE = 4       # of an attempt that does not run any more, or after the end
    ITEM_GAP = 5         # not the one that comes next: the stream lost one

cdef enum EndVerdict:
    END_CLEAN = 1
    END_ERROR = 2        # the error becomes one more item, the last
    END_SHORT = 3        # fewer items than before: that is an error, too
    END_AGAIN = 4        # it has ended before

cdef enum:
    STREAM_STOP = 0xffffffffffffffffu    # in place of a number of consumed items: nobody wants more

cdef void stream_begin(StreamState *s, uint32_t attempt) noexcept nogil
cdef void stream_renew(StreamState *s) noexcept nogil
cdef ItemVerdict stream_item(StreamState *s, uint64_t index, uint32_t attempt) noexcept nogil
cdef bint stream_take(StreamState *s) noexcept nogil
cdef bint stream_word_due(StreamState *s, uint64_t *consumed) noexcept nogil
cdef EndVerdict stream_end(StreamState *s, bint failed) noexcept nogil
cdef void stream_drop(StreamState *s, bint watched) noexcept nogil

cdef inline bint stream_ready(StreamState *s) noexcept nogil:
    """May the consumer go on without waiting: is there an item, or the end?"""
    return s.next < s.received or s.next == s.end

cdef inline bint stream_paused(uint64_t window, uint64_t produced, uint64_t consumed) noexcept nogil:
    """At the producer: has it yielded as many items as may be unconsumed?"""
    return window != 0 and produced >= consumed + window
