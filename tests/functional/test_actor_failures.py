"""Actors that die: what callers see, restarts, retries of calls in their order."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

import ftray as ray
from tests.helpers.processes import WAYS_TO_DIE, crash, wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")

every_way = pytest.mark.parametrize("how", WAYS_TO_DIE)
ActorError = ray.exceptions.RayActorError


@ray.remote
class Victim:
    def __init__(self, box=None, tally=None):
        self.incarnation = tally.bump() + 1 if tally else 1
        self.box = box
        self.calls = 0
        if box:
            box.post(["started", self.incarnation, os.getpid()])

    def pid(self):
        return os.getpid()

    def count(self):
        self.calls += 1
        return self.incarnation, self.calls

    def crash(self, how="sigkill"):
        crash(how)

    def crash_in_first(self, how, value):
        """Die in the first incarnation only."""
        if self.box:
            self.box.post(["call", self.incarnation, value])
        if self.incarnation == 1:
            crash(how)
        return self.incarnation, value

    def record(self, value):
        self.box.post(["call", self.incarnation, value])
        return self.incarnation, value

    def wait(self, door, box=None):
        if box:
            box.post(os.getpid())
        door.wait()
        return self.incarnation


@every_way
def test_death_fails_the_call_with_its_cause(how):
    actor = Victim.remote()
    pid = ray.get(actor.pid.remote())
    with pytest.raises(ActorError) as caught:
        ray.get(actor.crash.remote(how))
    assert isinstance(caught.value, ray.exceptions.ActorDiedError)
    text = str(caught.value)
    assert str(pid) in text
    assert re.search(rf"\b{WAYS_TO_DIE[how]}\b", text)
    assert str(time.gmtime().tm_year) in text or re.search(r"\d\d:\d\d:\d\d", text)
    assert "Victim" in text


def test_calls_in_flight_and_later_ones_all_fail(gate):
    actor = Victim.remote()
    pid = ray.get(actor.pid.remote())
    refs = [actor.wait.remote(gate), *(actor.count.remote() for _ in range(100))]
    os.kill(pid, signal.SIGKILL)
    for ref in refs:
        with pytest.raises(ActorError):
            ray.get(ref)
    for _ in range(3):
        with pytest.raises(ray.exceptions.ActorDiedError):
            ray.get(actor.count.remote())


def test_results_from_before_the_death_stay():
    @ray.remote
    class Producer:
        def small(self):
            return "small"

        def large(self):
            return b"x" * 1_000_000

        def crash(self):
            crash("sigkill")

    actor = Producer.remote()
    refs = [actor.small.remote(), actor.large.remote()]
    ray.wait(refs, num_returns=2)
    with pytest.raises(ActorError):
        ray.get(actor.crash.remote())
    small, large = ray.get(refs)
    assert (small, len(large)) == ("small", 1_000_000)


def test_every_holder_of_a_handle_learns_of_the_death(mailbox):
    @ray.remote
    def observe(handle, box):
        assert ray.get(handle.count.remote())
        box.post("ready")
        try:
            while True:
                ray.get(handle.count.remote())
        except ray.exceptions.ActorDiedError as error:
            return str(error)

    actor = Victim.remote()
    pid = ray.get(actor.pid.remote())
    refs = [observe.remote(actor, mailbox) for _ in range(2)]
    [mailbox.take() for _ in refs]
    os.kill(pid, signal.SIGKILL)
    assert all(str(pid) in text for text in ray.get(refs))


# -- restarts


def call_until_it_answers(call):
    """Call an actor that may be restarting; an unavailable one raises, a dead one fails the test."""

    def attempt():
        try:
            return ray.get(call())
        except ray.exceptions.ActorUnavailableError:
            return None

    return eventually(attempt, "the actor answers")


@every_way
def test_restarted_actor_begins_anew_and_serves_later_calls(how, tally):
    actor = Victim.options(max_restarts=1).remote(None, tally)
    assert ray.get([actor.count.remote(), actor.count.remote()]) == [(1, 1), (1, 2)]
    with pytest.raises(ActorError):
        ray.get(actor.crash.remote(how))
    assert call_until_it_answers(actor.count.remote) == (2, 1)


def test_call_in_flight_at_a_restart_without_retries_is_unavailable(tally, mailbox, gate):
    actor = Victim.options(max_restarts=1).remote(None, tally)
    ref = actor.wait.remote(gate, mailbox)
    os.kill(mailbox.take(), signal.SIGKILL)
    with pytest.raises(ray.exceptions.ActorUnavailableError):
        ray.get(ref)
    gate.open()


def test_the_number_of_restarts_is_bounded(tally):
    actor = Victim.options(max_restarts=2, max_task_retries=-1).remote(None, tally)
    for incarnation in (1, 2, 3):
        assert ray.get(actor.count.remote())[0] == incarnation
        pid = ray.get(actor.pid.remote())
        os.kill(pid, signal.SIGKILL)
        wait_ended([pid])
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(actor.count.remote())
    assert tally.count == 3


@pytest.mark.limit(120)
def test_unlimited_restarts(tally):
    actor = Victim.options(max_restarts=-1, max_task_retries=-1).remote(None, tally)
    for incarnation in range(1, 9):
        assert ray.get(actor.count.remote())[0] == incarnation
        os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
    assert ray.get(actor.count.remote())[0] >= 8


@every_way
def test_retried_call_runs_again_in_the_next_incarnation(how, tally):
    actor = Victim.options(max_restarts=1, max_task_retries=1).remote(None, tally)
    assert ray.get(actor.crash_in_first.remote(how, "v")) == (2, "v")


def test_retried_calls_keep_their_order(tally, mailbox):
    actor = Victim.options(max_restarts=1, max_task_retries=1).remote(mailbox, tally)
    refs = [actor.record.remote(i) for i in range(5)]
    refs.append(actor.crash_in_first.remote("sigkill", 5))
    refs += [actor.record.remote(i) for i in range(6, 50)]
    results = ray.get(refs)
    assert [value for _, value in results] == list(range(50))
    calls = [tuple(entry[1:]) for entry in mailbox.take_all() if entry[0] == "call"]
    second = [value for incarnation, value in calls if incarnation == 2]
    assert [value for incarnation, value in calls if incarnation == 1] == list(range(6))
    # What was answered before the crash need not run again; the rest runs in order and without gaps.
    assert second == list(range(second[0], 50)) and second[0] <= 5
    assert results[5:] == [(2, value) for value in range(5, 50)]


def test_task_retries_are_bounded(tally, mailbox):
    @ray.remote(max_restarts=-1, max_task_retries=2)
    class Always:
        def crash(self, box):
            box.post("run")
            crash("exit")

    actor = Always.remote()
    with pytest.raises(ActorError):
        ray.get(actor.crash.remote(mailbox))
    assert len(mailbox.take_all()) == 3


def test_max_task_retries_of_one_call(tally):
    actor = Victim.options(max_restarts=1).remote(None, tally)
    assert ray.get(actor.crash_in_first.options(max_task_retries=1).remote("exit", 1)) == (2, 1)


def test_constructor_arguments_are_kept_for_the_restart(tally):
    @ray.remote(max_restarts=1, max_task_retries=1)
    class Holder:
        def __init__(self, plain, large):
            self.data = (plain, len(large))

        def get(self, counter):
            if counter.bump() == 0:
                crash("sigkill")
            return self.data

    actor = Holder.remote({"a": 1}, ray.put(b"x" * 500_000))
    assert ray.get(actor.get.remote(tally)) == ({"a": 1}, 500_000)


def test_was_reconstructed_is_told_in_the_context(tally):
    @ray.remote(max_restarts=1, max_task_retries=1)
    class Aware:
        def ask(self, counter):
            if counter.bump() == 0:
                assert not ray.get_runtime_context().was_current_actor_reconstructed
                crash("sigkill")
            return ray.get_runtime_context().was_current_actor_reconstructed

    assert ray.get(Aware.remote().ask.remote(tally)) is True


def test_restart_keeps_name_and_handles(tally):
    actor = Victim.options(max_restarts=1, max_task_retries=1, name="restarting").remote(None, tally)
    assert ray.get(actor.crash_in_first.remote("exit", 0)) == (2, 0)
    assert ray.get(ray.get_actor("restarting").count.remote()) == (2, 1)


# -- kill and exit


def test_kill_ends_the_process_and_later_calls():
    actor = Victim.options(max_restarts=-1).remote()
    pid = ray.get(actor.pid.remote())
    ray.kill(actor)
    wait_ended([pid])
    with pytest.raises(ray.exceptions.ActorDiedError) as caught:
        ray.get(actor.count.remote())
    assert "kill" in str(caught.value)


def test_kill_without_no_restart_restarts(tally):
    actor = Victim.options(max_restarts=1, max_task_retries=1).remote(None, tally)
    pid = ray.get(actor.pid.remote())
    ray.kill(actor, no_restart=False)
    wait_ended([pid])
    assert ray.get(actor.count.remote()) == (2, 1)


def test_kill_of_an_actor_that_is_not_ready(gate, mailbox):
    @ray.remote
    class Slow:
        def __init__(self, box, door):
            box.post(os.getpid())
            door.wait()

        def call(self):
            return 1

    actor = Slow.remote(mailbox, gate)
    ref = actor.call.remote()
    pid = mailbox.take()
    ray.kill(actor)
    wait_ended([pid])
    with pytest.raises(ActorError):
        ray.get(ref)


def test_kill_twice_is_no_error():
    actor = Victim.remote()
    ray.get(actor.pid.remote())
    ray.kill(actor)
    ray.kill(actor)
    with pytest.raises(ActorError):
        ray.get(actor.count.remote())


@pytest.mark.parametrize("wrong", [1, "name", None, Victim])
def test_kill_of_something_else(wrong):
    with pytest.raises((TypeError, ValueError)):
        ray.kill(wrong)


def test_exit_actor_finishes_the_actor_and_is_not_restarted(tally, mailbox):
    @ray.remote(max_restarts=-1, max_task_retries=-1)
    class Leaver:
        def __init__(self, counter):
            counter.bump()

        def pid(self):
            return os.getpid()

        def leave(self):
            ray.actor.exit_actor()

        def call(self):
            return 1

    actor = Leaver.remote(tally)
    pid = ray.get(actor.pid.remote())
    with pytest.raises(ActorError):
        ray.get(actor.leave.remote())
    wait_ended([pid])
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(actor.call.remote())
    assert tally.count == 1


def test_exit_actor_of_an_async_actor():
    @ray.remote
    class Leaver:
        async def pid(self):
            return os.getpid()

        async def leave(self):
            ray.actor.exit_actor()

    actor = Leaver.remote()
    pid = ray.get(actor.pid.remote())
    with pytest.raises(ActorError):
        ray.get(actor.leave.remote())
    wait_ended([pid])


def test_exit_actor_outside_an_actor():
    with pytest.raises(TypeError, match="actor"):
        ray.actor.exit_actor()


# -- constructors that fail


def test_failing_constructor_fails_every_call_with_its_error(tally):
    @ray.remote(max_restarts=3)
    class Broken:
        def __init__(self, counter):
            counter.bump()
            raise ValueError("broken at birth")

        def call(self):
            return 1

    actor = Broken.remote(tally)
    for _ in range(2):
        with pytest.raises(ray.exceptions.ActorDiedError) as caught:
            ray.get(actor.call.remote())
        assert "broken at birth" in str(caught.value)
    assert tally.count == 1


def test_constructor_that_crashes_is_restarted(tally):
    @ray.remote(max_restarts=2, max_task_retries=-1)
    class Shaky:
        def __init__(self, counter):
            self.attempt = counter.bump()
            if self.attempt < 2:
                crash("sigkill")

        def get(self):
            return self.attempt

    assert ray.get(Shaky.remote(tally).get.remote()) == 2


def test_constructor_that_always_crashes_ends_in_an_error(tally):
    @ray.remote(max_restarts=1)
    class Doomed:
        def __init__(self, counter):
            counter.bump()
            crash("exit")

        def get(self):
            return 1

    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(Doomed.remote(tally).get.remote())
    assert tally.count == 2


def test_constructor_argument_that_fails():
    @ray.remote
    def fail():
        raise ValueError("no argument")

    actor = Victim.remote(fail.remote())
    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.get(actor.count.remote())
    assert "no argument" in str(caught.value)


# -- the creator goes


def test_actor_of_a_dead_owner_dies(mailbox):
    @ray.remote(max_retries=0)
    def make_and_crash(box):
        owned = Victim.remote()
        box.post(ray.get(owned.pid.remote()))
        crash("sigkill")

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(make_and_crash.remote(mailbox))
    wait_ended([mailbox.take()])
