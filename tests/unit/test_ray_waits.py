"""Circles of methods that wait for each other on Ray (`ftray._ray.host_waits`); the table is a dict."""

from __future__ import annotations

import random

import pytest

from ftray._ray import host_waits
from ftray._ray.host_waits import CONFIRMATIONS, Row, Waits


class Shared:
    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}

    def get(self, actor: str) -> bytes | None:
        return self.rows.get(actor)

    def put(self, actor: str, row: bytes) -> None:
        self.rows[actor] = row

    def remove(self, actor: str) -> None:
        self.rows.pop(actor, None)


Circle = list[tuple[str, Row]]


class Actors:
    """Each an incarnation that waits for others, by letters."""

    def __init__(self, **edges: str) -> None:
        self.table = Shared()
        self.edges = edges
        self.waits = {name: Waits(name, f"process of {name}", name.upper(), self.table) for name in edges}
        self.numbers = dict.fromkeys(edges, 1)

    def poll(self, name: str, quiet: bool = True) -> Circle | None:
        return self.waits[name].polled(self.numbers[name], "m", self.edges[name], quiet)

    def rounds(self, number: int = 4 * CONFIRMATIONS) -> list[tuple[str, str]]:
        """Who hears of which circle; the wait of one who does is over, and it does not wait again."""
        found = []
        living = list(self.edges)
        for _ in range(number):
            for name in list(living):
                circle = self.poll(name)
                if circle is not None:
                    assert circle[0][0] == name
                    found.append((name, "".join(actor for actor, _ in circle)))
                    living.remove(name)
        return found


@pytest.mark.parametrize(
    ("edges", "found"),
    [
        ({"a": "b", "b": "a"}, [("a", "ab")]),
        ({"b": "c", "c": "a", "a": "b"}, [("a", "abc")]),
        ({"a": "b", "b": "c"}, []),
        ({"a": "bc", "b": "c"}, []),
        ({"a": "a"}, [("a", "a")]),
        ({"a": "b", "b": "a", "c": "d", "d": "c"}, [("a", "ab"), ("c", "cd")]),
        ({"x": "a", "a": "b", "b": "a"}, [("a", "ab")]),
        ({"a": "xb", "b": "c", "c": "a", "x": "y"}, [("a", "abc")]),
    ],
)
def test_one_of_each_circle_hears_of_it(edges: dict[str, str], found: list[tuple[str, str]]) -> None:
    assert Actors(**edges).rounds() == found


@pytest.mark.parametrize("seed", range(200))
def test_of_any_graph_no_circle_is_left(seed: int) -> None:
    draw = random.Random(seed)
    names = "abcdef"
    edges = {name: "".join(draw.sample(names, draw.randint(1, 3))) for name in names}
    actors = Actors(**edges)
    gone = {name for name, _ in actors.rounds(60 * CONFIRMATIONS)}
    left = {name: set(edges[name]) - gone for name in names if name not in gone}
    while left:  # whoever waits for nobody that waits can go on
        free = {name for name, targets in left.items() if not targets & set(left)}
        assert free, f"a circle is left among {left}"
        left = {name: targets for name, targets in left.items() if name not in free}


def test_each_member_confirms_the_same_wait() -> None:
    actors = Actors(a="b", b="a")
    for _ in range(CONFIRMATIONS):
        assert actors.poll("b") is None
    for _ in range(3 * CONFIRMATIONS):  # the other one may have died, or gone on
        assert actors.poll("a") is None
    for _ in range(CONFIRMATIONS):
        actors.numbers["b"] += 1  # another wait each time
        assert actors.poll("b") is None
        assert actors.poll("a") is None


def test_answers_that_are_not_durable_yet_confirm_nothing() -> None:
    actors = Actors(a="b", b="a")
    for _ in range(3 * CONFIRMATIONS):
        assert actors.poll("b", quiet=False) is None
        assert actors.poll("a") is None
    assert actors.rounds() == [("a", "ab")]


def test_another_incarnation_waits_anew() -> None:
    actors = Actors(a="b", b="a")
    for _ in range(CONFIRMATIONS):
        assert actors.poll("a") is None
        assert actors.poll("b") is None
    actors.waits["b"] = Waits("b", "its next process", "B", actors.table)
    for _ in range(CONFIRMATIONS):
        assert actors.poll("b") is None
        assert actors.poll("a") is None
    assert actors.rounds() == [("a", "ab")]


def test_a_wait_that_is_over_leaves_no_row() -> None:
    actors = Actors(a="b", b="a")
    actors.poll("a")
    actors.waits["a"].over()
    actors.waits["b"].over()
    assert actors.table.rows == {}


def test_other_processes_have_no_waits() -> None:
    with pytest.raises(ValueError, match="processes of exactly-once actors"):
        host_waits.actor_waits(1, "m", [b"x"], True)
