"""Values that are lost are made again. Needs the core lock."""

from ftray._core.types cimport Core, ObjEntry

# The value of `e` cannot be read any more: wherever it was, it is gone. For any process that has found that out, owner
# or borrower. Readers wait for the next value; without lineage they get an error that says why. The entry must be held.
cdef void value_lost(Core *c, ObjEntry *e) noexcept nogil
cdef void recovery_install() noexcept nogil
