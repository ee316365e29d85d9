"""What is not made again and says why, results of actors' methods, and what lineage costs."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

import ftray as ray
from ftray import _core
from ftray import exceptions as exc
from tests.helpers import introspection
from tests.helpers.losing import SIZE, check, is_kept, lose, make
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = [pytest.mark.usefixtures("runtime"), pytest.mark.runtime(num_cpus=2)]


@pytest.fixture
def lineage(runtime):
    """Change the settings for one test."""
    yield _core.lineage_configure
    _core.lineage_configure(True, 10**9)


# --- not made again


def test_puts_say_what_they_are():
    ref = ray.put(b"p" * SIZE)
    worker_has_it = ray.remote(lambda part: len(part)).remote(ref)
    assert ray.get(worker_has_it) == SIZE
    lose(ref)
    with pytest.raises(exc.ObjectLostError, match=r"put\(\)") as caught:
        ray.get(ref)
    assert type(caught.value) is exc.ObjectLostError
    assert ref.hex() in str(caught.value)


def test_a_put_argument_that_was_freed_cannot_be_had_again(tally):
    part = ray.put(np.ones(SIZE, dtype=np.uint8))
    name = part.hex()
    ref = make.remote(tally, part)
    check(ref, 2)
    del part
    gc.collect()
    lose(ref)
    with pytest.raises(exc.ObjectLostError, match=name):
        ray.get(ref)
    assert tally.count == 1


def test_a_put_argument_that_is_still_there_is_used(tally):
    part = ray.put(np.ones(SIZE, dtype=np.uint8))
    ref = make.remote(tally, part)
    lose(ref)
    check(ref, 2)
    assert tally.count == 2


def test_no_retries(tally):
    ref = make.options(max_retries=0).remote(tally)
    lose(ref)
    with pytest.raises(exc.ObjectReconstructionFailedMaxAttemptsExceededError):
        ray.get(ref)
    assert tally.count == 1


def test_the_oldest_lineage_is_evicted(tally, lineage):
    refs = [make.remote(tally) for _ in range(3)]
    ray.get(refs)
    each = introspection.counters()["lineage_bytes"] // 3
    lineage(True, 3 * each)
    refs.append(make.remote(tally))
    ray.get(refs[-1])
    assert [is_kept(ref) for ref in refs] == [False, True, True, True]
    lose(*refs)
    with pytest.raises(exc.ObjectReconstructionFailedLineageEvictedError, match="FTRAY_max_lineage_bytes"):
        ray.get(refs[0])
    for ref in refs[1:]:
        check(ref, 1)


def test_eviction_in_the_middle_of_a_chain(tally, lineage):
    base = make.remote(tally)
    ray.wait([base])
    ref = make.remote(tally, base)
    check(ref, 2)
    del base
    gc.collect()
    lineage(True, introspection.counters()["lineage_bytes"])
    other = make.remote(tally)
    check(other, 1)
    lose(ref, other)
    with pytest.raises(exc.ObjectReconstructionFailedLineageEvictedError):
        ray.get(ref)
    check(other, 1)


def test_nothing_is_kept_with_room_for_nothing(tally, lineage):
    lineage(True, 0)
    ref = make.remote(tally)
    lose(ref)
    assert introspection.counters()["kept_tasks"] == 0
    with pytest.raises(exc.ObjectReconstructionFailedLineageEvictedError):
        ray.get(ref)


def test_switched_off(tally, lineage):
    lineage(False, 10**9)
    ref = make.remote(tally)
    lose(ref)
    assert introspection.counters()["kept_tasks"] == 0
    with pytest.raises(exc.ObjectLostError, match="FTRAY_lineage_pinning_enabled"):
        ray.get(ref)


def test_the_settings_come_from_the_environment(start_driver):
    driver = start_driver(
        """
        import os
        os.environ["RAY_lineage_pinning_enabled"] = "0"
        import ftray as ray
        from tests.helpers.losing import is_kept
        ray.init(num_cpus=1)

        @ray.remote
        def make():
            return b"m" * 200_000

        @ray.remote
        def nested():
            ref = make.remote()
            ray.wait([ref])
            return is_kept(ref)

        ref = make.remote()
        ray.wait([ref])
        tell("driver", is_kept(ref))
        tell("worker", ray.get(nested.remote()))
        del ref
        ray.shutdown()
        os.environ["FTRAY_lineage_pinning_enabled"] = "maybe"
        try:
            ray.init(num_cpus=1)
        except ValueError as error:
            tell("refused", str(error))
        """
    )
    assert driver.expect("driver") is False
    assert driver.expect("worker") is False
    assert "FTRAY_lineage_pinning_enabled" in driver.expect("refused")
    driver.finish()
    driver.check_nothing_left()


# --- actors


@ray.remote
class Counter:
    def __init__(self):
        self.n = 0

    def bulk(self):
        self.n += 1
        return np.full(SIZE, self.n, dtype=np.uint8)


def test_results_of_methods_are_not_made_again_by_default():
    counter = Counter.remote()
    ref = counter.bulk.remote()
    lose(ref)
    with pytest.raises(exc.ObjectLostError, match="max_task_retries"):
        ray.get(ref)


def test_results_of_methods_that_may_run_again():
    counter = Counter.options(max_restarts=1, max_task_retries=1).remote()
    ref = counter.bulk.remote()
    check(ref, 1)
    lose(ref)
    check(ref, 2)
    lose(ref)
    with pytest.raises(exc.ObjectReconstructionFailedMaxAttemptsExceededError):
        ray.get(ref)


def test_a_method_runs_again_with_the_refs_in_its_arguments(tally):
    """A call that is kept does not hold the actor's handle any more, which stood behind these refs."""

    @ray.remote(max_restarts=1, max_task_retries=-1)
    class Reader:
        def total(self, part, refs):
            return np.full(SIZE, int(part[0]) + sum(ray.get(refs)), dtype=np.uint8)

    reader = Reader.remote()
    part = make.remote(tally)
    ref = reader.total.remote(part, [ray.put(2), ray.put(3)])
    for _ in range(3):
        check(ref, 6)
        gc.collect()
        lose(ref)
    check(ref, 6)
    ref = reader.total.remote(part, [ray.put(4)])
    check(ref, 5)
    part = None
    lose(ref)
    check(ref, 5)


def test_results_of_an_actor_that_is_gone():
    counter = Counter.options(max_restarts=1, max_task_retries=-1).remote()
    ref = counter.bulk.remote()
    check(ref, 1)
    ray.kill(counter)
    lose(ref)
    with pytest.raises(exc.ActorDiedError):
        ray.get(ref)


def test_a_task_that_took_a_handle_keeps_no_actor_alive(tally):
    @ray.remote
    class Source:
        def number(self):
            return 5, os.getpid()

    @ray.remote
    def ask(source, box):
        box.bump()
        return ray.get(source.number.remote()), b"a" * SIZE

    source = Source.remote()
    ref = ask.remote(source, tally)
    (_, pid), _ = ray.get(ref)
    lose(ref)
    assert ray.get(ref)[0] == (5, pid)
    del source
    gc.collect()
    wait_ended([pid])
    lose(ref)
    with pytest.raises(exc.ActorDiedError):
        ray.get(ref)
    assert tally.count == 3


def test_a_result_keeps_no_actor_alive():
    @ray.remote(max_restarts=1, max_task_retries=-1)
    class Producer:
        def bulk(self):
            return os.getpid(), b"b" * SIZE

    producer = Producer.remote()
    ref = producer.bulk.remote()
    pid = ray.get(ref)[0]
    del producer
    gc.collect()
    wait_ended([pid])
    assert ray.get(ref)[0] == pid


# --- memory


def test_lineage_keeps_no_values(tally):
    before = ray.get(make.remote(tally))
    del before
    ref = make.remote(tally)
    for _ in range(20):
        ref = make.remote(tally, ref)
    check(ref, 21)
    gc.collect()
    places = introspection.counters()
    assert places["kept_tasks"] == 21
    del ref
    gc.collect()
    eventually(lambda: introspection.counters()["kept_tasks"] == 0, "all of it goes with its last value")


def test_small_results_leave_nothing_behind():
    @ray.remote
    def small(x):
        return x

    refs = [small.remote(i) for i in range(1000)]
    assert ray.get(refs) == list(range(1000))
    assert introspection.counters()["kept_tasks"] == 0
