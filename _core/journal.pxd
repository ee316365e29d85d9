"""Contract of the local journal: what the gate and other C callers use of it, from any thread, without the GIL.

Everything here is `noexcept nogil`. `append_c` returns a position, from 1, or 0: then `code[0]` says why
(`FENCED`, ...). In `process` durability a position that was returned may be answered at once; in `power` when
`durable_c() >= position`, which `set_callbacks_c` tells of. Callbacks come from the journal's thread, with no lock of
the journal held but the one that keeps `silence_c` from returning while they run.
"""
from libc.stdint cimport uint64_t
from libc.stddef cimport size_t
from libcpp cimport bool as cbool
from libcpp.string cimport string
from libcpp.vector cimport vector


cdef extern from "journal_sys.hpp" namespace "ftj" nogil:
    cdef enum:
        PROCESS
        POWER
    cdef enum JournalCode:
        OK
        FENCED              # a later epoch holds the key: what was appended last must not be answered
        MEDIUM              # the medium failed; nothing later becomes durable
        CLOSED
        FORKED              # a child of the process that opened it
        BAD_SIZE            # 0 bytes, or more than MAX_RECORD: nothing was appended
        NO_MEMORY
    cdef enum:
        ACT_EXIT
        ACT_RAISE
        ACT_STALL
        ACT_STOP

    cppclass Part:
        const char* data
        size_t size

    ctypedef void (*Durable)(void* arg, uint64_t position) noexcept
    ctypedef void (*Failed)(void* arg) noexcept

    cppclass Config:
        int dir_fd, life_fd, mode
        cbool in_place
        uint64_t epoch, first_position
        string key, boot
        size_t first_size, max_size
        double sync_interval_s
        vector[string] past

    cppclass Journal:
        Journal(const Config& config) except +
        int error
        const char* step
        Durable on_durable
        Failed on_failed
        void* arg
        uint64_t append(const Part* parts, int n, int& code) noexcept
        int open(const char*& where) noexcept
        cbool holds() noexcept
        cbool fence_open() noexcept
        int wait(uint64_t position, double timeout_s) noexcept
        void wait_news(uint64_t seen) noexcept
        void want_news(uint64_t position) noexcept
        void flush() noexcept
        void rest() noexcept
        cbool hold_back(uint64_t position) noexcept
        void stop() noexcept
        cbool wait_stopped(double timeout_s) noexcept
        void running(const char* call_id) noexcept
        void silence() noexcept
        void arm(int point, int action, int nth) noexcept
        void release() noexcept
        cbool wait_stalled(double timeout_s) noexcept
        void fail(int code, int err, const char* where) noexcept


cdef class LocalJournal:
    cdef Journal* j
    cdef object _error_of, _durable_cb, _failure_cb, _failure, __weakref__
    cdef readonly object survives
    cdef bint _notifying, _closed

    cdef uint64_t append_c(self, const Part* parts, int n, int* code) noexcept nogil
    cdef uint64_t durable_c(self) noexcept nogil
    cdef uint64_t last_c(self) noexcept nogil
    cdef uint64_t waiting_c(self) noexcept nogil        # bytes that were appended and are in memory only
    cdef bint holds_c(self) noexcept nogil
    # As holds_c, but only the fence word: a load. A successor sets it before it reads, so before it answers.
    cdef bint open_c(self) noexcept nogil
    cdef void running_c(self, const char* call_id) noexcept nogil       # 16 bytes, or NULL
    cdef void set_callbacks_c(self, Durable on_durable, Failed on_failed, void* arg) noexcept nogil
    cdef void silence_c(self) noexcept nogil    # after it returns, neither callback runs or will
    cdef void rest_c(self) noexcept nogil       # whoever appends has no more at hand
    cdef int failure_c(self) noexcept nogil     # JournalCode
    cdef object _error(self, int code)
    cdef object _failed(self)
    cdef object _start_notifying(self)
