"""Which tests of tests/functional hold on Ray, too (``pytest --engine=ray``), with what differs named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import ROOT

# Modules that run on both engines.
MODULES = (
    "test_actor_pool",
    "test_actors",
    "test_task_errors",
    "test_tasks",
)
# Test (without its parameters) -> why it is not run on Ray.
DIFFERENT = {
    "test_actors::test_async_actor_starts_calls_in_order_and_bounds_them": "Ray keeps no order of such calls",
}


def workers_find_tests(directory: Path) -> None:
    """Have Ray's workers import ``tests``, and nothing else of where the sources are."""
    (directory / "tests").symlink_to(Path(ROOT, "tests"))
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{directory}{os.pathsep}{path}" if path else str(directory)


def chosen(items: list[pytest.Item], config: pytest.Config) -> list[pytest.Item]:
    """Return the tests that run; the others are reported as deselected."""
    kept, left = [], []
    for item in items:
        module, name = item.path.stem, item.name.partition("[")[0]
        listed = item.path.parent.name == "functional" and module in MODULES
        (kept if listed and f"{module}::{name}" not in DIFFERENT else left).append(item)
    config.hook.pytest_deselected(items=left)
    return kept
