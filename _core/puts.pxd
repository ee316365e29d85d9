"""Values that this process makes."""

from libc.stdint cimport uint64_t
from ftray._core.objects cimport ObjectRef
from ftray._core.serial cimport EncodedValue
from ftray._core.types cimport Core

cdef int place_shared(Core *c, EncodedValue v, uint64_t *seg, uint64_t *off) except -1
cdef object placeholder_ref()
cdef ObjectRef put_value(object value)
