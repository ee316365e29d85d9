"""The ledger of an exactly-once actor: which calls were accepted, and what was answered. Pure; see ledgerrules.pyx for the rules.

No locking: its user calls it with the GIL, from one thread at a time.
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy
from ftray._core.ledgertypes cimport Entry, LedgerState
from ftray._core.types cimport Blob, Id16

cdef enum Admission:
    NEW = 1                  # entered as accepted: run it
    IN_PROGRESS = 2          # the same call is being run: attach to it
    RECORDED = 3             # it has run: here is the reply; it leaves when its position is durable
    MISMATCH = 4             # a known identity with another method or other arguments; nothing changed
    STALE_ATTEMPT = 5        # the caller has been executed again since
    EXPIRED = 6              # it has run, and its reply is gone
    ROLLED_BACK = 7          # the caller knows a history that was given up
    CYCLE = 8                # the chain of calls comes back to this actor
    HELD_BACK = 9            # too many replies that nobody has acknowledged; the caller asks again

cdef enum:
    DEFAULT_BOUND_BYTES = 64 << 20
    DEFAULT_BOUND_CALLS = 100_000

cdef inline Id16 id_at(const void *p) noexcept nogil:
    cdef Id16 id
    memcpy(&id, p, 16)
    return id

# Heads must have passed head_check. `found`: with RECORDED the entry that has the reply, with NEW and IN_PROGRESS the entry itself
# (none of a call that does not mutate). An entry is valid until the next change.
cdef Admission ledger_admit(LedgerState *l, const char *head, uint64_t digest, bint mutating, Entry **found) noexcept nogil
cdef Entry *ledger_find(LedgerState *l, const char *head) noexcept nogil
# A call that has come and is not admitted yet: what its head says of replies that its caller has.
cdef void ledger_acknowledge(LedgerState *l, const char *head) noexcept nogil
# The accepted call has this reply, which the ledger takes over; afterwards the entry may be gone.
cdef void ledger_settle(LedgerState *l, Entry *e, uint8_t status, Blob *reply, uint64_t position) noexcept nogil
# An accepted call did not run.
cdef void ledger_forget(LedgerState *l, Entry *e) noexcept nogil
# It was accepted for an attempt that a newer one, which did not ask for it, has replaced: it must not start.
cdef bint ledger_stale(LedgerState *l, const char *head) noexcept nogil
# A record of the journal: the attempt of this head has come.
cdef void ledger_see(LedgerState *l, const char *head) noexcept nogil
cdef void ledger_release_caller(LedgerState *l, const Id16 *parent) noexcept nogil
cdef void ledger_release_root(LedgerState *l, const Id16 *root) noexcept nogil
# A record of the journal: enters the call whatever its caller's attempt and however full the ledger is. NULL reply: it had only
# started. False: it contradicts what is there; nothing changed, the reply is still the caller's.
cdef bint ledger_replay(LedgerState *l, const char *head, uint64_t digest, uint8_t status, Blob *reply, uint64_t position) noexcept nogil
