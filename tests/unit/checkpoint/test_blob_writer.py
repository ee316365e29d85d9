"""Large arguments and replies are durable before the records that name them; nobody else waits for that."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftray.checkpoint import Checkpointable, CheckpointSaveError, CheckpointTimeoutError, engine, faults
from ftray.checkpoint.background import Background
from ftray.checkpoint.blob_writer import BlobWriter
from ftray.checkpoint.stores import connect
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.protocol import Store
from ftray.checkpoint.testing import LocalHost

from .journal_suite import KEY, WAIT_S, begin
from .support import in_child

LARGE = 70_000
names = itertools.count()


@pytest.fixture(params=["local", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return LocalStore(str(tmp_path)) if request.param == "local" else connect(f"memory://blobs-{next(names)}")


class Gated:
    """Where blobs go: each waits until it is let through, then is written or fails."""

    def __init__(self, store: Any, epoch: int) -> None:
        self._store, self._epoch = store, epoch
        self.allowed = threading.Semaphore(0)
        self.error: Exception | None = None
        self.threads: set[int] = set()
        self.counts: list[int] = []

    def __call__(self, name: str, content: bytes) -> None:
        self.threads.add(threading.get_ident())
        assert self.allowed.acquire(timeout=WAIT_S)
        if self.error is not None:
            raise self.error
        self._store.put_blob(KEY, self._epoch, name, [content])


@pytest.fixture
def opened(store: Any) -> Iterator[tuple[Any, Gated, Callable[..., BlobWriter]]]:
    epoch, journal = begin(store, "power")
    gated, made = Gated(store, epoch), []

    def writer() -> BlobWriter:
        made.append(BlobWriter("test", gated, journal, gated.counts.append, Background))
        return made[-1]

    yield journal, gated, writer
    gated.allowed.release(100)
    try:
        journal.close(WAIT_S)
    except CheckpointSaveError:
        pass  # those that failed
    for each in made:
        each.stop(WAIT_S)


def seen(store: Any) -> list[bytes]:
    return [record.payload for record in store.read_journal(KEY, 0)]


class TestOrder:
    def test_what_comes_before_does_not_wait_and_what_comes_after_does(self, store: Any, opened: Any) -> None:
        journal, gated, make = opened
        writer = make()
        before = journal.append(b"before")
        writer.write("one", b"1" * LARGE)
        naming = journal.append(b"names one")
        after = journal.append(b"after")
        journal.wait(before, WAIT_S)
        with pytest.raises(CheckpointTimeoutError):
            journal.wait(naming, 0.05)
        assert seen(store) == [b"before"] and journal.durable_position == before
        gated.allowed.release()
        journal.wait(after, WAIT_S)
        assert seen(store) == [b"before", b"names one", b"after"]
        assert store.read_blob(KEY, "one") == b"1" * LARGE
        assert threading.get_ident() not in gated.threads

    def test_each_record_waits_for_its_own(self, store: Any, opened: Any) -> None:
        journal, gated, make = opened
        writer = make()
        positions = []
        for number in range(4):
            writer.write(f"b{number}", b"x" * LARGE)
            positions.append(journal.append(b"names %d" % number))
        for number, position in enumerate(positions):
            gated.allowed.release()
            journal.wait(position, WAIT_S)
            assert len(seen(store)) == number + 1 == len(store.list_blobs(KEY))
            assert sum(gated.counts) == (3 - number) * LARGE, "what is on its way is counted"

    def test_two_blobs_of_one_record(self, store: Any, opened: Any) -> None:
        journal, gated, make = opened
        writer = make()
        writer.write("arguments", b"a" * LARGE)
        writer.write("reply", b"r" * LARGE)
        position = journal.append(b"names both")
        gated.allowed.release()
        with pytest.raises(CheckpointTimeoutError):
            journal.wait(position, 0.05)
        gated.allowed.release()
        journal.wait(position, WAIT_S)
        assert store.list_blobs(KEY) == ["arguments", "reply"]

    def test_the_last_wait_is_that_of_closing(self, store: Any, opened: Any) -> None:
        journal, gated, make = opened
        make().write("one", b"1")
        journal.append(b"names one")
        with pytest.raises(CheckpointTimeoutError):
            journal.close(0.05)
        assert seen(store) == []
        gated.allowed.release()
        journal.close(WAIT_S)
        assert seen(store) == [b"names one"]

    def test_an_idle_journal_wakes_up(self, opened: Any) -> None:
        """Whatever the order of a blob's end and its record's beginning."""
        journal, gated, make = opened
        writer = make()
        for number in range(50):
            gated.allowed.release()
            writer.write(f"b{number}", b"x")
            journal.wait(journal.append(b"names it"), WAIT_S)
            journal.wait(journal.append(b"small"), WAIT_S)


class TestFailures:
    def test_one_that_cannot_be_written_ends_the_journal(self, store: Any, opened: Any) -> None:
        journal, gated, make = opened
        told: list[BaseException] = []
        failed = threading.Event()
        journal.on_failure = lambda error: (told.append(error), failed.set())
        writer = make()
        before = journal.append(b"before")
        journal.wait(before, WAIT_S)
        gated.error = OSError(28, "No space left on device")
        writer.write("one", b"1" * LARGE)
        position = journal.append(b"names one")
        gated.allowed.release()
        with pytest.raises(CheckpointSaveError, match="blob one cannot be written: OSError"):
            journal.wait(position, WAIT_S)
        assert failed.wait(WAIT_S) and "No space left" in str(told[0])
        with pytest.raises(CheckpointSaveError, match="No space left"):
            journal.append(b"later")
        with pytest.raises(CheckpointSaveError, match="No space left"):
            writer.write("two", b"2")
        assert seen(store) == [b"before"] and len(told) == 1


class Keeper(Checkpointable, exactly_once=True, durability="power", every=None):
    def __init__(self) -> None:
        self.sizes: list[int] = []

    def keep(self, data: bytes) -> bytes:
        self.sizes.append(len(data))
        return data


def _live(root: Path, seed: int, tell: Callable[[Any], None], arm: Callable[[], Any]) -> None:
    """Calls of all sizes; each is told when its reply is there."""
    pick = random.Random(seed)
    host = LocalHost("keeper", class_name="Keeper")
    session = engine.open(Keeper(), host, engine.spec_of(Keeper, {"store": root}))
    with arm():
        for number in range(20):
            size = pick.choice([10, 1000, LARGE, 3 * LARGE])
            assert host.call(session, "keep", bytes([number]) * size) == bytes([number]) * size
            tell(size)
    session.close(True, "end")


POINTS = [p for p in faults.POINTS if p.startswith("file.blob.") and p != "file.blob.deleted"]


@pytest.mark.parametrize("point", [*POINTS, None])
def test_a_process_that_dies_while_a_blob_is_written_loses_no_reply(
    point: str | None, tmp_path: Path
) -> None:
    """Then the journal names none that is not whole, and has every call that was answered."""

    seed = POINTS.index(point) if point else 99
    armed: Any = (point, "exit", 5) if point else (POINTS[0], "exit", 10_000)
    status, told = in_child(lambda tell: _live(tmp_path, seed, tell, lambda: faults.armed(*armed)))
    assert status == (faults.EXIT_STATUS if point else 0)
    host = LocalHost("keeper", class_name="Keeper", incarnation=2)
    session = engine.open(Keeper(), host, engine.spec_of(Keeper, {"store": tmp_path}))
    kept = session.instance.sizes  # type: ignore[attr-defined]
    assert kept[: len(told)] == told and len(kept) <= len(told) + 1
    assert host.call(session, "keep", b"x" * LARGE) == b"x" * LARGE
    session.close(True, "end")


def test_calls_do_not_wait_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fsync on the thread that serves, whatever a call brings along."""
    here = threading.get_ident()
    fsynced: list[int] = []
    host = LocalHost("keeper", class_name="Keeper")
    session = engine.open(Keeper(), host, engine.spec_of(Keeper, {"store": tmp_path}))
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda fd, real=real: (fsynced.append(threading.get_ident()), real(fd)))
    for _ in range(3):
        host.call(session, "keep", b"x" * LARGE)
    monkeypatch.undo()
    session.close(True, "end")
    assert fsynced and here not in fsynced
