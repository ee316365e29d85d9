"""An editable install: Python sources are live, extensions are compiled beside their sources."""

from pathlib import Path

import pytest

from tests.packaging.builds import EmptyEnvironment, call_backend, unpack

pytestmark = pytest.mark.limit(300)


def test_sources_are_live_and_extensions_are_importable(sdist: Path, wheels: Path, tmp_path: Path) -> None:
    project = unpack(sdist, tmp_path / "project")
    environment = EmptyEnvironment(tmp_path / "environment", wheels)
    environment.install(call_backend("build_editable", project, tmp_path / "editable"))

    for part in ("ftray", "checkpoint", "_core"):
        (project / part / "added_later.py").write_text(f"part = {part!r}\n")
    modules = [f"ftray._core.{source.stem}" for source in sorted((project / "_core").glob("*.pyx"))]
    program = f"""
import importlib
import ftray.added_later, ftray._core.added_later, ftray.checkpoint.added_later
print(ftray.added_later.part, ftray.checkpoint.added_later.part, ftray._core.added_later.part)
for name in {modules!r}:
    print(importlib.import_module(name).__file__)
"""
    # In the project, where `ftray/` is found by way of the current directory too, and elsewhere.
    for cwd in (project, tmp_path):
        parts, *files = environment.run_program(program, cwd=cwd).splitlines()
        assert parts == "ftray checkpoint _core"
        assert {Path(file).parent for file in files} == {project / "_core"}
        assert len(files) == len(modules) > 0
