"""Recorded calls that run again, in another session, see sets of text in the order of the first time."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import introspection
from tests.helpers.drivers import Driver
from tests.helpers.processes import end, parent_of

pytestmark = pytest.mark.usefixtures("no_runtime")

PROGRAM = """
import os, sys
import ftray as ray
import ftray.checkpoint

class Base:
    def __init__(self):
        self.words = []

    @ray.checkpoint.readonly
    def facts(self):
        return {"hash": hash("some text"), "seed": os.environ.get("PYTHONHASHSEED"), "words": self.words,
                "pid": os.getpid()}

if sys.argv[2] == "sync":
    @ray.remote
    class Orders(Base, ray.Checkpointable, store=sys.argv[1], exactly_once=True):
        def add(self, *words):
            self.words += set(words)        # in what order depends on how text hashes
            return self.words
else:
    @ray.remote
    class Orders(Base, ray.Checkpointable, store=sys.argv[1], exactly_once=True):
        async def add(self, *words):
            self.words += set(words)
            return self.words

@ray.remote
def plain():
    return hash("some text"), os.environ.get("PYTHONHASHSEED")

ray.init(num_cpus=2, job_key=None)
actor = Orders.options(name="orders").remote()
def tell_all():
    try:
        tell("facts", [ray.get(actor.facts.remote()), *ray.get(plain.remote())])
    except ray.exceptions.RayError as error:
        tell("error", str(error))
word = await_word()
if word == "add":
    for start in range(0, 60, 20):
        ray.get(actor.add.remote(*[f"word{n}" for n in range(start, start + 20)]))
    word = "look"
while word == "look":
    tell_all()
    word = await_word()
"""


def start(start_driver: Callable[..., Driver], store: Path, kind: str, seed: str | None = None) -> Driver:
    env = {} if seed is None else {"PYTHONHASHSEED": seed}
    program = PROGRAM if seed is not None else "import os\nos.environ.pop('PYTHONHASHSEED', None)\n" + PROGRAM
    return start_driver(program, args=[str(store), kind], env=env)


def kill_session(driver: Driver, pid: int) -> None:
    """So that nothing is saved."""
    node = parent_of(pid)
    assert node is not None
    for each in (pid, node, driver.pid):
        os.kill(each, signal.SIGKILL)
    driver.check_processes_ended()


def first_session(
    start_driver: Callable[..., Driver], store: Path, kind: str, **options: Any
) -> dict[str, Any]:
    driver = start(start_driver, store, kind, **options)
    driver.say("add")
    facts, _, _ = driver.expect("facts")
    assert len(facts["words"]) == 60
    kill_session(driver, facts["pid"])
    return dict(facts)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_in_another_session_the_actor_hashes_as_before(
    kind: str, start_driver: Callable[..., Driver], tmp_path: Path
) -> None:
    before = first_session(start_driver, tmp_path / "store", kind)
    driver = start(start_driver, tmp_path / "store", kind)
    driver.say("look")
    facts, plain_hash, plain_seed = driver.expect("facts")
    assert facts["words"] == before["words"]
    assert facts["hash"] == before["hash"] != plain_hash, "only this actor does"
    assert (facts["seed"], plain_seed) == (None, None), "and nobody sees how"
    driver.expect_output(lambda line: "3 calls replayed" in line, "err")
    assert not any("another hash seed" in line for line in driver.err), "known before, and not by a failure"
    # Its later incarnations do so, too, also when the zygote is another one.
    end(introspection.zygote_pid(driver.pid))
    end(facts["pid"])
    driver.say("look")
    again, plain_again, _ = driver.expect("facts")
    assert again == {**facts, "pid": again["pid"]} and again["pid"] != facts["pid"]
    assert plain_again == plain_hash
    driver.say("end")
    driver.finish()


def test_a_seed_of_the_users_own_is_not_touched(start_driver: Callable[..., Driver], tmp_path: Path) -> None:
    """Then nothing can be done, but both the log and the error name what to set."""
    first_session(start_driver, tmp_path / "store", "sync", seed="12")
    other = start(start_driver, tmp_path / "store", "sync", seed="34")
    other.say("look")
    error = other.expect("error")
    for text in (error, other.expect_output(lambda line: "checkpoint hash_seed" in line, "err")):
        assert "another hash seed (PYTHONHASHSEED 12) than this process has (34)" in text
    other.say("end")
    other.finish()
    same = start(start_driver, tmp_path / "store", "sync", seed="12")
    same.say("look")
    facts, _, seed = same.expect("facts")
    assert len(facts["words"]) == 60 and (facts["seed"], seed) == ("12", "12")
    same.say("end")
    same.finish()
