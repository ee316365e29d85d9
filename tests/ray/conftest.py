"""A Ray cluster for the tests of the engine "ray", started once, and always ended."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import ftray
from tests.ray import both

SMALL = {
    "address": "local",  # and not one that somebody else runs on this machine
    "num_cpus": 2,
    "object_store_memory": 100 << 20,
    "include_dashboard": False,
    "log_to_driver": False,
}


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    both.workers_find_tests(tmp_path_factory.mktemp("path"))
    context = ftray.init(engine="ray", namespace="tests", **SMALL)  # type: ignore[arg-type]
    yield context.address_info
    ftray.shutdown()


@pytest.fixture
def cluster(started: dict[str, str]) -> dict[str, str]:
    """The running cluster; a test that ended it is to blame."""
    assert ftray.is_initialized()
    return started
