"""Items of generators that were lost are made again by running the generator anew, even if it still runs."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

import ftray as ray
from ftray import exceptions as exc
from tests.helpers import introspection
from tests.helpers.losing import OWN_SEGMENT, attempt, is_kept, lose, segment_of
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = [pytest.mark.usefixtures("runtime"), pytest.mark.runtime(num_cpus=2)]


def bulk(number):
    return np.full(OWN_SEGMENT, 10 * attempt() + number, dtype=np.uint8)


def first(ref):
    array = ray.get(ref)
    assert array.shape == (OWN_SEGMENT,)
    assert array[0] == array[-1]
    return int(array[0])


@ray.remote
def items(tally, n):
    tally.bump()
    for i in range(n):
        yield bulk(i)


@ray.remote
def read(part):
    return int(part[0])


def test_an_item_is_made_again_and_the_others_stay(tally):
    refs = list(items.remote(tally, 4))
    assert [first(ref) for ref in refs] == [0, 1, 2, 3]
    name, places = refs[1].hex(), [segment_of(ref) for ref in refs]
    lose(refs[1])
    assert first(refs[1]) == 11
    assert refs[1].hex() == name
    assert [first(ref) for ref in refs] == [0, 11, 2, 3]
    again = [segment_of(ref) for ref in refs]
    assert [again[0], *again[2:]] == [places[0], *places[2:]]
    assert tally.count == 2


def notice(*refs):
    """Have the owner find out that these are lost, and are not made again at once."""
    for ref in refs:
        with pytest.raises(exc.GetTimeoutError):
            ray.get(ref, timeout=0)


def test_several_items_are_made_by_one_execution(tally, gate):
    @ray.remote
    def held(door, box):
        box.bump()
        if attempt():
            door.wait()
        for i in range(4):
            yield bulk(i)

    refs = list(held.remote(gate, tally))
    lose(*refs)
    notice(refs[3], refs[0], refs[1])
    reading = [read.remote(ref) for ref in refs[:2]]
    gate.open()
    assert ray.get(reading) == [10, 11]
    assert first(refs[3]) == 13
    assert tally.count == 2
    assert first(refs[2]) == 22  # nobody had noticed
    assert tally.count == 3


def test_items_that_are_noticed_one_after_the_other(tally):
    refs = list(items.options(max_retries=-1).remote(tally, 4))
    lose(*refs)
    reading = [read.remote(ref) for ref in reversed(refs)]
    assert [number % 10 for number in ray.get(reading)] == [3, 2, 1, 0]
    assert 2 <= tally.count <= 5


def test_the_generator_is_not_run_further_than_needed(tally, mailbox):
    @ray.remote
    def counted(box):
        for i in range(3):
            box.post((attempt(), i))
            yield bulk(i)
        box.post((attempt(), "end"))

    refs = list(counted.remote(mailbox))
    assert [mailbox.take() for _ in range(4)] == [[0, 0], [0, 1], [0, 2], [0, "end"]]
    del refs[1:]
    lose(refs[0])
    assert first(refs[0]) == 10
    assert mailbox.take() == [1, 0]
    eventually(lambda: introspection.counters()["pending_tasks"] == 0, "it was stopped")


def test_items_are_kept_for_as_long_as_there_is_one(tally):
    refs = list(items.remote(tally, 3))
    while refs:
        eventually(lambda: introspection.counters()["kept_tasks"] == 1, "the generator is remembered")
        assert is_kept(refs.pop())
    gc.collect()
    eventually(lambda: introspection.counters()["kept_tasks"] == 0, "the last item is gone")


def test_an_item_is_lost_again_and_again(tally):
    (ref,) = items.options(max_retries=2).remote(tally, 1)
    for expected in (10, 20):
        lose(ref)
        assert first(ref) == expected
    lose(ref)
    with pytest.raises(exc.ObjectReconstructionFailedMaxAttemptsExceededError, match=ref.hex()):
        ray.get(ref)
    assert tally.count == 3


def test_an_item_that_a_freed_chain_needs(tally):
    @ray.remote
    def double(part):
        return 2 * part

    (ref,) = items.remote(tally, 1)
    ref = double.remote(double.remote(ref))
    assert first(ref) == 0
    gc.collect()
    eventually(lambda: introspection.counters()["kept_tasks"] == 3, "all three are remembered")
    lose(ref)
    assert first(ref) == 40
    assert tally.count == 2


def test_arguments_of_the_generator_are_made_again_first(tally):
    @ray.remote
    def source():
        return bulk(7)

    @ray.remote
    def pieces(part, box):
        box.bump()
        yield part + 1

    (ref,) = pieces.remote(source.remote(), tally)
    assert first(ref) == 8
    gc.collect()
    lose(ref)
    assert first(ref) == 18
    assert tally.count == 2


# --- while it runs


def test_an_item_is_lost_while_the_generator_waits_for_its_consumer(tally):
    """It waits for room, and would wait for ever: it is run anew, and the consumer notices nothing."""
    stream = items.options(_generator_backpressure_num_objects=2).remote(tally, 6)
    ref = next(stream)
    lose(ref)
    assert first(ref) == 10
    assert [first(ref) % 10 for ref in stream] == [1, 2, 3, 4, 5]
    assert tally.count == 2


def test_an_item_is_lost_while_an_endless_generator_runs(tally):
    @ray.remote
    def endless(box):
        box.bump()
        i = 0
        while True:
            yield bulk(i % 10)
            i += 1

    stream = endless.options(_generator_backpressure_num_objects=3).remote(tally)
    refs = [next(stream) for _ in range(3)]
    lose(refs[0], refs[2])
    numbers = [first(ref) for ref in refs]
    assert numbers[0] == 10 and numbers[1] == 1
    assert numbers[2] in (12, 22)  # the attempt for the first one was past it, or not, when that was noticed
    assert first(next(stream)) % 10 == 3
    del stream
    gc.collect()
    eventually(lambda: introspection.counters()["pending_tasks"] == 0, "it was stopped")
    lose(refs[1])
    assert first(refs[1]) % 10 == 1


def test_the_consumer_has_left_and_an_item_is_lost(tally, gate):
    @ray.remote
    def held(door, box):
        box.bump()
        yield bulk(0)
        door.wait()
        yield bulk(1)

    stream = held.remote(gate, tally)
    ref = next(stream)
    del stream
    gc.collect()
    lose(ref)
    notice(ref)
    gate.open()
    assert first(ref) == 10
    assert tally.count == 2


def test_an_item_is_lost_and_then_its_producer_dies(tally, gate, mailbox):
    @ray.remote
    def dying(door, box, post):
        box.bump()
        yield bulk(0)
        if attempt() == 0:
            post.post("in")
            door.wait()
            os._exit(1)
        yield bulk(1)

    stream = dying.options(max_retries=1).remote(gate, tally, mailbox)
    ref = next(stream)
    mailbox.take()
    lose(ref)
    notice(ref)
    gate.open()
    assert first(ref) == 10
    assert [first(ref) for ref in stream] == [11]
    assert tally.count == 2


def test_an_item_is_lost_while_the_generator_runs_for_the_last_time(gate):
    @ray.remote(max_retries=0)
    def held(door):
        yield bulk(0)
        door.wait()
        yield bulk(1)

    stream = held.remote(gate)
    ref = next(stream)
    lose(ref)
    with pytest.raises(exc.ObjectReconstructionFailedMaxAttemptsExceededError):
        ray.get(ref)
    gate.open()
    assert [first(ref) for ref in stream] == [1]


def test_a_generator_that_runs_anew_for_an_item_can_be_cancelled(gate):
    @ray.remote
    def held(door):
        yield bulk(0)
        door.wait()
        yield bulk(1)

    stream = held.remote(gate)
    ref = next(stream)
    lose(ref)
    notice(ref)
    ray.cancel(stream)
    gate.open()
    with pytest.raises(exc.TaskCancelledError):
        ray.get(ref)
    with pytest.raises(exc.TaskCancelledError):
        for following in stream:
            ray.get(following)


# --- outcomes of the second execution


def test_a_generator_that_yields_less_says_so():
    @ray.remote
    def fewer():
        for i in range(3 - attempt()):
            yield bulk(i)

    refs = list(fewer.remote())
    lose(refs[0], refs[2])
    assert first(refs[0]) == 10
    with pytest.raises(exc.StreamingGeneratorReplayInconsistentError):
        ray.get(refs[2])
    assert first(refs[1]) == 1


def test_a_generator_that_raises_earlier():
    @ray.remote
    def fickle():
        yield bulk(0)
        if attempt():
            raise KeyError("gone")
        yield bulk(1)
        yield bulk(2)

    refs = list(fickle.remote())
    lose(*refs)
    reading = [read.remote(ref) for ref in refs]
    assert ray.get(reading[0]) in (10, 20)  # its loss may have been noticed last
    for ref in (*reading[1:], *refs[1:]):
        with pytest.raises(KeyError, match="gone"):
            ray.get(ref)


def test_an_item_may_become_small():
    @ray.remote
    def shrinks():
        yield "small" if attempt() else bulk(0)

    (ref,) = shrinks.remote()
    lose(ref)
    assert ray.get(ref) == "small"
    assert not is_kept(ref)


def test_every_execution_dies():
    @ray.remote(max_retries=1)
    def crashes():
        if attempt():
            os._exit(1)
        yield bulk(0)

    (ref,) = crashes.remote()
    lose(ref)
    with pytest.raises(exc.WorkerCrashedError):
        ray.get(ref)


def test_an_argument_cannot_be_had_again():
    @ray.remote
    def pieces(part):
        yield part + 1

    part = ray.put(np.zeros(OWN_SEGMENT, dtype=np.uint8))
    (ref,) = pieces.remote(part)
    lose(part, ref)
    with pytest.raises(exc.ObjectLostError, match=part.hex()):
        ray.get(ref)


def test_items_before_an_exception_are_made_again():
    @ray.remote
    def fails():
        yield bulk(0)
        raise KeyError("end")

    ref, last = fails.remote()
    with pytest.raises(KeyError, match="end"):
        ray.get(last)
    lose(ref)
    assert first(ref) == 10


# --- other kinds


def test_items_of_a_dynamic_generator(tally):
    outer = items.options(num_returns="dynamic").remote(tally, 3)
    refs = list(ray.get(outer))
    lose(refs[1])
    assert [first(ref) for ref in refs] == [0, 11, 2]
    assert [first(ref) for ref in ray.get(outer)] == [0, 11, 2]
    assert tally.count == 2


def test_the_list_of_a_dynamic_generator(tally):
    """So many items that the list of them is in shared memory itself."""

    @ray.remote(num_returns="dynamic")
    def many(box, n):
        box.bump()
        for i in range(n):
            yield bulk(1) if i == 1 else i

    outer = many.remote(tally, 2500)
    found = list(ray.get(outer))
    kept = found[:2]
    del found
    gc.collect()
    segment_of(outer)
    lose(outer)
    found = list(ray.get(outer))
    assert len(found) == 2500
    assert found[0] == kept[0] and found[1] == kept[1]
    assert ray.get(found[-1]) == 2499
    assert first(kept[1]) in (1, 11)
    assert tally.count == 2


def test_methods_that_yield(tally):
    @ray.remote
    class Source:
        def items(self):
            yield bulk(0)
            yield bulk(1)

        def pid(self):
            return os.getpid()

    source = Source.remote()
    ref, _ = source.items.remote()
    lose(ref)
    with pytest.raises(exc.ObjectLostError, match="max_task_retries"):
        ray.get(ref)
    source = Source.options(max_restarts=1, max_task_retries=1).remote()
    ref, other = source.items.remote()
    lose(ref)
    assert [first(ref), first(other)] == [10, 1]
    pid = ray.get(source.pid.remote())
    del source
    gc.collect()
    wait_ended([pid])
    lose(other)
    with pytest.raises((exc.ActorDiedError, exc.ObjectReconstructionFailedMaxAttemptsExceededError)):
        ray.get(other)


def test_a_borrower_of_an_item_notices(tally):
    @ray.remote
    class Keeper:
        def keep(self, refs):
            self.refs = refs

        def read(self):
            return int(ray.get(self.refs[0])[0])

    refs = list(items.remote(tally, 2))
    keeper = Keeper.remote()
    ray.get(keeper.keep.remote(refs[1:]))
    assert ray.get(keeper.read.remote()) == 1
    lose(refs[1])
    assert ray.get(keeper.read.remote()) == 11
    assert first(refs[1]) == 11
