"""Replies of callers that have ended are forgotten at every depth, not before they can never run again."""

from __future__ import annotations

import os
import signal

import pytest

import ftray as ray
from ftray import checkpoint
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")
LONG_S = 60
CALLERS = int(os.environ.get("FTRAY_TEST_CALLERS", "150"))
"""With FTRAY_TEST_CALLERS=1000, FTRAY_TEST_CALLS=1000 and some minutes there are a million calls."""
CALLS = int(os.environ.get("FTRAY_TEST_CALLS", "10"))


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def make_count(store, **options):
    class Count(ray.Checkpointable, exactly_once=True, store=store, **options):
        def __init__(self):
            self.n = 0

        def add(self, k=1):
            self.n += k
            return self.n

        def fan_out(self, other, depth):
            self.n += 1
            return ray.get(below.remote(other, depth, 1))

        @checkpoint.readonly
        def value(self):
            return self.n

        @checkpoint.readonly
        def ledger(self):
            return checkpoint.actor.sessions[id(self)].status()["ledger"]

    return ray.remote(Count)


@ray.remote
def below(actor, depth, calls=1):
    """Calls the actor, and has a task of its own do the same, so deep."""
    if depth:
        ray.get(below.options(num_cpus=0).remote(actor, depth - 1, calls))
    return ray.get([actor.add.remote() for _ in range(calls)])[-1]


def known(actor):
    return ray.get(actor.ledger.remote(), timeout=LONG_S)["callers"]


def test_tasks_of_tasks_are_forgotten(store):
    actor = make_count(store).remote()
    ray.get([below.remote(actor, depth) for depth in range(4)], timeout=LONG_S)
    assert ray.get(actor.value.remote(), timeout=LONG_S) == 1 + 2 + 3 + 4
    eventually(lambda: known(actor) == 0, timeout_s=LONG_S)
    assert ray.get(actor.ledger.remote())["released"] == 0, "nobody was executed twice: no name need stay"


def test_tasks_of_methods_are_forgotten(store):
    actor, other = make_count(store).remote(), make_count(store).remote()
    ray.get([actor.fan_out.remote(other, 2) for _ in range(3)], timeout=LONG_S)
    assert ray.get(other.value.remote(), timeout=LONG_S) == 9
    eventually(lambda: known(other) == 0, timeout_s=LONG_S)


def test_an_inner_one_stays_while_the_outer_one_may_run_again(store, tmp_path, mailbox, gate):
    """The outer task dies after the inner one; its next attempt makes that again, and gets its reply."""
    actor = make_count(store).remote()
    died = tmp_path / "died"

    @ray.remote(max_retries=3)
    def outer(actor, died, mailbox, gate):
        got = ray.get(below.options(num_cpus=0).remote(actor, 1))
        if not os.path.exists(died):
            mailbox.post()
            gate.wait()
            open(died, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return got

    ref = outer.remote(actor, str(died), mailbox, gate)
    mailbox.take()
    # What has ended by now is reported before one that ends later, and that one is forgotten.
    ray.get(below.options(num_cpus=0).remote(actor, 0), timeout=LONG_S)
    eventually(lambda: known(actor) == 2, timeout_s=LONG_S)
    gate.open()
    assert ray.get(ref, timeout=LONG_S) == 2
    assert ray.get(actor.value.remote(), timeout=LONG_S) == 3, "each call once, though two tasks ran twice"
    eventually(lambda: known(actor) == 0, timeout_s=LONG_S)


def test_a_value_that_can_be_made_again_keeps_its_callers(store):
    """Lineage: the inner task may run again as long as its large value is wanted."""
    actor = make_count(store).remote()

    @ray.remote
    def large(actor):
        ray.get(actor.add.remote())
        return bytes(200_000)

    ref = large.remote(actor)
    assert len(ray.get(ref, timeout=LONG_S)) == 200_000
    assert known(actor) == 1
    del ref
    eventually(lambda: known(actor) == 0, timeout_s=LONG_S)


def test_many_short_lived_callers_leave_a_bounded_ledger(store):
    """Short here; see `CALLERS` for the long version."""
    actor = make_count(store, every=100_000, reply_bound_calls=max(1000, 4 * CALLS)).remote()
    most = 0
    open_, left = [], CALLERS
    while left or open_:
        while left and len(open_) < 8:
            left -= 1
            open_.append(below.options(num_cpus=0.25).remote(actor, left % 2, CALLS // (1 + left % 2)))
        done, open_ = ray.wait(open_, timeout=LONG_S)
        assert done
        ray.get(done)
        most = max(most, known(actor))
    assert ray.get(actor.value.remote()) == CALLERS * CALLS
    assert most <= 100, "those that run, and reports on their way, and not all that ever ran"
    eventually(lambda: known(actor) == 0, timeout_s=LONG_S)
