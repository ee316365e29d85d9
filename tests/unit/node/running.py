"""Nodes under test: real ``ftrayd`` processes whose workers are the fakes."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ftray._node import frames as f
from ftray._node import launch
from tests.helpers import processes
from tests.unit.node.fakes import FakeDriver, actor_spec

FAKES = "tests.unit.node.fakes"


class Running:
    """A node under test and its drivers."""

    def __init__(self, base: Path, **options: Any) -> None:
        values = {"num_cpus": 2, "num_gpus": 0, "worker_module": FAKES, "tmpdir": str(base), **options}
        self.base = base
        self.handle = launch.start_node(launch.NodeOptions(**values))
        self.drivers: list[FakeDriver] = []
        self.log_fd = os.open(Path(self.dir, "ftrayd.log"), os.O_RDONLY | os.O_CREAT)

    def story(self) -> str:
        """What there is to say about a node that is gone though a test needs it."""
        status = os.waitid(os.P_PID, self.handle.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return f"{self.handle.last_words()}; {status}; log: {os.pread(self.log_fd, 1 << 16, 0).decode()}"

    @property
    def dir(self) -> str:
        return self.handle.session_dir

    def driver(self, **options: Any) -> FakeDriver:
        driver = FakeDriver(self.dir, **options)
        driver.last_words = self.story
        self.drivers.append(driver)
        return driver

    def descendants(self) -> list[int]:
        return [pid for pid in processes.descendants_of(self.handle.pid) if processes.is_running(pid)]

    def zygote(self) -> int:
        return processes.only_zygote(self.descendants)

    def close(self) -> None:
        for driver in self.drivers:
            driver.close()
        self.handle.shutdown()
        if self.log_fd >= 0:
            os.close(self.log_fd)
            self.log_fd = -1


IMPATIENT = """
import importlib, importlib.util
spec = importlib.util.spec_from_file_location("boot", {boot!r})
boot = importlib.util.module_from_spec(spec)
spec.loader.exec_module(boot)
enter = boot._package
def package():
    entered = enter()
    for module, name, value in {values!r}:
        assert hasattr(importlib.import_module(module), name)
        setattr(importlib.import_module(module), name, value)
    return entered
boot._package = package
boot.main()
"""


@contextlib.contextmanager
def impatient(directory: Path, **seconds: float) -> Iterator[None]:
    """Nodes that are started inside wait as long as given: ``actors__EARLY_SUBSCRIBER_S=0.1``."""
    values = [(f"ftray._node.{name.split('__')[0]}", name.split("__")[1], seconds[name]) for name in seconds]
    real = launch.__file__
    directory.mkdir()
    boot = directory / "boot.py"
    boot.write_text(IMPATIENT.format(boot=str(Path(real).with_name("boot.py")), values=values))
    launch.__file__ = str(boot.with_name("launch.py"))  # beside it lies what is started
    try:
        yield
    finally:
        launch.__file__ = real


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process of this test through a pidfd."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def wait_ended(pids: list[int], timeout_s: float = 20.0) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                assert select.select([pidfd], [], [], timeout_s)[0], f"process {pid} lives on"
            finally:
                os.close(pidfd)


def descriptors() -> dict[str, str]:
    """What this process has open: where each descriptor leads to."""
    found = {}
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def nodes(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start nodes; afterwards no process, descriptor or session directory may be left."""
    gc.collect()  # what earlier tests left to the collector must not go in between
    before = descriptors()
    running: list[Running] = []

    def begin(**options: Any) -> Running:
        running.append(Running(tmp_path, **options))
        return running[-1]

    yield begin
    pids = [pid for node in running for pid in [node.handle.pid, *processes.descendants_of(node.handle.pid)]]
    for node in running:
        node.close()
    wait_ended(pids)
    assert list(tmp_path.glob("ftray-*/s-*")) == []
    gc.collect()
    left = {fd: path for fd, path in descriptors().items() if before.get(fd) != path}
    assert not left, f"left open: {left}; before: {before}"


def create(driver: FakeDriver, **changes: Any) -> bytes:
    """Create an actor and return its id."""
    actor_id = os.urandom(16)
    driver.send(f.ActorCreate(actor_id, actor_spec(driver, actor_id, **changes)))
    return actor_id


def state(driver: FakeDriver, actor_id: bytes, wanted: int, incarnation: int = 0) -> Any:
    return driver.wait(
        f.ActorState,
        lambda s: s.actor_id == actor_id and s.state == wanted and s.incarnation >= incarnation,
    )


PENDING, ALIVE, RESTARTING, DEAD = 1, 2, 3, 4
