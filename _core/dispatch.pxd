"""Where frames go. Needs the core lock."""

from ftray._core.types cimport Core

cdef void dispatch_install() noexcept nogil
cdef void wake_inbox(Core *c) noexcept nogil
