"""What becomes of an item, of the end, and of a consumer who leaves (see streams.pxd).

Owns: the numbers of a stream (`StreamState`). Invariants: items are taken in order, each once, whatever attempts yield
them (`next` <= `received` <= `end`); `received` never goes back, except by `stream_renew`, while nobody has seen an item;
after the end nothing is taken; a stream with retries that ends with fewer items than were delivered ends with an error.

Back-pressure. The producer pauses when `window` items more than it has been told of are produced, so the owner knows that
it pauses: it has sent that many (`seen`). Then it is told at once what was consumed meanwhile; and otherwise once for half
a window, so that a consumer who keeps up does not let it pause at all.

Leaves to others: the items themselves (intake.pyx), and whether a task runs again (rules.pyx).
"""

from libc.stdint cimport uint32_t, uint64_t

from ftray._core.types cimport NO_END, StreamState


cdef void stream_begin(StreamState *s, uint32_t attempt) noexcept nogil:
    """The task goes to a process, for the first time or again: what is consumed goes with it."""
    s.attempt = attempt
    s.seen = 0
    s.told = s.next


cdef void stream_renew(StreamState *s) noexcept nogil:
    """Forget what came: nobody has seen it, and another attempt yields it anew."""
    s.received = 0
    s.seen = 0


cdef ItemVerdict stream_item(StreamState *s, uint64_t index, uint32_t attempt) noexcept nogil:
    """An item has come."""
    if s.end != NO_END or attempt != s.attempt:
        return ITEM_STALE
    if index < s.seen:
        return ITEM_REPEAT
    if index > s.seen:
        return ITEM_GAP
    s.seen += 1
    if index < s.received:
        return ITEM_REPEAT
    s.received += 1
    if s.dropped:
        s.next = s.received
        return ITEM_UNWANTED
    return ITEM_TAKE


cdef bint stream_take(StreamState *s) noexcept nogil:
    """The consumer takes the next item; False when there is none now."""
    if s.next == s.received:
        return False
    s.next += 1
    return True


cdef bint stream_word_due(StreamState *s, uint64_t *consumed) noexcept nogil:
    """Shall the producer be told of the consumption now? Takes note that it is."""
    if s.window == 0 or s.next <= s.told or s.end != NO_END or s.stopped:
        return False
    if not stream_paused(s.window, s.seen, s.told) and s.next - s.told < (s.window + 1) // 2:
        return False
    s.told = s.next
    consumed[0] = s.told
    return True


cdef EndVerdict stream_end(StreamState *s, bint failed) noexcept nogil:
    """The task has ended for good; with an error the caller adds it as the last item."""
    cdef bint short = s.seen < s.received
    if s.end != NO_END:
        return END_AGAIN
    if not s.dropped and (failed or short):
        s.received += 1
        s.end = s.received
        return END_ERROR if failed else END_SHORT
    s.end = s.received
    return END_CLEAN


cdef void stream_drop(StreamState *s, bint watched) noexcept nogil:
    """The consumer leaves. `watched`: somebody still wants to know how the task ends, so it goes on."""
    s.dropped = 1
    s.next = s.received
    if not watched:
        s.stopped = 1


cdef class StreamRules:
    """The numbers of one stream, for tests."""

    cdef StreamState s

    def __init__(self, uint64_t window=0):
        self.s.window = window

    def begin(self, uint32_t attempt):
        stream_begin(&self.s, attempt)

    def renew(self):
        stream_renew(&self.s)

    def item(self, uint64_t index, uint32_t attempt):
        return {ITEM_TAKE: "take", ITEM_REPEAT: "repeat", ITEM_UNWANTED: "unwanted", ITEM_STALE: "stale",
                ITEM_GAP: "gap"}[stream_item(&self.s, index, attempt)]

    def take(self):
        return stream_take(&self.s)

    def word(self):
        """What the producer is told now, None when nothing is due."""
        cdef uint64_t consumed = 0
        return consumed if stream_word_due(&self.s, &consumed) else None

    def end(self, bint failed):
        return {END_CLEAN: "clean", END_ERROR: "error", END_SHORT: "short", END_AGAIN: "again"}[stream_end(&self.s, failed)]

    def drop(self, bint watched):
        stream_drop(&self.s, watched)

    def ready(self):
        return stream_ready(&self.s)

    def over(self):
        return self.s.end != NO_END and self.s.next == self.s.end

    @property
    def next(self):
        return self.s.next

    @property
    def received(self):
        return self.s.received

    @property
    def stopped(self):
        return bool(self.s.stopped)


def paused(uint64_t window, uint64_t produced, uint64_t consumed):
    """Does a producer pause?"""
    return stream_paused(window, produced, consumed)
