"""Rows for ``multiprocessing.Pool``: the standard library's way to the same two processes."""

from __future__ import annotations

import functools
import multiprocessing
import multiprocessing.pool
import os
import time

from benchmarks.budget import Budget
from benchmarks.peers import PeerRows
from benchmarks.process import MARK, runtime_pss_bytes

WORKERS = 2


def noop() -> None:
    return None


@functools.cache
def pool() -> multiprocessing.pool.Pool:
    return multiprocessing.Pool(WORKERS)


def task_sync(budget: Budget) -> float:
    workers = pool()
    return budget.rate(lambda: workers.apply(noop))


def task_inflight(budget: Budget) -> float:
    return _batches(budget, budget.size(1_000, 100))


def task_queued(budget: Budget) -> float:
    return _batches(budget, budget.size(20_000, 400))


def _batches(budget: Budget, count: int) -> float:
    workers = pool()

    def batch() -> None:
        for result in [workers.apply_async(noop) for _ in range(count)]:
            result.get()

    return budget.rate(batch, count)


def init(budget: Budget) -> float:
    start = time.perf_counter()
    pool()
    return time.perf_counter() - start


def first_task(budget: Budget) -> float:
    workers = pool()
    start = time.perf_counter()
    workers.apply(noop)
    return time.perf_counter() - start


def memory(budget: Budget) -> float:
    import numpy  # noqa: F401  (as in the definition of the row)

    workers = pool()
    workers.map(abs, range(1_000), chunksize=1)
    return runtime_pss_bytes(os.getpid(), os.environ[MARK]) / 1e6


ROWS: PeerRows = {
    "init": init,
    "first_task": first_task,
    "task_sync": task_sync,
    "task_inflight": task_inflight,
    "task_queued": task_queued,
    "memory": memory,
}
