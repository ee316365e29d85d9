"""Where a task or an actor shall run: values of the option ``scheduling_strategy``.

``"DEFAULT"`` and ``"SPREAD"`` are strings; the others are the classes of this module, under Ray's names.
"""

from __future__ import annotations

from ftray._ids import NodeID
from ftray._options import boolean
from ftray.exceptions import NotSupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from ftray.util.placement_group import PlacementGroup

__all__ = [
    "DoesNotExist",
    "Exists",
    "In",
    "NodeAffinitySchedulingStrategy",
    "NodeLabelSchedulingStrategy",
    "NotIn",
    "PlacementGroupSchedulingStrategy",
]


class PlacementGroupSchedulingStrategy:
    """Run on what a placement group has reserved.

    Parameters
    ----------
    placement_group : PlacementGroup or None
        The group; None: no group, even where child tasks are captured.
    placement_group_bundle_index : int, default -1
        Which of its bundles; -1: any that is large enough and free.
    placement_group_capture_child_tasks : bool, optional
        Whether tasks and actors that the task or actor starts without a strategy of their own run in the
        group as well (in any bundle), and so on for theirs. By default as it is for the code that starts it;
        False outside any group.

    Raises
    ------
    TypeError
        An argument of the wrong type.
    """

    def __init__(
        self,
        placement_group: PlacementGroup | None,
        placement_group_bundle_index: int = -1,
        placement_group_capture_child_tasks: bool | None = None,
    ) -> None:
        from ftray.util.placement_group import PlacementGroup

        if placement_group is not None and not isinstance(placement_group, PlacementGroup):
            raise TypeError(f"placement_group must be a PlacementGroup or None, not {placement_group!r:.200}")
        index, capture = placement_group_bundle_index, placement_group_capture_child_tasks
        if isinstance(index, bool) or not isinstance(index, int):
            raise TypeError(f"placement_group_bundle_index must be an int, not {index!r:.200}")
        if capture is not None and not isinstance(capture, bool):
            raise TypeError(
                f"placement_group_capture_child_tasks must be True, False or None, not {capture!r:.200}"
            )
        self.placement_group = placement_group
        self.placement_group_bundle_index = index
        self.placement_group_capture_child_tasks = capture

    def __repr__(self) -> str:
        index = self.placement_group_bundle_index
        return f"PlacementGroupSchedulingStrategy({self.placement_group!r}, {index})"


class NodeAffinitySchedulingStrategy:
    """Run on one node.

    Parameters
    ----------
    node_id : str
        In hexadecimal, as ``ftray.nodes()[0]["NodeID"]`` has it.
    soft : bool
        Whether to run elsewhere when there is no such node. Otherwise a task ends with
        `TaskUnschedulableError` and calls of an actor with `ActorUnschedulableError`, also when the node is
        too small for it.

    Raises
    ------
    TypeError
        `soft` is no truth value.
    ValueError
        `node_id` is no id of a node.
    NotSupportedError
        ``_fail_on_unavailable``.
    """

    def __init__(
        self,
        node_id: str,
        soft: bool,
        _spill_on_unavailable: bool = False,
        _fail_on_unavailable: bool = False,
    ) -> None:
        boolean("soft", soft)
        if _spill_on_unavailable and not soft:
            raise ValueError("_spill_on_unavailable=True needs soft=True")
        if _fail_on_unavailable:
            raise NotSupportedError("_fail_on_unavailable=True is not supported by this version of ftray")
        text = node_id if isinstance(node_id, str) else getattr(node_id, "hex", lambda: "")()
        try:
            nil = NodeID.from_hex(text).is_nil()
        except (ValueError, TypeError):
            nil = True
        if nil:
            raise ValueError(
                f"node_id={node_id!r:.200} is not valid: it must be a node's id of {2 * NodeID.SIZE}"
                ' hexadecimal digits, as ftray.nodes() gives it under "NodeID"'
            )
        self.node_id = text.lower()
        self.soft = soft
        self._spill_on_unavailable = bool(_spill_on_unavailable)
        self._fail_on_unavailable = False

    def __repr__(self) -> str:
        return f"NodeAffinitySchedulingStrategy({self.node_id!r}, soft={self.soft})"


class _Values:
    """A condition on a label's value."""

    operator = ""

    def __init__(self, *values: str) -> None:
        name = type(self).__name__
        if not values or not all(isinstance(value, str) for value in values):
            raise ValueError(f'{name}{values!r:.200}: it takes one or more strings, e.g. {name}("a", "b")')
        self.values = list(values)


class In(_Values):
    """The label has one of these values."""

    operator = "in"


class NotIn(_Values):
    """The label has none of these values, or is not there."""

    operator = "not_in"


class Exists:
    """The label is there."""

    operator = "exists"
    values: tuple[str, ...] = ()


class DoesNotExist:
    """The label is not there."""

    operator = "does_not_exist"
    values: tuple[str, ...] = ()


class NodeLabelSchedulingStrategy:
    """Run on a node whose labels (``init(labels=...)``) meet conditions.

    Parameters
    ----------
    hard : dict
        Label to `In`, `NotIn`, `Exists` or `DoesNotExist`; without a node that meets all of them, the task or
        actor waits, with a warning.
    soft : dict, optional
        Of the nodes that meet `hard`, one that meets these as well is preferred.

    Raises
    ------
    ValueError
        No condition, or one that is none of the four.
    """

    def __init__(self, hard: dict[str, Any] | None, *, soft: dict[str, Any] | None = None) -> None:
        self.hard = _conditions(hard, "hard")
        self.soft = _conditions(soft, "soft")
        if not self.hard and not self.soft:
            raise ValueError("hard and soft are both empty: NodeLabelSchedulingStrategy needs some condition")

    def __repr__(self) -> str:
        return f"NodeLabelSchedulingStrategy(hard={sorted(self.hard)}, soft={sorted(self.soft)})"


def _conditions(given: dict[str, Any] | None, name: str) -> dict[str, In | NotIn | Exists | DoesNotExist]:
    given = {} if given is None else given
    allowed = (
        f'{name} must be a dict of labels to In, NotIn, Exists or DoesNotExist, e.g. {{"zone": In("a")}}'
    )
    if not isinstance(given, dict):
        raise ValueError(f"{allowed}, not {given!r:.200}")
    for key, condition in given.items():
        if not isinstance(key, str) or not isinstance(condition, In | NotIn | Exists | DoesNotExist):
            raise ValueError(f"{allowed}; {key!r:.100}: {condition!r:.100} is none")
    return dict(given)
