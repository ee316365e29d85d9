"""What the engine "ray" costs: calls of plain Ray beside the same calls through ftray, on one local cluster.

Run by an interpreter that has both: ``make ray-bench``, or ``python -m benchmarks.ray_calls [--seconds 2]``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import ray

import ftray
from benchmarks import ROOT


class Counter:
    """What both engines run."""

    def __init__(self) -> None:
        self.n = 0

    def incr(self) -> int:
        self.n += 1
        return self.n


def same(x: int) -> int:
    return x


def rate(work: Callable[[], int], seconds: float) -> float:
    """Return how many pieces of work are done in a second."""
    work()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        done += work()
    return done / (time.perf_counter() - started)


def works(engine: Any) -> dict[str, Callable[[], int]]:
    """Return what is measured, by name; each returns how many calls it has made."""
    actor = engine.remote(Counter).remote()
    task = engine.remote(same)

    def one_call() -> int:
        engine.get(actor.incr.remote())
        return 1

    def many_calls() -> int:
        engine.get([actor.incr.remote() for _ in range(1000)])
        return 1000

    def one_task() -> int:
        engine.get(task.remote(1))
        return 1

    return {
        "actor call, synchronous": one_call,
        "1,000 actor calls in flight": many_calls,
        "task, synchronous": one_task,
    }


def measure(seconds: float) -> dict[str, dict[str, float]]:
    """Measure both, in turn for each work."""
    plain, ours = works(ray), works(ftray)
    return {
        name: {"ray": rate(plain[name], seconds), "ftray on ray": rate(ours[name], seconds)} for name in plain
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--json", help="also write the figures to this file")
    options = parser.parse_args()
    path = options.json and os.path.abspath(options.json)
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(empty)  # Ray's workers would take modules from here before those that are installed
        with ftray.init(
            engine="ray",
            num_cpus=2,
            object_store_memory=100 << 20,
            include_dashboard=False,
            log_to_driver=False,
        ):
            figures = measure(options.seconds)
        os.chdir(ROOT)
    for name, found in figures.items():
        print(f"{name:30}" + "".join(f"{engine:>16} {value:9,.0f} /s" for engine, value in found.items()))
    if path:
        with open(path, "w") as file:
            json.dump(figures, file, indent=1)


if __name__ == "__main__":
    main()
