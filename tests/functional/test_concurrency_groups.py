"""Concurrency groups of threaded and async actors: limits, order, choice per method and per call."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

import ftray as ray
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")

GROUPS = {"io": 2, "compute": 4, "one": 1}


@ray.remote(concurrency_groups=GROUPS)
class Threads:
    def __init__(self):
        self.order = []

    @ray.method(concurrency_group="io")
    def io(self, box, door):
        box.post(threading.current_thread().name)
        door.wait()
        return "io"

    @ray.method(concurrency_group="compute")
    def compute(self, box, door):
        return self.io(box, door)

    def plain(self, box=None, door=None):
        if door is not None:
            self.io(box, door)
        return threading.current_thread().name

    @ray.method(concurrency_group="one")
    def note(self, i):
        self.order.append(i)
        return list(self.order)


@ray.remote(concurrency_groups=GROUPS)
class Async:
    def __init__(self):
        self.doors = {}
        self.running = {}
        self.most = {}
        self.order = []

    async def _wait(self, name):
        self.running[name] = self.running.get(name, 0) + 1
        self.most[name] = max(self.most.get(name, 0), self.running[name])
        await self.doors.setdefault(name, asyncio.Event()).wait()
        self.running[name] -= 1
        return name

    @ray.method(concurrency_group="io")
    async def io(self):
        return await self._wait("io")

    @ray.method(concurrency_group="compute")
    async def compute(self):
        return await self._wait("compute")

    async def plain(self):
        return await self._wait("plain")

    @ray.method(concurrency_group="one")
    async def note(self, i):
        self.order.append(i)
        await asyncio.sleep(0)
        self.order.append(i)
        return list(self.order)

    @ray.method(concurrency_group="one")
    async def open(self, name):
        self.doors.setdefault(name, asyncio.Event()).set()

    @ray.method(concurrency_group="one")
    def counts(self):
        return dict(self.running), dict(self.most)


def test_each_group_has_threads_of_its_own(mailbox, gate):
    actor = Threads.remote()
    busy = [actor.io.remote(mailbox, gate) for _ in range(5)]
    assert sorted(mailbox.take() for _ in range(2)) == ["ftray-call-io-0", "ftray-call-io-1"]

    others = [actor.compute.remote(mailbox, gate) for _ in range(6)]
    assert {mailbox.take() for _ in range(4)} == {f"ftray-call-compute-{i}" for i in range(4)}
    assert ray.get(actor.plain.remote(), timeout=20) == "ftray-call-0"  # full groups hold nobody else back
    assert mailbox.take_all() == []

    gate.open()
    assert ray.get(busy + others) == ["io"] * 11


def test_the_default_group_keeps_max_concurrency(mailbox, gate):
    actor = Threads.options(max_concurrency=2).remote()
    refs = [actor.plain.remote(mailbox, gate) for _ in range(3)]
    assert {mailbox.take(), mailbox.take()} == {"ftray-call-0", "ftray-call-1"}
    assert ray.get(actor.note.remote(1), timeout=20) == [1]
    assert mailbox.take_all() == []
    gate.open()
    ray.get(refs)


def test_order_within_a_group_of_one():
    actor = Threads.remote()
    refs = [actor.note.remote(i) for i in range(200)]
    assert ray.get(refs[-1]) == list(range(200))


def test_group_of_one_call(mailbox, gate):
    actor = Threads.remote()
    busy = [actor.io.remote(mailbox, gate) for _ in range(2)]
    assert {mailbox.take() for _ in range(2)} == {"ftray-call-io-0", "ftray-call-io-1"}
    moved = actor.io.options(concurrency_group="compute").remote(mailbox, gate)
    assert mailbox.take().startswith("ftray-call-compute-")
    named = actor.plain.options(concurrency_group="one").remote()
    assert ray.get(named, timeout=20) == "ftray-call-one-0"
    gate.open()
    ray.get([*busy, moved])


@pytest.mark.parametrize("actor_class", [Threads, Async])
def test_unknown_group_raises_at_the_call_and_names_the_allowed_ones(actor_class):
    actor = actor_class.remote()
    with pytest.raises(ValueError) as caught:
        actor.note.options(concurrency_group="disk")
    assert "'disk'" in str(caught.value) and ".note" in str(caught.value)
    assert all(repr(name) in str(caught.value) for name in GROUPS)
    assert ray.get(actor.note.remote(1))


def test_actor_without_groups_says_so():
    @ray.remote
    class Plain:
        def f(self):
            return 1

    actor = Plain.remote()
    with pytest.raises(ValueError, match="the actor has none"):
        actor.f.options(concurrency_group="io").remote()
    assert ray.get(actor.f.remote()) == 1


def test_a_method_of_a_group_that_is_not_declared_refuses_the_actor():
    @ray.remote(concurrency_groups={"io": 1})
    class Wrong:
        @ray.method(concurrency_group="oi")
        def f(self):
            return 1

    with pytest.raises(ValueError, match=r"'oi' of Wrong\.f.*'io'"):
        Wrong.remote()
    assert ray.get(Wrong.options(concurrency_groups={"oi": 1}).remote().f.remote()) == 1


@pytest.mark.parametrize(
    "groups, error",
    [
        (["io"], TypeError),
        ({"io": 0}, ValueError),
        ({"io": -1}, ValueError),
        ({"io": 1.5}, TypeError),
        ({"io": True}, TypeError),
        ({"io": "2"}, TypeError),
        ({"": 1}, ValueError),
        ({3: 1}, TypeError),
    ],
)
def test_wrong_groups(groups, error):
    with pytest.raises(error, match="concurrency_groups"):
        ray.remote(concurrency_groups=groups)(type("A", (), {}))


@pytest.mark.parametrize("wrong, error", [(3, TypeError), ("", ValueError), (["io"], TypeError)])
def test_wrong_group_of_a_method(wrong, error):
    with pytest.raises(error, match="concurrency_group"):
        ray.method(concurrency_group=wrong)


def test_coroutines_of_each_group_are_limited():
    actor = Async.remote()
    refs = [actor.io.remote() for _ in range(7)]
    more = [actor.compute.remote() for _ in range(7)] + [actor.plain.remote() for _ in range(7)]
    assert eventually(lambda: ray.get(actor.counts.remote())[0] == {"io": 2, "compute": 4, "plain": 7})
    for name in ("io", "compute", "plain"):
        ray.get(actor.open.remote(name))
    assert ray.get(refs + more) == ["io"] * 7 + ["compute"] * 7 + ["plain"] * 7
    assert ray.get(actor.counts.remote())[1] == {"io": 2, "compute": 4, "plain": 7}


def test_the_default_group_of_an_async_actor_keeps_max_concurrency():
    actor = Async.options(max_concurrency=3).remote()
    refs = [actor.plain.remote() for _ in range(9)]
    assert eventually(lambda: ray.get(actor.counts.remote())[0] == {"plain": 3})
    ray.get(actor.open.remote("plain"))
    assert ray.get(refs) == ["plain"] * 9
    assert ray.get(actor.counts.remote())[1] == {"plain": 3}


def test_order_within_a_group_of_one_of_an_async_actor():
    actor = Async.remote()
    refs = [actor.note.remote(i) for i in range(100)]
    assert ray.get(refs[-1]) == [i for i in range(100) for _ in range(2)]


def test_groups_go_with_the_handle():
    @ray.remote
    def elsewhere(actor):
        assert ray.get(actor.note.remote(7)) == [7]
        try:
            actor.note.options(concurrency_group="disk")
        except ValueError as error:
            return str(error)

    actor = Threads.remote()
    assert "'compute'" in ray.get(elsewhere.remote(actor))


@pytest.mark.parametrize("actor_class", [Threads, Async])
def test_groups_are_there_after_a_restart(actor_class):
    actor = actor_class.options(max_restarts=1, max_task_retries=-1).remote()
    assert ray.get(actor.note.remote(1))[0] == 1
    pid = ray.get(actor.__ray_call__.remote(lambda self: os.getpid()))
    ray.kill(actor, no_restart=False)
    wait_ended([pid])
    assert ray.get([actor.note.remote(i) for i in range(5)])[-1][-1] == 4
    assert ray.get(actor.__ray_call__.remote(lambda self: len(self.order))) in (5, 10)


def test_exceptions_in_groups_are_the_users():
    @ray.remote(concurrency_groups={"g": 1})
    class Fails:
        @ray.method(concurrency_group="g")
        def f(self):
            raise KeyError("x")

        @ray.method(concurrency_group="g", num_returns=2)
        def two(self):
            return 1, 2

    actor = Fails.remote()
    with pytest.raises(KeyError):
        ray.get(actor.f.remote())
    assert ray.get(actor.two.remote()) == [1, 2]
