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


@ray.remote(num_cpus=0)
def numbers() -> Any:
    yield 1


@ray.remote(num_cpus=0, max_retries=-1)
def apply_from_task(leaf: Any, index: int, given: int) -> Any:
    """Give the reply, and the same of a task of its own that asks under the same key."""
    key = f"from-task/{index}"
    first = ray.get(leaf.apply.options(call_key=key).remote(index, given))
    return first, ray.get(apply_keyed.remote(leaf, index, given, key))


@ray.remote(num_cpus=0, max_retries=-1)
def apply_keyed(leaf: Any, index: int, given: int, key: str) -> Any:
    return ray.get(leaf.apply.options(call_key=key).remote(index, given))


def not_at_first(reply: Any) -> Any:
    """What a task does that is retried: its calls are the same ones then."""
    if ray.get_runtime_context().attempt_number == 0:
        raise Odd(f"{reply} ", 1)
    return reply


@ray.remote(num_cpus=0, max_retries=-1, retry_exceptions=True)
def apply_again(leaf: Any, index: int) -> Any:
    return not_at_first(ray.get(leaf.apply.remote(index, 5)))


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
    if name in LEAF_STEPS:
        return leaf_step(leaves[given[0]], name, *given[1:])
    if name == "put":
        return len(ray.get(same.remote(ray.put(bytes(given[0])))))
    if name == "stream":
        return _caught(numbers.remote, ray.exceptions.NotSupportedError)
    if name == "record-record":
        return actor.record(lambda: [given[0], actor.record(lambda: ray.get(same.remote(given[0])))])
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
        return early, ray.get(ref)
    if name == "cancel":
        ref = late.remote(0, 20)
        ray.cancel(ref)
        return _caught(lambda: ray.get(ref), ray.exceptions.TaskCancelledError)
    assert name == "checkpoint"
    actor.checkpoint()
    return "saved"


def leaf_step(leaf: Any, name: str, index: int, *given: Any) -> Any:
    """A step that calls one leaf in a way of its own."""
    if name == "leaf-large":
        times, back = ray.get(leaf.exchange.remote(index, ray.put(bytes(given[0]))))
        return times, len(back)
    if name == "leaf-key":
        call = leaf.apply.options(call_key=f"in-method/{index}")
        return ray.get([call.remote(index, 6), call.remote(index, 6)])
    if name == "leaf-chance":
        return 0 <= ray.get(leaf.chance.remote(index)) < 1
    if name == "leaf-fails":
        return _caught(lambda: ray.get(leaf.fail.remote(index)), Odd)
    if name == "leaf-retry":
        call = leaf.third_time.options(retry_exceptions=[Odd], max_task_retries=-1)
        return ray.get(call.remote(index))
    if name == "leaf-later":
        ref, other = leaf.apply.remote(index, late.remote(7, 0.01)), same.remote(index)
        ready, _ = ray.wait([ref, other], num_returns=2, timeout=60)
        return [ray.get(other), len(ready), ray.get(ref)]
    if name == "leaf-task":
        return ray.get(apply_from_task.remote(leaf, index, 8))
    assert name == "leaf-task-retry"
    return ray.get(apply_again.remote(leaf, index))


LEAF_STEPS = {
    "leaf-large": lambda index, size: (1, size),
    "leaf-key": lambda index: [(1, mix(index, 6))] * 2,
    "leaf-chance": lambda index: True,
    "leaf-fails": lambda index: "caught",
    "leaf-retry": lambda index: (3, mix(index, 9)),
    "leaf-later": lambda index: [index, 2, (1, mix(index, 7))],
    "leaf-task": lambda index: ((1, mix(index, 8)), (1, mix(index, 8))),
    "leaf-task-retry": lambda index: (1, mix(index, 5)),
}
"""Steps of which each calls one leaf, and what they give."""
CALLING = ("record-call", "leaf", "two", "named", "leaf-async", "leaf-given-up", *LEAF_STEPS)
TIMES = {"leaf-retry": 3}
"""How often they are applied, if not once."""
RETRIED = ("leaf-retry", "leaf-task-retry")
"""Steps whose call raises `Odd` until it is retried."""


async def async_step(actor: Any, leaves: list[Any], step: Step) -> Any:
    name, *given = step
    if name == "task":
        return await same.remote(given[0])
    if name == "leaf":
        return await leaves[given[0]].apply.remote(given[1], same.remote(2))
    if name == "leaf-async":
        refs = [leaves[given[0]].apply.remote(given[1], 10), same.remote(given[1])]
        return list(await asyncio.gather(*refs))
    if name == "leaf-given-up":
        ref = leaves[given[0]].apply.remote(given[1], late.remote(11, 0.02))
        try:
            return await asyncio.wait_for(ref, 0.01)
        except asyncio.TimeoutError:
            return await ref
    if name == "sleep":
        await asyncio.sleep(given[0])
        return given[0]
    if name == "both":
        return list(await asyncio.gather(*(async_steps(actor, leaves, branch) for branch in given)))
    if name == "late":
        return await late.remote(given[0], given[0])
    if name == "gives-up":
        ref = late.remote(given[0], 0.1)
        try:
            return "not caught", await asyncio.wait_for(ref, 0.01)
        except asyncio.TimeoutError:
            return "caught", await ref
    return sync_step(actor, leaves, step)


def sync_steps(actor: Any, leaves: list[Any], steps: list[Step]) -> list[Any]:
    return [sync_step(actor, leaves, step) for step in steps]


async def async_steps(actor: Any, leaves: list[Any], steps: list[Step]) -> list[Any]:
    return [await async_step(actor, leaves, step) for step in steps]


class Either:
    """Equal to each of some values: which one it is depends on how fast the machine is."""

    def __init__(self, *values: Any) -> None:
        self._values = values

    def __eq__(self, other: object) -> bool:
        return other in self._values

    def __repr__(self) -> str:
        return " or ".join(map(repr, self._values))


def expected(step: Step) -> Any:
    name, *given = step
    if name in ("record", "task", "late", "sleep"):
        return given[0]
    if name in LEAF_STEPS:
        return LEAF_STEPS[name](*given[1:])
    if name == "leaf-async":
        return [(1, mix(given[1], 10)), given[1]]
    if name == "leaf-given-up":
        return (1, mix(given[1], 11))
    if name == "record-record":
        return [given[0], given[0]]
    if name in ("record-call", "leaf", "named"):
        return (1, mix(given[1], {"record-call": 1, "leaf": 2, "named": 3}[name]))
    if name == "two":
        return [1, mix(given[1], 4)]
    if name == "put":
        return given[0]
    if name == "wait":
        return list(range(given[0]))
    if name in ("timeout", "gives-up"):
        return Either(("caught", given[0]), ("not caught", given[0]))
    if name == "both":
        return [[expected(each) for each in branch] for branch in given]
    return "saved" if name == "checkpoint" else "caught"


class Drawing:
    """Draws steps; `entry(leaf, times)` gives a number of a leaf that no other step has."""

    def __init__(self, rng: random.Random, entry: Any, leaves: int) -> None:
        self._rng, self._entry, self._leaves = rng, entry, leaves

    def steps(self, most: int, is_async: bool) -> list[Step]:
        return [self._step(is_async) for _ in range(self._rng.randrange(most + 1))]

    def _step(self, is_async: bool) -> Step:
        rng = self._rng
        names = ["record", "record-unwritable", "record-call", "task", "leaf", "leaf", "two", "named", "put"]
        names += ["unwritable", "unwritable-put", "broken", "wait", "timeout", "cancel", "checkpoint"]
        names += ["stream", "record-record", *LEAF_STEPS]
        names += ["both", "late", "gives-up", "sleep", "leaf-async", "leaf-given-up"] if is_async else []
        name = rng.choice(names)
        if name in CALLING:
            leaf = rng.randrange(self._leaves)
            size = (rng.choice([10, 150_000]),) if name == "leaf-large" else ()
            return (name, leaf, self._entry(leaf, TIMES.get(name, 1)), *size)
        if name == "put":
            return name, rng.choice([10, 3000, 150_000])
        if name == "wait":
            return name, rng.randrange(1, 4)
        if name in ("late", "sleep"):
            return name, rng.random() * 0.03
        if name == "both":
            return (name, *(self.steps(3, False) + [("late", rng.random() * 0.02)] for _ in range(2)))
        given = ("record", "record-record", "task", "timeout", "gives-up")
        return (name, rng.randrange(1000)) if name in given else (name,)
