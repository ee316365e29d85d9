"""Circles of waiting actors: found when they are real, never for waits that may still end."""

from __future__ import annotations

import random

import pytest

from ftray._node.waits import CONFIRMATIONS, WaitTable

A, B, C = b"A", b"B", b"C"


def poll(table, who, whom, number=1, quiet=True, process=None):
    return table.polled(who, process or ord(who), number, f"m{number}", [w.encode() for w in whom], quiet)


def rounds(table, *edges, n=CONFIRMATIONS + 2):
    """All poll in turns; the first circle that anybody is told."""
    for _ in range(n):
        for who, whom in edges:
            found = poll(table, who, whom)
            if found is not None:
                return who, [actor for actor, _ in found]
    return None


def test_two_that_wait_for_each_other():
    who, circle = rounds(WaitTable(), (A, "B"), (B, "A"))
    assert circle[0] == who and set(circle) == {A, B}


def test_three_in_a_row():
    who, circle = rounds(WaitTable(), (A, "B"), (B, "C"), (C, "A"))
    at = circle.index(A)
    assert circle[0] == who and circle[at:] + circle[:at] == [A, B, C]


def test_no_circle():
    assert rounds(WaitTable(), (A, "B"), (B, "C")) is None
    assert rounds(WaitTable(), (A, "BC"), (B, "C")) is None


def test_one_of_them_is_told_and_the_others_go_on():
    table = WaitTable()
    who, _ = rounds(table, (A, "B"), (B, "A"))
    other = B if who == A else A
    assert all(poll(table, other, "A" if other == B else "B") is None for _ in range(5))


def test_a_wait_that_has_ended_is_not_part_of_a_circle():
    """A's word that its wait is over is late: nothing that it said before counts for what B says after."""
    table = WaitTable()
    for _ in range(10):
        assert poll(table, A, "B") is None
    for _ in range(10):
        assert poll(table, B, "A") is None, "A has said nothing since B began to wait"
    table.over(A)
    assert poll(table, B, "A") is None


def test_each_has_to_confirm_the_same_wait():
    table = WaitTable()
    for number in range(10):
        assert poll(table, A, "B", number + 1) is None
        assert poll(table, B, "A") is None


def test_answers_that_still_have_to_leave():
    table = WaitTable()
    for _ in range(10):
        assert poll(table, A, "B") is None
        assert poll(table, B, "A", quiet=False) is None, "what it has answered A may end A's wait"
    assert rounds(table, (A, "B"), (B, "A")) is not None


@pytest.mark.parametrize("end", ["over", "process"])
def test_nothing_is_kept_of_what_has_ended(end):
    table = WaitTable()
    poll(table, A, "B"), poll(table, B, "A")
    for who in (A, B):
        table.over(who) if end == "over" else table.process_ended(ord(who))
    assert len(table) == 0 and not table._seen


def test_a_new_process_of_the_actor_waits_anew():
    table = WaitTable()
    poll(table, A, "B"), poll(table, B, "A"), poll(table, A, "B")
    for _ in range(CONFIRMATIONS):
        assert poll(table, A, "B", process=7) is None


def in_circle(waits, who):
    at, seen = who, set()
    while at in waits and at not in seen:
        seen.add(at)
        at = waits[at][1]
        if at == who:
            return True
    return False


@pytest.mark.parametrize("seed", range(30))
def test_against_a_reference(seed):
    """Actors poll in any order, and waits that can end do; that they have ended may be told late or never."""
    rng, table = random.Random(seed), WaitTable()
    actors = [bytes([65 + i]) for i in range(5)]
    waits, number, told = {}, 0, 0

    def polls(who):
        found = table.polled(who, 1, waits[who][0], "m", [waits[who][1]], True)
        if found is None:
            return 0
        circle = [actor for actor, _ in found]
        assert circle[0] == who
        assert all(waits[a][1] == circle[(i + 1) % len(circle)] for i, a in enumerate(circle))
        del waits[who]
        return 1

    for _ in range(3000):
        who = rng.choice(actors)
        if who not in waits and rng.random() < 0.2:
            number += 1
            waits[who] = (number, rng.choice([a for a in actors if a != who]))
        elif who in waits and rng.random() < 0.2 and not in_circle(waits, who):
            del waits[who]
            if rng.random() < 0.5:
                table.over(who)
        elif who in waits:
            told += polls(who)
    assert told
    for _ in range(20):  # whoever waits in a circle hears of it
        for who in list(waits):
            polls(who)
    assert not any(in_circle(waits, who) for who in waits)
