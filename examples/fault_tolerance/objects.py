"""Who owns an object, and what that means when processes die.

    python examples/fault_tolerance/objects.py

The process that calls ``.remote()`` or ``put`` owns the object. Change the import to ``import ray`` and the
program runs on Ray.
"""

from __future__ import annotations

import os
import select
import signal
from typing import Any

import numpy as np

import ftray as ray


@ray.remote
def make_ref() -> tuple[list[Any], int]:
    """Return a ref to what it has put: the object belongs to this worker, and outlives the task."""
    return [ray.put("the table")], os.getpid()


@ray.remote
def make_value(rows: int) -> tuple[np.ndarray, int]:
    """Return the value itself: it belongs to the caller."""
    return np.arange(rows), os.getpid()


@ray.remote
def look(value: Any) -> str:
    return f"{len(value)} rows"


def end(pid: int) -> None:
    """Kill a process, and wait until it is gone."""
    watched = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(watched, signal.SIGKILL)
        if not select.select([watched], [], [], 30)[0]:
            raise TimeoutError(f"process {pid} is still there 30 s after SIGKILL")
    finally:
        os.close(watched)


def an_owner_that_dies_takes_its_objects_along() -> None:
    (ref,), owner = ray.get(make_ref.remote())
    print(f"while its owner lives: {ray.get(ref)}")
    (other,), owner = ray.get(make_ref.remote())
    end(owner)
    try:
        ray.get(other)
    except ray.exceptions.OwnerDiedError as error:
        print(f"after its death: {type(error).__name__}")


def values_belong_to_the_caller() -> None:
    """What a task returns outlives the worker that made it, small or large."""
    for rows in (10, 1_000_000):
        values, pid = make_value.options(num_returns=2).remote(rows)
        end(ray.get(pid))
        print(f"the worker is dead, the value is there: {ray.get(look.remote(values))}")


def main() -> None:
    ray.init(num_cpus=2)
    an_owner_that_dies_takes_its_objects_along()
    values_belong_to_the_caller()
    ray.shutdown()


if __name__ == "__main__":
    main()
