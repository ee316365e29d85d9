"""Functions of the public API that are neither tasks nor objects."""

from __future__ import annotations

from ftray import _engine, _options
from ftray._functions import RemoteFunction
from ftray.actor import ActorClass, find, kill

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, cast

    from ftray._typed import Remote
    from ftray.actor import ActorHandle
    from ftray.runtime_context import RuntimeContext

__all__ = [
    "available_resources",
    "cluster_resources",
    "get_actor",
    "get_gpu_ids",
    "get_runtime_context",
    "kill",
    "node_rpc",
    "nodes",
    "remote",
    "timeline",
]


def _make_remote(target: Any, options: dict[str, Any]) -> RemoteFunction[..., Any] | ActorClass[Any]:
    if isinstance(target, type):
        return ActorClass(target, _options.check("actor", options))
    if isinstance(target, RemoteFunction | ActorClass):
        raise TypeError(f"{target!r} is remote already; use .options(...) to change its options")
    if callable(target) and hasattr(target, "__code__"):
        if target.__code__.co_flags & 0x80:
            raise TypeError(
                f"{target.__qualname__} is an async function: tasks run plain functions;"
                " async def works for methods of actors"
            )
        return RemoteFunction(target, _options.check("task", options))
    raise TypeError(f"@remote takes a function or a class, not {type(target).__name__}: {target!r:.100}")


def _remote(*args: Any, **options: Any) -> Any:
    """Make a function a remote function, or a class an actor class.

    Used as ``@remote`` or ``@remote(num_cpus=2, ...)``; see ``docs/api.md`` for the options.

    Raises
    ------
    TypeError, ValueError
        An unknown option, a value that is not allowed, or something that is neither function nor class.
    """
    if len(args) == 1 and not options:
        return _make_remote(args[0], {})
    if args or not options:
        raise TypeError(
            "use @ftray.remote without parentheses, or with keyword options: @ftray.remote(num_cpus=2)"
        )
    return lambda target: _make_remote(target, options)


_remote.__name__ = _remote.__qualname__ = "remote"
if TYPE_CHECKING:
    remote = cast(Remote, _remote)
else:
    remote = _remote


def node_rpc(method: str, **arguments: Any) -> Any:
    """Call a service of the cluster (natively: of ftrayd) and return its result."""
    return _engine.current().ask(method, arguments)


def get_actor(name: str, namespace: str | None = None) -> ActorHandle[Any]:
    """Return a handle of a named actor.

    Parameters
    ----------
    name : str
        The name given with ``.options(name=...)``.
    namespace : str, optional
        Where to look; by default where this driver's own actors are.

    Raises
    ------
    ValueError
        There is no living actor of that name; the name or the namespace is empty.
    TypeError
        The name or the namespace is no string.
    """
    return find(name, namespace)


def cluster_resources() -> dict[str, float]:
    """Return the total of every resource."""
    found: dict[str, float] = node_rpc("cluster_resources")
    return found


def available_resources() -> dict[str, float]:
    """Return what of every resource is free now."""
    found: dict[str, float] = node_rpc("available_resources")
    return found


def nodes() -> list[dict[str, Any]]:
    """Return one dict for each node: ``NodeID``, ``Alive``, ``Resources`` and more."""
    found: list[dict[str, Any]] = node_rpc("nodes")
    return found


def timeline(filename: str | None = None) -> list[dict[str, Any]] | None:
    """Return what ran where and when, as events of the Chrome tracing format, or write them to a file.

    Parameters
    ----------
    filename : str, optional
        Where the JSON goes (for chrome://tracing or Perfetto).

    Returns
    -------
    list of dict or None
        The events when no `filename` is given.
    """
    return _engine.current().timeline(filename)


def get_gpu_ids() -> list[int] | list[str]:
    """Return the ids of the GPUs that the current task or actor has.

    Returns
    -------
    list
        Numbers, or strings from ``CUDA_VISIBLE_DEVICES`` when the node was started with that; empty in a
        driver.

    Raises
    ------
    NotInitializedError
        ftray is not running in this process.
    """
    return _engine.current().gpu_ids()


def get_runtime_context() -> RuntimeContext:
    """Return facts about where the current code runs."""
    return _engine.current().runtime_context()
