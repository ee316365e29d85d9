"""What a chaos run computes: remote code, and beside it the same results by plain Python.

A *batch* is some refs and what each must give. Everything here may be run any number of times, since
processes die at random: tasks and calls are retried without bound and compute from their arguments only.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import ftray as ray
from tests.helpers.processes import crash
from tests.helpers.sync import Tally

FOREVER = {"max_restarts": -1, "max_task_retries": -1}
LARGE = 300_000
HUGE = 6_000_000
STORE_BYTES = 96 << 20


@dataclass
class Batch:
    """Refs and the value that each must have; ``excused`` are errors that are right answers too.

    A generator among the refs has a list of values. ``finish`` is called when all have been judged.
    """

    workload: str
    refs: list[Any]
    expected: list[Any]
    excused: tuple[type[BaseException], ...] = ()
    keep: list[Any] = field(default_factory=list)
    finish: Callable[[], object] = lambda: None


def digest(data: Any) -> str:
    return hashlib.blake2b(memoryview(data).cast("B"), digest_size=8).hexdigest()


def pattern(number: int, size: int) -> np.ndarray:
    return (np.arange(size, dtype=np.uint32) * 2654435761 + number).astype(np.uint8)


# -- tasks


@ray.remote(max_retries=-1)
def mix(x: int, *others: int) -> int:
    return (x * 31 + sum(others)) % 1_000_003


def mix_here(x: int, *others: int) -> int:
    return (x * 31 + sum(others)) % 1_000_003


@ray.remote(max_retries=-1)
def die_first(tally: Tally, how: str, value: int) -> int:
    """Crash in the first attempt, by whatever means."""
    if tally.bump() == 0:
        crash(how)
    return value + 1


@ray.remote(max_retries=-1)
def tree(depth: int, width: int, x: int) -> int:
    if depth == 0:
        return x
    return sum(ray.get([tree.remote(depth - 1, width, x + i) for i in range(width)]))


def tree_here(depth: int, width: int, x: int) -> int:
    return x if depth == 0 else sum(tree_here(depth - 1, width, x + i) for i in range(width))


@ray.remote(max_retries=-1)
def produce(number: int, size: int) -> np.ndarray:
    return pattern(number, size)


@ray.remote(max_retries=-1)
def digest_of(data: np.ndarray) -> str:
    return digest(data)


@ray.remote
def digest_of_fetched(refs: list[Any]) -> str:
    """The worker borrows what it fetches."""
    return digest(ray.get(refs[0]))


@ray.remote(max_retries=-1)
def digests_of(refs: list[Any]) -> list[str]:
    return [digest(data) for data in ray.get(refs)]


@ray.remote(max_retries=-1)
def own_and_return(number: int) -> list[Any]:
    return [ray.put(pattern(number, 100)), ray.put(pattern(number, LARGE))]


def flat(rng: random.Random, scratch: Path) -> Batch:
    numbers = [rng.randrange(10**6) for _ in range(rng.choice([1, 20, 200]))]
    return Batch("tasks", [mix.remote(x) for x in numbers], [mix_here(x) for x in numbers])


def chain(rng: random.Random, scratch: Path) -> Batch:
    x = rng.randrange(10**6)
    ref = ray.put(x)
    for step in range(rng.randrange(2, 20)):
        ref, x = mix.remote(ref, step), mix_here(x, step)
    return Batch("chain", [ref], [x])


def suicidal(rng: random.Random, scratch: Path) -> Batch:
    refs, expected = [], []
    for how in rng.sample(["exit", "exit0", "segfault", "sigkill", "abort"], 2):
        value = rng.randrange(10**6)
        refs.append(die_first.remote(Tally(scratch / f"{rng.getrandbits(64):x}"), how, value))
        expected.append(value + 1)
    return Batch("crashing tasks", refs, expected)


def nested(rng: random.Random, scratch: Path) -> Batch:
    shape = rng.choice([(1, 5), (2, 3), (3, 2)])
    x = rng.randrange(1000)
    return Batch("nested", [tree.remote(*shape, x)], [tree_here(*shape, x)])


def objects(rng: random.Random, scratch: Path) -> Batch:
    """Made by the driver and by tasks, read as arguments and inside lists, of both sizes."""
    sizes = [rng.choice([10, 5_000, LARGE, 2 * LARGE]) for _ in range(4)]
    numbers = [rng.randrange(256) for _ in sizes]
    made = [
        produce.remote(number, size) if rng.random() < 0.5 else ray.put(pattern(number, size))
        for number, size in zip(numbers, sizes, strict=True)
    ]
    digests = [digest(pattern(number, size)) for number, size in zip(numbers, sizes, strict=True)]
    refs = [digest_of.remote(ref) for ref in made] + [digests_of.remote(made)]
    return Batch("objects", refs, [*digests, digests], keep=made)


def more_than_memory(rng: random.Random, scratch: Path) -> Batch:
    """Objects that memory has no room for are spilled, and come back as arguments and in the driver."""
    numbers = [rng.randrange(256) for _ in range(8)]
    made = [
        produce.remote(number, HUGE) if rng.random() < 0.5 else ray.put(pattern(number, HUGE))
        for number in numbers
    ]
    digests = [digest(pattern(number, HUGE)) for number in numbers]
    given = [digest_of.remote(ref) for ref in made]
    fetched = [digest_of_fetched.remote([ref]) for ref in made]
    return Batch("more than memory", given + fetched, digests * 2, keep=made)


def owned_by_workers(rng: random.Random, scratch: Path) -> Batch:
    """Objects whose owner, a worker, may be killed: then, and only then, ``OwnerDiedError`` is right."""
    number = rng.randrange(256)
    ref = read_both.remote([own_and_return.remote(number)])
    expected = [digest(pattern(number, size)) for size in (100, LARGE)]
    return Batch("owned by workers", [ref], [expected], excused=(ray.exceptions.OwnerDiedError,))


@ray.remote(max_retries=-1)
def read_both(refs: list[Any]) -> list[str]:
    return [digest(data) for data in ray.get(ray.get(refs[0]))]


# -- generators


def item_of(number: int, size: int, place: int) -> Any:
    """What a stream has at a place: now and then an array, which is large or not."""
    return pattern(number + place, size) if place % 5 == 2 else number * place


def items_here(number: int, size: int, n: int) -> list[Any]:
    items = [item_of(number, size, place) for place in range(n)]
    return [digest(item) if isinstance(item, np.ndarray) else item for item in items]


@ray.remote(max_retries=-1)
def stream(number: int, size: int, n: int, tally: Tally, crash_at: int) -> Iterator[Any]:
    """Yield ``n`` items; the first attempt dies on the way."""
    first = tally.bump() == 0
    for place in range(n):
        if first and place == crash_at:
            crash("sigkill")
        yield item_of(number, size, place)


@ray.remote(max_retries=-1)
def read_stream(number: int, size: int, n: int, window: int) -> list[Any]:
    """Consume in a worker, which may die with half of it read, and then begins with another stream."""
    generator = stream.options(_generator_backpressure_num_objects=window).remote(
        number, size, n, Tally("/dev/null"), n + 1
    )
    return [digest(x) if isinstance(x, np.ndarray) else x for x in map(ray.get, generator)]


def streams(rng: random.Random, scratch: Path) -> Batch:
    refs: list[Any] = []
    expected: list[Any] = []
    for _ in range(3):
        number, size, n = rng.randrange(1000), rng.choice([100, LARGE]), rng.choice([1, 10, 60])
        tally = Tally(scratch / f"{rng.getrandbits(64):x}")
        crash_at = rng.randrange(n) if rng.random() < 0.5 else n + 1
        made = stream.options(_generator_backpressure_num_objects=rng.choice([-1, 1, 4, 50]))
        generator = made.remote(number, size, n, tally, crash_at)
        if rng.random() < 0.2:
            next(generator)  # and is left
        else:
            refs.append(generator)
            expected.append(items_here(number, size, n))
    return Batch("streams", refs, expected)


def streams_of_workers(rng: random.Random, scratch: Path) -> Batch:
    number, size, n = rng.randrange(1000), rng.choice([100, LARGE]), rng.choice([5, 40])
    ref = read_stream.remote(number, size, n, rng.choice([-1, 2]))
    return Batch("streams of workers", [ref], [items_here(number, size, n)])


# -- actors


class Sequenced:
    """Answers from its arguments only, and checks that each caller's calls come in order."""

    def __init__(self, factor: int) -> None:
        self.factor = factor
        self.last: dict[str, int] = {}

    def _check(self, caller: str, number: int) -> None:
        last = self.last.get(caller, -1)
        if number <= last:
            raise AssertionError(f"call {number} of {caller} came after call {last} in one incarnation")
        self.last[caller] = number

    def small(self, caller: str, number: int) -> int:
        self._check(caller, number)
        return number * self.factor

    def large(self, caller: str, number: int) -> np.ndarray:
        self._check(caller, number)
        return pattern(number * self.factor, LARGE)

    def several(self, caller: str, number: int, n: int) -> Iterator[int]:
        self._check(caller, number)
        for place in range(n):
            yield number * self.factor + place

    def through_task(self, caller: str, number: int) -> int:
        self._check(caller, number)
        return ray.get(mix.remote(number, self.factor))


class SequencedAsync:
    """The same without threads: coroutines of one loop start in order."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    async def small(self, caller: str, number: int) -> int:
        return number * self.factor


RemoteSequenced = ray.remote(**FOREVER)(Sequenced)
RemoteSequencedAsync = ray.remote(**FOREVER)(SequencedAsync)


class Actors:
    """A few long-lived actors, called by every round of one submitter, and short-lived ones."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.next = 0
        self.long_lived = [(factor, RemoteSequenced.remote(factor)) for factor in (3, 5)]

    def calls(self, rng: random.Random, scratch: Path) -> Batch:
        refs, expected = [], []
        for _ in range(rng.choice([1, 10, 100])):
            factor, actor = rng.choice(self.long_lived)
            number = self.next = self.next + 1
            if rng.random() < 0.9:
                refs.append(actor.small.remote(self.name, number))
                expected.append(number * factor)
            else:
                refs.append(digest_of.remote(actor.large.remote(self.name, number)))
                expected.append(digest(pattern(number * factor, LARGE)))
        return Batch("actor calls", refs, expected)

    def streams(self, rng: random.Random, scratch: Path) -> Batch:
        factor, actor = rng.choice(self.long_lived)
        number = self.next = self.next + 1
        n = rng.choice([3, 100])
        method = actor.several.options(_generator_backpressure_num_objects=rng.choice([-1, 200]))
        first = number * factor
        return Batch("actor streams", [method.remote(self.name, number, n)], [list(range(first, first + n))])

    def nested_calls(self, rng: random.Random, scratch: Path) -> Batch:
        factor, actor = rng.choice(self.long_lived)
        number = self.next = self.next + 1
        return Batch(
            "actor nested", [actor.through_task.remote(self.name, number)], [mix_here(number, factor)]
        )

    def short_lived(self, rng: random.Random, scratch: Path) -> Batch:
        factor = rng.randrange(2, 100)
        actor = rng.choice([RemoteSequenced, RemoteSequencedAsync]).remote(factor)
        refs = [actor.small.remote(self.name, number) for number in range(10)]
        refs.append(call_through.remote(actor, f"{self.name}-task", 10))
        return Batch("new actors", refs, [number * factor for number in range(11)])


@ray.remote(max_retries=-1)
def call_through(actor: Any, caller: str, number: int) -> int:
    # A retry of this task is another caller to the actor, so the name is its own.
    caller = f"{caller}-{ray.get_runtime_context().get_worker_id()}-{ray.get_runtime_context().get_task_id()}"
    return ray.get(actor.small.remote(caller, number))


Maker = Callable[[random.Random, Path], Batch]


def batches(name: str, rng: random.Random, scratch: Path) -> Iterator[Batch]:
    """Endless work for one submitter."""
    from tests.chaos.groups import groups

    actors = Actors(name)
    makers: list[Maker] = [
        flat,
        chain,
        suicidal,
        nested,
        more_than_memory,
        objects,
        owned_by_workers,
        streams,
        streams_of_workers,
        groups,
        actors.calls,
        actors.streams,
        actors.nested_calls,
        actors.short_lived,
    ]
    while True:
        yield rng.choice(makers)(rng, scratch)
