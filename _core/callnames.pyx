"""What this process knows of a call to an exactly-once actor, by the call's ref: its name, and how far it came.

Owns nothing. Leaves to others: keeping the names of calls that ended with an error (outcomes.pyx, `ObjExt.call`), and asking
the actor or its store (ftray/_call_outcomes.py).
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memcpy

from ftray._core.objects cimport ObjectRef, usable
from ftray._core.runtime cimport core, core_enter, core_leave
from ftray._core.types cimport OBJ_INLINE, OBJ_OWNED, Blob, Core, Id16, ObjEntry, blob_drop, blob_hold

cdef enum:
    PENDING = 5                 # what `call_of` says of a call that has no outcome yet, beside CallFate
    ANSWERED = 6                # and of one that has a value


def call_of(ObjectRef ref not None):
    """What is known here of the call that makes `ref`.

    Returns
    -------
    tuple or None
        Actor's id, call head (None: it has a value), and a number: 1 to 4 as `CallFate` (flows.pxd) of one that ended with an
        error, 5 of one that has not ended, 6 of one that has a value. None if it is no call of this process to an exactly-once
        actor.
    """
    cdef Core *c = core()
    cdef ObjEntry *e = usable(ref)
    cdef Blob *head = NULL
    cdef Id16 actor
    cdef int fate = 0
    with nogil:
        core_enter(c)
        memcpy(actor.b, e.id.b + 8, 16)
        it = c.actors.find(actor)
        if e.flags & OBJ_OWNED and it != c.actors.end() and c.actors[actor].durable:
            if e.state >= OBJ_INLINE:
                fate = ANSWERED
                if e.ext != NULL and e.ext.call != NULL:
                    fate = e.ext.fate
                    head = blob_hold(e.ext.call)
            elif e.task != NULL and e.task.note != NULL and e.task.note.head != NULL:
                fate = PENDING
                head = blob_hold(e.task.note.head)
        core_leave(c)
    if not fate:
        return None
    try:
        return actor.b[:16], None if head == NULL else PyBytes_FromStringAndSize(head.data, head.size), fate
    finally:
        blob_drop(head)
