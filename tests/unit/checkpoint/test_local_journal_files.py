"""Files of the local journal: modes, names, what is left, and on which file systems it stands."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray.checkpoint import (
    CheckpointCorruptedError,
    UntrustedStoreError,
)
from ftray.checkpoint.stores import life
from ftray.checkpoint.stores.local import LocalStore

from .journal_suite import KEY, WAIT_S, begin, fill, read, upto
from .local_journal_support import BOTH, DIRECTORY, segments, small
from .support import in_child


class TestFiles:
    def test_modes(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path / "a"))
        mask = os.umask(0)
        try:
            epoch, journal = begin(store, "power")
            fill(journal, 1, 2)
            store.put_blob(KEY, epoch, "b", [b"x"])
            journal.close(WAIT_S)
        finally:
            os.umask(mask)
        for path in (tmp_path / "a" / DIRECTORY).iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path

    def test_the_life_file_goes_with_its_successor(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        for _ in range(3):
            epoch, journal = begin(store, "process")
            journal.close(WAIT_S)
        assert store.claim(KEY, 4, b"")
        store.seal(KEY, 4, b"")
        store.settle(KEY, 4)
        assert len(list((tmp_path / DIRECTORY).glob("*.live"))) == 3, "nothing newer says what they say"
        epoch, journal = begin(store, "process")
        store.seal(KEY, epoch, b"")
        store.settle(KEY, epoch)
        assert [p.name for p in (tmp_path / DIRECTORY).glob("*.live")] == [f"epoch-{epoch:010}.live"]
        journal.close(WAIT_S)

    @BOTH
    def test_a_claim_that_a_loss_of_power_took(self, tmp_path: Path, durability: str) -> None:
        _, journal = begin(LocalStore(str(tmp_path)), durability)
        fill(journal, 1, 3)
        journal.close(WAIT_S)
        (tmp_path / DIRECTORY / "epoch-0000000001.claim").unlink()
        epoch, journal = begin(LocalStore(str(tmp_path)), durability)
        assert epoch == 2 and journal.last_position == 3
        journal.close(WAIT_S)

    def test_unused_segments_of_dead_epochs_are_trimmed(self, tmp_path: Path) -> None:
        def body(tell: Callable[[Any], None]) -> None:
            _, journal = begin(small(tmp_path), "process")
            fill(journal, 1, 10)  # past the middle of the first segment: the second one is being made
            while len(segments(tmp_path)) < 2:
                threading.Event().wait(0.001)

        assert in_child(body) == (0, [])
        assert len(segments(tmp_path)) == 2 and not _last_has_records(tmp_path)
        store = small(tmp_path)
        epoch, journal = begin(store, "process")
        fill(journal, 11, 12)
        store.trim_journal(KEY, 10, epoch)
        assert {p.name[:18] for p in segments(tmp_path)} == {"journal-0000000002"}
        assert read(store, 10) == [11, 12]
        journal.close(WAIT_S)

    def test_no_segment_goes_that_has_a_record_behind_the_position(self, tmp_path: Path) -> None:
        store = small(tmp_path)
        epoch, journal = begin(store, "process")
        fill(journal, 1, 300)
        before = len(segments(tmp_path))
        for position in range(300):
            store.trim_journal(KEY, position, epoch)
            assert read(store, position) == upto(300, position + 1)
        assert len(segments(tmp_path)) < before
        journal.close(WAIT_S)

    def test_unused_segments_do_not_stay(self, tmp_path: Path) -> None:
        _, journal = begin(small(tmp_path), "process")
        fill(journal, 1, 1000)
        journal.close(WAIT_S)
        for _ in range(1000):
            if len(segments(tmp_path)) == journal.stats()["segments"] or _last_has_records(tmp_path):
                break
        assert _last_has_records(tmp_path)
        assert read(LocalStore(str(tmp_path))) == upto(1000)

    def test_others_files_are_not_trusted(self, tmp_path: Path) -> None:
        _, journal = begin(LocalStore(str(tmp_path)), "process")
        fill(journal, 1, 1)
        journal.close(WAIT_S)
        (tmp_path / DIRECTORY).chmod(0o777)
        with pytest.raises(UntrustedStoreError):
            LocalStore(str(tmp_path)).read_journal(KEY, 0)
        with pytest.raises(UntrustedStoreError):
            LocalStore(str(tmp_path)).read_blob(KEY, "b")

    def test_a_segment_of_another_key_is_damage(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        _, journal = begin(store, "process")
        fill(journal, 1, 1)
        journal.close(WAIT_S)
        store.claim("other", 1, b"")
        (tmp_path / "other" / segments(tmp_path)[0].name).write_bytes(segments(tmp_path)[0].read_bytes())
        with pytest.raises(CheckpointCorruptedError, match="copied here"):
            store.read_journal("other", 0)

    def test_a_blob_that_was_changed(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        store.claim(KEY, 1, b"")
        store.put_blob(KEY, 1, "b", [b"content"])
        (path,) = (tmp_path / DIRECTORY).glob("blob-*")
        whole = path.read_bytes()
        for at in range(len(whole)):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
            with pytest.raises(Exception, match="blob|prefix"):
                store.read_blob(KEY, "b")
            path.write_bytes(whole[:at])
            with pytest.raises(Exception, match="blob|truncated"):
                store.read_blob(KEY, "b")

    def test_a_life_file_of_another_boot_says_nothing(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        epoch, journal = begin(store, "process")
        journal.running(b"c" * 16)
        assert store.last_running(KEY) == (b"c" * 16, 1)
        path = tmp_path / DIRECTORY / f"epoch-{epoch:010}.live"
        said = life.decode(path.read_bytes())
        assert said is not None and said.running == b"c" * 16 and said.epoch == epoch and not said.fenced_by
        journal.close(WAIT_S)
        path.write_bytes(life.encode(epoch, b"another boot 123", (b"c" * 16, 2)))
        assert store.last_running(KEY) is None
        path.write_bytes(b"short")
        assert store.last_running(KEY) is None


def _last_has_records(root: Path) -> bool:
    from ftray.checkpoint.segments import scan

    return bool(scan(segments(root)[-1].read_bytes()).records)
