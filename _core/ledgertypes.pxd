"""What the ledger is made of (ledger.hpp)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.vector cimport vector
from ftray._core.types cimport Blob, Id16

cdef extern from "ledger.hpp" nogil:
    cdef enum EntryState:
        ENTRY_ACCEPTED
        ENTRY_DONE
    cppclass Caller
    cppclass Entry:
        Caller *caller
        Blob *reply
        uint64_t digest
        uint64_t position
        Id16 call_id
        uint32_t n
        uint16_t retry
        uint8_t state
        uint8_t status
        Entry *next
        uint32_t droppable
        uint32_t generation
        uint64_t order()
    cppclass EntryList:
        Entry *front()
        void append(Entry *)
        void remove(Entry *)
    cppclass EntryRow:
        size_t size()
        Entry *at(size_t)
        size_t rank(uint32_t)
        Entry *find(uint64_t)
        void insert(Entry *)
        void remove_at "remove"(size_t)
        void remove(Entry *)
    cppclass NumberRange "NumberSet::Range":
        uint32_t low
        uint32_t high
    cppclass NumberSet:
        size_t size()
        const NumberRange &at(size_t)
        void append(uint32_t, uint32_t)
        void clear()
        uint64_t total()
        cbool contains(uint32_t)
        cbool add(uint32_t)
    cppclass KeyedSlot "KeyedSet::Slot":
        Id16 id
        uint64_t digest
    cppclass KeyedSet:
        size_t size()
        const KeyedSlot *find(const Id16 &)
        void add(const Id16 &, uint64_t)
        void clear()
        void sorted(vector[KeyedSlot] *)
    cppclass Caller:
        Id16 id
        Id16 root
        uint8_t root_kind
        cbool forgets
        cbool released
        cbool inside
        uint32_t generation
        uint32_t acked
        uint32_t accepted
        vector[uint32_t] attempts
        EntryRow row
        NumberSet expired
    ctypedef Caller *CallerP "Caller *"
    ctypedef Entry *EntryP "Entry *"
    cppclass BuriedCaller "LedgerState::Buried":
        Id16 root
        Id16 id
    cppclass LedgerState:
        Id16 key
        uint64_t history
        uint64_t bound_bytes
        uint64_t bound_calls
        KeyedSet keyed_expired
        EntryList droppable
        uint64_t calls
        uint64_t reply_bytes
        uint64_t expired
        uint64_t accepted
        uint64_t keyed_accepted
        uint64_t duplicates
        uint64_t mismatches
        uint64_t refused
        uint64_t held_back
        uint64_t ntombs
        cbool newer
        Caller *caller(const Id16 &)
        Caller *caller_new(const Id16 &)
        void caller_erase(Caller *)
        size_t caller_count "callers.size"()
        size_t keyed_count "keyed.size"()
        cbool buried(const Id16 &, const Id16 &)
        void bury(const Id16 &, const Id16 &)
        void root_over(const Id16 &)
        void buried_sorted(vector[BuriedCaller] *)
        Entry *keyed_find(const Id16 &)
        void keyed_put "keyed.emplace"(const Id16 &, Entry *)
        void keyed_erase "keyed.erase"(const Id16 &)
        void callers_of(const Id16 &, vector[CallerP] *)
        void callers_sorted(vector[CallerP] *)
        void keyed_sorted(vector[EntryP] *)
        void clear()
