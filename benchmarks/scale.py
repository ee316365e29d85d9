"""A million tasks queued from one driver: as fast per task as a few thousand, and no more memory for each.

``python -m benchmarks.scale`` queues 20,000 and 1,000,000 tasks, compares the rates, and weighs what a
queued task costs in memory, over all processes of the runtime, while none can run. Exit status 1 when the
rate falls below 0.9 of the small one's or the memory per task grows. A smoke run is too small for a verdict
and gives none.
"""

from __future__ import annotations

import argparse
import fcntl
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.process import MARK, runtime_pss_bytes
from benchmarks.rows.startup import WORKERS, init
from benchmarks.rows.tasks import noop_task

LEAST_RATE_RATIO = 0.9
MOST_MEMORY_GROWTH = 1.25  # tables that double when they are full make steps
SMALL_RUNS = 5
STEPS = 4
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Scale:
    """What was measured."""

    small: int
    large: int
    small_rate_per_s: float
    large_rate_per_s: float
    queued_bytes: dict[int, float]  # number of queued tasks -> bytes for each

    @property
    def rate_ratio(self) -> float:
        return self.large_rate_per_s / self.small_rate_per_s

    @property
    def memory_growth(self) -> float:
        """Memory for each task at the largest number, relative to the smallest."""
        sizes = list(self.queued_bytes.values())
        return sizes[-1] / sizes[0]

    @property
    def good(self) -> bool:
        return self.rate_ratio >= LEAST_RATE_RATIO and self.memory_growth <= MOST_MEMORY_GROWTH


def measure(ray: Any, small: int, large: int, say: Callable[[str], None]) -> Scale:
    """The memory in a fresh process (later, freed memory would be used again unseen), then the rates of both
    sizes, the small one before and after the large one."""
    noop = noop_task(ray)
    drain_rate(ray, noop, min(small, 1_000))
    queued_bytes = queued_memory(ray, noop, [large * step // STEPS for step in range(1, STEPS + 1)], say)
    small_rates = [drain_rate(ray, noop, small) for _ in range(SMALL_RUNS)]
    large_rate = drain_rate(ray, noop, large)
    small_rates += [drain_rate(ray, noop, small) for _ in range(SMALL_RUNS)]
    say(f"{small:,} tasks: {statistics.median(small_rates):,.0f} /s; {large:,} tasks: {large_rate:,.0f} /s")
    return Scale(small, large, statistics.median(small_rates), large_rate, queued_bytes)


def drain_rate(ray: Any, noop: Any, count: int) -> float:
    """Queue so many tasks, get them all; tasks per second."""
    start = time.perf_counter()
    ray.get([noop.remote() for _ in range(count)])
    return count / (time.perf_counter() - start)


def queued_memory(ray: Any, noop: Any, counts: list[int], say: Callable[[str], None]) -> dict[int, float]:
    """Bytes for each queued task, the caller's reference included, while all CPUs are taken."""
    refs: list[Any] = []
    sizes = {}
    with all_cpus_taken(ray):
        before = runtime_pss_bytes(os.getpid(), os.environ[MARK])
        for count in counts:
            refs += [noop.remote() for _ in range(count - len(refs))]
            sizes[count] = (runtime_pss_bytes(os.getpid(), os.environ[MARK]) - before) / count
            say(f"{count:,} queued: {sizes[count]:,.0f} bytes for each")
    ray.get(refs)
    return sizes


@contextmanager
def all_cpus_taken(ray: Any) -> Iterator[None]:
    """One task on each CPU that waits, in the kernel, until the block ends."""

    @ray.remote
    def hold(arrived: str, gate: str) -> None:
        with open(arrived, "w"):
            pass
        with open(gate) as file:
            fcntl.flock(file, fcntl.LOCK_SH)

    with tempfile.TemporaryDirectory() as directory:
        gate = Path(directory, "gate")
        with gate.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            marks = [Path(directory, f"arrived-{index}") for index in range(WORKERS)]
            holders = [hold.remote(str(mark), str(gate)) for mark in marks]
            deadline = time.monotonic() + START_TIMEOUT_S
            while not all(mark.exists() for mark in marks):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{WORKERS} tasks did not start within {START_TIMEOUT_S:.0f} s")
                ray.wait(holders, timeout=0.01)
            yield
        ray.get(holders)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--tasks", type=int, default=1_000_000, help="the large number (default 1,000,000)")
    parser.add_argument("--base", type=int, default=20_000, help="the small number (default 20,000)")
    parser.add_argument("--smoke", action="store_true", help="2,000 and 200 tasks, no verdict")
    parser.add_argument("--module", default="ftray", help="any module with Ray's API (default ftray)")
    parser.add_argument("--json", metavar="OUT", help="also write the figures to this file")
    arguments = parser.parse_args()
    small, large = (200, 2_000) if arguments.smoke else (arguments.base, arguments.tasks)
    if not 0 < small <= large:
        parser.error(f"--base must be at least 1 and not more than --tasks; given {small} and {large}")

    os.environ[MARK] = uuid.uuid4().hex  # before init(), so that its processes inherit it
    ray = importlib.import_module(arguments.module)
    init(ray)
    try:
        scale = measure(ray, small, large, lambda text: print(text, flush=True))
    finally:
        ray.shutdown()
    if arguments.json:
        figures = {**asdict(scale), "rate_ratio": scale.rate_ratio, "memory_growth": scale.memory_growth}
        Path(arguments.json).write_text(json.dumps(figures, indent=1) + "\n")
    print(
        f"rate of {large:,} to {small:,} tasks: {scale.rate_ratio:.2f} (at least {LEAST_RATE_RATIO});"
        f" memory for each grows to {scale.memory_growth:.2f} (at most {MOST_MEMORY_GROWTH})"
    )
    if arguments.smoke:
        return 0
    print("PASS" if scale.good else "FAIL")
    return 0 if scale.good else 1


if __name__ == "__main__":
    sys.exit(main())
