"""Checkpoints through ftray's own API on Ray: calls out of methods, tasks that carry who they are, keys."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

import ftray
from tests.ray.checkpoint_support import Once, cluster, ray_runs, store

__all__ = ["cluster", "ray_runs", "store"]


@pytest.fixture
def api(store: str) -> None:
    """ftray's API on the Ray that runs."""
    if not ftray.is_initialized():
        ftray.init(engine="ray")


def got(refs: Any) -> Any:
    return ftray.get(refs, timeout=60)


class Through(Once):
    def through(self, other: Any, mark: str) -> list[int]:
        first = ftray.get(other.incr.remote(5))
        if not os.path.exists(mark):
            with open(mark, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        second = ftray.get(other.incr.remote(1))
        self.n += first + second
        return [first, second]


def test_a_method_s_calls_and_what_it_gets_are_recorded(api: None, tmp_path: Path) -> None:
    one, other = ftray.remote(Through).remote(), ftray.remote(Once).remote()
    assert got(one.through.remote(other, str(tmp_path / "mark"))) == [5, 6]
    assert got(other.value.remote()) == 6
    os.kill(got(one.pid.remote()), signal.SIGKILL)
    assert got(one.value.remote()) == 11
    assert got(other.value.remote()) == 6
    assert ftray.checkpoint.status(one)["incarnation"] == 3


def test_tasks_of_a_task_that_is_run_again_are_the_same(api: None, tmp_path: Path) -> None:
    mark = str(tmp_path / "mark")

    @ftray.remote
    def inner(actor: Any) -> int:
        return int(ftray.get(actor.incr.remote(100)))

    @ftray.remote(max_retries=3)
    def outer(actor: Any) -> list[int]:
        made = ftray.get([inner.remote(actor) for _ in range(2)])
        if not os.path.exists(mark):
            with open(mark, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return sorted(made)

    actor = ftray.remote(Once).remote()
    assert got(outer.remote(actor)) == [100, 200]
    assert got(actor.value.remote()) == 200


def test_an_option_names_a_call(api: None) -> None:
    actor = ftray.remote(Once).remote()
    pay = actor.incr.options(call_key="order-1")
    assert got([pay.remote(3), pay.remote(3)]) == [3, 3]
    assert got(actor.incr.remote()) == 4
    with pytest.raises(ValueError, match="as asked"):
        got(actor.fail.remote())
