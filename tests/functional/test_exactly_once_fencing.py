"""Exactly-once actors that were stopped, replaced and go on: they neither commit nor answer, and end.

The key is taken over by another actor, so the node neither knows of a predecessor nor ends one: only the
store's fence is between the two.
"""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

import ftray as ray
from ftray import checkpoint
from tests.helpers.processes import send_signal, state_of, wait_ended
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")
LONG_S = 60


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def make_sync(store, **options):
    class Account(ray.Checkpointable, exactly_once=True, store=store, checkpoint_key="account", **options):
        def __init__(self):
            self.balance = 0

        def add(self, amount=1):
            self.balance += amount
            return self.balance

        def add_when(self, began, go, amount=100):
            with open(began, "w") as file:
                print(os.getpid(), file=file)
            eventually(lambda: os.path.exists(go), timeout_s=LONG_S)
            return self.add(amount)

        @checkpoint.readonly
        def read_when(self, began, go):
            seen = self.balance
            open(began, "w").close()
            eventually(lambda: os.path.exists(go), timeout_s=LONG_S)
            return seen

        @checkpoint.readonly
        def value(self):
            return self.balance

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    return ray.remote(Account)


def make_async(store, **options):
    class Account(ray.Checkpointable, exactly_once=True, store=store, checkpoint_key="account", **options):
        def __init__(self):
            self.balance = 0

        async def add(self, amount=1):
            self.balance += amount
            return self.balance

        async def add_when(self, began, go, amount=100):
            await until(began, go)
            self.balance += amount
            return self.balance

        async def hold_until_a_call_comes_again(self, began):
            """Calls that come meanwhile are accepted, and wait for their turn."""
            open(began, "w").close()
            ledger = checkpoint.actor.sessions[id(self)].exactly_once.ledger
            while not ledger.counters()["duplicates"]:
                await asyncio.sleep(0.01)

        @checkpoint.readonly
        async def read_when(self, began, go):
            seen = self.balance
            await until(began, go)
            return seen

        @checkpoint.readonly
        async def value(self):
            return self.balance

        @checkpoint.readonly
        async def pid(self):
            return os.getpid()

    return ray.remote(Account)


async def until(began, go):
    open(began, "w").close()
    while not os.path.exists(go):
        await asyncio.sleep(0.01)


MAKES = {"threads": make_sync, "async": make_async}


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("method", ["add_when", "read_when"])
@pytest.mark.parametrize("kind", MAKES)
def test_r18_stopped_replaced_and_continued(store, tmp_path, kind, method, durability):
    began, go = tmp_path / "began", tmp_path / "go"
    make = MAKES[kind]
    old = make(store, durability=durability).remote()
    assert ray.get(old.add.remote(), timeout=LONG_S) == 1
    pid = ray.get(old.pid.remote(), timeout=LONG_S)
    ref = getattr(old, method).remote(str(began), str(go))
    eventually(began.exists, timeout_s=LONG_S)
    os.kill(pid, signal.SIGSTOP)
    try:
        new = make(store, durability=durability, takeover=True).remote()
        assert ray.get(new.add.remote(), timeout=LONG_S) == 2
    finally:
        os.kill(pid, signal.SIGCONT)
    go.touch()
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(ref, timeout=LONG_S)
    wait_ended([pid])
    with pytest.raises(ray.exceptions.ActorDiedError):  # it is not restarted either
        ray.get(old.value.remote(), timeout=LONG_S)
    assert ray.get(new.value.remote(), timeout=LONG_S) == 2, "what it did after it was replaced is nowhere"


@pytest.mark.parametrize("kind", MAKES)
def test_a_stopped_one_that_was_idle_answers_nothing(store, kind):
    make = MAKES[kind]
    old = make(store).remote()
    assert ray.get(old.add.remote(), timeout=LONG_S) == 1
    pid = ray.get(old.pid.remote(), timeout=LONG_S)
    os.kill(pid, signal.SIGSTOP)
    try:
        new = make(store, takeover=True).remote()
        assert ray.get(new.add.remote(), timeout=LONG_S) == 2
        refs = [old.value.remote(), old.add.remote()]
    finally:
        os.kill(pid, signal.SIGCONT)
    for ref in refs:
        with pytest.raises(ray.exceptions.ActorDiedError):
            ray.get(ref, timeout=LONG_S)
    wait_ended([pid])
    assert ray.get(new.value.remote(), timeout=LONG_S) == 2


def stop_who_wrote(began):
    """Stop the process that runs the call; it may be another one by now."""

    def stopped():
        written = began.read_text() if began.exists() else ""
        if not written.endswith("\n"):
            return None
        pid = int(written)
        send_signal(pid, signal.SIGSTOP)
        return pid if state_of(pid) == "T" else None

    return eventually(stopped, timeout_s=LONG_S)


def test_who_held_the_key_by_a_lease_is_stopped_replaced_and_continued(tmp_path):
    """The store has no conditional creation. A lease that ran out on a slow machine is as a crash."""
    began, go = tmp_path / "began", tmp_path / "go"
    store = f"fsspec+file://{tmp_path}/store"
    options = {"fencing": "lease", "lease_s": 2.0}
    old = make_sync(store, **options).remote()
    assert ray.get(old.add.remote(), timeout=LONG_S) == 1
    figures = checkpoint.status(old)
    assert figures["fencing"] == "lease" and 0 <= figures["lease_left_s"] <= 2.0
    ref = old.add_when.remote(str(began), str(go))
    pid = stop_who_wrote(began)
    try:
        new = make_sync(store, takeover=True, **options).remote()
        assert ray.get(new.add.remote(), timeout=LONG_S) == 2
    finally:
        os.kill(pid, signal.SIGCONT)
    go.touch()
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(ref, timeout=LONG_S)
    wait_ended([pid])
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(old.value.remote(), timeout=LONG_S)
    assert ray.get(new.value.remote(), timeout=LONG_S) == 2, "what it did after it was replaced is nowhere"


def test_r4_a_queued_call_of_an_attempt_that_was_replaced_does_not_run(store, tmp_path):
    """Attempt 1 of a task sends two calls and dies; both are in the queue. Attempt 2 makes only the first."""
    actor = make_async(store).remote()
    began, sent = tmp_path / "began", tmp_path / "sent"
    holds = actor.hold_until_a_call_comes_again.remote(str(began))
    eventually(began.exists, timeout_s=LONG_S)

    @ray.remote(max_retries=1)
    def pays(actor, sent):
        first = actor.add.remote(1)
        if not os.path.exists(sent):
            refs = [first, actor.add.remote(1000)]
            ray.wait(refs, timeout=0.5)  # both leave
            open(sent, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return ray.get(first)

    assert ray.get([pays.remote(actor, str(sent)), holds], timeout=LONG_S) == [1, None]
    assert ray.get(actor.value.remote(), timeout=LONG_S) == 1


DRIVER = """
import os, signal, sys
import ftray as ray
from ftray import checkpoint

class Count(ray.Checkpointable, exactly_once=True, store=sys.argv[1]):
    def __init__(self):
        self.n = 0
    def add(self, path=None):
        self.n += 1
        if path:
            with open(path, "a") as file:
                file.write("x")
        return self.n
    @checkpoint.readonly
    def pid(self):
        return os.getpid()
    @checkpoint.readonly
    def duplicates(self):
        return checkpoint.actor.sessions[id(self)].status()["ledger"]["duplicates"]

ray.init(num_cpus=1, log_to_driver=False)
actor = ray.remote(Count).remote()
tell("pid", ray.get(actor.pid.remote()))
refs = [actor.add.remote(sys.argv[2]) for _ in range(3)]
ray.wait(refs[:1], timeout=0)
os.kill(os.getpid(), signal.SIGSTOP)
tell("first", ray.get(refs))
tell("second", ray.get(actor.add.remote()))
tell("duplicates", ray.get(actor.duplicates.remote()))
"""


def test_r38_what_an_incarnation_has_answered_is_read_before_the_next_is_sent_anything(
    store, tmp_path, start_driver
):
    """The driver is stopped while its replies come and their actor dies."""
    ran = tmp_path / "ran"
    driver = start_driver(DRIVER, args=[str(store), str(ran)])
    pid = driver.expect("pid", timeout_s=LONG_S)
    eventually(lambda: ran.exists() and ran.read_text() == "xxx", timeout_s=LONG_S)
    # The last reply may not have left yet: then that call is sent again, which is right as well.
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])
    os.kill(driver.pid, signal.SIGCONT)
    assert driver.expect("first", timeout_s=LONG_S) == [1, 2, 3]
    assert driver.expect("second", timeout_s=LONG_S) == 4
    assert driver.expect("duplicates", timeout_s=LONG_S) <= 1
    driver.finish()
