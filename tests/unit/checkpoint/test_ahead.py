"""A snapshot that is read while the instance is made: what counts is decided after the claim, as always."""

from __future__ import annotations

import _thread
import shutil
from pathlib import Path
from typing import Any

import pytest

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
def readings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Threads in which snapshots are read, one for each."""
    found: list[int] = []
    read = format.read

    def counted(file: Any) -> Any:
        found.append(_thread.get_ident())
        return read(file)

    monkeypatch.setattr(format, "read", counted)
    return found


def begun(store: LocalStore) -> Ahead:
    """Return one that has read what it could."""
    reading = Ahead(store, KEY)
    with reading._ended:
        return reading


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


def test_it_is_read_once_and_elsewhere(store: LocalStore, readings: list[int]) -> None:
    past, n = restored(store, begun(store))
    assert (n, past.skipped) == (3, [])
    assert len(readings) == 1 and readings[0] != _thread.get_ident()


def test_a_newer_one_that_came_meanwhile_counts(store: LocalStore, readings: list[int]) -> None:
    log, _, _ = open_log(store)
    reading = begun(store)
    save(log, 4)
    assert restored(store, reading)[1] == 4
    assert readings[-1] == _thread.get_ident()


def test_a_damaged_one_is_found_by_who_restores(store: LocalStore, readings: list[int]) -> None:
    path = newest(store)
    raw = bytearray(path.read_bytes())
    raw[-200] ^= 1
    path.write_bytes(raw)
    past, n = restored(store, begun(store))
    assert n == 2 and len(past.skipped) == 1
    assert readings[1] == _thread.get_ident()


def test_another_file_under_the_same_name_is_read_again(store: LocalStore, readings: list[int]) -> None:
    reading = begun(store)
    path = newest(store)
    copy = path.with_name("copy")
    shutil.copyfile(path, copy)
    copy.replace(path)
    assert restored(store, reading)[1] == 3
    assert len(readings) == 2 and readings[1] == _thread.get_ident()


def test_who_comes_before_the_thread_has_a_core_reads_himself(
    store: LocalStore, readings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    late: list[Any] = []
    monkeypatch.setattr(ahead._thread, "start_new_thread", lambda run, _: late.append(run))
    assert restored(store, Ahead(store, KEY))[1] == 3
    late[0]()  # now it gets to run, and does nothing
    assert readings == [_thread.get_ident()]


def test_a_reading_under_way_is_waited_for(
    store: LocalStore, readings: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    running, go_on = _thread.allocate_lock(), _thread.allocate_lock()
    running.acquire()
    go_on.acquire()
    read = Ahead._read

    def slow(self: Ahead) -> Any:
        running.release()
        go_on.acquire()
        return read(self)

    monkeypatch.setattr(Ahead, "_read", slow)
    reading = Ahead(store, KEY)
    running.acquire()
    _thread.start_new_thread(go_on.release, ())
    assert restored(store, reading)[1] == 3
    assert len(readings) == 1


def test_nothing_there(tmp_path: Path) -> None:
    reading = begun(LocalStore(str(tmp_path)))
    log = SnapshotLog(LocalStore(str(tmp_path)), KEY, keep=2)
    log.claim({"pid": 1})
    log.ahead = reading
    assert log.find_past().newest is None


def test_only_where_reading_costs_nothing(tmp_path: Path) -> None:
    assert ahead.read_ahead({"store": "memory://ahead"}, ACTOR) is None
    assert isinstance(ahead.read_ahead({"store": str(tmp_path)}, ACTOR), Ahead)
