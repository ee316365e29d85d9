"""What names an actor: its id, the refs that count its handles, and its place in a pickle of one.

Owns: how an ActorID is made, and the object that stands for an actor, whose references are the handles. Invariant: when the last
handle of an actor goes, its owner hears of it as of any object that nobody needs any more.

Leaves to others: calling it (calls.pyx), where its process is (actors.pyx), handles themselves (ftray/actor.py).
"""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy

from ftray._core.actors cimport actor_client
from ftray._core.context cimport Context, child_task_id, context
from ftray._core.flows cimport callee_key, flow_name
from ftray._core.identity cimport FTRAY_HANDLE_MARK
from ftray._core.objects cimport ObjectRef, blank_ref, exposed, fill_ref, usable
from ftray._core.objects import rebuild_ref
from ftray._core.refs cimport refs_contain, refs_expose, refs_new
from ftray._core.runtime cimport core, core_enter, core_leave
from ftray._core.types cimport OBJ_ACTOR, OBJ_INLINE, Core, Id16, Id28, ObjEntry, blob_copy, mix64, store8


cdef bytes object_id_of(bytes actor_id):
    """Of the object that stands for an actor."""
    return b"\xff" * 8 + actor_id + b"\0" * 4


def new_actor_ref(bytes actor_id, bint owned_lifetime):
    """The ref that counts the handles of an actor that this process creates; when the last goes, the actor ends
    (unless it is detached: `owned_lifetime` False)."""
    cdef Core *c = core()
    cdef ObjectRef r = blank_ref()
    cdef bytes object_id = object_id_of(actor_id)
    cdef Id28 id
    cdef ObjEntry *e
    memcpy(id.b, <const char *>object_id, 28)
    with nogil:
        core_enter(c)
        e = refs_new(c, &id, True)
        e.blob = blob_copy(b"\0", 1)
        store8(&e.state, OBJ_INLINE)
        if owned_lifetime:
            e.flags |= OBJ_ACTOR
        refs_expose(c, e)
        actor_client(c, <Id16 *>(id.b + 8)).subscribed = 1
        actor_client(c, <Id16 *>(id.b + 8)).state = 1
        fill_ref(c, r, e)
        core_leave(c)
    return r


def hold_inside(ObjectRef ref not None, list refs not None):
    """Have what a ref stands for hold other objects, as a value does with refs inside it: those in a constructor's arguments."""
    cdef Core *c = core()
    cdef ObjEntry *outer = usable(ref)
    cdef ObjEntry *inner
    for item in refs:
        inner = usable(<ObjectRef?>item)
        with nogil:
            core_enter(c)
            refs_contain(outer, inner)
            core_leave(c)


def foreign_actor_ref(bytes actor_id, bytes owner):
    """A ref to an actor that somebody else created (found by its name)."""
    return rebuild_ref(object_id_of(actor_id), owner)


def next_actor_id(bytes name):
    """16 bytes: 12 unique, 4 of the job; made from the current context like a task id. And 16 bytes that another attempt
    of the creator gives to the actor in its place; `name`: of its class."""
    cdef Core *c = core()
    cdef uint8_t task[24]
    cdef uint8_t call[16]
    cdef uint8_t actor[16]
    cdef uint64_t more
    cdef Id16 key
    cdef Context *x = context()
    callee_key(name, len(name), &key)
    with nogil:
        core_enter(c)
        child_task_id(x, c.job, NULL, task)
        flow_name(x, &key, call)
        core_leave(c)
    memcpy(&more, task, 8)
    more = mix64(more)
    memcpy(actor, task, 8)
    memcpy(actor + 8, &more, 4)
    memcpy(actor + 12, &c.job, 4)
    return actor[:16], call[:16]


cdef bytes place_of(tuple exposed):
    return (<const char *>FTRAY_HANDLE_MARK)[:16] + core().node_id.b[:28] + exposed[0] + exposed[1]


def actor_place(ObjectRef ref not None):
    """Where the actor of a handle is, for the pickle of that handle: 100 bytes behind each other, which digests know
    (identity.hpp): a mark, the node, and what the pickle of a ref has."""
    return place_of(ref.__reduce__()[1])


def saved_actor_place(ObjectRef ref not None):
    """The same for what is kept: nothing holds the actor until it is loaded."""
    return place_of(exposed(core(), usable(ref)))


def actor_at(bytes place not None):
    """The ref that `actor_place` had, and whether it is of this session."""
    if len(place) != 100:
        raise ValueError("not the pickle of an actor handle")
    return rebuild_ref(place[44:72], place[72:]), place[16:44] == core().node_id.b[:28]
