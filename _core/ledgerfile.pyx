"""Writes a ledger as bytes and reads it back (layout: ledgerfile.pxd).

Owns: the format. Pure. Reading is strict: beside the checksum every size, order and count must be what writing makes, so that a
ledger that was read is one that rules can have led to. Calls under way are not written (ledgerrules.pyx says why).
"""

from libc.stdint cimport uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset
from libcpp.vector cimport vector
from ftray._core.buf cimport Buf, buf_free, buf_init, buf_put
from ftray._core.ledgertypes cimport ENTRY_DONE, BuriedCaller, Caller, CallerP, Entry, EntryP, KeyedSlot, LedgerState, NumberRange
from ftray._core.records cimport ROOT_JOB, ROOT_PROCESS
from ftray._core.types cimport Blob, Id16, blob_value

cdef extern from "crc32.hpp" nogil:
    uint32_t crc32_of(const char *p, size_t size) noexcept

cdef enum:
    CRC_SIZE = 4

ctypedef const char *Text


# --- writing

cdef int put_entry(Buf *out, Entry *e) noexcept nogil:
    cdef DumpEntry d
    memset(&d, 0, sizeof(d))
    memcpy(d.call_id, e.call_id.b, 16)
    d.digest, d.position, d.reply_size = e.digest, e.position, e.reply.size
    d.n, d.droppable, d.retry, d.status = e.n, e.droppable, e.retry, e.status
    return buf_put(out, &d, sizeof(d)) | buf_put(out, e.reply.data, e.reply.size)


cdef int put_caller(Buf *out, Caller *c) noexcept nogil:
    cdef DumpCaller d
    cdef size_t i
    cdef int failed
    memset(&d, 0, sizeof(d))
    memcpy(d.id, c.id.b, 16)
    memcpy(d.root, c.root.b, 16)
    d.root_kind, d.inside, d.nattempts, d.acked = c.root_kind, c.inside, <uint16_t>c.attempts.size(), c.acked
    d.nranges, d.nentries = <uint32_t>c.expired.size(), <uint32_t>(c.row.size() - c.accepted)
    failed = buf_put(out, &d, sizeof(d)) | buf_put(out, c.attempts.data(), 4 * c.attempts.size())
    for i in range(c.expired.size()):
        failed |= buf_put(out, &c.expired.at(i), sizeof(NumberRange))
    for i in range(c.row.size()):
        if c.row.at(i).state == ENTRY_DONE:
            failed |= put_entry(out, c.row.at(i))
    return failed


cdef uint32_t number_droppable(LedgerState *l) noexcept nogil:
    cdef uint32_t count = 0
    cdef Entry *e = l.droppable.front()
    while e != NULL:
        count += 1
        e.droppable = count
        e = e.next
    return count


cdef int put_keyed(Buf *out, LedgerState *l, DumpHead *h) noexcept nogil:
    cdef vector[EntryP] entries
    cdef vector[KeyedSlot] gone
    cdef size_t i
    cdef int failed = 0
    l.keyed_sorted(&entries)
    for i in range(entries.size()):
        if entries[i].state == ENTRY_DONE:
            h.nkeyed += 1
            failed |= put_entry(out, entries[i])
    l.keyed_expired.sorted(&gone)
    h.nkeyed_expired = <uint32_t>gone.size()
    for i in range(gone.size()):
        failed |= buf_put(out, &gone[i], sizeof(KeyedSlot))
    return failed


cdef int put_ledger(Buf *out, LedgerState *l) noexcept nogil:
    cdef DumpHead h
    cdef vector[CallerP] callers
    cdef vector[BuriedCaller] buried
    cdef size_t i
    cdef uint32_t crc
    cdef int failed
    memset(&h, 0, sizeof(h))
    memcpy(h.magic, MAGIC, 8)
    h.version, h.history, h.ndroppable = DUMP_VERSION, l.history, number_droppable(l)
    failed = buf_put(out, &h, sizeof(h))
    l.callers_sorted(&callers)
    for i in range(callers.size()):
        if not callers[i].released:         # has only calls under way
            h.ncallers += 1
            failed |= put_caller(out, callers[i])
    failed |= put_keyed(out, l, &h)
    l.buried_sorted(&buried)
    h.nburied = <uint32_t>buried.size()
    for i in range(buried.size()):
        failed |= buf_put(out, &buried[i], sizeof(BuriedCaller))
    if failed:
        return -1
    memcpy(out.data, &h, sizeof(h))
    crc = crc32_of(out.data, out.len)
    return buf_put(out, &crc, CRC_SIZE)


cdef bytes ledger_dump(LedgerState *l):
    cdef Buf out
    buf_init(&out)
    try:
        if put_ledger(&out, l) < 0:
            raise MemoryError(f"no memory for {l.reply_bytes} bytes of replies in a snapshot")
        return out.data[:out.len]
    finally:
        buf_free(&out)


# --- reading

cdef struct Source:
    const char *start
    const char *at
    size_t left
    Text wrong              # NULL while all is well


cdef bint take(Source *s, void *to, size_t size) noexcept nogil:
    if size > s.left:
        s.wrong = CUT
        return False
    if size:                # `to` may be NULL when there is nothing to take
        memcpy(to, s.at, size)
    s.at += size
    s.left -= size
    return True


cdef bint refuse(Source *s, Text why) noexcept nogil:
    s.wrong = why
    return False


cdef bint read_entry(Source *s, LedgerState *l, Caller *c, vector[EntryP] *order) noexcept nogil:
    """One done call, into its caller's row or among those by key."""
    cdef DumpEntry d
    cdef Entry *e
    cdef Blob *reply
    if not take(s, &d, sizeof(d)):
        return False
    if d.reserved or (d.droppable != 0) != (c == NULL or d.n < c.acked) or (c == NULL) != (d.n == 0):
        return refuse(s, BAD_ENTRY)
    if d.droppable > order.size() or (d.droppable and order[0][d.droppable - 1] != NULL):
        return refuse(s, BAD_ORDER)
    if d.reply_size > s.left:
        return refuse(s, CUT)
    reply = blob_value(s.at, d.reply_size)
    if reply == NULL:
        return refuse(s, NO_MEMORY)
    s.at += d.reply_size
    s.left -= d.reply_size
    e = new Entry()
    memcpy(&e.call_id, d.call_id, 16)
    e.caller, e.reply, e.digest, e.position = c, reply, d.digest, d.position
    e.n, e.retry, e.status, e.state = d.n, d.retry, d.status, ENTRY_DONE
    if c == NULL:
        l.keyed_put(e.call_id, e)
    else:
        c.row.insert(e)
    if d.droppable:
        order[0][d.droppable - 1] = e
    l.calls += 1
    l.reply_bytes += d.reply_size
    return True


cdef bint read_ranges(Source *s, Caller *c, uint32_t count) noexcept nogil:
    cdef NumberRange r
    cdef uint64_t least = 1         # ranges that touch would be one
    cdef uint32_t i
    for i in range(count):
        if not take(s, &r, sizeof(r)):
            return False
        if r.low < least or r.high < r.low:
            return refuse(s, BAD_RANGE)
        least = <uint64_t>r.high + 2
        c.expired.append(r.low, r.high)
    return True


cdef bint read_caller(Source *s, LedgerState *l, Id16 *before, vector[EntryP] *order) noexcept nogil:
    cdef DumpCaller d
    cdef Caller *c
    cdef Id16 id
    cdef uint64_t last = 0
    cdef uint32_t i
    if not take(s, &d, sizeof(d)):
        return False
    if d.root_kind > ROOT_PROCESS or d.inside > 1 or memcmp(d.id, before.b, 16) <= 0:
        return refuse(s, BAD_CALLER)
    memcpy(&id, d.id, 16)
    before[0] = id
    c = l.caller_new(id)
    memcpy(&c.root, d.root, 16)
    c.root_kind, c.acked, c.inside = d.root_kind, d.acked, d.inside
    c.forgets = d.root_kind != ROOT_JOB and c.root == c.id
    if 4 * <size_t>d.nattempts > s.left:
        return refuse(s, CUT)
    c.attempts.resize(d.nattempts)
    take(s, c.attempts.data(), 4 * <size_t>d.nattempts)
    if not read_ranges(s, c, d.nranges):
        return False
    l.expired += c.expired.total()
    for i in range(d.nentries):
        if not read_entry(s, l, c, order):
            return False
        if c.row.at(c.row.size() - 1).order() <= last or c.row.size() != i + 1 or (c.forgets and c.row.at(0).n < c.acked):
            return refuse(s, BAD_ENTRY)
        last = c.row.at(c.row.size() - 1).order()
    return True


cdef bint read_keyed(Source *s, LedgerState *l, DumpHead *h, vector[EntryP] *order) noexcept nogil:
    cdef KeyedSlot gone
    cdef Id16 before
    cdef uint32_t i
    memset(&before, 0, 16)
    for i in range(h.nkeyed):
        if s.left < 16 or memcmp(s.at, before.b, 16) <= 0:
            return refuse(s, BAD_ENTRY)
        memcpy(&before, s.at, 16)
        if not read_entry(s, l, NULL, order):
            return False
    memset(&before, 0, 16)
    for i in range(h.nkeyed_expired):
        if not take(s, &gone, sizeof(gone)):
            return False
        if memcmp(gone.id.b, before.b, 16) <= 0 or l.keyed_find(gone.id) != NULL:
            return refuse(s, BAD_ENTRY)
        before = gone.id
        l.keyed_expired.add(gone.id, gone.digest)
    l.expired += h.nkeyed_expired
    return True


cdef bint read_buried(Source *s, LedgerState *l, uint32_t count) noexcept nogil:
    cdef BuriedCaller b, before
    cdef uint32_t i
    memset(&before, 0, sizeof(before))
    for i in range(count):
        if not take(s, &b, sizeof(b)):
            return False
        if memcmp(&b, &before, sizeof(b)) <= 0:
            return refuse(s, BAD_BURIED)
        before = b
        l.bury(b.root, b.id)
    return True


cdef bint read_head(Source *s, DumpHead *h) noexcept nogil:
    """And the checksum, which ends the bytes."""
    cdef uint32_t crc
    if s.left < sizeof(DumpHead) + CRC_SIZE:
        return refuse(s, CUT)
    if memcmp(s.at, MAGIC, 8) != 0:
        return refuse(s, NO_LEDGER)
    memcpy(h, s.at, sizeof(DumpHead))
    if h.version == 0 or h.version > DUMP_VERSION:
        return refuse(s, UNKNOWN_VERSION)
    s.left -= CRC_SIZE
    memcpy(&crc, s.at + s.left, CRC_SIZE)
    if crc32_of(s.at, s.left) != crc:
        return refuse(s, BAD_CRC)
    if (h.version == 1 and h.nburied) or h.ndroppable > s.left // sizeof(DumpEntry):
        return refuse(s, BAD_HEAD)
    return take(s, h, sizeof(DumpHead))


cdef bint read_ledger(Source *s, LedgerState *l) noexcept nogil:
    cdef DumpHead h
    cdef Id16 before
    cdef vector[EntryP] order
    cdef size_t i
    if not read_head(s, &h):
        return False
    l.history = h.history
    order.resize(h.ndroppable)
    memset(&before, 0, 16)
    for i in range(h.ncallers):
        if not read_caller(s, l, &before, &order):
            return False
    if not read_keyed(s, l, &h, &order) or not read_buried(s, l, h.nburied):
        return False
    if s.left:
        return refuse(s, TOO_LONG)
    for i in range(order.size()):
        if order[i] == NULL:
            return refuse(s, BAD_ORDER)
        l.droppable.append(order[i])
    return True


cdef DumpFault ledger_load(LedgerState *l, const char *dump, size_t size) noexcept nogil:
    cdef Source s
    cdef DumpFault f
    s.start = s.at = dump
    s.left = size
    s.wrong = NULL
    read_ledger(&s, l)
    f.reason = s.wrong
    f.at = s.at - s.start
    return f


cdef Text MAGIC = b"ftledger"
cdef Text CUT = b"it is cut"
cdef Text TOO_LONG = b"there are bytes after its end"
cdef Text NO_LEDGER = b"it is no ledger"
cdef Text UNKNOWN_VERSION = b"this version of ftray knows ledgers up to version 2; a later one wrote it"
cdef Text BAD_CRC = b"its checksum does not match: it was damaged"
cdef Text BAD_HEAD = b"its counts cannot be"
cdef Text BAD_CALLER = b"a caller is out of order or of an unknown kind"
cdef Text BAD_RANGE = b"expired numbers are out of order"
cdef Text BAD_ENTRY = b"a call is out of order or contradicts its caller"
cdef Text BAD_BURIED = b"a released caller is out of order"
cdef Text BAD_ORDER = b"the order of droppable replies has a gap or a double"
cdef Text NO_MEMORY = b"there is no memory for its replies"
