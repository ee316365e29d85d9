"""Tasks: arguments, results, options, references as arguments, several results."""

from __future__ import annotations

import os

import pytest

import ftray as ray

pytestmark = pytest.mark.usefixtures("runtime")

MODULE_CONSTANT = 17


@ray.remote
def echo(*args, **kwargs):
    return args, kwargs


@ray.remote
def add(a, b=10, *, c=100):
    return a + b + c


@ray.remote
def add_module_constant(x):
    return x + MODULE_CONSTANT


@pytest.mark.parametrize(
    "args, kwargs",
    [
        ((), {}),
        ((1,), {}),
        ((1, "two", 3.0, None, b"four"), {"five": [6], "seven": {"eight": (9,)}}),
        ((), {"only": "keyword"}),
        (("x" * 300_000,), {"big": b"y" * 300_000}),
        (([None] * 1000,), {f"k{i}": i for i in range(100)}),
    ],
    ids=["none", "one", "mixed", "keyword", "large", "many"],
)
def test_arguments_arrive_as_given(args, kwargs):
    assert ray.get(echo.remote(*args, **kwargs)) == (args, kwargs)


def test_defaults_and_keyword_only_arguments():
    assert ray.get([add.remote(1), add.remote(1, 2), add.remote(1, b=2, c=3)]) == [111, 103, 6]


@pytest.mark.parametrize("args, kwargs", [((), {}), ((1, 2, 3), {}), ((1,), {"d": 1}), ((1,), {"a": 1})])
def test_arguments_that_do_not_fit_the_signature_raise_at_the_call(args, kwargs):
    with pytest.raises(TypeError):
        add.remote(*args, **kwargs)


@pytest.mark.parametrize(
    "value", [None, True, 0, -(2**80), 1.5, "ü", b"\0", [], {"a": {1, 2}}, (1, (2,)), Ellipsis]
)
def test_result_is_what_was_returned(value):
    @ray.remote
    def give():
        return value

    result = ray.get(give.remote())
    assert result == value and type(result) is type(value)


def test_closure_and_globals():
    offset = 1000

    @ray.remote
    def add_offset(x):
        return x + offset

    assert ray.get([add_offset.remote(1), add_module_constant.remote(1)]) == [1001, 18]


def test_a_closure_is_captured_when_the_function_is_first_used():
    factors = [2, 3]

    def scaled(factor):
        return ray.remote(lambda x: x * factor)

    assert ray.get([scaled(factor).remote(10) for factor in factors]) == [20, 30]


def test_local_class_as_argument_and_result():
    class Point:
        def __init__(self, x):
            self.x = x

        def __eq__(self, other):
            return type(other) is type(self) and other.x == self.x

    @ray.remote
    def shifted(point):
        return type(point)(point.x + 1)

    assert ray.get(shifted.remote(Point(1))).x == 2


def test_remote_function_inside_remote_function():
    @ray.remote
    def inner(x):
        return x + 1

    @ray.remote
    def outer(x):
        return ray.get(inner.remote(x)) * 10

    assert ray.get(outer.remote(1)) == 20


def test_recursive_function():
    @ray.remote
    def factorial(n):
        return 1 if n == 0 else n * ray.get(factorial.remote(n - 1))

    assert ray.get(factorial.remote(5)) == 120


def test_arguments_are_copies():
    mutable = [1]

    @ray.remote
    def append(values):
        values.append(2)
        return values

    assert ray.get(append.remote(mutable)) == [1, 2]
    assert mutable == [1]


def test_argument_is_taken_at_the_call_not_at_the_start(gate):
    @ray.remote
    def wait_and_give(door, values):
        door.wait()
        return values

    values = [1]
    ref = wait_and_give.remote(gate, values)
    values.append(2)
    gate.open()
    assert ray.get(ref) == [1]


def test_tasks_run_outside_the_driver():
    @ray.remote
    def pid():
        return os.getpid()

    pids = set(ray.get([pid.remote() for _ in range(20)]))
    assert os.getpid() not in pids
    assert pids


def test_results_come_in_the_order_of_the_refs():
    refs = [add.remote(i, 0, c=0) for i in range(500)]
    assert ray.get(refs) == list(range(500))
    assert ray.get(refs[::-1]) == list(range(500))[::-1]


# -- references as arguments


def test_top_level_refs_are_resolved():
    one, two = ray.put(1), add.remote(0, 0, c=2)
    assert ray.get(add.remote(one, two, c=ray.put(3))) == 6
    assert ray.get(echo.remote(one, two, key=one)) == ((1, 2), {"key": 1})


def test_nested_refs_stay_refs():
    @ray.remote
    def look(values, mapping, *, keyword):
        refs = [values[0], mapping["ref"], keyword[0][0]]
        assert all(isinstance(ref, ray.ObjectRef) for ref in refs)
        return ray.get(refs)

    one, two, three = ray.put(1), add.remote(0, 0, c=2), ray.put("x" * 200_000)
    assert ray.get(look.remote([one], {"ref": two}, keyword=[[three]])) == [1, 2, "x" * 200_000]


def test_ref_of_a_ref_is_resolved_once():
    inner = ray.put("inside")

    @ray.remote
    def kind(value):
        return type(value).__name__, ray.get(value[0])

    assert ray.get(kind.remote(ray.put([inner]))) == ("list", "inside")


def test_refs_in_results():
    @ray.remote
    def produce():
        return [ray.put(1), add.remote(0, 0, c=2), ray.put(b"z" * 200_000)]

    assert ray.get(ray.get(produce.remote())) == [1, 2, b"z" * 200_000]


def test_chain_of_dependent_tasks():
    @ray.remote
    def increment(x):
        return x + 1

    ref = ray.put(0)
    for _ in range(100):
        ref = increment.remote(ref)
    assert ray.get(ref) == 100


@pytest.mark.parametrize("size", [10, 300_000], ids=["inline", "shared"])
def test_one_ref_to_many_tasks(size):
    @ray.remote
    def length(data, index):
        return len(data) + index

    data = ray.put(b"d" * size)
    assert ray.get([length.remote(data, i) for i in range(50)]) == [size + i for i in range(50)]


def test_task_waits_for_its_argument(gate, mailbox):
    @ray.remote(num_cpus=1)
    def slow(door):
        door.wait()
        return 1

    @ray.remote
    def consumer(value, box):
        box.post("ran")
        return value + 1

    ref = consumer.remote(slow.remote(gate), mailbox)
    assert ray.wait([ref], timeout=0.1) == ([], [ref])
    assert mailbox.take_all() == []
    gate.open()
    assert ray.get(ref) == 2


# -- several results


@pytest.mark.parametrize("count", [2, 3, 10])
def test_num_returns(count):
    @ray.remote(num_returns=count)
    def numbers(start):
        return tuple(range(start, start + count))

    refs = numbers.remote(5)
    assert len(refs) == count
    assert [ray.get(ref) for ref in refs] == list(range(5, 5 + count))


def test_num_returns_of_both_sizes_and_as_separate_arguments():
    @ray.remote(num_returns=3)
    def mixed():
        return 1, b"x" * 300_000, ray.put("nested")

    small, large, nested = mixed.remote()
    arguments, _ = ray.get(echo.remote(large, small))
    assert (len(arguments[0]), arguments[1]) == (300_000, 1)
    assert ray.get(ray.get(nested)) == "nested"


def test_num_returns_zero():
    assert echo.options(num_returns=0).remote() is None


def test_num_returns_one_gives_one_ref():
    assert ray.get(echo.options(num_returns=1).remote(1)) == ((1,), {})


@pytest.mark.parametrize("returned", [(1,), (1, 2, 3), 5], ids=["fewer", "more", "no-sequence"])
def test_num_returns_that_does_not_match_is_an_error_of_each_result(returned):
    @ray.remote(num_returns=2)
    def wrong():
        return returned

    for ref in wrong.remote():
        with pytest.raises((ValueError, TypeError)):
            ray.get(ref)


# -- options


def test_options_override_for_one_call_only():
    two = echo.options(num_returns=2, name="two")
    assert len(two.remote(1)) == 2
    assert isinstance(echo.remote(1), ray.ObjectRef)


def test_remote_as_a_function_and_with_options():
    def plain(x):
        return x * 2

    assert ray.get(ray.remote(plain).remote(2)) == 4
    assert ray.get(ray.remote(num_cpus=0.5, max_retries=0)(plain).remote(3)) == 6
    assert plain(4) == 8


def test_runtime_context_in_a_task():
    @ray.remote
    def context():
        me = ray.get_runtime_context()
        return me.get_task_id(), me.get_job_id(), me.get_node_id(), me.get_actor_id(), me.get_worker_id()

    (task, job, node, actor, worker), other = ray.get([context.remote(), context.remote()])
    mine = ray.get_runtime_context()
    assert len(task) == 48 and task != other[0]
    assert (job, node) == (mine.get_job_id(), mine.get_node_id())
    assert actor is None
    assert worker != mine.get_worker_id()


def test_many_tasks_in_flight():
    refs = [add.remote(i, 0, c=0) for i in range(3000)]
    assert sum(ray.get(refs)) == sum(range(3000))


def test_remote_functions_and_refs_as_arguments_of_tasks():
    @ray.remote
    def call(function, value):
        return ray.get(function.remote(value, 0, c=0))

    assert ray.get(call.remote(add, 5)) == 5
