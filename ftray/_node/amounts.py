"""Arithmetic on resource amounts.

Owns: the fixed-point form of amounts.
Invariants: amounts are integers of 1/10000, so that taking and giving back any sequence ends at the start.
Leaves to others: what a machine offers (``resources``), who gets what (``scheduler``).
"""

from __future__ import annotations

import math

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    Amounts = dict[str, int]

UNIT = 10_000
CPU, GPU, MEMORY = "CPU", "GPU", "memory"


class ResourceError(ValueError):
    """An amount that no machine can have."""


def fixed_point(amounts: Iterable[tuple[str, float]]) -> Amounts:
    """Return ``amounts`` in units of 1/10000, without those that are zero.

    Raises
    ------
    ResourceError
        For a negative or non-finite amount, one below the unit, or a resource named twice or without a name.
    """
    result: Amounts = {}
    for name, amount in amounts:
        if not name or name in result:
            raise ResourceError(f"resource {name!r} is named twice or has no name")
        if not math.isfinite(amount) or amount < 0 or 0 < amount < 1 / UNIT:
            raise ResourceError(
                f"{name}={amount!r}: an amount is 0 or a finite number of at least {1 / UNIT}"
            )
        result[name] = round(amount * UNIT)
    return {name: amount for name, amount in result.items() if amount}


def as_floats(amounts: Mapping[str, int]) -> dict[str, float]:
    """Return fixed-point ``amounts`` as floats."""
    return {name: amount / UNIT for name, amount in amounts.items()}


def lacking(needed: Mapping[str, int], available: Mapping[str, int]) -> list[str]:
    """Return the resources of which ``available`` has less than ``needed``, in the order of ``needed``."""
    return [name for name, amount in needed.items() if available.get(name, 0) < amount]


def describe(needed: Mapping[str, int], total: Mapping[str, int]) -> str:
    """Return one line for people: each resource that ``total`` cannot give, with both amounts."""
    return ", ".join(
        f"{name}: {needed[name] / UNIT:g} asked, {total.get(name, 0) / UNIT:g} in total"
        for name in lacking(needed, total)
    )
