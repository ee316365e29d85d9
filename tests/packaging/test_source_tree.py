"""However a test is started, it sees the installed ftray, not the sources in the current directory."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.packaging.builds import copy_of_the_sources, environment, run

pytestmark = pytest.mark.limit(300)

TEST = """
import subprocess, sys
import ftray, ftray._core, tests

def test_probe():
    assert not ftray.__file__.startswith(tests.ROOT)
    # A child that has the current directory on its path, as `python -c` has, sees the installed one too.
    command = [sys.executable, "-c", "import ftray; print(ftray.__file__)"]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.stdout.strip() == ftray.__file__, child.stderr
"""
PROGRAM = """
import tests
import ftray, ftray._core
assert not ftray.__file__.startswith(tests.ROOT), ftray.__file__
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with one test of what a test imports and one program that does the same."""
    root = copy_of_the_sources(tmp_path_factory.mktemp("tree") / "ftray")
    (root / "tests" / "unit").mkdir(exist_ok=True)
    (root / "tests" / "unit" / "test_probe.py").write_text(TEST)
    (root / "tests" / "probe.py").write_text(PROGRAM)
    return root


@pytest.mark.parametrize("start", [["-m", "pytest"], [str(Path(sys.executable).with_name("pytest"))]])
@pytest.mark.parametrize("pythonpath", [".", ""])
def test_pytest_in_the_root_of_the_repository(tree: Path, start: list[str], pythonpath: str) -> None:
    command = [sys.executable, *start, "-p", "no:cacheprovider", "tests/unit/test_probe.py"]
    run(command, cwd=tree, PYTHONPATH=pythonpath)


def test_a_program_of_the_tests_in_the_root_of_the_repository(tree: Path) -> None:
    run([sys.executable, "-m", "tests.probe"], cwd=tree)


def test_without_ftray_the_tests_say_what_to_do(tree: Path) -> None:
    hide = "import sys, pytest; sys.modules['ftray'] = None"
    done = subprocess.run(
        [sys.executable, "-c", f"{hide}; sys.exit(pytest.main(['tests/unit/test_probe.py']))"],
        cwd=tree,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "make test" in done.stderr
