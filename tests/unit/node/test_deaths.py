"""Who still has to acknowledge a death."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray._node.deaths import Deaths

X, Y = b"x" * 28, b"y" * 28


def test_settled_when_the_last_survivor_acknowledges() -> None:
    deaths = Deaths()
    assert not deaths.died(X, [1, 2])
    assert not deaths.acknowledged(X, 2)
    assert deaths.acknowledged(X, 1)
    assert deaths.unsettled() == 0


def test_without_survivors_it_is_settled_at_once() -> None:
    assert Deaths().died(X, [])


def test_a_survivor_that_dies_is_awaited_no_more() -> None:
    deaths = Deaths()
    deaths.died(X, [1, 2])
    deaths.died(Y, [1])
    assert deaths.client_gone(1) == [Y]
    assert deaths.acknowledged(X, 2)


def test_an_acknowledgement_that_is_not_awaited_means_nothing() -> None:
    deaths = Deaths()
    deaths.died(X, [1])
    assert not deaths.acknowledged(X, 2)
    assert not deaths.acknowledged(Y, 1)
    assert deaths.acknowledged(X, 1)
    assert not deaths.acknowledged(X, 1)


def test_nobody_dies_twice() -> None:
    deaths = Deaths()
    deaths.died(X, [1])
    with pytest.raises(RuntimeError, match="twice"):
        deaths.died(X, [1])


@given(st.permutations(range(5)), st.lists(st.booleans(), min_size=5, max_size=5))
def test_every_death_settles_exactly_once_in_any_order(order: list[int], dies: list[bool]) -> None:
    deaths = Deaths()
    deaths.died(X, range(5))
    settled = 0
    for client in order:
        if dies[client]:
            settled += len(deaths.client_gone(client))
        else:
            settled += deaths.acknowledged(X, client)
        assert settled == (client == order[-1])
