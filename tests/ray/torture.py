"""Kills on Ray: what exactly-once actors and Ray's documented recipe lose and double.

    python -m tests.ray.torture [--kills 20] [--seed 1]

Tasks add numbers, each once, to a few actors of both kinds while processes of actors and of tasks are
killed. The
recipe is that of Ray's documentation: an actor that writes its state to a file after each call and reads it
in
its constructor, with ``max_restarts=-1, max_task_retries=-1``; here the file is synced, too. At the end each
actor says how often it has seen each number.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import threading
from collections import Counter as Tally
from pathlib import Path
from typing import Any, NamedTuple

import ray

from ftray.ray import Checkpointable, readonly

ACTORS = 2
BATCH = 40


class Exact(Checkpointable, exactly_once=True):
    def __init__(self) -> None:
        self.seen: dict[int, int] = {}

    def add(self, number: int) -> int:
        self.seen[number] = self.seen.get(number, 0) + 1
        return len(self.seen)

    @readonly
    def all(self) -> dict[int, int]:
        return self.seen

    @readonly
    def pid(self) -> int:
        return os.getpid()


class Recipe:
    def __init__(self, path: str) -> None:
        self.path = path
        self.seen: dict[int, int] = {}
        if os.path.exists(path):
            with open(path) as file:
                self.seen = {int(number): times for number, times in json.load(file).items()}

    def add(self, number: int) -> int:
        self.seen[number] = self.seen.get(number, 0) + 1
        with open(self.path + ".new", "w") as file:
            json.dump(self.seen, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.path + ".new", self.path)
        return len(self.seen)

    def all(self) -> dict[int, int]:
        return self.seen

    def pid(self) -> int:
        return os.getpid()


def add_all(actors: list[Any], numbers: list[int], mark: str) -> int:
    """Add each number to each actor; die once in the middle when told to."""
    refs = [actor.add.remote(number) for number in numbers for actor in actors]
    ray.get(refs[: len(refs) // 2])
    if mark and not os.path.exists(mark):
        with open(mark, "w"):
            pass
        os.kill(os.getpid(), signal.SIGKILL)
    return len(ray.get(refs))


class Found(NamedTuple):
    """Over all actors of one kind."""

    calls: int
    lost: int
    doubled: int


def count(actors: list[Any], numbers: range) -> Found:
    """Ask how often each number was seen."""
    lost = doubled = 0
    for seen in ray.get([actor.all.remote() for actor in actors], timeout=120):
        times = Tally(seen)
        lost += sum(times[number] == 0 for number in numbers)
        doubled += sum(max(0, times[number] - 1) for number in numbers)
    return Found(len(numbers) * len(actors), lost, doubled)


def torture(kills: int, seed: int, base: Path) -> dict[str, Found]:
    """Make calls until so many processes were killed; Ray runs."""
    draw = random.Random(seed)
    os.environ["FTRAY_CHECKPOINT_STORE"] = str(base / "store")
    exact = [ray.remote(Exact).options(max_restarts=-1).remote() for _ in range(ACTORS)]
    recipe_class = ray.remote(max_restarts=-1, max_task_retries=-1)(Recipe)
    recipes = [recipe_class.remote(str(base / f"recipe-{i}")) for i in range(ACTORS)]
    task = ray.remote(max_retries=-1, num_cpus=0)(add_all)
    made = killed = rounds = 0
    while killed < kills:
        mark = str(base / f"mark-{rounds}") if draw.random() < 0.3 else ""
        running = [
            task.remote(kind, list(range(made, made + BATCH)), mark and f"{mark}-{i}")
            for i, kind in enumerate((exact, recipes))
        ]
        killed += 2 * bool(mark) + 2
        chosen = draw.randrange(ACTORS)
        pids = ray.get([kind[chosen].pid.remote() for kind in (exact, recipes)], timeout=120)
        for pid in pids:
            threading.Timer(draw.uniform(0, 0.15), end, (pid,)).start()
        ray.get(running, timeout=240)
        made += BATCH
        rounds += 1
    return {"exactly once": count(exact, range(made)), "Ray's recipe": count(recipes, range(made))}


def end(pid: int) -> None:
    """Kill a process if it still is an actor's."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            if file.read().startswith(b"ray::"):
                os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass


def main() -> int:
    """Print what was lost and doubled; 1 if exactly-once actors did either."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as base:
        os.chdir(base)  # Ray's workers would take modules from here before those that are installed
        small = {"num_cpus": 2, "object_store_memory": 100_000_000, "include_dashboard": False}
        ray.init(address="local", log_to_driver=False, **small)
        try:
            found = torture(options.kills, options.seed, Path(base))
        finally:
            ray.shutdown()
    print(f"{options.kills} kills, seed {options.seed}")
    for kind, (calls, lost, doubled) in found.items():
        print(f"{kind:<14} calls {calls:>7}  lost {lost:>5}  doubled {doubled:>5}")
    return int(bool(found["exactly once"].lost or found["exactly once"].doubled))


if __name__ == "__main__":
    sys.exit(main())
