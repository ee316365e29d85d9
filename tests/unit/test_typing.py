"""mypy in strict mode knows the types of tasks, actors and objects, and refuses what is wrong."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import ftray
from ftray._functions import RemoteFunction
from ftray.actor import ActorClass, ActorHandle
from tests import ROOT

SAMPLE = Path(ROOT, "tests", "helpers", "typed_sample.py")
LINES = SAMPLE.read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """What mypy says of the sample, by line."""
    directory = tmp_path_factory.mktemp("mypy")
    (directory / "sample.py").write_text("\n".join(LINES), encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--no-error-summary",
        "--config-file",
        "",
        "sample.py",
    ]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[int, list[str]] = {}
    for line in done.stdout.splitlines():
        file, number, text = line.split(":", 2)
        assert file == "sample.py", line
        found.setdefault(int(number), []).append(text.strip())
    return found


def simplified(text: str) -> str:
    """A revealed type without the modules that its names come from."""
    return re.sub(r"\b(?:\w+\.)+(?=\w)", "", text)


@pytest.mark.limit(180)
def test_types_and_errors_are_as_the_sample_says(reported: dict[int, list[str]]) -> None:
    wrong = []
    for number, line in enumerate(LINES, 1):
        said = " ".join(
            text for text in reported.get(number, []) if not text.startswith("note: ") or "Revealed" in text
        )
        expected = re.search(r"  # (type|error): (.+)$", line)
        if expected is None:
            fits = not said
        elif expected[1] == "type":
            fits = simplified(said) == f'note: Revealed type is "{expected[2]}"'
        else:
            fits = said.count("error:") == 1 and f"[{expected[2]}]" in said
        if not fits:
            wrong.append(f"{SAMPLE.name}:{number}: {line.strip()}\n    {said}")
    assert not wrong, "\n".join(wrong)


def test_types_in_annotations_cost_nothing() -> None:
    """The parameters are for type checkers: no base class is there for them, no attribute at an instance."""
    assert [base.__name__ for base in RemoteFunction.__mro__] == [
        "RemoteFunction",
        "FunctionCaller",
        "object",
    ]
    assert ActorClass.__mro__ == (ActorClass, object)
    assert ActorHandle.__mro__ == (ActorHandle, object)
    for made in (RemoteFunction[[int], str], ActorClass[int], ActorHandle[int], ftray.ObjectRef[int]):
        assert made.__origin__ in (RemoteFunction, ActorClass, ActorHandle, ftray.ObjectRef)


def test_method_without_options_changes_nothing() -> None:
    def f(self: object) -> None:
        pass

    assert ftray.method(f) is f
    with pytest.raises(TypeError, match="takes options"):
        ftray.method()
    with pytest.raises(TypeError, match="options by keyword"):
        ftray.method(5)
    with pytest.raises(TypeError, match="options by keyword"):
        ftray.method(f, num_returns=2)
