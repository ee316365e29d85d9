"""Fixtures: a runtime shared as far as isolation allows, events, driver programs, and leak checks."""

from __future__ import annotations

import gc
import os
import resource
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

import ftray as ray
from ftray import _printer
from tests.helpers import processes
from tests.helpers.drivers import Driver
from tests.helpers.guard import dump_to
from tests.helpers.leaks import Footprint
from tests.helpers.members import Members, members

DEFAULT_OPTIONS: dict[str, Any] = {"num_cpus": 2}
FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "runtime(**options): arguments of init() for the shared runtime")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


class SharedCluster:
    """As `SharedRuntime`, on the engine that ``--engine`` names, whose processes are not ours to count."""

    def __init__(self) -> None:
        self.options: dict[str, Any] | None = None

    def use(self, options: dict[str, Any]) -> None:
        if self.options != options or not ray.is_initialized():
            self.stop()
            small = {"object_store_memory": 100 << 20, "include_dashboard": False, "log_to_driver": False}
            ray.init(address="local", **{**small, **options})
            self.options = options

    def check(self) -> None:
        """Ray keeps its own books."""

    def stop(self) -> None:
        self.options = None
        ray.shutdown()

    drop = stop


class SharedRuntime:
    """At most one runtime in this process, kept until a test wants another one or none."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.mark = os.environ[processes.MARK]
        self.options: dict[str, Any] | None = None
        self.footprint: Footprint | None = None

    def use(self, options: dict[str, Any]) -> None:
        if self.options != options or not ray.is_initialized():
            self.stop()
            self.footprint = Footprint(self.mark, self.base)
            ray.init(**options)
            self.options = options

    def check(self) -> None:
        """After a test: settled, or the next one gets a fresh runtime."""
        if self.footprint is None:
            return
        try:
            self.footprint.check_settled()
        except BaseException:
            self.drop()
            raise

    def drop(self) -> None:
        footprint, self.footprint, self.options = self.footprint, None, None
        ray.shutdown()
        if footprint is not None:
            for pid in processes.marked(self.mark):
                processes.end(pid)

    def stop(self) -> None:
        """Shut down and require that the process is as it was before."""
        footprint, self.footprint, self.options = self.footprint, None, None
        ray.shutdown()
        gc.collect()
        if footprint is not None:
            footprint.check_restored()


@pytest.fixture(scope="session")
def shared_runtime(pytestconfig: pytest.Config) -> Iterator[SharedRuntime | SharedCluster]:
    if pytestconfig.getoption("--engine") != "native":
        os.environ["FTRAY_ENGINE"] = pytestconfig.getoption("--engine")
        from tests.ray import both

        with tempfile.TemporaryDirectory(prefix="ftray-tests-") as base:
            both.workers_find_tests(Path(base))
            cluster = SharedCluster()
            yield cluster
            cluster.stop()
        return
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # segfaults are part of the plan
    with tempfile.TemporaryDirectory(prefix="ftray-tests-") as base:
        os.environ["FTRAY_TMPDIR"] = base
        os.environ[processes.MARK] = processes.new_mark()
        runtime = SharedRuntime(Path(base))
        yield runtime
        runtime.stop()


@pytest.fixture(scope="session", autouse=True)
def dumps_are_seen(pytestconfig: pytest.Config) -> None:
    """Stacks of a test that hangs go to the terminal, even if the process has to be ended."""
    capture = pytestconfig.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        dump_to(os.dup(2))


@pytest.fixture
def runtime(request: pytest.FixtureRequest, shared_runtime: SharedRuntime) -> Iterator[SharedRuntime]:
    """A running runtime, shared with other tests; ``@pytest.mark.runtime(...)`` asks for special options."""
    marker = request.node.get_closest_marker("runtime")
    shared_runtime.use({**DEFAULT_OPTIONS, **(marker.kwargs if marker else {})})
    yield shared_runtime
    if request.node.stash.get(FAILED, False):
        shared_runtime.drop()  # pytest keeps a failed test's frames, and so its refs
    else:
        shared_runtime.check()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """What the runtime has told its user. (`capfd` may lose what is written while it is read.)"""
    lines: list[str] = []
    write = _printer._write

    def tell(stream: int, out: list[str]) -> None:
        lines.extend(out)
        write(stream, out)

    monkeypatch.setattr(_printer, "_write", tell)
    return lambda: "\n".join(lines)


@pytest.fixture
def no_runtime(shared_runtime: SharedRuntime) -> Iterator[Footprint]:
    """No runtime at the start; whatever the test starts in this process must be gone at its end."""
    shared_runtime.stop()
    footprint = Footprint(shared_runtime.mark, shared_runtime.base)
    yield footprint
    ray.shutdown()
    footprint.check_restored()


@pytest.fixture
def start_driver(tmp_path: Path) -> Iterator[Callable[..., Driver]]:
    """Start driver programs; at the end of the test none of their processes may be left."""
    drivers: list[Driver] = []

    def start(source: str, **options: Any) -> Driver:
        driver = Driver(source, tmp_path / f"driver{len(drivers)}", **options)
        drivers.append(driver)
        return driver

    yield start
    left = [name for driver in drivers for name in driver.close()]
    assert not left, f"processes left by driver programs: {left}"


@pytest.fixture
def member(start_driver: Callable[..., Driver]) -> Iterator[Members]:
    """``member(slot)``: a process of a session whose node is the test."""
    with members(start_driver) as session:
        yield session
