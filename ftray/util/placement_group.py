"""Placement groups: resources that are reserved together, for tasks and actors that then run in them."""

from __future__ import annotations

from ftray import _core, _engine, _options
from ftray._ids import PlacementGroupID
from ftray.exceptions import NotSupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "PlacementGroup",
    "get_current_placement_group",
    "get_placement_group",
    "placement_group",
    "placement_group_table",
    "remove_placement_group",
]

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
_KNOWN_GROUPS = 1000

_bundles_of: dict[bytes, list[dict[str, float]]] = {}  # groups that this process was told of by id only


class PlacementGroup:
    """A handle of a placement group, made by `placement_group`. It can be passed on and stored.

    Attributes
    ----------
    id : PlacementGroupID
        18 bytes.
    """

    def __init__(self, id: PlacementGroupID, bundle_cache: list[dict[str, float]] | None = None) -> None:
        self.id = id
        self.bundle_cache = bundle_cache

    @staticmethod
    def empty() -> PlacementGroup:
        """Return the handle of no group."""
        return PlacementGroup(PlacementGroupID(b"\xff" * PlacementGroupID.SIZE), [])

    @property
    def is_empty(self) -> bool:
        """Whether this is the handle of no group."""
        return self.id.is_nil()

    @property
    def bundle_specs(self) -> list[dict[str, float]]:
        """The amounts that each bundle reserves, by resource."""
        if self.bundle_cache is None:
            self.bundle_cache = _fetch_bundles(self.id.binary())
        return [dict(bundle) for bundle in self.bundle_cache]

    @property
    def bundle_count(self) -> int:
        """The number of bundles."""
        return len(self.bundle_specs)

    def ready(self) -> _core.ObjectRef:
        """Return a ref whose value, this handle, is there once all bundles are reserved.

        Getting it raises `TaskPlacementGroupRemoved` when the group is removed before. It is a task without
        demands in the group: it needs a worker process for a moment.
        """
        engine = _engine.ensure()
        if self.is_empty:
            empty: _core.ObjectRef = engine.put(self)
            return empty
        from ftray._functions import RemoteFunction
        from ftray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        strategy = PlacementGroupSchedulingStrategy(self, -1, False)
        explicit = {"num_cpus": 0.0, "max_retries": -1, "scheduling_strategy": strategy}
        ref: _core.ObjectRef = RemoteFunction(_itself, explicit).remote(self)
        return ref

    def wait(self, timeout_seconds: float = 30) -> bool:
        """Wait until all bundles are reserved.

        Parameters
        ----------
        timeout_seconds : float, default 30
            How long at most.

        Returns
        -------
        bool
            False: they are not by then, or the group was removed.
        """
        if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, int | float):
            raise TypeError(f"timeout_seconds must be a number, not {timeout_seconds!r:.100}")
        if not timeout_seconds >= 0:
            raise ValueError(f"timeout_seconds must be at least 0, not {timeout_seconds!r}")
        if self.is_empty:
            return True
        state = placement_group_table(self).get("state")
        if state is None or state == "REMOVED":
            return False
        return state == "CREATED" or _wait_for(self.ready(), timeout_seconds)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PlacementGroup) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlacementGroup, (self.id, self.bundle_cache)

    def __repr__(self) -> str:
        return f"PlacementGroup({self.id.hex()})"


def _itself(group: PlacementGroup) -> PlacementGroup:
    """Run in a group, which shows that it is placed."""
    return group


def _wait_for(ready: _core.ObjectRef, timeout_s: float) -> bool:
    from ftray.exceptions import TaskPlacementGroupRemoved

    done, _ = _core.wait([ready], num_returns=1, timeout=timeout_s)
    if not done:
        _core.cancel(ready)
        return False
    try:
        _core.get(ready)
    except TaskPlacementGroupRemoved:
        return False
    return True


def _fetch_bundles(group_id: bytes) -> list[dict[str, float]]:
    """Ask ``ftrayd`` once for each group."""
    known = _bundles_of.get(group_id)
    if known is None:
        from ftray._api import node_rpc

        table = node_rpc("placement_group_table", group_id=group_id)
        if not table:
            raise ValueError(f"no placement group with the id {group_id.hex()} is known in this session")
        known = [table["bundles"][index] for index in sorted(table["bundles"])]
        if len(_bundles_of) >= _KNOWN_GROUPS:
            _bundles_of.clear()
        _bundles_of[group_id] = known
    return known


def placement_group(
    bundles: list[dict[str, float]],
    strategy: str | None = None,
    name: str = "",
    lifetime: str | None = None,
    _soft_target_node_id: str | None = None,
    bundle_label_selector: list[dict[str, str]] | None = None,
    topology_strategy: dict[str, str] | None = None,
) -> PlacementGroup:
    """Reserve bundles of resources, all of them or none.

    The call does not wait for the reservation: a group whose resources are taken waits its turn, and tasks
    and actors wait for their group. See `PlacementGroup.ready` and `PlacementGroup.wait`.

    Parameters
    ----------
    bundles : list of dict
        Amounts by resource: ``CPU``, ``GPU``, ``memory`` (bytes) and custom ones.
    strategy : str, default "PACK"
        ``PACK`` or ``STRICT_PACK``: on as few nodes as possible, or on one; ``SPREAD`` or ``STRICT_SPREAD``:
        on as many as possible, or each bundle on one of its own. With the one node there is, the first three
        are the same, and a STRICT_SPREAD group of several bundles waits, with a warning.
    name : str, optional
        For `get_placement_group`, in the namespace of the job.
    lifetime : str, optional
        ``"detached"``: it stays until it is removed. By default it is removed when the job's driver ends;
        one that a detached actor makes, when that actor is dead.

    Returns
    -------
    PlacementGroup

    Raises
    ------
    ValueError
        No bundles, empty ones, amounts that no machine has, an unknown strategy or lifetime, a name that is
        taken.
    NotSupportedError
        One of the other arguments is given.
    """
    specs = _checked(bundles)
    strategy = "PACK" if strategy is None else strategy
    if strategy not in STRATEGIES:
        allowed = ", ".join(STRATEGIES)
        raise ValueError(f"strategy={strategy!r:.100} is not valid: it must be one of {allowed}")
    if not isinstance(name, str):
        raise ValueError(f"name={name!r:.100} is not valid: it must be a string")
    if lifetime not in (None, "detached"):
        raise ValueError(f"lifetime={lifetime!r:.100} is not valid: it must be None or 'detached'")
    missing = {
        "_soft_target_node_id": _soft_target_node_id,
        "bundle_label_selector": bundle_label_selector,
        "topology_strategy": topology_strategy,
    }
    for option, value in missing.items():
        if value:
            raise NotSupportedError(f"{option}={value!r:.100} is not supported by this version of ftray")
    return _engine.ensure().create_group(specs, strategy, name, lifetime)


def _checked(bundles: Any) -> list[dict[str, float]]:
    example = 'a list of dicts of resource to amount, e.g. [{"CPU": 1}, {"CPU": 1, "GPU": 1}]'
    if not isinstance(bundles, list) or not bundles:
        raise ValueError(f"bundles={bundles!r:.200} is not valid: it must be {example}, and not empty")
    specs = []
    for bundle in bundles:
        if not isinstance(bundle, dict) or not all(isinstance(key, str) and key for key in bundle):
            raise ValueError(f"the bundle {bundle!r:.200} is not valid: bundles are {example}")
        try:
            spec = {key: _options.amount(f"bundle[{key!r}]", amount) for key, amount in bundle.items()}
        except TypeError as error:
            raise ValueError(str(error)) from None
        if not any(spec.values()):
            raise ValueError(f"the bundle {bundle!r:.200} is not valid: it reserves nothing")
        specs.append(spec)
    return specs


def remove_placement_group(placement_group: PlacementGroup) -> None:
    """Remove a group: what runs in it is killed, what waits for it fails, its resources are free again.

    Tasks of the group end with `TaskPlacementGroupRemoved`. Its actors die: calls raise `ActorDiedError`,
    or `ActorPlacementGroupRemoved` when the actor was not placed yet. Removing a removed group does nothing.

    Parameters
    ----------
    placement_group : PlacementGroup
        The group.
    """
    _check_handle(placement_group)
    from ftray._api import node_rpc

    if not placement_group.is_empty:
        node_rpc("placement_group_remove", group_id=placement_group.id.binary())


def get_placement_group(placement_group_name: str) -> PlacementGroup:
    """Return a handle of the named group in this job's namespace.

    Raises
    ------
    ValueError
        There is none.
    """
    if not isinstance(placement_group_name, str) or not placement_group_name:
        raise ValueError(
            f"the name of a placement group must be a non-empty string, not {placement_group_name!r:.100}"
        )
    _engine.ensure()
    from ftray._api import node_rpc

    found = node_rpc("placement_group_find", name=placement_group_name)
    if found is None:
        raise ValueError(f"there is no placement group named {placement_group_name!r} in this namespace")
    group_id, bundles = found
    return PlacementGroup(PlacementGroupID(group_id), bundles)


def placement_group_table(placement_group: PlacementGroup | None = None) -> dict[str, Any]:
    """Return what is known of one group, or of all by their ids in hexadecimal.

    Returns
    -------
    dict
        ``state`` is PENDING, CREATED or REMOVED; ``bundles``, ``strategy``, ``name``, ``bundles_to_node_id``
        and ``stats`` are as in Ray. {} for a group that nothing is known of.
    """
    _engine.ensure()
    from ftray._api import node_rpc

    if placement_group is not None:
        _check_handle(placement_group)
    group_id = None if placement_group is None else placement_group.id.binary()
    table: dict[str, Any] = node_rpc("placement_group_table", group_id=group_id)
    return table


def get_current_placement_group() -> PlacementGroup | None:
    """Return the group that the calling task or actor runs in, None in a driver or outside groups."""
    here = _engine.current().current_group()
    return None if here is None else PlacementGroup(PlacementGroupID(here[:-1]))


def _check_handle(value: Any) -> None:
    if not isinstance(value, PlacementGroup):
        raise TypeError(f"a PlacementGroup is needed, not {type(value).__name__}: {value!r:.100}")
