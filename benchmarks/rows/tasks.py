"""Rows about tasks. Remote functions are made inside the rows, so that they travel by value to any engine."""

from __future__ import annotations

from typing import Any

from benchmarks.budget import Budget
from benchmarks.rows.row import Row, Target, Unit

BIG_BYTES = 100_000_000
SMOKE_BIG_BYTES = 1_000_000  # still too large to travel inline


def noop_task(ray: Any) -> Any:
    """A remote function without arguments that does nothing."""

    @ray.remote
    def noop() -> None:
        return None

    return noop


def task_sync(ray: Any, budget: Budget) -> float:
    """One task at a time, each awaited before the next is submitted."""
    noop = noop_task(ray)
    return budget.rate(lambda: ray.get(noop.remote()))


def task_inflight(ray: Any, budget: Budget) -> float:
    """Batches of 1,000: all submitted, then all got."""
    noop = noop_task(ray)
    count = budget.size(1_000, 100)
    return budget.rate(lambda: ray.get([noop.remote() for _ in range(count)]), count)


def task_chain(ray: Any, budget: Budget) -> float:
    """100 tasks, each with the result of the one before as its argument; only the last is got."""

    @ray.remote
    def successor(value: int) -> int:
        return value + 1

    length = budget.size(100, 10)

    def chain() -> None:
        ref = successor.remote(0)
        for _ in range(length - 1):
            ref = successor.remote(ref)
        if ray.get(ref) != length:
            raise AssertionError("the chain lost a link")

    return budget.rate(chain, length)


def task_big_ref(ray: Any, budget: Budget) -> float:
    """100 tasks that take one reference to 100 MB."""
    import numpy as np

    @ray.remote
    def size(array: Any) -> int:
        return int(array.nbytes)

    size_bytes = budget.size(BIG_BYTES, SMOKE_BIG_BYTES)
    count = budget.size(100, 20)
    big = ray.put(np.zeros(size_bytes, dtype=np.uint8))

    def batch() -> None:
        if set(ray.get([size.remote(big) for _ in range(count)])) != {size_bytes}:
            raise AssertionError("a task saw another array")

    return budget.rate(batch, count)


def task_queued(ray: Any, budget: Budget) -> float:
    """20,000 tasks queued, then got."""
    noop = noop_task(ray)
    count = budget.size(20_000, 400)
    warm = budget.size(1_000, 100)
    return budget.rate(
        lambda: ray.get([noop.remote() for _ in range(count)]),
        count,
        warmup=lambda: ray.get([noop.remote() for _ in range(warm)]),
    )


ROWS = (
    Row(
        "task_sync",
        "task, synchronous",
        Unit.PER_S,
        task_sync,
        Target(10),
        Target(25),
        limit="pingpong_across",
    ),
    Row("task_inflight", "1,000 tasks in flight", Unit.PER_S, task_inflight, Target(20), Target(40, 100_000)),
    Row("task_chain", "chain of 100 dependent tasks", Unit.PER_S, task_chain, Target(10), Target(30)),
    Row(
        "task_big_ref",
        "100 tasks that take a ref to 100 MB",
        Unit.PER_S,
        task_big_ref,
        Target(10),
        Target(25),
    ),
    Row("task_queued", "20,000 tasks queued, then got", Unit.PER_S, task_queued, Target(20), Target(40)),
)
