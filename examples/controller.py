"""A hyper-parameter search whose workers and whose controller may die at any time.

Each worker trains a small model with a learning rate of its own, step by step. The search runs in an actor
that has a `ftray.checkpoint.Controller`: it lets all workers do a step, survives the death of any of them,
and takes a consistent cut every few steps. While it runs, this program kills a worker and then the search,
twice each. The losses at the end are the same, to the last bit, as those of a search that nobody disturbed.

Run:  python examples/controller.py [--steps 40] [--kills 2]
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import tempfile
import threading

import ftray as ray
from ftray import checkpoint

RATES = [0.01, 0.1, 0.3, 0.9]


class Trial(ray.Checkpointable):
    """One choice of the learning rate: fits y = 3x - 1 by gradient descent."""

    def __init__(self, rate: float) -> None:
        self.rate, self.weight, self.bias = rate, 0.0, 0.0
        self.random, self.loss = random.Random(7), float("nan")

    def train(self, batch: int) -> None:
        """Make one step."""
        loss = 0.0
        for _ in range(batch):
            x = self.random.uniform(-1, 1)
            error = self.weight * x + self.bias - (3 * x - 1)
            loss += error * error / batch
            self.weight -= self.rate * 2 * error * x / batch
            self.bias -= self.rate * 2 * error / batch
        self.loss = loss

    @checkpoint.readonly
    def last_loss(self) -> float:
        return self.loss

    @checkpoint.readonly
    def pid(self) -> int:
        return os.getpid()


def make_trial(i: int):
    """Workers have names, by which their state is found again, and outlive the search's process."""
    remote = ray.remote(max_restarts=-1, max_task_retries=-1)(Trial)
    return remote.options(name=f"trial-{i}", lifetime="detached", get_if_exists=True).remote(RATES[i])


@ray.remote(max_restarts=-1, max_task_retries=-1)
class Search:
    """The controller's process. Nothing of it needs to be saved: the cuts say how far it was."""

    def __init__(self) -> None:
        self.controller = checkpoint.Controller(make_trial, len(RATES), name="search", every=5)

    def run(self, steps: int, progress) -> list[float]:
        """Go on to `steps` steps; returns the last losses."""
        while self.controller.step < steps:
            self.controller.perform("train", 20)
            ray.get(progress.report.remote(self.controller.step, os.getpid()))
        return ray.get([worker.last_loss.remote() for worker in self.controller.workers])


@ray.remote(num_cpus=0)
class Progress:
    """How far the search is, for those who watch."""

    def __init__(self) -> None:
        self.step, self.pid, self.changed = 0, 0, threading.Condition()

    def report(self, step: int, pid: int) -> None:
        with self.changed:
            self.step, self.pid = step, pid
            self.changed.notify_all()

    def reached(self, step: int) -> tuple[int, int]:
        """Wait for a step; returns where the search is, and its process."""
        with self.changed:
            self.changed.wait_for(lambda: self.step >= step)
            return self.step, self.pid


def undisturbed(steps: int) -> list[float]:
    """The same search in this process."""
    trials = [Trial(rate) for rate in RATES]
    for _ in range(steps):
        for trial in trials:
            trial.train(20)
    return [trial.loss for trial in trials]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--steps", type=int, default=40)
    arguments.add_argument("--kills", type=int, default=2)
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        os.environ["FTRAY_CHECKPOINT_STORE"] = directory
        ray.init(num_cpus=8, namespace="search")
        search, progress = Search.remote(), Progress.options(max_concurrency=2).remote()
        result = search.run.remote(given.steps, progress)

        def reached(step: int) -> tuple[int, int]:
            """Wait for a step of the search, or for its error."""
            there = progress.reached.remote(step)
            if there not in ray.wait([there, result], num_returns=1)[0]:
                raise AssertionError(f"the search ended before step {step}: {ray.get(result)}")
            return ray.get(there)

        for k in range(given.kills):
            at = given.steps * (2 * k + 1) // (2 * given.kills + 1)
            reached(at)
            name = f"trial-{k % len(RATES)}"
            os.kill(ray.get(ray.get_actor(name).pid.remote()), signal.SIGKILL)
            print(f"killed the worker {name}")
            step, pid = reached(at + given.steps // (2 * given.kills + 1))
            os.kill(pid, signal.SIGKILL)
            print(f"killed the search at step {step}")
        losses = ray.get(result)
        for rate, loss in zip(RATES, losses, strict=True):
            print(f"learning rate {rate:4}: loss {loss:.6f}")
        assert losses == undisturbed(given.steps), "the search went another way"
        print("PASS: the same losses as without kills")
        ray.shutdown()


if __name__ == "__main__":
    main()
