"""Rows for xoscar: a pool of two processes beside the main one, actors called from the main process."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import xoscar

from benchmarks.budget import Budget
from benchmarks.peers import PeerRows
from benchmarks.process import MARK, runtime_pss_bytes
from benchmarks.rows.startup import import_time

WORKERS = 2


class Noop(xoscar.Actor):  # type: ignore[misc]
    """Its processes import it by name, so it stands here and not in a function."""

    def call(self) -> None:
        return None

    async def call_async(self) -> None:
        return None

    def take(self, argument: bytes) -> None:
        return None


async def start_pool() -> Any:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return await xoscar.create_actor_pool(f"127.0.0.1:{port}", n_process=WORKERS)


async def create_actor(pool: Any, process: int = 1) -> Any:
    strategy = xoscar.allocate_strategy.ProcessIndex(process)
    return await xoscar.create_actor(Noop, address=pool.external_address, allocate_strategy=strategy)


def with_pool(row: Callable[[Any, Budget], Awaitable[float]]) -> Callable[[Budget], float]:
    """Make a row of a coroutine that wants a running pool."""

    async def run(budget: Budget) -> float:
        pool = await start_pool()
        try:
            return await row(pool, budget)
        finally:
            await pool.stop()

    return lambda budget: asyncio.run(run(budget))


async def actor_sync(pool: Any, budget: Budget) -> float:
    actor = await create_actor(pool)
    return await budget.rate_async(actor.call)


async def actor_inflight(pool: Any, budget: Budget) -> float:
    return await _batches([await create_actor(pool)], "call", (), budget)


async def actor_async(pool: Any, budget: Budget) -> float:
    return await _batches([await create_actor(pool)], "call_async", (), budget)


async def actor_8kb(pool: Any, budget: Budget) -> float:
    return await _batches([await create_actor(pool)], "take", (os.urandom(8_192),), budget)


async def actor_four(pool: Any, budget: Budget) -> float:
    actors = [await create_actor(pool, 1 + index % WORKERS) for index in range(4)]
    return await _batches(actors, "call", (), budget)


async def _batches(actors: list[Any], method: str, arguments: tuple[Any, ...], budget: Budget) -> float:
    count = budget.size(1_000, 100)
    calls = [getattr(actors[index % len(actors)], method) for index in range(count)]

    async def batch() -> None:
        await asyncio.gather(*[call(*arguments) for call in calls])

    return await budget.rate_async(batch, count)


async def actor_create(pool: Any, budget: Budget) -> float:
    async def life() -> None:
        actor = await create_actor(pool)
        await actor.call()
        await xoscar.destroy_actor(actor)

    return await budget.rate_async(life)


def init(budget: Budget) -> float:
    async def run() -> float:
        start = time.perf_counter()
        pool = await start_pool()
        elapsed_s = time.perf_counter() - start
        await pool.stop()
        return elapsed_s

    return asyncio.run(run())


async def memory(pool: Any, budget: Budget) -> float:
    import numpy  # noqa: F401  (as in the definition of the row)

    for process in range(WORKERS):
        await (await create_actor(pool, 1 + process)).call()
    return runtime_pss_bytes(os.getpid(), os.environ[MARK]) / 1e6


ROWS: PeerRows = {
    "import": lambda budget: import_time("xoscar", budget),
    "init": init,
    "actor_sync": with_pool(actor_sync),
    "actor_inflight": with_pool(actor_inflight),
    "actor_async": with_pool(actor_async),
    "actor_8kb": with_pool(actor_8kb),
    "actor_four": with_pool(actor_four),
    "actor_create": with_pool(actor_create),
    "memory": with_pool(memory),
}
