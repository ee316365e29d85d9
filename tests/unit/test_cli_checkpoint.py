"""``ftray checkpoint``: what each command prints, asks, does and refuses."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("click")
from click.testing import CliRunner

from ftray.checkpoint import holders
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.testing import crash
from tests.unit.checkpoint.once_support import KEY, Lives, Tally
from tests.unit.checkpoint.support import call, start
from tests.unit.checkpoint.test_manage import ended_pid, group_of_unnamed, unnamed

command_line = importlib.import_module("ftray._cli.main")
commands = importlib.import_module("ftray._cli.checkpoint_commands")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


@pytest.fixture
def lives(store: LocalStore) -> Lives:
    """An actor that lives, with two snapshots and one call behind them."""
    made = Lives(store).start()
    for k in (1, 10):
        made.call("incr", k)
        made.call("checkpoint")
    made.call("incr", 100)
    return made


def run(store: LocalStore, *args: str, status: int = 0, answer: str | None = None) -> str:
    everything = ["checkpoint", args[0], "--store", store.url, *args[1:]]
    done = CliRunner().invoke(command_line.group, everything, prog_name="ftray", input=answer)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == status, done.output
    return done.output


def data(store: LocalStore, *args: str, status: int = 0) -> Any:
    return json.loads(run(store, *args, "--json", status=status))


def first(store: LocalStore) -> str:
    return str(data(store, "show", KEY)["snapshots"][0]["id"])


def test_ls(store: LocalStore, lives: Lives) -> None:
    text = run(store, "ls")
    assert KEY in text and "exactly_once" in text and "held" in text and "1 keys, " in text
    (found,) = data(store, "ls")
    assert (found["key"], found["state"], found["mode"]) == (KEY, "held", "exactly_once")
    assert found["total_bytes"] == sum(found["bytes"].values())
    crash(lives.session)
    assert "free" in run(store, "ls")


def test_a_key_that_is_held_by_a_lease_says_so(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "fencing", lambda *_: {"fencing": "lease", "lease_s": 30.0})
    made = Lives(store).start()
    assert "held, by a lease" in run(store, "ls")
    assert "fencing: lease (the store has no conditional writes)" in run(store, "show", KEY)
    crash(made.session)
    assert "lease" not in run(store, "ls"), "nobody holds it"


def test_the_default_store(store: LocalStore, lives: Lives) -> None:
    done = CliRunner().invoke(
        command_line.group, ["checkpoint", "ls"], env={"FTRAY_CHECKPOINT_STORE": store.url}
    )
    assert KEY in done.output
    empty = CliRunner().invoke(
        command_line.group,
        ["checkpoint", "ls"],
        env={"FTRAY_CHECKPOINT_STORE": str(store._root) + "-none"},
    )
    assert empty.exit_code == 0 and "0 keys, 0 B" in empty.output


def test_show(store: LocalStore, lives: Lives) -> None:
    text = run(store, "show", KEY)
    assert "history_number: 1" in text and "1 calls in 1 records behind the newest snapshot" in text
    assert "Tally, process" in text and "lives" in text
    assert text == run(store, "show", "tally"), "by the name of the actor"
    found = data(store, "show", KEY)
    assert found["journal"]["calls"] == 1 and len(found["snapshots"]) == 2


def test_show_recoveries(store: LocalStore, lives: Lives) -> None:
    assert "Recoveries" not in run(store, "show", KEY) and data(store, "show", KEY)["recoveries"] == []
    lives.start()
    (recovery,) = data(store, "show", KEY)["recoveries"]
    assert (recovery["epoch"], recovery["calls_replayed"]) == (2, 1)
    text = run(store, "show", KEY)
    assert "Recoveries" in text and f"{recovery['duration_s'] * 1e3:.1f} ms" in text


def test_verify(store: LocalStore, lives: Lives, tmp_path: Path) -> None:
    assert "2 snapshots" in run(store, "verify") and "whole" in run(store, "verify", KEY)
    newest = max((tmp_path / "store").glob("*/snap-*"))
    content = bytearray(newest.read_bytes())
    content[-100] ^= 1
    newest.write_bytes(content)
    assert "does not match its CRC-64" in run(store, "verify", status=1)
    (found,) = data(store, "verify", KEY, status=1)
    assert len(found["problems"]) == 1


def test_restore(store: LocalStore, lives: Lives) -> None:
    crash(lives.session)
    snapshot = first(store)
    question = run(store, "restore", KEY, snapshot, answer="n\n", status=1)
    assert "1 calls of the journal behind it" in question and "nothing was changed" in question
    assert len(data(store, "show", KEY)["snapshots"]) == 2
    assert "history 2, from journal position" in run(store, "restore", KEY, snapshot, answer="y\n")
    shown = run(store, "show", KEY)
    assert f"restored_from: restored from {snapshot}" in shown and "history_number: 2" in shown
    lives.number = 0
    assert lives.start().call("value") == 1


def test_restore_refuses_while_somebody_holds_the_key(store: LocalStore, lives: Lives) -> None:
    snapshot = first(store)
    text = run(store, "restore", KEY, snapshot, "--yes", status=1)
    assert "is held by a Tally in process" in text and "--takeover" in text and "takeover=True" not in text
    assert data(store, "restore", KEY, snapshot, "--yes", "--takeover")["history_number"] == 2


def test_export_and_restore_elsewhere(store: LocalStore, lives: Lives, tmp_path: Path) -> None:
    path, other = tmp_path / "s", LocalStore(str(tmp_path / "other"))
    text = run(store, "export", KEY, str(path), "--name", "release-7")
    assert "is in" in text and "note: 1 journal records behind it" in text
    assert "exists already; choose another name, or --overwrite" in run(
        store, "export", KEY, str(path), status=1
    )
    assert data(store, "export", KEY, str(path), "--overwrite", "--name", "release-8")["name"] == "release-8"
    assert "name: release-8" in run(store, "verify", "--from", str(path))
    assert "Begin new/key" in run(other, "restore", "new/key", "--from", str(path), answer="n", status=1)
    done = data(other, "restore", KEY, "--from", str(path), "--yes")
    assert (done["ledger"], done["key"]) == (True, KEY)
    assert not data(other, "restore", KEY, "--from", str(path), "--yes", "--without-ledger")["ledger"]
    assert Lives(other, Tally).start().call("value") == 11


def test_rm(store: LocalStore, lives: Lives) -> None:
    assert "is held by a Tally" in run(store, "rm", KEY, "--yes", status=1)
    assert "nothing was changed" in run(store, "rm", KEY, answer="n\n", status=1)
    crash(lives.session)
    assert "removed 1 keys" in run(store, "rm", "tally", answer="y\n")
    assert store.keys() == []


def test_orphans(store: LocalStore, lives: Lives) -> None:
    gone = unnamed(store, 1, ended_pid())
    unknown = unnamed(store, 2, None)
    assert [info["key"] for info in data(store, "ls", "--orphans")] == [gone]
    assert "orphan" in run(store, "ls")
    assert gone in run(store, "rm", "--orphans", answer="n\n", status=1)
    assert "--takeover is for keys" in run(store, "rm", "--orphans", "--takeover", "--yes", status=2)
    assert data(store, "rm", "--orphans", "--yes")["removed"] == [gone]
    assert sorted(store.keys()) == sorted([KEY, unknown])
    assert data(store, "rm", "--orphans")["removed"] == [], "nothing to ask about"


def test_prune(store: LocalStore, lives: Lives) -> None:
    gone = unnamed(store, 1, ended_pid())
    assert gone in run(store, "prune", answer="n\n", status=1)
    assert len(store.keys()) == 2
    assert "removed 1 keys" in run(store, "prune", answer="y\n")
    assert store.keys() == [KEY]
    assert data(store, "prune")["removed"] == []


def test_a_group_of_orphans_goes_with_them(store: LocalStore) -> None:
    members = [unnamed(store, n, ended_pid()) for n in (1, 2)]
    group = group_of_unnamed(store, *members)
    assert f"{group} (" in run(store, "prune", answer="n\n", status=1)
    assert data(store, "rm", "--orphans", "--yes")["removed"] == [group, *members]
    assert store.keys() == []


def test_what_cannot_be_pruned_is_told(store: LocalStore, lives: Lives) -> None:
    members = [unnamed(store, n, ended_pid()) for n in (1, 2)]
    group_of_unnamed(store, members[0], KEY)
    text = run(store, "prune", "--yes", status=1)
    assert "removed 1 keys" in text and f"kept {members[0]}: " in text and "member of group 'g'" in text
    assert store.keys() == ["_group/g", members[0], KEY]
    found = data(store, "rm", "--orphans", "--yes", status=1)
    assert found["removed"] == [] and list(found["kept"]) == members[:1]


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["show"], 2, "Missing argument 'KEY'"),
        (["show", "nobody"], 1, "there is no checkpoint key 'nobody' in"),
        (["show", KEY, "--timeout", "0"], 2, "0.0 is not in the range x>0.0"),
        (["verify", "nobody"], 1, "there are: test/tally"),
        (["verify", KEY, "--from", "x"], 2, "give keys, or --from FILE"),
        (["verify", "--from", "/nowhere/x"], 1, "there is no savepoint /nowhere/x"),
        (["restore", KEY], 2, "give the id of a snapshot"),
        (["restore", KEY, "1-1", "--from", "x"], 2, "give the id of a snapshot"),
        (["restore", KEY, "newest", "--yes"], 1, "'newest' is not a snapshot id"),
        (["restore", KEY, "9-9", "--yes"], 1, "there is no snapshot 9-9"),
        (["export", KEY], 2, "Missing argument 'FILE'"),
        (["export", KEY, "/nowhere/x/y"], 1, "cannot be written"),
        (["rm"], 2, "give keys, or --orphans"),
        (["rm", KEY, "--orphans"], 2, "give keys, or --orphans"),
        (["ls", "nonsense"], 2, "Got unexpected extra argument"),
    ],
    ids=str,
)
def test_wrong(args: list[str], status: int, words: str, store: LocalStore, lives: Lives) -> None:
    before = store.scan(KEY)
    assert words in run(store, *args, status=status)
    assert store.scan(KEY) == before


def test_a_store_that_is_none(tmp_path: Path) -> None:
    done = CliRunner().invoke(command_line.group, ["checkpoint", "ls", "--store", "nonsense://x"])
    assert done.exit_code == 1 and "nonsense" in done.output


@pytest.mark.parametrize("command", [["ls"], ["verify"], ["prune", "--yes"], ["rm", "--orphans", "--yes"]])
def test_a_store_that_is_not_there_is_a_mistake(command: list[str], tmp_path: Path) -> None:
    missing = tmp_path / "no such"
    for store in (str(missing), f"file://{missing}"):
        done = CliRunner().invoke(command_line.group, ["checkpoint", *command, "--store", store])
        assert done.exit_code == 1 and f"no store at {missing}" in done.output.replace("\n", "")
    missing.mkdir()
    done = CliRunner().invoke(command_line.group, ["checkpoint", *command, "--store", str(missing)])
    assert done.exit_code == 0 and ("0 keys" in done.output or "no keys" in done.output)


def test_an_empty_store_is_not_the_default_one(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        command_line.group,
        ["checkpoint", "ls", "--store", ""],
        env={"FTRAY_CHECKPOINT_STORE": str(tmp_path)},
    )
    assert done.exit_code == 2 and "--store is empty" in done.output


@pytest.mark.parametrize("command", [["show", KEY], ["ls"]])
def test_live_without_a_node(store: LocalStore, lives: Lives, tmp_path: Path, command: list[str]) -> None:
    done = CliRunner().invoke(
        command_line.group,
        ["checkpoint", *command, "--store", store.url, "--live"],
        env={"FTRAY_TMPDIR": str(tmp_path), "FTRAY_ADDRESS": "", "RAY_ADDRESS": ""},
    )
    assert done.exit_code == 1 and "cannot be asked" in done.output


def test_sizes_and_ages() -> None:
    assert [commands._size(n) for n in (0, 1023, 1024, 3 << 30, 5 << 50)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "3.0 GiB",
        "5120.0 TiB",
    ]
    assert [commands._age(s) for s in (5, 90, 7200, 86400 * 3)] == ["5 s", "1.5 min", "2.0 h", "3.0 d"]


def test_a_bar_is_drawn_where_somebody_can_see_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands.sys.stderr, "isatty", lambda: True, raising=False)
    with commands._progress("writing x", True) as progress:
        progress(1 << 20, 2 << 20)
        progress(2 << 20, 2 << 20)
    assert "writing x" in capsys.readouterr().err


class Bars:
    """What the commands tell their bars."""

    def __init__(self) -> None:
        self.told: dict[str, list[tuple[int, int]]] = {}

    @contextlib.contextmanager
    def __call__(self, what: str, wanted: bool) -> Iterator[Callable[[int, int], None]]:
        steps = self.told.setdefault(what.split()[0], [])
        yield lambda done, total: steps.append((done, total))

    def steps(self, what: str) -> list[int]:
        """The bytes done, after a look that they only grow, up to the total."""
        told = self.told.pop(what)
        done = [step for step, _ in told]
        assert done == sorted(set(done)) and told[-1][0] == told[-1][1]
        return done


def bars_of(monkeypatch: pytest.MonkeyPatch) -> Bars:
    bars = Bars()
    monkeypatch.setattr(commands, "_progress", bars)
    return bars


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> Bars:
    return bars_of(monkeypatch)


@pytest.fixture
def large(store: LocalStore) -> int:
    """Size of the newest snapshot of an actor that has ended: some pieces of a transfer."""
    made = Lives(store).start()
    for k in range(2):
        made.session.instance.ballast = bytes(3 << 20)  # type: ignore[attr-defined]
        made.call("incr", k)
        made.call("checkpoint")
    crash(made.session)
    return int(data(store, "show", KEY)["snapshots"][-1]["size_bytes"])


def test_verify_tells_how_far_it_is(store: LocalStore, large: int, bars: Bars) -> None:
    host, session = start(store=store)
    call(host, session, "incr")
    session.close(final=True, reason="test")
    run(store, "verify")
    steps = bars.steps("verifying")
    assert len(steps) > 6 and steps[-1] > 2 * large
    run(store, "verify", KEY)
    assert len(bars.steps("verifying")) > 6


def test_restore_tells_how_far_it_is(store: LocalStore, large: int, bars: Bars, tmp_path: Path) -> None:
    run(store, "restore", KEY, first(store), "--yes")
    steps = bars.steps("restoring")
    assert sum(step <= large for step in steps) > 1, "while it is read"
    assert sum(large < step < steps[-1] for step in steps) > 0, "while it is written"
    assert steps[-1] == pytest.approx(2 * large, rel=0.01)
    run(store, "export", KEY, str(tmp_path / "s"))
    bars.steps("writing")
    run(store, "restore", KEY, "--from", str(tmp_path / "s"), "--yes")
    assert sum(large < step < 2 * large for step in bars.steps("restoring")) > 0
    run(store, "verify", "--from", str(tmp_path / "s"))
    assert len(bars.steps("verifying")) > 3


def test_on_a_store_of_objects(tmp_path: Path, bars: Bars, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fsspec")
    from ftray.checkpoint.stores import connect, fsspec_objects

    monkeypatch.setattr(fsspec_objects, "_PIECE", 1 << 20)
    store: Any = connect("fsspec+memory://progress")
    host, session = start(store=store)
    session.instance.ballast = bytes(3 << 20)  # type: ignore[attr-defined]
    call(host, session, "incr")
    session.close(final=True, reason="test")
    (info,) = data(store, "ls")
    run(store, "restore", info["key"], info["snapshots"][-1]["id"], "--yes", "--takeover")
    size = info["snapshots"][-1]["size_bytes"]
    assert sum(size < step < 2 * size for step in bars.steps("restoring")) >= 3
    store.remove(info["key"])
