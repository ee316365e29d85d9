"""multiprocessing.Pool on actors: results, errors, time limits, callbacks, ends, and dead processes."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import queue
import threading

import pytest

import ftray as ray
from ftray.exceptions import ActorDiedError, TaskCancelledError
from ftray.util.multiprocessing import Pool
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


class Odd(Exception):
    def __init__(self, code, *, detail):
        super().__init__(detail)
        self.code = code


def square(x):
    return x * x


@pytest.fixture
def pool():
    with Pool(2) as made:
        yield made
    made.join()


def test_every_way_to_call(pool):
    assert pool.apply(pow, (2, 5)) == 32
    assert pool.apply(lambda a, b: (a, b), (1,), {"b": 2}) == (1, 2)
    assert pool.apply_async(square, (3,)).get() == 9
    assert pool.map(square, range(20)) == [x * x for x in range(20)]
    assert pool.map(square, range(7), chunksize=3) == [x * x for x in range(7)]
    assert pool.map_async(square, (x for x in range(3))).get() == [0, 1, 4]
    assert pool.starmap(pow, [(2, 3), (3, 2)]) == [8, 9]
    assert pool.starmap_async(pow, zip([2], [2], strict=True)).get() == [4]
    assert list(pool.imap(square, range(10), chunksize=3)) == [x * x for x in range(10)]
    assert sorted(pool.imap_unordered(square, range(10), chunksize=4)) == sorted(x * x for x in range(10))


def test_empty_inputs(pool):
    assert pool.map(square, []) == pool.starmap(pow, []) == list(pool.imap(square, [])) == []
    assert list(pool.imap_unordered(square, [])) == []
    result = pool.map_async(square, [])
    assert result.ready() and result.successful() and result.get(0) == []


def test_it_runs_in_so_many_processes(pool):
    pids = set(pool.map(lambda _: os.getpid(), range(100), chunksize=1))

    assert len(pids) <= 2
    assert os.getpid() not in pids


def test_errors_are_those_of_the_function(pool):
    for call in (
        lambda: pool.apply(lambda: 1 / 0),
        lambda: pool.map(lambda x: 1 // x, [1, 0, 2]),
        lambda: list(pool.imap(lambda x: 1 // x, [1, 0])),
    ):
        with pytest.raises(ZeroDivisionError) as caught:
            call()
        assert type(caught.value) is ZeroDivisionError
        assert "in <lambda>" in str(caught.value.__cause__)


def test_an_error_with_an_unusual_constructor(pool):
    def fail():
        raise Odd(3, detail="why")

    with pytest.raises(Odd, match="why") as caught:
        pool.apply(fail)
    assert caught.value.code == 3


def test_a_result_that_cannot_be_sent_is_an_error(pool):
    with pytest.raises(TypeError, match="lock"):
        pool.apply(threading.Lock)
    assert pool.apply(square, (2,)) == 4


def test_the_first_of_several_errors_in_order(pool, gate):
    def fail(x):
        if x == 0:
            gate.wait()
        raise ValueError(x)

    result = pool.map_async(fail, [0, 1], chunksize=1)
    gate.open()
    with pytest.raises(ValueError, match="0"):
        result.get()


def test_iteration_goes_on_after_an_error(pool):
    results = pool.imap(lambda x: 6 // x, [1, 0, 2, 3], chunksize=3)

    assert next(results) == 6
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert list(results) == [3, 2]


def test_time_limits(pool, gate):
    result = pool.apply_async(gate.__reduce__()[0].wait, (gate,))
    iterator = pool.imap(gate.__reduce__()[0].wait, [gate])
    unordered = pool.imap_unordered(gate.__reduce__()[0].wait, [gate])

    assert not result.ready()
    result.wait(0.01)
    with pytest.raises(multiprocessing.TimeoutError, match=r"within 0.01 s"):
        result.get(timeout=0.01)
    with pytest.raises(ValueError, match="is not ready"):
        result.successful()
    for results in (iterator, unordered):
        with pytest.raises(multiprocessing.TimeoutError):
            results.next(timeout=0.01)
    gate.open()
    assert result.get(timeout=20) is None
    assert list(iterator) == list(unordered) == [None]


def test_callbacks(pool):
    said = queue.SimpleQueue()
    pool.apply_async(square, (3,), callback=said.put, error_callback=said.put)
    assert said.get(timeout=20) == 9
    pool.map_async(square, [1, 2], callback=said.put)
    assert said.get(timeout=20) == [1, 4]
    failed = pool.map_async(lambda x: 1 // x, [0], callback=said.put, error_callback=said.put)
    assert isinstance(said.get(timeout=20), ZeroDivisionError)
    failed.wait()
    assert not failed.successful()


def test_only_some_of_an_endless_input_is_taken(pool):
    taken = itertools.count()
    results = pool.imap(square, taken)

    assert [next(results) for _ in range(10)] == [x * x for x in range(10)]
    assert next(taken) < 20


def test_an_error_of_the_input(pool):
    def numbers():
        yield from range(5)
        raise KeyError("input")

    results = pool.imap(square, numbers())
    with pytest.raises(KeyError, match="input"):
        list(results)
    with pytest.raises(KeyError, match="input"):
        pool.map(square, numbers())


def test_initializer_and_tasks_per_child(tally):
    def begin(counter, name):
        os.environ["POOL_NAME"] = name
        counter.bump()

    with Pool(2, initializer=begin, initargs=(tally, "x"), maxtasksperchild=2) as pool:
        assert pool.map(lambda _: os.environ["POOL_NAME"], range(8), chunksize=1) == ["x"] * 8
        eventually(
            lambda: tally.count >= 5
        )  # 8 chunks of at most two a process, and the two at the beginning
        assert len(set(pool.map(lambda _: os.getpid(), range(6), chunksize=1))) >= 3


def test_an_initializer_that_raises():
    def begin():
        raise ValueError("no start")

    with pytest.raises(ActorDiedError, match="no start") as caught:
        Pool(1, initializer=begin)
    assert caught.value.actor_init_failed


def test_a_process_that_dies_fails_its_chunk_and_is_replaced(pool):
    def maybe_die(x):
        if x == 1:
            os._exit(3)
        return x

    with pytest.raises(ActorDiedError, match="exited with code 3"):
        pool.map(maybe_die, [0, 1, 2], chunksize=1)
    outcomes = []
    results = pool.imap(maybe_die, [0, 1, 2, 3])
    for _ in range(4):
        try:
            outcomes.append(next(results))
        except ActorDiedError:
            outcomes.append("died")
    assert outcomes == [0, "died", 2, 3]
    assert pool.map(square, range(10)) == [x * x for x in range(10)]


def test_a_process_that_is_killed_while_it_works(pool, gate, mailbox):
    def work(box, door):
        box.post(os.getpid())
        door.wait()

    result = pool.apply_async(work, (mailbox, gate))
    os.kill(mailbox.take(), 9)

    with pytest.raises(ActorDiedError, match="SIGKILL"):
        result.get(timeout=20)
    assert pool.map(square, [1, 2]) == [1, 4]


def test_close_and_join_finish_the_work():
    pool = Pool(2)
    result = pool.map_async(square, range(50), chunksize=1)
    iterator = pool.imap(square, range(30))
    pool.close()
    pool.close()
    pool.join()

    assert result.ready() and result.get() == [x * x for x in range(50)]
    assert list(iterator) == [x * x for x in range(30)]
    for call in (
        lambda: pool.apply(square, (1,)),
        lambda: pool.map(square, []),
        lambda: pool.imap(square, []),
    ):
        with pytest.raises(ValueError, match="was closed"):
            call()
    with pytest.raises(ValueError, match="was closed"), pool:
        pass


def test_terminate_settles_everything(gate, mailbox):
    pool = Pool(1)
    running = pool.apply_async(lambda box, door: (box.post(), door.wait()), (mailbox, gate))
    waiting = pool.map_async(square, range(4))
    iterator = pool.imap(square, itertools.count())
    mailbox.take()
    pool.terminate()
    pool.terminate()
    pool.join()

    with pytest.raises(ActorDiedError):
        running.get(timeout=20)
    with pytest.raises(TaskCancelledError, match="was terminated"):
        waiting.get(timeout=20)
    for _ in range(2):
        with pytest.raises(TaskCancelledError):
            next(iterator)
    with pytest.raises(StopIteration):
        next(iterator)


def test_join_needs_an_end(pool):
    with pytest.raises(ValueError, match="call close"):
        pool.join()


def test_a_pool_inside_a_task():
    @ray.remote
    def outer():
        with Pool(2) as pool:
            return pool.map(square, [1, 2, 3])

    assert ray.get(outer.remote()) == [1, 4, 9]


def test_a_pool_may_outlive_its_session(no_runtime):
    ray.init(num_cpus=1)
    pool = Pool(1)
    assert pool.apply(square, (2,)) == 4
    ray.shutdown()
    pool.terminate()
    pool.join()


def test_bad_input(pool):
    for options, kind, said in [
        ({"processes": 0}, ValueError, "processes=0 is not valid"),
        ({"processes": "2"}, TypeError, "processes must be an integer"),
        ({"processes": 1, "maxtasksperchild": 0}, ValueError, "maxtasksperchild=0"),
        ({"processes": 1, "initializer": 5}, TypeError, "initializer must be callable"),
        ({"processes": 1, "context": multiprocessing.get_context()}, ValueError, "leave it out"),
        ({"processes": 1, "ray_remote_args": {"num_cpu": 1}}, ValueError, "num_cpu"),
    ]:
        with pytest.raises(kind, match=said):
            Pool(**options)
    for chunksize, kind in [(0, ValueError), (1.5, TypeError)]:
        with pytest.raises(kind, match="chunksize"):
            pool.map(square, [1], chunksize)
        with pytest.raises(kind, match="chunksize"):
            pool.imap(square, [1], chunksize)
    with pytest.raises(TypeError, match="runs callables"):
        pool.apply(5)
