"""Restarts that cannot be done at once: the store is away, or full, when the next process needs it."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import ftray as ray
from ftray import checkpoint
from tests.helpers.counts import count_class
from tests.helpers.sync import Tally

pytestmark = pytest.mark.usefixtures("runtime")
LONG_S = 60


@pytest.mark.parametrize("exactly_once", [True, False])
@pytest.mark.parametrize("point", ["file.claim.created", "file.seal.written"])
def test_a_store_that_fails_while_an_actor_is_restarted_is_tried_again(
    tmp_path: Path, tally: Tally, exactly_once: bool, point: str
) -> None:
    class Failing(count_class(tmp_path / "store", exactly_once=exactly_once)):
        def __init__(self, tally: Any) -> None:
            super().__init__()
            if tally.bump() in (1, 2, 3):
                os.environ["FTRAY_CHECKPOINT_FAULT"] = f"{point}:raise"

    actor = ray.remote(max_restarts=-1, max_task_retries=-1)(Failing).remote(tally)
    assert ray.get(actor.add.remote(), timeout=LONG_S) == 1
    ray.get(actor.checkpoint.remote(), timeout=LONG_S)
    os.kill(ray.get(actor.pid.remote(), timeout=LONG_S), signal.SIGKILL)
    assert ray.get(actor.add.remote(), timeout=LONG_S) == 2
    assert tally.count == 5


@pytest.mark.parametrize("exactly_once", [True, False])
def test_a_restart_that_finds_nothing_is_no_beginning(tmp_path: Path, exactly_once: bool) -> None:
    cls = count_class(tmp_path / "store", exactly_once=exactly_once)
    actor = ray.remote(max_restarts=-1, max_task_retries=-1)(cls).remote()
    assert ray.get([actor.add.remote() for _ in range(3)], timeout=LONG_S) == [1, 2, 3]
    ray.get(actor.checkpoint.remote(), timeout=LONG_S)
    pid = ray.get(actor.pid.remote(), timeout=LONG_S)
    os.rename(tmp_path / "store", tmp_path / "elsewhere")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ray.exceptions.ActorDiedError, match="has served before") as caught:
        ray.get(actor.add.remote(), timeout=LONG_S)
    assert isinstance(caught.value.__cause__, checkpoint.CheckpointNotFoundError)


def test_one_that_never_served_begins(tmp_path: Path, tally: Tally) -> None:
    class Dies(ray.Checkpointable, store=tmp_path / "store"):
        def __init__(self, tally: Any) -> None:
            if tally.bump() == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        def works(self) -> bool:
            return True

    actor = ray.remote(max_restarts=1, max_task_retries=-1)(Dies).remote(tally)
    assert ray.get(actor.works.remote(), timeout=LONG_S) and tally.count == 2


@pytest.mark.parametrize("kind", ["threads", "async"])
def test_a_call_whose_record_cannot_be_written_is_made_again_and_not_to_blame(
    tmp_path: Path, tally: Tally, kind: str
) -> None:
    """Its large reply is a blob, for which there is no room in four processes, one after the other."""

    class Store(ray.Checkpointable, store=tmp_path / "store", exactly_once=True):
        def __init__(self, tally: Any) -> None:
            self.n = 0
            if tally.bump() < 4:
                os.environ["FTRAY_CHECKPOINT_FAULT"] = "file.blob.half_written:raise"

        def echo(self, size: int) -> bytes:
            self.n += 1
            return bytes(size)

        @checkpoint.readonly
        def value(self) -> int:
            return self.n

    class Slow(Store):
        async def echo(self, size: int) -> bytes:  # type: ignore[override]
            self.n += 1
            return bytes(size)

    actor = ray.remote(Store if kind == "threads" else Slow).remote(tally)
    assert len(ray.get(actor.echo.remote(100_000), timeout=LONG_S)) == 100_000
    assert ray.get(actor.value.remote(), timeout=LONG_S) == 1
    assert tally.count == 5


def test_whoever_makes_an_actor_is_told_that_the_store_fails(tmp_path: Path, tally: Tally) -> None:
    class Count(ray.Checkpointable, store=tmp_path / "store", exactly_once=True):
        def __init__(self, tally: Any) -> None:
            tally.bump()
            os.environ["FTRAY_CHECKPOINT_FAULT"] = "file.claim.created:raise"

    actor = ray.remote(Count).remote(tally)
    with pytest.raises(ray.exceptions.ActorDiedError, match="cannot claim"):
        ray.get(actor.__ray_ready__.remote(), timeout=LONG_S)
    assert tally.count == 1
