"""Generator tasks and actors for tests, and consumers of what they yield."""

from __future__ import annotations

import numpy as np

import ftray as ray
from tests.helpers.processes import crash

LARGE = 300_000


@ray.remote
def count(n):
    yield from range(n)


@ray.remote
def crash_at(tally, n, at, how="sigkill", attempts=1):
    """Die before item ``at`` in the first attempts, then yield all."""
    attempt = tally.bump()
    for i in range(n):
        if attempt < attempts and i == at:
            crash(how)
        yield i


@ray.remote
def endless(box):
    """Says how far it came, and that it was closed."""
    try:
        for i in range(10**9):
            box.post(i)
            yield i
    finally:
        box.post("closed")


def values(generator):
    return [ray.get(ref) for ref in generator]


def outcomes(generator):
    """Values, and the names of the errors that stand for one."""
    found = []
    for ref in generator:
        try:
            found.append(ray.get(ref))
        except ray.exceptions.RayError as error:
            found.append(type(error).__name__)
    return found


def finish(mailbox, *generators):
    """Leave `endless` generators, and wait until they say so (nobody may post to a mailbox that is gone)."""
    for generator in generators:
        generator.close()
        while mailbox.take() != "closed":
            pass


@ray.remote
class Yielder:
    def numbers(self, n):
        yield from range(n)

    def crash_at(self, tally, n, at):
        attempt = tally.bump()
        for i in range(n):
            if attempt == 0 and i == at:
                crash("sigkill")
            yield i

    def endless(self, box):
        try:
            for i in range(10**9):
                box.post(i)
                yield i
        finally:
            box.post("closed")

    def fail_at(self, n):
        yield from range(n)
        raise KeyError("no more")

    def ping(self):
        return "pong"

    def owned(self, n, size):
        for _ in range(n):
            yield [ray.put(np.zeros(size, np.uint8))]

    def make(self, n):
        return [ray.put(i) for i in range(n)]

    def entries(self):
        from ftray import _core

        return _core.debug_counters()["entries"]


@ray.remote
class AsyncYielder:
    async def numbers(self, n):
        import asyncio

        for i in range(n):
            await asyncio.sleep(0)
            yield i

    def plain(self, n):
        yield from range(n)

    async def endless(self, box):
        try:
            for i in range(10**9):
                box.post(i)
                yield i
        finally:
            box.post("closed")

    async def ping(self):
        return "pong"
