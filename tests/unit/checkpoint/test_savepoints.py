"""Savepoints: written whole, read whole, started from under other keys, stores and code."""

from __future__ import annotations

import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray.checkpoint import (
    CheckpointCorruptedError,
    CheckpointKeyInUseError,
    CheckpointNotFoundError,
    CheckpointSaveError,
    FencedError,
    UnsupportedStoreError,
    savepoint,
)
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.testing import Caller, crash
from tests.unit.checkpoint.once_support import KEY, Lives, Tally, memory
from tests.unit.checkpoint.support import call, start

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def lives(tmp_path: Path) -> Lives:
    made = Lives(LocalStore(str(tmp_path / "store"))).start()
    made.call("incr", 7)
    made.call("checkpoint")
    return made


def test_one_file_that_says_what_it_is(lives: Lives, tmp_path: Path) -> None:
    path = tmp_path / "before-upgrade.savepoint"
    steps: list[tuple[int, int]] = []
    done = checkpoint.export(lives.store, KEY, path, progress=lambda *step: steps.append(step))
    assert path.stat().st_size == done.size_bytes and path.stat().st_mode & 0o777 == 0o600
    assert steps[-1] == (done.size_bytes, done.size_bytes)
    assert (done.name, done.key, done.exactly_once) == ("before-upgrade", KEY, True)
    assert done.snapshot == checkpoint.open(lives.store).list(KEY)[-1].id
    assert checkpoint.savepoint_info(path) == done
    assert checkpoint.savepoint_info(f"file://{path}")._replace(url=str(path)) == done
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".tmp")] == []
    assert lives.call("incr") == 8, "the actor was not disturbed"


def test_what_the_journal_has_behind_it_is_told(lives: Lives, tmp_path: Path) -> None:
    lives.call("incr")
    lives.call("incr")
    assert checkpoint.export(lives.store, KEY, tmp_path / "a").journal_behind == 2
    lives.call("checkpoint")
    assert checkpoint.export(lives.store, KEY, tmp_path / "b").journal_behind == 0


def test_retention_never_touches_it(lives: Lives, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    done = checkpoint.export(lives.store, KEY, path)
    for _ in range(4):
        lives.call("incr")
        lives.call("checkpoint")
    assert done.snapshot not in [i.id for i in checkpoint.open(lives.store).list(KEY)]
    crash(lives.session)
    checkpoint.restore(lives.store, KEY, savepoint=path)
    lives.number = 0
    assert lives.start().call("value") == 7


class TestStartingFrom:
    def test_another_store_keeps_the_ledger(self, lives: Lives, tmp_path: Path) -> None:
        lives.caller = lives.host.caller = Caller(acknowledges=False)
        known = lives.make("incr", 1)
        assert lives.send(known) == 8
        lives.call("checkpoint")
        checkpoint.export(lives.store, KEY, tmp_path / "moved")
        other = memory()
        done = checkpoint.restore(other, KEY, savepoint=tmp_path / "moved")
        assert (done.ledger, done.history_number) == (True, 2)
        moved = Lives(other)
        moved.caller = lives.caller
        moved.start()
        assert moved.send(known) == 8, "it has run there"
        assert moved.call("incr") == 9
        assert moved.start().call("value") == 9

    def test_another_key_begins_without_callers(self, lives: Lives, tmp_path: Path) -> None:
        checkpoint.export(lives.store, KEY, tmp_path / "template")
        done = checkpoint.restore(lives.store, "test/other", savepoint=tmp_path / "template")
        assert (done.ledger, done.history_number) == (False, 1)
        other = Lives(lives.store, checkpoint_key="test/other").start()
        call_ = other.caller.call("test/other", "incr")
        assert other.send(call_) == 8
        assert checkpoint.open(lives.store).ledger("test/other") | {"calls": 0} == {
            "history_number": 1,
            **dict.fromkeys(("callers", "calls", "accepted", "released", "reply_bytes", "expired"), 0),
            **dict.fromkeys(("duplicates", "mismatches", "refused", "held_back"), 0),
        }
        assert lives.call("value") == 7, "the original goes on"

    def test_other_code_needs_no_migration(self, lives: Lives, tmp_path: Path) -> None:
        class Newer(Tally, formerly="Tally"):
            def incr(self, k: int = 1) -> int:
                self.n += 2 * k
                return self.n

        checkpoint.export(lives.store, KEY, tmp_path / "s")
        other = memory()
        checkpoint.restore(other, KEY, savepoint=tmp_path / "s")
        assert Lives(other, Newer).start().call("incr") == 9

    def test_a_snapshot_mode_actor(self, tmp_path: Path) -> None:
        host, session = start(store=tmp_path / "one")
        call(host, session, "incr", 3)
        session.close(final=True, reason="test")
        info = checkpoint.export(tmp_path / "one", "test/counter", tmp_path / "s")
        assert (info.exactly_once, info.journal_position) == (False, None)
        checkpoint.restore(tmp_path / "two", "test/counter", savepoint=tmp_path / "s")
        host, session = start(store=tmp_path / "two", restore="require")
        assert session.instance.n == 3  # type: ignore[attr-defined]
        session.close(final=True, reason="test")

    def test_over_a_key_that_lives(self, lives: Lives, tmp_path: Path) -> None:
        checkpoint.export(lives.store, KEY, tmp_path / "s")
        with pytest.raises(CheckpointKeyInUseError):
            checkpoint.restore(lives.store, KEY, savepoint=tmp_path / "s")
        checkpoint.restore(lives.store, KEY, savepoint=tmp_path / "s", takeover=True)
        with pytest.raises(FencedError):
            lives.call("incr")


class TestWriting:
    def test_nothing_is_overwritten_unasked(self, lives: Lives, tmp_path: Path) -> None:
        path = tmp_path / "s"
        path.write_text("mine")
        with pytest.raises(CheckpointSaveError, match="exists already"):
            checkpoint.export(lives.store, KEY, path)
        assert path.read_text() == "mine"
        checkpoint.export(lives.store, KEY, path, overwrite=True, name="mine")
        assert checkpoint.savepoint_info(path).name == "mine"

    def test_places_that_cannot_be_written(self, lives: Lives, tmp_path: Path) -> None:
        for target, words in ((tmp_path, "is a directory"), (tmp_path / "no" / "s", "cannot be written")):
            with pytest.raises(CheckpointSaveError, match=words):
                checkpoint.export(lives.store, KEY, target)
        with pytest.raises(UnsupportedStoreError, match="nonsense"):
            checkpoint.export(lives.store, KEY, "nonsense://x/y")

    def test_a_failure_half_way_leaves_nothing(self, lives: Lives, tmp_path: Path) -> None:
        def fail(done: int, total: int) -> None:
            raise OSError(28, "No space left on device")

        with pytest.raises(CheckpointSaveError, match="No space left"):
            checkpoint.export(lives.store, KEY, tmp_path / "s", progress=fail)
        assert [p.name for p in tmp_path.iterdir()] == ["store"]
        with pytest.raises(CheckpointSaveError, match="No space left"):
            checkpoint.export(lives.store, KEY, f"local://{tmp_path}/s", progress=fail)
        assert [p.name for p in tmp_path.iterdir()] == ["store"]

    def test_a_url(self, lives: Lives) -> None:
        pytest.importorskip("fsspec")
        url = "memory://savepoints/one.savepoint"
        done = checkpoint.export(lives.store, KEY, url, overwrite=True)
        assert checkpoint.savepoint_info(url) == done
        with pytest.raises(CheckpointSaveError, match="exists already"):
            checkpoint.export(lives.store, KEY, url)
        other = memory()
        checkpoint.restore(other, KEY, savepoint=url)
        assert Lives(other).start().call("value") == 7

    def test_in_the_bucket_of_a_store(self, lives: Lives, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """The query is that of stores, and no part of the object's name; of two writers one wins."""
        bucket = s3.new_bucket()
        url = f"s3://{bucket}/one.savepoint?endpoint_url={s3.endpoint}"
        done = checkpoint.export(lives.store, KEY, url)
        assert checkpoint.savepoint_info(url) == done
        file_system = savepoint._file_system(url)[0]
        assert file_system.find(bucket) == [f"{bucket}/one.savepoint"]
        checkpoint.restore(memory(), KEY, savepoint=url)

        def fail(done: int, total: int) -> None:
            raise OSError(5, "no answer")

        with pytest.raises(CheckpointSaveError, match="no answer"):
            checkpoint.export(lives.store, KEY, url, overwrite=True, progress=fail)
        assert checkpoint.savepoint_info(url) == done, "it is replaced when all of the new one is there"
        monkeypatch.setattr(file_system, "exists", lambda path: False)  # as it was a moment before
        with pytest.raises(CheckpointSaveError, match="exists already"):
            checkpoint.export(lives.store, KEY, url)
        assert checkpoint.savepoint_info(url) == done

    def test_where_nothing_can_be_written(self, lives: Lives) -> None:
        with pytest.raises(UnsupportedStoreError, match="nothing can be written there"):
            checkpoint.export(lives.store, KEY, "data://x/y", overwrite=True)

    def test_unknown_snapshots(self, lives: Lives, tmp_path: Path) -> None:
        with pytest.raises(CheckpointNotFoundError, match="no snapshot 9-9"):
            checkpoint.export(lives.store, KEY, tmp_path / "s", snapshot="9-9")
        with pytest.raises(CheckpointNotFoundError, match="keys there: 'test/tally'"):
            checkpoint.export(lives.store, "no/key", tmp_path / "s")
        assert not (tmp_path / "s").exists()

    def test_a_damaged_snapshot(self, lives: Lives, tmp_path: Path) -> None:
        newest = max((tmp_path / "store").glob("*/snap-*"))
        data = bytearray(newest.read_bytes())
        data[-100] ^= 1
        newest.write_bytes(data)
        with pytest.raises(CheckpointCorruptedError, match="Choose another one"):
            checkpoint.export(lives.store, KEY, tmp_path / "s")
        assert not (tmp_path / "s").exists()


class TestReading:
    def test_every_changed_byte_and_every_cut_is_found(self, lives: Lives, tmp_path: Path) -> None:
        path, broken = tmp_path / "s", tmp_path / "broken"
        checkpoint.export(lives.store, KEY, path)
        data = path.read_bytes()
        for at in range(len(data)):
            changed = bytearray(data)
            changed[at] ^= 0x40
            broken.write_bytes(changed)
            with pytest.raises(CheckpointCorruptedError):
                checkpoint.savepoint_info(broken)
        for cut in (0, 7, 31, 32, 200, len(data) - 1):
            broken.write_bytes(data[:cut])
            with pytest.raises(CheckpointCorruptedError):
                checkpoint.savepoint_info(broken)
        other = memory()
        with pytest.raises(CheckpointCorruptedError, match="Nothing was changed"):
            checkpoint.restore(other, KEY, savepoint=broken)
        assert other.keys() == []

    def test_none_there_and_none_at_all(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointNotFoundError, match="no savepoint"):
            checkpoint.savepoint_info(tmp_path / "none")
        with pytest.raises(CheckpointCorruptedError, match="not a savepoint: begins with"):
            checkpoint.savepoint_info(GOLDEN / "v1.ckpt")

    def test_a_format_of_the_future(self, lives: Lives, tmp_path: Path) -> None:
        path = tmp_path / "s"
        checkpoint.export(lives.store, KEY, path)
        data = bytearray(path.read_bytes())
        data[8:10] = struct.pack("<H", 2)
        data[28:32] = zlib.crc32(data[:28]).to_bytes(4, "little")
        path.write_bytes(data)
        with pytest.raises(CheckpointCorruptedError, match="format version 2; this release reads version 1"):
            checkpoint.savepoint_info(path)

    def test_the_released_format_is_read_for_ever(self, tmp_path: Path) -> None:
        info = checkpoint.savepoint_info(GOLDEN / "v1.savepoint")
        assert (info.name, info.key, info.exactly_once, info.snapshot) == ("golden", KEY, True, "1-2")
        shutil.copy(GOLDEN / "v1.savepoint", tmp_path / "s")
        store = memory()
        checkpoint.restore(store, KEY, savepoint=tmp_path / "s")
        assert checkpoint.open(store).load(KEY) == {"n": 7, "seen": []}

    def test_a_disk_that_fails_while_it_is_read(
        self, lives: Lives, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checkpoint.export(lives.store, KEY, tmp_path / "s")

        def fail(*_: object) -> Any:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(savepoint._Body, "readinto", fail)
        with pytest.raises(CheckpointCorruptedError, match="Input/output error"):
            checkpoint.savepoint_info(tmp_path / "s")
