"""The guard of an exactly-once actor: asked before anything leaves it, and for everything that comes in from outside.

Owns: the one guard of this process, a Python object (`ftray._outside.Outside`), None in every other process.
Invariant: `Core.guards` says whether there is one, so that other processes pay one look at a flag.

Leaves to others: what the guard decides (ftray/_outside.py), and who asks it (calls.pyx, objects.pyx, gets.pyx, waits.pyx, puts.pyx).
"""

from ftray._core.runtime cimport core

cdef object guard = None


cdef object the_guard():
    return guard


def guard_of_process():
    """The guard, None in a process that has none."""
    return guard


def set_guard(new):
    """Have everything of this process that leaves or comes in go through `new`; None: nothing any more."""
    global guard
    guard = new
    core().guards = new is not None
