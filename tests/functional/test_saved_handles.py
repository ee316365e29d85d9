"""Actor handles in states and in recorded calls: what they are after a restart, and in another session."""

from __future__ import annotations

import os
import signal

import pytest

import ftray as ray
from ftray import checkpoint
from tests.helpers.processes import wait_ended

LONG_S = 60
CLASSES = """
import sys
import ftray as ray
from ftray import checkpoint

class Count(ray.Checkpointable, exactly_once=True, store=sys.argv[1]):
    def __init__(self):
        self.n = 0
    def add(self, k=1):
        self.n += k
        return self.n

class Front(ray.Checkpointable, exactly_once=True, store=sys.argv[1]):
    def __init__(self):
        self.others = {}
    def keep(self, name, other):
        self.others[name] = other
        return sorted(self.others)
    def add_there(self, name, k=1):
        return ray.get(self.others[name].add.remote(k))
    def save(self):
        self.checkpoint()

ray.init(num_cpus=2, namespace="shop", log_to_driver=False)
front = ray.remote(Front).options(name="front").remote()
"""


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def make_front(store, **options):
    class Front(ray.Checkpointable, store=store, **options):
        def __init__(self):
            self.others = {}
            self.known = set()

        def keep(self, name, other):
            self.others[name] = other
            self.known.add(other)
            return other in self.known

        def add_there(self, name, k=1):
            return ray.get(self.others[name].add.remote(k))

        def knows(self, other):
            return other in self.known

        def has(self, what):
            self.others["has"] = what

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    return ray.remote(Front)


def make_count(store, **options):
    class Count(ray.Checkpointable, store=store, exactly_once=True, **options):
        def __init__(self):
            self.n = 0

        def add(self, k=1):
            self.n += k
            return self.n

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    return ray.remote(Count)


def kill(actor):
    pid = ray.get(actor.pid.remote(), timeout=LONG_S)
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])


@pytest.mark.parametrize("save", [False, True], ids=["from the journal", "from a snapshot"])
@pytest.mark.usefixtures("runtime")
def test_handles_in_the_state_survive_a_restart(store, save):
    front = make_front(store, exactly_once=True).remote()
    named, unnamed = make_count(store).options(name=f"named-{save}").remote(), make_count(store).remote()
    detached = make_count(store).options(name=f"detached-{save}", lifetime="detached").remote()
    plain = ray.remote(Plain).remote()
    kept = {"named": named, "unnamed": unnamed, "detached": detached, "plain": plain}
    for name, other in kept.items():
        assert ray.get(front.keep.remote(name, other), timeout=LONG_S)
    if save:
        ray.get(front.checkpoint.remote(), timeout=LONG_S)
    for i in (1, 2):
        kill(front)
        kill(unnamed)
        for name, other in kept.items():
            assert ray.get(front.add_there.remote(name), timeout=LONG_S) == i
            assert ray.get(front.knows.remote(other), timeout=LONG_S), "the same handle, also after a restart"
    ray.kill(detached)


class Plain:
    def __init__(self):
        self.n = 0

    def add(self, k=1):
        self.n += k
        return self.n


@pytest.mark.usefixtures("runtime")
def test_in_snapshot_mode(store):
    front = make_front(store, every=1).options(max_restarts=-1, max_task_retries=-1).remote()
    plain = ray.remote(Plain).remote()
    assert ray.get(front.keep.remote("plain", plain), timeout=LONG_S)
    assert ray.get(front.checkpoint.remote(), timeout=LONG_S)
    kill(front)
    assert ray.get(front.add_there.remote("plain"), timeout=LONG_S) == 1


@pytest.mark.usefixtures("runtime")
def test_an_actor_that_has_died_since_is_said_to_be_dead(store):
    front, count = make_front(store, exactly_once=True).remote(), make_count(store).remote()
    ray.get(front.keep.remote("count", count), timeout=LONG_S)
    ray.get(front.checkpoint.remote(), timeout=LONG_S)
    ray.kill(count)
    kill(front)
    with pytest.raises(ray.exceptions.ActorDiedError):
        ray.get(front.add_there.remote("count"), timeout=LONG_S)


@pytest.mark.parametrize("exactly_once", [False, True])
@pytest.mark.usefixtures("runtime")
def test_a_ref_in_the_state_is_refused_by_name(store, exactly_once):
    """In a list: as an argument of its own it would be replaced by its value."""
    more = {"exactly_once": True} if exactly_once else {"every": None, "interval_s": None}
    front = make_front(store, **more).remote()
    held = ray.remote(Holder).remote()
    ray.get(held.keep.remote(), timeout=LONG_S)
    if exactly_once:
        ray.get(front.has.remote(ray.get(held.ref.remote())), timeout=LONG_S)
    else:
        ray.get(front.has.remote([ray.put(1)]), timeout=LONG_S)
    error = r"others\.has\[0\].*ObjectRef.*keep the value"
    with pytest.raises(checkpoint.CheckpointCaptureError, match=error):
        ray.get(front.checkpoint.remote(), timeout=LONG_S)


class Holder:
    def keep(self):
        self.one = ray.put(1)

    def ref(self):
        return [self.one]


@pytest.mark.parametrize("how", ["save", "leave"])
def test_a_key_means_the_actor_in_its_place_in_another_session(store, start_driver, how):
    """In the state, from a snapshot or from the journal; the actor comes after its handle is used."""
    first = (
        CLASSES
        + """
count = ray.remote(Count).options(name="count").remote()
ray.get(front.keep.remote("count", count))
tell("added", ray.get(front.add_there.remote("count")))
if sys.argv[2] == "save":
    ray.get(front.checkpoint.remote())
    ray.get(front.keep.remote("again", count))   # replayed in the other session
tell("done", True)
"""
    )
    second = (
        CLASSES
        + """
used = front.add_there.remote("count")   # before there is such an actor
count = ray.remote(Count).options(name="count").remote()
tell("added", ray.get(used))
tell("saved", ray.get(front.checkpoint.remote()))
"""
    )
    driver = start_driver(first, args=[str(store), how])
    assert driver.expect("added", timeout_s=LONG_S) == 1
    assert driver.expect("done", timeout_s=LONG_S)
    os.kill(driver.pid, signal.SIGKILL)
    driver = start_driver(second, args=[str(store)])
    assert driver.expect("added", timeout_s=LONG_S) == 2
    assert driver.expect("saved", timeout_s=LONG_S)
    driver.finish()


def test_a_state_with_handles_can_be_read_without_a_session(store, start_driver):
    driver = start_driver(
        CLASSES
        + """
ray.get(front.keep.remote("self", ray.remote(Count).options(name="c").remote()))
ray.get(front.checkpoint.remote())
tell("saved", True)
""",
        args=[str(store)],
    )
    assert driver.expect("saved", timeout_s=LONG_S)
    driver.finish()
    driver = start_driver(
        """
import sys
from ftray import checkpoint

other = checkpoint.open(sys.argv[1]).load("shop/front")["others"]["self"]
tell("repr", repr(other))
try:
    other.add.remote()
except Exception as error:
    tell("error", f"{type(error).__name__}: {error}")
""",
        args=[str(store)],
    )
    assert "another session" in driver.expect("repr", timeout_s=LONG_S)
    assert driver.expect("error", timeout_s=LONG_S)
    driver.finish()
