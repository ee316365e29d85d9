"""Placement groups: which there are, what each reserves, who may use it and when it ends.

A pure state machine: methods are events, their results are commands; time is an argument.

Owns: every group's specification and state, names, the arithmetic of bundles.
Invariants: a group's bundles are reserved all or none; its name is free in the step in which it is removed;
REMOVED is final; a demand is placed only in bundles that are large enough for it.
Leaves to others: when the reservation is granted, who waits for it and who runs in it (``scheduler``), ending
those (``group_service``).

States: PENDING -> CREATED -> REMOVED. Each bundle is a pool of resources of its own, named after the group
and the bundle's index (`pool_name`, which are Ray's names), so that the scheduler's rules hold in it as well.
"""

from __future__ import annotations

from enum import Enum

from ftray._node.amounts import GPU, UNIT, as_floats, describe, lacking
from ftray._node.devices import DevicePools
from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from ftray._node.amounts import Amounts

    Commands = list["Command"]

STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
# Each bundle has so much of this resource, of which whatever runs in it takes the least amount: so that a
# demand for nothing waits for the bundle as well.
MARKER = "bundle"
_ID_BYTES = 18
_MARKER_AMOUNT = 1000 * UNIT
# Removed groups that late users still get the right error for.
MAX_TOMBSTONES = 10_000


class GroupError(ValueError):
    """A group, or a place in one, that cannot be."""


class GroupRemovedError(Exception):
    """The group was removed."""


class GroupState(Enum):
    """Where a group is."""

    PENDING = 1
    CREATED = 2
    REMOVED = 3


class GroupSpec(Record):
    """A group as its creator wants it.

    Attributes
    ----------
    bundles
        Amounts of each, none of them empty.
    detached
        It ends only when it is removed.
    job_id, actor_id
        Otherwise it ends with this job, or, when it is not b"", with this actor.
    """

    group_id: bytes
    bundles: tuple[Amounts, ...]
    strategy: str
    name: str
    namespace: str
    detached: bool
    job_id: int
    actor_id: bytes

    def __hash__(self) -> int:
        return hash(self.group_id)

    @property
    def title(self) -> str:
        """The group in words."""
        return f"placement group {self.name!r}" if self.name else f"placement group {self.group_id.hex()}"


class Place(Record):
    """Where a demand may be served: what it needs and holds in each bundle that is large enough."""

    group_id: bytes
    choices: tuple[tuple[Amounts, Amounts], ...]


class Command(Record):
    """What the daemon is to do."""


class Reserve(Command):
    """Reserve ``amounts`` and open ``pools`` as soon as they are free."""

    group_id: bytes
    amounts: Amounts
    pools: Amounts
    title: str


class Release(Command):
    """End whatever runs in the group and wants to, then give back what it reserves."""

    group_id: bytes
    text: str


class Warn(Command):
    """Tell the job's user."""

    job_id: int
    text: str


class _Group:
    def __init__(self, spec: GroupSpec, now_s: float) -> None:
        self.spec = spec
        self.state = GroupState.PENDING
        self.obstacle = ""  # why it can never be placed
        self.created_s = now_s
        self.placed_s: float | None = None


def pool_name(resource: str, index: int, group_id: bytes) -> str:
    """Return the name of a bundle's share of a resource."""
    return f"{resource}_group_{index}_{group_id.hex()}"


def is_pool_name(name: str) -> bool:
    """Whether nothing but a bundle may offer a resource of this name."""
    _resource, found, rest = name.rpartition("_group_")
    index, _, group = rest.rpartition("_")
    return bool(found) and (index.isdigit() or not index) and len(group) == 2 * _ID_BYTES


def wildcards(amounts: dict[str, float]) -> dict[str, float]:
    """Add, as Ray shows them, the sums over each group's bundles."""
    shown = dict(amounts)
    for name, amount in amounts.items():
        if is_pool_name(name):
            resource, _, rest = name.rpartition("_group_")
            whole = f"{resource}_group_{rest.rpartition('_')[2]}"
            shown[whole] = shown.get(whole, 0.0) + amount
    return shown


def _sum(bundles: Iterable[Amounts]) -> Amounts:
    total: Amounts = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            total[name] = total.get(name, 0) + amount
    return total


class Groups:
    """All placement groups of a session.

    Parameters
    ----------
    total
        What the only node offers.
    """

    def __init__(self, total: Amounts) -> None:
        self._total = dict(total)
        self._groups: dict[bytes, _Group] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        self._removed: dict[bytes, None] = {}  # the oldest first

    # Events ---------------------------------------------------------------------------------------

    def created(self, spec: GroupSpec, now_s: float) -> Commands:
        """Somebody makes a group.

        Raises
        ------
        GroupError
            Its name is taken, or what it wants makes no sense.
        """
        self._check_spec(spec)
        group = self._groups[spec.group_id] = _Group(spec, now_s)
        if spec.name:
            self._names[spec.namespace, spec.name] = spec.group_id
        amounts = _sum(spec.bundles)
        pools: Amounts = {}
        for index, bundle in enumerate(spec.bundles):
            pools[pool_name(MARKER, index, spec.group_id)] = _MARKER_AMOUNT
            pools |= {pool_name(name, index, spec.group_id): amount for name, amount in bundle.items()}
        group.obstacle = self._obstacle(spec, amounts, pools)
        if group.obstacle:
            text = f"{spec.title} cannot be placed: {group.obstacle}; it waits until it is removed"
            return [Warn(spec.job_id, text)]
        return [Reserve(spec.group_id, amounts, pools, spec.title)]

    def reserved(self, group_id: bytes, now_s: float) -> None:
        """The resources of all bundles are the group's; news of a removed group means nothing."""
        group = self._groups.get(group_id)
        if group is None or group.state is GroupState.REMOVED:
            return
        if group.state is not GroupState.PENDING:
            raise RuntimeError(f"{group.spec.title} is {group.state.name} and was reserved")
        group.state = GroupState.CREATED
        group.placed_s = now_s

    def removed(self, group_id: bytes, why: str = "") -> Commands:
        """Somebody removes a group; one that is removed, or unknown, stays so."""
        group = self._groups.get(group_id)
        if group is None or group.state is GroupState.REMOVED:
            return []
        group.state = GroupState.REMOVED
        if group.spec.name:
            del self._names[group.spec.namespace, group.spec.name]
        self._removed[group_id] = None
        if len(self._removed) > MAX_TOMBSTONES:
            oldest = next(iter(self._removed))
            del self._removed[oldest], self._groups[oldest]
        return [Release(group_id, f"{group.spec.title} was removed{why and f', because {why}'}")]

    # Queries --------------------------------------------------------------------------------------

    def place(self, group_id: bytes, bundle: int, needed: Amounts, held: Amounts) -> Place:
        """Return where in a group a demand may be served.

        Parameters
        ----------
        bundle
            Index, or -1 for any.
        needed, held
            What has to be free, and what of it is kept.

        Raises
        ------
        GroupRemovedError
            The group was removed.
        GroupError
            There is no such group or bundle, or the demand fits in none.
        """
        group = self._groups.get(group_id)
        if group is None:
            raise GroupError(f"no placement group with the id {group_id.hex()} is known in this session")
        spec = group.spec
        if group.state is GroupState.REMOVED:
            raise GroupRemovedError(f"{spec.title} was removed")
        if not -1 <= bundle < len(spec.bundles):
            last = len(spec.bundles) - 1
            raise GroupError(f"{spec.title} has bundles 0 to {last}, not {bundle}; -1 means any")
        indices = range(len(spec.bundles)) if bundle < 0 else (bundle,)
        choices = tuple(
            (_in_bundle(needed, index, group_id), _in_bundle(held, index, group_id))
            for index in indices
            if not lacking(needed, spec.bundles[index])
        )
        if not choices:
            raise GroupError(
                f"{as_floats(needed)} does not fit into any bundle that it may use of {spec.title},"
                f" which has {[as_floats(bundle) for bundle in spec.bundles]}"
            )
        return Place(group_id, choices)

    def text_of_removal(self, group_id: bytes) -> str:
        """Return that the group was removed, for people."""
        group = self._groups.get(group_id)
        return f"{group.spec.title if group else f'placement group {group_id.hex()}'} was removed"

    def lookup(self, name: str, namespace: str) -> GroupSpec | None:
        """Return the group of that name which is not removed."""
        group_id = self._names.get((namespace, name))
        return None if group_id is None else self._groups[group_id].spec

    def ending_with(self, job_id: int = 0, actor_id: bytes = b"") -> list[bytes]:
        """Return the groups to remove, one after the other, because a driver left or an actor died for good.

        Those that are not placed come first: what the others give back is not for them.
        """
        ending = [
            group
            for group in self._groups.values()
            if group.state is not GroupState.REMOVED
            and not group.spec.detached
            and (group.spec.actor_id == actor_id if actor_id else group.spec.job_id == job_id)
            and (actor_id or not group.spec.actor_id)
        ]
        ending.sort(key=lambda group: group.state is GroupState.CREATED)
        return [group.spec.group_id for group in ending]

    def known(self) -> list[bytes]:
        """Return every group, the removed ones that are remembered included."""
        return list(self._groups)

    def info(self, group_id: bytes, node_id: str) -> dict[str, Any] | None:
        """Return what is known of a group, in the form of Ray's table; None when nothing is."""
        group = self._groups.get(group_id)
        if group is None:
            return None
        spec = group.spec
        placed = group.state is GroupState.CREATED
        states = {GroupState.CREATED: "FINISHED", GroupState.REMOVED: "REMOVED"}
        latency_ms = 0.0 if group.placed_s is None else (group.placed_s - group.created_s) * 1000
        return {
            "placement_group_id": group_id.hex(),
            "name": spec.name,
            "namespace": spec.namespace,
            "bundles": {index: as_floats(bundle) for index, bundle in enumerate(spec.bundles)},
            "bundles_to_node_id": dict.fromkeys(range(len(spec.bundles)), node_id if placed else ""),
            "strategy": spec.strategy,
            "state": group.state.name,
            "is_detached": spec.detached,
            "stats": {
                "end_to_end_creation_latency_ms": latency_ms,
                "scheduling_state": states.get(group.state, "INFEASIBLE" if group.obstacle else "QUEUED"),
            },
        }

    def check(self) -> None:
        """Raise AssertionError when the state contradicts itself (for tests)."""
        for (namespace, name), group_id in self._names.items():
            group = self._groups[group_id]
            assert (group.spec.namespace, group.spec.name) == (namespace, name)
            assert group.state is not GroupState.REMOVED
        removed = {g.spec.group_id for g in self._groups.values() if g.state is GroupState.REMOVED}
        assert removed == set(self._removed) and len(removed) <= MAX_TOMBSTONES
        assert all(g.placed_s is not None for g in self._groups.values() if g.state is GroupState.CREATED)

    # Mechanics ------------------------------------------------------------------------------------

    def _check_spec(self, spec: GroupSpec) -> None:
        if spec.group_id in self._groups:
            raise GroupError(f"a placement group with the id {spec.group_id.hex()} exists already")
        if len(spec.group_id) != _ID_BYTES:
            raise GroupError(f"{spec.group_id!r} is no id of a placement group")
        if spec.strategy not in STRATEGIES:
            raise GroupError(f"strategy={spec.strategy!r}: it must be one of {', '.join(STRATEGIES)}")
        if not spec.bundles or not all(spec.bundles):
            raise GroupError("a placement group has at least one bundle, each with some amount above 0")
        for bundle in spec.bundles:
            if bundle.get(GPU, 0) > UNIT and bundle[GPU] % UNIT:
                raise GroupError(
                    f"a bundle has {bundle[GPU] / UNIT:g} GPUs: above 1 it must be whole"
                    " (a fraction shares one)"
                )
        for name in _sum(spec.bundles):
            if name == MARKER or is_pool_name(name):
                raise GroupError(f"{name!r} is no resource that a bundle can have: the name is ftray's own")
        if spec.name and (spec.namespace, spec.name) in self._names:
            raise GroupError(
                f"the name {spec.name!r} is taken in namespace {spec.namespace!r} by a placement group; "
                "use another name, or get_placement_group()"
            )

    def _obstacle(self, spec: GroupSpec, amounts: Amounts, pools: Amounts) -> str:
        """Return why this node can never hold the group, "" when it can."""
        if spec.strategy == "STRICT_SPREAD" and len(spec.bundles) > 1:
            return (
                f"STRICT_SPREAD puts its {len(spec.bundles)} bundles on as many nodes, and there is one"
                " (SPREAD would put them on one if need be)"
            )
        text = describe(amounts, self._total)
        if not text and DevicePools(self._total.get(GPU, 0)).too_few(amounts, pools):
            text = "the GPUs of its bundles do not add up to whole ones: a fraction is of one GPU"
        return text


def _in_bundle(amounts: Amounts, index: int, group_id: bytes) -> Amounts:
    named = {pool_name(name, index, group_id): amount for name, amount in amounts.items()}
    return {**named, pool_name(MARKER, index, group_id): 1}
