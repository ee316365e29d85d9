"""What is read of a key whose actor saves, and retires what it has saved, at the same time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from ftray import checkpoint
from ftray.checkpoint import CheckpointNotFoundError
from ftray.checkpoint.lineage import SnapshotName
from ftray.checkpoint.stores.local import LocalStore

from .group_support import KEY as GROUP
from .group_support import world_of
from .once_support import KEY, Lives


class Slow(LocalStore):
    """A reader's store: when a snapshot is opened, something else has happened before."""

    times = 1
    before: Callable[[], None]

    def _meanwhile(self) -> None:
        if self.times:
            self.times -= 1
            self.before()

    def read(self, key: str, name: SnapshotName) -> BinaryIO:
        self._meanwhile()
        return super().read(key, name)


@pytest.fixture
def lives(tmp_path: Path) -> Lives:
    made = Lives(LocalStore(str(tmp_path / "store"))).start()
    save_twice(made)
    return made


def save_twice(lives: Lives) -> None:
    for _ in range(2):
        lives.call("incr")
        lives.call("checkpoint")


@pytest.fixture
def slow(lives: Lives) -> Slow:
    found = Slow(lives.store._root)
    found.before = lambda: save_twice(lives)
    return found


def test_the_state_and_the_ledger_are_those_of_the_newest_by_then(slow: Slow) -> None:
    assert checkpoint.open(slow).load(KEY)["n"] == 4
    slow.times = 1
    assert checkpoint.open(slow).ledger(KEY)["callers"] == 1


def test_a_snapshot_that_is_asked_for_is_not_there_any_more(slow: Slow) -> None:
    first = LocalStore(slow._root).scan(KEY).snapshots[0].id
    with pytest.raises(CheckpointNotFoundError, match=f"no snapshot {first}"):
        checkpoint.open(slow).load(KEY, first)


def test_an_actor_that_is_faster_than_its_reader(slow: Slow) -> None:
    slow.times = 1000
    with pytest.raises(CheckpointNotFoundError):
        checkpoint.open(slow).load(KEY)


@pytest.mark.parametrize("what", ["list", "verify"])
def test_what_was_retired_is_no_damage(slow: Slow, what: str) -> None:
    assert all(not info.error for info in getattr(checkpoint.open(slow), what)(KEY))
    next(Path(slow._root).rglob("snap-*")).write_bytes(b"damaged")
    assert any(info.error for info in getattr(checkpoint.open(slow), what)(KEY))


def test_a_journal_that_is_trimmed_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives().start()
    save_twice(lives)
    reader, original = checkpoint.open(lives.store), lives.store.read_journal

    def read_journal(key: str, after: int) -> Any:
        monkeypatch.undo()
        save_twice(lives)
        return original(key, after)

    monkeypatch.setattr(lives.store, "read_journal", read_journal)
    found = reader.journal(KEY)
    assert found.error == "" and found.last_position >= 4


def test_a_savepoint_of_the_newest(slow: Slow, tmp_path: Path) -> None:
    done = checkpoint.export(slow, KEY, tmp_path / "s")
    assert done.snapshot == slow.scan(KEY).snapshots[-1].id
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []


def test_a_groups_newest_cut(tmp_path: Path) -> None:
    with world_of(LocalStore(str(tmp_path))) as world:
        group = world.group()
        slow = Slow(str(tmp_path))
        slow.before = lambda: [group.save() for _ in range(2)] and None
        assert sorted(checkpoint.open(slow).load(GROUP)) == ["test/a", "test/b"]
