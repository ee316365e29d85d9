"""Call sites: which line of the program made an object (see `ftray memory`).

Owns: numbers of call sites. Invariants: a site is found before the core lock is taken, since looking at frames may run
anything; at most MAX_SITES are told apart, the rest counts as one.
"""

import sys

from libc.stdint cimport uint32_t, uint64_t
from libcpp.string cimport string

from ftray._core.runtime cimport core_enter, core_leave
from ftray._core.types cimport Core

cdef enum:
    MAX_SITES = 10000

cdef dict known = {}
cdef uint64_t session = 0


cdef uint32_t current_site(Core *c) except? 0xFFFFFFFF:
    """The number of the line of Python that runs."""
    global session
    cdef string text
    cdef uint32_t index
    frame = sys._getframe(0)
    name = f"{frame.f_code.co_filename}:{frame.f_code.co_name}:{frame.f_lineno}"
    frame = None
    if session != c.session:
        known.clear()
        session = c.session
    found = known.get(name)
    if found is None and len(known) >= MAX_SITES:
        name = "(other call sites)"
        found = known.get(name)
    if found is not None:
        return found
    text = name.encode("utf-8", "replace")[-1000:]
    with nogil:
        core_enter(c)
        index = <uint32_t>c.site_names.size()
        c.site_names.push_back(text)
        core_leave(c)
    known[name] = index
    return index
