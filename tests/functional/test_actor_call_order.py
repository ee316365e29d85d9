"""Calls reach a new incarnation in the order they were made in, in whatever order its caller hears of it.

The caller is attached by hand to a node that is the test, and the actor's processes read and answer nothing.
"""

from __future__ import annotations

import pytest

from ftray._node import frames
from ftray._node.actors import State
from tests.helpers.members import TASK_ID_BYTES, died

ACTOR = bytes(range(16))


def state(state, incarnation, process=None):
    """What the node says of the actor."""
    worker_id = process.id if process else bytes(28)
    return frames.ActorState(ACTOR, state, incarnation, worker_id, 0, 1, "", b"")


def tasks(refs):
    return [ref[: 2 * TASK_ID_BYTES] for ref in refs]


@pytest.mark.parametrize("death_first", [True, False], ids=["death-first", "state-first"])
def test_calls_of_the_dead_incarnation_come_before_later_ones(member, death_first):
    caller, first, second = member(1), member.silent(2), member.silent(3)
    early = caller(f"call({ACTOR.hex()!r}, 3)")
    caller.hear(state(State.ALIVE, 1, first))
    assert first.calls() == tasks(early)
    if death_first:
        caller.hear(died(first.id), state(State.RESTARTING, 2))
    else:
        caller.hear(state(State.ALIVE, 2, second))
    later = caller(f"call({ACTOR.hex()!r}, 3)")
    assert second.calls() == []
    caller.hear(state(State.ALIVE, 2, second) if death_first else died(first.id))
    assert second.calls() == tasks(early + later)
