"""Tasks, actors and objects in one small program: estimate pi with all cores, then keep score in an actor.

    python examples/quickstart.py --samples 2000000

Needs numpy (``pip install 'ftray[demo]'``). Change the import to ``import ray`` and the program runs on Ray.
"""

from __future__ import annotations

import argparse
import math

import numpy as np

import ftray as ray


@ray.remote
def hits(samples: int, seed: int) -> int:
    """How many of so many random points of the unit square lie in the quarter circle."""
    points = np.random.default_rng(seed).random((samples, 2))
    return int(((points**2).sum(axis=1) < 1.0).sum())


@ray.remote
def mean_brightness(image: np.ndarray, row: int) -> float:
    """The image comes out of shared memory, read-only and without a copy."""
    return float(image[row].mean())


@ray.remote
class Score:
    """State that lives in a process of its own; calls from one caller run in order."""

    def __init__(self) -> None:
        self.inside = 0
        self.total = 0

    def add(self, inside: int, samples: int) -> float:
        self.inside += inside
        self.total += samples
        return 4.0 * self.inside / self.total


@ray.remote
def fragile(denominator: int) -> float:
    return 1 / denominator


def estimate_pi(samples: int, batches: int) -> float:
    """Run the batches in parallel, and hand each result to the actor as soon as it is there."""
    score = Score.remote()
    each = samples // batches
    pending = [hits.remote(each, seed) for seed in range(batches)]
    estimate = 0.0
    while pending:
        ready, pending = ray.wait(pending)
        # A reference is an argument like any other: the actor gets the value, it does not pass through here.
        estimate = ray.get(score.add.remote(ready[0], each))
    return estimate


def main() -> None:
    parser = argparse.ArgumentParser(description="Tasks, actors and objects in one small program.")
    parser.add_argument("--samples", type=int, default=2_000_000, help="random points (default 2,000,000)")
    arguments = parser.parse_args()

    ray.init()

    estimate = estimate_pi(arguments.samples, batches=16)
    print(f"pi is about {estimate:.4f}; off by {abs(estimate - math.pi):.4f}")

    image = ray.put(np.arange(4_000_000, dtype=np.float64).reshape(4, -1))  # written once, 32 MB
    rows = ray.get([mean_brightness.remote(image, row) for row in range(4)])
    print(f"mean of each row: {', '.join(f'{value:,.1f}' for value in rows)}")

    try:
        ray.get(fragile.remote(0))
    except ZeroDivisionError as error:  # the exception of the task, with the traceback of its process
        print(f"the task failed with {type(error).__name__}, as it should")

    ray.shutdown()


if __name__ == "__main__":
    main()
