"""What the tests of checkpoints on Ray share: a small cluster, actors, and ways to end things."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ray = pytest.importorskip("ray")

from ftray.ray import Checkpointable, nondeterministic, readonly  # noqa: E402

SMALL: dict[str, Any] = {
    "address": "local",  # and not the one that somebody else runs on this machine
    "num_cpus": 2,
    "include_dashboard": False,
    "object_store_memory": 100_000_000,
    "namespace": "tests",
    "log_to_driver": False,
}
WAIT_S = 60.0


@pytest.fixture(scope="session")
def ray_runs() -> Iterator[None]:
    """A Ray of these tests, unless one runs already."""
    own = not ray.is_initialized()
    if own:
        ray.init(**SMALL)
    yield
    if own:
        ray.shutdown()


@pytest.fixture(scope="module")
def cluster(ray_runs: None, request: pytest.FixtureRequest) -> None:
    """A Ray whose workers need not find this module."""
    by_value(request.module)


def by_value(module: Any) -> None:
    """Have what tests define carried to workers by value."""
    for each in (sys.modules[__name__], module):
        ray.cloudpickle.register_pickle_by_value(each)


@pytest.fixture
def store(cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The default store of the actors that a test makes."""
    monkeypatch.setenv("FTRAY_CHECKPOINT_STORE", str(tmp_path / "store"))
    return str(tmp_path / "store")


def get(refs: Any, timeout_s: float = WAIT_S) -> Any:
    """`ray.get` that ends."""
    return ray.get(refs, timeout=timeout_s)


def kill(pid: int) -> None:
    """End an actor's process as a crash does; only a worker of this test's Ray."""
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        assert file.read().startswith(b"ray::"), f"process {pid} is none of a Ray actor"
    os.kill(pid, signal.SIGKILL)


def eventually(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Ask until it is true; for what Ray does in the background and tells nobody."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        time.sleep(0.05)
    return found


def is_gone(name: str, namespace: str = "tests") -> bool:
    """Whether the name is free."""
    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return True
    return False


class Counter(Checkpointable):
    def __init__(self, start: int = 0) -> None:
        self.n = start

    def incr(self, k: int = 1) -> int:
        self.n += self.scaled(k)
        return self.n

    def scaled(self, k: int) -> int:
        return k

    @readonly
    def value(self) -> int:
        return self.n

    @readonly
    def pid(self) -> int:
        return os.getpid()

    def fail(self) -> None:
        self.n += 1
        raise ValueError(f"as asked at {self.n}")

    def bye(self) -> None:
        self.n += 1000
        ray.actor.exit_actor()


class Once(Counter, exactly_once=True):
    def die_once(self, mark: str) -> int:
        self.n += 1
        if not os.path.exists(mark):
            with open(mark, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        return self.n

    def add_to(self, other: Any, mark: str = "") -> int:
        """Call another one, die, and go on."""
        first = int(self.record(lambda: ray.get(other.incr.remote(10))))
        if mark and not os.path.exists(mark):
            with open(mark, "w"):
                pass
            os.kill(os.getpid(), signal.SIGKILL)
        second = int(self.record(lambda: ray.get(other.incr.remote(1))))
        self.n += first + second
        return self.n

    def add_badly(self, other: Any) -> int:
        return int(ray.get(other.incr.remote()))

    def wait_for(self, path: str) -> int:
        while not os.path.exists(path):
            time.sleep(0.01)
        self.n += 1
        return self.n

    @nondeterministic
    def roll(self) -> int:
        self.n += os.getpid()
        return self.n
