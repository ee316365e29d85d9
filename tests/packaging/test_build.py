"""The build itself, on a project of two small extensions: modes, the cache, and nothing stale in a wheel."""

import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.packaging.builds import REPOSITORY, call_backend, environment, run

pytestmark = pytest.mark.limit(300)

FILES = {
    "ftray/__init__.py": "",
    "ftray/gone.py": "",
    "checkpoint/__init__.py": "",
    "_core/__init__.py": "",
    "_core/twice.hpp": "#pragma once\ninline int twice(int x) { return 2 * x; }\n",
    "_core/box.pxd": "cdef class Box:\n    cdef int n\n    cdef int value(self) noexcept nogil\n",
    "_core/box.pyx": """
cdef extern from "twice.hpp" nogil:
    int twice(int x) noexcept
cdef class Box:
    def __init__(self, int n):
        self.n = n
    cdef int value(self) noexcept nogil:
        return twice(self.n)
""",
    "_core/user.pyx": """
from ftray._core.box cimport Box
def value_of(Box box):
    with nogil:
        result = box.value()
    return result
""",
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, root)
    return root


class Builder:
    """Builds into one cache and tells which modules had to be compiled for it."""

    def __init__(self, directory: Path) -> None:
        self.cache = directory / "cache"
        self._directory = directory
        self._builds = 0

    def build(self, project: Path, **settings: str) -> tuple[Path, list[str]]:
        """The wheel, and the modules that the cache did not have."""
        self._builds += 1
        before = self._compiled()
        output = self._directory / f"wheel-{self._builds}"
        wheel = call_backend("build_wheel", project, output, FTRAY_BUILD_CACHE=str(self.cache), **settings)
        return wheel, sorted(name.split(".so-")[0] for name in self._compiled() - before)

    def _compiled(self) -> set[str]:
        return {path.name for path in self.cache.glob("*.so-*")}


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    return Builder(tmp_path_factory.mktemp("builder"))


def value_of_21(wheel: Path, target: Path) -> int:
    zipfile.ZipFile(wheel).extractall(target)
    code = "from ftray._core.box import Box; from ftray._core.user import value_of; print(value_of(Box(21)))"
    return int(run([sys.executable, "-c", code], cwd=target))


def test_only_what_changed_is_compiled_again(project: Path, builder: Builder, tmp_path: Path) -> None:
    first, _ = builder.build(project)
    assert value_of_21(first, tmp_path / "installed") == 42

    moved = project.rename(tmp_path / "moved")  # the same sources at another place are the same sources
    assert builder.build(moved)[1] == []

    with (moved / "_core/user.pyx").open("a") as source:
        source.write("def more(): return 1\n")
    assert builder.build(moved)[1] == ["ftray._core.user"]


def test_a_header_that_changed_is_never_ignored(project: Path, builder: Builder, tmp_path: Path) -> None:
    builder.build(project)
    header = project / "_core/twice.hpp"
    header.write_text(header.read_text().replace("2 * x", "3 * x"))
    second, compiled = builder.build(project)
    assert "ftray._core.box" in compiled
    assert value_of_21(second, tmp_path / "installed") == 63


def test_a_failed_build_leaves_nothing_that_a_later_one_trusts(project: Path, builder: Builder) -> None:
    (project / "_core/broken.pyx").write_text("cdef int f() noexcept nogil:\n    return nowhere()\n")
    for _ in range(2):
        with pytest.raises(AssertionError, match=r"broken\.pyx:2:.*nowhere"):
            builder.build(project)
    (project / "_core/broken.pyx").write_text("cdef int f() noexcept nogil:\n    return 1\n")
    assert "ftray._core.broken" in builder.build(project)[1]


def test_each_mode_has_its_own_binaries(project: Path, builder: Builder) -> None:
    builder.build(project, FTRAY_BUILD="fast")
    assert builder.build(project, FTRAY_BUILD="debug")[1] == ["ftray._core.box", "ftray._core.user"]
    assert builder.build(project, FTRAY_BUILD="fast")[1] == []


def test_a_deleted_module_leaves_the_wheel(project: Path, builder: Builder) -> None:
    first, _ = builder.build(project)
    assert "ftray/gone.py" in zipfile.ZipFile(first).namelist()
    (project / "ftray/gone.py").unlink()
    (project / "_core/user.pyx").unlink()
    second, _ = builder.build(project)
    names = zipfile.ZipFile(second).namelist()
    assert [name for name in names if "gone" in name or "user" in name] == []
    assert [name for name in names if name.endswith(".so")] != []


def test_tracing_compiles_the_trace_in_and_annotates(project: Path, builder: Builder) -> None:
    _, compiled = builder.build(project, FTRAY_TRACE="1")
    assert compiled == ["ftray._core.box", "ftray._core.user"]
    generated = project / "build/cython/build/stage/ftray/_core"
    assert sorted(path.name for path in generated.glob("*.html")) == ["box.html", "user.html"]
    assert "__Pyx_TraceLine(" in (generated / "box.cpp").read_text()


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [("FTRAY_BUILD", "fats", "fast, debug, asan"), ("FTRAY_TRACE", "yes", "0 or 1")],
)
def test_an_unknown_setting_is_refused_by_name(project: Path, name: str, value: str, allowed: str) -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--version"],
        cwd=project,
        env=environment(**{name: value}),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert f"{name}={value!r}" in done.stderr
    assert allowed in done.stderr


def test_the_cache_keeps_what_was_used_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = runpy.run_path(str(REPOSITORY / "setup.py"))
    cache = setup["BuildCache"](tmp_path / "cache")
    monkeypatch.setitem(cache.prune.__globals__, "CACHE_SIZE_BYTES", 25)
    made = tmp_path / "made"
    made.write_bytes(bytes(10))
    for age_s, key in enumerate(("newest", "middle", "oldest")):
        cache.store(key, made)
        os.utime(tmp_path / "cache" / key, (1e9 - age_s, 1e9 - age_s))
    assert cache.fetch("oldest", made)  # which makes it the newest
    cache.prune()
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["newest", "oldest"]
    assert not cache.fetch("middle", made)
