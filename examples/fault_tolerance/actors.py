"""Actors that fail, and callers that go on: by hand, with a controller, and with restarts.

    python examples/fault_tolerance/actors.py

Change the import to ``import ray`` and the program runs on Ray.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import ftray as ray

# --- by hand -------------------------------------------------------------------------------------------


@ray.remote
class Reader:
    """Reads something. What goes wrong at which call is written down beforehand, for this program only."""

    def __init__(self, troubles: Sequence[str]) -> None:
        self.troubles = list(troubles)

    def read(self) -> str:
        trouble = self.troubles.pop(0) if self.troubles else "none"
        if trouble == "bug":
            raise ZeroDivisionError
        if trouble == "crash":
            sys.exit(1)
        return "what it has read"


def try_until_it_works() -> None:
    """Calling again is right for a method that changes nothing. A dead actor is replaced by a new one."""
    reader = Reader.remote(["bug", "bug", "crash"])
    story = []
    while True:
        try:
            answer = ray.get(reader.read.remote())
            break
        except ZeroDivisionError:  # of the method: the actor is well
            story.append("called again")
        except ray.exceptions.RayActorError:  # of the process
            story.append("new actor")
            reader = Reader.remote(["bug"])
    print(f"{', '.join(story)}: {answer}")


# --- restarts ------------------------------------------------------------------------------------------


@ray.remote
class Worker:
    """Sums up numbers, and dies when it is told to: at the so-many-th number that this *process* sees."""

    def __init__(self, crash_at: int | None = None) -> None:
        self.total = 0
        self.seen = 0
        # Of all the processes that this actor will be, only the first has a weak heart.
        again = ray.get_runtime_context().was_current_actor_reconstructed
        self.crash_at = None if again else crash_at

    def add(self, number: int) -> int:
        self.seen += 1
        if self.seen == self.crash_at:
            os._exit(1)
        self.total += number
        return self.total

    def get_state(self) -> int:
        return self.total

    def load_state(self, total: int) -> None:
        self.total = total


def restarts_forget() -> None:
    """``max_restarts`` brings back the actor, ``max_task_retries`` its calls, and nothing its state."""
    bold = Worker.options(max_restarts=-1, max_task_retries=-1).remote(crash_at=3)
    totals = [ray.get(bold.add.remote(1)) for _ in range(4)]
    print(f"restarted and retried, counting from 0 again: {totals}")
    careful = Worker.options(max_restarts=1).remote(crash_at=1)
    try:
        ray.get(careful.add.remote(1))
    except ray.exceptions.ActorUnavailableError:
        print("restarted, the call not retried: the caller is told, and decides")
    print(f"the same handle reaches the next process: {ray.get(careful.add.remote(1))}")
    mortal = Worker.remote(crash_at=1)
    try:
        ray.get(mortal.add.remote(1))
    except ray.exceptions.ActorDiedError as error:
        print(f"not restarted: {type(error).__name__}")


# --- a controller --------------------------------------------------------------------------------------


class Controller:
    """Keeps the states of a group of workers, which go back to the same point when one of them dies.

    Parameters
    ----------
    make
        Makes the worker of a position.
    count
        How many.
    """

    def __init__(self, make: Callable[[int], Any], count: int) -> None:
        self.make = make
        self.workers = [make(position) for position in range(count)]
        self.attempts = 0

    def round(self, numbers: Sequence[int], attempts: int = 3) -> list[int]:
        """Give each worker its number: all of them have it afterwards, or the round begins anew."""
        before = ray.get([worker.get_state.remote() for worker in self.workers])
        for _ in range(attempts):
            self.attempts += 1
            totals = self.try_round(numbers)
            if totals is not None:
                return totals
            for worker in self.workers:  # those that live have done a part of the round
                ray.kill(worker)
            self.workers = [self.make(-1) for _ in before]
            states = zip(self.workers, before, strict=True)
            ray.get([worker.load_state.remote(total) for worker, total in states])
        raise RuntimeError(f"{attempts} attempts have failed")

    def try_round(self, numbers: Sequence[int]) -> list[int] | None:
        """Return the totals, or None when a worker has died."""
        refs = [worker.add.remote(number) for worker, number in zip(self.workers, numbers, strict=True)]
        unfinished = refs
        try:
            while unfinished:
                finished, unfinished = ray.wait(unfinished)
                ray.get(finished)  # raises as soon as one has failed, not when all are done
        except ray.exceptions.RayActorError:
            return None
        return list(ray.get(refs))


def controlled_workers_keep_in_step() -> None:
    controller = Controller(lambda position: Worker.remote(crash_at=2 if position == 1 else None), count=3)
    rounds = [controller.round([number, 10 * number, 100 * number]) for number in (1, 2, 3)]
    print(f"three rounds in {controller.attempts} attempts: {rounds[-1]}")


def main() -> None:
    ray.init(num_cpus=4)
    try_until_it_works()
    restarts_forget()
    controlled_workers_keep_in_step()
    ray.shutdown()


if __name__ == "__main__":
    main()
