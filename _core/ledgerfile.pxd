"""The ledger as bytes, version 2: part of every exactly-once snapshot (docs/storage-format.md).

Little-endian, packed: DumpHead; callers by id: DumpCaller, `nattempts` x u32, `nranges` x (u32 low, u32 high) of expired numbers,
`nentries` x (DumpEntry, reply) by (n, retry); calls by key, by id: `nkeyed` x (DumpEntry, reply); expired calls by key, by id:
`nkeyed_expired` x (16s id, u64 digest); released callers of which copies may arrive: `nburied` x (16s root, 16s id), sorted;
u32 CRC-32 of all before. Version 1 is read too: there `nburied` and `DumpCaller.inside` are 0.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from ftray._core.ledgertypes cimport LedgerState

cdef enum:
    DUMP_VERSION = 2

cdef packed struct DumpHead:
    uint8_t magic[8]         # "ftledger"
    uint32_t version
    uint32_t ncallers
    uint64_t history
    uint32_t nkeyed
    uint32_t nkeyed_expired
    uint32_t ndroppable
    uint32_t nburied

cdef packed struct DumpCaller:
    uint8_t id[16]
    uint8_t root[16]
    uint8_t root_kind
    uint8_t inside           # 1: called in a method of an exactly-once actor
    uint16_t nattempts
    uint32_t acked
    uint32_t nranges
    uint32_t nentries

cdef packed struct DumpEntry:
    uint8_t call_id[16]
    uint64_t digest
    uint64_t position
    uint64_t reply_size
    uint32_t n
    uint32_t droppable       # place in the order in which replies go, from 1 to `ndroppable`; 0: it does not
    uint16_t retry
    uint8_t status
    uint8_t reserved

cdef struct DumpFault:
    const char *reason       # NULL: none
    size_t at

cdef bytes ledger_dump(LedgerState *l)
# Into an empty ledger; after a fault it is of no use.
cdef DumpFault ledger_load(LedgerState *l, const char *dump, size_t size) noexcept nogil
