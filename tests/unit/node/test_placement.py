"""Placement groups: examples for each rule, then a random walk of groups and users against a simple model."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ftray._node import placement
from ftray._node.amounts import UNIT, as_floats, fixed_point
from ftray._node.placement import (
    GroupError,
    GroupRemovedError,
    Groups,
    GroupSpec,
    Place,
    Release,
    Reserve,
    Warn,
    is_pool_name,
    pool_name,
    wildcards,
)
from ftray._node.scheduler import (
    PASS_LIMIT,
    Command,
    DropWorkerRequest,
    NeedWorker,
    Reserved,
    Scheduler,
    Withdrawn,
)

TOTAL = fixed_point([("CPU", 4), ("chip", 1), ("GPU", 2)])


def gid(number: int) -> bytes:
    return bytes([number]) * 18


def cpus(n: float) -> dict[str, int]:
    return fixed_point([("CPU", n)])


def spec(number: int = 1, *bundles: dict[str, int], **fields: object) -> GroupSpec:
    given = {"strategy": "PACK", "name": "", "namespace": "", "detached": False, "job_id": 1, "actor_id": b""}
    return GroupSpec(gid(number), bundles or (cpus(1),), **{**given, **fields})  # type: ignore[arg-type]


class Both:
    """Groups and the scheduler, with commands carried over as the service does it."""

    def __init__(self, **total: float) -> None:
        amounts = fixed_point(total.items()) or dict(TOTAL)
        self.groups, self.scheduler = Groups(amounts), Scheduler(amounts)
        self.workers: list[object] = []

    def make(self, made: GroupSpec) -> list[Command]:
        return self.apply(self.groups.created(made, 0.0))

    def remove(self, number: int) -> list[Command]:
        return self.apply(self.groups.removed(gid(number)))

    def apply(self, commands: list[placement.Command]) -> list[Command]:
        out: list[Command] = []
        for command in commands:
            if isinstance(command, Reserve):
                out += self.scheduler.group_requested(
                    command.group_id, command.amounts, command.pools, command.title
                )
            elif isinstance(command, Release):
                workers, further = self.scheduler.group_removed(command.group_id)
                self.workers += workers
                out += further
        return self.note(out)

    def note(self, commands: list[Command]) -> list[Command]:
        for command in commands:
            if isinstance(command, Reserved):
                self.groups.reserved(command.group_id, 1.0)
        self.scheduler.check()
        self.groups.check()
        return commands

    def lease(
        self, client: int, key: int, wanted: int, number: int, bundle: int = -1, n: float = 1
    ) -> list[int]:
        place = self.groups.place(gid(number), bundle, cpus(n), cpus(n))
        return granted(self.note(self.scheduler.lease_requested(client, key, wanted, cpus(n), "f", place)))

    def state(self, number: int) -> str:
        info = self.groups.info(gid(number), "node")
        assert info is not None
        return str(info["state"])


def granted(commands: list[Command]) -> list[int]:
    return [c.alloc_id for c in commands if isinstance(c, NeedWorker)]


def test_all_bundles_are_reserved_or_none() -> None:
    both = Both(CPU=4)
    assert both.make(spec(1, cpus(1), cpus(2))) == [Reserved(gid(1))]
    assert both.scheduler.available()["CPU"] == 1 and both.scheduler.total()["CPU"] == 4
    assert both.make(spec(2, cpus(1), cpus(1))) == []
    assert both.state(2) == "PENDING" and both.scheduler.available()["CPU"] == 1
    assert Reserved(gid(2)) in both.remove(1)
    assert both.state(1) == "REMOVED" and both.state(2) == "CREATED"
    assert both.scheduler.available()["CPU"] == 2


def test_demands_run_in_the_bundle_and_not_beside_it() -> None:
    both = Both(CPU=4)
    both.make(spec(1, cpus(1), cpus(2)))
    assert len(both.lease(1, 1, 5, 1, bundle=1)) == 2  # though a CPU of the node is free, and one of bundle 0
    assert len(both.lease(1, 2, 5, 1)) == 1
    free = both.scheduler.available()
    assert free["CPU"] == 1 and free[pool_name("CPU", 0, gid(1))] == 0


def test_demands_wait_for_their_group_and_one_for_nothing_does_too() -> None:
    both = Both(CPU=2)
    (holder,) = granted(both.scheduler.lease_requested(1, 1, 1, cpus(2), "f"))
    both.make(spec(1, cpus(2)))
    place = both.groups.place(gid(1), -1, {}, {})
    assert both.scheduler.lease_requested(1, 2, 1, {}, "ready", place) == []
    assert both.lease(1, 3, 1, 1) == []
    both.scheduler.worker_bound(holder, "w")
    assert len(granted(both.note(both.scheduler.worker_gone("w")))) == 2
    assert both.state(1) == "CREATED"


def test_a_large_group_is_not_passed_over_for_ever() -> None:
    both = Both(CPU=2)
    both.make(spec(9, cpus(1)))
    both.make(spec(1, cpus(2)))
    passed = 0
    for number in range(10, 10 + 2 * PASS_LIMIT):  # small groups come and go; one CPU is never free for long
        both.make(spec(number, cpus(1)))
        passed += both.state(number) == "CREATED"
        both.remove(number - 1)
        if both.state(1) == "CREATED":
            break
    else:
        raise AssertionError("the large group was never placed")
    assert passed <= PASS_LIMIT + 1


def test_removal_ends_what_runs_and_gives_back_when_that_is_dead() -> None:
    both = Both(CPU=2)
    both.make(spec(1, cpus(2)))
    first, second = both.lease(1, 1, 2, 1)
    assert both.lease(1, 2, 1, 1) == []
    both.scheduler.worker_bound(first, "w1")
    commands = both.remove(1)
    assert both.workers == ["w1"]
    assert DropWorkerRequest(second) in commands
    assert [(c.key, c.group_id) for c in commands if isinstance(c, Withdrawn)] == [(2, gid(1)), (1, gid(1))]
    assert both.scheduler.available()["CPU"] == 0
    both.note(both.scheduler.worker_gone("w1"))
    assert both.scheduler.total() == both.scheduler.available() == {"CPU": 2.0}
    assert both.remove(1) == [] and both.scheduler.available() == {"CPU": 2.0}


def test_news_of_a_reservation_that_comes_after_the_removal_changes_nothing() -> None:
    both = Both(CPU=1)
    (reserve,) = both.groups.created(spec(1), 0.0)
    assert isinstance(reserve, Reserve)
    commands = both.scheduler.group_requested(gid(1), reserve.amounts, reserve.pools, "g")
    place = both.groups.place(gid(1), -1, cpus(1), cpus(1))
    commands += both.scheduler.lease_requested(1, 1, 1, cpus(1), "f", place)
    (alloc_id,) = granted(commands)
    assert both.scheduler.waits_for_worker(alloc_id)
    both.remove(1)
    both.note(commands)
    assert both.state(1) == "REMOVED" and both.scheduler.available() == {"CPU": 1.0}
    assert not both.scheduler.waits_for_worker(alloc_id)
    both.groups.reserved(gid(9), 0.0)


def test_a_group_is_reserved_once() -> None:
    both = Both(CPU=1)
    both.make(spec(1))
    with pytest.raises(RuntimeError, match="CREATED and was reserved"):
        both.groups.reserved(gid(1), 0.0)


def test_a_pending_group_that_is_removed_takes_its_demands_along() -> None:
    both = Both(CPU=1)
    both.make(spec(1, cpus(1)))
    both.make(spec(2, cpus(1)))
    both.lease(1, 1, 3, 2)
    assert both.remove(2) == [Withdrawn(1, 1, False, gid(2))]
    assert not both.scheduler.waiting()
    with pytest.raises(GroupRemovedError, match="was removed"):
        both.groups.place(gid(2), -1, {}, {})


def test_a_waiting_worker_lends_its_cpus_inside_the_bundle() -> None:
    both = Both(CPU=2)
    both.make(spec(1, cpus(1)))
    (parent,) = both.lease(1, 1, 1, 1)
    both.scheduler.worker_bound(parent, "parent")
    assert both.lease(2, 1, 1, 1) == []
    (child,) = granted(both.note(both.scheduler.worker_blocked("parent")))
    assert both.scheduler.available()["CPU"] == 1  # the node's CPU stays out of it
    both.scheduler.worker_bound(child, "child")
    both.scheduler.worker_unblocked("parent")
    both.scheduler.check()
    both.note(both.scheduler.worker_gone("child"))
    both.note(both.scheduler.worker_gone("parent"))
    both.remove(1)
    assert both.scheduler.available() == {"CPU": 2.0}


def test_what_can_never_be_placed_waits_and_says_why() -> None:
    both = Both(CPU=2)
    (warning,) = both.groups.created(spec(1, cpus(1), cpus(1), strategy="STRICT_SPREAD"), 0.0)
    assert isinstance(warning, Warn) and "2 bundles on as many nodes" in warning.text
    (warning,) = both.groups.created(spec(2, cpus(2), cpus(1)), 0.0)
    assert isinstance(warning, Warn) and "CPU: 3 asked, 2 in total" in warning.text
    for number in (1, 2):
        info = both.groups.info(gid(number), "node")
        assert info is not None and info["stats"]["scheduling_state"] == "INFEASIBLE"
        assert both.lease(1, number, 1, number) == []
        assert both.remove(number) == [Withdrawn(1, number, False, gid(number))]
    assert both.make(spec(3, cpus(1), strategy="STRICT_SPREAD")) == [Reserved(gid(3))]
    (warning,) = Both(GPU=2).groups.created(spec(4, *[{"GPU": UNIT * 6 // 10}] * 3), 0.0)
    assert isinstance(warning, Warn) and "a fraction is of one GPU" in warning.text


@pytest.mark.parametrize("strategy", placement.STRATEGIES)
def test_every_strategy_is_placed_on_one_node_as_far_as_one_can(strategy: str) -> None:
    both = Both(CPU=2)
    both.make(spec(1, cpus(1), cpus(1), strategy=strategy))
    assert both.state(1) == ("PENDING" if strategy == "STRICT_SPREAD" else "CREATED")


def test_names_are_for_one_group_and_free_when_it_is_removed() -> None:
    both = Both(CPU=4)
    both.make(spec(1, name="a"))
    with pytest.raises(GroupError, match="'a' is taken"):
        both.make(spec(2, name="a"))
    both.make(spec(3, name="a", namespace="other"))
    found = both.groups.lookup("a", "")
    assert found is not None and found.group_id == gid(1)
    both.remove(1)
    assert both.groups.lookup("a", "") is None
    both.make(spec(4, name="a"))
    assert both.groups.lookup("a", "other") is not None


def test_groups_end_with_their_job_or_their_actor_unless_they_are_detached() -> None:
    both = Both(CPU=4)
    both.make(spec(1))
    both.make(spec(2, detached=True))
    both.make(spec(3, actor_id=b"a" * 16))
    both.make(spec(4, job_id=2))
    assert both.groups.ending_with(job_id=1) == [gid(1)]
    both.remove(1)
    assert [both.state(n) for n in (1, 2, 3, 4)] == ["REMOVED", "CREATED", "CREATED", "CREATED"]
    assert both.groups.ending_with(actor_id=b"a" * 16) == [gid(3)]
    assert both.groups.ending_with(job_id=1) == []


def test_groups_that_wait_end_before_those_that_would_make_room_for_them() -> None:
    both = Both(CPU=1)
    for number in (1, 2, 3):
        both.make(spec(number))
    assert both.groups.ending_with(job_id=1) == [gid(2), gid(3), gid(1)]
    for group_id in both.groups.ending_with(job_id=1):
        assert not any(isinstance(c, Reserved) for c in both.apply(both.groups.removed(group_id)))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (spec(1, strategy="BEST"), "must be one of"),
        (GroupSpec(gid(1), (), "PACK", "", "", False, 1, b""), "at least one bundle"),
        (spec(1, {}), "at least one bundle"),
        (GroupSpec(b"short", (cpus(1),), "PACK", "", "", False, 1, b""), "no id"),
        (spec(1, {"bundle": UNIT}), "ftray's own"),
        (spec(1, {"GPU": UNIT + UNIT // 2}), "1.5 GPUs: above 1 it must be whole"),
        (spec(1, {pool_name("CPU", 0, gid(2)): UNIT}), "ftray's own"),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: GroupSpec, words: str) -> None:
    groups = Groups(dict(TOTAL))
    with pytest.raises(GroupError, match=words):
        groups.created(wrong, 0.0)
    assert groups.known() == []


def test_places_that_are_none() -> None:
    both = Both(CPU=4)
    both.make(spec(1, cpus(1), cpus(2)))
    with pytest.raises(GroupError, match="bundles 0 to 1, not 2"):
        both.groups.place(gid(1), 2, {}, {})
    with pytest.raises(GroupError, match="does not fit"):
        both.groups.place(gid(1), 0, cpus(2), cpus(2))
    with pytest.raises(GroupError, match="does not fit"):
        both.groups.place(gid(1), -1, fixed_point([("chip", 1)]), {})
    with pytest.raises(GroupError, match="no placement group"):
        both.groups.place(gid(7), 0, {}, {})
    assert len(both.groups.place(gid(1), -1, cpus(1), cpus(1)).choices) == 2
    with pytest.raises(GroupError, match="exists already"):
        both.make(spec(1))


def test_removed_groups_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "MAX_TOMBSTONES", 2)
    both = Both(CPU=4)
    for number in (1, 2, 3):
        both.make(spec(number))
        both.remove(number)
    assert both.groups.known() == [gid(2), gid(3)]
    assert "was removed" in both.groups.text_of_removal(gid(1))


def test_names_of_pools() -> None:
    name = pool_name("CPU", 3, gid(1))
    assert is_pool_name(name) and is_pool_name(f"CPU_group_{gid(1).hex()}")
    assert not any(map(is_pool_name, ("CPU", "my_group_1", "a_group_x_" + gid(1).hex(), "a_group_")))
    shown = wildcards({pool_name("CPU", 0, gid(1)): 1.0, pool_name("CPU", 1, gid(1)): 2.0, "CPU": 4.0})
    assert shown[f"CPU_group_{gid(1).hex()}"] == 3.0 and shown["CPU"] == 4.0




AMOUNTS = st.sampled_from(
    [cpus(1), cpus(2), fixed_point([("chip", 1)]), fixed_point([("CPU", 1), ("chip", 1)])]
    + [fixed_point([("GPU", 1)]), fixed_point([("CPU", 1), ("GPU", 0.6)]), fixed_point([("GPU", 0.4)])]
)


class Walk(RuleBasedStateMachine):
    """Random events. The model: what the node has, what each group took of it, what runs where."""

    def __init__(self) -> None:
        super().__init__()
        self.groups, self.scheduler = Groups(dict(TOTAL)), Scheduler(dict(TOTAL), max_allocations=8)
        self.made: dict[bytes, GroupSpec] = {}
        self.placed: set[bytes] = set()  # hold their share of the node
        self.removed: set[bytes] = set()
        self.demands: dict[
            tuple[int, object], tuple[bytes, int, dict[str, int]]
        ] = {}  # group, bundle, amounts
        self.pending: dict[int, tuple[int, object]] = {}
        self.bound: dict[int, tuple[int, object]] = {}
        self.blocked: set[int] = set()
        self.lent = False  # ever
        self.number = 0

    def apply(self, commands: list[Command]) -> None:
        for command in commands:
            if isinstance(command, NeedWorker):
                self.pending[command.alloc_id] = (command.client, command.key)
            elif isinstance(command, DropWorkerRequest):
                del self.pending[command.alloc_id]
            elif isinstance(command, Reserved):
                assert command.group_id not in self.placed | self.removed
                self.placed.add(command.group_id)
                self.groups.reserved(command.group_id, 0.0)
            elif isinstance(command, Withdrawn):
                assert self.demands[command.client, command.key][0] == command.group_id

    def users(self, group: bytes) -> list[int]:
        running = {**self.pending, **self.bound}
        return [alloc for alloc, (client, key) in running.items() if self.demands[client, key][0] == group]

    def settle(self) -> None:
        """A removed group has its share until nothing is in it."""
        for group in list(self.placed & self.removed):
            if not self.users(group):
                self.placed.remove(group)

    @rule(
        bundles=st.lists(AMOUNTS, min_size=1, max_size=3),
        name=st.sampled_from(["", "a"]),
        job=st.integers(1, 2),
    )
    def make(self, bundles: list[dict[str, int]], name: str, job: int) -> None:
        self.number += 1
        made = spec(self.number % 256, *bundles, name=name, job_id=job)
        if made.group_id in self.made:
            return
        taken = name and self.groups.lookup(name, "") is not None
        try:
            commands = self.groups.created(made, 0.0)
        except GroupError:
            assert taken
            return
        assert not taken
        self.made[made.group_id] = made
        self.carry_out(commands)

    def carry_out(self, commands: list[placement.Command]) -> None:
        for command in commands:
            if isinstance(command, Reserve):
                self.apply(
                    self.scheduler.group_requested(
                        command.group_id, command.amounts, command.pools, command.title
                    )
                )
            elif isinstance(command, Release):
                self.removed.add(command.group_id)
                workers, further = self.scheduler.group_removed(command.group_id)
                assert set(workers) == set(self.users(command.group_id)) & set(self.bound)
                self.apply(further)
                for worker in workers:
                    self.die(worker)
        self.settle()

    def die(self, worker: object) -> None:
        assert isinstance(worker, int)
        del self.bound[worker]
        self.blocked.discard(worker)
        self.settle()
        self.apply(self.scheduler.worker_gone(worker))
        self.settle()

    @precondition(lambda self: self.made)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        self.carry_out(self.groups.removed(data.draw(st.sampled_from(sorted(self.made)))))

    @rule(job=st.integers(1, 2))
    def end_job(self, job: int) -> None:
        for group in self.groups.ending_with(job_id=job):
            self.carry_out(self.groups.removed(group))

    def place(self, group: bytes, bundle: int, amounts: dict[str, int]) -> Place | None:
        """Return where the groups let a demand run, with the model's own opinion of whether they should."""
        bundles = self.made[group].bundles
        chosen = bundles if bundle < 0 else bundles[bundle : bundle + 1]
        fits = any(all(b.get(name, 0) >= amount for name, amount in amounts.items()) for b in chosen)
        try:
            place = self.groups.place(group, bundle, amounts, amounts)
        except GroupRemovedError:
            assert group in self.removed
            return None
        except GroupError:
            assert not fits
            return None
        assert fits and group not in self.removed
        return place

    @precondition(lambda self: self.made)
    @rule(
        data=st.data(),
        client=st.integers(1, 2),
        amounts=AMOUNTS,
        wanted=st.integers(1, 3),
        actor=st.booleans(),
    )
    def use(
        self, data: st.DataObject, client: int, amounts: dict[str, int], wanted: int, actor: bool
    ) -> None:
        group = data.draw(st.sampled_from(sorted(self.made)))
        bundle = data.draw(st.integers(-1, 2))
        place = self.place(group, bundle, amounts)
        if place is None:
            return
        self.number += 1
        self.demands[client, self.number] = (group, bundle, amounts)
        if actor:
            commands = self.scheduler.placement_requested(client, self.number, amounts, amounts, "a", place)
        else:
            commands = self.scheduler.lease_requested(client, self.number, wanted, amounts, "f", place)
        self.apply(commands)

    @rule(client=st.integers(1, 2), amounts=AMOUNTS, wanted=st.integers(0, 2), key=st.integers(1000, 1002))
    def use_the_node(self, client: int, amounts: dict[str, int], wanted: int, key: int) -> None:
        _group, _bundle, amounts = self.demands.setdefault((client, key), (b"", -1, amounts))
        self.apply(self.scheduler.lease_requested(client, key, wanted, amounts, "f"))

    @precondition(lambda self: self.pending)
    @rule(data=st.data())
    def bind(self, data: st.DataObject) -> None:
        alloc_id = data.draw(st.sampled_from(sorted(self.pending)))
        self.bound[alloc_id] = self.pending.pop(alloc_id)
        self.scheduler.worker_bound(alloc_id, alloc_id)

    @precondition(lambda self: self.bound)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self.die(data.draw(st.sampled_from(sorted(self.bound))))

    @precondition(lambda self: self.bound)
    @rule(data=st.data())
    def block(self, data: st.DataObject) -> None:
        alloc_id = data.draw(st.sampled_from(sorted(self.bound)))
        if alloc_id in self.blocked:
            self.blocked.remove(alloc_id)
            self.scheduler.worker_unblocked(alloc_id)
        else:
            self.blocked.add(alloc_id)
            self.lent = True
            self.apply(self.scheduler.worker_blocked(alloc_id))

    @invariant()
    def nothing_is_lost_or_used_twice(self) -> None:
        self.settle()
        self.scheduler.check()
        self.groups.check()
        free = self.scheduler.available()
        for name, total in TOTAL.items():
            reserved = sum(b.get(name, 0) for g in self.placed for b in self.made[g].bundles)
            assert reserved <= total
            left = total - reserved - self.used(b"", name)
            assert name == "CPU" or left >= 0
            assert round(free[name] * UNIT) == max(0, left)
            for group in self.placed:
                self.check_bundles(group, name, free)
        shown = {name for name in self.scheduler.total() if is_pool_name(name)}
        assert all(any(group.hex() in name for group in self.placed) for name in shown)

    def check_bundles(self, group: bytes, name: str, free: dict[str, float]) -> None:
        size = sum(b.get(name, 0) for b in self.made[group].bundles)
        pools = [
            free[pool_name(name, i, group)] for i, b in enumerate(self.made[group].bundles) if b.get(name, 0)
        ]
        left = size - self.used(group, name)
        if not self.lent:
            assert round(sum(pools) * UNIT) == left
        assert name == "CPU" or left >= 0  # a worker that runs again has its CPU at once

    def used(self, group: bytes, name: str) -> int:
        running = {**self.pending, **self.bound}
        return sum(
            self.demands[running[alloc]][2].get(name, 0)
            for alloc in self.users(group)
            if not (name == "CPU" and alloc in self.blocked)
        )

    def teardown(self) -> None:
        """Every group is removed and every worker ends: all is free again, and nothing waits."""
        for group in sorted(self.made):
            self.carry_out(self.groups.removed(group))
        for _ in range(200):
            for alloc_id in sorted(self.pending):
                self.bound[alloc_id] = self.pending.pop(alloc_id)
                self.scheduler.worker_bound(alloc_id, alloc_id)
            if not self.bound:
                break
            self.die(min(self.bound))
        assert not self.pending and not self.bound and not self.scheduler.waiting()
        assert self.scheduler.available() == self.scheduler.total() == as_floats(TOTAL)


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
