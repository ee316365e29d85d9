"""Methods of exactly-once actors that return several values, or none: as one value, whoever dies."""

from __future__ import annotations

import os
import random
import signal

import pytest

import ftray as ray
from ftray.checkpoint.errors import PoisonCallError, ReplayDivergedError, ReplyExpiredError
from tests.helpers.processes import wait_ended

pytestmark = pytest.mark.usefixtures("runtime")


def make_pairs(store, **options):
    class Pairs(ray.Checkpointable, store=store, exactly_once=True, **options):
        def __init__(self):
            self.n = 0

        def pair(self, size=0):
            self.n += 1
            return self.n, bytes(size)

        def fail(self):
            self.n += 1
            raise ValueError(f"as asked at {self.n}")

        def chance(self):
            self.n += 1
            return self.n, random.random()

        def recorded_or_dies(self, path):
            """Dies the first time, after it has begun for others to see."""
            drawn = self.record(random.random)
            if not os.path.exists(path):
                open(path, "w").close()
                os._exit(1)
            self.n += 1
            return self.n, drawn

        def fails_at_first(self, path):
            self.recorded_or_dies(path)
            if self.n == 1:
                raise ValueError("for the first time")
            return self.n

        def die(self):
            os._exit(1)

        @ray.checkpoint.readonly
        def facts(self):
            return self.n, os.getpid()

    return ray.remote(num_cpus=0)(Pairs).remote()


def kill(actor):
    _, pid = ray.get(actor.facts.remote())
    os.kill(pid, signal.SIGKILL)
    wait_ended([pid])


@pytest.mark.parametrize("size", [0, 100_000])
def test_calls_with_several_values_run_again(tmp_path, size):
    actor = make_pairs(tmp_path / "store")
    assert ray.get(actor.pair.options(num_returns=2).remote(size)) == [1, bytes(size)]
    assert ray.get(actor.pair.remote(size)) == (2, bytes(size))
    assert actor.pair.options(num_returns=0).remote(size) is None
    kill(actor)
    assert ray.get(actor.pair.options(num_returns=2).remote()) == [4, b""]
    kill(actor)
    assert ray.get(actor.facts.remote())[0] == 4


def test_so_do_those_that_failed(tmp_path):
    actor = make_pairs(tmp_path / "store")
    for ref in actor.fail.options(num_returns=2).remote():
        with pytest.raises(ValueError, match="as asked at 1"):
            ray.get(ref)
    for ref in actor.pair.options(num_returns=3).remote():
        with pytest.raises(ValueError, match="should return num_returns=3 values, but returned 2"):
            ray.get(ref)
    actor.fail.options(num_returns=0).remote()
    kill(actor)
    assert ray.get(actor.facts.remote())[0] == 3


@pytest.mark.parametrize("returns", [0, 1, 2, 3])
def test_a_call_that_goes_on_after_a_crash(tmp_path, returns):
    """Its reply is recorded before anybody has asked again, and said how many values are wanted."""
    actor = make_pairs(tmp_path / "store")
    refs = actor.recorded_or_dies.options(num_returns=returns).remote(str(tmp_path / "died"))
    if returns == 1:
        assert ray.get(refs)[0] == 1
    elif returns == 2:
        n, drawn = ray.get(refs)
        assert n == 1 and 0 <= drawn < 1
    elif returns == 3:
        for ref in refs:
            with pytest.raises(ValueError, match="should return num_returns=3 values, but returned 2"):
                ray.get(ref)
    assert ray.get(actor.pair.options(num_returns=2).remote()) == [2, b""]
    kill(actor)
    assert ray.get(actor.facts.remote())[0] == 2


def test_a_call_that_is_given_up(tmp_path):
    actor = make_pairs(tmp_path / "store")
    for ref in actor.die.options(num_returns=2).remote():
        with pytest.raises(PoisonCallError):
            ray.get(ref)
    assert ray.get(actor.facts.remote())[0] == 0


def test_verify_compares_all_values(tmp_path):
    actor = make_pairs(tmp_path / "store", verify=True)
    assert ray.get(actor.pair.options(num_returns=2).remote()) == [1, b""]
    for ref in actor.chance.options(num_returns=2).remote():
        with pytest.raises(ReplayDivergedError, match="does not do the same"):
            ray.get(ref)


def test_a_key_that_is_asked_for_with_another_number_of_values(tmp_path):
    actor = make_pairs(tmp_path / "store")
    by_key = {key: actor.pair.options(call_key=key, num_returns=n) for key, n in {"one": 1, "two": 2}.items()}
    assert ray.get(by_key["one"].remote()) == (1, b"") and ray.get(by_key["two"].remote()) == [2, b""]
    assert actor.pair.options(call_key="none", num_returns=0).remote() is None
    assert ray.get(actor.pair.options(call_key="one", num_returns=2).remote(), timeout=30) == [1, b""]
    assert ray.get(actor.pair.options(call_key="two").remote(), timeout=30) == (2, b"")
    assert actor.pair.options(call_key="two", num_returns=0).remote() is None
    with pytest.raises(ReplyExpiredError, match="num_returns=0"):
        ray.get(actor.pair.options(call_key="none").remote(), timeout=30)
    for ref in actor.fail.options(call_key="failed", num_returns=2).remote():
        with pytest.raises(ValueError, match="as asked at 4"):
            ray.get(ref)
    with pytest.raises(ValueError, match="as asked at 4"):
        ray.get(actor.fail.options(call_key="failed").remote(), timeout=30)
    assert ray.get(actor.facts.remote())[0] == 4


def test_an_error_of_a_call_that_went_on_after_a_crash_is_retried(tmp_path):
    """Its reply was recorded before anybody had said again which errors are to be retried."""
    actor = make_pairs(tmp_path / "store")
    call = actor.fails_at_first.options(retry_exceptions=[ValueError], max_task_retries=3)
    assert ray.get(call.remote(str(tmp_path / "died")), timeout=60) == 2
    kill(actor)
    assert ray.get(actor.facts.remote())[0] == 2
