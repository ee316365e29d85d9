"""Actors: state, order of calls, handles, lifetimes, names, threads and async methods."""

from __future__ import annotations

import asyncio
import os
import threading

import pytest

import ftray as ray
from tests.helpers.processes import wait_fd
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


@ray.remote
class Counter:
    def __init__(self, start=0, *, step=1):
        self.value = start
        self.step = step

    def increment(self, by=None):
        self.value += self.step if by is None else by
        return self.value

    def get(self):
        return self.value

    def fail(self):
        raise KeyError("as asked")

    def pid(self):
        return os.getpid()


@ray.remote
class Log:
    """Keeps what it was told, in the order in which it was told."""

    def __init__(self):
        self.entries = []

    def add(self, entry):
        self.entries.append(entry)

    def get(self):
        return self.entries


def test_state_lives_between_calls():
    counter = Counter.remote(10, step=5)
    assert ray.get([counter.increment.remote(), counter.increment.remote(1), counter.get.remote()]) == [
        15,
        16,
        16,
    ]


def test_each_actor_has_its_own_process_and_state():
    actors = [Counter.remote(i) for i in range(3)]
    assert ray.get([actor.increment.remote() for actor in actors]) == [1, 2, 3]
    pids = ray.get([actor.pid.remote() for actor in actors])
    assert len({*pids, os.getpid()}) == 4


def test_calls_of_one_caller_run_in_order():
    log = Log.remote()
    for i in range(1000):
        log.add.remote(i)
    assert ray.get(log.get.remote()) == list(range(1000))


def test_order_holds_for_small_and_large_arguments_and_refs():
    log = Log.remote()
    sizes = [10, 300_000, 10, 150_000, 1, 300_000, 10] * 5
    for i, size in enumerate(sizes):
        argument = b"x" * size
        log.add.remote(ray.put((i, argument)) if i % 2 else (i, argument))
    entries = ray.get(log.get.remote())
    assert [(i, len(data)) for i, data in entries] == list(enumerate(sizes))


def test_a_call_whose_argument_is_not_ready_keeps_its_place(gate):
    @ray.remote
    def later(door):
        door.wait()
        return "late"

    log = Log.remote()
    log.add.remote("first")
    log.add.remote(later.remote(gate))
    log.add.remote("last")
    read = log.get.remote()
    assert ray.wait([read], timeout=0.2) == ([], [read])
    gate.open()
    assert ray.get(read) == ["first", "late", "last"]


def test_each_of_several_callers_keeps_its_order():
    @ray.remote
    def talk(log, name):
        ray.get([log.add.remote((name, i)) for i in range(100)])

    log = Log.remote()
    ray.get([talk.remote(log, name) for name in "abcd"])
    entries = ray.get(log.get.remote())
    assert len(entries) == 400
    for name in "abcd":
        assert [i for who, i in entries if who == name] == list(range(100))


def test_a_thousand_calls_in_flight():
    counter = Counter.remote()
    refs = [counter.increment.remote() for _ in range(1000)]
    assert ray.get(refs) == list(range(1, 1001))


def test_calls_before_the_actor_is_ready_wait_in_order(gate):
    @ray.remote
    class Slow:
        def __init__(self, door):
            door.wait()
            self.seen = []

        def add(self, x):
            self.seen.append(x)
            return list(self.seen)

    actor = Slow.remote(gate)
    refs = [actor.add.remote(i) for i in range(50)]
    assert ray.wait(refs, timeout=0.2)[0] == []
    gate.open()
    assert ray.get(refs[-1]) == list(range(50))


def test_exceptions_do_not_end_the_actor():
    counter = Counter.remote()
    for _ in range(3):
        with pytest.raises(KeyError, match="as asked") as caught:
            ray.get(counter.fail.remote())
        assert isinstance(caught.value, ray.exceptions.RayTaskError)
    assert ray.get(counter.increment.remote()) == 1


def test_method_that_does_not_exist():
    counter = Counter.remote()
    with pytest.raises(AttributeError):
        counter.no_such_method.remote()


def test_class_without_constructor_and_inherited_methods():
    class Base:
        def who(self):
            return "base", type(self).__name__

    @ray.remote
    class Derived(Base):
        def own(self):
            return super().who()

    actor = Derived.remote()
    assert ray.get([actor.who.remote(), actor.own.remote()])[0][0] == "base"


def test_num_returns_of_methods():
    @ray.remote
    class Several:
        @ray.method(num_returns=2)
        def pair(self):
            return 1, b"x" * 300_000

        def single(self):
            return "a", "b", "c"

    actor = Several.remote()
    small, large = actor.pair.remote()
    assert (ray.get(small), len(ray.get(large))) == (1, 300_000)
    assert ray.get(actor.single.options(num_returns=3).remote()) == ["a", "b", "c"]
    assert ray.get(actor.single.remote()) == ("a", "b", "c")


def test_refs_as_arguments_of_constructor_and_methods():
    actor = Counter.remote(ray.put(5), step=ray.put(2))
    assert ray.get(actor.increment.remote(ray.put(10))) == 15
    assert ray.get(actor.increment.remote()) == 17


def test_actor_that_awaits_a_failed_argument_gets_the_error():
    @ray.remote
    def fail():
        raise ValueError("argument")

    counter = Counter.remote()
    with pytest.raises(ValueError, match="argument"):
        ray.get(counter.increment.remote(fail.remote()))
    assert ray.get(counter.increment.remote()) == 1


# -- handles


def test_handles_go_to_tasks_actors_and_into_objects():
    @ray.remote
    def use(handle, nested):
        ray.get(handle.increment.remote())
        return ray.get(nested["handle"][0].increment.remote())

    @ray.remote
    class Keeper:
        def keep(self, handle):
            self.handle = handle

        def use(self):
            return ray.get(self.handle.increment.remote())

    counter = Counter.remote()
    assert ray.get(use.remote(counter, {"handle": [counter]})) == 2
    keeper = Keeper.remote()
    ray.get(keeper.keep.remote(counter))
    assert ray.get(keeper.use.remote()) == 3
    stored = ray.put([counter])
    assert ray.get(ray.get(stored)[0].increment.remote()) == 4


def test_a_handle_returned_by_a_task_is_usable_and_keeps_the_actor():
    @ray.remote
    def make():
        counter = Counter.remote(100)
        ray.get(counter.increment.remote())
        return counter

    counter = ray.get(make.remote())
    assert ray.get(counter.increment.remote()) == 102


def test_an_actor_passes_its_own_handle():
    @ray.remote
    class Selfish:
        def me(self):
            return ray.get_runtime_context().current_actor

        def ping(self):
            return "pong"

    actor = Selfish.remote()
    assert ray.get(ray.get(actor.me.remote()).ping.remote()) == "pong"


def test_actor_creates_actors():
    @ray.remote
    class Parent:
        def __init__(self):
            self.children = [Counter.remote(i) for i in range(3)]

        def total(self):
            return sum(ray.get([child.increment.remote() for child in self.children]))

    assert ray.get(Parent.remote().total.remote()) == 6


def test_actor_ends_when_the_last_handle_goes():
    counter = Counter.remote()
    pidfd = os.pidfd_open(ray.get(counter.pid.remote()))
    try:
        other = counter
        del counter
        assert not wait_fd(pidfd, 0.2)
        assert ray.get(other.increment.remote()) == 1
        del other
        assert wait_fd(pidfd, 10), "the actor's process is still there"
    finally:
        os.close(pidfd)


def test_calls_in_flight_finish_after_the_last_handle_goes(gate):
    @ray.remote
    class Waiter:
        def wait(self, door):
            door.wait()
            return "waited"

    ref = Waiter.remote().wait.remote(gate)
    gate.open()
    assert ray.get(ref) == "waited"


def test_a_handle_held_by_a_task_keeps_the_actor(gate, mailbox):
    @ray.remote
    def hold(handles, door, box):
        box.post("holding")
        door.wait()
        return ray.get(handles[0].increment.remote())

    counter = Counter.remote()
    pidfd = os.pidfd_open(ray.get(counter.pid.remote()))
    try:
        ref = hold.remote([counter], gate, mailbox)
        del counter
        mailbox.take()
        assert not wait_fd(pidfd, 0.3)
        gate.open()
        assert ray.get(ref) == 1
        del ref
        assert wait_fd(pidfd, 10), "the actor's process is still there"
    finally:
        os.close(pidfd)


# -- threads and async methods


def test_methods_run_beside_each_other_up_to_max_concurrency():
    @ray.remote(max_concurrency=3)
    class Meeting:
        def __init__(self):
            self.barrier = threading.Barrier(3)

        def meet(self):
            self.barrier.wait(10)
            return threading.get_ident()

    actor = Meeting.remote()
    assert len(set(ray.get([actor.meet.remote() for _ in range(3)]))) == 3


def test_no_more_than_max_concurrency_run_together(mailbox, gate):
    @ray.remote(max_concurrency=2)
    class Pool:
        def work(self, box, door):
            box.post("in")
            door.wait()

    pool = Pool.remote()
    refs = [pool.work.remote(mailbox, gate) for _ in range(5)]
    mailbox.take(), mailbox.take()
    with pytest.raises(TimeoutError):
        mailbox.take(timeout_s=0.3)
    gate.open()
    ray.get(refs)


def test_a_plain_actor_runs_one_method_at_a_time():
    @ray.remote
    class Exclusive:
        def __init__(self):
            self.inside = 0

        def enter(self):
            self.inside += 1
            seen = self.inside
            threading.Event().wait(0.001)
            self.inside -= 1
            return seen

    actor = Exclusive.remote()

    @ray.remote
    def call(handle):
        return ray.get([handle.enter.remote() for _ in range(20)])

    assert {seen for result in ray.get([call.remote(actor) for _ in range(4)]) for seen in result} == {1}


def test_async_methods_interleave():
    @ray.remote
    class Exchange:
        def __init__(self):
            self.event = asyncio.Event()

        async def wait(self):
            await self.event.wait()
            return "released"

        async def release(self):
            self.event.set()

    actor = Exchange.remote()
    waiting = [actor.wait.remote() for _ in range(100)]
    assert ray.wait(waiting, timeout=0.1)[0] == []
    ray.get(actor.release.remote())
    assert ray.get(waiting) == ["released"] * 100


def test_async_actor_starts_calls_in_order_and_bounds_them(mailbox):
    @ray.remote(max_concurrency=4)
    class Bounded:
        def __init__(self):
            self.event = asyncio.Event()
            self.running = 0

        async def work(self, box, i):
            self.running += 1
            box.post((i, self.running))
            if self.running == 4:
                self.event.set()
            await self.event.wait()
            self.running -= 1
            return i

    actor = Bounded.remote()
    assert ray.get([actor.work.remote(mailbox, i) for i in range(20)]) == list(range(20))
    started = [mailbox.take() for _ in range(20)]
    assert [i for i, _ in started] == list(range(20))
    assert max(running for _, running in started) == 4


def test_async_actor_exceptions_and_sync_methods():
    @ray.remote
    class Mixed:
        async def fail(self):
            raise ValueError("async")

        def sync(self):
            return "sync"

        async def ask(self, other):
            return await asyncio.sleep(0, "asked")

    actor = Mixed.remote()
    with pytest.raises(ValueError, match="async"):
        ray.get(actor.fail.remote())
    assert ray.get([actor.sync.remote(), actor.ask.remote(1)]) == ["sync", "asked"]


def test_a_thousand_calls_to_an_async_actor():
    @ray.remote
    class Async:
        async def twice(self, x):
            return 2 * x

    actor = Async.remote()
    assert ray.get([actor.twice.remote(i) for i in range(1000)]) == [2 * i for i in range(1000)]


# -- names


def test_named_actor_is_found_by_name_everywhere():
    counter = Counter.options(name="shared-counter").remote()
    ray.get(counter.increment.remote())

    @ray.remote
    def by_name():
        return ray.get(ray.get_actor("shared-counter").increment.remote())

    assert ray.get(by_name.remote()) == 2
    assert ray.get(ray.get_actor("shared-counter").increment.remote()) == 3


def test_unknown_name():
    with pytest.raises(ValueError, match="nobody-has-this-name"):
        ray.get_actor("nobody-has-this-name")


def test_a_name_is_taken_once():
    first = Counter.options(name="once").remote()
    with pytest.raises(ValueError, match="once"):
        Counter.options(name="once").remote()
    assert ray.get(first.increment.remote()) == 1


def test_get_if_exists():
    options = Counter.options(name="get-or-create", get_if_exists=True)
    first = options.remote(10)
    second = options.remote(99)
    assert ray.get([first.increment.remote(), second.increment.remote()]) == [11, 12]


def test_get_if_exists_from_many_tasks_makes_one():
    @ray.remote
    def join():
        handle = Counter.options(name="race", get_if_exists=True).remote()
        return ray.get(handle.pid.remote()), handle

    joined = ray.get([join.remote() for _ in range(10)])
    assert len({pid for pid, _ in joined}) == 1


@pytest.mark.parametrize("end", ["kill", "out-of-scope"])
def test_a_name_is_free_again_after_the_death(end):
    counter = Counter.options(name="phoenix").remote()
    ray.get(counter.increment.remote())
    if end == "kill":
        ray.kill(counter)
    del counter

    def gone():
        try:
            ray.get_actor("phoenix")
        except ValueError:
            return True
        return False

    eventually(gone, "the name is released")
    again = Counter.options(name="phoenix").remote(50)
    assert ray.get(again.increment.remote()) == 51


def test_names_live_in_namespaces():
    mine = Counter.options(name="local").remote(1)
    other = Counter.options(name="local", namespace="elsewhere").remote(2)
    assert ray.get(ray.get_actor("local").get.remote()) == 1
    assert ray.get(ray.get_actor("local", namespace="elsewhere").get.remote()) == 2
    with pytest.raises(ValueError):
        ray.get_actor("local", namespace="nowhere")
    ray.get([mine.get.remote(), other.get.remote()])


# -- wrong use


def test_a_remote_class_is_not_called_directly():
    with pytest.raises(TypeError, match="Counter"):
        Counter()


def test_a_method_is_not_called_directly():
    counter = Counter.remote()
    with pytest.raises(TypeError, match="increment"):
        counter.increment()


def test_wrong_arguments_of_methods_and_constructor_raise_at_the_call():
    counter = Counter.remote()
    with pytest.raises(TypeError):
        counter.increment.remote(1, 2, 3)
    with pytest.raises(TypeError):
        Counter.remote(1, 2, 3)


def test_runtime_context_in_an_actor():
    @ray.remote
    class Context:
        def ids(self):
            me = ray.get_runtime_context()
            return me.get_actor_id(), me.get_task_id(), me.get_node_id()

    actor = Context.options(name="with-context").remote()
    (actor_id, task, node), (same, other_task, _) = ray.get([actor.ids.remote(), actor.ids.remote()])
    assert len(actor_id) == 32 and actor_id == same and task != other_task
    assert node == ray.get_runtime_context().get_node_id()
