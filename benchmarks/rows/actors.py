"""Rows about actors. Classes are made inside the rows, so that they travel by value to any engine."""

from __future__ import annotations

import os
import statistics
import time
from typing import Any

from benchmarks.budget import Budget
from benchmarks.process import kill_and_confirm
from benchmarks.rows.row import Row, Target, Unit


def noop_actor(ray: Any) -> Any:
    """An actor class whose methods do nothing."""

    @ray.remote
    class Noop:
        def call(self) -> None:
            return None

        def take(self, argument: bytes) -> None:
            return None

    return Noop


def actor_sync(ray: Any, budget: Budget) -> float:
    """One call at a time, each awaited before the next."""
    actor = noop_actor(ray).remote()
    return budget.rate(lambda: ray.get(actor.call.remote()))


def actor_inflight(ray: Any, budget: Budget) -> float:
    """Batches of 1,000 calls to one actor: all submitted, then all got."""
    actor = noop_actor(ray).remote()
    count = budget.size(1_000, 100)
    return budget.rate(lambda: ray.get([actor.call.remote() for _ in range(count)]), count)


def actor_async(ray: Any, budget: Budget) -> float:
    """The same, to an actor whose method is a coroutine."""

    @ray.remote
    class AsyncNoop:
        async def call(self) -> None:
            return None

    actor = AsyncNoop.remote()
    count = budget.size(1_000, 100)
    return budget.rate(lambda: ray.get([actor.call.remote() for _ in range(count)]), count)


def actor_8kb(ray: Any, budget: Budget) -> float:
    """The same, each call with 8 KB of bytes as its argument."""
    actor = noop_actor(ray).remote()
    count = budget.size(1_000, 100)
    argument = os.urandom(8_192)
    return budget.rate(lambda: ray.get([actor.take.remote(argument) for _ in range(count)]), count)


def actor_four(ray: Any, budget: Budget) -> float:
    """1,000 calls in flight, a quarter of them to each of four actors."""
    actors = [noop_actor(ray).remote() for _ in range(4)]
    each = budget.size(250, 25)

    def batch() -> None:
        ray.get([actor.call.remote() for _ in range(each) for actor in actors])

    return budget.rate(batch, each * len(actors))


def actor_create(ray: Any, budget: Budget) -> float:
    """Create an actor, call it once, drop it."""
    actor_class = noop_actor(ray)

    def life() -> None:
        actor = actor_class.remote()
        ray.get(actor.call.remote())

    return budget.rate(life)


def actor_recovery(ray: Any, budget: Budget) -> float:
    """Median time from SIGKILL to the reply of a call that is made right after it."""

    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Immortal:
        def pid(self) -> int:
            return os.getpid()

    actor = Immortal.remote()
    ray.get(actor.pid.remote())
    return statistics.median(_kill_once(ray, actor) for _ in range(budget.size(9, 2)))


def _kill_once(ray: Any, actor: Any) -> float:
    victim = ray.get(actor.pid.remote())
    start = time.perf_counter()
    kill_and_confirm(victim)
    successor = ray.get(actor.pid.remote())
    elapsed_s = time.perf_counter() - start
    if successor == victim:
        raise AssertionError(f"process {victim} answered after its death")
    return elapsed_s


ROWS = (
    Row(
        "actor_sync",
        "actor call, synchronous",
        Unit.PER_S,
        actor_sync,
        Target(10),
        Target(15),
        limit="pingpong_across",
    ),
    Row(
        "actor_inflight",
        "1,000 actor calls in flight",
        Unit.PER_S,
        actor_inflight,
        Target(13, 1e5),
        Target(26, 2e5),
    ),
    Row("actor_async", "the same, async actor", Unit.PER_S, actor_async, Target(10), Target(25)),
    Row("actor_8kb", "the same, 8 KB argument", Unit.PER_S, actor_8kb, Target(8), Target(20)),
    Row("actor_four", "1,000 calls over 4 actors", Unit.PER_S, actor_four, Target(10), Target(20)),
    Row(
        "actor_create",
        "create an actor and call it",
        Unit.PER_S,
        actor_create,
        Target(50),
        Target(100, 300),
        limit="fork_wait",
    ),
    Row(
        "actor_recovery",
        "actor killed to next reply",
        Unit.SECONDS,
        actor_recovery,
        Target(value=0.030),
        Target(value=0.010),
    ),
)
