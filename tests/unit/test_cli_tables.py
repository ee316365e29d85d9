"""Each option and command that the documents list refuses what is wrong, by name, before anything starts."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("click")
from click.testing import CliRunner

from tests import ROOT
from tests.helpers import documents

command_line = importlib.import_module("ftray._cli.main")

# (arguments, exit status, what the message says); a path in braces is in the test's directory.
Case = tuple[list[str], int, str]
START: dict[str, list[Case]] = {
    "--head": [(["--head=yes"], 2, "'--head' does not take a value"), ([], 2, "give --head")],
    "--num-cpus": [
        (["--num-cpus", "two"], 2, "'two' is not a valid float"),
        (["--num-cpus", "-1"], 1, "=-1.0;"),
    ],
    "--num-gpus": [
        (["--num-gpus", "x"], 2, "'x' is not a valid float"),
        (["--num-gpus", "-1"], 1, "num_gpus=-1.0"),
    ],
    "--memory": [(["--memory", "1G"], 2, "'1G' is not a valid int"), (["--memory", "-1"], 1, "memory=-1;")],
    "--resources": [
        (["--resources", "disk"], 2, "'disk' is not JSON"),
        (["--resources", "[1]"], 2, "is not a JSON object of numbers"),
        (["--resources", '{"disk": -1}'], 1, "resources['disk']=-1; allowed is"),
        (["--resources", '{"GPU": 1}'], 1, "resources cannot name 'GPU'"),
    ],
    "--object-store-memory": [
        (["--object-store-memory", "1G"], 2, "'1G' is not a valid int"),
        (["--object-store-memory", "5"], 2, "5 is not in the range x>=1048576"),
    ],
    "--labels": [
        (["--labels", "zone"], 2, "'zone' is not of the form"),
        (["--labels", "=a"], 1, "labels['']='a'"),
    ],
    "--temp-dir": [(["--temp-dir", "/nowhere"], 1, "'/nowhere' does not exist")],
    "--storage": [(["--storage", "{file}"], 1, "{file}")],
    "--block": [(["--block=yes"], 2, "'--block' does not take a value")],
}
COMMANDS: dict[str, list[Case]] = {
    "list": [
        (["list"], 2, "Missing argument 'RESOURCE'"),
        (["list", "nonsense"], 2, "'nonsense' is no resource; there are tasks, actors"),
        (["list", "tasks", "--filter", "name"], 2, "'name' is no filter; use key=value or key!=value"),
        (["list", "tasks", "--filter", "shape=round"], 1, "'shape' cannot be filtered by; allowed are"),
        (["list", "tasks", "--limit", "0"], 1, "limit=0 is out of range; allowed are 1 to 10000"),
        (["list", "tasks", "--limit", "all"], 2, "'all' is not a valid int"),
        (["list", "tasks", "--detail=yes"], 2, "'--detail' does not take a value"),
        (["list", "tasks", "--format", "xml"], 2, "'xml' is not one of"),
        (["list", "tasks", "--timeout", "0"], 1, "timeout=0.0 is out of range; allowed is"),
        (["list", "tasks", "--address", "/nowhere"], 1, "'/nowhere' is no running session"),
    ],
    "get": [
        (["get", "tasks"], 2, "Missing argument 'ID'"),
        (["get", "nonsense", "ab"], 2, "'nonsense' is no resource"),
        (["get", "tasks", ""], 1, "the id of one of the tasks is a hexadecimal text, not ''"),
    ],
    "summary": [(["summary", "nodes"], 2, "'nodes' is not one of 'tasks', 'actors', 'objects'")],
    "memory": [(["memory", "--timeout", "-1"], 1, "timeout=-1.0 is out of range")],
    "logs": [
        (["logs", "--tail", "all"], 2, "'all' is not a valid int"),
        (["logs", "--tail", "-2", "abcd"], 2, "-2 is not in the range x>=-1"),
    ],
    "timeline": [(["timeline", "--timeout", "0"], 1, "timeout=0.0 is out of range")],
    "stack": [(["stack", "--timeout", "never"], 2, "'never' is not a valid float")],
}


def check(args: list[str], status: int, words: str, directory: Path) -> None:
    file = directory / "file"
    file.write_text("no directory")
    sessions = directory / "sessions"
    sessions.mkdir()
    env = {"FTRAY_TMPDIR": str(sessions), "XDG_STATE_HOME": str(directory)}
    args = [text.replace("{file}", str(file)) for text in args]
    done = CliRunner().invoke(command_line.group, args, prog_name="ftray", env=env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert (done.exit_code, words.replace("{file}", str(file)) in done.output) == (status, True), done.output
    assert list(sessions.rglob("s-*")) == []


def rows(document: str, head: str) -> list[str]:
    text = Path(ROOT, document).read_text(encoding="utf-8")
    return [name for cells in documents.table(text, head) for name in documents.named(cells[0])]


def test_every_option_of_start_has_wrong_values() -> None:
    assert set(rows("docs/cli.md", "option")) == set(START)


def test_every_command_has_wrong_arguments() -> None:
    text = Path(ROOT, "docs/observability.md").read_text(encoding="utf-8")
    names = [cells[0].split()[1].strip("`") for cells in documents.table(text, "command")]
    assert set(names) == set(COMMANDS)


@pytest.mark.parametrize(
    ("args", "status", "words"), [case for cases in START.values() for case in cases], ids=str
)
def test_wrong_values_of_start(args: list[str], status: int, words: str, tmp_path: Path) -> None:
    head = ["--head"] if args and "--head=yes" not in args else []
    check(["start", *head, *args], status, words, tmp_path)


@pytest.mark.parametrize(
    ("args", "status", "words"), [case for cases in COMMANDS.values() for case in cases], ids=str
)
def test_wrong_arguments_of_commands(args: list[str], status: int, words: str, tmp_path: Path) -> None:
    check(args, status, words, tmp_path)
