"""On Ray: a restore that fails is tried again in another process, and parks at the third time."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray.ray import Checkpointable, readonly
from tests.ray.checkpoint_support import cluster, eventually, get, kill, ray, ray_runs, store

__all__ = ["cluster", "ray_runs", "store"]


def fragile(exactly_once: bool) -> Any:
    class Fragile(Checkpointable, exactly_once=exactly_once):
        def __init__(self, starts: str, broken: str, tries: int) -> None:
            self.n, self.broken = 0, broken
            with open(starts, "ab") as file:
                file.write(b"x")
                self.fails = file.tell() - 1 <= tries

        def save_checkpoint(self) -> Any:
            return self.n

        def load_checkpoint(self, state: Any) -> None:
            if self.fails and os.path.exists(self.broken):
                raise ValueError("this state is not to my liking")
            self.n = state

        def add(self) -> int:
            self.n += 1
            return self.n

        @readonly
        def pid(self) -> int:
            return os.getpid()

    return ray.remote(max_restarts=-1, max_task_retries=-1)(Fragile)


@pytest.mark.limit(200)
@pytest.mark.parametrize(("exactly_once", "tries"), [(True, 99), (False, 2)])
def test_a_restore_that_fails(store: str, tmp_path: Path, exactly_once: bool, tries: int) -> None:
    starts, broken = tmp_path / "starts", tmp_path / "broken"
    name = f"fragile-{tries}"
    actor = fragile(exactly_once).options(name=name).remote(str(starts), str(broken), tries)
    assert get(actor.add.remote()) == 1
    get(actor.checkpoint.remote())
    broken.touch()
    kill(get(actor.pid.remote()))
    if tries == 2:
        assert get(actor.add.remote()) == 2
    else:
        with pytest.raises(ray.exceptions.ActorDiedError, match="CheckpointParkedError"):
            get(actor.add.remote(), 180)
        reader = checkpoint.open(store)  # the process that has failed lives on for a moment
        eventually(lambda: reader.describe(f"tests/{name}").state == "parked")
    assert starts.stat().st_size == 4
