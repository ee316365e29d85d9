"""Callers below others: let go of once, with the last call above them, in whatever order that is reported."""

from __future__ import annotations

import itertools
import random

import pytest

from ftray._node.caller_releases import CallerReleases
from ftray._node.caller_tree import CallerTree
from ftray._node.frames import CallersDone


def name(n):
    return n.to_bytes(16, "little")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_three_deep_in_any_order(order):
    tree, found = CallerTree(), []
    reports = [
        lambda: tree.over(name(1)),
        lambda: tree.nested(name(2), name(1)),
        lambda: tree.nested(name(3), name(2)),
    ]
    for which in order:
        found += reports[which]()
    assert sorted(found) == sorted(map(name, (1, 2, 3))) and len(tree) == 0


def test_nothing_goes_before_what_is_above_it():
    tree = CallerTree()
    assert tree.nested(name(3), name(2)) == tree.nested(name(2), name(1)) == []
    assert tree.over(name(9)) == [name(9)]
    assert len(tree) == 2
    assert tree.over(name(1)) == [name(1), name(2), name(3)]


@pytest.mark.parametrize("seed", range(10))
def test_a_forest_in_random_order(seed):
    rng, tree = random.Random(seed), CallerTree()
    above = {n: rng.randrange(n) for n in range(1, 200)}  # 0 is the driver
    reports = list(above)
    rng.shuffle(reports)
    reported, gone = set(), []
    for n in reports:
        reported.add(n)
        found = tree.over(name(n)) if above[n] == 0 else tree.nested(name(n), name(above[n]))
        gone += found
        for each in found:
            at = int.from_bytes(each, "little")
            while at:
                assert at in reported
                at = above[at]
    assert sorted(gone) == sorted(map(name, above)) and len(tree) == 0


def test_what_is_kept_is_bounded():
    tree = CallerTree(most_waiting=10, most_over=5)
    for n in range(1000):
        tree.nested(name(n), name(n + 5000))
        tree.over(name(n + 20_000))
    assert len(tree) <= 10 and len(tree._over) <= 5
    assert tree.over(name(5999)) == [name(5999), name(999)], "the newest are still there"
    assert tree.over(name(5000)) == [name(5000)], "the oldest go with their root"


def releases():
    sent = []
    made = CallerReleases(lambda actor, frame: sent.append((actor, frame)) or True)
    made.created(b"A")
    return made, sent


def test_actors_are_told_when_all_is_over():
    made, sent = releases()
    made.reported(1, CallersDone(b"", b"", name(2) + name(1)))
    assert not sent
    made.reported(2, CallersDone(name(1)))  # of another job, whose names are others'
    sent.clear()
    made.reported(1, CallersDone(name(1)))
    assert [frame.callers for _, frame in sent] == [name(1) + name(2)]


def test_jobs_that_are_over_are_forgotten():
    made, sent = releases()
    made.reported(1, CallersDone(b"", b"", name(2) + name(1)))
    made.job_over(1)
    made.reported(1, CallersDone(name(1)))
    assert [frame.callers for _, frame in sent] == [name(1)]


def test_without_exactly_once_actors_nothing_is_kept():
    made = CallerReleases(lambda actor, frame: True)
    made.reported(1, CallersDone(name(1), b"", name(2) + name(1)))
    assert not made._trees
