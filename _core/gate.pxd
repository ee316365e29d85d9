"""The gate of an exactly-once actor: what an engine calls around each call that changes the state. See gate.pyx.

All of it needs the GIL, one thread at a time.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from ftray._core.buf cimport Buf
from ftray._core.journal cimport LocalJournal
from ftray._core.ledger cimport Ledger
from ftray._core.records cimport CallView
from ftray._core.types cimport Blob

# Appends a record and returns its position. Raises when the journal is fenced or its medium has failed.
ctypedef uint64_t (*AppendFunction)(object journal, const char *payload, size_t size) except 0

cdef class NullJournal:
    cdef readonly uint64_t last_position, waiting_bytes

cdef class Gate:
    cdef readonly Ledger ledger
    cdef readonly object journal
    cdef readonly uint64_t code_version
    cdef readonly size_t blob_bytes
    cdef LocalJournal local             # None when the journal is another one
    cdef readonly uint64_t most_waiting, blobs_waiting
    cdef AppendFunction append_c        # NULL: by the journal's Python method
    cdef object append_python
    cdef object put_blob
    cdef dict blobs                     # of arguments in START records, by CallID: the CALL record names the same
    cdef Buf scratch
    # What the last `admit_c` found, beside the outcome that it returned. The reply is lent: blob_hold it before the next call of the gate.
    cdef uint8_t verdict_status
    cdef uint64_t verdict_position
    cdef Blob *verdict_reply
    # The reply of a call that is recorded and not settled yet, and its position.
    cdef Blob *unsettled
    cdef uint64_t unsettled_position

    cdef int admit_c(self, const CallView *c, bint mutating) except -1                 # an Admission of ledger.pxd
    cdef int admit_newer(self, const CallView *c, int outcome) except -1
    cdef bint full_c(self) except -1                                                   # see `full`
    cdef bint stale_c(self, const char *head) noexcept nogil                           # an accepted call that must not start any more
    cdef int forget_c(self, const char *head, size_t head_size) except -1
    cdef uint64_t start_c(self, const CallView *c) except 0                            # position
    # It has run: the record is appended. Nothing may be asked of the gate before `settle_c` has entered it as answered.
    cdef uint64_t record_c(self, const CallView *c, uint8_t status, const char *reply, size_t reply_size) except 0
    cdef int settle_c(self, const char *head, size_t head_size, uint8_t status) except -1
    cdef uint64_t finish_c(self, const CallView *c, uint8_t status, const char *reply, size_t reply_size) except 0      # both
    cdef uint64_t log(self, uint8_t kind, const CallView *c, uint64_t digest, uint8_t status, const char *reply, size_t reply_size) except 0
    cdef uint64_t log_large(self, uint8_t kind, const CallView *c, uint64_t digest, uint8_t status, bytes reply) except 0
    cdef uint64_t append(self, const char *payload, size_t size) except 0
