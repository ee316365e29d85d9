"""``ftray checkpoint metrics``: each figure is that of the store, or what the actor says."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

pytest.importorskip("click")
pytest.importorskip("prometheus_client")
from click.testing import CliRunner

from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.testing import crash
from tests.unit.checkpoint.once_support import KEY, Lives

parser = importlib.import_module("prometheus_client.parser")
command_line = importlib.import_module("ftray._cli.main")
checkpoint_live = importlib.import_module("ftray._cli.checkpoint_live")
PREFIX = "ftray_checkpoint_"


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


def metrics(store: LocalStore, *args: str) -> str:
    done = CliRunner().invoke(command_line.group, ["checkpoint", "metrics", "--store", store.url, *args])
    assert not done.exit_code, done.output
    return done.output


def samples(text: str) -> dict[str, float]:
    """The values by name, those of `store_bytes` by name and kind."""
    found = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            assert (sample.labels["key"], sample.labels["mode"]) == (KEY, "exactly_once")
            assert family.documentation
            name = sample.name.removeprefix(PREFIX)
            found[name + sample.labels.get("kind", "")] = sample.value
    return found


def test_what_the_store_knows(store: LocalStore) -> None:
    lives = Lives(store).start()
    lives.call("incr")
    found = samples(metrics(store))
    assert (found["held"], found["parked"], found["orphan"]) == (1, 0, 0)
    assert (found["epoch"], found["snapshots"]) == (1, 1)
    assert "last_recovery_seconds" not in found and "saves_total" not in found
    lives.start()
    found = samples(metrics(store))
    assert (found["epoch"], found["last_recovery_calls"], found["failed_recoveries"]) == (2, 1, 0)
    (recovery,) = lives.session.status()["recoveries"]
    assert 0 < found["last_recovery_seconds"] <= recovery["duration_s"]
    assert abs(found["last_recovery_timestamp_seconds"] - recovery["at_unix_s"]) < 60
    used = store.usage(KEY)
    assert {kind: found[f"store_bytes{kind}"] for kind in used} == used
    crash(lives.session)
    assert samples(metrics(store))["held"] == 0


def test_what_the_actor_says(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives(store).start()
    for _ in range(3):
        lives.call("incr")
    lives.call("checkpoint")
    said = lives.session.status()
    monkeypatch.setattr(checkpoint_live, "ask_holders", lambda *_: {KEY: said})
    found = samples(metrics(store, "--live"))
    assert (found["answers"], found["failing"], found["calls_unsaved"]) == (1, 0, 0)
    assert (found["calls_total"], found["saves_total"], found["failures_total"]) == (3, said["saves"], 0)
    assert found["saved_bytes_total"] == said["saved_bytes_total"] > 0
    assert found["journal_written_bytes_total"] == said["journal_written_bytes"] > 0
    assert found["save_seconds_total"] == said["save_s_total"]


def test_an_actor_that_cannot_be_asked(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives(store).start()
    silent = {"state": "not asked", "last_error": "it cannot be asked: it is stopped"}
    monkeypatch.setattr(checkpoint_live, "ask_holders", lambda *_: {KEY: silent})
    found = samples(metrics(store, "--live"))
    assert (found["answers"], found["held"]) == (0, 1) and "saves_total" not in found
    crash(lives.session)


def test_a_file_for_the_textfile_collector(store: LocalStore, tmp_path: Path) -> None:
    Lives(store).start()
    target = tmp_path / "ftray.prom"
    assert metrics(store, "--output", str(target)) == ""
    assert samples(target.read_text())["held"] == 1
    assert [path.name for path in tmp_path.glob("*.prom*")] == ["ftray.prom"]
