"""Actors of the native runtime: making one, and finding one by its name.

Owns: the record of an actor as ``ftrayd`` keeps it, and when it is sent (not before the constructor's
arguments are there). Leaves to others: what handles and options are (`ftray.actor`), the actors' lives
(``_node/actors``).
"""

from __future__ import annotations

import _pickle as pickle  # pickle imports re and more
import struct

from ftray import _core, _lifecycle, _native_calls
from ftray.actor import ActorHandle, checkpoint_spec
from ftray.exceptions import RaySystemError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ftray._typed import T
    from ftray.actor import ActorClass, _Meta

_ACTOR_CREATE = 30
_MOST_CONSTRUCTOR_BYTES = (1 << 30) - (1 << 20)  # of the largest message to ftrayd, most


def create(
    actor_class: ActorClass[T], meta: _Meta, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> ActorHandle[T]:
    """Make an actor; its handle is there at once, a named one after the head has agreed."""
    options = actor_class._options
    if actor_class._blob is None:
        from ftray._pickling import pickle_function

        actor_class._blob = pickle_function(actor_class._cls, actor_class._class_refs)
    actor_id, call_id = _core.next_actor_id(actor_class._cls.__qualname__.encode())
    ref = _core.new_actor_ref(actor_id, options.lifetime != "detached")
    spec = _spec(actor_class, actor_id)
    if (spec["checkpoint"] or {}).get("exactly_once"):
        _resumable(spec, call_id)
    meta.exactly_once = bool((spec["checkpoint"] or {}).get("exactly_once"))
    meta.key = _callee_key(spec, call_id, meta.exactly_once)
    spec["callee_key"] = meta.key
    spec["meta"] = pickle.dumps(meta, 5)
    handle: ActorHandle[T] = ActorHandle._make(ref, meta)
    if any(isinstance(a, _core.ObjectRef) for a in (*args, *kwargs.values())):
        return _create_with_refs(handle, actor_id, spec, args, kwargs)
    return _send(handle, actor_id, spec, _record(spec, args, kwargs))


def _spec(actor_class: ActorClass[Any], actor_id: bytes) -> dict[str, Any]:
    """Return the record of an actor, without its constructor's arguments."""
    options = actor_class._options
    session = _lifecycle.current()
    cls = actor_class._cls
    held, needed = options.resources, options.placement_resources
    strategy, group = _native_calls.placed(actor_class._explicit, held, needed, f"actor {cls.__name__}")
    return {
        "actor_id": actor_id,
        "job_id": _core.current_context()["job_id"],  # a worker's session has none
        "owner": session.worker_id,
        "unique_id": f"{session.worker_id.hex()[:24]}-{actor_id.hex()}",
        "class_name": cls.__name__,
        "name": options.name,
        "namespace": options.namespace or (session.namespace if options.name else ""),
        "checkpoint_name": options.name,
        # An anonymous namespace is another one in each run; snapshots are to be found again.
        "checkpoint_namespace": options.namespace or (session.durable_namespace if options.name else ""),
        "get_if_exists": options.get_if_exists,
        "lifetime": options.lifetime,
        "max_restarts": options.max_restarts,
        "max_task_retries": options.max_task_retries,
        "max_concurrency": actor_class._concurrency(),
        "is_async": actor_class._has_loop,
        "concurrency_groups": options.concurrency_groups,
        "resources": dict(options.resources),
        "placement_resources": dict(options.placement_resources),
        "strategy": strategy,
        "group": group,
        "class_blob": actor_class._blob,
        "checkpoint": checkpoint_spec(cls),
        "runtime_env": _lifecycle.runtime_env_text(options.runtime_env),
    }


def _callee_key(spec: dict[str, Any], call_id: bytes, exactly_once: bool) -> bytes:
    """Return what the actor's callers number their calls by: the same for every actor in its place."""
    if exactly_once:
        from ftray._checkpoint_host import callee_key

        return callee_key(spec)
    if not spec["name"]:
        return call_id
    from _blake2 import blake2b  # hashlib would load OpenSSL

    return blake2b(f"actor\0{spec['namespace']}\0{spec['name']}".encode(), digest_size=16).digest()


def _resumable(spec: dict[str, Any], call_id: bytes) -> None:
    """Say of an exactly-once actor what a driver that is run again needs.

    With a job key it gets recorded replies, whose effects must still be there, so that an actor without a
    name has the state of the one in its place in the earlier run. And what an actor of a dead driver holds
    is free, although its process may need a moment to end.
    """
    session = _lifecycle.current()
    if spec["lifetime"] != "detached":
        spec["driver_pid"] = session.driver_pid()
    if not spec["name"] and session.resumes():
        spec["checkpoint_namespace"] = "_job"
        spec["checkpoint_name"] = f"{spec['class_name']}-{call_id.hex()}"


def _resolved(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with their refs replaced by values, as the actor's record keeps them."""

    def value(item: Any) -> Any:
        return _core.get(item) if isinstance(item, _core.ObjectRef) else item

    return tuple(value(a) for a in args), {k: value(v) for k, v in kwargs.items()}


def _waits(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    refs = {a: None for a in (*args, *kwargs.values()) if isinstance(a, _core.ObjectRef)}
    return len(_core.wait(list(refs), num_returns=len(refs), timeout=0)[1]) > 0


def _create_with_refs(
    handle: ActorHandle[T],
    actor_id: bytes,
    spec: dict[str, Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> ActorHandle[T]:
    """Create an actor whose constructor takes values of refs; announce it if that cannot be now."""
    failure: Exception | None = None
    if not _waits(args, kwargs):
        try:
            record = _record(spec, args, kwargs)
        except Exception as error:  # an argument is an error, or cannot be had: so is the actor
            failure = error
        else:
            return _send(handle, actor_id, spec, record)
    answer = _submit(actor_id, pickle.dumps(spec, 5), bool(spec["name"]))
    if answer is not None and answer["existing"]:
        return _handle_of(answer["existing"])
    if failure is not None:
        _give_up(actor_id, spec, failure)
        return handle

    def create() -> None:
        try:
            record, refs = _record(spec, args, kwargs)
            _core.hold_inside(handle._target.ref, refs)
            _submit(actor_id, record, False)
        except Exception as error:
            _give_up(actor_id, spec, error)

    import threading

    threading.Thread(target=create, name="ftray-create", daemon=True).start()
    return handle


def _give_up(actor_id: bytes, spec: dict[str, Any], error: Exception) -> None:
    """Have an announced actor die of what kept it from being created."""
    from ftray._task_errors import dump_error, make_task_error
    from ftray.exceptions import NotInitializedError, RayError

    if isinstance(error, RayError):
        payload = dump_error(error)
    else:
        payload = make_task_error(error, spec["class_name"], 0)
    text = f"an argument of its constructor cannot be had: {error}"
    try:
        _submit(actor_id, pickle.dumps({**spec, "not_made": (text, payload)}, 5), False)
    except (NotInitializedError, RaySystemError):
        return  # the session has ended meanwhile, and its actors with it


def _record(
    spec: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[bytes, list[Any]]:
    """Return the whole record of an actor, and the refs inside its constructor's arguments."""
    blob, refs = _core.encode_constructor_args(*_resolved(args, kwargs))
    if len(blob) > _MOST_CONSTRUCTOR_BYTES:
        raise ValueError(
            f"the arguments of {spec['class_name']}.__init__ take {len(blob)} bytes; an actor's record, which"
            f" keeps them by value for restarts, holds at most {_MOST_CONSTRUCTOR_BYTES}."
            " Pass large values as refs inside a list, or to a method."
        )
    return pickle.dumps({**spec, "args_blob": blob}, 5), refs


def _submit(actor_id: bytes, record: bytes, asks: bool) -> dict[str, Any] | None:
    """Send a record to the head; if it ``asks``, return the answer."""
    payload = actor_id + struct.pack("<I", len(record)) + record
    if not asks:
        _core.tell_node(_ACTOR_CREATE, payload)
        return None
    answer = _core.ask_node(_ACTOR_CREATE, payload)
    result = pickle.loads(answer[5:])
    if not answer[0]:
        raise result
    found: dict[str, Any] = result
    return found


def _send(
    handle: ActorHandle[T], actor_id: bytes, spec: dict[str, Any], record: tuple[bytes, list[Any]]
) -> ActorHandle[T]:
    """Create the actor; return the handle of the one that has its name now."""
    _core.hold_inside(handle._target.ref, record[1])
    answer = _submit(actor_id, record[0], bool(spec["name"]))
    return _handle_of(answer["existing"]) if answer is not None and answer["existing"] else handle


def _handle_of(info: dict[str, Any]) -> ActorHandle[Any]:
    """Return a handle of an actor that somebody has made."""
    spec = info["spec"]
    ref = _core.foreign_actor_ref(spec["actor_id"], spec["owner"])
    return ActorHandle._make(ref, pickle.loads(spec["meta"]))


def find(name: str, namespace: str | None) -> ActorHandle[Any]:
    """Return a handle of a named actor; ValueError when there is none."""
    from ftray._api import node_rpc

    info = node_rpc("get_named_actor", name=name, namespace=namespace)
    if info is None or "spec" not in info:
        where = "this namespace" if namespace is None else f"namespace {namespace!r}"
        raise ValueError(f"there is no living actor named {name!r} in {where}")
    return _handle_of(info)
