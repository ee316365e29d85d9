"""Which device (GPU) of a node serves which allocation.

A pure state machine.

Owns: how much of every device is free.
Invariants: a whole device is one allocation's alone; a fraction is of one device, shared with other fractions
only; what was taken comes back to the device that it was taken from.
Leaves to others: amounts of the node as a whole (``scheduler``), the devices' names (``lease_service``).

Fractions go to the device that they fill best, so that as many devices as possible stay whole. What a bundle
of a placement group has taken is a `Devices` of its own, from which its users take (`DevicePools`).
"""

from __future__ import annotations

from ftray._node.amounts import GPU, UNIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ftray._node.amounts import Amounts

    Share = tuple[tuple[int, int], ...]  # (device, amount) each

NOTHING: Share = ()
# What the resource of a bundle's GPUs begins with (``placement.pool_name``).
_OF_BUNDLE = "GPU_group_"


class Devices:
    """The devices of one node, or those of one bundle.

    Parameters
    ----------
    total
        Fixed-point number of devices; a fraction is a device of which only so much is offered.
    """

    def __init__(self, total: int) -> None:
        whole, rest = divmod(total, UNIT)
        self._capacity = dict.fromkeys(range(whole), UNIT) | ({whole: rest} if rest else {})
        self._free = dict(self._capacity)

    @staticmethod
    def of_share(share: Share) -> Devices:
        """Make the devices of a bundle out of what was taken for it."""
        made = Devices(0)
        made._capacity = dict(share)
        made._free = dict(share)
        return made

    def fits(self, amounts: Sequence[int]) -> bool:
        """Whether all of ``amounts`` can be had now, each for somebody else."""
        return self._choose_all(amounts) is not None

    def take(self, amounts: Sequence[int]) -> tuple[Share, ...]:
        """Take a share for each of ``amounts``; RuntimeError when they do not fit."""
        chosen = self._choose_all(amounts)
        if chosen is None:
            wanted = [amount / UNIT for amount in amounts]
            raise RuntimeError(f"{wanted} devices do not fit into {self._free}")
        for share in chosen:
            for device, part in share:
                self._free[device] -= part
        return chosen

    def give_back(self, share: Share) -> None:
        """Return what was taken."""
        for device, part in share:
            self._free[device] += part

    def check(self, shares: Sequence[Share]) -> None:
        """Raise AssertionError unless ``shares`` are what is taken, and whole devices are not shared."""
        used = dict.fromkeys(self._capacity, 0)
        holders = dict.fromkeys(self._capacity, 0)
        whole = dict.fromkeys(self._capacity, False)
        for share in shares:
            assert len({device for device, _part in share}) == len(share)
            for device, part in share:
                used[device] += part
                holders[device] += 1
                whole[device] = whole[device] or part == UNIT
        for device, capacity in self._capacity.items():
            assert 0 <= self._free[device] == capacity - used[device], (device, self._free, shares)
            assert not whole[device] or holders[device] == 1

    def _choose_all(self, amounts: Sequence[int]) -> tuple[Share, ...] | None:
        """Choose for the largest first: what is left over is for the small ones."""
        if len(amounts) == 1:
            share = _choose(self._free, amounts[0])
            return None if share is None else (share,)
        free = dict(self._free)
        chosen = [NOTHING] * len(amounts)
        for index in sorted(range(len(amounts)), key=lambda index: -amounts[index]):
            share = _choose(free, amounts[index])
            if share is None:
                return None
            for device, part in share:
                free[device] -= part
            chosen[index] = share
        return tuple(chosen)


def _choose(free: dict[int, int], amount: int) -> Share | None:
    if amount <= 0:
        return NOTHING
    if amount < UNIT:
        fitting = [(left, device) for device, left in free.items() if left >= amount]
        return ((min(fitting)[1], amount),) if fitting else None
    count, rest = divmod(amount, UNIT)
    idle = [device for device, left in free.items() if left == UNIT]
    return None if rest or len(idle) < count else tuple((device, UNIT) for device in idle[:count])


def _of_bundles(pools: Mapping[str, int]) -> dict[str, int]:
    return {name: amount for name, amount in pools.items() if name.startswith(_OF_BUNDLE)}


class DevicePools:
    """The node's devices, and those of bundles, each by the name of the resource that it is an amount of.

    Parameters
    ----------
    total
        Of the node, as for `Devices`.
    """

    def __init__(self, total: int) -> None:
        self._pools = {GPU: Devices(total)}
        self._reserved: dict[str, Share] = {}  # what bundles have of the node's

    def too_few(self, needed: Amounts, pools: Amounts | None) -> list[str]:
        """Return the resources of ``needed`` whose devices cannot be had now, although their sum may be free.

        Parameters
        ----------
        needed
            Of one task or actor, or the sum that a placement group reserves.
        pools
            What the group opens with it; each bundle needs devices of its own. None without a group.
        """
        return [
            name
            for name, amount in needed.items()
            if name in self._pools
            and not self._pools[name].fits([amount] if pools is None else list(_of_bundles(pools).values()))
        ]

    def take(self, held: Amounts) -> tuple[str, Share]:
        """Take what an allocation holds; return where from ("" if it needs none), and the devices."""
        for name, amount in held.items():
            if name in self._pools:
                (share,) = self._pools[name].take([amount])
                return name, share
        return "", NOTHING

    def give_back(self, taken: tuple[str, Share]) -> None:
        """Return what `take` gave."""
        name, share = taken
        if name:
            self._pools[name].give_back(share)

    def open(self, pools: Amounts) -> None:
        """Take the devices of a group's bundles from the node, for their users to take them from."""
        bundles = _of_bundles(pools)
        for name, share in zip(bundles, self._pools[GPU].take(list(bundles.values())), strict=True):
            self._pools[name] = Devices.of_share(share)
            self._reserved[name] = share

    def close(self, pools: Amounts) -> None:
        """Give the devices of a group's bundles, which nobody uses, back to the node."""
        for name in _of_bundles(pools):
            del self._pools[name]
            self._pools[GPU].give_back(self._reserved.pop(name))

    def check(self, taken: Iterable[tuple[str, Share]]) -> None:
        """Raise AssertionError unless ``taken`` is what is in use."""
        shares: dict[str, list[Share]] = {name: [] for name in self._pools}
        shares[GPU] += self._reserved.values()
        for name, share in taken:
            if name:
                shares[name].append(share)
        assert set(self._pools) == {GPU, *self._reserved}
        for name, devices in self._pools.items():
            devices.check(shares[name])
