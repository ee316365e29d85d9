"""A row of the table of figures: what is measured, in which unit, and what counts as enough.

Pure: no engine, no clock. The functions that measure are in the neighbouring modules.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from benchmarks.budget import Budget

Measure = Callable[[Any, Budget], float]
"""Takes a module with Ray's API and a budget; returns one figure in the row's unit."""


class Unit(Enum):
    """Unit of a row; rates and bandwidths are better when higher, times and sizes when lower."""

    PER_S = "/s"
    GB_PER_S = "GB/s"
    SECONDS = "s"
    MB = "MB"

    @property
    def higher_is_better(self) -> bool:
        return self in (Unit.PER_S, Unit.GB_PER_S)


class Start(Enum):
    """What the runner has done before it calls the measuring function."""

    READY = "ready"  # imported, init() called: such rows may share a process
    IMPORTED = "imported"  # imported only; the row calls init() itself, so it needs a process of its own
    NOTHING = "nothing"  # not even imported; the row gets the module's name


@dataclass(frozen=True)
class Target:
    """What must be reached: `times` as good as Ray in the same run, or `value` in the row's unit.

    With both, `times` decides where Ray was measured, since machines differ; `value` where it was not.
    """

    times: float | None = None
    value: float | None = None

    def met(self, unit: Unit, ours: float, ray: float | None) -> bool | None:
        """Whether `ours` is enough; None when that cannot be said without a figure of Ray."""
        if self.times is not None and ray is not None:
            return times_better(unit, ours, ray) >= self.times
        if self.value is not None:
            return ours >= self.value if unit.higher_is_better else ours <= self.value
        return None


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    key: str
    title: str
    unit: Unit
    measure: Measure
    floor: Target | None
    goal: Target | None
    start: Start = Start.READY
    limit: str | None = None  # the figure of `benchmarks.limits` that is shown beside


def times_better(unit: Unit, ours: float, other: float) -> float:
    """How many times better `ours` is than `other`: 10.0 is ten times the rate, or a tenth of the time."""
    return ours / other if unit.higher_is_better else other / ours
