"""The ledger of an exactly-once actor as an object of Python's."""

from ftray._core.ledgertypes cimport Entry, LedgerState

cdef class Ledger:
    cdef LedgerState *state
    cdef Entry *accepted_entry(self, bytes head) except NULL
