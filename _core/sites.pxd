"""Call sites: which line of the program made an object. Off unless FTRAY_record_ref_creation_sites is set."""

from libc.stdint cimport uint32_t
from ftray._core.types cimport Core

cdef uint32_t current_site(Core *c) except? 0xFFFFFFFF
