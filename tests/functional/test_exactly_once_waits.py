"""R42: methods of exactly-once actors that wait for each other hear of it instead of waiting for ever."""

from __future__ import annotations

import os
import signal

import pytest

import ftray as ray
from ftray import checkpoint
from tests.helpers.sync import eventually

pytestmark = pytest.mark.usefixtures("runtime")
LONG_S = 50
SOON = {"env_vars": {"FTRAY_LONG_WAIT_S": "0.3"}}


@pytest.fixture
def store(tmp_path):
    return tmp_path / "store"


def meet(here, there):
    """Both methods hold their actors before either calls the other's."""
    here.touch()
    eventually(there.exists, timeout_s=LONG_S)


def make_side(store, how):
    class Side(ray.Checkpointable, store=store, exactly_once=True):
        def __init__(self):
            self.n = 0

        def add(self, k=1):
            self.n += k
            return self.n

        def cross(self, other, here, there):
            meet(here, there)
            self.n += 1
            ref = other.add.remote(10)
            if how == "wait":
                ray.wait([ref])
            return ray.get(ref)

        def late(self, seconds):
            import time

            time.sleep(seconds)
            return self.add()

        def ask_late(self, other, seconds):
            return ray.get(other.late.remote(seconds))

        @checkpoint.readonly
        def reads_cross(self, other, here, there):
            meet(here, there)
            return ray.get(other.add.remote(100))

        @checkpoint.readonly
        def value(self):
            return self.n

        @checkpoint.readonly
        def pid(self):
            return os.getpid()

    return ray.remote(Side).options(runtime_env=SOON)


def make_async_side(store):
    class AsyncSide(ray.Checkpointable, store=store, exactly_once=True):
        def __init__(self):
            self.n = 0

        async def add(self, k=1):
            self.n += k
            return self.n

        async def cross(self, other, here, there):
            meet(here, there)
            self.n += 1
            return await other.add.remote(10)

        @checkpoint.readonly
        async def value(self):
            return self.n

    return ray.remote(AsyncSide).options(runtime_env=SOON)


def crossed(one, other, tmp_path, method="cross"):
    """What the two methods gave: values, and what the errors say."""
    a, b = tmp_path / "a", tmp_path / "b"
    refs = [getattr(one, method).remote(other, a, b), other.cross.remote(one, b, a)]
    found = []
    for ref in refs:
        try:
            found.append(ray.get(ref, timeout=LONG_S))
        except checkpoint.CallCycleError as error:
            found.append(str(error))
    return found


@pytest.mark.parametrize("how", ["get", "wait"])
def test_r42_two_methods_that_wait_for_each_other(store, tmp_path, how):
    sides = [make_side(store, how).options(name=f"{how}-{n}").remote() for n in "ab"]
    found = crossed(*sides, tmp_path)
    errors = [each for each in found if isinstance(each, str)]
    assert len(errors) == 1, "one of them is given up, and the other goes on"
    assert f"Side '{how}-a'.cross" in errors[0] and f"Side '{how}-b'.cross" in errors[0]
    values = sorted(ray.get([side.value.remote() for side in sides], timeout=LONG_S))
    assert values == [11, 11], "both calls run in the end, each once"


def test_r42_the_error_is_recorded(store, tmp_path):
    """An actor that is run again gets it in the same place."""
    one, other = make_side(store, "get").remote(), make_async_side(store).remote()
    found = crossed(one, other, tmp_path)
    assert len([each for each in found if isinstance(each, str)]) == 1
    before = ray.get([one.value.remote(), other.value.remote()], timeout=LONG_S)
    os.kill(ray.get(one.pid.remote()), signal.SIGKILL)
    assert ray.get([one.value.remote(), other.value.remote()], timeout=LONG_S) == before == [11, 11]


def test_r42_async_methods(store, tmp_path):
    sides = [make_async_side(store).remote() for _ in range(2)]
    found = crossed(*sides, tmp_path)
    assert len([each for each in found if isinstance(each, str)]) == 1
    assert ray.get([side.value.remote() for side in sides], timeout=LONG_S) == [11, 11]


def test_r42_a_method_that_only_reads_keeps_others_out_too(store, tmp_path):
    sides = [make_side(store, "get").remote() for _ in range(2)]
    found = crossed(*sides, tmp_path, method="reads_cross")
    assert len([each for each in found if isinstance(each, str)]) == 1


def test_r42_a_long_wait_that_ends_is_no_circle(store):
    one, other = (make_side(store, "get").remote() for _ in range(2))
    refs = [one.ask_late.remote(other, 1.5), other.add.remote()]
    assert sorted(ray.get(refs, timeout=LONG_S)) == [1, 2]


@ray.remote
class Relay:
    async def ask(self, actor):
        return await actor.add.remote()


@ray.remote
class Blocking:
    def ask(self, actor):
        return ray.get(actor.add.remote())

    def asks(self, actor):
        yield ray.get(actor.add.remote())


@ray.remote
def ask_in_a_task(actor):
    return ray.get(actor.add.remote())


@pytest.mark.parametrize("way", ["task", "actor", "async actor", "generator"])
def test_r41_a_chain_through_what_is_not_exactly_once(store, way):
    class Head(ray.Checkpointable, store=store, exactly_once=True):
        def __init__(self):
            self.n = 0

        def add(self):
            self.n += 1
            return self.n

        def send(self, way, me, relay):
            if way == "task":
                return ray.get(ask_in_a_task.remote(me))
            if way == "generator":
                return ray.get(relay.asks.options(num_returns=1).remote(me))
            return ray.get(relay.ask.remote(me))

    head = ray.remote(Head).remote()
    relay = Relay.remote() if way == "async actor" else Blocking.remote()
    with pytest.raises(checkpoint.CallCycleError):
        ray.get(head.send.remote(way, head, relay), timeout=LONG_S)
    assert ray.get(head.add.remote(), timeout=LONG_S) == 1
