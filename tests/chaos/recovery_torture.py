"""SIGKILL at random moments of one actor's recoveries, again and again: it must not be parked.

    python -m tests.chaos.recovery_torture [--seconds 60] [--calls 40] [--call-ms 2] [--seed N]

The state and the replies are those of an actor that was never killed, and the first process that is left
alone recovers. Needs ftray to be importable, as the other programs here do.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import ftray as ray
from ftray import checkpoint


def make(store: Path, pids: Path, call_s: float) -> Any:
    """An actor whose recorded calls take a while."""

    class Busy(ray.Checkpointable, store=store, exactly_once=True, every=1_000_000):
        def __init__(self, pids: str) -> None:
            self.n = 0
            with open(pids, "a") as file:
                file.write(f"{os.getpid()}\n")

        def save_checkpoint(self) -> Any:
            return self.n

        def load_checkpoint(self, state: Any) -> None:
            self.n = state

        def add(self) -> int:
            end_s = time.perf_counter() + call_s
            while time.perf_counter() < end_s:
                pass
            self.n += 1
            return self.n

    return ray.remote(Busy).remote(str(pids))


def torture(pids: Path, seconds: float, window_s: float, draw: random.Random) -> int:
    """Kill each new process within its recovery; returns how many were killed."""
    end_s, killed, last = time.monotonic() + seconds, 0, ""
    while time.monotonic() < end_s:
        newest = pids.read_text().split()[-1]
        if newest == last:
            time.sleep(0.002)
            continue
        last = newest
        time.sleep(draw.random() * window_s)
        os.kill(int(newest), signal.SIGKILL)
        killed += 1
    return killed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--calls", type=int, default=40, help="behind the snapshot")
    parser.add_argument("--call-ms", type=float, default=2.0)
    parser.add_argument("--seed", default=None)
    options = parser.parse_args()
    seed = options.seed or os.urandom(4).hex()
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as base:
        pids, call_s = Path(base, "pids"), options.call_ms / 1000
        ray.init(num_cpus=1)
        actor = make(Path(base, "store"), pids, call_s)
        replies = ray.get([actor.add.remote() for _ in range(options.calls)])
        assert replies == list(range(1, options.calls + 1))
        window_s = 1.5 * options.calls * call_s + 0.05
        killed = torture(pids, options.seconds, window_s, random.Random(seed))
        assert ray.get(actor.add.remote(), timeout=300) == options.calls + 1
        assert checkpoint.status(actor)["state"] == "ok"
        ray.shutdown()
    print(f"{killed} processes killed, none parked")


if __name__ == "__main__":
    main()
