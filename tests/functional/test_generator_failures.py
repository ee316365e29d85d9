"""Streams that end early: exceptions, deaths, cancellation, and consumers that leave."""

from __future__ import annotations

import gc
import os
import time

import numpy as np
import pytest

import ftray as ray
from tests.helpers import introspection
from tests.helpers.processes import crash, wait_ended
from tests.helpers.sync import eventually
from tests.helpers.yielders import LARGE, AsyncYielder, Yielder, count, crash_at, endless, outcomes, values

exceptions = ray.exceptions

pytestmark = pytest.mark.usefixtures("runtime")

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


@pytest.mark.parametrize("how", ["exit", "segfault", "sigkill"])
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
    with pytest.raises(
        exceptions.StreamingGeneratorReplayInconsistentError, match=r"ended after 2 values, but 5"
    ) as caught:
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
    ray.wait([generator])
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
    ray.wait([generator])
    ray.cancel(generator)
    assert mailbox.take() == "closed"
    assert outcomes(generator) == [0, "TaskCancelledError"]
    assert ray.get(actor.ping.remote()) == "pong"


@ray.remote
def occupy(door, box):
    box.post("in")
    door.wait()


@pytest.mark.runtime(num_cpus=1)
def test_cancel_of_a_queued_generator(mailbox, gate):
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


@pytest.mark.runtime(num_cpus=1)
def test_a_queued_generator_that_nobody_wants_ends_at_a_yield(mailbox, gate):
    running = occupy.remote(gate, mailbox)
    assert mailbox.take() == "in"
    generator = endless.remote(mailbox)
    del generator
    gate.open()
    ray.get(running)
    said = [mailbox.take()]
    while said[-1] != "closed":  # word that nobody wants more overtakes it after one yield or a few
        said.append(mailbox.take())
    assert said[:-1] == list(range(len(said) - 1)) and len(said) > 1


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


def test_refs_in_items_that_nobody_took_are_given_back():
    actor = Yielder.remote()
    before = ray.get(actor.entries.remote())
    for size in (10, LARGE):
        generator = actor.owned.remote(5, size)
        ray.get(generator.completed())
        taken = ray.get(next(generator))
        del generator
        eventually(lambda: ray.get(actor.entries.remote()) <= before + 1, "only what was taken is kept")
        assert ray.get(taken[0]).nbytes == size
        del taken
        eventually(lambda: ray.get(actor.entries.remote()) <= before, "nothing is kept")


def test_refs_in_items_of_a_repeated_stream_are_given_back(tally, gate):
    """What comes again is not taken again, nor are the registrations that came with it kept."""

    @ray.remote
    def send_on(refs, tally, door):
        attempt = tally.bump()
        for i, ref in enumerate(refs):
            yield [ref]
            if attempt == 0 and i == 3:
                door.wait()
                crash("sigkill")

    owner = Yielder.remote()
    before = ray.get(owner.entries.remote())
    refs = ray.get(owner.make.remote(6))
    generator = send_on.remote(refs, tally, gate)
    found = [ray.get(next(generator))[0] for _ in range(4)]
    gate.open()
    found += [ray.get(ref)[0] for ref in generator]
    del refs
    assert ray.get(found) == list(range(6))
    assert ray.get(owner.entries.remote()) >= before + 6
    del found
    eventually(lambda: ray.get(owner.entries.remote()) <= before, "the owner frees them")


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


def test_who_has_the_completion_keeps_the_producer_running(mailbox):
    @ray.remote
    def worker(box):
        yield from range(50)
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
