"""Holding back an actor's calls while a cut over a group of actors is taken. Needs the core lock."""

from ftray._core.types cimport Channel, Core, ExecTask

cdef bint hold_next(Core *c) noexcept nogil
cdef void hold_began(Core *c, ExecTask *t) noexcept nogil
cdef void hold_channel_broke(Core *c, Channel *ch) noexcept nogil
