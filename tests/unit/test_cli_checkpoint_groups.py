"""``ftray checkpoint`` on groups: shown, checked, taken back and removed as one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("click")

from ftray.checkpoint.stores.local import LocalStore
from tests.unit.checkpoint.group_support import KEY, NAME, World, world_of
from tests.unit.test_cli_checkpoint import bars_of, data, run


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(str(tmp_path / "store"))


@pytest.fixture
def world(store: LocalStore) -> Iterator[World]:
    """Two members that have ended, and three cuts of which two are kept."""
    with world_of(store) as world:
        group = world.group()
        for day in (1, 2):
            world.traffic()
            world.settle()
            group.save({"day": day})
        world.close()
        yield world


def test_ls_and_show(store: LocalStore, world: World) -> None:
    text = run(store, "ls")
    assert KEY in text and "group" in text and "3 keys" in text
    text = run(store, "show", NAME)
    assert "mode: group" in text and "member: test/a, free" in text and "member: test/b, free" in text
    assert 'cut: {"day": 1}' in text and 'cut: {"day": 2}' in text
    found = data(store, "show", NAME)
    assert [cut["id"] for cut in found["snapshots"]] == ["1-2", "1-3"]
    assert found["members"]["test/a"]["group"] == NAME
    assert "group: pair" in run(store, "show", "test/a")
    assert "--live asks one actor" in run(store, "show", NAME, "--live", status=2)


def test_verify(store: LocalStore, world: World) -> None:
    assert "2 snapshots, 0 records: whole" in run(store, "verify", NAME)
    store.delete_blobs(KEY, store.list_blobs(KEY)[:1], 1)
    assert "the state of 'test/" in run(store, "verify", status=1)


def test_restore(store: LocalStore, world: World) -> None:
    before = store.scan(KEY)
    text = run(store, "restore", NAME, "1-2", answer="n\n", status=1)
    assert "newest cut 1-3. Members: test/a, test/b; living: none." in text and "nothing was changed" in text
    assert "no cut 9-9 that counts; there are: 1-2, 1-3" in run(
        store, "restore", NAME, "9-9", "--yes", status=1
    )
    assert "is a member of group 'pair'" in run(store, "restore", "test/a", "1-1", "--yes", status=1)
    assert store.scan(KEY) == before
    assert f"{KEY} is 1-2 now: its 2 members" in run(store, "restore", NAME, "1-2", answer="y\n")
    assert world.books() == world.states("1-2")
    world.close()
    assert data(store, "restore", NAME, "1-2", "--yes")["snapshot"] == "1-2"


def test_rm(store: LocalStore, world: World) -> None:
    newest = world.states("1-3")
    assert "is a member of group 'pair'" in run(store, "rm", "test/a", "--yes", status=1)
    assert "Group.disband() ends it" in run(store, "rm", NAME, "--yes", "--takeover", status=1)
    text = run(store, "rm", NAME, answer="y\n")
    assert "2 members" in text and "removed 1 keys" in text and store.keys() == ["test/a", "test/b"]
    assert world.books() == newest


def test_export_is_refused(store: LocalStore, world: World, tmp_path: Path) -> None:
    assert "is the key of a group" in run(store, "export", NAME, str(tmp_path / "x"), status=1)
    assert not (tmp_path / "x").exists()


def test_how_far_it_is_is_told(store: LocalStore, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = bars_of(monkeypatch)
    run(store, "verify", NAME)
    assert len(bars.steps("verifying")) > 2
    run(store, "restore", NAME, "1-2", "--yes")
    assert len(bars.steps("restoring")) == 6, "two states, three times"
