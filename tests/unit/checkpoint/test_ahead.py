"""A snapshot that is read while the instance is made: what counts is decided after the claim, as always."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from ftray._core.snapfile import crc64
from ftray.checkpoint import ahead, capture, format
from ftray.checkpoint.ahead import Ahead
from ftray.checkpoint.host import ActorIdentity
from ftray.checkpoint.snapshots import Past, SnapshotLog
from ftray.checkpoint.stores.local import LocalStore

from .object_support import KEY, live, open_log, save

ACTOR = ActorIdentity("test", "counter", "", "Counter")


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(str(tmp_path / "store"))
    live(made, [])
    return made


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """How often a snapshot was read by who restores."""
    found: list[str] = []
    read = format.read

    def counted(file: Any) -> Any:
        found.append("read")
        return read(file)

    monkeypatch.setattr(format, "read", counted)
    monkeypatch.setattr(format, "ReadAhead", AtOnce)
    return found


class AtOnce:
    """Stands for a thread that has read all before anybody wants it."""

    def __init__(self, fd: int, parts: list[bytearray]) -> None:
        self._found = os.readv(fd, parts), crc64(parts)

    def take(self) -> tuple[int, int] | None:
        return self._found


class Never(AtOnce):
    """One that has not got a core."""

    def take(self) -> None:
        return None


class Fails(AtOnce):
    """One that meets a disk that cannot read."""

    def take(self) -> None:
        raise OSError(5, "an error of the medium")


def restored(store: LocalStore, reading: Ahead) -> tuple[Past, int]:
    """Restore as the next incarnation; returns what was found, and the number in it."""
    log = SnapshotLog(store, KEY, keep=2)
    log.claim({"pid": 1})
    log.ahead = reading
    past = log.find_past()
    assert log.ahead is None
    assert past.newest is not None
    state: Any = capture.load(past.newest.segments)
    return past, state["n"]


def newest(store: LocalStore) -> Path:
    directory = Path(store._directory(KEY))
    return max(directory.glob("snap-*"))


def test_it_is_read_once(store: LocalStore, readings: list[str]) -> None:
    past, n = restored(store, Ahead(store, KEY))
    assert (n, past.skipped) == (3, [])
    assert not readings


def test_a_newer_one_that_came_meanwhile_counts(store: LocalStore, readings: list[str]) -> None:
    log, _, _ = open_log(store)
    reading = Ahead(store, KEY)
    save(log, 4)
    readings.clear()
    assert restored(store, reading)[1] == 4
    assert len(readings) == 1


@pytest.mark.parametrize("at", [-200, 3, 40, -3])
def test_a_damaged_one_is_found_by_who_restores(store: LocalStore, readings: list[str], at: int) -> None:
    path = newest(store)
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)
    past, n = restored(store, Ahead(store, KEY))
    assert n == 2 and len(past.skipped) == 1
    assert len(readings) == 2, "that one, and the one before"


def test_one_cut_short_while_it_is_read_is_found_by_who_restores(
    store: LocalStore, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = newest(store)

    class Cut(AtOnce):
        def __init__(self, fd: int, parts: list[bytearray]) -> None:
            os.truncate(path, path.stat().st_size - 100)
            super().__init__(fd, parts)

    monkeypatch.setattr(format, "ReadAhead", Cut)
    past, n = restored(store, Ahead(store, KEY))
    assert n == 2 and len(past.skipped) == 1


def test_another_file_under_the_same_name_is_read_again(store: LocalStore, readings: list[str]) -> None:
    reading = Ahead(store, KEY)
    path = newest(store)
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.replace(path)
    assert restored(store, reading)[1] == 3
    assert len(readings) == 1


@pytest.mark.parametrize("kind", [Never, Fails])
def test_what_was_not_read_ahead_is_read_by_who_restores(
    store: LocalStore, readings: list[str], monkeypatch: pytest.MonkeyPatch, kind: type[AtOnce]
) -> None:
    monkeypatch.setattr(format, "ReadAhead", kind)
    assert restored(store, Ahead(store, KEY))[1] == 3
    assert len(readings) == 1


def test_whoever_is_first_reads_it(store: LocalStore) -> None:
    for _ in range(50):
        past, n = restored(store, Ahead(store, KEY))
        assert (n, past.skipped) == (3, [])


def test_one_that_nobody_takes_is_let_go(store: LocalStore) -> None:
    for _ in range(50):
        Ahead(store, KEY)


def test_nothing_there(tmp_path: Path) -> None:
    reading = Ahead(LocalStore(str(tmp_path)), KEY)
    log = SnapshotLog(LocalStore(str(tmp_path)), KEY, keep=2)
    log.claim({"pid": 1})
    log.ahead = reading
    assert log.find_past().newest is None


def test_only_where_reading_costs_nothing(tmp_path: Path) -> None:
    assert ahead.read_ahead({"store": "memory://ahead"}, ACTOR) is None
    assert isinstance(ahead.read_ahead({"store": str(tmp_path)}, ACTOR), Ahead)
