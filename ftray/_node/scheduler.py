"""Who gets resources: leases of clients and placements of actors on one node.

A pure state machine: methods are events, their results are commands, no I/O, clock or random numbers.

Owns: the node's resources, the demands of every client by scheduling class, the allocations, what placement
groups reserve. A group's bundles are pools of resources of their own, from the grant of its reservation
until it was removed and nothing holds any of them; demands with a `Place` can be served from several.
Invariants: what is available plus what is held (less what blocked workers lent) is the total, for every
resource; a grant is made only when it fits, devices included. Availability goes below zero in one case: a
blocked worker lent its CPUs, they were granted to another, and it runs again (as in Ray, it gets them back
at once).
No starvation: clients take turns, and within a client its classes take turns; a demand that was passed
over ``PASS_LIMIT`` times keeps others from what it lacks until it is served.
Leaves to others: which worker serves an allocation (``pool``), which devices (``devices``), the clients'
messages (the daemon).
"""

from __future__ import annotations

from collections import deque
from enum import Enum

from ftray._node.amounts import CPU, GPU, as_floats, describe, lacking
from ftray._node.devices import DevicePools
from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from ftray._node.amounts import Amounts
    from ftray._node.devices import Share
    from ftray._node.placement import Place

    Commands = list["Command"]

# A large demand lets so many smaller ones pass before it holds its resources.
PASS_LIMIT = 16


class Command(Record):
    """What the daemon is to do."""


class NeedWorker(Command):
    """Resources are taken for ``alloc_id``; find a worker for it."""

    alloc_id: int
    client: int
    key: object
    is_actor: bool


class DropWorkerRequest(Command):
    """The allocation is withdrawn before a worker was bound to it."""

    alloc_id: int


class Reclaim(Command):
    """Ask the client to return the lease as soon as it is idle: somebody waits."""

    client: int
    alloc_id: int


class Infeasible(Command):
    """The demand cannot be served by this node as it is."""

    client: int
    key: object
    is_actor: bool
    text: str


class Reserved(Command):
    """The resources of a placement group's bundles are the group's."""

    group_id: bytes


class Withdrawn(Command):
    """The demand goes with the placement group that it was for."""

    client: int
    key: object
    is_actor: bool
    group_id: bytes


class _State(Enum):
    PENDING = 1  # resources taken, no worker yet
    BOUND = 2


class _Demand:
    """What one client wants of one scheduling class, or one actor's placement."""

    __slots__ = (
        "choices",
        "client",
        "group",
        "infeasible",
        "is_actor",
        "key",
        "name",
        "needed",
        "passed",
        "pools",
        "told_limit",
        "urgent",
        "wanted",
    )

    def __init__(
        self,
        client: int,
        key: object,
        needed: Amounts,
        held: Amounts,
        name: str,
        is_actor: bool,
        place: Place | None = None,
    ) -> None:
        self.client = client
        self.key = key
        self.needed = needed
        self.choices = ((needed, held),) if place is None else place.choices
        self.group = b"" if place is None else place.group_id
        self.pools: Amounts | None = None  # for a group's reservation: what opens with it
        self.name = name
        self.is_actor = is_actor
        self.wanted = 0
        self.passed = 0
        self.urgent = False
        self.infeasible = False
        self.told_limit = False


class _Allocation:
    __slots__ = (
        *("client", "cpu", "devices", "group", "held", "is_actor", "key", "lent", "reclaiming", "state"),
        "worker",
    )

    def __init__(self, demand: _Demand, held: Amounts, devices: tuple[str, Share]) -> None:
        self.client = demand.client
        self.key = demand.key
        self.held = held
        self.group = demand.group
        # What it lends while its worker waits: in a placement group, the CPUs of its bundle.
        self.cpu = CPU if not self.group else next((n for n in held if n.startswith("CPU_group_")), CPU)
        self.is_actor = demand.is_actor
        self.state = _State.PENDING
        self.worker: object = None
        self.lent = False
        self.reclaiming = False
        self.devices = devices  # and the resource that they are an amount of


class Scheduler:
    """Grants of one node.

    Parameters
    ----------
    total
        Fixed-point amounts that the node offers.
    max_allocations
        At most so many allocations at a time, whatever they hold: each needs a process.
    """

    def __init__(self, total: Amounts, max_allocations: int = 4000) -> None:
        self._total = dict(total)
        self._available = dict(total)
        self._devices = DevicePools(total.get(GPU, 0))
        self._max_allocations = max_allocations
        self._allocations: dict[int, _Allocation] = {}
        self._by_worker: dict[object, int] = {}
        self._demands: dict[tuple[int, object], _Demand] = {}
        self._turns: dict[int, deque[_Demand]] = {}  # by client; clients in the order of their turns
        self._urgent: list[_Demand] = []
        self._groups: dict[bytes, tuple[Amounts, Amounts]] = {}  # reserved, and the pools that it makes
        self._closing: dict[bytes, None] = {}  # removed groups whose resources are still in use
        self._next_id = 1

    # Events ---------------------------------------------------------------------------------------

    def lease_requested(
        self, client: int, key: int, wanted: int, needed: Amounts, name: str, place: Place | None = None
    ) -> Commands:
        """``client`` wants ``wanted`` further leases of the class ``key``; 0 cancels."""
        demand = self._demands.get((client, key))
        if demand is None and wanted:
            demand = self._add(_Demand(client, key, needed, needed, name, False, place))
        commands = self._withdraw_pending(client, key, wanted)
        pending = sum(1 for a in self._of_class(client, key) if a.state is _State.PENDING)
        if demand is not None:
            demand.wanted = wanted - pending
            if demand.wanted <= 0:
                self._forget(demand)
            else:
                commands += self._check_feasible(demand)
        return commands + self._dispatch()

    def placement_requested(
        self,
        client: int,
        key: object,
        needed: Amounts,
        held: Amounts,
        name: str,
        place: Place | None = None,
    ) -> Commands:
        """An actor needs ``needed`` to be free and ``held`` for itself."""
        demand = self._add(_Demand(client, key, needed, held, name, True, place))
        demand.wanted = 1
        return self._check_feasible(demand) + self._dispatch()

    def placement_cancelled(self, client: int, key: object) -> Commands:
        """The actor needs no placement any more; one without a worker is withdrawn."""
        demand = self._demands.get((client, key))
        if demand is not None:
            self._forget(demand)
        return self._withdraw_pending(client, key, 0) + self._dispatch()

    def worker_bound(self, alloc_id: int, worker: object) -> None:
        """A worker was found."""
        allocation = self._allocations[alloc_id]
        if allocation.state is not _State.PENDING:
            raise RuntimeError(f"allocation {alloc_id} has a worker already: {allocation.worker!r}")
        allocation.state = _State.BOUND
        allocation.worker = worker
        self._by_worker[worker] = alloc_id

    def lease_returned(self, client: int, alloc_id: int) -> tuple[object, Commands]:
        """The client gives a lease back; the worker that served it (None for a stale return)."""
        allocation = self._allocations.get(alloc_id)
        if (
            allocation is None
            or allocation.client != client
            or allocation.is_actor
            or allocation.worker is None
        ):
            return None, []
        worker = allocation.worker
        self._release(alloc_id)
        return worker, self._dispatch()

    def worker_gone(self, worker: object) -> Commands:
        """The worker died; what it served is over."""
        alloc_id = self._by_worker.get(worker)
        if alloc_id is None:
            return []
        self._release(alloc_id)
        return self._dispatch()

    def worker_failed(self, alloc_id: int) -> Commands:
        """No worker can be started for the allocation: it and the demand that it came from are dropped."""
        allocation = self._allocations.get(alloc_id)
        if allocation is None:
            return []
        demand = self._demands.get((allocation.client, allocation.key))
        if demand is not None:
            self._forget(demand)
        self._release(alloc_id)
        return self._dispatch()

    def worker_blocked(self, worker: object) -> Commands:
        """The worker waits: its CPUs are lent to others."""
        allocation = self._allocation_of(worker)
        if allocation is None or allocation.lent:
            return []
        allocation.lent = True
        self._change({allocation.cpu: allocation.held.get(allocation.cpu, 0)}, +1)
        return self._dispatch()

    def worker_unblocked(self, worker: object) -> None:
        """The worker runs again: it has its CPUs back at once, even if that oversubscribes."""
        allocation = self._allocation_of(worker)
        if allocation is not None and allocation.lent:
            allocation.lent = False
            self._change({allocation.cpu: allocation.held.get(allocation.cpu, 0)}, -1)

    def group_requested(self, group: bytes, amounts: Amounts, pools: Amounts, name: str) -> Commands:
        """A placement group wants ``amounts`` of the node, which from then on are ``pools`` for its users."""
        demand = self._add(_Demand(0, ("group", group), amounts, amounts, name, is_actor=True))
        demand.wanted = 1
        demand.pools = pools
        demand.group = group
        return self._dispatch()

    def group_removed(self, group: bytes) -> tuple[list[object], Commands]:
        """The group gives back what it reserved once nothing is in it; return its workers, to be killed."""
        commands: Commands = []
        for demand in [d for d in self._demands.values() if d.group == group]:
            self._forget(demand)
            if demand.pools is None:
                commands.append(Withdrawn(demand.client, demand.key, demand.is_actor, group))
        if group in self._groups:
            self._closing[group] = None
        workers = []
        for alloc_id, allocation in list(self._allocations.items()):
            if allocation.group != group:
                continue
            if allocation.state is _State.BOUND:
                workers.append(allocation.worker)
            else:
                commands.append(DropWorkerRequest(alloc_id))
                commands.append(Withdrawn(allocation.client, allocation.key, allocation.is_actor, group))
                self._release(alloc_id)
        self._close_when_empty(group)
        return workers, commands + self._dispatch()

    def client_lost(self, client: int) -> Commands:
        """The client cannot be reached any more, its end is under way: it gets nothing further."""
        for demand in [d for d in self._demands.values() if d.client == client and not d.is_actor]:
            self._forget(demand)
        commands: Commands = []
        for alloc_id, allocation in list(self._allocations.items()):
            unbound = allocation.state is not _State.BOUND
            if allocation.client == client and not allocation.is_actor and unbound:
                commands.append(DropWorkerRequest(alloc_id))
                self._release(alloc_id)
        return commands + self._dispatch()

    def client_gone(self, client: int) -> tuple[list[object], Commands]:
        """The client died: its demands go; return the workers that run its tasks, to be killed."""
        commands = self.client_lost(client)
        workers = [
            allocation.worker
            for allocation in self._allocations.values()
            if allocation.client == client and not allocation.is_actor
        ]
        return workers, commands

    # Queries --------------------------------------------------------------------------------------

    def total(self) -> dict[str, float]:
        """Return what the node offers."""
        return as_floats(self._total)

    def available(self) -> dict[str, float]:
        """Return what is free now, never below zero."""
        return as_floats({name: max(0, amount) for name, amount in self._available.items()})

    def waits_for_worker(self, alloc_id: int) -> bool:
        """Whether the allocation still exists and has no worker."""
        allocation = self._allocations.get(alloc_id)
        return allocation is not None and allocation.state is _State.PENDING

    def allocation_of(self, worker: object) -> int | None:
        """Return the allocation that ``worker`` serves."""
        return self._by_worker.get(worker)

    def devices_of(self, alloc_id: int) -> tuple[int, ...]:
        """Return the numbers of the devices that the allocation has."""
        return tuple(device for device, _amount in self._allocations[alloc_id].devices[1])

    def held_by(self, worker: object) -> dict[str, float]:
        """Return what the allocation that ``worker`` serves holds, CPUs that it lent included."""
        allocation = self._allocation_of(worker)
        return {} if allocation is None else as_floats(allocation.held)

    def bound(self) -> list[tuple[int, int, object, bool, object]]:
        """Return (allocation, client, key, is an actor, worker) of what has a worker, the oldest first."""
        return [
            (alloc_id, a.client, a.key, a.is_actor, a.worker)
            for alloc_id, a in self._allocations.items()
            if a.state is _State.BOUND
        ]

    def waiting(self) -> list[tuple[str, dict[str, float], int]]:
        """Return (name, resources, number wanted) of every demand not served."""
        return [(d.name, as_floats(d.needed), d.wanted) for d in self._demands.values()]

    def check(self) -> None:
        """Raise AssertionError when the state contradicts itself (for tests)."""
        held: dict[str, int] = {}
        for allocation in self._allocations.values():
            for name, amount in allocation.held.items():
                if not (allocation.lent and name == allocation.cpu):
                    held[name] = held.get(name, 0) + amount
            assert not allocation.group or allocation.group in self._groups
        for reserved, pools in self._groups.values():
            for name, amount in reserved.items():
                held[name] = held.get(name, 0) + amount
            assert all(self._total[name] == amount for name, amount in pools.items())
        assert set(self._closing) <= {a.group for a in self._allocations.values()}
        assert set(held) <= set(self._total) == set(self._available)
        for name, amount in self._total.items():
            assert self._available[name] + held.get(name, 0) == amount, (name, self._available, held)
        self._devices.check(allocation.devices for allocation in self._allocations.values())
        assert len(self._by_worker) == sum(a.state is _State.BOUND for a in self._allocations.values())
        queued = [d for turns in self._turns.values() for d in turns]
        assert len(queued) == len(self._demands) and all(d.wanted > 0 for d in queued)
        assert all(self._demands.get((d.client, d.key)) is d for d in self._urgent)

    # Mechanics ------------------------------------------------------------------------------------

    def _add(self, demand: _Demand) -> _Demand:
        if (demand.client, demand.key) in self._demands:
            raise RuntimeError(f"demand {demand.key!r} of client {demand.client} exists already")
        self._demands[demand.client, demand.key] = demand
        self._turns.setdefault(demand.client, deque()).append(demand)
        return demand

    def _forget(self, demand: _Demand) -> None:
        del self._demands[demand.client, demand.key]
        turns = self._turns[demand.client]
        turns.remove(demand)
        if not turns:
            del self._turns[demand.client]
        if demand.urgent:
            self._urgent.remove(demand)

    def _check_feasible(self, demand: _Demand) -> Commands:
        """Tell once when the node as a whole is too small; the demand stays, it may be cancelled."""
        text = "" if demand.group else describe(demand.needed, self._total)
        if not text or demand.infeasible:
            return []
        demand.infeasible = True
        message = f"{demand.name or 'a task'} cannot run on this node: {text}; it waits until it is cancelled"
        return [Infeasible(demand.client, demand.key, demand.is_actor, message)]

    def _of_class(self, client: int, key: object) -> list[_Allocation]:
        return [a for a in self._allocations.values() if a.client == client and a.key == key]

    def _withdraw_pending(self, client: int, key: object, keep: int) -> Commands:
        """Withdraw allocations without a worker, the newest first, until ``keep`` are left."""
        pending = [
            alloc_id
            for alloc_id, a in self._allocations.items()
            if a.client == client and a.key == key and a.state is _State.PENDING
        ]
        commands: Commands = []
        for alloc_id in reversed(pending[keep:]):
            self._release(alloc_id)
            commands.append(DropWorkerRequest(alloc_id))
        return commands

    def _allocation_of(self, worker: object) -> _Allocation | None:
        alloc_id = self._by_worker.get(worker)
        return None if alloc_id is None else self._allocations[alloc_id]

    def _change(self, amounts: Mapping[str, int], sign: int) -> None:
        for name, amount in amounts.items():
            if amount:
                self._available[name] += sign * amount

    def _release(self, alloc_id: int) -> None:
        allocation = self._allocations.pop(alloc_id)
        self._by_worker.pop(allocation.worker, None)
        self._devices.give_back(allocation.devices)
        held = allocation.held
        self._change({n: a for n, a in held.items() if n != allocation.cpu or not allocation.lent}, +1)
        self._close_when_empty(allocation.group)

    def _open(self, group: bytes, reserved: Amounts, pools: Amounts) -> None:
        self._groups[group] = (reserved, pools)
        self._devices.open(pools)
        self._total |= pools
        self._available |= pools

    def _close_when_empty(self, group: bytes) -> None:
        """Give back what a removed group reserved once nothing runs in it any more."""
        if group not in self._closing or any(a.group == group for a in self._allocations.values()):
            return
        del self._closing[group]
        reserved, pools = self._groups.pop(group)
        self._devices.close(pools)
        for name in pools:
            del self._total[name], self._available[name]
        self._change(reserved, +1)

    def _dispatch(self) -> Commands:
        """Grant what fits, one grant a turn, until a whole round grants nothing."""
        commands: Commands = []
        progress = True
        while progress and self._turns:
            progress = False
            for client in list(self._turns):
                chosen = self._choose(client)
                if chosen is None:
                    continue
                commands.append(self._grant(*chosen))
                progress = True
                if client in self._turns:
                    self._turns[client] = self._turns.pop(client)  # to the end of the round
        return commands + self._reclaims() + self._at_limit()

    def _at_limit(self) -> Commands:
        """Tell each demand once that it waits for a process, not for resources."""
        if len(self._allocations) < self._max_allocations:
            return []
        commands: Commands = []
        for demand in self._demands.values():
            if not demand.told_limit and not demand.infeasible and self._fitting(demand) is not None:
                demand.told_limit = True
                text = (
                    f"{demand.name or 'a task'} waits: all {self._max_allocations} worker processes that "
                    "this node may have are taken; end some actors, or nest fewer waiting tasks"
                )
                commands.append(Infeasible(demand.client, demand.key, demand.is_actor, text))
        return commands

    def _choose(self, client: int) -> tuple[_Demand, Amounts] | None:
        """Return the client's next demand that fits and what it gets, in the order of its classes' turns."""
        full = len(self._allocations) >= self._max_allocations
        for demand in self._turns[client]:
            if demand.infeasible or (full and demand.pools is None):
                continue
            held = self._fitting(demand)
            if held is not None:
                return demand, held
        return None

    def _fitting(self, demand: _Demand) -> Amounts | None:
        """Return what the demand would hold where it can be served now, None when it cannot."""
        for needed, held in demand.choices:
            if not self._short(demand, needed) and not self._kept_from(demand, needed):
                return held
        return None

    def _short(self, demand: _Demand, needed: Amounts) -> list[str]:
        """Return the resources that are too few; devices may be although their sum is not."""
        return lacking(needed, self._available) + self._devices.too_few(needed, demand.pools)

    def _kept_from(self, demand: _Demand, needed: Amounts) -> bool:
        """Whether an urgent demand keeps something of ``needed`` for itself."""
        for urgent in self._urgent:
            if urgent is demand:
                return False
            if any(name in needed for name in self._lacking(urgent)):
                return True
        return False

    def _lacking(self, demand: _Demand) -> list[str]:
        """Return what the demand lacks, in any of the places where it could be served."""
        return [name for needed, _held in demand.choices for name in self._short(demand, needed)]

    def _grant(self, demand: _Demand, held: Amounts) -> Command:
        alloc_id = self._next_id
        if demand.pools is None:
            self._next_id += 1
            self._allocations[alloc_id] = _Allocation(demand, held, self._devices.take(held))
        else:
            self._open(demand.group, held, demand.pools)
        self._change(held, -1)
        demand.wanted -= 1
        turns = self._turns[demand.client]
        turns.remove(demand)
        turns.append(demand)
        if demand.wanted == 0:
            self._forget(demand)
        self._note_passed(demand, held)
        if demand.pools is not None:
            return Reserved(demand.group)
        return NeedWorker(alloc_id, demand.client, demand.key, demand.is_actor)

    def _note_passed(self, granted: _Demand, held: Amounts) -> None:
        """Count the grant against every demand that waits for one of its resources."""
        for demand in self._demands.values():
            if demand is granted or demand.infeasible or demand.urgent:
                continue
            if any(name in held for name in self._lacking(demand)):
                demand.passed += 1
                if demand.passed >= PASS_LIMIT:
                    demand.urgent = True
                    self._urgent.append(demand)

    def _reclaims(self) -> Commands:
        """Ask for leases that hold what a demand of somebody else, or of another class, lacks."""
        commands: Commands = []
        for demand in self._demands.values():
            short = () if demand.infeasible else self._lacking(demand)
            if not short or self._fitting(demand) is not None:
                continue
            for alloc_id, allocation in self._allocations.items():
                if allocation.is_actor or allocation.reclaiming or allocation.state is not _State.BOUND:
                    continue
                same = allocation.client == demand.client and allocation.key == demand.key
                if not same and any(name in allocation.held for name in short):
                    allocation.reclaiming = True
                    commands.append(Reclaim(allocation.client, alloc_id))
        return commands
