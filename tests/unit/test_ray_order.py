"""Calls on Ray come in any order and begin in that of their numbers (`ftray._ray.host_order`)."""

from __future__ import annotations

import random

import pytest

from ftray._ray.host_order import Order

A, B = b"a" * 16, b"b" * 16


class Ledger:
    """What earlier incarnations have recorded, and what begins here."""

    def __init__(self, *recorded: int, most_callers: int = 100) -> None:
        self.recorded = set(recorded)
        self.begun: list[int] = []
        self.order = Order(lambda parent, n: parent == A and n in self.recorded, most_callers)

    def arrive(self, n: int, acked: int = 1, parent: bytes = A) -> None:
        self.order.arrive(parent, n, acked, lambda: self.begun.append(n))

    def read(self, n: int, acked: int = 1) -> None:
        self.order.arrive_read(A, n, acked, lambda: self.begun.append(-n))


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_arrival_gives_one_order(seed: int) -> None:
    draw = random.Random(seed)
    ledger = Ledger()
    numbers = list(range(1, 41)) + draw.sample(range(1, 41), 10)  # some come twice
    draw.shuffle(numbers)
    for n in numbers:
        ledger.arrive(n)
    first = [n for i, n in enumerate(ledger.begun) if n not in ledger.begun[:i]]
    assert first == list(range(1, 41))
    assert len(ledger.begun) == 50


def test_what_was_recorded_before_is_not_waited_for() -> None:
    ledger = Ledger(1, 2, 3)
    ledger.arrive(5)
    assert ledger.begun == []
    ledger.arrive(4)
    assert ledger.begun == [4, 5]
    ledger.arrive(2)  # asks again for a recorded reply
    assert ledger.begun == [4, 5, 2]


def test_what_a_caller_acknowledges_is_not_waited_for() -> None:
    ledger = Ledger()
    ledger.arrive(8, acked=8)
    assert ledger.begun == [8]
    ledger.arrive(11)
    ledger.order.acknowledged(A, 11)  # 9 and 10 were cancelled, or their arguments failed
    assert ledger.begun == [8, 11]
    ledger.order.acknowledged(B, 5)  # of a caller that nobody waits for


def test_reads_come_after_the_calls_made_before_them() -> None:
    ledger = Ledger()
    ledger.read(1)
    ledger.read(3)
    ledger.arrive(2)
    assert ledger.begun == [-1]
    ledger.arrive(1)
    assert ledger.begun == [-1, 1, 2, -3]


def test_who_gives_up_runs_and_lets_the_others_go_on_in_order() -> None:
    ledger = Ledger()
    for n in (6, 4, 5, 9):
        ledger.arrive(n)
    assert ledger.order.give_up(A, 4) == 1
    assert ledger.begun == [4, 5, 6]
    ledger.arrive(2)  # it comes late, and runs all the same
    assert ledger.begun == [4, 5, 6, 2]
    assert ledger.order.give_up(A, 9) == 7
    assert ledger.begun[-1] == 9


def test_callers_do_not_wait_for_each_other_and_are_forgotten() -> None:
    ledger = Ledger(most_callers=3)
    for i in range(10):
        ledger.arrive(1, parent=bytes([i]) * 16)
    ledger.arrive(3, parent=B)
    assert ledger.begun == [1] * 10
    ledger.arrive(1, parent=B)
    ledger.arrive(2, parent=B)
    assert ledger.begun == [1] * 11 + [2, 3]
