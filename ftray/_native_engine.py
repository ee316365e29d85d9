"""The native runtime as an `ftray._engine.Engine`: a thin list of what does what.

Owns: nothing. Leaves to others: starting and stopping (``_lifecycle``), what callers of functions need
(``_native_calls``), making and finding actors (``_native_actors``), everything per call (``_core``).
"""

from __future__ import annotations

from ftray import _core, _lifecycle
from ftray._core import pickler

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from ftray._engine import Engine
    from ftray._functions import RemoteFunction
    from ftray.actor import ActorClass, ActorHandle, _Meta
    from ftray.runtime_context import RuntimeContext
    from ftray.util.placement_group import PlacementGroup


class NativeEngine:
    """ftray's own processes on this machine."""

    name = "native"

    # The core's own functions: what it does not know itself, it does not hand on to this engine.
    get = staticmethod(_core.get)
    put = staticmethod(_core.put)
    wait = staticmethod(_core.wait)
    cancel = staticmethod(_core.cancel)

    def init(self, arguments: dict[str, Any]) -> _lifecycle.RayContext:
        return _lifecycle.init(**arguments)

    def ensure(self) -> None:
        _lifecycle.ensure()

    def is_initialized(self) -> bool:
        return _core.attached()

    def shutdown(self) -> None:
        _lifecycle.shutdown()

    def function(self, function: RemoteFunction[..., Any]) -> tuple[Any, ...]:
        from ftray import _native_calls

        return _native_calls.binding_of(function)

    def create_actor(
        self, actor_class: ActorClass[Any], meta: _Meta, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> ActorHandle[Any]:
        from ftray import _native_actors

        return _native_actors.create(actor_class, meta, args, kwargs)

    def find_actor(self, name: str, namespace: str | None) -> ActorHandle[Any]:
        from ftray import _native_actors

        return _native_actors.find(name, namespace)

    def kill(self, actor: ActorHandle[Any], no_restart: bool) -> None:
        actor._target.kill(no_restart)

    def exit_actor(self) -> NoReturn:
        from ftray import _worker

        _worker.exit_actor()

    def outcome(self, call: Any, timeout_s: float) -> Any:
        from ftray import _call_outcomes

        return _call_outcomes.of_call(call, timeout_s)

    def runtime_context(self) -> RuntimeContext:
        from ftray.runtime_context import RuntimeContext

        return RuntimeContext()

    def gpu_ids(self) -> list[int] | list[str]:
        from ftray import _accelerators

        _lifecycle.current()
        return _accelerators.numbers_or_names()

    def node_ip(self) -> str:
        return "127.0.0.1"  # loopback: everything is on this machine

    def timeline(self, filename: str | None) -> list[dict[str, Any]] | None:
        from ftray._timeline import timeline

        return timeline(filename)

    def current_group(self) -> bytes | None:
        return _core.current_group()

    def create_group(
        self, bundles: list[dict[str, float]], strategy: str, name: str, lifetime: str | None
    ) -> PlacementGroup:
        import os

        from ftray._ids import PlacementGroupID
        from ftray.util.placement_group import PlacementGroup

        group_id = os.urandom(14) + _lifecycle.current().job_id.to_bytes(4, "little")
        arguments = {"group_id": group_id, "bundles": bundles, "strategy": strategy, "name": name}
        self.ask("placement_group_create", {**arguments, "detached": lifetime == "detached"})
        return PlacementGroup(PlacementGroupID(group_id), bundles)

    def state_table(self, resource: str, address: str | None, timeout_s: float) -> Any:
        from ftray.util.state import tables
        from ftray.util.state.link import Link

        with Link(address, timeout_s) as link:
            return tables.TABLES[resource](link)

    def register_serializer(self, cls: type, *, serializer: Any, deserializer: Any) -> None:
        pickler.register_serializer(cls, serializer=serializer, deserializer=deserializer)

    def deregister_serializer(self, cls: type) -> None:
        pickler.deregister_serializer(cls)

    def ask(self, method: str, arguments: dict[str, Any]) -> Any:
        _lifecycle.current()
        return _lifecycle.ask(method, arguments)


ENGINE: Engine = NativeEngine()
