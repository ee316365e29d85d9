"""Exactly-once work that goes on in another session: all was killed at once, and the driver is run again."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

import ftray as ray
from ftray import _restored_handles
from ftray.actor import _Meta, _rebuild_handle

PROGRAM = """
import os, signal, sys
import ftray as ray
from ftray.checkpoint import readonly

store, run, late = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "late"

@ray.remote(num_cpus=0)
class Plain:
    def ping(self):
        return "pong"

@ray.remote(num_cpus=0)
class Account(ray.Checkpointable, store=store, exactly_once=True):
    def __init__(self):
        self.balance = 100

    def add(self, amount, driver=None):
        if driver is not None and run == 0:
            os.kill(driver, signal.SIGKILL)  # and with it ends all that it has started
            signal.pause()
        self.balance += amount
        return self.balance

    @readonly
    def read(self):
        return self.balance

@ray.remote(num_cpus=0)
class Bank(ray.Checkpointable, store=store, exactly_once=True):
    def move(self, source, target, amount, driver):
        ray.get(source.add.remote(-amount))
        return ray.get(target["account"].add.remote(amount, driver))

    def greet(self, other):
        return ray.get(other.ping.remote())

ray.init(num_cpus=1, address="local", log_to_driver=False, job_key="transfers", namespace="bank")
if late:
    bank = Bank.options(name="bank").remote()
first = Account.options(name="first").remote()
second = Account.remote()  # without a name it is found by its place in the program
plain = Plain.remote()
if not late:
    bank = Bank.options(name="bank").remote()
print("greeted", ray.get(bank.greet.remote(plain)), flush=True)
path = os.path.join(store, "first driver")  # the second one gives its number as well: the same calls
if run == 0:
    with open(path, "w") as file:
        file.write(str(os.getpid()))
moved = ray.get(bank.move.remote(first, {"account": second}, 30, int(open(path).read())))
print("moved", moved, "balances", ray.get([first.read.remote(), second.read.remote()]), flush=True)
"""


@pytest.mark.parametrize("order", ["early", "late"])
def test_a_method_that_had_begun_goes_on_with_the_actors_of_the_next_session(tmp_path, order):
    """The handles in its arguments name actors of the session that has ended; those in their places answer.

    Both runs make the same calls, although a pickled handle says where its actor is. "late": the actor that
    goes on is there before those that it calls.
    """
    store = tmp_path / "store"
    store.mkdir()

    def run(number):
        command = [sys.executable, "-c", PROGRAM, str(store), str(number), order]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    killed = run(0)
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "greeted pong\n"), killed.stderr
    done = run(1)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "greeted pong\nmoved 130 balances [70, 130]\n"


@pytest.mark.usefixtures("runtime")
def test_a_handle_of_an_actor_that_nobody_makes_again_says_so(monkeypatch):
    monkeypatch.setattr(_restored_handles, "WAIT_S", 0.05)
    place = bytes(16) + b"another node".ljust(28) + b"\xff" * 8 + b"actor".ljust(20, b"\0") + bytes(28)
    handle = _rebuild_handle(place, _Meta("Gone", {"ping": ({}, None)}, 0, -1, key=b"k" * 16))
    assert isinstance(handle, ray.actor.ActorHandle)
    with pytest.raises(ray.exceptions.ActorDiedError, match="of Gone is of an earlier session"):
        ray.get(handle.ping.remote(), timeout=60)
    with pytest.raises(AttributeError, match="no method 'pong'"):
        _ = handle.pong


def test_what_is_no_place_of_an_actor_is_refused():
    with pytest.raises(ValueError, match="not the pickle of an actor handle"):
        _rebuild_handle(b"short", _Meta("Gone", {}, 0, -1))


RETRIED = """
import os, signal, sys
import ftray as ray

store, run = sys.argv[1], int(sys.argv[2])

@ray.remote(num_cpus=0)
class Tally(ray.Checkpointable, store=store, exactly_once=True, checkpoint_key="tally"):
    def __init__(self):
        self.n = 0

    def add(self):
        self.n += 1
        return self.n

@ray.remote(num_cpus=0)
class Hands:
    def add(self, tally):
        return ray.get(tally.add.remote())

@ray.remote(max_retries=1)
def inner(tally, hands):
    return [ray.get(tally.add.remote()), ray.get(hands.add.remote(tally))]

@ray.remote(max_retries=1)
def twice(tally, hands):
    added = [ray.get(tally.add.remote()), *ray.get(inner.remote(tally, hands))]
    died = os.path.join(store, "died")
    if not os.path.exists(died):
        open(died, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return [*added, ray.get(tally.add.remote())]

ray.init(num_cpus=2, address="local", log_to_driver=False, job_key="nightly", namespace="tallies")
tally = Tally.remote()
first = ray.get(tally.add.remote())
print(first, ray.get(twice.remote(tally, Hands.remote())), ray.get(tally.add.remote()), flush=True)
if run < 2:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_first_execution_in_a_later_run_is_newer_than_a_second_one_in_an_earlier(tmp_path):
    """The task was executed twice by the first run, and is by each later one only once."""
    store = tmp_path / "store"
    store.mkdir()
    for number in range(3):
        program = [sys.executable, "-c", RETRIED, str(store), str(number)]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60)
        assert done.returncode == (0 if number == 2 else -signal.SIGKILL), done.stderr
        assert done.stdout.split("\n")[0] == "1 [2, 3, 4, 5] 6", done.stderr
