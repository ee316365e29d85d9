"""What the torture of exactly-once actors runs: their states and replies show effects twice or never.

Every effect has a number of its own (an *entry*: which `Leaf`, which index). A leaf counts how often each
was applied, and numbers them in its order: over all replies of a leaf, those numbers must be 1 to n, each
once."""

from __future__ import annotations

import os
import random
from typing import Any

import ftray as ray
from ftray.checkpoint import readonly

LARGE = 150_000
Reply = tuple[int, int, int]


def mix(index: int, given: int) -> int:
    return (index * 1_000_003 + given * 31 + 7) % (1 << 61)


class Counting:
    """Numbers what is applied, and counts how often."""

    def __init__(self) -> None:
        self.last = 0
        self.applied = bytearray()

    def mark(self, index: int) -> tuple[int, int]:
        if index >= len(self.applied):
            self.applied.extend(bytes(max(4096, index + 1 - len(self.applied))))
        self.last += 1
        if self.applied[index] < 255:
            self.applied[index] += 1
        return self.last, self.applied[index]


class Leaf(ray.Checkpointable, exactly_once=True, keep=2):
    """Applies entries, and calls nobody."""

    def __init__(self) -> None:
        self.counting = Counting()

    def apply(self, index: int, given: int | Reply = 0) -> Reply:
        """Apply an entry; `given` is a number or an earlier reply, which comes as a ref."""
        number = given if isinstance(given, int) else given[0]
        return (*self.counting.mark(index), mix(index, number))

    def fail(self, index: int) -> None:
        """An exception is a reply as well, and what was done before it stays."""
        raise ValueError(*self.counting.mark(index))

    def exchange(self, index: int, payload: bytes) -> tuple[int, int, bytes]:
        """With an argument and a reply that are kept beside the journal."""
        return (*self.counting.mark(index), payload[::-1])

    @readonly
    def size(self) -> int:
        return self.counting.last

    @readonly
    def audit(self) -> tuple[int, bytes]:
        return self.counting.last, bytes(self.counting.applied)

    @readonly
    def pid(self) -> int:
        return os.getpid()


class Teller(ray.Checkpointable, exactly_once=True, keep=2):
    """Calls leaves in its methods, in turn, at once, and through tasks."""

    def __init__(self) -> None:
        self.counting = Counting()
        self.noise = 0.0

    def move(self, index: int, a: Any, i: int, b: Any, j: int) -> tuple[int, int, Reply, Reply, float]:
        number, times = self.counting.mark(index)
        x = ray.get(a.apply.remote(i, index))
        self.noise += self.record(random.random)
        y = ray.get(b.apply.remote(j, x[0]))
        return number, times, x, y, self.noise

    def spread(self, index: int, entries: list[tuple[Any, int]]) -> tuple[int, int, list[Reply]]:
        number, times = self.counting.mark(index)
        refs = [leaf.apply.remote(i, index) for leaf, i in entries]
        done, _later = ray.wait(refs, num_returns=1)
        ray.get(done[0])
        return number, times, ray.get(refs)

    def by_task(self, index: int, leaf: Any, i: int) -> tuple[int, int, list[Reply]]:
        number, times = self.counting.mark(index)
        return number, times, ray.get(walk.remote([(leaf, i)], index))

    @readonly
    def audit(self) -> tuple[int, bytes]:
        return self.counting.last, bytes(self.counting.applied)

    @readonly
    def pid(self) -> int:
        return os.getpid()


class AsyncTeller(ray.Checkpointable, exactly_once=True, keep=2):
    """The same on an event loop."""

    def __init__(self) -> None:
        self.counting = Counting()
        self.noise = 0.0

    async def move(self, index: int, a: Any, i: int, b: Any, j: int) -> tuple[int, int, Reply, Reply, float]:
        number, times = self.counting.mark(index)
        x = await a.apply.remote(i, index)
        self.noise += self.record(random.random)
        y = await b.apply.remote(j, x[0])
        return number, times, x, y, self.noise

    @readonly
    async def audit(self) -> tuple[int, bytes]:
        return self.counting.last, bytes(self.counting.applied)

    @readonly
    async def pid(self) -> int:
        return os.getpid()


@ray.remote(max_retries=-1, num_cpus=1)
def walk(entries: list[tuple[Any, int]], given: int) -> list[Reply]:
    """Apply one after the other, each with what the one before has answered."""
    replies: list[Reply] = []
    for leaf, index in entries:
        replies.append(ray.get(leaf.apply.remote(index, given)))
        given = replies[-1][0]
    return replies


@ray.remote(max_retries=-1, num_cpus=1)
def fan(entries: list[tuple[Any, int]], given: int) -> list[Reply]:
    """Apply all at once."""
    return ray.get([leaf.apply.remote(index, given) for leaf, index in entries])


@ray.remote(max_retries=-1, num_cpus=1)
def nest(halves: list[list[tuple[Any, int]]], given: int) -> list[Reply]:
    """Have two tasks apply, which may go on when this one is made again."""
    walked, fanned = ray.get([walk.remote(halves[0], given), fan.remote(halves[1], given)])
    return walked + fanned


@ray.remote(max_retries=-1, num_cpus=1)
def by_key(key: str, leaf: Any, index: int, given: int) -> Reply:
    """Make a call that others make as well."""
    return ray.get(leaf.apply.options(call_key=key).remote(index, given))
