"""Features of the API together, in exactly-once actors under random SIGKILLs.

    python -m tests.chaos.feature_torture [--calls 400] [--kill-s 0.2] [--reruns 3] [--seed N]

Methods run random little programs (`feature_steps`): what these do, what they are called with, how they end
and how they are called is drawn (`feature_calls`). A model that knows nothing of the runtime says what each
reply must be, and in the end which numbers were applied once. With ``--reruns`` the driver is killed as well,
and run again under its job key. Prints what was wrong, and its seed.
"""

from __future__ import annotations

import argparse
import random
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import ftray as ray
from tests.chaos.feature_calls import Torture
from tests.helpers import introspection, processes

RUN_LIMIT_S = 600.0


class Killer:
    """Kills workers at random: SIGKILL of any, now and then `ray.kill(no_restart=False)` of an actor."""

    def __init__(self, rng: random.Random, actors: list[Any], pause_s: float) -> None:
        self._rng, self._actors, self._pause_s = rng, actors, pause_s
        self.kills = 0
        self._node = introspection.node_pid()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._rng.random() * 2 * self._pause_s):
            if self._rng.random() < 0.1:
                ray.kill(self._rng.choice(self._actors), no_restart=False)
                self.kills += 1
                continue
            pid = self._rng.choice(introspection.workers_of(self._node) or [0])
            with processes.watched([pid] if pid else []) as pidfds:
                for pidfd in pidfds:
                    if processes.parent_of(processes.pid_of(pidfd)) == self._node:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        self.kills += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def torture(seed: str, calls: int, kill_s: float, store: Path, job_key: str | None) -> int:
    """Make the calls in a runtime of this process; returns how many problems there are."""
    ray.init(num_cpus=4, address="local", log_to_driver=False, job_key=job_key, namespace="torture")
    stores = [Path(store, "store").as_uri(), Path(store, "other").as_uri()]
    made = Torture(seed, stores if job_key else [*stores, "kv://features"])
    everyone = [*made.leaves, *made.actors.values()]
    killer = Killer(random.Random(f"{seed}/kills"), everyone, kill_s)
    for _ in range(0, calls, 20):
        made.batch(20)
        if len(made.problems) > 20:
            break
    killer.stop()
    made.close()
    ray.shutdown()
    print(f"{calls} calls, {killer.kills} kills, {made.poisoned} refused as poison")
    for problem in made.problems[:30]:
        print(f"WRONG {problem}")
    return len(made.problems)


def run_again(seed: str, reruns: int, limit_s: float, arguments: list[str]) -> int:
    """Run the driver as a process of its own, which is killed with all that it has started, and again."""
    rng = random.Random(f"{seed}/drivers")
    command = [sys.executable, "-m", "tests.chaos.feature_torture", *arguments]
    for _ in range(reruns):
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as driver:
            try:
                out, _ = driver.communicate(timeout=rng.uniform(1, limit_s))
            except subprocess.TimeoutExpired:
                driver.kill()
            else:
                print(out, end="")
                return driver.returncode
    last = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=RUN_LIMIT_S
    )
    print(last.stdout, end="")
    return last.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--kill-s", type=float, default=0.2, help="mean time between two kills")
    parser.add_argument("--reruns", type=int, default=0, help="how often the driver is killed and run again")
    parser.add_argument("--rerun-s", type=float, default=20.0, help="it is killed after this time at most")
    parser.add_argument("--seed", default=None)
    parser.add_argument("--store", type=Path, default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    seed = options.seed or secrets.token_hex(4)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if options.store is not None:
        return min(torture(seed, options.calls, options.kill_s, options.store, f"features {seed}"), 1)
    print(f"feature torture: seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as base:
        if options.reruns:
            again = [
                "--calls",
                str(options.calls),
                "--kill-s",
                str(options.kill_s),
                "--seed",
                seed,
                "--store",
                base,
            ]
            problems = run_again(seed, options.reruns, options.rerun_s, again)
        else:
            problems = torture(seed, options.calls, options.kill_s, Path(base), None)
    print(f"problems {problems}, seed {seed}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
