"""One checkpoint under two engines: what one has written the other goes on with, both ways."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ftray
from ftray import checkpoint
from ftray.checkpoint import Checkpointable, readonly
from tests.ray.checkpoint_support import cluster, eventually, get, kill, ray, store

__all__ = ["cluster", "store"]


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
    def all(self) -> list[Any]:
        return self.seen

    @readonly
    def pid(self) -> int:
        return os.getpid()


class Snapshots(Mover, exactly_once=False, every=1000):
    pass


@contextmanager
def on_ftray(cls: type, end: str) -> Iterator[tuple[Any, Callable[[Any], Any]]]:
    """An actor on ftray's own engine, which ends by a crash or as planned."""
    ftray.init(num_cpus=1)
    try:
        actor = ftray.remote(max_restarts=0)(cls).remote()
        yield actor, lambda ref: ftray.get(ref, timeout=60)
        with pytest.raises(ftray.exceptions.RayActorError):
            if end == "crash":
                os.kill(ftray.get(actor.pid.remote(), timeout=60), signal.SIGKILL)
                ftray.get(actor.all.remote(), timeout=60)
            ftray.get(actor.__ray_terminate__.remote(), timeout=60)
    finally:
        ftray.shutdown()


@contextmanager
def on_ray(cls: type, end: str) -> Iterator[tuple[Any, Callable[[Any], Any]]]:
    """The same on Ray."""
    actor = ray.remote(max_restarts=0, max_task_retries=0)(cls).remote()
    yield actor, get
    pid = get(actor.pid.remote())
    if end == "crash":
        kill(pid)
    else:
        actor.__ray_terminate__.remote()
    eventually(lambda: not os.path.exists(f"/proc/{pid}"))


ENGINES = [pytest.param(on_ftray, on_ray, id="to-ray"), pytest.param(on_ray, on_ftray, id="from-ray")]


@pytest.mark.parametrize(("first", "second"), ENGINES)
def test_a_journal_goes_on_under_the_other_engine(first: Any, second: Any, store: str) -> None:
    with first(Mover, "crash") as (actor, got):
        assert got([actor.add.remote(i) for i in range(3)]) == [1, 2, 3]
        drawn = got(actor.add_random.remote())
        with pytest.raises(KeyError):
            got(actor.fail.remote())
    seen = [0, 1, 2, drawn, "failed"]
    with second(Mover, "crash") as (actor, got):
        assert got(actor.all.remote()) == seen
        assert got(actor.add.remote("there")) == 6
    with first(Mover, "planned") as (actor, got):
        assert got(actor.all.remote()) == [*seen, "there"]


@pytest.mark.parametrize(("first", "second"), ENGINES)
@pytest.mark.parametrize("cls", [Mover, Snapshots])
def test_a_savepoint_moves_an_actor(cls: type, first: Any, second: Any, store: str, tmp_path: Path) -> None:
    target = str(tmp_path / "moved.savepoint")
    with first(cls, "planned") as (actor, got):
        got([actor.add.remote(i) for i in range(5)])
        got(actor.checkpoint.remote())
        info = checkpoint.export(store, KEY, target)
        assert (info.exactly_once, info.journal_behind) == (cls is Mover, 0)
        got(actor.add.remote("left behind"))
    checkpoint.delete(KEY, store=store)
    checkpoint.restore(store, KEY, savepoint=target)
    with second(cls, "planned") as (actor, got):
        assert got(actor.all.remote()) == [0, 1, 2, 3, 4]
        assert got(actor.add.remote(5)) == 6
