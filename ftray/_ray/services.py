"""Services of a Ray cluster under the names by which the API asks for them (`Engine.ask`)."""

from __future__ import annotations

from typing import Any

import ray
from ray.experimental import internal_kv as kv

from ftray._ray.options import group_of
from ftray.exceptions import InternalKVError, NotSupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from ftray.util.placement_group import PlacementGroup

_PREFIX = "ftray-"  # namespaces of the key-value store that nobody else of Ray's uses; a ":" ends Ray's


def ask(method: str, arguments: dict[str, Any]) -> Any:
    """Call a service; NotSupportedError when Ray has no such."""
    service = _SERVICES.get(method)
    if service is None:
        raise NotSupportedError(f"the service {method!r} is not there on the engine 'ray'")
    return service(**arguments)


def nodes() -> list[dict[str, Any]]:
    """Return one dict for each node, as Ray makes them, and whether its store of keys outlives it."""
    return [{**node, "is_head": _is_head(node)} for node in ray.nodes()]


def _is_head(node: dict[str, Any]) -> bool:
    return "node:__internal_head__" in node.get("Resources", {})


def list_named_actors(all_namespaces: bool) -> list[dict[str, str]]:
    """Return name and namespace of living named actors."""
    found = ray.util.list_named_actors(all_namespaces=all_namespaces)
    return list(found) if all_namespaces else [{"name": name, "namespace": ""} for name in found]


def placement_group_find(name: str) -> tuple[bytes, list[dict[str, float]]] | None:
    """Return id and bundles of a named group, None when there is none."""
    try:
        found = ray.util.get_placement_group(name)
    except ValueError:
        return None
    return found.id.binary(), [dict(bundle) for bundle in found.bundle_specs]


def placement_group_table(group_id: bytes | None) -> dict[str, Any]:
    """Return what is known of one group, or of all."""
    if group_id is None:
        return dict(ray.util.placement_group_table())
    found: dict[str, Any] = dict(ray.util.placement_group_table(_handle(group_id)))
    return found if found.get("placement_group_id") else {}


def placement_group_remove(group_id: bytes) -> None:
    """Remove a group."""
    ray.util.remove_placement_group(_handle(group_id))


def _handle(group_id: bytes) -> Any:
    from ftray._ids import PlacementGroupID
    from ftray.util.placement_group import PlacementGroup

    return group_of(PlacementGroup(PlacementGroupID(group_id)))


def _on_kv(function: Callable[..., Any]) -> Callable[..., Any]:
    def service(namespace: bytes, **arguments: Any) -> Any:
        try:
            return function(namespace=f"{_PREFIX}{namespace.hex()}".encode(), **arguments)
        except (ray.exceptions.RayError, ConnectionError, TimeoutError) as error:
            text = f"Ray's internal key-value store cannot be used: {type(error).__name__}: {error}"
        raise InternalKVError(text)

    return service


def _put(key: bytes, value: bytes, overwrite: bool, namespace: bytes) -> bool:
    return bool(kv._internal_kv_put(key, value, overwrite, namespace=namespace))


def _get(key: bytes, namespace: bytes) -> bytes | None:
    found: bytes | None = kv._internal_kv_get(key, namespace=namespace)
    return found


def _exists(key: bytes, namespace: bytes) -> bool:
    return bool(kv._internal_kv_exists(key, namespace=namespace))


def _delete(key: bytes, del_by_prefix: bool, namespace: bytes) -> int:
    return int(kv._internal_kv_del(key, del_by_prefix=del_by_prefix, namespace=namespace))


def _keys(prefix: bytes, namespace: bytes) -> list[bytes]:
    return sorted(kv._internal_kv_list(prefix, namespace=namespace))


def _actor_waits(**arguments: Any) -> Any:
    from ftray._ray import host_waits  # in processes of exactly-once actors only

    return host_waits.actor_waits(**arguments)


_SERVICES: dict[str, Callable[..., Any]] = {
    "nodes": nodes,
    "cluster_resources": lambda: dict(ray.cluster_resources()),
    "available_resources": lambda: dict(ray.available_resources()),
    "list_named_actors": list_named_actors,
    "placement_group_find": placement_group_find,
    "placement_group_table": placement_group_table,
    "placement_group_remove": placement_group_remove,
    "actor_waits": _actor_waits,
    "kv_put": _on_kv(_put),
    "kv_get": _on_kv(_get),
    "kv_exists": _on_kv(_exists),
    "kv_del": _on_kv(_delete),
    "kv_keys": _on_kv(_keys),
}


def create_group(
    bundles: list[dict[str, float]], strategy: str, name: str, lifetime: str | None
) -> PlacementGroup:
    """Reserve bundles of resources."""
    from ftray._ids import PlacementGroupID
    from ftray.util.placement_group import PlacementGroup

    try:
        made = ray.util.placement_group(bundles, strategy=strategy, name=name, lifetime=lifetime)
    except ray.exceptions.RayError as error:
        raise ValueError(str(error)) from None
    return PlacementGroup(PlacementGroupID(made.id.binary()), bundles)
