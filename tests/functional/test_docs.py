"""The documents are true: Python blocks run and print what they show, links lead somewhere, no name lacks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import ftray
from ftray import _options, exceptions
from ftray._node import frames
from ftray._node.protocol import Frame
from tests import ROOT
from tests.helpers import documents, processes

DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in Path(ROOT, "docs").glob("*.md")))
TIMEOUT_S = 110
SOURCES = ("ftray", "_core", "checkpoint")
# Variables that only the build, or only tests, look at: the contributor's documents have them.
NOT_FOR_USERS = {
    "FTRAY_BUILD",
    "FTRAY_BUILD_CACHE",
    "FTRAY_TRACE",
    "FTRAY_CHECKPOINT_FAULT",
    "FTRAY_SPILL_FAULT",
    "FTRAY_OWN_HASH_SEED",
}


def text_of(name: str) -> str:
    return Path(ROOT, name).read_text(encoding="utf-8")


PROGRAMS = [(name, line) for name in DOCUMENTS for line in documents.programs(text_of(name))]


@pytest.fixture
def mark() -> Iterator[str]:
    """What marks the processes of a program; none of them may outlive it."""
    mark = processes.new_mark()
    yield mark
    processes.require_ended(mark)


def environment(home: Path, mark: str) -> dict[str, str]:
    """Settings of a user who has set nothing."""
    path = [entry for entry in sys.path if entry and os.path.isdir(entry) and os.path.abspath(entry) != ROOT]
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FTRAY_", "RAY_", "XDG_"))}
    own = {"HOME": str(home), "TMPDIR": str(home)}  # no head of whoever runs the tests is found
    return {**kept, **own, "PYTHONPATH": os.pathsep.join(path), processes.MARK: mark}


@pytest.mark.parametrize(("name", "line"), PROGRAMS, ids=[f"{name}:{line}" for name, line in PROGRAMS])
def test_blocks_run(name: str, line: int, tmp_path: Path, mark: str) -> None:
    shutil.copy(documents.__file__, tmp_path / "documents.py")
    program = tmp_path / Path(name).name.replace(".md", ".py")
    program.write_text(documents.programs(text_of(name))[line], encoding="utf-8")
    done = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
        env=environment(tmp_path, mark),
    )
    try:
        output, _nothing = done.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        processes.end(done.pid)
        output, _nothing = done.communicate()
        raise AssertionError(f"{name} did not end within {TIMEOUT_S} s:\n{output}") from None
    assert done.returncode == 0, f"{name}, program at line {line}:\n{output}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name: str) -> None:
    here = Path(ROOT, name)
    for target in documents.links(text_of(name)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _hash, anchor = target.partition("#")
        path = here.parent / file if file else here
        assert path.exists(), f"{name}: {target} leads nowhere"
        if anchor:
            known = documents.anchors(path.read_text(encoding="utf-8"))
            assert anchor in known, f"{name}: {target} names no heading"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_is_linked_from_another(name: str) -> None:
    others = [other for other in DOCUMENTS if other != name]
    linked = {
        os.path.normpath(os.path.join(os.path.dirname(other), target.partition("#")[0]))
        for other in others
        for target in documents.links(text_of(other))
    }
    assert name == "README.md" or name in linked


# --- what the reference must have ------------------------------------------------------------------


def missing_from(document: str, names: set[str]) -> list[str]:
    """Names that stand nowhere in the document's code spans and blocks."""
    text = text_of(document)
    code = " ".join(re.findall(r"`+([^`]+)`+", text))
    return sorted(name for name in names if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", code))


def public_attributes(cls: type) -> set[str]:
    return {name for name in dir(cls) if not name.startswith("_")}


def public_exceptions() -> set[str]:
    return {
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, exceptions.RayError)
    }


def test_api_has_every_public_name() -> None:
    assert missing_from("docs/api.md", {name for name in ftray.__all__ if not name.startswith("_")}) == []


def test_api_has_every_exception() -> None:
    assert missing_from("docs/api.md", public_exceptions()) == []


def test_api_has_every_option() -> None:
    options = {option for checks in _options._CHECKS.values() for option in checks}
    assert missing_from("docs/api.md", options) == []


def test_api_has_every_argument_of_init() -> None:
    code = ftray.init.__code__
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    assert missing_from("docs/api.md", set(arguments)) == []


def test_api_has_every_fact_of_the_runtime_context() -> None:
    from ftray.runtime_context import RuntimeContext

    assert missing_from("docs/api.md", public_attributes(RuntimeContext)) == []


def test_api_has_every_method_of_a_ref() -> None:
    assert missing_from("docs/api.md", public_attributes(ftray.ObjectRef)) == []


def test_api_has_every_environment_variable() -> None:
    read = set()
    for directory in SOURCES:
        for path in Path(ROOT, directory).rglob("*"):
            if path.suffix in (".py", ".pyx", ".hpp"):
                text = path.read_text(encoding="utf-8")
                read |= set(re.findall(r"""["']((?:FT)?RAY_[A-Z][A-Z_]*)["']""", text))
    assert read, "the pattern finds variables"
    assert missing_from("docs/api.md", read - NOT_FOR_USERS) == []
    assert missing_from("docs/internals.md", read & NOT_FOR_USERS) == []


def table_rows(document: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip().strip("|").split("|")]
        for line in text_of(document).splitlines()
        if line.startswith("|")
    ]


def test_every_frame_of_the_control_protocol_is_in_the_table() -> None:
    """Its number, its name, and its fields in wire order."""
    rows = {int(row[0]): row for row in table_rows("docs/internals.md") if row[0].isdigit() and len(row) == 5}
    classes = {
        value.TYPE: value
        for value in vars(frames).values()
        if isinstance(value, type) and issubclass(value, Frame) and value is not Frame
    }
    assert sorted(rows) == sorted(classes)
    for number, frame in classes.items():
        name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", frame.__name__).upper()
        assert rows[number][1] == f"`{name}`"
        fields = re.findall(r"`(\w+)`", rows[number][3])
        assert fields == list(frame._fields), f"the fields of {name}"


# --- the helper itself -----------------------------------------------------------------------------


def test_a_program_keeps_its_lines() -> None:
    text = "# title\n\n```python\nx = 1\n```\n\n```sh\nrm x\n```\n\n```python\n>>> x\n1\n```\n"
    (program,) = documents.programs(text).values()
    lines = program.splitlines()
    assert lines[3] == "x = 1"
    assert lines[11].startswith("_compare('>>> x\\n1\\n'")
    assert "rm" not in program


def test_a_wrong_output_is_found() -> None:
    with pytest.raises(AssertionError, match="Expected"):
        documents.compare(">>> 1 + 1\n3\n", {}, "document.py", 0)
    documents.compare(">>> list(range(9))\n[0, ...]\n", {}, "document.py", 0)


def test_standalone_blocks_are_programs_of_their_own() -> None:
    text = "# title\n\n```python\nx = 1\n```\n\n```python standalone\ny = 2\n```\n"
    first, second = documents.programs(text).items()
    assert (first[0], "y = 2" in first[1]) == (4, False)
    assert (second[0], "y = 2" in second[1]) == (8, True)


def test_a_block_without_end_or_with_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="no end"):
        documents.programs("```python\nx = 1\n")
    with pytest.raises(ValueError, match="not known"):
        documents.programs("# t\n```python skip\nx = 1\n```\n")
