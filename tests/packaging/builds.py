"""Builds and installations as a user makes them, in directories of their own, with the shared build cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from tests import ROOT

REPOSITORY = Path(ROOT)
NOT_SOURCES = shutil.ignore_patterns(
    *(".git", ".venv*", "build", "dist", "*.egg-info", "*.so", "*.py[co]", "__pycache__"),
    *(".*_cache", ".hypothesis"),
)


def environment(**extra: str) -> dict[str, str]:
    """A plain environment: no PYTHONPATH, the quick build mode, the cache that all builds of a run share."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FTRAY_"))}
    cache = os.environ.get("FTRAY_BUILD_CACHE") or str(REPOSITORY / "build" / "cache")
    return env | {"FTRAY_BUILD": "fast", "FTRAY_BUILD_CACHE": cache} | extra


def run(command: Sequence[str | Path], cwd: Path, **extra_env: str) -> str:
    """Standard output of a command, which must succeed."""
    done = subprocess.run(command, cwd=cwd, env=environment(**extra_env), capture_output=True, text=True)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def copy_of_the_sources(target: Path) -> Path:
    shutil.copytree(REPOSITORY, target, ignore=NOT_SOURCES)
    return target


def sources(root: Path, *parts: str) -> set[str]:
    """All files of the named directories, relative to `root`."""
    return {
        str(path.relative_to(root))
        for part in parts
        for path in (root / part).rglob("*")
        if path.is_file() and path.suffix not in (".so", ".pyc") and "__pycache__" not in path.parts
    }


def call_backend(hook: str, project: Path, output: Path, **extra_env: str) -> Path:
    """The file made by a PEP 517 hook: ``build_wheel``, ``build_sdist`` or ``build_editable``."""
    output.mkdir(parents=True, exist_ok=True)
    code = f"from setuptools import build_meta; build_meta.{hook}({str(output)!r})"
    before = set(output.iterdir())
    run([sys.executable, "-c", code], cwd=project, **extra_env)
    (made,) = set(output.iterdir()) - before
    return made


def unpack(sdist: Path, target: Path) -> Path:
    shutil.unpack_archive(sdist, target)
    (project,) = target.iterdir()
    return project


class EmptyEnvironment:
    """A new virtual environment without anything, not even pip; the pip of this one fills it."""

    def __init__(self, directory: Path, wheels: Path) -> None:
        venv.create(directory, with_pip=False, symlinks=True)
        self.python = directory / "bin" / "python"
        self.directory = directory
        self._wheels = wheels

    def install(self, what: str | Path) -> None:
        """Install with dependencies, which come from the given directory of wheels and from nowhere else."""
        run(
            [
                *(sys.executable, "-m", "pip", "--python", self.python),
                *("install", "--quiet", "--no-index", "--find-links", self._wheels, what),
            ],
            cwd=self.directory,
            PIP_CONFIG_FILE=os.devnull,
        )

    def run_program(self, text: str, cwd: Path | None = None) -> str:
        """Standard output of a program, run as a file."""
        program = self.directory / "program.py"
        program.write_text(text)
        return run([self.python, program], cwd=cwd or self.directory)
