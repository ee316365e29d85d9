"""The session that this process is attached to."""

from ftray._core.types cimport Core

cdef int check_usable() except -1
cdef int raise_no_room(Core *c) except -1
