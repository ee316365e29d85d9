"""Rows for Dask distributed: a local cluster of two single-threaded worker processes."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable
from typing import Any

from benchmarks.budget import Budget
from benchmarks.peers import PeerRows
from benchmarks.process import MARK, runtime_pss_bytes
from benchmarks.rows.objects import CALLS_PER_STEP
from benchmarks.rows.startup import import_time
from benchmarks.rows.tasks import BIG_BYTES, SMOKE_BIG_BYTES

WORKERS = 2


def noop() -> None:
    return None


def successor(value: int) -> int:
    return value + 1


def size(array: Any) -> int:
    return int(array.nbytes)


class Noop:
    def call(self) -> None:
        return None


@functools.cache
def client() -> Any:
    from distributed import Client, LocalCluster

    cluster = LocalCluster(n_workers=WORKERS, threads_per_worker=1, dashboard_address=None)
    return Client(cluster)


def _submit(function: Callable[..., Any], *arguments: Any) -> Any:
    # Not pure: or Dask would return the first result for every equal call.
    return client().submit(function, *arguments, pure=False)


def task_sync(budget: Budget) -> float:
    return budget.rate(lambda: _submit(noop).result())


def task_inflight(budget: Budget) -> float:
    return _batches(budget, budget.size(1_000, 100))


def task_queued(budget: Budget) -> float:
    return _batches(budget, budget.size(20_000, 400))


def _batches(budget: Budget, count: int) -> float:
    return budget.rate(
        lambda: client().gather([_submit(noop) for _ in range(count)]),
        count,
        warmup=lambda: client().gather([_submit(noop) for _ in range(100)]),
    )


def task_chain(budget: Budget) -> float:
    length = budget.size(100, 10)

    def chain() -> None:
        future = _submit(successor, 0)
        for _ in range(length - 1):
            future = _submit(successor, future)
        if future.result() != length:
            raise AssertionError("the chain lost a link")

    return budget.rate(chain, length)


def task_big_ref(budget: Budget) -> float:
    count = budget.size(100, 20)
    big = client().scatter(_array(budget))
    return budget.rate(lambda: client().gather([_submit(size, big) for _ in range(count)]), count)


def actor_sync(budget: Budget) -> float:
    actor = client().submit(Noop, actor=True).result()
    return budget.rate(lambda: actor.call().result())


def actor_inflight(budget: Budget) -> float:
    actor = client().submit(Noop, actor=True).result()
    count = budget.size(1_000, 100)

    def batch() -> None:
        for future in [actor.call() for _ in range(count)]:
            future.result()

    return budget.rate(batch, count)


def put_small(budget: Budget) -> float:
    def step() -> None:
        for value in range(CALLS_PER_STEP):
            client().scatter(value, hash=False)

    return budget.rate(step, CALLS_PER_STEP)


def get_small(budget: Budget) -> float:
    future = client().scatter(7)
    return budget.rate(lambda: future.result())


def put_100mb(budget: Budget) -> float:
    array = _array(budget)
    held: dict[str, Any] = {}

    def step() -> None:
        array[0] += 1
        held["future"] = client().scatter(array, hash=False)

    return budget.rate(step) * array.nbytes / 1e9


def get_100mb(budget: Budget) -> float:
    future = client().scatter(_array(budget))
    return budget.rate(lambda: future.result())


def _array(budget: Budget) -> Any:
    import numpy as np

    return np.ones(budget.size(BIG_BYTES, SMOKE_BIG_BYTES) // 8, dtype=np.int64)


def init(budget: Budget) -> float:
    import distributed  # noqa: F401  (the import has a row of its own)

    start = time.perf_counter()
    client()
    return time.perf_counter() - start


def first_task(budget: Budget) -> float:
    client()
    start = time.perf_counter()
    _submit(noop).result()
    return time.perf_counter() - start


def memory(budget: Budget) -> float:
    import numpy  # noqa: F401  (as in the definition of the row)

    client().run(noop)
    return runtime_pss_bytes(os.getpid(), os.environ[MARK]) / 1e6


ROWS: PeerRows = {
    "import": lambda budget: import_time("distributed", budget),
    "init": init,
    "first_task": first_task,
    "task_sync": task_sync,
    "task_inflight": task_inflight,
    "task_chain": task_chain,
    "task_big_ref": task_big_ref,
    "task_queued": task_queued,
    "actor_sync": actor_sync,
    "actor_inflight": actor_inflight,
    "put_small": put_small,
    "get_small": get_small,
    "put_100mb": put_100mb,
    "get_100mb": get_100mb,
    "memory": memory,
}
