"""Random little programs that methods of exactly-once actors run, and what each of their steps gives.

A step is a tuple of its name and arguments. `sync_step` and `async_step` do it inside of a method; `expected`
says, without any runtime, what it gives. Calls to leaves have numbers of their own, so that a leaf can tell
which came twice or never.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from typing import Any

import ftray as ray
from tests.chaos.torture_actors import mix

Step = tuple[Any, ...]


@ray.remote(num_cpus=0, max_retries=-1)
def same(value: Any) -> Any:
    return value


@ray.remote(num_cpus=0, max_retries=-1)
def late(value: Any, seconds: float) -> Any:
    time.sleep(seconds)
    return value


@ray.remote(num_cpus=0)
def broken(text: str) -> None:
    raise Odd(text, 3)


class Odd(Exception):
    """Neither pickles as it is, nor can be made with its args."""

    def __init__(self, text: str, times: int) -> None:
        super().__init__(text * times)
        self.lock = threading.Lock()


def _caught(function: Any, wrong: type[BaseException]) -> str:
    try:
        function()
    except wrong:
        return "caught"
    return "not caught"


def sync_step(actor: Any, leaves: list[Any], step: Step) -> Any:
    name, *given = step
    if name == "record":
        return actor.record(lambda: given[0])
    if name == "record-unwritable":
        return _caught(lambda: actor.record(threading.Lock), TypeError)
    if name == "record-call":
        return actor.record(lambda: ray.get(leaves[given[0]].apply.remote(given[1], 1)))
    if name == "task":
        return ray.get(same.remote(given[0]))
    if name == "leaf":
        return ray.get(leaves[given[0]].apply.remote(given[1], same.remote(2)))
    if name == "two":
        return ray.get(leaves[given[0]].pair.options(num_returns=2).remote(given[1]))
    if name == "named":
        return ray.get(ray.get_actor(f"leaf-{given[0]}").apply.remote(given[1], 3))
    if name == "put":
        return len(ray.get(same.remote(ray.put(bytes(given[0])))))
    if name == "unwritable":
        return _caught(lambda: same.remote(threading.Lock()), TypeError)
    if name == "unwritable-put":
        return _caught(lambda: ray.put(threading.Lock()), TypeError)
    if name == "broken":
        return _caught(lambda: ray.get(broken.remote("no")), Odd)
    if name == "wait":
        refs = [late.remote(n, 0.004 * n) for n in range(given[0])]
        found = []
        while refs:
            ready, refs = ray.wait(refs, timeout=0.003)
            found += ray.get(ready)
        return sorted(found)
    if name == "timeout":
        ref = late.remote(given[0], 0.05)
        early = _caught(lambda: ray.get(ref, timeout=0.001), ray.exceptions.GetTimeoutError)
        return [early, ray.get(ref)]
    if name == "cancel":
        ref = late.remote(0, 20)
        ray.cancel(ref)
        return _caught(lambda: ray.get(ref), ray.exceptions.TaskCancelledError)
    assert name == "checkpoint"
    actor.checkpoint()
    return "saved"


async def async_step(actor: Any, leaves: list[Any], step: Step) -> Any:
    name, *given = step
    if name == "task":
        return await same.remote(given[0])
    if name == "leaf":
        return await leaves[given[0]].apply.remote(given[1], same.remote(2))
    if name == "both":
        return list(await asyncio.gather(*(async_steps(actor, leaves, branch) for branch in given)))
    if name == "late":
        return await late.remote(given[0], given[0])
    if name == "gives-up":
        ref = late.remote(given[0], 0.1)
        try:
            return await asyncio.wait_for(ref, 0.01)
        except asyncio.TimeoutError:
            return ["late", await ref]
    return sync_step(actor, leaves, step)


def sync_steps(actor: Any, leaves: list[Any], steps: list[Step]) -> list[Any]:
    return [sync_step(actor, leaves, step) for step in steps]


async def async_steps(actor: Any, leaves: list[Any], steps: list[Step]) -> list[Any]:
    return [await async_step(actor, leaves, step) for step in steps]


def expected(step: Step) -> Any:
    name, *given = step
    if name in ("record", "task", "late"):
        return given[0]
    if name in ("record-call", "leaf", "named"):
        return (1, mix(given[1], {"record-call": 1, "leaf": 2, "named": 3}[name]))
    if name == "two":
        return [1, mix(given[1], 4)]
    if name == "put":
        return given[0]
    if name == "wait":
        return list(range(given[0]))
    if name == "timeout":
        return ["caught", given[0]]
    if name == "gives-up":
        return ["late", given[0]]
    if name == "both":
        return [[expected(each) for each in branch] for branch in given]
    return "saved" if name == "checkpoint" else "caught"


class Drawing:
    """Draws steps; `entry` gives a number of a leaf that no other step has."""

    def __init__(self, rng: random.Random, entry: Any, leaves: int) -> None:
        self._rng, self._entry, self._leaves = rng, entry, leaves

    def steps(self, most: int, is_async: bool) -> list[Step]:
        return [self._step(is_async) for _ in range(self._rng.randrange(most + 1))]

    def _step(self, is_async: bool) -> Step:
        rng = self._rng
        names = ["record", "record-unwritable", "record-call", "task", "leaf", "leaf", "two", "named", "put"]
        names += ["unwritable", "unwritable-put", "broken", "wait", "timeout", "cancel", "checkpoint"]
        names += ["both", "late", "gives-up"] if is_async else []
        name = rng.choice(names)
        if name in ("record-call", "leaf", "two", "named"):
            leaf = rng.randrange(self._leaves)
            return name, leaf, self._entry(leaf)
        if name == "put":
            return name, rng.choice([10, 3000, 150_000])
        if name == "wait":
            return name, rng.randrange(1, 4)
        if name == "late":
            return name, rng.random() * 0.03
        if name == "both":
            return (name, *(self.steps(3, False) + [("late", rng.random() * 0.02)] for _ in range(2)))
        return (name, rng.randrange(1000)) if name in ("record", "task", "timeout", "gives-up") else (name,)
