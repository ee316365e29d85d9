from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ftray.checkpoint.journal import Journal
from ftray.checkpoint.stores import connect
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.protocol import Store
from ftray.checkpoint.testing import MemoryStore

from .journal_suite import JournalSuite


class TestLocalJournal(JournalSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LocalStore(str(tmp_path / "new" / "store"))

    def reopened(self, store: LocalStore) -> Store:
        return LocalStore(store._root)


class TestLocalJournalUnmapped(JournalSuite):
    """As on a file system where overwriting a page may need space: nothing writable is mapped."""

    durabilities = ("process",)

    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
        monkeypatch.setattr("ftray.checkpoint.stores.local_journal._IN_PLACE", frozenset())
        return LocalStore(str(tmp_path))

    def reopened(self, store: LocalStore) -> Store:
        return LocalStore(store._root)


class TestMemoryJournal(JournalSuite):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()

    def reopened(self, store: MemoryStore) -> Store:
        return store


def test_the_benchmark_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import journal as benchmark

    rows = benchmark.main(["--records", "2000", "--directory", str(tmp_path)])
    assert [row.name.split(",")[0] for row in rows] == [
        "process",
        "power",
        "power",
        "power",
        "bare fdatasync of 64",
    ]
    assert all(row.records and row.append_s > 0 and row.durable_s > 0 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == 5


class TestS3Journal(JournalSuite):
    durabilities = ("power",)  # `process` is the same there

    @pytest.fixture
    def store(self, s3_url: str) -> Store:
        return connect(s3_url)

    def reopened(self, store: Store) -> Store:
        return connect(store.url)


class TestFsspecMemoryJournal(JournalSuite):
    durabilities = ("process",)

    @pytest.fixture
    def store(self) -> Iterator[Store]:
        import fsspec

        yield connect("memory://journals")
        fsspec.filesystem("memory").store.clear()

    def reopened(self, store: Store) -> Store:
        return connect(store.url)


def test_the_core_fulfils_the_protocol(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path))
    assert store.claim("k", 1, b"")
    journal: Journal = store.open_journal("k", 1, 1)
    members = [name for name in vars(Journal) | Journal.__annotations__ if not name.startswith("_")]
    assert len(members) > 10 and not [name for name in members if not hasattr(journal, name)]
    journal.close(10)
