"""Reference counting: memory comes back to zero when the references go."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref

import numpy as np
import pytest

import ftray as ray
from tests.helpers import introspection
from tests.helpers.processes import wait_ended
from tests.helpers.sync import eventually

pytestmark = [
    pytest.mark.usefixtures("runtime"),
    pytest.mark.runtime(num_cpus=2, object_store_memory=200 * 2**20),
]

MB = 2**20


def store_bytes():
    return introspection.counters()["live_bytes"]


def assert_nothing_held():
    gc.collect()
    eventually(lambda: not introspection.live_counters(), f"nothing held: {introspection.counters()}")


def test_small_puts_come_back_to_zero():
    refs = [ray.put(i) for i in range(100_000)]
    assert introspection.counters()["entries"] == 100_000
    assert ray.get(refs[::1000]) == list(range(0, 100_000, 1000))
    del refs
    assert_nothing_held()


@pytest.mark.limit(120)
def test_small_results_come_back_to_zero():
    @ray.remote
    def identity(x):
        return x

    for _ in range(10):
        refs = [identity.remote(i) for i in range(10_000)]
        assert sum(ray.get(refs)) == sum(range(10_000))
        del refs
    assert_nothing_held()


def test_many_large_objects_pass_through_a_small_store():
    """1,000 MB pass through a store of 200 MB, 100 of 1 MB alive at a time."""
    alive = []
    for i in range(1000):
        alive.append((i, ray.put(np.full(MB, i % 251, dtype=np.uint8))))
        if len(alive) > 100:
            number, ref = alive.pop(0)
            array = ray.get(ref)
            assert array[0] == array[-1] == number % 251
            del ref, array
    del alive
    assert_nothing_held()


def test_large_results_pass_through_too():
    @ray.remote
    def produce(i):
        return np.full(MB, i % 251, dtype=np.uint8)

    for start in range(0, 500, 100):
        refs = [produce.remote(i) for i in range(start, start + 100)]
        for i, ref in enumerate(refs, start):
            assert ray.get(ref)[-1] == i % 251
        del refs, ref
    assert_nothing_held()


def test_store_usage_follows_the_references():
    before = store_bytes()
    refs = [ray.put(np.zeros(10 * MB, dtype=np.uint8)) for _ in range(5)]
    assert store_bytes() - before >= 50 * MB
    del refs
    eventually(lambda: store_bytes() - before < 10 * MB, "the blocks are free again")
    assert_nothing_held()


def test_a_view_keeps_its_memory_and_nothing_more():
    ref = ray.put(np.arange(MB))
    array = ray.get(ref)
    del ref
    gc.collect()
    eventually(lambda: introspection.counters()["pins"] >= 1, "the view is counted as a pin")
    assert array[-1] == MB - 1
    del array
    assert_nothing_held()


def test_arguments_are_released_after_the_call(mailbox, gate):
    @ray.remote
    def use(data, box, door):
        box.post(len(data))
        door.wait()

    data = ray.put(b"x" * MB)
    ref = use.remote(data, mailbox, gate)
    del data
    assert mailbox.take() == MB
    assert introspection.live_counters()
    gate.open()
    ray.get(ref)
    del ref
    assert_nothing_held()


def test_objects_inside_objects_live_as_long_as_the_outer_one():
    inner = ray.put(b"i" * MB)
    middle = ray.put([inner])
    outer = ray.put({"middle": middle})
    del inner, middle
    gc.collect()
    found = ray.get(ray.get(ray.get(outer)["middle"])[0])
    assert found == b"i" * MB
    del outer, found
    assert_nothing_held()


def test_borrowed_refs_keep_the_object_while_an_actor_has_them():
    @ray.remote
    class Keeper:
        def keep(self, refs):
            self.refs = refs

        def read(self):
            return len(ray.get(self.refs[0]))

        def drop(self):
            self.refs = None
            gc.collect()

    keeper = Keeper.remote()
    ray.get(keeper.keep.remote([ray.put(b"b" * MB)]))
    gc.collect()
    assert ray.get(keeper.read.remote()) == MB
    ray.get(keeper.drop.remote())
    del keeper
    assert_nothing_held()


def test_a_borrower_passes_on_what_it_borrowed():
    @ray.remote
    def last(refs):
        return len(ray.get(refs[0]))

    @ray.remote
    def first(refs):
        return [last.remote(refs)]

    inner = ray.get(first.remote([ray.put(b"p" * MB)]))
    assert ray.get(inner) == [MB]
    del inner
    assert_nothing_held()


def test_a_borrower_that_dies_gives_back_what_it_held(mailbox):
    @ray.remote
    class Keeper:
        def keep(self, refs, box):
            self.refs = refs
            box.post(os.getpid())

    keeper = Keeper.remote()
    keeper.keep.remote([ray.put(b"b" * MB)], mailbox)
    pid = mailbox.take()
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    del keeper
    assert_nothing_held()


def test_results_nobody_waits_for_are_freed():
    @ray.remote
    def produce():
        return np.zeros(MB, dtype=np.uint8)

    for _ in range(300):
        produce.remote()
    ray.get([produce.remote() for _ in range(4)])
    assert_nothing_held()


def test_failed_tasks_release_their_arguments():
    @ray.remote(max_retries=1)
    def fail(data, how):
        if how == "raise":
            raise ValueError(len(data))
        os._exit(1)

    for how, error in (("raise", ValueError), ("exit", ray.exceptions.WorkerCrashedError)):
        with pytest.raises(error) as caught:
            ray.get(fail.remote(ray.put(b"x" * MB), how))
        del caught
    assert_nothing_held()


def test_a_pending_task_keeps_its_arguments_alive(gate):
    @ray.remote
    def wait(door):
        door.wait()
        return 1

    @ray.remote
    def use(one, refs):
        return one + len(ray.get(refs[0]))

    ref = use.remote(wait.remote(gate), [ray.put(b"x" * MB)])
    gc.collect()
    gate.open()
    assert ray.get(ref) == MB + 1
    del ref
    assert_nothing_held()


# -- finalisers


class Node:
    """Part of a reference cycle, so that only the garbage collector frees its ref."""

    def __init__(self, ref):
        self.ref = ref
        self.me = self


def test_refs_in_cycles_are_released_by_the_collector():
    nodes = [Node(ray.put(i)) for i in range(1000)]
    watch = weakref.ref(nodes[0])
    del nodes
    gc.collect()
    assert watch() is None
    assert_nothing_held()


@pytest.mark.limit(120)
def test_finalisers_may_run_at_any_allocation_on_any_thread():
    """The collector runs at nearly every allocation while four threads submit, get and drop."""
    errors = []

    @ray.remote
    def identity(x):
        return x

    def work(seed):
        try:
            for i in range(150):
                node = Node(ray.put([seed, i]))
                other = Node(identity.remote(Node((seed, i)).ref))
                Node([node.ref, ray.put(b"x" * 150_000)])
                assert ray.get(node.ref) == [seed, i]
                assert ray.get(other.ref) == (seed, i)
        except BaseException as error:
            errors.append(error)

    before = gc.get_threshold()
    gc.set_threshold(1, 1, 1)
    try:
        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
    assert not errors
    assert_nothing_held()


def test_a_ref_may_be_dropped_inside_a_finaliser():
    class Owner:
        def __init__(self):
            self.refs = [ray.put(1)]

        def __del__(self):
            self.refs.append(ray.put(2))
            ray.get(self.refs)

    for _ in range(100):
        Owner()
    assert_nothing_held()


def test_a_stale_ref_of_an_ended_session_does_nothing(start_driver):
    driver = start_driver(
        """
        import gc
        import ftray as ray
        ray.init(num_cpus=1)
        old = [ray.put(i) for i in range(100)] + [ray.put(b"x" * 500_000)]
        ray.shutdown()
        ray.init(num_cpus=1)
        new = [ray.put(i) for i in range(100)]
        try:
            ray.get(old[0], timeout=5)
        except Exception as error:
            tell("stale", type(error).__name__)
        del old
        gc.collect()
        tell("new", ray.get(new) == list(range(100)))
        """
    )
    driver.expect("stale")
    assert driver.expect("new") is True
    driver.finish()
    driver.check_nothing_left()
