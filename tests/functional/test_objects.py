"""Objects: put, get, wait, zero-copy views, and results that outlive who made them."""

from __future__ import annotations

import math
import os
import pickle
import signal
import time

import numpy as np
import pytest

import ftray as ray
from tests.helpers.processes import wait_ended
from tests.helpers.sync import Gate

pytestmark = pytest.mark.usefixtures("runtime")

SMALL, LARGE = 10, 1_000_000
both_sizes = pytest.mark.parametrize("size", [0, 1, SMALL, 100_000, 102_400, 102_401, LARGE])


@ray.remote
def make(size):
    return b"m" * size


@ray.remote
def hold(door, value=None):
    door.wait()
    return value


@both_sizes
def test_put_and_get(size):
    data = os.urandom(size)
    assert ray.get(ray.put(data)) == data


@both_sizes
def test_result_of_a_task(size):
    assert ray.get(make.remote(size)) == b"m" * size


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"nested": [1, (2, {3})]},
        "text" * 100_000,
        list(range(50_000)),
        np.arange(5),
        np.float64(1.5),
        {"a": np.ones((1000, 300)), "b": "x"},
        [np.zeros(200_000, dtype=np.uint8) for _ in range(3)],
        np.array(["a", "bb"], dtype=object),
        np.zeros((0, 3)),
        np.arange(600_000).reshape(300, 2000)[::2, ::3],
        np.asfortranarray(np.ones((400, 500))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_come_back_equal(value):
    @ray.remote
    def identity(x):
        return x

    for result in (
        ray.get(ray.put(value)),
        ray.get(identity.remote(value)),
        ray.get(identity.remote(ray.put(value))),
    ):
        np.testing.assert_equal(result, value)


def test_put_takes_a_copy():
    value = [1, 2]
    array = np.zeros(LARGE)
    refs = [ray.put(value), ray.put(array)]
    value.append(3)
    array[:] = 1
    assert ray.get(refs[0]) == [1, 2]
    assert not ray.get(refs[1]).any()


def test_get_of_a_list_keeps_order_and_repeats():
    one, two = ray.put(1), ray.put(b"x" * LARGE)
    assert [value if value == 1 else len(value) for value in ray.get([one, two, one])] == [1, LARGE, 1]
    assert ray.get([]) == []


def test_many_gets_of_one_object():
    ref = ray.put(np.arange(LARGE))
    assert all(ray.get(ref)[-1] == LARGE - 1 for _ in range(100))


# -- zero-copy views


def test_large_arrays_are_read_only_views():
    array = ray.get(ray.put(np.arange(LARGE)))
    assert not array.flags.writeable
    assert not array.flags.owndata
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_two_readers_share_the_memory():
    ref = ray.put(np.arange(LARGE))
    first, second = ray.get(ref), ray.get(ref)
    assert first.__array_interface__["data"][0] == second.__array_interface__["data"][0]


@pytest.mark.parametrize("maker", ["put", "task"])
def test_views_outlive_the_ref(maker):
    @ray.remote
    def arange(n):
        return np.arange(n)

    ref = ray.put(np.arange(LARGE)) if maker == "put" else arange.remote(LARGE)
    array = ray.get(ref)
    part = array[100:200]
    del ref, array
    # Whoever reused the memory of the view would write over it now.
    for value in range(20):
        ray.get(ray.put(np.full(LARGE, value)))
    assert part.tolist() == list(range(100, 200))


def test_views_of_a_task_argument_can_be_kept_by_an_actor():
    @ray.remote
    class Keeper:
        def keep(self, array):
            self.part = array[10:20]

        def read(self):
            return self.part.tolist()

    keeper = Keeper.remote()
    ray.get(keeper.keep.remote(ray.put(np.arange(LARGE))))
    for value in range(20):
        ray.get(ray.put(np.full(LARGE, value)))
    assert ray.get(keeper.read.remote()) == list(range(10, 20))


def test_alignment_of_buffers():
    arrays = ray.get(ray.put([np.ones(n) for n in (20_001, 30_003, 40_007)]))
    assert all(array.__array_interface__["data"][0] % 64 == 0 for array in arrays)


# -- objects and the death of workers


def test_large_results_survive_the_worker_that_made_them():
    @ray.remote
    def produce():
        return os.getpid(), np.arange(LARGE)

    ref = produce.remote()
    ray.wait([ref])
    pid = ray.get(ref)[0]
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    assert ray.get(ref)[1].sum() == sum(range(LARGE))


def test_unread_large_results_survive_too(mailbox):
    @ray.remote(num_returns=2, max_retries=0)
    def produce(box):
        box.post(os.getpid())
        return np.arange(LARGE), b"x" * LARGE

    refs = produce.remote(mailbox)
    ray.wait(refs, num_returns=2)
    pid = mailbox.take()
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    array, data = ray.get(refs)
    assert (array[-1], len(data)) == (LARGE - 1, LARGE)
    assert mailbox.take_all() == []


def test_views_survive_the_death_of_the_producer(mailbox):
    @ray.remote
    def produce(box):
        box.post(os.getpid())
        return np.arange(LARGE)

    ref = produce.remote(mailbox)
    array = ray.get(ref)
    pid = mailbox.take()
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    del ref
    assert array.sum() == sum(range(LARGE))


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_put_of_a_dead_worker_is_lost_with_its_owner(size, mailbox):
    @ray.remote(max_retries=0)
    def own(box):
        box.post(os.getpid())
        return [ray.put(b"x" * size)]

    (ref,) = ray.get(own.remote(mailbox))
    pid = mailbox.take()
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    with pytest.raises(ray.exceptions.OwnerDiedError):
        ray.get(ref, timeout=30)


# -- get: timeouts and wrong arguments


def test_get_times_out(gate):
    ref = hold.remote(gate, 5)
    begin = time.monotonic()
    with pytest.raises(ray.exceptions.GetTimeoutError) as caught:
        ray.get(ref, timeout=0.2)
    assert 0.19 <= time.monotonic() - begin < 5
    assert isinstance(caught.value, TimeoutError)
    gate.open()
    assert ray.get(ref, timeout=10) == 5


def test_get_with_timeout_zero(gate):
    ready, pending = ray.put(1), hold.remote(gate)
    assert ray.get(ready, timeout=0) == 1
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get(pending, timeout=0)
    with pytest.raises(ray.exceptions.GetTimeoutError):
        ray.get([ready, pending], timeout=0)
    gate.open()


@pytest.mark.parametrize(
    "wrong", [1, "ref", None, {}, b"ref", pytest.param(object(), id="an object")], ids=repr
)
def test_get_of_something_else(wrong):
    with pytest.raises((TypeError, ValueError)):
        ray.get(wrong)


@pytest.mark.parametrize("wrong", [[1], ["ref"], [None], [[]]], ids=repr)
def test_get_of_a_list_of_something_else(wrong):
    with pytest.raises((TypeError, ValueError)):
        ray.get([ray.put(1), *wrong])


def test_get_of_nested_lists_is_refused():
    with pytest.raises((TypeError, ValueError)):
        ray.get([[ray.put(1)]])


@pytest.mark.parametrize("timeout", ["1", float("nan")], ids=repr)
def test_get_with_a_wrong_timeout(timeout):
    with pytest.raises((TypeError, ValueError)):
        ray.get(ray.put(1), timeout=timeout)


@pytest.mark.parametrize("timeout", [10**400, math.inf, 1e300], ids=["integer", "inf", "float"])
def test_a_timeout_beyond_all_clocks_is_none(timeout):
    ref = ray.put(1)
    assert ray.get(ref, timeout=timeout) == 1 and ray.wait([ref], timeout=timeout) == ([ref], [])


def test_put_of_a_ref_is_refused():
    with pytest.raises(TypeError):
        ray.put(ray.put(1))


# -- wait


def test_wait_returns_what_is_ready_in_the_order_given(tmp_path):
    doors = [Gate(tmp_path / str(i)) for i in range(2)]
    refs = [hold.options(num_cpus=0).remote(door, i) for i, door in enumerate(doors)]
    assert ray.wait(refs, timeout=0.1) == ([], refs)
    doors[1].open()
    assert ray.wait(refs) == ([refs[1]], [refs[0]])
    doors[0].open()
    assert ray.wait(refs, num_returns=2) == (refs, [])


@pytest.mark.parametrize("count", [1, 3, 10])
def test_wait_returns_exactly_num_returns(count):
    refs = [ray.put(i) for i in range(10)]
    ready, rest = ray.wait(refs, num_returns=count)
    assert len(ready) == count and {*ready, *rest} == set(refs)
    for part in (ready, rest):
        assert part == [ref for ref in refs if ref in part], "the order given is kept"


def test_wait_times_out_with_what_it_has(gate):
    ready, pending = ray.put(1), hold.remote(gate)
    begin = time.monotonic()
    assert ray.wait([pending, ready], num_returns=2, timeout=0.2) == ([ready], [pending])
    assert 0.19 <= time.monotonic() - begin < 5
    assert ray.wait([pending, ready], num_returns=2, timeout=0) == ([ready], [pending])
    gate.open()


def test_failed_tasks_count_as_ready():
    @ray.remote
    def fail():
        raise ValueError

    ref = fail.remote()
    assert ray.wait([ref], timeout=20) == ([ref], [])
    with pytest.raises(ValueError):
        ray.get(ref)


def test_wait_loop_over_many():
    pending = [make.remote(SMALL) for _ in range(500)]
    done = []
    while pending:
        ready, pending = ray.wait(pending)
        done += ray.get(ready)
    assert done == [b"m" * SMALL] * 500


def test_wait_without_fetching():
    ref = make.remote(LARGE)
    assert ray.wait([ref], fetch_local=False, timeout=20) == ([ref], [])


def test_wait_refuses_duplicates():
    ref = ray.put(1)
    with pytest.raises(ValueError, match="unique|duplicate"):
        ray.wait([ref, ref])


@pytest.mark.parametrize("count", [0, -1, 3])
def test_wait_with_impossible_num_returns(count):
    with pytest.raises(ValueError):
        ray.wait([ray.put(1), ray.put(2)], num_returns=count)


def test_wait_of_nothing_and_of_something_else():
    assert ray.wait([]) == ([], [])
    with pytest.raises(TypeError):
        ray.wait(ray.put(1))
    with pytest.raises(TypeError):
        ray.wait([1])
    with pytest.raises((TypeError, ValueError)):
        ray.wait([ray.put(1)], timeout=-1)


# -- references


def test_refs_compare_and_hash_by_identity():
    ref = ray.put(1)
    other = ray.put(1)
    assert ref != other
    assert len({ref, other, ref}) == 2
    assert len(ref.hex()) == 56 and ref.binary() == bytes.fromhex(ref.hex())
    assert ref.hex() in repr(ref)


def test_a_ref_that_went_through_a_task_is_the_same():
    @ray.remote
    def back(refs):
        return refs

    ref = ray.put(1)
    (same,) = ray.get(back.remote([ref]))
    assert same == ref and hash(same) == hash(ref)


def test_refs_are_not_pickled_by_plain_pickle_in_silence():
    """Outside the runtime nobody would hold a reference to the object."""
    ref = ray.put(1)
    try:
        again = pickle.loads(pickle.dumps(ref))
    except (TypeError, pickle.PicklingError, ray.exceptions.RayError):
        return
    assert ray.get(again) == 1
