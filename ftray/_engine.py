"""Which engine this process's tasks, actors and objects are on.

Owns: the interface that an engine implements (`Engine`), the table of engines, and the choice: the one that
``init(engine=...)`` names, else ``FTRAY_ENGINE``, else the one whose worker this process is, else ``native``.
Invariants: a process has one engine at a time; everything in ``ftray/`` that needs a running cluster asks
`current` or `ensure` for it, and nobody asks which engine it is. Leaves to others: the engines themselves
(`ftray._native_engine`, `ftray._ray.engine`).

The path of a native call does not come by here: a `RemoteFunction` asks once which caller it is to use
(`Engine.function`), handles are made by the engine and bring their methods along, and `get`, `wait` and
`cancel` of the core hand refs that are not its own to the engine that those name.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn, Protocol

    from ftray._functions import RemoteFunction
    from ftray.actor import ActorClass, ActorHandle, _Meta
    from ftray.runtime_context import RuntimeContext
    from ftray.util.placement_group import PlacementGroup

    class Engine(Protocol):
        """What runs tasks and actors. Arguments were checked before; exceptions are the public API's."""

        name: str

        # --- life
        def init(self, arguments: dict[str, Any]) -> Any:
            """Start or attach, with the arguments of ``ftray.init``; return the context that it returns."""

        def ensure(self) -> None:
            """Start with the defaults when nothing did yet."""

        def is_initialized(self) -> bool: ...
        def shutdown(self) -> None:
            """Stop in this process; nothing when it does not run."""

        # --- calls
        def function(self, function: RemoteFunction[..., Any]) -> tuple[Any, ...] | Callable[..., Any]:
            """Return what ``function.remote`` uses: a binding for the core (see ``FunctionCaller``), or what
            to call with its arguments."""

        def create_actor(
            self, actor_class: ActorClass[Any], meta: _Meta, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> ActorHandle[Any]: ...
        def find_actor(self, name: str, namespace: str | None) -> ActorHandle[Any]:
            """Return a handle of a named actor; ValueError when there is none."""

        def kill(self, actor: ActorHandle[Any], no_restart: bool) -> None: ...
        def exit_actor(self) -> NoReturn:
            """End the actor whose method runs here; TypeError when none does."""

        # --- objects: of these, the core takes care itself where the refs are its own
        def get(self, refs: Any, *, timeout: float | None = None) -> Any: ...
        def put(self, value: Any) -> Any: ...
        def wait(
            self, refs: Any, *, num_returns: int = 1, timeout: float | None = None, fetch_local: bool = True
        ) -> tuple[list[Any], list[Any]]: ...
        def cancel(self, ref: Any, *, force: bool = False, recursive: bool = True) -> None: ...
        def outcome(self, call: Any, timeout_s: float) -> Any:
            """Say what became of a call; see `ftray.checkpoint.outcome`."""

        # --- facts and services
        def runtime_context(self) -> RuntimeContext: ...
        def gpu_ids(self) -> list[int] | list[str]: ...
        def node_ip(self) -> str:
            """Return the address at which others reach this process."""

        def timeline(self, filename: str | None) -> list[dict[str, Any]] | None: ...
        def current_group(self) -> bytes | None:
            """Return the placement group that runs this code: 18 bytes of id and 1 of whether it captures."""

        def create_group(
            self, bundles: list[dict[str, float]], strategy: str, name: str, lifetime: str | None
        ) -> PlacementGroup: ...
        def state_table(self, resource: str, address: str | None, timeout_s: float) -> Any:
            """Return the rows of a resource (a `ftray.util.state.tables.Table`)."""

        def register_serializer(self, cls: type, *, serializer: Any, deserializer: Any) -> None: ...
        def deregister_serializer(self, cls: type) -> None: ...
        def ask(self, method: str, arguments: dict[str, Any]) -> Any:
            """Call a service of the cluster: ``nodes``, ``cluster_resources``, ``available_resources``,
            ``list_named_actors``, ``placement_group_find``, ``placement_group_table``,
            ``placement_group_remove``, ``kv_put``, ``kv_get``, ``kv_exists``, ``kv_del``, ``kv_keys``. Raises
            `NotInitializedError`, and `NotSupportedError` for a service that the engine does not have."""


_HOMES = {"native": "ftray._native_engine", "ray": "ftray._ray.engine"}
DEFAULT = "native"
_current: Engine | None = None


def _default_name() -> str:
    if _in_ray_worker():
        return "ray"
    name = os.environ.get("FTRAY_ENGINE")
    if name:
        if name not in _HOMES:
            raise ValueError(f"the environment variable FTRAY_ENGINE={name!r} is not valid: {_allowed()}")
        return name
    return DEFAULT


def _in_ray_worker() -> bool:
    """Whether Ray has started this process: what runs here is on its cluster, whoever began it."""
    module: Any = sys.modules.get("ray._private.worker")
    worker = getattr(module, "global_worker", None)
    return worker is not None and bool(worker.mode == module.WORKER_MODE)


def _allowed() -> str:
    return f"it must be one of {', '.join(map(repr, sorted(_HOMES)))}"


def named(name: str) -> Engine:
    """Return the engine of that name.

    Raises
    ------
    TypeError, ValueError
        There is none of that name.
    ImportError, NotSupportedError
        What it stands on is not installed, or not in a version that it knows.
    """
    if not isinstance(name, str):
        raise TypeError(f"engine={name!r:.100} is not valid: {_allowed()}")
    if name not in _HOMES:
        raise ValueError(f"engine={name!r:.100} is not valid: {_allowed()}")
    import importlib

    engine: Engine = importlib.import_module(_HOMES[name]).ENGINE
    return engine


def current() -> Engine:
    """Return the engine of this process, whether it runs or not."""
    global _current
    if _current is None:
        _current = named(_default_name())
    return _current


def ensure() -> Engine:
    """Return the engine of this process, started."""
    engine = current()
    engine.ensure()
    return engine


def use(name: str | None) -> Engine:
    """Make an engine this process's (None: the default one).

    Raises
    ------
    RuntimeError
        Another one runs.
    """
    global _current
    running = _current is not None and _current.is_initialized()
    if running and name is None:
        return current()
    wanted = named(_default_name() if name is None else name)
    if running and _current is not None and _current is not wanted:
        raise RuntimeError(
            f"ftray runs on the engine {_current.name!r} in this process: call ftray.shutdown() before"
            f" ftray.init(engine={wanted.name!r})"
        )
    _current = wanted
    return wanted


def is_initialized() -> bool:
    """Whether ftray runs in this process."""
    engine = current() if _in_ray_worker() else _current
    return engine is not None and engine.is_initialized()


def shutdown() -> None:
    """Stop ftray in this process: tasks end, actors that are not detached end, objects are gone.

    Does nothing when ftray does not run here. On another engine's cluster only what belongs to this driver
    ends.
    """
    global _current
    if _current is not None:
        _current.shutdown()
        _current = None


def forget() -> None:
    """Let go of an engine that could not be started, so that nothing starts it later by itself."""
    global _current
    if not is_initialized():
        _current = None
