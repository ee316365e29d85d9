"""What checkpoints cost on Ray: calls to Ray's plain actor beside the same class with checkpoints.

    python -m benchmarks.ray_checkpoints [--calls 500] [--pipelined 2000] [--rounds 3]

Runs in an interpreter that has Ray and ftray. Each figure is the best of the rounds, which take turns, so
that
a machine that is busy for a while slows all of them down.
"""

from __future__ import annotations

import argparse
import importlib
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

from ftray.ray import Checkpointable

KINDS = ("plain", "plain async", "snapshot", "exactly once", "exactly once, power")


class _Plain:
    def __init__(self) -> None:
        self.n = 0

    def incr(self, k: int = 1) -> int:
        self.n += k
        return self.n


class _PlainAsync(_Plain):
    async def incr(self, k: int = 1) -> int:  # type: ignore[override]
        self.n += k
        return self.n


class _Snapshot(_Plain, Checkpointable, every=1000):
    pass


class _Once(_Plain, Checkpointable, exactly_once=True):
    pass


class _Power(_Once, durability="power"):
    pass


CLASSES = dict(zip(KINDS, (_Plain, _PlainAsync, _Snapshot, _Once, _Power), strict=True))


def synchronous(ray: Any, actor: Any, calls: int) -> float:
    """Return the calls per second of one that waits for each."""
    began_s = time.perf_counter()
    for _ in range(calls):
        ray.get(actor.incr.remote())
    return calls / (time.perf_counter() - began_s)


def pipelined(ray: Any, actor: Any, calls: int) -> float:
    """Return the calls per second with 1,000 in flight."""
    began_s = time.perf_counter()
    for start in range(0, calls, 1000):
        ray.get([actor.incr.remote() for _ in range(min(1000, calls - start))])
    return calls / (time.perf_counter() - began_s)


def measure(ray: Any, calls: int, many: int, rounds: int) -> dict[str, tuple[float, float]]:
    """Return calls per second by kind: synchronous, and with 1,000 in flight."""
    actors = {kind: ray.remote(cls).remote() for kind, cls in CLASSES.items()}
    for actor in actors.values():
        ray.get([actor.incr.remote() for _ in range(100)])
    ways: tuple[Callable[..., float], ...] = (synchronous, pipelined)
    best = {kind: [0.0, 0.0] for kind in KINDS}
    for _ in range(rounds):
        for i, (way, number) in enumerate(zip(ways, (calls, many), strict=True)):
            for kind, actor in actors.items():
                best[kind][i] = max(best[kind][i], way(ray, actor, number))
    return {kind: (found[0], found[1]) for kind, found in best.items()}


def main() -> None:
    """Print the table."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--calls", type=int, default=500, help="synchronous calls for each figure")
    parser.add_argument("--pipelined", type=int, default=2000, help="calls with 1,000 in flight")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    ray = importlib.import_module("ray")
    with tempfile.TemporaryDirectory() as store:
        os.environ["FTRAY_CHECKPOINT_STORE"] = store
        os.chdir(store)  # Ray's workers would take modules from here before those that are installed
        small = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
        ray.init(address="local", log_to_driver=False, **small)
        try:
            found = measure(ray, options.calls, options.pipelined, options.rounds)
        finally:
            ray.shutdown()
    base = found["plain"]
    print(f"{'Ray ' + ray.__version__:<22}{'synchronous':>18}{'1,000 in flight':>22}")
    for kind, (one, many) in found.items():
        print(f"{kind:<22}{one:>9,.0f} /s {one / base[0]:>5.2f}{many:>13,.0f} /s {many / base[1]:>5.2f}")


if __name__ == "__main__":
    main()
