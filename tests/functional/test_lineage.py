"""Values lost from shared memory are made again by the tasks that made them."""

from __future__ import annotations

import gc
import os
import signal
import threading

import numpy as np
import pytest

import ftray as ray
from ftray import _core
from ftray import exceptions as exc
from tests.helpers import introspection
from tests.helpers.losing import (
    OWN_SEGMENT,
    SIZE,
    attempt,
    check,
    is_kept,
    lose,
    lose_segment,
    make,
    segment_of,
)
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = [pytest.mark.usefixtures("runtime"), pytest.mark.runtime(num_cpus=2)]


@ray.remote
def first_of(refs):
    return int(ray.get(refs[0])[0])


# --- made again


def test_a_lost_value_is_made_again_and_keeps_its_id(tally):
    ref = make.remote(tally)
    check(ref, 1)
    name = ref.hex()
    lose(ref)
    check(ref, 1)
    assert ref.hex() == name
    assert tally.count == 2


def test_what_is_lost_before_anybody_read_it(tally):
    ref = make.remote(tally)
    lose(ref)
    check(ref, 1)
    assert tally.count == 2


def test_a_chain_whose_links_were_all_freed(tally):
    ref = make.remote(tally)
    for _ in range(4):
        ref = make.remote(tally, ref)
    check(ref, 5)
    lose(ref)
    check(ref, 5)
    assert tally.count == 10


def test_a_chain_of_which_every_value_is_lost_and_nobody_knows(tally):
    refs = [make.remote(tally)]
    for _ in range(4):
        refs.append(make.remote(tally, refs[-1]))
    check(refs[-1], 5)
    lose(*refs)
    check(refs[-1], 5)
    for number, ref in enumerate(refs, 1):
        check(ref, number)
    assert tally.count == 10


def test_a_diamond_runs_its_base_once(tally):
    base = make.remote(tally)
    ref = make.remote(tally, make.remote(tally, base), make.remote(tally, base))
    check(ref, 3)
    del base
    lose(ref)
    check(ref, 3)
    assert tally.count == 8


def test_a_link_that_is_still_there_is_not_made_again(tally):
    @ray.remote
    def large(box, *parts):
        box.bump()
        return np.full(OWN_SEGMENT, 1 + sum(int(part[0]) for part in parts), dtype=np.uint8)

    base = large.remote(tally)
    ref = large.remote(tally, base)
    assert ray.get(ref)[0] == 2
    lose(ref)
    assert ray.get(ref)[0] == 2
    assert tally.count == 3


def test_a_long_chain_does_not_recurse():
    @ray.remote
    def step(part):
        return bytes([len(part) % 2]) * SIZE

    ref = ray.put(b"")
    for _ in range(500):
        ref = step.remote(ref)
    before = ray.get(ref)
    lose(ref)
    assert ray.get(ref) == before


def test_small_values_among_large_ones_are_remembered(tally):
    small = ray.remote(lambda: 7).remote()
    ref = ray.remote(lambda n, box: (box.bump(), bytes([n]) * SIZE)[1]).remote(small, tally)
    assert ray.get(ref) == b"\7" * SIZE
    assert not is_kept(small)
    del small
    lose(ref)
    assert ray.get(ref) == b"\7" * SIZE
    assert tally.count == 2


def test_many_threads_share_one_execution(tally):
    ref = make.remote(tally)
    check(ref, 1)
    lose(ref)
    errors = []

    def read():
        try:
            check(ref, 1)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=read) for _ in range(8)]
    readers = [first_of.remote([ref]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert ray.get(readers) == [1] * 4
    assert tally.count == 2


def test_awaiting_and_waiting_go_on_as_always(tally):
    import asyncio

    async def awaited(ref):
        return await ref

    ref = make.remote(tally)
    lose(ref)
    assert ray.wait([ref], timeout=60) == ([ref], [])
    assert asyncio.run(awaited(ref))[0] == 1
    assert ref.future().result(timeout=60)[0] == 1


def test_views_of_a_lost_value_stay(tally):
    ref = make.remote(tally)
    array = ray.get(ref)
    lose(ref)
    again = ray.get(ref)
    assert array[0] == array[-1] == again[0] == 1
    del again, ref
    gc.collect()
    assert array[0] == array[-1] == 1


def test_a_value_whose_producer_died_before(tally):
    @ray.remote
    def who():
        return os.getpid(), np.ones(SIZE, dtype=np.uint8)

    ref = who.remote()
    pid = ray.get(ref)[0]
    gc.collect()
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    lose(ref)
    other, array = ray.get(ref)
    assert other != pid
    assert array[-1] == 1


def test_a_value_is_lost_as_often_as_there_are_retries(tally):
    ref = make.options(max_retries=2).remote(tally)
    for _ in range(2):
        lose(ref)
        check(ref, 1)
    lose(ref)
    for _ in range(2):
        with pytest.raises(exc.ObjectReconstructionFailedMaxAttemptsExceededError, match=ref.hex()):
            ray.get(ref)
    assert tally.count == 3


def test_without_bound(tally):
    ref = make.options(max_retries=-1).remote(tally)
    for _ in range(5):
        lose(ref)
        check(ref, 1)
    assert tally.count == 6


# --- who notices


@ray.remote
class Keeper:
    def keep(self, refs):
        self.refs = refs

    def read(self):
        return int(ray.get(self.refs[0])[0])


def test_a_borrower_notices(tally):
    ref = make.remote(tally)
    keeper = Keeper.remote()
    ray.get(keeper.keep.remote([ref]))
    lose(ref)
    assert ray.get(keeper.read.remote()) == 1
    check(ref, 1)
    assert tally.count == 2


def test_a_borrower_has_the_only_reference(tally):
    ref = make.remote(tally)
    keeper = Keeper.remote()
    ray.get(keeper.keep.remote([ref]))
    segment = segment_of(ref)
    del ref
    gc.collect()
    lose_segment(segment)
    assert ray.get(keeper.read.remote()) == 1
    assert tally.count == 2


def test_a_borrower_that_has_read_it_notices_too(tally):
    ref = make.remote(tally)
    keeper = Keeper.remote()
    ray.get(keeper.keep.remote([ref]))
    assert ray.get(keeper.read.remote()) == 1
    lose(ref)
    assert ray.get(keeper.read.remote()) == 1
    check(ref, 1)


def test_the_owner_may_be_a_worker(tally):
    @ray.remote
    class Owner:
        def make(self, tally):
            self.ref = make.remote(tally)
            return [self.ref]

    owner = Owner.remote()
    (ref,) = ray.get(owner.make.remote(tally))
    lose(ref)
    check(ref, 1)
    assert tally.count == 2


def test_an_argument_is_lost_while_its_task_waits_for_a_worker(tally, gate, mailbox):
    @ray.remote(num_cpus=2)
    def hold(door, box):
        box.post("in")
        door.wait()

    @ray.remote
    def read(part):
        return int(part[0])

    ref = make.remote(tally)
    check(ref, 1)
    holding = hold.remote(gate, mailbox)
    mailbox.take()
    reading = [read.remote(ref), read.remote(ref), read.remote(ref)]
    lose(ref)
    with pytest.raises(exc.GetTimeoutError):
        ray.get(ref, timeout=0)  # the owner knows now, before anything ran
    gate.open()
    assert ray.get(reading) == [1] * 3
    ray.get(holding)
    assert tally.count == 2


def test_an_argument_is_lost_and_its_worker_finds_out(tally, gate):
    @ray.remote
    def read(part, _):
        return int(part[0])

    ref = make.remote(tally)
    reading = read.remote(ref, ray.remote(lambda door: door.wait()).remote(gate))
    lose(ref)
    gate.open()
    assert ray.get(reading) == 1
    assert tally.count == 2


def test_an_argument_of_a_queued_actor_call_is_lost(tally, gate, mailbox):
    @ray.remote
    class Reader:
        def hold(self, door, box):
            box.post("in")
            door.wait()

        def read(self, part):
            return int(part[0])

    reader = Reader.remote()
    ref = make.remote(tally)
    check(ref, 1)
    reader.hold.remote(gate, mailbox)
    mailbox.take()
    reading = [reader.read.remote(ref) for _ in range(3)]
    lose(ref)
    gate.open()
    assert ray.get(reading) == [1] * 3
    assert tally.count == 2


# --- refs inside


def test_a_lost_value_with_a_ref_inside(tally):
    @ray.remote
    def wrap(refs):
        return {"refs": refs, "bulk": b"w" * SIZE}

    inner = make.remote(tally)
    outer = wrap.remote([inner])
    ray.wait([outer])
    lose(inner, outer)
    del inner
    gc.collect()
    found = ray.get(outer)
    check(found["refs"][0], 1)
    assert found["bulk"] == b"w" * SIZE
    assert tally.count == 2


def test_a_task_takes_a_ref_inside_an_argument_that_was_freed(tally):
    @ray.remote
    def copy(refs):
        return ray.get(refs[0]) + 1

    inner = make.remote(tally)
    ref = copy.remote([inner])
    check(ref, 2)
    del inner
    gc.collect()
    eventually(lambda: introspection.counters()["kept_tasks"] == 2, "both tasks are remembered")
    lose(ref)
    check(ref, 2)
    assert tally.count == 2


def test_a_child_of_the_task_is_made_again_with_it(tally):
    @ray.remote
    def parent(box):
        return {"child": make.remote(box), "bulk": b"p" * SIZE}

    ref = parent.remote(tally)
    check(ray.get(ref)["child"], 1)
    lose(ref)
    check(ray.get(ref)["child"], 1)
    assert tally.count == 2


# --- outcomes of the second execution


def test_an_exception_of_the_second_execution_is_the_value(tally):
    @ray.remote
    def fickle():
        if attempt():
            raise KeyError("gone")
        return b"f" * SIZE

    ref = fickle.remote()
    lose(ref)
    for _ in range(2):
        with pytest.raises(KeyError, match="gone"):
            ray.get(ref)


def test_a_second_value_may_be_small():
    @ray.remote
    def shrinks():
        return "small" if attempt() else b"s" * SIZE

    ref = shrinks.remote()
    lose(ref)
    assert ray.get(ref) == "small"
    assert not is_kept(ref)


def test_a_worker_that_dies_in_the_second_execution_costs_a_retry():
    @ray.remote(max_retries=2)
    def crashes():
        if attempt() == 1:
            os._exit(1)
        return bytes([attempt()]) * SIZE

    ref = crashes.remote()
    lose(ref)
    assert ray.get(ref)[0] == 2
    lose(ref)
    with pytest.raises(exc.ObjectReconstructionFailedMaxAttemptsExceededError):
        ray.get(ref)


def test_every_execution_dies():
    @ray.remote(max_retries=1)
    def crashes():
        if attempt():
            os._exit(1)
        return b"c" * SIZE

    ref = crashes.remote()
    lose(ref)
    with pytest.raises(exc.WorkerCrashedError):
        ray.get(ref)


def test_a_second_execution_can_be_cancelled(gate, mailbox):
    @ray.remote
    def slow(door, box):
        if attempt():
            box.post("in")
            door.wait()
        return b"s" * SIZE

    ref = slow.remote(gate, mailbox)
    lose(ref)
    with pytest.raises(exc.GetTimeoutError):
        ray.get(ref, timeout=0)
    mailbox.take()
    ray.cancel(ref, force=True)
    with pytest.raises(exc.TaskCancelledError):
        ray.get(ref)


def test_of_several_returns_only_the_lost_one_is_replaced():
    @ray.remote(num_returns=3)
    def three():
        return [np.full(OWN_SEGMENT, 10 * attempt() + i, dtype=np.uint8) for i in range(3)]

    a, b, c = three.remote()
    place = segment_of(b)
    assert len({place, segment_of(a), segment_of(c)}) == 3
    lose(a)
    assert ray.get(a)[0] == 10
    del c
    gc.collect()
    assert ray.get(b)[0] == 1
    assert segment_of(b) == place
    lose(b)
    assert ray.get(b)[0] == 21
    assert ray.get(a)[0] == 10


def test_values_that_nobody_needs_again_leave_no_memory(tally):
    @ray.remote(num_returns=2)
    def two():
        return [np.full(OWN_SEGMENT, attempt(), dtype=np.uint8) for _ in range(2)]

    @ray.remote
    def blocks():
        return _core.segment_stats()["blocks"], os.getpid()

    a, b = two.remote()
    for n in range(1, 4):
        lose(a)
        assert ray.get(a)[0] == n
    assert ray.get(b)[0] == 0
    a = b = None
    gc.collect()

    def none_left():
        return not any(ray.get([blocks.remote()])[0][:1])

    eventually(none_left, "the producer has no block left")
