"""`cancel`: what a program asks for; how it is done is in cancels.pyx."""

from libc.stdint cimport uint8_t, uint32_t

from ftray._core.cancels cimport cancel_at_owner, task_cancel
from ftray._core.generators cimport ObjectRefGenerator
from ftray._core.guards cimport the_guard
from ftray._core.objects cimport ObjectRef, engine_of, usable
from ftray._core.runtime cimport core, core_enter, core_leave
from ftray._core.types cimport OBJ_INLINE, OBJ_OWNED, Core, ObjEntry
from ftray._core.wire cimport CANCEL_FORCE, CANCEL_RECURSIVE

cdef enum:
    PUT_INDEX = 0x80000000u     # and above: objects that were put


def cancel(ref, *, force=False, recursive=True):
    """Cancel the task or actor call that makes a ref's value.

    What has not begun never will. A running task gets a KeyboardInterrupt; a running coroutine of an async actor a
    CancelledError; another method of an actor runs on, and sees ``get_runtime_context().is_canceled()``. What has
    finished stays as it is. A cancelled call is not retried.

    Parameters
    ----------
    ref : ObjectRef or ObjectRefGenerator
        A return of the call, or its generator; also a ref that was got from another process, whose task is then
        cancelled by its owner.
    force : bool, default False
        End the worker process of a running task instead of interrupting it. Not for actor calls.
    recursive : bool, default True
        Also cancel the tasks and actor calls that it has submitted and that are not finished.

    Raises
    ------
    TypeError
        `ref` is neither, or an option is not a bool.
    ValueError
        `force` for an actor call, or a ref that was made by ``put()``.
    """
    if not core().guards:
        cancel_call(ref, force, recursive)
    elif not the_guard().sends(0):
        try:
            cancel_call(ref, force, recursive)
        except Exception as error:
            the_guard().not_sent(error)
            raise


cdef int cancel_call(ref, force, recursive) except -1:
    cdef Core *c = core()
    cdef ObjEntry *e
    cdef bint f = force, r = recursive
    if type(ref) is ObjectRefGenerator:
        if (<ObjectRefGenerator>ref).gate == NULL:
            return 0                    # closed: the task is ended at its next yield
        ref = ref.completed()
    if type(ref) is not ObjectRef:
        if isinstance(ref, (ObjectRef, ObjectRefGenerator)):
            engine_of(ref).cancel(ref, force=force, recursive=recursive)
            return 0
        hint = ": use ftray.kill(actor) to end an actor" if hasattr(ref, "_actor_id") else ""
        raise TypeError(f"cancel() takes an ObjectRef or an ObjectRefGenerator, not {type(ref).__name__}{hint}")
    if not isinstance(force, bool) or not isinstance(recursive, bool):
        raise TypeError(f"force and recursive must be True or False, not force={force!r}, recursive={recursive!r}")
    e = usable(ref)
    if (<uint32_t *>(e.id.b + 24))[0] >= PUT_INDEX:
        raise ValueError(f"{ref!r} was made by put(): there is no task to cancel")
    if force and is_actor_call(e):
        raise ValueError("cancel(force=True) is for tasks only; use ftray.kill(actor) to end an actor")
    with nogil:
        core_enter(c)
        if e.task != NULL:
            task_cancel(c, e.task, f, r)
        elif not e.flags & OBJ_OWNED and e.state < OBJ_INLINE and not e.lost:
            cancel_at_owner(c, e, (CANCEL_FORCE if f else 0) | (CANCEL_RECURSIVE if r else 0))
        core_leave(c)
    return 0


cdef bint is_actor_call(ObjEntry *e) noexcept nogil:
    """By its id: the returns of plain tasks have ones where others have the actor's."""
    cdef int i
    for i in range(8, 20):
        if <uint8_t>e.id.b[i] != 0xff:
            return True
    return False
