"""Workers that leave after so many calls of a function."""

from __future__ import annotations

import os
from collections import Counter

import pytest

import ftray as ray
from tests.helpers.introspection import all_resources_back
from tests.helpers.processes import is_running, wait_ended
from tests.helpers.sync import eventually


@ray.remote(max_calls=3)
def three():
    return os.getpid()


@ray.remote
def unlimited():
    return os.getpid()


@pytest.mark.usefixtures("runtime")
def test_a_worker_runs_a_function_so_often_and_then_leaves():
    pids = ray.get([three.remote() for _ in range(20)])
    counts = Counter(pids)
    assert len(counts) >= 7 and max(counts.values()) == 3
    done = [pid for pid, count in counts.items() if count == 3]
    wait_ended(done)
    eventually(all_resources_back, "resources back")


@pytest.mark.usefixtures("runtime")
def test_one_at_a_time_also_replaces_the_worker():
    pids = [ray.get(three.options(max_calls=1).remote()) for _ in range(4)]
    assert len(set(pids)) == 4


@pytest.mark.usefixtures("runtime")
@pytest.mark.runtime(num_cpus=1)
def test_calls_that_a_leaving_worker_did_not_begin_use_up_no_retry(tally, tmp_path):
    """They are many in flight, to one worker at a time; max_retries=0 forbids a second beginning."""

    @ray.remote(max_calls=4, max_retries=0)
    def note(i):
        tally.bump()
        return i, ray.get_runtime_context().attempt_number

    assert ray.get([note.remote(i) for i in range(41)]) == [(i, 0) for i in range(41)]
    assert tally.count == 41


@pytest.mark.usefixtures("runtime")
def test_other_functions_do_not_count():
    limited = three.options(max_calls=2)
    first = ray.get(limited.remote())
    assert all(is_running(pid) for pid in ray.get([unlimited.remote() for _ in range(10)]))
    assert is_running(first)
    eventually(lambda: not is_running(first) or ray.get(limited.remote()) is None, "the limit is reached")


@pytest.mark.usefixtures("runtime")
def test_a_call_that_raises_counts_and_a_result_is_delivered_first():
    @ray.remote(max_calls=1)
    def fail():
        raise ValueError(os.getpid())

    pids = []
    for _ in range(2):
        with pytest.raises(ValueError) as caught:
            ray.get(fail.remote())
        pids.append(caught.value.cause.args[0])
    wait_ended(pids)
    assert len(set(pids)) == 2


@pytest.mark.usefixtures("runtime")
def test_a_large_result_outlives_its_worker():
    @ray.remote(max_calls=1)
    def large():
        return os.getpid(), b"x" * 1_000_000

    pid, data = ray.get(large.remote())
    wait_ended([pid])
    assert len(data) == 1_000_000


@pytest.mark.usefixtures("runtime")
def test_a_worker_whose_objects_are_needed_stays_but_runs_nothing_more():
    @ray.remote(max_calls=1)
    def owner():
        return [ray.put("mine")], os.getpid()

    (ref,), pid = ray.get(owner.remote())
    others = ray.get([unlimited.remote() for _ in range(20)] + [three.remote() for _ in range(5)])
    assert pid not in others
    assert ray.get(ref) == "mine" and is_running(pid)
    stage = {worker["pid"]: worker["stage"] for worker in _workers()}[pid]
    assert stage in ("LEAVING", "SPENT")
    del ref
    wait_ended([pid])


def _workers():
    from ftray._api import node_rpc

    return node_rpc("workers")


@pytest.mark.usefixtures("runtime")
def test_nested_calls_of_a_limited_function():
    @ray.remote(max_calls=1)
    def nest(depth):
        return 1 + (ray.get(nest.remote(depth - 1)) if depth else 0)

    assert ray.get(nest.remote(3)) == 4
    eventually(all_resources_back, "resources back")


@pytest.mark.usefixtures("runtime")
@pytest.mark.runtime(num_cpus=2, num_gpus=1)
def test_the_default_with_a_gpu_is_one():
    gpu = unlimited.options(num_gpus=1)
    assert len({ray.get(gpu.remote()) for _ in range(3)}) == 3
    kept = unlimited.options(num_gpus=1, max_calls=0)
    assert len({ray.get(kept.remote()) for _ in range(3)}) == 1
