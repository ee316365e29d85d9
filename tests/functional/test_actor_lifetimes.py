"""How long actors live: handles and owners, detached ones, names, kill, what restarts keep, what deaths say.

The sections on fault tolerance follow the order in which users meet them: handle the error and make a new
actor, have it restarted, have its calls retried.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time

import pytest

import ftray as ray
from ftray.util import list_named_actors
from tests.helpers.processes import wait_fd
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")


@ray.remote
class Keeper:
    def __init__(self, value=None):
        self.value = value
        self.kept = []

    def get(self):
        return self.value

    def pid(self):
        return os.getpid()

    def keep(self, things):
        self.kept.append(things)

    def drop(self):
        self.kept.clear()

    def ask(self):
        return ray.get([thing.get.remote() for things in self.kept for thing in things])

    def wait(self, box, door):
        box.post("waits")
        door.wait()
        return self.value

    def die(self):
        os._exit(7)

    def reconstructed(self):
        return ray.get_runtime_context().was_current_actor_reconstructed


def gone(pid):
    return eventually(lambda: not os.path.exists(f"/proc/{pid}"), f"process {pid} ends")


# --- handles ---------------------------------------------------------------------------------------------


def test_a_handle_in_another_actor_or_inside_an_object_keeps_it_alive():
    holder, kept = Keeper.remote(), Keeper.remote("kept")
    pid = ray.get(kept.pid.remote())
    ray.get(holder.keep.remote([kept]))
    box = ray.put({"deep": [kept]})
    del kept
    assert ray.get(holder.ask.remote()) == ["kept"]
    ray.get(holder.drop.remote())
    again = ray.get(box)["deep"][0]
    assert ray.get(again.get.remote()) == "kept"
    del again, box
    gone(pid)


def test_an_actor_dies_after_its_queued_calls_when_its_last_handle_goes(mailbox, gate):
    actor = Keeper.remote("value")
    pid = ray.get(actor.pid.remote())
    refs = [actor.wait.remote(mailbox, gate) for _ in range(5)]
    del actor
    mailbox.take()
    gate.open()
    assert ray.get(refs) == ["value"] * 5
    gone(pid)


def test_two_actors_that_hold_each_other_end_with_their_owner_or_kill():
    a, b = Keeper.remote("a"), Keeper.remote("b")
    pids = ray.get([a.pid.remote(), b.pid.remote()])
    ray.get([a.keep.remote([b]), b.keep.remote([a])])
    ray.kill(a)
    del a, b
    for pid in pids:
        gone(pid)


def test_kill_through_borrowed_and_named_handles():
    @ray.remote(num_cpus=0)
    def killer(handles):
        ray.kill(handles[0])

    actor = Keeper.remote()
    pid = ray.get(actor.pid.remote())
    ray.get(killer.remote([actor]))
    gone(pid)
    with pytest.raises(ray.exceptions.ActorDiedError, match="kill"):
        ray.get(actor.get.remote())

    named = Keeper.options(name="victim").remote()
    pid = ray.get(named.pid.remote())
    ray.kill(ray.get_actor("victim"))
    gone(pid)
    with pytest.raises(ray.exceptions.ActorDiedError, match="kill"):
        ray.get(named.get.remote())


def test_kill_of_an_actor_whose_constructor_never_returns(mailbox, gate):
    @ray.remote(max_restarts=-1)
    class Never:
        def __init__(self, box, door):
            box.post(os.getpid())
            door.wait()

        def f(self):
            return 1

    actor = Never.options(name="never").remote(mailbox, gate)
    ref = actor.f.remote()
    pid = mailbox.take()
    ray.kill(actor)
    with pytest.raises(ray.exceptions.ActorDiedError, match="kill"):
        ray.get(ref, timeout=20)
    gone(pid)
    assert "never" not in list_named_actors()


# --- names -----------------------------------------------------------------------------------------------


def test_names_are_listed_in_their_namespaces():
    here = Keeper.options(name="one").remote()
    there = Keeper.options(name="two", namespace="other").remote()
    ray.get([here.get.remote(), there.get.remote()])
    assert list_named_actors() == ["one"]
    own = ray.get_runtime_context().namespace
    assert {"name": "two", "namespace": "other"} in list_named_actors(all_namespaces=True)
    assert {"name": "one", "namespace": own} in list_named_actors(all_namespaces=True)
    with pytest.raises(TypeError, match="all_namespaces"):
        list_named_actors(1)


@pytest.mark.parametrize("how", ["kill", "crash", "exit", "handle"])
def test_a_name_is_free_as_soon_as_the_death_is_known(how):
    for i in range(5):
        actor = Keeper.options(name="again").remote(i)
        assert ray.get(actor.get.remote()) == i
        if how == "handle":
            pid = ray.get(actor.pid.remote())
            del actor
            gone(pid)
            eventually(lambda: list_named_actors() == [])
            continue
        if how == "kill":
            ray.kill(actor)
        elif how == "crash":
            actor.die.remote()
        else:
            actor.__ray_terminate__.remote()
        with pytest.raises(ray.exceptions.ActorDiedError):
            while True:  # until the word of the death is here
                ray.get(actor.get.remote())
        assert list_named_actors() == []


def test_get_if_exists_gets_the_restarted_one_and_makes_one_after_the_death():
    options = {"name": "shared", "get_if_exists": True, "max_restarts": 1}
    first = Keeper.options(**options).remote(1)
    pid = ray.get(first.pid.remote())
    ray.kill(first, no_restart=False)
    same = Keeper.options(**options).remote(2)
    assert same == first
    assert ray.get(same.get.remote()) == 1 and ray.get(same.pid.remote()) != pid
    ray.kill(same)
    with pytest.raises(ray.exceptions.ActorDiedError):
        while True:
            ray.get(first.get.remote())
    other = Keeper.options(**options).remote(3)
    assert other != first and ray.get(other.get.remote()) == 3


# --- detached --------------------------------------------------------------------------------------------

OWNER = """
    import os, sys
    import ftray as ray

    ray.init(address=sys.argv[1], namespace="detached")

    class Counter:
        def __init__(self, start, ref):
            self.n = start
            self.ref = ref

        def incr(self):
            self.n += 1
            return self.n, self.ref

        def pid(self):
            return os.getpid()

    plain = ray.remote(Counter).options(name="plain").remote(0, None)
    kept = ray.remote(Counter).options(name="kept", lifetime="detached", max_restarts=-1, max_task_retries=-1)
    kept = kept.remote(100, ray.put("by value"))
    tell("pids", ray.get([plain.pid.remote(), kept.pid.remote()]))
    await_word()
"""


@pytest.mark.runtime(num_cpus=3)  # one of its own: a second job is remembered
def test_a_detached_actor_outlives_the_driver_that_made_it(start_driver, shared_runtime):
    address = ray.init(ignore_reinit_error=True).address_info["address"]
    driver = start_driver(OWNER, args=[address], env={"FTRAY_TMPDIR": str(shared_runtime.base)})
    plain_pid, kept_pid = driver.expect("pids")
    kept = ray.get_actor("kept", "detached")
    assert ray.get(kept.incr.remote()) == (101, "by value")

    driver.process.kill()  # and its refs, classes and handles with it
    driver.process.wait()
    gone(plain_pid)
    assert ray.get(kept.incr.remote()) == (102, "by value")
    assert {"name": "kept", "namespace": "detached"} in list_named_actors(all_namespaces=True)
    assert {"name": "plain", "namespace": "detached"} not in list_named_actors(all_namespaces=True)

    os.kill(kept_pid, signal.SIGKILL)  # the restart needs nothing of the dead owner
    assert ray.get(kept.incr.remote(), timeout=20) == (101, "by value")

    @ray.remote(num_cpus=0)
    def elsewhere(handles):
        return ray.get(handles[0].incr.remote())

    assert ray.get(elsewhere.remote([kept]), timeout=20) == (102, "by value")
    del kept  # no handle is left, and it lives on
    again = ray.get_actor("kept", "detached")
    assert ray.get(again.incr.remote()) == (103, "by value")
    pid = ray.get(again.pid.remote())
    ray.kill(again)
    gone(pid)
    eventually(lambda: "kept" not in [item["name"] for item in list_named_actors(all_namespaces=True)])


@pytest.mark.parametrize("wrong, error", [("forever", ValueError), (1, TypeError), (True, TypeError)])
def test_wrong_lifetimes(wrong, error):
    with pytest.raises(error, match="lifetime"):
        Keeper.options(lifetime=wrong)


# --- fault tolerance: the error, and a new actor ---------------------------------------------------------


def test_errors_are_told_apart_and_a_new_actor_takes_over():
    @ray.remote
    class Unreliable:
        def __init__(self, seed):
            self.random = random.Random(seed)

        def read(self):
            dice = self.random.random()
            if dice < 0.3:
                return 2 / 0
            if dice < 0.6:
                sys.exit(1)
            return 2

    actor, seen, seed = Unreliable.remote(3), set(), 3
    while seen != {"value", "user's", "system's"}:
        try:
            assert ray.get(actor.read.remote()) == 2
            seen.add("value")
        except ZeroDivisionError:
            seen.add("user's")  # the actor lives
        except ray.exceptions.RayActorError as error:
            seen.add("system's")
            assert error.death.exit_code == 1 and error.actor_class == "Unreliable"
            seed += 1
            actor = Unreliable.remote(seed)


def test_a_controller_restores_its_workers_and_goes_on():
    @ray.remote
    class Worker:
        def __init__(self):
            self.state = 0

        def add(self, n):
            self.state += n
            return self.state

        def get_state(self):
            return self.state

        def load_state(self, state):
            self.state = state

    workers = [Worker.remote() for _ in range(3)]
    for step in range(4):
        states = ray.get([worker.get_state.remote() for worker in workers])
        if step == 2:
            ray.kill(workers[1])
        while True:
            refs = [worker.add.remote(1) for worker in workers]
            try:
                assert ray.get(refs) == [step + 1] * 3
                break
            except ray.exceptions.RayActorError:
                workers = [Worker.remote() for _ in workers]
                ray.get([w.load_state.remote(s) for w, s in zip(workers, states, strict=True)])


# --- fault tolerance: restarts and retries ---------------------------------------------------------------


def test_what_the_errors_say_of_a_death():
    before = time.time()
    actor = Keeper.options(max_restarts=2).remote()
    pids = []
    for incarnation in (1, 2, 3):
        pids.append(ray.get(actor.pid.remote()))
        expected = ray.exceptions.ActorDiedError if incarnation == 3 else ray.exceptions.ActorUnavailableError
        with pytest.raises(expected) as caught:
            ray.get(actor.die.remote())
        death = caught.value.death
        assert (death.pid, death.exit_code, death.signal) == (pids[-1], 7, None)
        assert death.incarnation == incarnation
        assert before - 1 <= death.unix_time <= time.time() + 1
        assert f"process {pids[-1]}" in str(caught.value) and "code 7" in str(caught.value)
        assert caught.value.actor_id == actor._actor_id.hex() and caught.value.actor_class == "Keeper"
    assert "restarted 2 of 2 times" in str(caught.value)
    with pytest.raises(ray.exceptions.ActorDiedError, match="restarted 2 of 2 times"):
        ray.get(actor.get.remote())


def test_a_signal_is_named():
    actor = Keeper.remote()
    os.kill(ray.get(actor.pid.remote()), signal.SIGKILL)
    with pytest.raises(ray.exceptions.ActorDiedError, match="SIGKILL") as caught:
        while True:
            ray.get(actor.get.remote())
    assert (caught.value.death.signal, caught.value.death.exit_code) == (signal.SIGKILL, None)


@pytest.mark.parametrize("retries, outcome", [(0, None), (1, None), (2, 2), (-1, 2)])
def test_max_task_retries_bounds_what_begins_again(retries, outcome, tally):
    @ray.remote(max_restarts=-1)
    class Dies:
        def f(self, count, deaths):
            attempt = count.bump()
            if attempt < deaths:
                os._exit(1)
            return ray.get_runtime_context().attempt_number

    actor = Dies.remote()
    ref = actor.f.options(max_task_retries=retries).remote(tally, 2)
    if outcome is None:
        with pytest.raises(ray.exceptions.ActorUnavailableError):
            ray.get(ref, timeout=20)
        assert tally.count == retries + 1
    else:
        assert ray.get(ref, timeout=20) == outcome
        assert tally.count == 3


def test_order_of_a_caller_is_kept_over_restarts():
    actor = Keeper.options(max_restarts=-1, max_task_retries=-1).remote()
    log = Keeper.remote()

    def note(self, other, i):
        ray.get(other.__ray_call__.remote(lambda them, value: them.kept.append(value), i))
        return i

    ray.get(actor.__ray_ready__.remote())
    refs = []
    for i in range(60):
        refs.append(actor.__ray_call__.remote(note, log, i))
        if i % 20 == 10:
            ray.kill(actor, no_restart=False)
    assert ray.get(refs, timeout=20) == list(range(60))
    noted = ray.get(log.__ray_call__.remote(lambda self: self.kept))
    first = list(dict.fromkeys(noted))  # a call that died with the process may have been noted twice
    assert first == list(range(60)) and noted == sorted(noted)
    assert ray.get(actor.reconstructed.remote()) and not ray.get(log.reconstructed.remote())


def test_constructor_arguments_are_kept_by_value():
    """Refs among them are resolved once: the restart needs neither them nor whoever made them."""

    @ray.remote(num_cpus=0)
    class Owner:
        def make(self):
            value = ray.put([1, 2, 3])
            return Keeper.options(max_restarts=-1, lifetime="detached", name="by-value").remote(value)

        def pid(self):
            return os.getpid()

    owner = Owner.remote()
    actor = ray.get(owner.make.remote())
    assert ray.get(actor.get.remote()) == [1, 2, 3]
    pid = ray.get(owner.pid.remote())
    pidfd = os.pidfd_open(pid)
    ray.kill(owner)
    assert wait_fd(pidfd, 20)
    os.close(pidfd)
    ray.kill(actor, no_restart=False)
    assert ray.get(actor.get.remote(), timeout=20) == [1, 2, 3]
    assert ray.get(actor.reconstructed.remote())
    ray.kill(actor)


def test_threads_of_one_process_share_its_order_and_its_limit():
    actor = Keeper.remote(1)
    seen = []

    def call():
        seen.extend(ray.get([actor.get.remote() for _ in range(50)]))

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 200
