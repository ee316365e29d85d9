"""Options of tasks, actors and methods, in Ray's words.

Options were checked before (`ftray._options`); most have the same name and meaning. What is not given is not
passed on, except where the defaults could differ.
"""

from __future__ import annotations

from typing import Any

from ray.util import scheduling_strategies as theirs
from ray.util.placement_group import PlacementGroup as RayPlacementGroup

from ftray import _options
from ftray._ray import errors
from ftray.util import scheduling_strategies as ours
from ftray.util.placement_group import PlacementGroup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_SAME = (
    "name",
    "num_cpus",
    "num_gpus",
    "memory",
    "resources",
    "accelerator_type",
    "runtime_env",
    "enable_task_events",
    "placement_group_bundle_index",
    "placement_group_capture_child_tasks",
)
_ACTOR_SAME = (
    "namespace",
    "get_if_exists",
    "lifetime",
    "max_restarts",
    "max_task_retries",
    "max_concurrency",
    "max_pending_calls",
    "concurrency_groups",
    "allow_out_of_order_execution",
)


def _taken(explicit: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    found = {name: explicit[name] for name in names if explicit.get(name) is not None}
    if "memory" in found:
        found["memory"] = int(found["memory"])
    return found


def _placed(explicit: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if explicit.get("scheduling_strategy") is not None:
        found["scheduling_strategy"] = strategy_of(explicit["scheduling_strategy"])
    group = explicit.get("placement_group", "default")
    if group is False:
        found["placement_group"] = None
    elif isinstance(group, PlacementGroup):
        found["placement_group"] = group_of(group)
    return found


def _returns(options: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"num_returns": options.num_returns}
    if options.generator_backpressure:
        found["_generator_backpressure_num_objects"] = options.generator_backpressure
    return found


def of_task(explicit: Mapping[str, Any], options: _options.TaskOptions) -> dict[str, Any]:
    """Return the options of a remote function."""
    return {
        **_taken(explicit, _SAME),
        **_placed(explicit),
        **_returns(options),
        "max_retries": options.max_retries,
        "max_calls": options.max_calls,
        "retry_exceptions": errors.retried(options.retry_exceptions),
    }


def of_actor(explicit: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an actor."""
    return {**_taken(explicit, _SAME + _ACTOR_SAME), **_placed(explicit)}


def of_method(explicit: Mapping[str, Any], is_generator: bool | None) -> dict[str, Any]:
    """Return the options of a method that were given, complete where Ray's defaults could differ."""
    options = _options.method_options(explicit, is_generator=is_generator)
    found = _taken(explicit, ("name", "concurrency_group", "enable_task_events"))
    if explicit.get("num_returns") is not None or is_generator:
        found |= _returns(options)
    if options.max_task_retries is not None:
        found["max_task_retries"] = options.max_task_retries
    if explicit.get("retry_exceptions") is not None:
        found["retry_exceptions"] = errors.retried(options.retry_exceptions)
    return found


def group_of(group: PlacementGroup) -> RayPlacementGroup:
    """Return Ray's handle of a placement group."""
    from ray import PlacementGroupID

    return RayPlacementGroup(PlacementGroupID(group.id.binary()), group.bundle_cache)


def strategy_of(strategy: Any) -> Any:
    """Return Ray's scheduling strategy for one of ours."""
    if isinstance(strategy, str):
        return strategy
    if isinstance(strategy, ours.PlacementGroupSchedulingStrategy):
        group = strategy.placement_group
        return theirs.PlacementGroupSchedulingStrategy(
            None if group is None else group_of(group),
            strategy.placement_group_bundle_index,
            strategy.placement_group_capture_child_tasks,
        )
    if isinstance(strategy, ours.NodeAffinitySchedulingStrategy):
        return theirs.NodeAffinitySchedulingStrategy(
            strategy.node_id, strategy.soft, strategy._spill_on_unavailable
        )
    return theirs.NodeLabelSchedulingStrategy(_conditions(strategy.hard), soft=_conditions(strategy.soft))


def _conditions(given: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(theirs, type(one).__name__)(*one.values) for key, one in given.items()}
