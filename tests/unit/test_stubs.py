"""Every extension has a stub, and stubs say what is there: names, members, parameters and their defaults."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from ftray import _core
from tests import ROOT

INSTALLED = Path(_core.__file__).parent
MODULES = sorted(path.stem for path in Path(ROOT, "_core").glob("*.pyx"))
ALLOWED = (
    # What Cython adds for itself.
    r".*\.__(reduce|setstate)_cython__",
    r".*\.__pyx_(vtable|capi)__",
    r".*\.__test__",
    # The class has it from Python 3.12 on.
    r".*\.PinnedBuffer\.__buffer__",
    # Takes nothing, which the interpreter does not know of the constructors of extension classes.
    r".*\.(Executor|ObjectRef|ObjectRefGenerator|PinnedBuffer|RefTable)\.__init__",
)


def stubtest(directory: Path, *modules: str) -> subprocess.CompletedProcess[str]:
    allowed = directory / "allowed"
    allowed.write_text("\n".join(ALLOWED))
    options = ["--concise", "--ignore-disjoint-bases", "--ignore-unused-allowlist", "--allowlist", allowed]
    return subprocess.run(
        [sys.executable, "-m", "mypy.stubtest", *options, *modules],
        cwd=directory,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("module", MODULES)
def test_an_extension_is_installed_with_its_stub(module: str) -> None:
    assert (INSTALLED / f"{module}.pyi").is_file()
    assert list(INSTALLED.glob(f"{module}.*.so"))


def test_every_stub_is_of_an_extension() -> None:
    assert sorted(path.stem for path in INSTALLED.glob("*.pyi")) == MODULES


@pytest.mark.limit(180)
def test_stubs_agree_with_the_extensions(tmp_path: Path) -> None:
    found = stubtest(tmp_path, *(f"ftray._core.{module}" for module in MODULES))

    assert found.returncode == 0, found.stdout + found.stderr
