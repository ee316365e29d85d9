"""Planned ends of actors whose methods run beside each other: what is under way is saved."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import ftray as ray
from ftray import checkpoint
from tests.helpers.processes import wait_ended
from tests.helpers.sync import Gate, Mailbox, Waiter

pytestmark = pytest.mark.usefixtures("runtime")
LONG_S = 60


@ray.remote(num_cpus=0)
def passed(gate: Waiter) -> int:
    """Return 100 when the gate is open."""
    gate.wait()
    return 100


@pytest.fixture(params=["threads", "async"])
def counter(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A remote class that saves at its end only."""

    class Base(ray.Checkpointable, store=tmp_path / "store", every=1000):
        def __init__(self) -> None:
            self.n = 0

        def begin(self, own: bool, begun: Any) -> None:
            if own:
                os.kill(os.getpid(), signal.SIGTERM)
            begun.post()

        @checkpoint.readonly
        def pid(self) -> int:
            return os.getpid()

        @checkpoint.readonly
        def value(self) -> int:
            return self.n

        def bound(self, seconds: str) -> None:
            os.environ["FTRAY_CHECKPOINT_FINAL_TIMEOUT_S"] = seconds

        def leave(self) -> None:
            ray.actor.exit_actor()

    class Threads(Base):
        def add(self) -> int:
            self.n += 1
            return self.n

        def slow(self, own: bool, begun: Any, gate: Waiter) -> None:
            self.begin(own, begun)
            more = ray.get(passed.remote(gate))
            self.n += more

    class Loop(Base):
        async def add(self) -> int:
            self.n += 1
            return self.n

        async def slow(self, own: bool, begun: Any, gate: Waiter) -> None:
            self.begin(own, begun)
            more = await passed.remote(gate)
            self.n += more  # others have changed it meanwhile

    return ray.remote(Threads if request.param == "threads" else Loop)


def started(counter: Any, **options: Any) -> tuple[Any, int]:
    """Return an actor that has done ten calls, and its process."""
    actor = counter.options(name="ends", max_concurrency=4, **options).remote()
    ray.get([actor.add.remote() for _ in range(10)], timeout=LONG_S)
    return actor, ray.get(actor.pid.remote(), timeout=LONG_S)


@pytest.mark.parametrize("own", [False, True], ids=["from outside", "from the method"])
def test_sigterm_waits_for_the_methods_under_way(
    counter: Any, gate: Gate, mailbox: Mailbox, own: bool
) -> None:
    actor, pid = started(counter, max_restarts=-1, max_task_retries=-1)
    under_way = actor.slow.remote(own, mailbox, gate)
    mailbox.take(LONG_S)
    if not own:
        os.kill(pid, signal.SIGTERM)
    later = [actor.add.remote() for _ in range(3)]
    gate.open()
    ray.get([under_way, *later], timeout=LONG_S)
    wait_ended([pid])
    assert ray.get(actor.value.remote(), timeout=LONG_S) == 113


def test_sigterm_waits_for_no_longer_than_its_bound(counter: Any, gate: Gate, mailbox: Mailbox) -> None:
    actor, pid = started(counter, max_restarts=-1)
    ray.get(actor.bound.remote("0.2"), timeout=LONG_S)
    under_way = actor.slow.remote(False, mailbox, gate)
    mailbox.take(LONG_S)
    os.kill(pid, signal.SIGTERM)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(under_way, timeout=LONG_S)
    assert ray.get(actor.__ray_ready__.options(max_task_retries=-1).remote(), timeout=LONG_S)
    assert ray.get(actor.value.remote(), timeout=LONG_S) == 0


def test_exit_actor_waits_for_the_methods_under_way(
    counter: Any, gate: Gate, mailbox: Mailbox, tmp_path: Path
) -> None:
    actor, pid = started(counter)
    under_way = actor.slow.remote(False, mailbox, gate)
    mailbox.take(LONG_S)
    left = actor.leave.remote()
    gate.open()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(left, timeout=LONG_S)
    ray.get(under_way, timeout=LONG_S)
    wait_ended([pid])
    saved = checkpoint.open(tmp_path / "store")
    (key,) = saved.keys()
    assert saved.load(key)["n"] == 110


@pytest.mark.parametrize("kind", ["serial", "async"])
def test_the_end_of_an_exactly_once_actor_does_not_wait_for_the_method_that_ends_it(
    tmp_path: Path, kind: str
) -> None:
    class Base(ray.Checkpointable, store=tmp_path / "store", exactly_once=True):
        def __init__(self) -> None:
            self.n = 0

        @checkpoint.readonly
        def pid(self) -> int:
            return os.getpid()

    class Serial(Base):
        def leave(self) -> None:
            self.n += 1
            ray.actor.exit_actor()

    class Loop(Base):
        async def leave(self) -> None:
            self.n += 1
            ray.actor.exit_actor()

    actor = ray.remote(Serial if kind == "serial" else Loop).options(name="ends").remote()
    pid = ray.get(actor.pid.remote(), timeout=LONG_S)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(actor.leave.remote(), timeout=LONG_S)
    wait_ended([pid])
    saved = checkpoint.open(tmp_path / "store")
    (key,) = saved.keys()
    assert saved.load(key)["n"] == 1
