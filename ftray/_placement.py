"""What the scheduling options of a task or an actor mean for the node.

Owns: the text of a strategy that travels to ``ftrayd`` (its reader is ``ftray/_node/strategies.py``), and the
inheritance of placement groups. Only loaded by programs that name strategies or groups, or run in a group.
"""

from __future__ import annotations

import json
import sys

from ftray import _core
from ftray.util.placement_group import PlacementGroup, get_current_placement_group
from ftray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, NodeLabelSchedulingStrategy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_TEXT_LIMIT_BYTES = 65535


def strategy_of(
    explicit: Mapping[str, Any], held: Mapping[str, float], needed: Mapping[str, float], what: str
) -> tuple[str, bytes]:
    """Return the strategy as it travels, and the group that the code will know to run in.

    Parameters
    ----------
    explicit
        Checked options, as the user gave them.
    held, needed
        What it keeps, and what has to be free to place it.
    what
        The task or actor, in words.

    Returns
    -------
    str
        As ``ftray/_node/strategies.py`` describes it.
    bytes
        The group's id and whether it captures child tasks, b"" outside groups.

    Raises
    ------
    ValueError
        The group has no such bundle, or none that is large enough.
    """
    strategy = explicit.get("scheduling_strategy")
    if isinstance(strategy, str):
        return "" if strategy == "DEFAULT" else strategy, b""
    if isinstance(strategy, NodeAffinitySchedulingStrategy):
        return _text({"type": "node_affinity", "node_id": strategy.node_id, "soft": strategy.soft}), b""
    if isinstance(strategy, NodeLabelSchedulingStrategy):
        hard, soft = (
            {key: [condition.operator, list(condition.values)] for key, condition in conditions.items()}
            for conditions in (strategy.hard, strategy.soft)
        )
        return _text({"type": "node_label", "hard": hard, "soft": soft}), b""
    group, index, capture = _wanted(explicit)
    if group.is_empty:
        if index != -1:
            raise ValueError(f"placement_group_bundle_index={index} of {what} needs a placement group")
        return "", b""
    _check_fits(group, index, held, needed, what)
    fields = {"type": "placement_group", "group": group.id.hex(), "bundle": index, "capture": capture}
    return _text(fields), group.id.binary() + bytes([capture])


def _text(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True)
    if len(text) > _TEXT_LIMIT_BYTES:
        raise ValueError(f"a scheduling strategy is at most {_TEXT_LIMIT_BYTES} bytes long, not {len(text)}")
    return text


def _wanted(explicit: Mapping[str, Any]) -> tuple[PlacementGroup, int, bool]:
    """Return group, bundle and capture from the strategy, the older options and the code that runs here."""
    strategy = explicit.get("scheduling_strategy")
    if strategy is not None:
        group: Any = strategy.placement_group or False
        index = strategy.placement_group_bundle_index
        capture = strategy.placement_group_capture_child_tasks
    else:
        _warn_of_older(explicit)
        group = explicit.get("placement_group", "default")
        index = explicit.get("placement_group_bundle_index", -1)
        capture = explicit.get("placement_group_capture_child_tasks")
    if capture is None:
        here = _core.current_group()
        capture = here is not None and here[-1] == 1
    if group == "default":
        group = get_current_placement_group() if capture else None
    return group or PlacementGroup.empty(), index, capture


def _warn_of_older(explicit: Mapping[str, Any]) -> None:
    harmless = {"placement_group": ("default", False), "placement_group_bundle_index": (-1,)}
    older = [
        name
        for name in explicit
        if name.startswith("placement_group") and explicit[name] not in harmless.get(name, (False,))
    ]
    if older:
        import warnings

        warnings.warn(
            f"{', '.join(older)}: use scheduling_strategy=PlacementGroupSchedulingStrategy(...) instead",
            DeprecationWarning,
            stacklevel=_level_of_caller(),
        )


def _level_of_caller() -> int:
    """Return the stack level, for who calls this, of the code that is not ftray's."""
    level, frame = 0, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("ftray."):
        level, frame = level + 1, frame.f_back
    return level + 1


def _check_fits(
    group: PlacementGroup, index: int, held: Mapping[str, float], needed: Mapping[str, float], what: str
) -> None:
    bundles = group.bundle_specs
    if not -1 <= index < len(bundles):
        raise ValueError(
            f"placement_group_bundle_index={index} is not valid for {what}: the placement group has the"
            f" bundles 0 to {len(bundles) - 1}; -1 means any"
        )
    candidates = bundles if index < 0 else [bundles[index]]
    if any(all(bundle.get(name, 0) >= amount for name, amount in needed.items()) for bundle in candidates):
        return
    where = "any bundle" if index < 0 else f"bundle {index}"
    hint = ""
    if dict(needed) != dict(held):
        hint = " (an actor that names no num_cpus needs one CPU to be placed; num_cpus=0 needs none)"
    raise ValueError(
        f"{what} asks for {dict(needed)}, which does not fit into {where} of its placement group"
        f" {candidates}{hint}"
    )
