"""Objects that other processes hold refs to leave memory as well, unless these are looking at them."""

from __future__ import annotations

import numpy as np
import pytest

import ftray as ray
from tests.helpers.spilling import MB, STORE, check, matches, pattern, spill_all, store

pytestmark = [
    pytest.mark.usefixtures("runtime"),
    pytest.mark.runtime(num_cpus=2, object_store_memory=STORE),
]
FULL = ray.exceptions.ObjectStoreFullError


@ray.remote
class Keeper:
    """Holds refs of others."""

    def keep(self, refs):
        self.refs = refs

    def view(self, *numbers):
        self.views = [ray.get(self.refs[i]) for i in numbers]

    def views_are_right(self):
        return [bool(np.array_equal(view, pattern(i, len(view)))) for i, view in enumerate(self.views)]

    def right(self, i):
        value = ray.get(self.refs[i])
        return bool(np.array_equal(value, pattern(i, len(value))))

    def is_there(self, i):
        return ray.wait([self.refs[i]], timeout=0)[0] == [self.refs[i]]

    def pass_on(self, other):
        ray.get(other.keep.remote(self.refs))

    def argument(self, i):
        return ray.get(matches.remote(self.refs[i], i))


@ray.remote
class AsyncKeeper:
    async def keep(self, refs):
        self.refs = refs

    async def right(self, i):
        value = await self.refs[i]
        return bool(np.array_equal(value, pattern(i, len(value))))


def keep(kind=Keeper, count=3):
    """Objects of ours that an actor holds refs to, and has looked at."""
    keeper = kind.remote()
    refs = [ray.put(pattern(i, 4 * MB)) for i in range(count)]
    ray.get(keeper.keep.remote(refs))
    assert all(ray.get([keeper.right.remote(i) for i in range(count)]))
    return keeper, refs


def test_what_others_only_hold_leaves_and_comes_back_to_them():
    keeper, refs = keep()
    spill_all(refs)
    assert ray.get(keeper.is_there.remote(0))
    assert ray.get([keeper.right.remote(i) for i in range(3)]) == [True] * 3
    spill_all(refs)
    for i, ref in enumerate(refs):
        check(ray.get(ref), i)


def test_only_the_borrower_has_a_ref_left():
    keeper, refs = keep()
    del refs
    spill_all(range(3))
    assert ray.get([keeper.right.remote(i) for i in range(3)]) == [True] * 3


def test_what_another_process_looks_at_stays_until_it_does_not():
    keeper, refs = keep()
    ray.get(keeper.view.remote(0, 1, 2))
    with pytest.raises(FULL, match="other than the owner"):
        ray.put(np.zeros(16 * MB, dtype=np.uint8))
    assert ray.get(keeper.views_are_right.remote()) == [True] * 3
    ray.get(keeper.view.remote())
    spill_all(refs)
    assert ray.get(keeper.right.remote(2))


def test_a_borrower_that_cannot_have_it_now_can_later():
    keeper, (ref,) = keep(count=1)
    spill_all([ref])
    view = ray.get(ray.put(pattern(7, 17 * MB)))
    with pytest.raises(FULL, match="views of values"):
        ray.get(keeper.right.remote(0))
    with pytest.raises(FULL, match="views of values"):
        ray.get(keeper.argument.remote(0))
    check(view, 7)
    del view
    assert ray.get([keeper.right.remote(0), keeper.argument.remote(0)]) == [True] * 2


def test_refs_that_a_borrower_has_passed_on():
    keeper, refs = keep()
    other = Keeper.remote()
    ray.get(keeper.pass_on.remote(other))
    assert ray.get(other.right.remote(1))
    spill_all(refs)
    assert ray.get([other.right.remote(0), keeper.right.remote(0), keeper.argument.remote(1)]) == [True] * 3
    spill_all(refs)
    assert ray.get(keeper.argument.remote(2))


def test_calls_of_borrowers_have_their_arguments_at_all_times():
    """A borrower says no while a call that it made may be told the place."""
    keeper, refs = keep()
    calls = []
    for turn in range(4):
        calls += [keeper.argument.remote(i) for i in range(3)]
        check(ray.get(ray.put(pattern(turn, 10 * MB))), turn)
    assert all(ray.get(calls))
    assert store()["spilled_objects"] >= len(refs)


def test_await_of_a_borrowed_object():
    keeper, refs = keep(AsyncKeeper)
    spill_all(refs)
    assert ray.get([keeper.right.remote(i) for i in range(3)]) == [True] * 3


def test_the_borrower_dies():
    keeper, refs = keep()
    ray.get(keeper.view.remote(0, 1, 2))
    ray.kill(keeper)
    spill_all(refs)
    check(ray.get(refs[1]), 1)
