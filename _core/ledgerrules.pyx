"""Which calls an exactly-once actor has accepted, and what it has answered.

Owns: per caller (the CallID of the task or method that calls, or a root) the calls by number and retry, each accepted or done with its
reply. Pure: no I/O, clock or chance; the journal is the gate's business. Leaves to others: what makes a reply durable, who runs what.

Rules
-----
* An identity is (caller, n, retry), or the CallID for a call that its caller named by a key. It runs once: a known one is attached to
  the run, answered from the record, or refused; what was ever accepted is not `NEW` again, unless `forget` said that it did not run.
* A refusal (`MISMATCH`, `STALE_ATTEMPT`, `ROLLED_BACK`, `CYCLE`) changes nothing, not even what is known of the caller.
* Attempts compare from the root down: an older attempt of any ancestor is stale. A call by key belongs to no caller and is never stale.
* A caller acknowledges by `acked`: it has the replies of its calls below. When nobody can make these calls again (the caller is itself
  the root, of a session or a process) they go at once, and "n < acked" is their identity. Otherwise a re-executed caller may ask
  again, so they only become droppable. A reply to a call by key is droppable from the beginning, because nobody acknowledges it.
* Beyond the bounds (bytes of replies, calls accepted or answered) droppable replies go, in the order in which they became droppable, never
  the one that has just come. What goes leaves its identity: the number (ranges of numbers, so that the calls of one caller cost
  8 bytes together when they go in order), or CallID and digest of a call by key (24 bytes; for ever). Asking for it says `EXPIRED`,
  for a numbered call whatever the arguments and the retry: its digest goes with its reply.
* Replies that are not droppable are never dropped: while they fill a bound, a caller that has calls without acknowledgement is
  `HELD_BACK`. One that has none is let in, so that no caller is stopped by another one's debts for ever: at most one call for
  each caller is beyond the bounds.
* An accepted call that waits for its turn is `stale` when a newer attempt of its caller has come since and has not asked for it.
* A known call from a newer attempt is answered from the record, and `newer` says that the attempt itself has to be recorded (`see`).
* `release` means that a caller can never run again *and that all its calls have been answered*: its replies go, those of calls under way
  when they end. Copies of its calls can be on the way only if it was executed more than once (an attempt in its heads is not 0): then its
  name stays (a tombstone) and says `EXPIRED`, until its root is over, and then for as long as this process lives, which is the
  only one that they can still reach.
* The end of a root spares callers inside of methods of exactly-once actors: those may run on, and are released one by one.
* A dump has no accepted calls: the process that ran them is gone when it is loaded, and their callers ask again.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy
from libcpp.vector cimport vector
from ftray._core.ledgertypes cimport ENTRY_ACCEPTED, ENTRY_DONE, Caller, CallerP, Entry, KeyedSlot, LedgerState
from ftray._core.records cimport HEAD_KEYED, ROOT_JOB, RUN_NUMBERS, CallHead
from ftray._core.types cimport Blob, Id16, blob_drop


# --- heads

cdef inline uint64_t order_of(const CallHead *h) noexcept nogil:
    return <uint64_t>h.n << 16 | h.retry


cdef bint in_chain(const char *head, const Id16 *key) noexcept nogil:
    cdef const CallHead *h = <const CallHead *>head
    cdef const char *chain = head + sizeof(CallHead) + 4 * <size_t>h.nattempts
    cdef size_t i
    for i in range(h.nchain):
        if memcmp(chain + 16 * i, key, 16) == 0:
            return True
    return False


cdef int compare_attempts(const char *head, Caller *c) noexcept nogil:
    """Are those of the head older (-1), the same (0) or newer (1) than the newest seen? The root's come first."""
    cdef const CallHead *h = <const CallHead *>head
    cdef uint32_t theirs
    cdef size_t i
    for i in range(h.nattempts):
        if i == c.attempts.size():
            return 1
        memcpy(&theirs, head + sizeof(CallHead) + 4 * i, 4)
        if theirs != c.attempts[i]:
            return 1 if theirs > c.attempts[i] else -1
    return -1 if h.nattempts < c.attempts.size() else 0


cdef void note_attempts(const char *head, Caller *c) noexcept nogil:
    cdef uint16_t count = (<const CallHead *>head).nattempts
    c.attempts.resize(count)
    if count:
        memcpy(c.attempts.data(), head + sizeof(CallHead), 4 * <size_t>count)


cdef Caller *enter_caller(LedgerState *l, const char *head) noexcept nogil:
    cdef const CallHead *h = <const CallHead *>head
    cdef Caller *c = l.caller_new(id_at(h.parent))
    c.root = id_at(h.root)
    c.root_kind = h.root_kind
    c.forgets = h.root_kind != ROOT_JOB and c.root == c.id
    c.inside = h.nchain != 0
    note_attempts(head, c)
    return c


cdef bint may_have_copies(Caller *c) noexcept nogil:
    """Has it, or one above it, been executed again? Then an earlier execution's messages may not have arrived yet. (A
    driver is run again when the one before has ended, with all that it ran.)"""
    cdef size_t i
    for i in range(RUN_NUMBERS if c.root_kind == ROOT_JOB else 0, c.attempts.size()):
        if c.attempts[i]:
            return True
    return False


# --- entries

cdef Entry *enter(LedgerState *l, Caller *c, const CallHead *h, uint64_t digest) noexcept nogil:
    cdef Entry *e = new Entry()
    e.caller = c
    e.call_id = id_at(h.call_id)
    e.digest = digest
    e.n = h.n
    e.retry = h.retry
    l.calls += 1
    l.accepted += 1
    if c == NULL:
        l.keyed_put(e.call_id, e)
        l.keyed_accepted += 1
    else:
        e.generation = c.generation
        c.row.insert(e)
        c.accepted += 1
        c.released = False
    return e


cdef void discard(LedgerState *l, Entry *e) noexcept nogil:
    """What the ledger as a whole counts and lists of an entry whose place is already empty; and the entry."""
    l.calls -= 1
    if e.droppable:
        l.droppable.remove(e)
    if e.reply != NULL:
        l.reply_bytes -= e.reply.size
    del e


cdef void remove(LedgerState *l, Entry *e) noexcept nogil:
    if e.caller == NULL:
        l.keyed_erase(e.call_id)
    else:
        e.caller.row.remove(e)
    discard(l, e)


cdef void expire(LedgerState *l, Entry *e) noexcept nogil:
    """Its reply goes, its identity stays."""
    if e.caller == NULL:
        l.keyed_expired.add(e.call_id, e.digest)
        l.expired += 1
    elif e.caller.expired.add(e.n):
        l.expired += 1
    remove(l, e)


cdef bint shrink(LedgerState *l, uint64_t calls, uint64_t bytes) noexcept nogil:
    """Expire until so many calls and bytes more are within the bounds; False: there is nothing more to expire."""
    while l.calls + calls > l.bound_calls or l.reply_bytes + bytes > l.bound_bytes:
        if l.droppable.front() == NULL:
            return False
        expire(l, l.droppable.front())
    return True


cdef void acknowledge(LedgerState *l, Caller *c, uint32_t acked) noexcept nogil:
    """It has the replies of all its calls below this number. Calls below it that are still under way stay (their caller gave up)."""
    cdef size_t i, end
    cdef Entry *e
    if acked <= c.acked:
        return
    i = c.row.rank(c.acked)
    c.acked = acked
    end = c.row.rank(acked)
    while i < end:
        e = c.row.at(i)
        if e.state == ENTRY_ACCEPTED:
            i += 1
        elif c.forgets:
            c.row.remove_at(i)
            discard(l, e)
            end -= 1
        else:
            l.droppable.append(e)
            i += 1


# --- decisions

cdef inline bint has_caller(LedgerState *l, const CallHead *h, Caller **c) noexcept nogil:
    """Has the call one, and what is known of it (NULL: nothing)? A call by key belongs to none."""
    if h.flags & HEAD_KEYED:
        return False
    c[0] = l.caller(id_at(h.parent))
    return True


cdef Entry *ledger_find(LedgerState *l, const char *head) noexcept nogil:
    cdef const CallHead *h = <const CallHead *>head
    cdef Caller *c
    if not has_caller(l, h, &c):
        return l.keyed_find(id_at(h.call_id))
    return c.row.find(order_of(h)) if c != NULL else NULL


cdef Admission ledger_admit(LedgerState *l, const char *head, uint64_t digest, bint mutating, Entry **found) noexcept nogil:
    cdef const CallHead *h = <const CallHead *>head
    cdef Caller *c
    cdef int age = 0
    cdef Admission outcome
    found[0] = NULL
    l.newer = False
    if h.history and h.history != l.history:
        l.refused += 1
        return ROLLED_BACK
    if mutating and h.nchain and in_chain(head, &l.key):
        l.refused += 1
        return CYCLE
    if not has_caller(l, h, &c):
        return admit_keyed(l, h, digest, found) if mutating else NEW
    if c != NULL:
        age = compare_attempts(head, c)
        if age < 0:
            l.refused += 1
            return STALE_ATTEMPT
        if mutating and contradicts(c.row.find(order_of(h)), h, digest):
            l.mismatches += 1
            return MISMATCH
        if age > 0:
            note_attempts(head, c)
            c.generation += 1
        acknowledge(l, c, h.acked)
    elif not mutating:
        return NEW
    elif l.buried(id_at(h.root), id_at(h.parent)):
        return EXPIRED
    else:
        c = enter_caller(l, head)
        acknowledge(l, c, h.acked)
    outcome = admit_numbered(l, c, h, digest, found) if mutating else NEW
    l.newer = age > 0 and (outcome != NEW or not mutating)
    return outcome


cdef bint ledger_stale(LedgerState *l, const char *head) noexcept nogil:
    cdef Entry *e = ledger_find(l, head)
    return e != NULL and e.caller != NULL and e.generation != e.caller.generation


cdef void ledger_see(LedgerState *l, const char *head) noexcept nogil:
    cdef Caller *c
    if not has_caller(l, <const CallHead *>head, &c):
        return
    if c == NULL:
        enter_caller(l, head)
    elif compare_attempts(head, c) > 0:
        note_attempts(head, c)
        c.generation += 1


cdef void ledger_acknowledge(LedgerState *l, const char *head) noexcept nogil:
    cdef const CallHead *h = <const CallHead *>head
    cdef Caller *c
    if has_caller(l, h, &c) and c != NULL and compare_attempts(head, c) == 0:
        acknowledge(l, c, h.acked)


cdef inline bint contradicts(Entry *e, const CallHead *h, uint64_t digest) noexcept nogil:
    return e != NULL and (e.digest != digest or memcmp(&e.call_id, h.call_id, 16) != 0)


cdef Admission admit_numbered(LedgerState *l, Caller *c, const CallHead *h, uint64_t digest, Entry **found) noexcept nogil:
    cdef Entry *e = c.row.find(order_of(h))
    if e != NULL:
        e.generation = c.generation
        return repeated(l, e, found)
    if c.released or (c.forgets and h.n < c.acked) or c.expired.contains(h.n):
        return EXPIRED
    if not shrink(l, 1, 0) and c.row.rank(c.acked) < c.row.size():
        l.held_back += 1
        return HELD_BACK
    found[0] = enter(l, c, h, digest)
    return NEW


cdef Admission admit_keyed(LedgerState *l, const CallHead *h, uint64_t digest, Entry **found) noexcept nogil:
    cdef Id16 id = id_at(h.call_id)
    cdef Entry *e = l.keyed_find(id)
    cdef const KeyedSlot *gone = l.keyed_expired.find(id)
    if contradicts(e, h, digest) or (gone != NULL and gone.digest != digest):
        l.mismatches += 1
        return MISMATCH
    if e != NULL:
        return repeated(l, e, found)
    if gone != NULL:
        return EXPIRED
    if not shrink(l, 1, 0) and l.keyed_accepted:
        l.held_back += 1
        return HELD_BACK
    found[0] = enter(l, NULL, h, digest)
    return NEW


cdef Admission repeated(LedgerState *l, Entry *e, Entry **found) noexcept nogil:
    l.duplicates += 1
    found[0] = e
    return RECORDED if e.state == ENTRY_DONE else IN_PROGRESS


cdef void ended(LedgerState *l, Entry *e) noexcept nogil:
    """It is not under way any more."""
    l.accepted -= 1
    if e.caller != NULL:
        e.caller.accepted -= 1
    else:
        l.keyed_accepted -= 1


cdef void ledger_settle(LedgerState *l, Entry *e, uint8_t status, Blob *reply, uint64_t position) noexcept nogil:
    cdef Caller *c = e.caller
    ended(l, e)
    e.state = ENTRY_DONE
    e.status = status
    e.position = position
    if c != NULL and (c.released or (c.forgets and e.n < c.acked)):
        blob_drop(reply)
        remove(l, e)
        if c.released and c.row.size() == 0:
            l.caller_erase(c)
        return
    shrink(l, 0, reply.size)
    e.reply = reply
    l.reply_bytes += reply.size
    if c == NULL or e.n < c.acked:
        l.droppable.append(e)


cdef void ledger_forget(LedgerState *l, Entry *e) noexcept nogil:
    cdef Caller *c = e.caller
    ended(l, e)
    remove(l, e)
    if c != NULL and c.released and c.row.size() == 0:
        l.caller_erase(c)


cdef void release(LedgerState *l, Caller *c) noexcept nogil:
    cdef size_t i = c.row.size()
    cdef Entry *e
    l.expired -= c.expired.total()
    c.expired.clear()
    if may_have_copies(c):
        l.bury(c.root, c.id)
    while i > 0:
        i -= 1
        e = c.row.at(i)
        if e.state == ENTRY_DONE:
            c.row.remove_at(i)
            discard(l, e)
    if c.accepted:
        c.released = True
    else:
        l.caller_erase(c)


cdef void ledger_release_caller(LedgerState *l, const Id16 *parent) noexcept nogil:
    cdef Caller *c = l.caller(parent[0])
    if c != NULL:
        release(l, c)


cdef void ledger_release_root(LedgerState *l, const Id16 *root) noexcept nogil:
    cdef vector[CallerP] gone
    cdef size_t i
    l.callers_of(root[0], &gone)
    for i in range(gone.size()):
        if not gone[i].inside:
            release(l, gone[i])
    l.root_over(root[0])


cdef bint ledger_replay(LedgerState *l, const char *head, uint64_t digest, uint8_t status, Blob *reply, uint64_t position) noexcept nogil:
    cdef const CallHead *h = <const CallHead *>head
    cdef Caller *c = NULL
    cdef Entry *e = ledger_find(l, head)
    if e != NULL and (e.state == ENTRY_DONE or reply == NULL or contradicts(e, h, digest)):
        return False
    if has_caller(l, h, &c):
        if c == NULL:
            c = enter_caller(l, head)
        elif compare_attempts(head, c) > 0:
            note_attempts(head, c)
        acknowledge(l, c, h.acked)
    if e == NULL:
        e = enter(l, c, h, digest)
    if reply != NULL:
        ledger_settle(l, e, status, reply, position)
        if c != NULL and l.buried(c.root, c.id):        # it was under way when its caller was released
            release(l, c)
    return True
