"""Tasks that submit tasks and wait for them: no deadlock, whatever the number of CPUs.

A worker that waits in ``get`` or ``wait`` lends its CPU, and calls queued behind it go elsewhere.
"""

from __future__ import annotations

import pytest

import ftray as ray

pytestmark = pytest.mark.usefixtures("runtime")

one_and_two_cpus = pytest.mark.parametrize(
    "cpus",
    [
        pytest.param(1, marks=pytest.mark.runtime(num_cpus=1)),
        pytest.param(2, marks=pytest.mark.runtime(num_cpus=2)),
    ],
)


@ray.remote
def leaf(x):
    return x + 1


@ray.remote
def middle(x):
    return ray.get(leaf.remote(x)) * 10


@ray.remote
def top(x):
    return ray.get(middle.remote(x)) + 5


@ray.remote
def tree(depth, width):
    if depth == 0:
        return 1
    return sum(ray.get([tree.remote(depth - 1, width) for _ in range(width)]))


@one_and_two_cpus
def test_three_levels_deep(cpus):
    assert ray.get([top.remote(i) for i in range(5)]) == [(i + 1) * 10 + 5 for i in range(5)]


@one_and_two_cpus
def test_tree_of_tasks(cpus):
    assert ray.get(tree.remote(3, 3)) == 27


@one_and_two_cpus
def test_waiting_in_wait_lends_the_cpu_too(cpus):
    @ray.remote
    def waiter():
        refs = [leaf.remote(i) for i in range(3)]
        ready, rest = ray.wait(refs, num_returns=3)
        return sorted(ray.get(ready)), rest

    assert ray.get(waiter.remote()) == ([1, 2, 3], [])


@one_and_two_cpus
def test_parents_block_before_any_child_is_submitted(cpus, mailbox, gate):
    """All CPUs are taken by parents that block together; their children still run."""

    @ray.remote(num_cpus=1)
    def parent(box, door, x):
        box.post(x)
        door.wait()
        return ray.get(leaf.options(num_cpus=1).remote(x))

    refs = [parent.remote(mailbox, gate, i) for i in range(cpus)]
    assert sorted(mailbox.take() for _ in refs) == list(range(cpus))
    gate.open()
    assert ray.get(refs) == [i + 1 for i in range(cpus)]


@ray.remote(num_cpus=0)
class Exchange:
    """Passes one list of refs to whoever asks, before or after it is given."""

    def __init__(self):
        import asyncio

        self.given = asyncio.Future()

    async def give(self, refs):
        self.given.set_result(refs)

    async def take(self):
        return await self.given


@one_and_two_cpus
def test_a_task_queued_behind_the_one_that_waits_for_it_runs(cpus, mailbox):
    """The waiting tasks come first, so what they wait for is queued behind them on the same workers."""

    @ray.remote
    def waiting(exchange, box):
        box.post("started")
        (ref,) = ray.get(exchange.take.remote())
        return ray.get(ref)

    @ray.remote
    def awaited():
        return "done"

    exchange = Exchange.remote()
    waiters = [waiting.remote(exchange, mailbox) for _ in range(cpus)]
    ref = awaited.remote()
    for _ in waiters:
        mailbox.take()
    ray.get(exchange.give.remote([ref]))
    assert ray.get(waiters) == ["done"] * cpus


@pytest.mark.runtime(num_cpus=1)
def test_short_tasks_overtake_nothing_but_are_not_stuck_behind_a_blocked_one(mailbox):
    """Hundreds of calls are pushed early to one worker, whose first call then blocks on the last."""

    @ray.remote
    def first(exchange, box):
        box.post("started")
        refs = ray.get(exchange.take.remote())
        return sum(ray.get(refs))

    exchange = Exchange.remote()
    total = first.remote(exchange, mailbox)
    rest = [leaf.remote(i) for i in range(300)]
    mailbox.take()
    ray.get(exchange.give.remote(rest))
    assert ray.get(total) == sum(range(1, 301))


@pytest.mark.runtime(num_cpus=2)
def test_a_long_task_does_not_hold_up_those_queued_behind_it(mailbox, gate):
    """It does not wait in get(), it is just long: calls queued to its worker go to the idle one."""

    @ray.remote
    def long(box, door):
        box.post("started")
        door.wait()
        return "long"

    slow = long.remote(mailbox, gate)
    short = [leaf.remote(i) for i in range(100)]
    mailbox.take()
    assert ray.get(short) == list(range(1, 101))
    assert ray.wait([slow], timeout=0) == ([], [slow])
    gate.open()
    assert ray.get(slow) == "long"


def test_actor_that_waits_for_a_task_that_calls_an_actor():
    @ray.remote
    class Echo:
        def say(self, x):
            return x

    @ray.remote
    def through(actor, x):
        return ray.get(actor.say.remote(x))

    @ray.remote
    class Front:
        def ask(self, actor, x):
            return ray.get(through.remote(actor, x))

    assert ray.get(Front.remote().ask.remote(Echo.remote(), "hello")) == "hello"


def test_children_outlive_the_parent_that_passed_on_their_refs():
    @ray.remote
    def parent():
        return [leaf.remote(1), leaf.remote(leaf.remote(2))]

    assert ray.get(ray.get(parent.remote())) == [2, 4]


def test_blocked_parents_give_every_cpu_back():
    ray.get([top.remote(i) for i in range(20)])
    # The fixture's leak check requires all resources back.
    assert ray.cluster_resources()["CPU"] == 2
