"""ActorPool: order, time limits, what is given up, refs, and actors that die."""

from __future__ import annotations

import os

import pytest

import ftray as ray
from ftray.exceptions import ActorDiedError, RayTaskError
from ftray.util import ActorPool, as_completed, map_unordered
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


@ray.remote(num_cpus=0)
class Worker:
    def double(self, x):
        return 2 * x

    def wait(self, gate, x):
        gate.wait()
        return x

    def fail(self, x):
        raise ValueError(f"bad {x}")

    def die(self, x):
        os._exit(1)

    def relay_death(self, error):
        raise error

    def pid(self, x):
        return os.getpid()

    @ray.method(num_returns=2)
    def pair(self, x):
        return x, x + 1


def double(actor, x):
    return actor.double.remote(x)


def pool_of(number):
    return ActorPool([Worker.remote() for _ in range(number)])


def results_of(pool, get_next):
    """What a loop over all results sees: values, and the names of errors."""
    found = []
    while pool.has_next():
        try:
            found.append(get_next())
        except Exception as error:
            found.append(type(error).__name__)
    return found


def test_map_keeps_the_order_and_uses_all_actors():
    pool = pool_of(2)

    assert list(pool.map(double, range(20))) == [2 * x for x in range(20)]
    assert sorted(pool.map_unordered(double, range(20))) == [2 * x for x in range(20)]
    assert len(set(pool.map(lambda actor, x: actor.pid.remote(x), range(4)))) == 2
    assert list(pool.map(double, [])) == []


def test_unordered_results_come_as_they_are_there(gate):
    pool = pool_of(2)
    pool.submit(lambda actor, x: actor.wait.remote(gate, x), "slow")
    pool.submit(double, 1)
    pool.submit(double, 2)

    assert pool.get_next_unordered() == 2
    assert pool.get_next_unordered() == 4
    gate.open()
    assert pool.get_next_unordered() == "slow"
    assert not pool.has_next()


def test_ordered_results_after_an_unordered_one(gate):
    pool = pool_of(2)
    pool.submit(lambda actor, x: actor.wait.remote(gate, x), "first")
    pool.submit(double, 1)

    assert pool.get_next_unordered() == 2
    gate.open()
    assert pool.get_next() == "first"


def test_timeouts_leave_the_result_in_place_or_give_it_up(gate):
    pool = pool_of(1)
    pool.submit(lambda actor, x: actor.wait.remote(gate, x), "slow")

    for get_next in (pool.get_next, pool.get_next_unordered):
        with pytest.raises(TimeoutError, match="within 0.01 s"):
            get_next(timeout=0.01)
    assert pool.has_next()
    with pytest.raises(TimeoutError, match="is given up"):
        pool.get_next(timeout=0, ignore_if_timedout=True)
    assert not pool.has_next()
    pool.submit(double, 4)  # behind the call that was given up
    gate.open()
    assert pool.get_next(timeout=20) == 8


def test_a_map_gives_up_what_was_submitted_before(gate):
    pool = pool_of(1)
    pool.submit(lambda actor, x: actor.wait.remote(gate, x), "never fetched")
    pool.submit(double, 1)
    results = pool.map(double, [5, 6])
    gate.open()

    assert list(results) == [10, 12]


def test_actors_are_taken_out_and_added():
    first, second = Worker.remote(), Worker.remote()
    pool = ActorPool([first])

    assert pool.has_free()
    with pytest.raises(ValueError, match="in the pool already"):
        pool.push(first)
    assert pool.pop_idle() == first
    assert pool.pop_idle() is None
    pool.submit(double, 1)
    assert not pool.has_free()
    pool.push(second)  # starts what waits
    with pytest.raises(ValueError, match="in the pool already"):
        pool.push(second)
    assert pool.get_next() == 2


def test_an_error_of_a_method_keeps_its_actor():
    pool = pool_of(1)
    for x in range(3):
        pool.submit(lambda actor, x: actor.fail.remote(x) if x == 1 else actor.double.remote(x), x)

    assert pool.get_next() == 0
    with pytest.raises(ValueError, match="bad 1"):
        pool.get_next()
    assert pool.get_next() == 4


def test_a_dead_actor_gets_no_more_work():
    pool = pool_of(2)
    pool.submit(lambda actor, x: actor.die.remote(x), 0)
    for x in range(1, 6):
        pool.submit(double, x)

    assert results_of(pool, pool.get_next) == ["ActorDiedError", 2, 4, 6, 8, 10]
    assert list(pool.map(double, range(5))) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("unordered", [False, True])
def test_without_a_living_actor_every_item_is_reported(unordered):
    pool = pool_of(1)
    for _ in range(3):
        pool.submit(lambda actor, x: actor.die.remote(x), 0)
    get_next = pool.get_next_unordered if unordered else pool.get_next

    assert results_of(pool, get_next) == ["ActorDiedError"] * 3
    pool.submit(double, 7)
    pool.push(Worker.remote())
    assert pool.get_next() == 14


def test_the_last_death_is_the_cause():
    pool = pool_of(1)
    pool.submit(lambda actor, x: actor.die.remote(x), 0)
    pool.submit(double, 1)
    with pytest.raises(ActorDiedError) as first:
        pool.get_next()
    with pytest.raises(ActorDiedError, match="no actor is left") as second:
        pool.get_next()

    assert second.value.__cause__ is first.value


def test_news_of_another_actors_death_is_no_death():
    other = Worker.remote()
    with pytest.raises(ActorDiedError) as died:
        ray.get(other.die.remote(0))
    pool = pool_of(1)
    pool.submit(lambda actor, x: actor.relay_death.remote(x), died.value)
    pool.submit(double, 3)

    with pytest.raises(RayTaskError):
        pool.get_next()
    assert pool.get_next() == 6


def test_a_killed_actor_while_its_call_runs(gate):
    actor = Worker.remote()
    pool = ActorPool([actor, Worker.remote()])
    ray.get(actor.double.remote(1))
    pool.submit(lambda a, x: a.wait.remote(gate, x), 1)
    pool.submit(lambda a, x: a.wait.remote(gate, x), 2)
    ray.kill(actor)
    gate.open()

    assert sorted(results_of(pool, pool.get_next_unordered), key=str)[-1] == "ActorDiedError"
    assert list(pool.map(double, [1])) == [2]


def test_refs_are_values_for_the_call_and_several_results_are_a_list():
    pool = pool_of(1)
    pool.submit(double, ray.put(21))
    pool.submit(lambda actor, x: actor.pair.remote(x), 1)
    pool.submit(lambda actor, x: actor.pair.remote(x), 3)

    assert pool.get_next() == 42
    assert pool.get_next() == [1, 2]
    assert pool.get_next_unordered() == [3, 4]


@pytest.mark.parametrize("made", [None, 5, [], ["x"]])
def test_a_function_that_returns_no_ref_is_refused_and_costs_no_actor(made):
    pool = pool_of(1)
    with pytest.raises(TypeError, match="must return the ObjectRef of a call"):
        pool.submit(lambda actor, x: made, 1)

    assert list(pool.map(double, [1])) == [2]


def test_a_function_that_raises_costs_no_actor():
    pool = pool_of(1)
    with pytest.raises(KeyError):
        pool.submit(lambda actor, x: {}["x"], 1)

    assert not pool.has_next()
    assert list(pool.map(double, [1])) == [2]


def test_bad_input():
    with pytest.raises(TypeError, match="consists of actor handles, not int"):
        ActorPool([1])
    actor = Worker.remote()
    with pytest.raises(ValueError, match="in the pool already"):
        ActorPool([actor, actor])
    with pytest.raises(StopIteration):
        ActorPool([actor]).get_next()
    with pytest.raises(StopIteration):
        ActorPool([]).get_next_unordered()


# --- ftray.util's functions ------------------------------------------------------------------------


@ray.remote(num_cpus=0)
def square(x):
    return x * x


@ray.remote(num_cpus=0)
def wait_for(gate):
    gate.wait()


def test_as_completed(gate):
    slow = wait_for.remote(gate)
    refs = [slow, *(square.remote(x) for x in range(3))]
    results = as_completed(refs, chunk_size=1)

    assert sorted(next(results) for _ in range(3)) == [0, 1, 4]
    gate.open()
    assert list(results) == [None]
    assert sorted(as_completed(refs[1:], yield_obj_refs=True), key=refs.index) == refs[1:]


def test_as_completed_has_a_time_limit(gate):
    with pytest.raises(TimeoutError, match="none of 1 results"):
        list(as_completed([wait_for.remote(gate)], timeout=0.01))


def test_map_unordered_of_an_endless_input():
    def numbers():
        x = 0
        while True:
            taken.append(x)
            yield x
            x += 1

    taken = []
    results = map_unordered(square, numbers(), backpressure_size=4, chunk_size=1)

    assert len({next(results) for _ in range(10)}) == 10
    assert len(taken) <= 14
    assert sorted(map_unordered(square, range(5), backpressure_size=None)) == [0, 1, 4, 9, 16]


@pytest.mark.parametrize("options", [{"chunk_size": 0}, {"backpressure_size": 0}])
def test_bad_sizes(options):
    with pytest.raises(ValueError, match="must be an integer >= 1"):
        list(map_unordered(square, [1], **options))


def test_list_named_actors():
    actors = [Worker.options(name="named a").remote(), Worker.options(name="b", namespace="other").remote()]
    ray.get([actor.double.remote(1) for actor in actors])

    assert ray.util.list_named_actors() == ["named a"]
    everywhere = ray.util.list_named_actors(all_namespaces=True)
    assert {"name": "b", "namespace": "other"} in everywhere
    del actors
    eventually(lambda: ray.util.list_named_actors() == [])
