"""One checkpoint under two engines: what one has written the other goes on with, both ways."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest

from ftray import checkpoint
from ftray.checkpoint import Checkpointable, readonly
from tests import ROOT
from tests.ray.checkpoint_support import cluster, eventually, ray, ray_runs, store

__all__ = ["cluster", "ray_runs", "store"]


KEY = "mover"


class Mover(Checkpointable, exactly_once=True, checkpoint_key=KEY):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def add(self, item: Any) -> int:
        self.seen.append(item)
        return len(self.seen)

    def add_random(self) -> bytes:
        drawn = self.record(lambda: os.urandom(8))
        self.seen.append(drawn)
        return drawn

    def fail(self) -> None:
        self.seen.append("failed")
        raise KeyError("as asked")

    @readonly
    def save(self, target: str, store: str) -> tuple[bool, int | None]:
        """Export what the newest snapshot has; `checkpoint` was asked before."""
        info = checkpoint.export(store, KEY, target)
        return info.exactly_once, info.journal_behind

    @readonly
    def all(self) -> list[Any]:
        return self.seen

    @readonly
    def pid(self) -> int:
        return os.getpid()


class Snapshots(Mover, exactly_once=False, every=1000):
    pass


def run(engine: Any, remote: Callable[[type], Any], cls: type, calls: list[Any], end: str) -> list[Any]:
    """Make calls to a new actor, one after the other, end it, and return its replies."""
    actor = remote(cls).remote()
    replies = []
    for name, *args in calls:
        try:
            replies.append(engine.get(getattr(actor, name).remote(*args), timeout=60))
        except KeyError:
            replies.append("KeyError")
    pid = engine.get(actor.pid.remote(), timeout=60)
    if end == "crash":
        os.kill(pid, signal.SIGKILL)
    else:
        actor.__ray_terminate__.remote()
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))
    return replies


def on_ray(cls: type, calls: list[Any], end: str) -> list[Any]:
    """Run an actor on Ray, from a task: who knows one history of a key cannot go on with another."""

    name = "FTRAY_CHECKPOINT_STORE"
    store = os.environ[name]

    @ray.remote(num_cpus=0)
    def work() -> list[Any]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(name, store)
            return run(ray, ray.remote(max_restarts=0, max_task_retries=0), cls, calls, end)

    return cast("list[Any]", ray.get(work.remote(), timeout=100))


def on_ftray(cls: type, calls: list[Any], end: str) -> list[Any]:
    """Run an actor on ftray's own engine, in a process of its own."""
    path = [entry for entry in sys.path if entry and os.path.abspath(entry) != ROOT]
    program = f"""
import pickle, sys
sys.path.append({ROOT!r})
import ftray
from tests.ray import test_checkpoint_engines as here
ftray.init(num_cpus=1)
made = here.run(ftray, ftray.remote(max_restarts=0), here.{cls.__name__}, {calls!r}, {end!r})
ftray.shutdown()
sys.stdout.buffer.write(pickle.dumps(made))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    found: list[Any] = pickle.loads(done.stdout)
    return found


TO, BACK = pytest.param(on_ftray, on_ray, id="to-ray"), pytest.param(on_ray, on_ftray, id="from-ray")
SHORT_TO = pytest.param(on_ftray, on_ray, id="to-ray", marks=pytest.mark.short)


@pytest.mark.limit(240)
@pytest.mark.parametrize(("first", "second"), [SHORT_TO, BACK])
def test_a_journal_goes_on_under_the_other_engine(first: Any, second: Any, store: str) -> None:
    made = first(Mover, [("add", 0), ("add", 1), ("add_random",), ("fail",)], "crash")
    assert made[:2] == [1, 2] and made[3] == "KeyError"
    seen = [0, 1, made[2], "failed"]
    assert second(Mover, [("all",), ("add", "there")], "crash") == [seen, 5]
    assert first(Mover, [("all",)], "planned") == [[*seen, "there"]]


@pytest.mark.limit(240)
@pytest.mark.parametrize(("first", "second"), [TO, BACK])
@pytest.mark.parametrize("cls", [Mover, Snapshots])
def test_a_savepoint_moves_an_actor(cls: type, first: Any, second: Any, store: str, tmp_path: Path) -> None:
    target = str(tmp_path / "moved.savepoint")
    calls = [("checkpoint",), ("save", target, store), ("add", "later")]
    made = first(cls, [*(("add", i) for i in range(5)), *calls], "crash")
    assert made[:5] == [1, 2, 3, 4, 5] and made[6:] == [(cls is Mover, 0), 6]
    checkpoint.delete(KEY, store=store)
    checkpoint.restore(store, KEY, savepoint=target)
    assert second(cls, [("all",), ("add", 5)], "planned") == [[0, 1, 2, 3, 4], 6]
