"""Bytes that describe exactly-once calls: the head that travels with a call, and the records of the journal.

Little-endian, packed. The same on every engine, and for ever: journals hold them (docs/storage-format.md).

CALL HEAD: CallHead, `nattempts` x u32 (attempts of the ancestors from the root down, the caller's own last; the root itself has
none, a ROOT_JOB two numbers that grow with each run), `nchain` x 16s
(callee keys of the exactly-once actors whose methods are on the call's way).
CALL record: RecordHead, call head, method (UTF-8), args body, `nvalues` x (u64 size, bytes), reply. START: likewise, without a reply.
With ARGS_BLOB or REPLY_BLOB the name of a blob of the store (UTF-8) stands in place of the args body or the reply.
Args body: u16 ndeps, each top-level argument that was a ref, by value (u64 size, bytes), then the argument bytes as received.
SEEN record: SeenHead, call head. VALUE record: ValueHead, bytes. RELEASE record: ReleaseHead, `nparents` x 16s, `nroots` x 16s.
"""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from ftray._core.buf cimport Buf

cdef enum:
    ROOT_SESSION = 0         # a driver's nonce: nobody makes these calls again when it has gone
    ROOT_JOB = 1             # hash of a job_key: the driver may be run again
    ROOT_PROCESS = 2         # nonce of a process, for calls outside of any task's flow
    RUN_NUMBERS = 2          # of the attempts below a ROOT_JOB: when this run of the driver began, Unix seconds and nanoseconds
    HEAD_KEYED = 1           # CallHead.flags: the caller named the call; parent is all zeros and n is 0

cdef packed struct CallHead:
    uint8_t root_kind
    uint8_t flags
    uint16_t retry           # application-level retries before this one
    uint32_t n               # from 1 per caller and callee
    uint32_t acked           # the caller has the replies of all its calls n < acked to this callee
    uint16_t nattempts
    uint16_t nchain
    uint8_t root[16]
    uint8_t parent[16]       # CallID of the caller, or the root itself
    uint8_t call_id[16]
    uint64_t history         # of the callee, as the caller knows it; 0: unknown

cdef enum HeadFault:
    HEAD_OK = 0
    HEAD_CUT = 1             # ends before its end
    HEAD_LONG = 2            # bytes after its end
    HEAD_KIND = 3
    HEAD_FLAGS = 4
    HEAD_NUMBER = 5          # n is 0 in a call without a key
    HEAD_PARENT = 6          # no parent, in a call without a key
    HEAD_KEYED_CALLER = 7    # a parent or numbers, in a call with a key
    HEAD_CALL_ID = 8         # all zeros

cdef inline size_t head_size(uint16_t nattempts, uint16_t nchain) noexcept nogil:
    return sizeof(CallHead) + 4 * <size_t>nattempts + 16 * <size_t>nchain

cdef inline char *head_write(char *out, const CallHead *head, const uint32_t *attempts, const uint8_t *chain) noexcept nogil:
    """Write a head and its two lists, as many as it says, to where `head_size` bytes are free; where it ends."""
    memcpy(out, head, sizeof(CallHead))
    out += sizeof(CallHead)
    if head.nattempts:
        memcpy(out, attempts, 4 * <size_t>head.nattempts)
    out += 4 * <size_t>head.nattempts
    if head.nchain:
        memcpy(out, chain, 16 * <size_t>head.nchain)
    return out + 16 * <size_t>head.nchain

cdef size_t head_measure(const char *p, size_t available) noexcept nogil   # of the head that begins here; 0: cut
cdef HeadFault head_check(const char *p, size_t size) noexcept nogil       # is this exactly one head?
cdef raise_head_fault(HeadFault fault, size_t size)

cdef enum:
    RECORD_CALL = 1
    RECORD_START = 2
    RECORD_VALUE = 3
    RECORD_RELEASE = 4
    RECORD_SEEN = 5
    ARGS_BLOB = 1            # RecordHead.flags
    REPLY_BLOB = 2

cdef packed struct RecordHead:
    uint8_t kind
    uint8_t flags
    uint16_t method_size
    uint32_t head_size
    uint64_t digest          # call_digest, of the args themselves also when a blob has them
    uint64_t code_version
    uint64_t args_size       # of what stands here
    uint32_t nvalues
    uint8_t status
    uint8_t reserved[3]
    uint64_t reply_size

cdef packed struct ValueHead:
    uint8_t kind
    uint8_t flags
    uint16_t reserved
    uint32_t nth             # value of this call, from 0
    uint8_t call_id[16]
    uint64_t size

cdef packed struct ReleaseHead:
    uint8_t kind
    uint8_t flags
    uint16_t reserved
    uint32_t nparents
    uint32_t nroots
    uint32_t reserved2

cdef packed struct SeenHead:
    uint8_t kind
    uint8_t flags
    uint16_t reserved
    uint32_t head_size

# A call as an engine has it: pointers into its frame. Valid as long as the frame is.
cdef struct CallView:
    const char *head
    size_t head_size
    const char *method       # UTF-8
    size_t method_size
    const char *deps         # the args body up to the argument bytes; NULL: no argument was a ref
    size_t deps_size
    const char *args         # argument bytes as received
    size_t args_size
    const char *values       # nvalues x (u64 size, bytes)
    size_t values_size
    uint32_t nvalues

cdef uint64_t view_digest(const CallView *c) noexcept nogil
# Size of the part of an args body before the argument bytes; -1: it does not fit.
cdef Py_ssize_t deps_measure(const char *body, size_t size) noexcept nogil
# Append a CALL or START record; 0, or -1 without memory. With ARGS_BLOB `args` is the blob's name and `deps` is not written.
cdef int record_write(Buf *out, uint8_t kind, uint8_t flags, const CallView *c, uint64_t digest, uint64_t code_version,
                      uint8_t status, const char *reply, size_t reply_size) noexcept nogil
