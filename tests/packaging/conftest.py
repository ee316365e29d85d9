"""The wheel and the sdist under test, each built once per run."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.packaging.builds import call_backend, copy_of_the_sources, run


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the wheel of ftray and those of all it depends on; ``make test`` has one."""
    if made := os.environ.get("FTRAY_TEST_WHEELS"):
        return Path(made)
    directory = tmp_path_factory.mktemp("wheels")
    project = copy_of_the_sources(directory / "sources")
    run([sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "-w", directory, project], cwd=project)
    return directory


@pytest.fixture(scope="session")
def wheel(wheels: Path) -> Path:
    (path,) = wheels.glob("ftray-*.whl")
    return path


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sdist")
    return call_backend("build_sdist", copy_of_the_sources(directory / "sources"), directory / "made")
