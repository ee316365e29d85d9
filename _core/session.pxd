"""The session that this process is attached to."""

cdef int check_usable() except -1
