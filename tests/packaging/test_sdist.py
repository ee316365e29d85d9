"""The sdist has all that is needed to build and test ftray, and makes the same wheel as the repository."""

import zipfile
from pathlib import Path

import pytest

from tests.packaging.builds import REPOSITORY, call_backend, sources, unpack

pytestmark = pytest.mark.limit(300)


@pytest.fixture(scope="module")
def project(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack(sdist, tmp_path_factory.mktemp("project"))


def test_it_holds_every_source(project: Path) -> None:
    parts = ("_core", "ftray", "checkpoint", "tests", "benchmarks", "examples", "docs", ".ci")
    wanted = sources(REPOSITORY, *parts)
    wanted |= {"setup.py", "pyproject.toml", "Makefile", "MANIFEST.in"}
    wanted |= {"README.md", "CHANGELOG.md", "LICENSE"}
    assert {"_core/types.hpp", "ftray/py.typed"} <= wanted
    assert wanted - sources(project, ".") == set()


def test_it_holds_nothing_generated(project: Path) -> None:
    generated = {path for path in project.rglob("*") if path.suffix in (".so", ".o", ".pyc")}
    generated |= set(project.glob("_core/*.cpp"))
    assert generated == set()
    assert not (project / "build").exists()


def test_the_wheel_made_from_it_has_the_files_of_the_wheel_made_from_the_repository(
    project: Path, wheel: Path, tmp_path: Path
) -> None:
    rebuilt = call_backend("build_wheel", project, tmp_path / "wheel")
    assert sorted(zipfile.ZipFile(rebuilt).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())
