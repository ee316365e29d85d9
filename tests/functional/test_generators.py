"""Tasks and methods that yield: refs as they come, back-pressure, and every way in which a stream can end early."""

from __future__ import annotations

import gc
import os
import time

import numpy as np
import pytest

import ftray as ray
from tests.helpers import introspection
from tests.helpers.processes import WAYS_TO_DIE, crash, wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")

exceptions = ray.exceptions
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
        except exceptions.RayError as error:
            found.append(type(error).__name__)
    return found


def finish(mailbox, *generators):
    """Leave `endless` generators, and wait until they say so (nobody may post to a mailbox that is gone)."""
    for generator in generators:
        generator.close()
        while mailbox.take() != "closed":
            pass


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
    """Items with such refs wait until their owner knows of the new borrower; later ones do not overtake them."""

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


# --- errors in the middle


def test_refs_before_an_exception_stay_good():
    @ray.remote
    def fail_at(n):
        yield from range(n)
        raise LookupError("the end")

    generator = fail_at.remote(3)
    assert [ray.get(next(generator)) for _ in range(3)] == [0, 1, 2]
    last = next(generator)
    with pytest.raises(LookupError, match="the end"):
        ray.get(last)
    with pytest.raises(StopIteration):
        next(generator)
    assert ray.get(generator.completed()) is None


def test_a_value_that_cannot_be_pickled_ends_the_stream():
    @ray.remote
    def bad(tally):
        try:
            yield 1
            yield (i for i in ())
            yield 3
        finally:
            tally.bump()

    class Count:
        pass

    import tempfile

    from tests.helpers.sync import Tally

    with tempfile.TemporaryDirectory() as directory:
        tally = Tally(f"{directory}/tally")
        assert outcomes(bad.remote(tally))[0] == 1
        assert tally.count == 1


def test_exceptions_are_retried_from_the_start(tally):
    @ray.remote(retry_exceptions=[OSError], max_retries=2)
    def flaky(tally):
        attempt = tally.bump()
        for i in range(6):
            if i == 2 * attempt + 1 and attempt < 2:
                raise OSError(attempt)
            yield i

    assert values(flaky.remote(tally)) == list(range(6))
    assert tally.count == 3


def test_the_last_retry_of_an_exception_is_the_last_item(tally):
    @ray.remote(retry_exceptions=True, max_retries=1)
    def broken(tally):
        tally.bump()
        yield 1
        raise OSError("always")

    assert outcomes(broken.remote(tally)) == [1, "RayTaskError(OSError)"]
    assert tally.count == 2


def test_an_argument_that_is_an_error():
    @ray.remote
    def fail():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        values(count.remote(fail.remote()))


# --- death in the middle


@pytest.mark.parametrize("how", WAYS_TO_DIE)
def test_a_worker_that_dies_is_replaced_and_the_stream_goes_on(how, tally):
    generator = crash_at.remote(tally, 10, 4, how)
    refs = list(generator)
    assert ray.get(refs) == list(range(10))
    assert tally.count == 2


def test_items_keep_their_ids_over_attempts(tally, gate):
    @ray.remote
    def named(tally, door):
        attempt = tally.bump()
        for i in range(4):
            if attempt == 0 and i == 2:
                door.wait()
                crash("sigkill")
            yield i

    generator = named.remote(tally, gate)
    early = [next(generator), next(generator)]
    gate.open()
    refs = [*early, *generator]
    assert ray.get(refs) == [0, 1, 2, 3]
    assert [int.from_bytes(ref.binary()[24:], "little") for ref in refs] == [2, 3, 4, 5]
    assert len({ref.binary()[:24] for ref in refs}) == 1


def test_back_pressure_counts_what_was_consumed_before(tally, mailbox):
    """The second attempt is not paused at items that the consumer has had."""

    @ray.remote
    def paced(tally, box):
        attempt = tally.bump()
        for i in range(8):
            box.post([attempt, i])
            yield i
            if attempt == 0 and i == 4:
                crash("sigkill")

    generator = paced.options(_generator_backpressure_num_objects=2).remote(tally, mailbox)
    assert values(generator) == list(range(8))
    posted = mailbox.take_all()
    assert [i for attempt, i in posted if attempt == 1] == list(range(8))


def test_without_retries_the_death_is_the_last_item(tally):
    generator = crash_at.options(max_retries=0).remote(tally, 10, 3, attempts=9)
    assert outcomes(generator) == [0, 1, 2, "WorkerCrashedError"]
    assert tally.count == 1
    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(generator.completed())


def test_retries_are_bounded(tally):
    generator = crash_at.options(max_retries=2).remote(tally, 10, 3, attempts=9)
    assert outcomes(generator) == [0, 1, 2, "WorkerCrashedError"]
    assert tally.count == 3


def test_fewer_items_than_before_is_an_error(tally):
    @ray.remote
    def shrinking(tally):
        attempt = tally.bump()
        yield from range(5 - 3 * attempt)
        if attempt == 0:
            crash("sigkill")

    generator = shrinking.remote(tally)
    refs = list(generator)
    assert ray.get(refs[:5]) == [0, 1, 2, 3, 4]
    with pytest.raises(exceptions.GeneratorReplayError, match=r"ended after 2 values, but 5") as caught:
        ray.get(refs[5])
    assert (caught.value.items, caught.value.before) == (2, 5)
    assert len(refs) == 6


def test_large_items_outlive_their_producer(tally):
    @ray.remote(max_retries=0)
    def last_words():
        for i in range(3):
            yield np.full(LARGE, i)
        crash("sigkill")

    generator = last_words.remote()
    arrays = [ray.get(next(generator)) for _ in range(3)]
    assert [int(array[-1]) for array in arrays] == [0, 1, 2]
    assert outcomes(generator) == ["WorkerCrashedError"]


def test_a_method_without_retries_dies_with_its_actor(tally):
    actor = Yielder.remote()
    assert outcomes(actor.crash_at.remote(tally, 5, 2)) == [0, 1, "ActorDiedError"]


def test_a_method_with_retries_goes_on_in_the_next_incarnation(tally):
    actor = Yielder.options(max_restarts=1, max_task_retries=1).remote()
    assert values(actor.crash_at.remote(tally, 6, 3)) == list(range(6))
    assert tally.count == 2


def test_a_method_of_a_restarted_actor_without_task_retries(tally):
    actor = Yielder.options(max_restarts=1).remote()
    assert outcomes(actor.crash_at.remote(tally, 6, 3)) == [0, 1, 2, "ActorUnavailableError"]
    assert ray.get(actor.ping.remote()) == "pong"


def test_kill_ends_the_stream(mailbox):
    actor = Yielder.remote()
    generator = actor.endless.options(_generator_backpressure_num_objects=1).remote(mailbox)
    assert ray.get(next(generator)) == 0
    ray.kill(actor)
    assert outcomes(generator)[-1] == "ActorDiedError"


def test_the_producer_stops_when_its_owner_dies(mailbox):
    """An actor goes on serving others after the caller of its endless method died."""

    @ray.remote(max_retries=0)
    def caller(actor, box):
        generator = actor.endless.options(_generator_backpressure_num_objects=2).remote(box)
        ray.get(next(generator))
        box.post("leaving")
        crash("sigkill")

    actor = Yielder.remote()
    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(caller.remote(actor, mailbox))
    while mailbox.take() != "closed":
        pass
    assert ray.get(actor.ping.remote()) == "pong"


# --- cancellation


def test_cancel_of_a_running_generator(mailbox):
    @ray.remote
    def slow(box):
        try:
            for i in range(10**9):
                yield i
                box.post(i)
                time.sleep(0.001)
        finally:
            box.post("cleaned")

    generator = slow.remote(mailbox)
    assert ray.get(next(generator)) == 0
    ray.cancel(generator)
    found = outcomes(generator)
    assert found[-1] == "TaskCancelledError" and found[:-1] == list(range(1, len(found)))
    while mailbox.take() != "cleaned":
        pass


def test_cancel_of_a_paused_generator_of_a_task(mailbox):
    generator = endless.options(_generator_backpressure_num_objects=1).remote(mailbox)
    assert mailbox.take() == 0
    ray.cancel(generator)
    assert mailbox.take() == "closed"
    assert outcomes(generator) == [0, "TaskCancelledError"]


@pytest.mark.parametrize("kind", ["plain", "threaded", "async"])
def test_cancel_of_a_paused_generator_of_an_actor(kind, mailbox):
    actor = (
        AsyncYielder.remote()
        if kind == "async"
        else Yielder.options(max_concurrency=2 if kind == "threaded" else 1).remote()
    )
    generator = actor.endless.options(_generator_backpressure_num_objects=1).remote(mailbox)
    assert mailbox.take() == 0
    ray.cancel(generator)
    assert mailbox.take() == "closed"
    assert outcomes(generator) == [0, "TaskCancelledError"]
    assert ray.get(actor.ping.remote()) == "pong"


@pytest.mark.runtime(num_cpus=1)
def test_cancel_of_a_queued_generator(mailbox, gate):
    @ray.remote
    def occupy(door, box):
        box.post("in")
        door.wait()

    running = occupy.remote(gate, mailbox)
    assert mailbox.take() == "in"
    generator = endless.remote(mailbox)
    ray.cancel(generator)
    assert outcomes(generator) == ["TaskCancelledError"]
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(generator.completed())
    gate.open()
    ray.get(running)
    assert mailbox.take_all() == []


def test_forced_cancel_is_not_retried(tally, mailbox):
    @ray.remote
    def stubborn(tally, box):
        tally.bump()
        yield os.getpid()
        while True:
            try:
                box.post("here")
                time.sleep(60)
            except KeyboardInterrupt:
                pass

    generator = stubborn.remote(tally, mailbox)
    pid = ray.get(next(generator))
    assert mailbox.take() == "here"
    ray.cancel(generator, force=True)
    assert outcomes(generator) == ["TaskCancelledError"]
    wait_ended([pid])
    assert tally.count == 1


# --- consumers that leave


def settled(before):
    gc.collect()
    return introspection.counters()["entries"] <= before


def test_dropping_the_generator_stops_the_producer_and_frees_what_came(mailbox):
    before = introspection.counters()["entries"]
    generator = endless.options(_generator_backpressure_num_objects=5).remote(mailbox)
    assert [mailbox.take() for _ in range(5)] == list(range(5))
    del generator
    assert mailbox.take() == "closed"
    eventually(lambda: settled(before), "entries are freed")


def test_a_producer_without_back_pressure_stops_too():
    @ray.remote
    def large():
        while True:
            yield np.zeros(LARGE, np.uint8)

    before = introspection.counters()["entries"]
    generator = large.remote()
    kept = [next(generator) for _ in range(3)]
    del generator
    assert ray.get(kept[2]).nbytes == LARGE
    del kept
    eventually(lambda: settled(before) and introspection.counters()["pending_tasks"] == 0, "all is freed")
    assert ray.get(next(count.remote(1))) == 0


def test_close_is_like_dropping(mailbox):
    generator = endless.options(_generator_backpressure_num_objects=1).remote(mailbox)
    assert mailbox.take() == 0
    generator.close()
    assert mailbox.take() == "closed"
    assert list(generator) == [] and generator.is_finished() and not generator.next_ready()
    ray.cancel(generator)
    generator.close()
    with pytest.raises(ValueError, match="closed"):
        generator.completed()


@pytest.mark.runtime(num_cpus=1)
def test_a_queued_generator_that_nobody_wants_runs_to_its_first_yield(mailbox, gate):
    @ray.remote
    def occupy(door, box):
        box.post("in")
        door.wait()

    running = occupy.remote(gate, mailbox)
    assert mailbox.take() == "in"
    generator = endless.remote(mailbox)
    del generator
    gate.open()
    ray.get(running)
    assert [mailbox.take(), mailbox.take()] == [0, "closed"]


def test_who_has_the_completion_keeps_the_producer_running(mailbox):
    @ray.remote
    def worker(box):
        for i in range(50):
            yield i
        box.post("to the end")

    generator = worker.options(_generator_backpressure_num_objects=2).remote(mailbox)
    done = generator.completed()
    del generator
    assert ray.get(done) is None
    assert mailbox.take() == "to the end"


def test_a_stream_that_nobody_wants_is_not_retried(tally, mailbox):
    @ray.remote
    def dies(tally, box):
        tally.bump()
        try:
            while True:
                box.post("x")
                yield 1
        finally:
            crash("sigkill")

    generator = dies.options(_generator_backpressure_num_objects=1).remote(tally, mailbox)
    assert mailbox.take() == "x"
    before = introspection.counters()["pending_tasks"]
    del generator
    eventually(lambda: introspection.counters()["pending_tasks"] < before, "the task ends")
    assert tally.count == 1


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
    [lambda g: count.remote(g), lambda g: count.remote([g]), lambda g: ray.put(g), lambda g: ray.put({"g": g})],
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
        with pytest.raises(NotImplementedError):
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


# --- a number of returns, and "dynamic"


def test_a_number_of_returns():
    assert ray.get(count.options(num_returns=3).remote(3)) == [0, 1, 2]
    assert ray.get(count.options(num_returns=1).remote(1)) == 0


def test_too_few_values():
    refs = count.options(num_returns=3).remote(2)
    assert ray.get(refs[:2]) == [0, 1]
    with pytest.raises(ValueError, match="num_returns=3 values, but yielded 2"):
        ray.get(refs[2])


def test_too_many_values_are_left_out_and_the_generator_is_closed(mailbox):
    assert ray.get(endless.options(num_returns=2).remote(mailbox)) == [0, 1]
    assert [mailbox.take() for _ in range(4)] == [0, 1, 2, "closed"]


def test_values_before_an_exception_stay_good_with_a_number_of_returns(tally):
    @ray.remote(retry_exceptions=True, max_retries=1)
    def half(tally):
        tally.bump()
        yield np.zeros(LARGE)
        raise OSError("half way")

    first, second, third = half.options(num_returns=3).remote(tally)
    assert ray.get(first).size == LARGE
    for ref in (second, third):
        with pytest.raises(OSError, match="half way"):
            ray.get(ref)
    assert tally.count == 2


def test_three_thousand_returns():
    assert ray.get(count.options(num_returns=3000).remote(3000)) == list(range(3000))


def test_ten_thousand_refs_as_arguments():
    @ray.remote
    def total(*numbers):
        return sum(numbers)

    refs = [ray.put(i) for i in range(10_000)]
    assert ray.get(total.remote(*refs)) == sum(range(10_000))


def test_dynamic_gives_the_list_when_the_task_has_ended():
    ref = count.options(num_returns="dynamic").remote(4)
    assert isinstance(ref, ray.ObjectRef)
    found = ray.get(ref)
    assert isinstance(found, ray.DynamicObjectRefGenerator)
    assert len(found) == 4
    assert [ray.get(r) for r in found] == [ray.get(r) for r in found] == [0, 1, 2, 3]
    assert ray.get(found[1]) == 1
    del ref
    assert ray.get(found[3]) == 3


def test_dynamic_values_can_be_passed_on():
    @ray.remote
    def total(found):
        return sum(ray.get(list(found)))

    ref = count.options(num_returns="dynamic").remote(5)
    assert ray.get(total.remote(ref)) == 10


def test_dynamic_of_methods_and_large_values():
    actor = Yielder.remote()
    assert len(ray.get(actor.numbers.options(num_returns="dynamic").remote(3))) == 3

    @ray.remote(num_returns="dynamic")
    def arrays():
        for i in range(3):
            yield np.full(LARGE, i)

    assert [int(ray.get(ref)[0]) for ref in ray.get(arrays.remote())] == [0, 1, 2]


def test_the_last_ref_of_a_dynamic_generator_is_its_exception(tally):
    @ray.remote(num_returns="dynamic", retry_exceptions=True, max_retries=1)
    def half(tally):
        yield from range(3 - tally.bump())
        raise OSError("half way")

    found = ray.get(half.remote(tally))
    assert len(found) == 3 and ray.get(list(found)[:2]) == [0, 1]
    with pytest.raises(OSError, match="half way"):
        ray.get(found[2])


def test_dynamic_after_a_death(tally):
    found = ray.get(crash_at.options(num_returns="dynamic").remote(tally, 5, 3))
    assert ray.get(list(found)) == [0, 1, 2, 3, 4]
    ref = crash_at.options(num_returns="dynamic", max_retries=0).remote(tally, 5, 3, attempts=99)
    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(ref)


def test_cancel_of_a_dynamic_generator(mailbox):
    ref = endless.options(num_returns="dynamic").remote(mailbox)
    assert mailbox.take() == 0
    ray.cancel(ref)
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref)
    while mailbox.take() != "closed":
        pass
