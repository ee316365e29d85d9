"""Answers to calls: encode an outcome (with the GIL), and send it (with the core lock)."""

from libc.stddef cimport size_t
from libc.stdint cimport uint16_t, uint64_t
from libcpp.vector cimport vector
from ftray._core.buf cimport Buf
from ftray._core.types cimport Channel, Core, ObjEntry

cdef class Yielded:
    """What a generator yielded, encoded: the values of a call's answer."""
    cdef Buf b
    cdef list refs              # inside the values
    cdef object error           # what ended the generator early, or None

    cdef int add(self, object value) except -1
    cdef int add_failure(self, bytes payload, uint16_t n) except -1

cpdef int end_if_forked() except -1
cdef int encode_result(Buf *b, object value, list refs, size_t inline_limit=*) except -1
cdef int encode_results(Buf *b, str name, uint16_t nret, object result, list refs, size_t inline_limit=*) except -1
cdef str no_refs(str name)
cdef int count_results(const char *p, size_t size) noexcept nogil
cdef int encode_failure(Buf *b, bytes payload, uint16_t nret) except -1
cdef void send_reply(Core *c, Channel *ch, uint64_t seq, bint brought, Buf *b, vector[ObjEntry *] *inner,
                     uint64_t started, uint64_t ended, uint64_t position) noexcept nogil
