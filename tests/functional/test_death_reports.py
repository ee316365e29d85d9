"""What a process remembers of the dead: bounded, and never less than it still needs.

The processes here are attached by hand to a node that is the test: it tells them of as many deaths as it
likes.
"""

from __future__ import annotations

import pytest

from tests.helpers.members import died
from tests.helpers.sync import eventually

KEPT = 1024  # DEAD_KEPT of _core/dispatch.pyx


def hear_of_deaths(one, worker_ids, text="was killed"):
    one.hear(*(died(worker_id, text) for worker_id in worker_ids))


def strangers(n, kind):
    return [bytes([kind]) + i.to_bytes(8, "little") + bytes(19) for i in range(n)]


def test_reports_are_bounded_and_keep_what_lost_objects_need(member):
    one = member(1)
    for owner in (101, 102):
        one(f"borrow('of{owner}', f'{{{owner}:056x}}', {owner})")
    hear_of_deaths(one, [bytes([101]) * 28], "was killed by SIGKILL, of all things")
    hear_of_deaths(one, strangers(10_000, 200))
    hear_of_deaths(one, [bytes([102]) * 28], "was the last to go")
    assert KEPT <= one("count('death_reports')") <= 2 * KEPT + 2
    assert "of all things" in one("get('of101')")
    assert "was the last to go" in one("get('of102')")
    one("refs.clear()")
    hear_of_deaths(one, strangers(3 * KEPT, 201))
    hear_of_deaths(one, [bytes([103]) * 28], "left after all others")
    assert KEPT <= one("count('death_reports')") <= 2 * KEPT + 2
    one("borrow('of103', f'{5:056x}', 103)")
    assert "left after all others" in one("get('of103')")


def test_an_owner_whose_death_is_forgotten_is_dead(member):
    one = member(1)
    hear_of_deaths(one, [bytes([101]) * 28, *strangers(3 * KEPT, 200)])
    one("borrow('late', f'{5:056x}', 101)")
    assert "OwnerDiedError" in one("get('late')")


def test_the_report_of_a_death_that_is_forgotten_is_asked_for(member):
    one = member(1)
    hear_of_deaths(one, [bytes([101]) * 28, *strangers(3 * KEPT, 200)])
    late = bytes([101]) * 28
    one.remembers[late] = died(late, "was killed by SIGKILL")
    one("borrow('late', f'{5:056x}', 101)")
    one("borrow('later', f'{6:056x}', 101)")
    assert "SIGKILL" in one("get('late')") and "SIGKILL" in one("get('later')")


def test_messages_are_waited_for_as_long_as_asked_for(member):
    one = member(1)
    assert one("_core.inbox_next(0.01)") == [] == one("_core.inbox_next(0)")
    hear_of_deaths(one, [])


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "dead"])
def test_nobody_borrows_in_the_name_of_a_process_whose_death_is_forgotten(member, dead):
    """A relay that has not heard of it yet hands a ref on; alive or dead is told by the process's socket."""
    owner, relay, receiver = (member(slot) for slot in (1, 2, 3))
    x = owner("put('x', 5)")
    relay(f"borrow('x', '{x}', 1)")
    box = relay("put('box', [refs['x']])")
    hear_of_deaths(owner, ([receiver.id] if dead else []) + strangers(4 * KEPT, 200))
    if dead:
        receiver.socket.unlink()
    receiver(f"borrow('box', '{box}', 2)")
    assert "ObjectRef" in receiver("get('box')")
    relay("refs.clear()")
    owner("refs.clear()")
    if dead:
        eventually(lambda: owner("count('entries')") == 0)
    else:
        assert owner("count('entries')") == 1
        assert receiver("refs.update(x=values['box'][0]) or get('x')") == "5"
        receiver("refs.clear() or values.clear()")
        eventually(lambda: owner("count('entries')") == 0)
