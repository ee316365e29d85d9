"""Tasks and methods that yield: refs as they come, back-pressure, `wait`, and what a generator cannot do."""

from __future__ import annotations

import numpy as np
import pytest

import ftray as ray
from tests.helpers.yielders import LARGE, AsyncYielder, Yielder, count, endless, finish, values

pytestmark = pytest.mark.usefixtures("runtime")

# --- the plain case


def test_a_generator_function_returns_a_generator_of_refs():
    generator = count.remote(3)
    assert isinstance(generator, ray.ObjectRefGenerator)
    assert iter(generator) is generator
    first = next(generator)
    assert isinstance(first, ray.ObjectRef)
    assert [ray.get(first), *values(generator)] == [0, 1, 2]
    with pytest.raises(StopIteration):
        next(generator)
    assert generator.is_finished() and not generator.next_ready()


def test_refs_come_while_the_task_runs(gate):
    @ray.remote
    def two(door):
        yield "early"
        door.wait()
        yield "late"

    generator = two.remote(gate)
    assert ray.get(next(generator)) == "early"
    assert not generator.next_ready() and not generator.is_finished()
    gate.open()
    assert values(generator) == ["late"]


def test_no_items_at_all():
    assert values(count.remote(0)) == []


def test_values_of_every_size_and_refs_inside():
    @ray.remote
    def mixed():
        yield None
        yield np.arange(LARGE)
        yield {"ref": ray.put("inner")}
        yield [ray.put(np.zeros(LARGE))]

    nothing, large, small_ref, large_ref = values(mixed.remote())
    assert nothing is None
    assert large[-1] == LARGE - 1 and not large.flags.writeable
    assert ray.get(small_ref["ref"]) == "inner"
    assert ray.get(large_ref[0]).shape == (LARGE,)


def test_refs_of_the_caller_go_through():
    @ray.remote
    def send_back(refs):
        for ref in refs:
            yield [ref]

    mine = [ray.put(i) for i in range(5)]
    assert [ray.get(ray.get(ref)[0]) for ref in send_back.remote(mine)] == list(range(5))


def test_refs_of_a_third_process_go_through():
    """Such items wait until the owner knows of the borrower; later ones do not overtake them."""

    @ray.remote
    class Owner:
        def make(self, n):
            self.refs = [ray.put(i) for i in range(n)]
            return self.refs

        def forget(self):
            self.refs = None

    @ray.remote
    def send_on(refs):
        while refs:
            yield refs.pop()
            yield "between"

    owner = Owner.remote()
    refs = ray.get(owner.make.remote(20))
    generator = send_on.remote(refs)
    del refs
    ray.get(owner.forget.remote())
    found = values(generator)
    assert found[1::2] == ["between"] * 20
    assert ray.get(found[::2]) == list(reversed(range(20)))


def test_refs_are_ordinary_refs():
    @ray.remote
    def double(x):
        return 2 * x

    assert ray.get([double.remote(ref) for ref in count.remote(5)]) == [0, 2, 4, 6, 8]


def test_many_items():
    assert sum(values(count.remote(20_000))) == sum(range(20_000))


def test_a_generator_that_makes_tasks_and_puts():
    @ray.remote
    def parent():
        for i in range(5):
            yield ray.get(child.remote(i))

    @ray.remote
    def child(i):
        return i * i

    assert values(parent.remote()) == [0, 1, 4, 9, 16]


def test_an_async_generator_function_is_a_task_too():
    @ray.remote
    async def numbers(n):
        import asyncio

        for i in range(n):
            await asyncio.sleep(0)
            yield i

    assert values(numbers.remote(5)) == list(range(5))


def test_nested_generators():
    @ray.remote
    def outer(n):
        for ref in count.remote(n):
            yield ray.get(ref) + 100

    assert values(outer.remote(5)) == [100, 101, 102, 103, 104]


def test_completed_is_ready_when_the_task_is(gate):
    @ray.remote
    def one(door):
        yield 1
        door.wait()

    generator = one.remote(gate)
    done = generator.completed()
    assert ray.wait([done], timeout=0) == ([], [done])
    assert generator.task_id() == done.task_id()
    gate.open()
    assert ray.get(done) is None
    assert generator.next_ready()


# --- methods


def test_methods_that_yield():
    actor = Yielder.remote()
    assert values(actor.numbers.remote(4)) == [0, 1, 2, 3]
    assert ray.get(actor.ping.remote()) == "pong"
    with pytest.raises(KeyError, match="no more"):
        values(actor.fail_at.remote(2))


def test_methods_of_threaded_actors():
    actor = Yielder.options(max_concurrency=3).remote()
    generators = [actor.numbers.remote(50) for _ in range(3)]
    assert [values(generator) for generator in generators] == [list(range(50))] * 3


def test_methods_of_async_actors():
    actor = AsyncYielder.remote()
    assert values(actor.numbers.remote(100)) == list(range(100))
    assert values(actor.plain.remote(100)) == list(range(100))
    assert ray.get(actor.numbers.options(num_returns=3).remote(3)) == [0, 1, 2]


def test_streams_of_an_async_actor_run_side_by_side(mailbox):
    actor = AsyncYielder.remote()
    ahead = actor.endless.options(_generator_backpressure_num_objects=2).remote(mailbox)
    assert [mailbox.take(), mailbox.take()] == [0, 1]
    assert ray.get(actor.ping.remote()) == "pong"
    assert values(actor.numbers.remote(20)) == list(range(20))
    assert ray.get(next(ahead)) == 0
    assert mailbox.take() == 2
    del ahead
    assert mailbox.take() == "closed"


def test_method_option(mailbox):
    @ray.remote
    class Declared:
        @ray.method(num_returns=2)
        def pair(self):
            yield 1
            yield 2

        @ray.method(_generator_backpressure_num_objects=1)
        def slowly(self, box):
            for i in range(3):
                box.post(i)
                yield i

    actor = Declared.remote()
    assert ray.get(actor.pair.remote()) == [1, 2]
    generator = actor.slowly.remote(mailbox)
    assert mailbox.take() == 0
    assert values(generator) == [0, 1, 2]


# --- back-pressure


def test_the_producer_pauses_and_goes_on(mailbox):
    generator = endless.options(_generator_backpressure_num_objects=3).remote(mailbox)
    assert [mailbox.take() for _ in range(3)] == [0, 1, 2]
    for i in range(10):
        assert ray.get(next(generator)) == i
        assert mailbox.take() == i + 3
    assert mailbox.take_all() == []
    finish(mailbox, generator)


def test_one_item_at_a_time(mailbox):
    generator = endless.options(_generator_backpressure_num_objects=1).remote(mailbox)
    for i in range(5):
        assert mailbox.take() == i
        assert ray.get(next(generator)) == i
    finish(mailbox, generator)


def test_a_paused_producer_holds_nobody_up(mailbox):
    """With a single CPU: other tasks run while the producer waits for its consumer."""

    @ray.remote
    def other():
        return "ran"

    paused = [endless.options(_generator_backpressure_num_objects=1).remote(mailbox) for _ in range(3)]
    assert [mailbox.take() for _ in range(3)] == [0, 0, 0]
    assert ray.get([other.remote() for _ in range(20)]) == ["ran"] * 20
    assert ray.get([next(generator) for generator in paused]) == [0, 0, 0]
    finish(mailbox, *paused)


def test_without_a_limit_the_producer_runs_ahead(mailbox):
    @ray.remote
    def all_at_once(box):
        yield from range(1000)
        box.post("done")

    generator = all_at_once.options(_generator_backpressure_num_objects=-1).remote(mailbox)
    assert mailbox.take() == "done"
    assert values(generator) == list(range(1000))


# --- wait, get and what a generator cannot do


def test_wait_for_the_next_item(gate):
    @ray.remote
    def later(door):
        door.wait()
        yield 1

    @ray.remote
    def plain():
        return 2

    slow = later.remote(gate)
    fast = count.remote(1)
    ref = plain.remote()
    ready, rest = ray.wait([slow, fast, ref], num_returns=2, timeout=20)
    assert ready == [fast, ref] and rest == [slow]
    assert ray.wait([slow], timeout=0) == ([], [slow])
    gate.open()
    assert ray.wait([slow], timeout=20) == ([slow], [])
    assert values(slow) == [1]
    assert ray.wait([slow]) == ([slow], []), "next() would not wait at the end"
    with pytest.raises(ValueError, match="unique"):
        ray.wait([fast, ref, fast])
    with pytest.raises(TypeError, match="item 1 is int"):
        ray.wait([fast, 1])


def test_get_of_a_generator_is_the_generator():
    generator = count.remote(1)
    assert ray.get(generator) is generator


@pytest.mark.parametrize(
    "use",
    [
        lambda g: count.remote(g),
        lambda g: count.remote([g]),
        ray.put,
        lambda g: ray.put({"g": g}),
    ],
    ids=["argument", "nested", "put", "put-nested"],
)
def test_generators_cannot_be_passed_on(use):
    generator = count.remote(1)
    with pytest.raises(TypeError, match="ObjectRefGenerator.* cannot be passed"):
        use(generator)


def test_generators_are_made_by_calls_only():
    with pytest.raises(TypeError, match="yields"):
        ray.ObjectRefGenerator()
    generator = count.remote(1)
    for refused in (lambda: generator.send(None), lambda: generator.throw(ValueError)):
        with pytest.raises(ray.exceptions.NotSupportedError, match=r"^(send|throw)\(\) is not supported"):
            refused()


def test_functions_that_do_not_yield_are_refused():
    def plain():
        return [1, 2]

    for number in ("streaming", "dynamic"):
        with pytest.raises(ValueError, match="generator functions"):
            ray.remote(num_returns=number)(plain)
        with pytest.raises(ValueError, match="generator functions"):
            ray.remote(plain).options(num_returns=number)

    @ray.remote
    class Plain:
        def method(self):
            return 1

    with pytest.raises(ValueError, match="generator functions"):
        Plain.remote().method.options(num_returns="streaming")


def test_a_callable_that_turns_out_not_to_yield():
    """What cannot be known at the call is found out by the worker."""

    @ray.remote
    class Loose:
        lists = staticmethod(sorted)

    generator = Loose.remote().lists.options(num_returns="streaming").remote([2, 1])
    with pytest.raises(ValueError, match=r"num_returns='streaming'.*returned list"):
        values(generator)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"_generator_backpressure_num_objects": 0}, ValueError),
        ({"_generator_backpressure_num_objects": -2}, ValueError),
        ({"_generator_backpressure_num_objects": "2"}, TypeError),
        ({"_generator_backpressure_num_objects": 2, "num_returns": 2}, ValueError),
        ({"_generator_backpressure_num_objects": 2, "num_returns": "dynamic"}, ValueError),
        ({"num_returns": "stream"}, ValueError),
        ({"num_returns": 65536}, ValueError),
    ],
)
def test_wrong_options(options, kind):
    with pytest.raises(kind):
        count.options(**options)
