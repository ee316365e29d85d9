"""A real ``ftrayd`` with fake workers, and a fake driver of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.leaks import Footprint
from tests.unit.node.fakes import FakeDriver
from tests.unit.node.running import Running, nodes


@pytest.fixture
def start(tmp_path: Path, no_runtime: Footprint) -> Iterator[Callable[..., Running]]:
    """Without the runtime that other tests share: its core closes descriptors whenever its workers leave."""
    yield from nodes(tmp_path)


@pytest.fixture
def node(start: Callable[..., Running]) -> Running:
    return start()


@pytest.fixture
def driver(node: Running) -> FakeDriver:
    return node.driver()
