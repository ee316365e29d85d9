"""Two processes and the rings between them, through calls only: frames larger than a ring, full rings, both
ways.

A ring holds 256 KB and a frame larger than a part of it travels in pieces, so these calls wrap, queue and
wait for room all the time. Each call carries its number and a checksum: nothing may be lost, doubled, mixed
up or out of order.
"""

from __future__ import annotations

import os
import random
import signal
import zlib

import pytest

import ftray as ray
from tests.helpers.processes import state_of
from tests.helpers.sync import eventually

pytestmark = [pytest.mark.usefixtures("runtime"), pytest.mark.runtime(num_cpus=1)]


@ray.remote
class Far:
    """Notes what arrives, and answers with what was asked for."""

    def __init__(self):
        self.seen = []

    def pid(self):
        return os.getpid()

    def take(self, number, *pieces):
        self.seen.append((number, [zlib.crc32(piece) for piece in pieces]))
        return number

    def give(self, number, size):
        self.seen.append((number, size))
        return content(number, size)

    def both(self, number, piece, size):
        self.seen.append((number, zlib.crc32(piece)))
        return content(number, size)

    def all_seen(self):
        seen, self.seen = self.seen, []
        return seen


@ray.remote
def turn(number, piece):
    """The same for a task: what came, and as much the other way."""
    return number, zlib.crc32(piece), content(number + 1, len(piece))


def content(number, size):
    return random.Random(number).randbytes(size)


def test_calls_many_times_larger_than_the_ring():
    """Twenty arguments of 90 KB each: 1.8 MB per call, twenty calls in flight."""
    far = Far.remote()
    calls = [(i, [content(100 * i + j, 90_000) for j in range(20)]) for i in range(20)]
    refs = [far.take.remote(i, *pieces) for i, pieces in calls]
    assert ray.get(refs) == list(range(20))
    assert ray.get(far.all_seen.remote()) == [(i, [zlib.crc32(p) for p in pieces]) for i, pieces in calls]


def test_a_thousand_calls_of_8_kb_in_flight():
    far = Far.remote()
    pieces = [content(i, 8192) for i in range(1000)]
    refs = [far.take.remote(i, piece) for i, piece in enumerate(pieces)]
    assert ray.get(refs) == list(range(1000))
    assert ray.get(far.all_seen.remote()) == [(i, [zlib.crc32(piece)]) for i, piece in enumerate(pieces)]


@pytest.mark.parametrize("size", [99_000, 100_000, 102_400, 120_000])
def test_replies_around_the_limit_of_what_goes_inline(size):
    far = Far.remote()
    refs = [far.give.remote(i, size) for i in range(100)]
    for i, ref in enumerate(refs):
        assert ray.get(ref) == content(i, size)
    assert ray.get(far.all_seen.remote()) == [(i, size) for i in range(100)]


def test_both_rings_full_at_once():
    """Neither side may wait for room in one direction without making room in the other."""
    far = Far.remote()
    pieces = [content(i, 90_000) for i in range(300)]
    refs = [far.both.remote(i, piece, 95_000) for i, piece in enumerate(pieces)]
    for i, ref in enumerate(refs):
        assert ray.get(ref) == content(i, 95_000)
    assert ray.get(far.all_seen.remote()) == [(i, zlib.crc32(piece)) for i, piece in enumerate(pieces)]


@pytest.mark.parametrize("seed", range(3))
def test_any_mixture_of_sizes_keeps_its_order(seed):
    far = Far.remote()
    print(f"seed {seed}")
    dice = random.Random(seed)
    sizes = [dice.choice([0, 1, 100, 4096, 60_000, 99_000, 300_000]) + dice.randrange(64) for _ in range(300)]
    refs = [far.take.remote(i, content(i, size)) for i, size in enumerate(sizes)]
    assert ray.get(refs) == list(range(300))
    assert ray.get(far.all_seen.remote()) == [
        (i, [zlib.crc32(content(i, size))]) for i, size in enumerate(sizes)
    ]


def test_tasks_fill_both_rings_too():
    pieces = [content(i, 90_000) for i in range(200)]
    refs = [turn.remote(i, piece) for i, piece in enumerate(pieces)]
    for i, (ref, piece) in enumerate(zip(refs, pieces, strict=True)):
        assert ray.get(ref) == (i, zlib.crc32(piece), content(i + 1, 90_000))


def test_a_reader_that_stands_still_loses_nothing():
    """Far more than the ring holds is written while the other process is stopped."""
    far = Far.remote()
    pid = ray.get(far.pid.remote())
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: state_of(pid) == "T", "the actor's process stops")
        refs = [far.take.remote(i, content(i, 50_000)) for i in range(200)]
        assert ray.wait(refs, timeout=0)[0] == []
    finally:
        os.kill(pid, signal.SIGCONT)
    assert ray.get(refs) == list(range(200))
    assert [number for number, _ in ray.get(far.all_seen.remote())] == list(range(200))
