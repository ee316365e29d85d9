"""Counts an actor's calls towards its next snapshot."""


cdef class CallCounter:
    cdef frozenset uncounted
    cdef object due             # called when none are left
    cdef str usual              # the method that was counted last: the same object, as a rule, in the next call
    cdef public long long left

    cdef inline bint counted(self, str method) noexcept:
        """Whether that was all: the method of the last call again, and no save is due. Else `count` is to be called."""
        if method is None or method is not self.usual or self.left <= 1:
            return False
        self.left -= 1
        return True

    cdef int count(self, str method) except -1
