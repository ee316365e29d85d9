"""Which GPU an allocation gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ftray._node.amounts import GPU, UNIT, fixed_point
from ftray._node.devices import Devices
from ftray._node.placement import MARKER, Place, pool_name
from ftray._node.scheduler import NeedWorker, Reclaim, Reserved, Scheduler

if TYPE_CHECKING:
    from ftray._node.devices import Share

HALF = UNIT // 2


def take(devices: Devices, amount: int) -> Share:
    (share,) = devices.take([amount])
    return share


def numbers(share: Share) -> list[int]:
    return [device for device, _part in share]


def test_whole_devices_are_exclusive_and_come_back() -> None:
    devices = Devices(3 * UNIT)
    first, second = take(devices, 2 * UNIT), take(devices, UNIT)
    assert numbers(first) == [0, 1] and numbers(second) == [2]
    assert not devices.fits([UNIT]) and not devices.fits([1])
    devices.give_back(first)
    assert numbers(take(devices, UNIT)) == [0]


def test_fractions_share_the_device_that_they_fill_best() -> None:
    devices = Devices(2 * UNIT)
    first, second = take(devices, HALF), take(devices, HALF)
    assert numbers(first) == numbers(second) == [0]
    assert numbers(take(devices, UNIT)) == [1]


def test_a_fraction_is_never_spread_over_devices() -> None:
    devices = Devices(2 * UNIT)
    take(devices, UNIT * 6 // 10)
    take(devices, UNIT * 6 // 10)
    assert not devices.fits([HALF]) and devices.fits([UNIT * 4 // 10])  # although 0.8 are free
    with pytest.raises(RuntimeError, match="do not fit"):
        take(devices, HALF)


def test_a_node_may_offer_a_part_of_a_device() -> None:
    devices = Devices(UNIT + HALF)
    assert numbers(take(devices, HALF)) == [1]
    assert numbers(take(devices, UNIT)) == [0]


def test_shares_for_several_are_had_all_or_none_the_largest_first() -> None:
    devices = Devices(2 * UNIT)
    assert [numbers(share) for share in devices.take([HALF, UNIT, HALF])] == [[1], [0], [1]]
    with pytest.raises(RuntimeError, match="do not fit"):
        devices.take([1])
    devices = Devices(2 * UNIT)
    assert not devices.fits([UNIT, UNIT, 1]) and not devices.fits([UNIT * 6 // 10] * 3)
    assert devices.fits([UNIT, UNIT]), "nothing was taken by asking"
    assert devices.take([]) == ()


class Walk(RuleBasedStateMachine):
    """Takes and returns in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.devices = Devices(3 * UNIT)
        self.shares: list[Share] = []

    @rule(amount=st.sampled_from([0, 1, 1000, HALF, 7000, UNIT - 1, UNIT, 2 * UNIT, 3 * UNIT, UNIT + HALF]))
    def take(self, amount: int) -> None:
        if self.devices.fits([amount]):
            share = take(self.devices, amount)
            assert sum(part for _device, part in share) == amount
            assert amount >= UNIT or len(share) <= 1
            self.shares.append(share)

    @precondition(lambda self: self.shares)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.shares) - 1))
        self.devices.give_back(self.shares.pop(at))

    @invariant()
    def consistent(self) -> None:
        self.devices.check(self.shares)


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=50, stateful_step_count=40)


# --- within the scheduler


def gpus(n: float) -> dict[str, int]:
    return fixed_point([("CPU", 1), ("GPU", n)])


def granted(commands: list[object]) -> list[int]:
    return [c.alloc_id for c in commands if isinstance(c, NeedWorker)]


def test_a_grant_waits_for_a_device_with_room_although_the_sum_would_do() -> None:
    scheduler = Scheduler(fixed_point([("CPU", 8), ("GPU", 2)]))
    (first,) = granted(scheduler.lease_requested(1, 1, 1, gpus(0.6), "f"))
    (second,) = granted(scheduler.lease_requested(1, 1, 1, gpus(0.6), "f")) or [0]
    assert second == 0  # the first is pending still, it is what the request counts
    scheduler.worker_bound(first, "w1")
    (second,) = granted(scheduler.lease_requested(1, 1, 1, gpus(0.6), "f"))
    scheduler.worker_bound(second, "w2")
    assert {*scheduler.devices_of(first), *scheduler.devices_of(second)} == {0, 1}
    commands = scheduler.lease_requested(2, 7, 1, gpus(0.5), "g")
    assert granted(commands) == []
    assert {c.alloc_id for c in commands if isinstance(c, Reclaim)} == {first, second}
    (third,) = granted(scheduler.worker_gone("w2"))
    assert scheduler.devices_of(third) == (1,)
    scheduler.check()


def test_what_a_worker_holds_can_be_asked() -> None:
    scheduler = Scheduler(fixed_point([("CPU", 2), ("GPU", 1)]))
    (alloc_id,) = granted(scheduler.lease_requested(1, 1, 1, gpus(0.25), "f"))
    scheduler.worker_bound(alloc_id, "w")
    scheduler.worker_blocked("w")
    assert scheduler.held_by("w") == {"CPU": 1.0, "GPU": 0.25}
    assert scheduler.held_by("other") == {}
    assert scheduler.bound() == [(alloc_id, 1, 1, False, "w")]


# --- bundles of placement groups


class Group:
    """A group of the only scheduler there is, with bundles of so many GPUs each."""

    def __init__(self, scheduler: Scheduler, number: int, *bundles: float) -> None:
        self.scheduler, self.group = scheduler, bytes([number]) * 18
        self.pools = {pool_name(MARKER, i, self.group): UNIT for i in range(len(bundles))}
        self.pools |= {pool_name(GPU, i, self.group): round(n * UNIT) for i, n in enumerate(bundles) if n}
        amounts = fixed_point([("GPU", sum(bundles))])
        self.news = scheduler.group_requested(self.group, amounts, self.pools, "group")

    def place(self, n: float, *bundles: int) -> Place:
        choices = [
            fixed_point([(pool_name(MARKER, i, self.group), 0.001), (pool_name(GPU, i, self.group), n)])
            for i in bundles
        ]
        return Place(self.group, tuple((choice, choice) for choice in choices))

    def use(self, key: int, n: float, *bundles: int) -> list[int]:
        needed = fixed_point([("GPU", n)])
        return granted(self.scheduler.lease_requested(1, key, 1, needed, "f", self.place(n, *bundles)))


def test_each_bundle_has_devices_of_its_own_and_its_users_share_them_out() -> None:
    scheduler = Scheduler(fixed_point([("GPU", 4)]))
    group = Group(scheduler, 1, 1, 2, 0.5, 0.5)
    assert group.news == [Reserved(group.group)]
    found = {}
    for key, (amount, bundle) in enumerate([(1, 0), (1, 1), (0.5, 1), (0.5, 1), (0.25, 2), (0.5, 3)]):
        (alloc_id,) = group.use(key, amount, bundle)
        found[key] = scheduler.devices_of(alloc_id)
        scheduler.check()
    assert found[0] == (2,) and found[1] == (0,) and found[2] == found[3] == (1,)
    assert found[4] == found[5] == (3,), "two halves are of one device"
    assert group.use(9, 0.5, 0) == [] and group.use(10, 0.5, 2) == []


def test_devices_of_a_bundle_are_nobody_elses_until_the_group_is_removed_and_empty() -> None:
    scheduler = Scheduler(fixed_point([("CPU", 4), ("GPU", 2)]))
    group = Group(scheduler, 1, 1)
    (inside,) = group.use(1, 1, 0)
    scheduler.worker_bound(inside, "w")
    (outside,) = granted(scheduler.lease_requested(2, 1, 1, gpus(1), "f"))
    assert {*scheduler.devices_of(inside), *scheduler.devices_of(outside)} == {0, 1}
    assert granted(scheduler.lease_requested(2, 2, 1, gpus(1), "g")) == []
    workers, commands = scheduler.group_removed(group.group)
    assert workers == ["w"] and granted(commands) == []
    (late,) = granted(scheduler.worker_gone("w"))
    assert scheduler.devices_of(late) == (0,)
    scheduler.check()


def test_a_group_waits_until_its_bundles_fit_on_devices_although_the_sum_is_free() -> None:
    scheduler = Scheduler(fixed_point([("CPU", 4), ("GPU", 2)]))
    (first,) = granted(scheduler.lease_requested(1, 1, 1, gpus(0.6), "f"))
    scheduler.worker_bound(first, "w1")
    (second,) = granted(scheduler.lease_requested(1, 1, 1, gpus(0.6), "f"))
    scheduler.worker_bound(second, "w2")
    group = Group(scheduler, 1, 0.5)
    assert Reserved(group.group) not in group.news
    assert {c.alloc_id for c in group.news if isinstance(c, Reclaim)} == {first, second}
    assert Reserved(group.group) in scheduler.worker_gone("w1")
    scheduler.check()


def test_fragmented_bundles_make_their_users_wait() -> None:
    scheduler = Scheduler(fixed_point([("GPU", 2)]))
    group = Group(scheduler, 1, 2)
    allocations = [alloc_id for key in (1, 2) for alloc_id in group.use(key, 0.6, 0)]
    assert len(allocations) == 2 and group.use(3, 0.5, 0) == []
    assert len(group.use(4, 0.4, 0)) == 1
    scheduler.check()
