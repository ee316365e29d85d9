"""The command line: its table, what it refuses, and what it needs."""

from __future__ import annotations

import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

click = pytest.importorskip("click")
from click.testing import CliRunner  # noqa: E402

from ftray import __version__  # noqa: E402

command_line = importlib.import_module("ftray._cli.main")
start_module = importlib.import_module("ftray._cli.start")


def invoke(*args: str, **env: str) -> tuple[int, str]:
    done = CliRunner().invoke(command_line.group, args, prog_name="ftray", env=env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize("name", sorted(command_line.COMMANDS))
def test_every_command_of_the_table_is_there_and_has_help(name: str) -> None:
    status, text = invoke(name, "--help")
    assert status == 0 and text.startswith(f"Usage: ftray {name}")
    assert name in invoke("--help")[1]


def test_the_group() -> None:
    assert invoke("--version") == (0, f"ftray, version {__version__}\n")
    status, text = invoke("nonsense")
    assert status == 2 and "No such command 'nonsense'" in text


@pytest.mark.parametrize("option", sorted(start_module._REFUSED))
def test_an_option_of_rays_that_means_nothing_here_is_refused_by_name(option: str) -> None:
    status, text = invoke("start", "--head", f"{option}=1")
    assert status == 2 and f"{option} is not supported: " in text


@pytest.mark.parametrize("option", [*sorted(start_module._REFUSED_FLAGS), "--include-dashboard=true"])
def test_so_is_a_flag(option: str) -> None:
    status, text = invoke("start", "--head", option)
    assert status == 2 and f"{option.partition('=')[0]} is not supported: " in text


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        ([], 2, "give --head"),
        (["--include-dashboard=false", "--disable-usage-stats"], 2, "give --head"),
        (["--head", "--num-cpus", "many"], 2, "'many' is not a valid float"),
        (["--head", "--num-cpus", "-1"], 1, "num_cpus=-1.0; allowed is a number of at least 0"),
        (["--head", "--resources", "{widget: 1}"], 2, "is not JSON"),
        (["--head", "--resources", "[1]"], 2, "is not a JSON object of numbers"),
        (["--head", "--resources", '{"widget": "1"}'], 2, "is not a JSON object of numbers"),
        (["--head", "--resources", '{"CPU": 1}'], 1, "resources cannot name 'CPU'"),
        (["--head", "--temp-dir", "/nowhere"], 1, "'/nowhere' does not exist"),
        (["--head", "--labels", "zone"], 2, "'zone' is not of the form name=value,name=value"),
        (["--head", "--labels", "ray.io/zone=a"], 1, "labels['ray.io/zone']"),
        (["--head", "--no-such-option"], 2, "No such option"),
        (["--head", "--object-store-memory", "10"], 2, "10 is not in the range x>=1048576"),
        (["--head", "--address="], 2, "--address is not supported"),
    ],
)
def test_wrong_options_of_start(args: list[str], status: int, words: str, tmp_path: Path) -> None:
    found, text = invoke("start", *args, FTRAY_TMPDIR=str(tmp_path), XDG_STATE_HOME=str(tmp_path))
    assert found == status and words in text
    assert list(tmp_path.iterdir()) == []


def test_wrong_options_of_stop(tmp_path: Path) -> None:
    assert invoke("stop", "--grace-period", "-1")[0] == 2
    status, text = invoke("stop", "--temp-dir", str(tmp_path / "none"))
    assert status == 1 and "does not exist" in text


def test_the_storage_has_a_place_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    assert start_module.default_storage() == "/state/ftray"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert start_module.default_storage() == "/home/me/.local/state/ftray"


@pytest.mark.parametrize("lacking", ["click", "rich", "yaml"])
def test_without_the_extra_it_says_what_to_install(lacking: str) -> None:
    program = f"""
        import importlib.util, sys
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *args: None if name == {lacking!r} else real(name, *args)
        from ftray._cli import main
        assert not {{"click", "rich", "yaml"}} & set(sys.modules)
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], text=True, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'ftray[cli]'" in done.stderr and "Traceback" not in done.stderr


def test_commands_are_imported_when_they_are_called() -> None:
    program = "import sys, ftray._cli.main; print([m for m in sys.modules if m.startswith('ftray._cli.')])"
    out = subprocess.run([sys.executable, "-c", program], text=True, capture_output=True, check=True).stdout
    assert out.strip() == "['ftray._cli.main']"


@pytest.mark.parametrize("command", ["list", "status", "stack"])
def test_on_ray_commands_about_nodes_of_our_own_say_so(command: str) -> None:
    status, text = invoke(command, *(["actors"] if command == "list" else []), FTRAY_ENGINE="ray")
    assert status == 1 and f"use Ray's command (`ray {command}`)" in text
    assert invoke("checkpoint", "--help", FTRAY_ENGINE="ray")[0] == 0
