"""Concurrent awaits in methods of exactly-once actors: in the same order when the method runs again."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

import ftray as ray
from ftray import checkpoint
from ftray._core.segments import segment_stats
from ftray._core.waits import plain_wait
from ftray._long_waits import LongWaits
from tests.helpers.losing import Unreadable
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


@ray.remote(num_cpus=0)
def late(x, seconds=0.0):
    time.sleep(seconds)
    return x


@ray.remote(num_cpus=0)
def behind(x, path):
    eventually(lambda: os.path.exists(path), timeout_s=60)
    return x


@ray.remote(num_cpus=0)
def fails(what):
    raise ValueError(what)


class Sum(ray.Checkpointable, exactly_once=True):
    def __init__(self):
        self.total = 0

    def add(self, k):
        self.total += k
        return self.total


class Waiter(ray.Checkpointable, exactly_once=True):
    def __init__(self, path):
        self.path, self.notes = path, []

    @checkpoint.readonly
    async def facts(self):
        return self.notes, os.getpid()

    def may_die(self):
        if os.path.exists(f"{self.path}-dies") and not os.path.exists(f"{self.path}-died"):
            open(f"{self.path}-died", "w").close()
            os.kill(os.getpid(), signal.SIGKILL)

    async def both(self, other):
        """One branch begins its second await while the first one of the other is under way."""

        async def twice():
            return await late.remote(1, 0.05), await late.remote(2, 0.05)

        async def once():
            return await late.remote(3, 0.4)

        self.notes.append(await asyncio.gather(twice(), once()))
        self.may_die()

    async def mixed(self, other):
        """Other values come between awaits, in a branch that awaits nothing after them."""

        async def records():
            self.notes.append(await late.remote(1, 0.05))
            self.record(int)
            open(f"{self.path}-recorded", "w").close()

        async def reads():
            await asyncio.sleep(0)
            self.notes.append(await behind.remote(2, f"{self.path}-recorded"))

        await asyncio.gather(reads(), records())
        self.may_die()

    async def gives_up(self, other):
        """What it waited for in vain is there when it runs again."""
        ref = late.remote(1, 0.3)
        try:
            k = await asyncio.wait_for(ref, 0.05)
        except asyncio.TimeoutError:
            k = 10
        sent = other.add.remote(k)
        time.sleep(0.4)
        self.may_die()
        self.notes += [k, await sent, await ref]

    async def leaves(self, other):
        """One await fails the method's gather, and the others go on beyond its end."""
        try:
            await asyncio.gather(fails.remote("as asked"), late.remote(1, 0.3))
        except ValueError:
            self.notes.append("failed")
        self.may_die()

    async def does_not_wait(self, other):
        """The value of the first branch comes when it is about to be waited for: the second has not begun."""
        begin = LongWaits.begin

        def slowly(waits, ref, method):
            plain_wait([ref], 1, None, False)
            return begin(waits, ref, method)

        async def first():
            self.notes.append(await late.remote(1, 0.05))

        async def second():
            self.notes.append(2)

        LongWaits.begin = slowly
        try:
            await asyncio.gather(first(), second())
        finally:
            LongWaits.begin = begin
        self.may_die()

    async def leaves_task(self, other):
        self.notes.append("left")
        asyncio.ensure_future(late.remote(1, 0.2))  # noqa: RUF006  nobody waits for it
        self.notes.append(await late.remote(2))
        self.may_die()

    async def leaves_sender(self, other):
        """What it has left behind sends when the method has long ended."""

        async def sends():
            await asyncio.sleep(0.1)
            await late.remote(1)

        self.sender = asyncio.ensure_future(sends())
        self.notes.append(await late.remote(2))
        self.may_die()

    def __getstate__(self):
        return {"path": self.path, "notes": self.notes}


@pytest.mark.parametrize("dies", [False, True], ids=["", "dies"])
@pytest.mark.parametrize(
    ("method", "notes"),
    [
        ("both", [[(1, 2), 3]]),
        ("mixed", [1, 2]),
        ("gives_up", [10, 10, 1]),
        ("leaves", ["failed"]),
        ("leaves_task", ["left", 2]),
        ("leaves_sender", [2]),
    ],
)
def test_awaits_end_in_the_same_order(tmp_path, method, notes, dies):
    check_order(tmp_path, method, notes, dies)


@pytest.mark.parametrize("dies", [False, True], ids=["", "dies"])
def test_an_await_whose_value_comes_at_the_last_moment(tmp_path, dies):
    check_order(tmp_path, "does_not_wait", [1, 2], dies)


def check_order(tmp_path, method, notes, dies):
    store = tmp_path / "store"
    waiter = ray.remote(num_cpus=0)(type("Waiter", (Waiter,), {}, store=store)).remote(str(tmp_path / "w"))
    other = ray.remote(num_cpus=0)(type("Sum", (Sum,), {}, store=store)).remote()
    if dies:
        (tmp_path / "w-dies").touch()
    ray.get(getattr(waiter, method).remote(other), timeout=60)
    time.sleep(0.4)  # what a method has left behind would write to the journal now
    for _ in range(2):
        found, pid = ray.get(waiter.facts.remote(), timeout=60)
        assert found == notes
        os.kill(pid, signal.SIGKILL)
        wait_ended([pid])
    assert ray.get(waiter.facts.remote(), timeout=60)[0] == notes
    assert ray.get(other.add.remote(0)) == (10 if method == "gives_up" else 0)


class Saver(ray.Checkpointable, exactly_once=True):
    def __init__(self):
        self.n = 0

    async def add(self, k=1):
        self.n += k
        return self.n

    async def saves(self):
        """Asks for a snapshot half-way, which comes when the method has ended."""
        self.n += 1
        await late.remote(0)
        self.checkpoint()
        await asyncio.sleep(0.05)
        await late.remote(0)
        self.n += 1
        return self.n

    @checkpoint.readonly
    async def facts(self):
        return self.n, os.getpid()


def test_no_snapshot_is_of_half_a_method_after_a_call_that_could_not_begin(tmp_path):
    """It counts, since it is recorded; it was counted as ended without having been counted as begun."""
    actor = ray.remote(num_cpus=0)(type("Saver", (Saver,), {}, store=tmp_path / "store")).remote()
    with pytest.raises(ray.exceptions.RayError, match="cannot be rebuilt"):
        ray.get(actor.add.remote(Unreadable()))
    assert ray.get(actor.saves.remote()) == 2
    for _ in range(2):
        found, pid = ray.get(actor.facts.remote(), timeout=60)
        assert found == 2
        os.kill(pid, signal.SIGKILL)
        wait_ended([pid])
    assert ray.get(actor.add.remote(), timeout=60) == 3


@ray.remote(num_cpus=0)
def waits_for(gate):
    gate.wait()


class Taker(ray.Checkpointable, exactly_once=True):
    def __init__(self):
        self.taken = []

    async def waits(self, gate):
        await waits_for.remote(gate)

    @checkpoint.nondeterministic
    async def outlives(self, path):
        """Wait for the memory of another process to be used here, say so, and wait for its end."""
        while not segment_stats()["foreign_segments"]:
            await asyncio.sleep(0.01)
        open(path, "w").close()
        while segment_stats()["foreign_segments"]:
            await asyncio.sleep(0.01)

    async def take(self, *parts):
        self.taken.append([len(part) for part in parts])
        return len(self.taken)

    @checkpoint.readonly
    async def facts(self):
        return self.taken, os.getpid()


def make_taker(tmp_path):
    return ray.remote(num_cpus=0)(type("Taker", (Taker,), {}, store=tmp_path / "store")).remote()


@ray.remote(num_cpus=0, max_retries=-1)
def sends(actor, path):
    """What it sends is in the memory of its process, which ends, once, when the actor has got the call."""
    again = os.path.exists(path)
    before = actor.outlives.remote(path)
    if again:
        ray.get(before)  # else it would wait for this process, too
    ref = actor.take.remote(bytes(300_000), b"small", bytes(200_000))
    if not again:
        eventually(lambda: os.path.exists(path), timeout_s=60)
        os.kill(os.getpid(), signal.SIGKILL)
    return ray.get(ref)


def test_a_call_that_was_accepted_keeps_its_arguments(tmp_path):
    """Its caller dies while it waits, and is made again: an error would be its reply for good."""
    actor = make_taker(tmp_path)
    assert ray.get(sends.remote(actor, str(tmp_path / "sent")), timeout=60) == 1
    for _ in range(2):
        taken, pid = ray.get(actor.facts.remote(), timeout=60)
        assert taken == [[300_000, 5, 200_000]]
        os.kill(pid, signal.SIGKILL)
        wait_ended([pid])


def test_a_refused_call_does_not_answer_for_the_one_that_it_contradicts(tmp_path, gate):
    """Those who have asked again for a call that waits for its turn get its answer, and nobody else's."""
    actor = make_taker(tmp_path)
    waits = actor.waits.remote(gate)
    keyed = actor.take.options(call_key="one")
    refs = [keyed.remote(b"1"), keyed.remote(b"1")]
    with pytest.raises(checkpoint.CallMismatchError):
        ray.get(keyed.remote(b"other"), timeout=60)
    gate.open()
    assert ray.get(refs, timeout=60) == [1, 1]
    ray.get(waits)
    assert ray.get(actor.facts.remote())[0] == [[1]]
