"""Rows about objects: put, get and wait."""

from __future__ import annotations

from typing import Any

from benchmarks.budget import Budget
from benchmarks.rows.row import Row, Target, Unit
from benchmarks.rows.tasks import BIG_BYTES, SMOKE_BIG_BYTES, noop_task

CALLS_PER_STEP = 100  # keeps the clock's own cost out of calls of a few microseconds


def put_small(ray: Any, budget: Budget) -> float:
    """Put an integer; the reference is dropped at once."""

    def step() -> None:
        for value in range(CALLS_PER_STEP):
            ray.put(value)

    return budget.rate(step, CALLS_PER_STEP)


def get_small(ray: Any, budget: Budget) -> float:
    """Get one small object again and again."""
    ref = ray.put(7)

    def step() -> None:
        for _ in range(CALLS_PER_STEP):
            ray.get(ref)

    return budget.rate(step, CALLS_PER_STEP)


def put_100mb(ray: Any, budget: Budget) -> float:
    """Put 100 MB again and again, each time other bytes; the old reference goes when the new one is there."""
    import numpy as np

    size_bytes = budget.size(BIG_BYTES, SMOKE_BIG_BYTES)
    array = np.ones(size_bytes // 8, dtype=np.int64)
    held: dict[str, Any] = {}

    def step() -> None:
        array[0] += 1
        held["ref"] = ray.put(array)

    puts_per_s = budget.rate(step)
    if ray.get(held["ref"])[0] != array[0]:
        raise AssertionError("the last put is not what get() returns")
    return puts_per_s * size_bytes / 1e9


def get_100mb(ray: Any, budget: Budget) -> float:
    """Get one object of 100 MB again and again."""
    import numpy as np

    size_bytes = budget.size(BIG_BYTES, SMOKE_BIG_BYTES)
    ref = ray.put(np.ones(size_bytes, dtype=np.uint8))

    def step() -> None:
        for _ in range(10):
            ray.get(ref)

    return budget.rate(step, 10)


def wait_loop(ray: Any, budget: Budget) -> float:
    """Whole loops per second: wait() over 1,000 references, made before with put(), until none is left."""
    return _wait_loops(ray, budget, [ray.put(value) for value in range(budget.size(1_000, 100))])


def wait_loop_tasks(ray: Any, budget: Budget) -> float:
    """The same over the references of tasks that have finished: an engine may know more about those."""
    noop = noop_task(ray)
    finished = [noop.remote() for _ in range(budget.size(1_000, 100))]
    ray.get(finished)
    return _wait_loops(ray, budget, finished)


def _wait_loops(ray: Any, budget: Budget, finished: list[Any]) -> float:
    def loop() -> None:
        refs = list(finished)
        while refs:
            _ready, refs = ray.wait(refs)

    return budget.rate(loop)


ROWS = (
    Row("put_small", "put, small", Unit.PER_S, put_small, Target(50), Target(150)),
    Row("get_small", "get, small", Unit.PER_S, get_small, Target(20), Target(60)),
    Row(
        "put_100mb",
        "put 100 MB",
        Unit.GB_PER_S,
        put_100mb,
        Target(value=8.0),
        Target(value=15.0),
        limit="memcpy_warm",
    ),
    Row("get_100mb", "get 100 MB", Unit.PER_S, get_100mb, Target(3), Target(10)),
    Row("wait_loop", "wait loop over 1,000 refs", Unit.PER_S, wait_loop, Target(50), Target(200)),
    Row("wait_loop_tasks", "the same, results of tasks", Unit.PER_S, wait_loop_tasks, None, None),
)
