"""Functions that yield a fixed number of returns, or `num_returns="dynamic"`."""

from __future__ import annotations

import numpy as np
import pytest

import ftray as ray
from tests.helpers.yielders import LARGE, Yielder, count, crash_at, endless

exceptions = ray.exceptions

pytestmark = pytest.mark.usefixtures("runtime")

# --- a number of returns, and "dynamic"


def test_a_number_of_returns():
    assert ray.get(count.options(num_returns=3).remote(3)) == [0, 1, 2]
    assert ray.get(count.options(num_returns=1).remote(1)) == 0


def test_too_few_values():
    refs = count.options(num_returns=3).remote(2)
    assert ray.get(refs[:2]) == [0, 1]
    with pytest.raises(ValueError, match="num_returns=3 values, but yielded 2"):
        ray.get(refs[2])


def test_too_many_values_are_left_out_and_the_generator_is_closed(mailbox):
    assert ray.get(endless.options(num_returns=2).remote(mailbox)) == [0, 1]
    assert [mailbox.take() for _ in range(4)] == [0, 1, 2, "closed"]


def test_values_before_an_exception_stay_good_with_a_number_of_returns(tally):
    @ray.remote(retry_exceptions=True, max_retries=1)
    def half(tally):
        tally.bump()
        yield np.zeros(LARGE)
        raise OSError("half way")

    first, second, third = half.options(num_returns=3).remote(tally)
    assert ray.get(first).size == LARGE
    for ref in (second, third):
        with pytest.raises(OSError, match="half way"):
            ray.get(ref)
    assert tally.count == 2


def test_three_thousand_returns():
    assert ray.get(count.options(num_returns=3000).remote(3000)) == list(range(3000))


def test_ten_thousand_refs_as_arguments():
    @ray.remote
    def total(*numbers):
        return sum(numbers)

    refs = [ray.put(i) for i in range(10_000)]
    assert ray.get(total.remote(*refs)) == sum(range(10_000))


def test_dynamic_gives_the_list_when_the_task_has_ended():
    ref = count.options(num_returns="dynamic").remote(4)
    assert isinstance(ref, ray.ObjectRef)
    found = ray.get(ref)
    assert isinstance(found, ray.DynamicObjectRefGenerator)
    assert len(found) == 4
    assert [ray.get(r) for r in found] == [ray.get(r) for r in found] == [0, 1, 2, 3]
    assert ray.get(found[1]) == 1
    del ref
    assert ray.get(found[3]) == 3


def test_dynamic_values_can_be_passed_on():
    @ray.remote
    def total(found):
        return sum(ray.get(list(found)))

    ref = count.options(num_returns="dynamic").remote(5)
    assert ray.get(total.remote(ref)) == 10


def test_dynamic_of_methods_and_large_values():
    actor = Yielder.remote()
    assert len(ray.get(actor.numbers.options(num_returns="dynamic").remote(3))) == 3

    @ray.remote(num_returns="dynamic")
    def arrays():
        for i in range(3):
            yield np.full(LARGE, i)

    assert [int(ray.get(ref)[0]) for ref in ray.get(arrays.remote())] == [0, 1, 2]


def test_the_last_ref_of_a_dynamic_generator_is_its_exception(tally):
    @ray.remote(num_returns="dynamic", retry_exceptions=True, max_retries=1)
    def half(tally):
        yield from range(3 - tally.bump())
        raise OSError("half way")

    found = ray.get(half.remote(tally))
    assert len(found) == 3 and ray.get(list(found)[:2]) == [0, 1]
    with pytest.raises(OSError, match="half way"):
        ray.get(found[2])


def test_dynamic_after_a_death(tally):
    found = ray.get(crash_at.options(num_returns="dynamic").remote(tally, 5, 3))
    assert ray.get(list(found)) == [0, 1, 2, 3, 4]
    ref = crash_at.options(num_returns="dynamic", max_retries=0).remote(tally, 5, 3, attempts=99)
    with pytest.raises(exceptions.WorkerCrashedError):
        ray.get(ref)


def test_cancel_of_a_dynamic_generator(mailbox):
    ref = endless.options(num_returns="dynamic").remote(mailbox)
    assert mailbox.take() == 0
    ray.cancel(ref)
    while mailbox.take() != "closed":  # first: nothing holds it back, and it could not close with a full pipe
        pass
    with pytest.raises(exceptions.TaskCancelledError):
        ray.get(ref)
