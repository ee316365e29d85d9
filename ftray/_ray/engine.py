"""The engine "ray": the API of ftray on a cluster of Ray's.

Owns: that Ray is there in a version that is known, and whether this process has joined a cluster. Invariants:
nothing imports this module but the choice of the engine and what runs in Ray's workers. Leaves to others:
functions (``calls``), actors (``actors``), refs (``refs``), exceptions (``errors``), what runs in workers
(``inside``, ``shell``).
"""

from __future__ import annotations

import os
from typing import Any, NoReturn

try:
    import ray
except ModuleNotFoundError as missing:
    if missing.name != "ray":
        raise
    raise ImportError(
        "the engine 'ray' needs Ray, which is not installed: pip install 'ftray[ray]'", name="ray"
    ) from None

from ftray import _core, _serializers
from ftray._core import pickler
from ftray.exceptions import NotInitializedError, NotSupportedError

if not hasattr(ray, "_raylet"):
    raise NotSupportedError(
        "the name 'ray' stands for ftray in this process (ftray.compat), so that the engine 'ray' cannot find"
        " Ray itself: change the program's imports to `import ftray as ray`"
    )

from ftray._ray import starting

starting.check_version(ray.__version__)

from ftray._ray import actors, calls, client, facts, host_flow, pickles, services, states  # noqa: E402
from ftray._ray.refs import RayObjectRef, adopted, of_ray, unwrapped  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ftray._engine import Engine
    from ftray._functions import RemoteFunction
    from ftray.actor import ActorClass, ActorHandle, _Meta
    from ftray.util.placement_group import PlacementGroup

pickles.share()
_LONGEST_S = 3e8


class RayEngine:
    """A Ray cluster."""

    name = "ray"

    def __init__(self) -> None:
        self._context: Any = None  # of the cluster that this driver has joined
        self._joined = False  # it had joined before, through Ray itself
        self._pid = 0

    # --- life

    def init(self, arguments: dict[str, Any]) -> starting.ClusterContext:
        given = starting.arguments_of(arguments)
        job_key = given.pop("job_key", None)
        if self.is_initialized():
            if given.get("ignore_reinit_error"):
                return starting.ClusterContext(self._context)
            raise RuntimeError(
                "ftray.init() was called before in this process;"
                " call ftray.shutdown() first, or give ignore_reinit_error=True"
            )
        self._joined = ray.is_initialized()
        self._pid = os.getpid()
        self._context = self._join(given) if self._joined else client.joined(given)
        if job_key is not None:
            host_flow.set_job_key(job_key)
        for cls, (serializer, deserializer) in _serializers.registered.items():
            ray.util.register_serializer(cls, serializer=serializer, deserializer=deserializer)
        return starting.ClusterContext(self._context)

    def _join(self, given: dict[str, Any]) -> Any:
        """Use the cluster that the program has joined by ``ray.init``."""
        wrong = [name for name in given if name not in ("ignore_reinit_error", "log_to_driver")]
        if wrong:
            raise ValueError(
                f"{', '.join(wrong)} cannot be given: ray.init() was called in this process before, and"
                " ftray.init(engine='ray') uses that cluster"
            )
        return ray.init(ignore_reinit_error=True)

    def ensure(self) -> None:
        if not self.is_initialized():
            self.init({})

    def is_initialized(self) -> bool:
        mine = self._context is not None or _in_worker()
        return mine and bool(ray.is_initialized())

    def shutdown(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            host_flow.set_job_key(None)
        if context is not None and not self._joined and self._pid == os.getpid():
            ray.shutdown()

    def _running(self) -> None:
        if not self.is_initialized():
            raise NotInitializedError()

    # --- calls

    def function(self, function: RemoteFunction[..., Any]) -> Any:
        return calls.caller_of(function)

    def create_actor(
        self, actor_class: ActorClass[Any], meta: _Meta, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorHandle[Any]:
        return actors.create(actor_class, meta, args, kwargs)

    def find_actor(self, name: str, namespace: str | None) -> ActorHandle[Any]:
        return actors.find(name, namespace)

    def kill(self, actor: ActorHandle[Any], no_restart: bool) -> None:
        self._running()
        if not isinstance(actor, actors.RayActorHandle):
            raise ValueError(f"{actor!r} belongs to a session of another engine")
        calls.sent(0, lambda: ray.kill(actor._handle, no_restart=no_restart))

    def exit_actor(self) -> NoReturn:
        if not _in_worker() or ray.get_runtime_context().get_actor_id() is None:
            raise TypeError("exit_actor() is for methods of an actor")
        ray.actor.exit_actor()
        raise AssertionError("exit_actor() returned")

    # --- objects

    def get(self, refs: Any, *, timeout: float | None = None) -> Any:
        self._running()
        one = isinstance(refs, _core.ObjectRef)
        found = [unwrapped(ref) for ref in ([refs] if one else refs)]
        with calls.ours():
            values = ray.get(found, timeout=_timeout(timeout))
        return adopted(values[0]) if one else [adopted(value) for value in values]

    def put(self, value: Any) -> RayObjectRef:
        self._running()
        if isinstance(value, _core.ObjectRef):
            raise TypeError(
                "put() of an ObjectRef is not allowed: it is a reference already (wrap it in a list to store"
                " the ref itself)"
            )
        guard = _core.the_guard()
        if guard is not None and guard.puts():
            found: RayObjectRef = calls.placeholders(1)
            return found
        try:
            with calls.ours():
                return RayObjectRef(ray.put(value))
        except Exception as error:
            if guard is not None:
                guard.not_sent(error)
            raise

    def wait(
        self, refs: Any, *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
    ) -> tuple[list[Any], list[Any]]:
        self._running()
        item_of = {of_ray(item): item for item in refs}
        if len(item_of) != len(refs):
            raise ValueError("wait() takes a list of unique refs and generators; one stands in it twice")
        if not 1 <= num_returns <= len(refs):
            raise ValueError(f"num_returns={num_returns} is out of range: 1 to the {len(refs)} refs given")
        with calls.ours():
            ready, rest = ray.wait(
                list(item_of), num_returns=num_returns, timeout=_timeout(timeout), fetch_local=fetch_local
            )
        return [item_of[item] for item in ready], [item_of[item] for item in rest]

    def cancel(self, ref: Any, *, force: bool = False, recursive: bool = True) -> None:
        self._running()
        if not isinstance(force, bool) or not isinstance(recursive, bool):
            raise TypeError(
                f"force and recursive must be True or False, not force={force!r}, recursive={recursive!r}"
            )
        with calls.ours():
            ray.cancel(of_ray(ref), force=force, recursive=recursive)

    def outcome(self, call: Any, timeout_s: float) -> Any:
        from ftray._ray import outcomes

        client.refuse("ftray.checkpoint.outcome()")
        return outcomes.of_call(call, timeout_s)

    # --- facts and services

    def runtime_context(self) -> facts.RayRuntimeContext:
        return facts.RayRuntimeContext()

    def gpu_ids(self) -> list[int] | list[str]:
        self._running()
        found: list[int] | list[str] = ray.get_gpu_ids()
        return found

    def node_ip(self) -> str:
        return str(ray.util.get_node_ip_address())

    def timeline(self, filename: str | None) -> list[dict[str, Any]] | None:
        self._running()
        found: list[dict[str, Any]] | None = ray.timeline(filename)
        return found

    def current_group(self) -> bytes | None:
        if not _in_worker():
            return None
        group = ray.util.get_current_placement_group()
        if group is None or group.is_empty:
            return None
        capture = ray.get_runtime_context().should_capture_child_tasks_in_placement_group
        raw: bytes = group.id.binary()
        return raw + bytes([bool(capture)])

    def create_group(
        self, bundles: list[dict[str, float]], strategy: str, name: str, lifetime: str | None
    ) -> PlacementGroup:
        return services.create_group(bundles, strategy, name, lifetime)

    def state_table(self, resource: str, address: str | None, timeout_s: float) -> Any:
        self._running()
        return states.table(resource, address)

    def register_serializer(self, cls: type, *, serializer: Any, deserializer: Any) -> None:
        pickler.register_serializer(cls, serializer=serializer, deserializer=deserializer)  # which checks
        if self.is_initialized():
            ray.util.register_serializer(cls, serializer=serializer, deserializer=deserializer)

    def deregister_serializer(self, cls: type) -> None:
        pickler.deregister_serializer(cls)
        if self.is_initialized():
            ray.util.deregister_serializer(cls)

    def ask(self, method: str, arguments: dict[str, Any]) -> Any:
        self._running()
        return services.ask(method, arguments)


def _in_worker() -> bool:
    worker = ray._private.worker
    return bool(worker.global_worker.mode == worker.WORKER_MODE)


def _timeout(timeout: Any) -> float | None:
    """Check a time-out as the core does."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int | float):
        raise TypeError(f"timeout must be a number of seconds or None, not {timeout!r}")
    if not timeout >= 0:
        raise ValueError(f"timeout must be a number of seconds >= 0, or None; got {timeout!r}")
    return None if timeout > _LONGEST_S else timeout


ENGINE: Engine = RayEngine()
