"""Who gets resources: examples for each rule, then a random walk against a simple model."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ftray._node.amounts import UNIT, fixed_point
from ftray._node.scheduler import (
    PASS_LIMIT,
    Command,
    DropWorkerRequest,
    Infeasible,
    NeedWorker,
    Reclaim,
    Scheduler,
)

A, B = 1, 2


def cpus(n: float) -> dict[str, int]:
    return fixed_point([("CPU", n)])


def machine(**total: float) -> Scheduler:
    return Scheduler(fixed_point(total.items()))


def granted(commands: list[Command]) -> list[int]:
    return [c.alloc_id for c in commands if isinstance(c, NeedWorker)]


def grant(scheduler: Scheduler, client: int, key: int = 1, n: float = 1.0) -> int:
    (alloc_id,) = granted(scheduler.lease_requested(client, key, 1, cpus(n), "f"))
    scheduler.worker_bound(alloc_id, alloc_id * 10)
    return alloc_id


def test_grants_until_the_cpus_are_taken_and_goes_on_when_one_returns() -> None:
    scheduler = machine(CPU=2)
    first = granted(scheduler.lease_requested(A, 1, 5, cpus(1), "f"))
    assert len(first) == 2
    scheduler.worker_bound(first[0], "w")
    worker, commands = scheduler.lease_returned(A, first[0])
    assert worker == "w" and len(granted(commands)) == 1
    scheduler.check()


def test_wanted_is_absolute_and_counts_grants_that_have_no_worker_yet() -> None:
    scheduler = machine(CPU=4)
    assert len(granted(scheduler.lease_requested(A, 1, 2, cpus(1), "f"))) == 2
    assert granted(scheduler.lease_requested(A, 1, 2, cpus(1), "f")) == []
    assert len(granted(scheduler.lease_requested(A, 1, 3, cpus(1), "f"))) == 1


def test_wanting_less_withdraws_the_newest_grants_without_a_worker() -> None:
    scheduler = machine(CPU=2)
    first, second = granted(scheduler.lease_requested(A, 1, 2, cpus(1), "f"))
    assert scheduler.lease_requested(A, 1, 0, cpus(1), "f") == [
        DropWorkerRequest(second),
        DropWorkerRequest(first),
    ]
    assert scheduler.available()["CPU"] == 2
    scheduler.check()


def test_clients_take_turns() -> None:
    scheduler = machine(CPU=1)
    holder, lease = A, grant(scheduler, A)
    scheduler.lease_requested(A, 1, 10, cpus(1), "a")
    scheduler.lease_requested(B, 1, 10, cpus(1), "b")
    order = []
    for _ in range(4):
        (need,) = [c for c in scheduler.lease_returned(holder, lease)[1] if isinstance(c, NeedWorker)]
        scheduler.worker_bound(need.alloc_id, f"w{need.alloc_id}")
        holder, lease = need.client, need.alloc_id
        order.append(holder)
    assert order in ([A, B, A, B], [B, A, B, A])


def test_at_the_limit_of_processes_whoever_waits_is_told_once() -> None:
    scheduler = Scheduler(cpus(1), max_allocations=1)
    lease = grant(scheduler, A, n=0)
    (told,) = scheduler.lease_requested(A, 2, 1, {}, "g")
    assert isinstance(told, Infeasible) and "1 worker processes" in told.text
    assert scheduler.lease_requested(A, 2, 2, {}, "g") == []
    assert len(granted(scheduler.lease_returned(A, lease)[1])) == 1


def test_a_large_demand_is_not_starved_by_small_ones() -> None:
    scheduler = machine(CPU=2)
    held = [grant(scheduler, A), grant(scheduler, A)]
    scheduler.lease_requested(B, 7, 1, cpus(2), "big")
    for _ in range(4 * PASS_LIMIT):
        scheduler.lease_requested(A, 1, 2, cpus(1), "small")
        _worker, commands = scheduler.lease_returned(A, held.pop(0))
        for command in commands:
            if isinstance(command, NeedWorker):
                if command.client == B:
                    return
                scheduler.worker_bound(command.alloc_id, f"w{command.alloc_id}")
                held.append(command.alloc_id)
    raise AssertionError("the demand for 2 CPUs was passed over for ever")


def test_a_waiting_client_has_others_leases_reclaimed_once() -> None:
    scheduler = machine(CPU=1)
    lease = grant(scheduler, A)
    assert scheduler.lease_requested(B, 1, 1, cpus(1), "b") == [Reclaim(A, lease)]
    assert scheduler.lease_requested(B, 1, 2, cpus(1), "b") == []


def test_a_class_does_not_reclaim_its_own_leases_but_those_of_another() -> None:
    scheduler = machine(CPU=1)
    lease = grant(scheduler, A, key=1)
    assert scheduler.lease_requested(A, 1, 1, cpus(1), "f") == []
    assert scheduler.lease_requested(A, 2, 1, cpus(1), "g") == [Reclaim(A, lease)]


def test_a_blocked_worker_lends_its_cpu_and_takes_it_back_at_once() -> None:
    scheduler = machine(CPU=1, GPU=1)
    (first,) = granted(scheduler.lease_requested(A, 1, 1, fixed_point([("CPU", 1), ("GPU", 1)]), "f"))
    scheduler.worker_bound(first, "w1")
    scheduler.lease_requested(A, 2, 1, cpus(1), "g")
    (second,) = granted(scheduler.worker_blocked("w1"))
    assert scheduler.worker_blocked("w1") == []
    assert scheduler.available()["GPU"] == 0
    scheduler.worker_bound(second, "w2")
    scheduler.worker_unblocked("w1")
    scheduler.check()
    assert scheduler.available()["CPU"] == 0  # oversubscribed by one, shown as none
    scheduler.lease_returned(A, second)
    assert granted(scheduler.lease_requested(A, 2, 1, cpus(1), "g")) == []
    scheduler.worker_gone("w1")
    scheduler.check()


def test_a_worker_that_dies_blocked_does_not_lose_a_cpu() -> None:
    scheduler = machine(CPU=1)
    lease = grant(scheduler, A)
    scheduler.worker_blocked(lease * 10)
    scheduler.worker_gone(lease * 10)
    assert scheduler.available()["CPU"] == 1


def test_what_the_node_never_has_is_told_once_with_the_resource() -> None:
    scheduler = machine(CPU=2)
    (told,) = scheduler.lease_requested(A, 1, 1, fixed_point([("CPU", 1), ("chip", 2)]), "f")
    assert isinstance(told, Infeasible) and "chip: 2 asked, 0 in total" in told.text
    assert scheduler.lease_requested(A, 1, 2, fixed_point([("CPU", 1), ("chip", 2)]), "f") == []
    assert len(granted(scheduler.lease_requested(A, 2, 1, cpus(1), "g"))) == 1


def test_an_actor_needs_a_free_cpu_but_holds_only_what_it_says() -> None:
    scheduler = machine(CPU=1)
    for n in range(3):
        assert len(granted(scheduler.placement_requested(A, ("actor", n), cpus(1), {}, "actor"))) == 1
    lease = grant(scheduler, A)
    assert scheduler.placement_requested(A, ("actor", 3), cpus(1), {}, "actor") == [Reclaim(A, lease)]
    assert len(granted(scheduler.lease_returned(A, lease)[1])) == 1


def test_a_dead_clients_demands_go_and_its_leased_workers_are_named() -> None:
    scheduler = machine(CPU=2)
    lease = grant(scheduler, A)
    (pending,) = granted(scheduler.lease_requested(A, 1, 5, cpus(1), "f"))
    scheduler.placement_requested(A, "actor", cpus(1), {}, "actor")
    workers, commands = scheduler.client_gone(A)
    assert workers == [lease * 10]
    assert (
        commands[0] == DropWorkerRequest(pending) and len(granted(commands)) == 1
    )  # the actor is not a lease
    scheduler.check()


def test_a_stale_return_or_one_by_somebody_else_changes_nothing() -> None:
    scheduler = machine(CPU=1)
    lease = grant(scheduler, A)
    assert scheduler.lease_returned(B, lease) == (None, [])
    assert scheduler.lease_returned(A, lease)[0] is not None
    assert scheduler.lease_returned(A, lease) == (None, [])
    assert scheduler.available()["CPU"] == 1


def test_a_failed_start_ends_the_demand() -> None:
    scheduler = machine(CPU=1)
    (alloc_id,) = granted(scheduler.lease_requested(A, 1, 3, cpus(1), "f"))
    assert scheduler.worker_failed(alloc_id) == []
    assert scheduler.waiting() == [] and scheduler.available()["CPU"] == 1


AMOUNTS = st.sampled_from([{}, cpus(0.5), cpus(1), cpus(2), fixed_point([("CPU", 1), ("chip", 1)]), cpus(9)])


class Walk(RuleBasedStateMachine):
    """Random events; the model is a list of what is granted."""

    TOTAL = fixed_point([("CPU", 2), ("chip", 1)])

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(self.TOTAL, max_allocations=8)
        self.amounts: dict[tuple[int, object], dict[str, int]] = {}
        self.pending: dict[int, tuple[int, object, bool]] = {}
        self.bound: dict[int, tuple[int, object, bool]] = {}
        self.blocked: set[int] = set()
        self.next_actor = 0

    def apply(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, NeedWorker):
                assert command.alloc_id not in self.pending and command.alloc_id not in self.bound
                self.pending[command.alloc_id] = (command.client, command.key, command.is_actor)
            elif isinstance(command, DropWorkerRequest):
                del self.pending[command.alloc_id]
            elif isinstance(command, Reclaim):
                assert self.bound[command.alloc_id][0] == command.client

    @rule(client=st.integers(1, 3), key=st.integers(1, 3), wanted=st.integers(0, 4), needed=AMOUNTS)
    def request(self, client: int, key: int, wanted: int, needed: dict[str, int]) -> None:
        needed = self.amounts.setdefault((client, key), needed)
        self.apply(self.scheduler.lease_requested(client, key, wanted, needed, "f"))

    @rule(client=st.integers(1, 3), needed=AMOUNTS, holds=st.booleans())
    def place(self, client: int, needed: dict[str, int], holds: bool) -> None:
        self.next_actor += 1
        key = ("actor", self.next_actor)
        held = needed if holds else {}
        self.amounts[client, key] = held
        self.apply(self.scheduler.placement_requested(client, key, needed, held, "actor"))

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def bind(self, data: st.DataObject) -> None:
        alloc_id = data.draw(st.sampled_from(sorted(self.pending)))
        self.bound[alloc_id] = self.pending.pop(alloc_id)
        self.scheduler.worker_bound(alloc_id, alloc_id)

    @precondition(lambda self: self.bound)
    @rule(data=st.data(), how=st.sampled_from(["return", "die"]))
    def end(self, data: st.DataObject, how: str) -> None:
        alloc_id = data.draw(st.sampled_from(sorted(self.bound)))
        client, _key, is_actor = self.bound.pop(alloc_id)
        self.blocked.discard(alloc_id)
        if how == "die" or is_actor:
            self.apply(self.scheduler.worker_gone(alloc_id))
        else:
            worker, commands = self.scheduler.lease_returned(client, alloc_id)
            assert worker == alloc_id
            self.apply(commands)

    @precondition(lambda self: self.bound)
    @rule(data=st.data())
    def block(self, data: st.DataObject) -> None:
        alloc_id = data.draw(st.sampled_from(sorted(self.bound)))
        if alloc_id in self.blocked:
            self.blocked.remove(alloc_id)
            self.scheduler.worker_unblocked(alloc_id)
        else:
            self.blocked.add(alloc_id)
            self.apply(self.scheduler.worker_blocked(alloc_id))

    @rule(client=st.integers(1, 3))
    def leave(self, client: int) -> None:
        workers, commands = self.scheduler.client_gone(client)
        self.apply(commands)
        for worker in workers:
            assert isinstance(worker, int) and self.bound[worker][0] == client
            del self.bound[worker]
            self.blocked.discard(worker)
            self.apply(self.scheduler.worker_gone(worker))

    @invariant()
    def consistent(self) -> None:
        self.scheduler.check()
        used: dict[str, int] = {}
        for alloc_id, (client, key, _is_actor) in {**self.pending, **self.bound}.items():
            for name, amount in self.amounts[client, key].items():
                if not (name == "CPU" and alloc_id in self.blocked):
                    used[name] = used.get(name, 0) + amount
        assert used.get("chip", 0) <= self.TOTAL["chip"]
        shown = self.scheduler.available()
        assert shown["CPU"] * UNIT == max(0, self.TOTAL["CPU"] - used.get("CPU", 0))

    def teardown(self) -> None:
        """Everything ends: the total is back, and whatever waited was served or can never be."""
        for _ in range(200):
            for alloc_id in sorted(self.pending):
                self.bound[alloc_id] = self.pending.pop(alloc_id)
                self.scheduler.worker_bound(alloc_id, alloc_id)
            if not self.bound:
                break
            alloc_id = min(self.bound)
            del self.bound[alloc_id]
            self.apply(self.scheduler.worker_gone(alloc_id))
        assert not self.pending and not self.bound
        for _name, needed, _wanted in self.scheduler.waiting():
            assert needed.get("CPU", 0) > 2, "a demand that fits was never served"
        assert self.scheduler.available() == self.scheduler.total()


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=40)
