"""Utilities around tasks and actors, under Ray's names."""

from ftray._core.pickler import deregister_serializer, register_serializer

# At once, not when first used: `placement_group` is also the name of a submodule, and has to be the function.
from ftray.util.placement_group import (
    get_current_placement_group,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

__all__ = [
    "deregister_serializer",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "register_serializer",
    "remove_placement_group",
]
