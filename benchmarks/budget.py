"""How long and how large a measurement is: the one place where the smoke size differs from the real one.

Owns the clock of the rows. Leaves to the rows what one step is, and to the runner how often they repeat.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """The time and the sizes that a row may use.

    Parameters
    ----------
    measure_s : float
        A loop is timed for at least this long.
    warmup_s : float
        The same loop runs at least this long, and at least once, before it is timed.
    smoke : bool
        Whether `size` chooses the small of its two numbers.
    """

    measure_s: float
    warmup_s: float
    smoke: bool

    @classmethod
    def full(cls) -> Budget:
        return cls(measure_s=1.0, warmup_s=0.4, smoke=False)

    @classmethod
    def small(cls) -> Budget:
        return cls(measure_s=0.02, warmup_s=0.0, smoke=True)

    def size(self, full: int, smoke: int) -> int:
        return smoke if self.smoke else full

    def rate(
        self, step: Callable[[], object], per_step: int = 1, warmup: Callable[[], object] | None = None
    ) -> float:
        """Repeat `step` until the time is up.

        Parameters
        ----------
        step : callable
            The work that is timed.
        per_step : int
            How many units of work one step does.
        warmup : callable, optional
            Runs once in place of the warm-up loop: for steps that take seconds.

        Returns
        -------
        float
            Units of work per second.
        """
        if warmup is not None:
            warmup()
        else:
            repeat_for(step, self.warmup_s)
        steps, elapsed_s = repeat_for(step, self.measure_s)
        return steps * per_step / elapsed_s

    async def rate_async(self, step: Callable[[], Awaitable[object]], per_step: int = 1) -> float:
        """`rate` for a step that is awaited on the running loop."""
        await repeat_for_async(step, self.warmup_s)
        steps, elapsed_s = await repeat_for_async(step, self.measure_s)
        return steps * per_step / elapsed_s


def repeat_for(step: Callable[[], object], seconds: float) -> tuple[int, float]:
    """Run `step` at least once and until `seconds` have passed; return the steps and the seconds."""
    steps = 0
    clock = time.perf_counter
    start = clock()
    while True:
        step()
        steps += 1
        elapsed = clock() - start
        if elapsed >= seconds:
            return steps, elapsed


async def repeat_for_async(step: Callable[[], Awaitable[object]], seconds: float) -> tuple[int, float]:
    """`repeat_for` for a step that is awaited."""
    steps = 0
    clock = time.perf_counter
    start = clock()
    while True:
        await step()
        steps += 1
        elapsed = clock() - start
        if elapsed >= seconds:
            return steps, elapsed
