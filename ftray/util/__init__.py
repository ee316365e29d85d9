"""Utilities around tasks and actors, under Ray's names; each is imported when it is first used."""

from __future__ import annotations

from ftray._serializers import deregister_serializer, register_serializer

# At once, not when first used: `placement_group` is also the name of a submodule, and has to be the function.
from ftray.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ftray.util.actor_pool import ActorPool
    from ftray.util.check_serialize import inspect_serializability
    from ftray.util.helpers import as_completed, get_node_ip_address, list_named_actors, map_unordered

__all__ = [
    "ActorPool",
    "as_completed",
    "deregister_serializer",
    "get_current_placement_group",
    "get_node_ip_address",
    "get_placement_group",
    "inspect_serializability",
    "list_named_actors",
    "map_unordered",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
]

_HOME = {
    "ActorPool": "actor_pool",
    "as_completed": "helpers",
    "get_node_ip_address": "helpers",
    "inspect_serializability": "check_serialize",
    "list_named_actors": "helpers",
    "map_unordered": "helpers",
}


def __getattr__(name: str) -> object:
    import importlib

    if name in _HOME:
        return getattr(importlib.import_module(f"ftray.util.{_HOME[name]}"), name)
    return importlib.import_module("ftray._absent").submodule("ftray.util", name)
