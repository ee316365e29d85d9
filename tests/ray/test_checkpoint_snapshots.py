"""Snapshot mode on Ray's actors: restored on Ray's own max_restarts."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from ftray.checkpoint import CheckpointOptionError
from ftray.ray import Checkpointable, readonly, status
from tests.ray.checkpoint_support import (
    Counter,
    cluster,
    eventually,
    get,
    is_gone,
    kill,
    ray,
    ray_runs,
    store,
)

__all__ = ["cluster", "ray_runs", "store"]


class Often(Counter, every=5):
    pass


@pytest.mark.short
def test_an_actor_that_is_killed_has_the_state_of_its_last_snapshot(store: str) -> None:
    actor = ray.remote(max_restarts=-1, max_task_retries=-1)(Often).options(name="often").remote(start=10)
    assert get([actor.incr.remote() for _ in range(7)])[-1] == 17
    assert get(actor.checkpoint.remote())
    pid = get(actor.pid.remote())
    kill(pid)
    assert get(actor.value.remote()) == 17
    assert get(actor.pid.remote()) != pid
    found = status(actor)
    assert (found["mode"], found["key"], found["incarnation"]) == ("snapshot", "tests/often", 2)
    assert found["restored_from"] is not None


def test_a_named_actor_that_is_made_again_goes_on(store: str) -> None:
    actor_class = ray.remote(Counter)
    actor = actor_class.options(name="again").remote()
    assert get(actor.incr.remote(5)) == 5
    get(actor.checkpoint.remote())
    ray.kill(actor)
    eventually(lambda: is_gone("again"))
    assert get(actor_class.options(name="again").remote().value.remote()) == 5


def test_a_planned_end_saves_once_more(store: str) -> None:
    actor_class = ray.remote(Counter)
    actor = actor_class.options(name="bye").remote()
    assert get(actor.incr.remote(5)) == 5
    with pytest.raises(ray.exceptions.ActorDiedError):
        get(actor.bye.remote())
    del actor  # or Ray keeps the name
    eventually(lambda: is_gone("bye"))
    assert get(actor_class.options(name="bye").remote().value.remote()) == 1005


def test_wrong_arguments_are_refused_where_they_are_given(store: str) -> None:
    actor_class = ray.remote(Counter)
    with pytest.raises(TypeError):
        actor_class.remote(1, 2)
    actor = actor_class.remote()
    with pytest.raises(TypeError):
        actor.incr.remote(1, 2)
    with pytest.raises(AttributeError):
        _ = actor.no_such_method
    with pytest.raises(ValueError, match="as asked"):
        get(actor.fail.remote())


def test_a_restore_that_is_required_says_what_is_missing(store: str) -> None:
    class Needs(Counter, restore="require"):
        pass

    actor = ray.remote(Needs).options(name="needs").remote()
    with pytest.raises(ray.exceptions.RayActorError, match="restore='require'"):
        get(actor.value.remote())


class Async(Checkpointable, after="put"):
    def __init__(self) -> None:
        self.items: dict[str, int] = {}

    async def put(self, name: str, value: int) -> int:
        await asyncio.sleep(0)
        self.items[name] = value
        return len(self.items)

    @readonly
    async def pid(self) -> int:
        return os.getpid()

    @readonly
    def all(self) -> dict[str, int]:
        return self.items

    @readonly
    async def names(self) -> Any:
        for name in sorted(self.items):
            yield name


def test_async_actors(store: str) -> None:
    actor = ray.remote(max_restarts=-1, max_task_retries=-1)(Async).remote()
    get([actor.put.remote(str(i), i) for i in range(5)])
    get(actor.checkpoint.remote())
    kill(get(actor.pid.remote()))
    assert get(actor.all.remote()) == {str(i): i for i in range(5)}
    stream = actor.names.options(num_returns="streaming").remote()
    assert [get(ref) for ref in stream] == ["0", "1", "2", "3", "4"]


def test_several_threads(store: str) -> None:
    actor = ray.remote(max_restarts=-1, max_task_retries=-1, max_concurrency=4)(Often).remote()
    get([actor.incr.remote() for _ in range(40)])
    get(actor.checkpoint.remote())
    before = get(actor.value.remote())
    kill(get(actor.pid.remote()))
    assert get(actor.value.remote()) == before


def test_an_idle_actor_is_saved_by_time(store: str) -> None:
    class Timed(Counter, interval_s=0.2):
        pass

    actor = ray.remote(Timed).remote()
    get(actor.incr.remote())
    eventually(lambda: status(actor)["saves"] >= 1)


def test_options_are_checked_where_the_class_is_made(tmp_path: Path) -> None:
    with pytest.raises(CheckpointOptionError, match="every"):
        ray.remote(type("Bad", (Counter,), {}, every=0))
