"""Counts an actor's calls towards its next snapshot."""


cdef class CallCounter:
    cdef frozenset uncounted
    cdef object due             # called when none are left
    cdef str usual              # the method that was counted last: the same object, as a rule, in the next call
    cdef public long long left

    cdef int count(self, str method) except -1
