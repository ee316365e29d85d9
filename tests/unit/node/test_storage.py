"""Tables of the head: what every storage must do, and what SQLite files can be in."""

from __future__ import annotations

import ctypes
import os
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray._node.sqlite_storage import SCHEMA_VERSION, SqliteTables
from ftray._node.storage import DATABASE_FILE, StorageDirectory, StorageError, StorageFullError
from tests.unit.checkpoint.support import in_child


class MemoryTables:
    """The reference: a dictionary."""

    def __init__(self) -> None:
        self._rows: dict[tuple[bytes, bytes], bytes] = {}

    def put(self, table: bytes, key: bytes, value: bytes, overwrite: bool) -> bool:
        found = (table, key) in self._rows
        if overwrite or not found:
            self._rows[table, key] = value
        return found

    def get(self, table: bytes, key: bytes) -> bytes | None:
        return self._rows.get((table, key))

    def exists(self, table: bytes, key: bytes) -> bool:
        return (table, key) in self._rows

    def delete(self, table: bytes, key: bytes, by_prefix: bool) -> int:
        doomed = [k for k in self._rows if k == (table, key)]
        if by_prefix:
            doomed = [k for k in self._rows if k[0] == table and k[1].startswith(key)]
        for found in doomed:
            del self._rows[found]
        return len(doomed)

    def keys(self, table: bytes, prefix: bytes) -> list[bytes]:
        return sorted(key for space, key in self._rows if space == table and key.startswith(prefix))

    def close(self) -> None:
        self._rows.clear()


def sqlite(path: Path, durable: bool = True) -> SqliteTables:
    return SqliteTables(str(path / DATABASE_FILE), durable)


@pytest.fixture(params=["memory", "durable", "session"])
def tables(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made = MemoryTables() if request.param == "memory" else sqlite(tmp_path, request.param == "durable")
    yield made
    made.close()


class TestEveryStorage:
    def test_put_get_overwrite(self, tables: Any) -> None:
        assert tables.get(b"t", b"k") is None and not tables.exists(b"t", b"k")
        assert tables.put(b"t", b"k", b"1", overwrite=False) is False
        assert tables.put(b"t", b"k", b"2", overwrite=False) is True
        assert tables.get(b"t", b"k") == b"1"
        assert tables.put(b"t", b"k", b"2", overwrite=True) is True
        assert tables.get(b"t", b"k") == b"2"
        assert tables.get(b"other", b"k") is None and tables.exists(b"t", b"k")
        assert tables.put(b"", b"", b"", overwrite=True) is False
        assert tables.get(b"", b"") == b""

    def test_keys_and_delete(self, tables: Any) -> None:
        for key in (b"b", b"ab", b"a", b"ac"):
            tables.put(b"t", key, b"", overwrite=True)
        assert tables.keys(b"t", b"a") == [b"a", b"ab", b"ac"]
        assert tables.delete(b"t", b"a", by_prefix=False) == 1
        assert tables.delete(b"t", b"a", by_prefix=False) == 0
        assert tables.delete(b"t", b"a", by_prefix=True) == 2
        assert tables.keys(b"t", b"") == [b"b"]
        assert tables.delete(b"t", b"", by_prefix=True) == 1
        assert tables.keys(b"t", b"") == []

    def test_a_large_value(self, tables: Any) -> None:
        value = os.urandom(1 << 20) * 3
        tables.put(b"t", b"k", value, overwrite=True)
        assert tables.get(b"t", b"k") == value


# Bytes at the edges of prefix ranges.
NAMES = st.binary(max_size=3) | st.lists(st.sampled_from([0, 1, 0xFE, 0xFF]), max_size=3).map(bytes)
STEPS = st.lists(
    st.tuples(st.just("put"), NAMES, st.binary(max_size=2), st.booleans())
    | st.tuples(st.just("delete"), NAMES, st.booleans())
    | st.tuples(st.just("keys"), NAMES),
    max_size=12,
)


@given(steps=STEPS)
def test_sqlite_does_what_a_dictionary_does(steps: list[tuple[Any, ...]]) -> None:
    ours, reference = SqliteTables(":memory:", False), MemoryTables()
    ours._connection = sqlite3.connect(":memory:", isolation_level=None)
    ours._check_schema(ours._connection)
    for name, *args in steps:
        assert getattr(ours, name)(b"t", *args) == getattr(reference, name)(b"t", *args)
    ours.close()


class TestFile:
    def test_it_is_opened_late_and_private(self, tmp_path: Path) -> None:
        tables = sqlite(tmp_path)
        assert list(tmp_path.iterdir()) == []
        tables.put(b"t", b"k", b"v", True)
        assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())
        tables.close()
        tables.close()
        again = sqlite(tmp_path)
        assert again.get(b"t", b"k") == b"v"
        again.close()

    def test_settings(self, tmp_path: Path) -> None:
        for durable, level in ((True, 2), (False, 0)):
            tables = sqlite(tmp_path, durable)
            tables.open()
            assert tables._connection is not None
            ask = tables._connection.execute
            assert ask("PRAGMA journal_mode").fetchone() == ("wal",)
            assert ask("PRAGMA synchronous").fetchone() == (level,)
            tables.close()

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda path: path.write_bytes(b"SQLite format 3\0" + os.urandom(8000)), "damaged"),
            (lambda path: path.write_bytes(b"nonsense" * 100), "not a database; it is damaged"),
            (lambda path: run_sql(path, "CREATE TABLE theirs (a)"), "none of ftray's"),
            (lambda path: run_sql(path, "PRAGMA user_version = 3"), "none of ftray's"),
            (
                lambda path: run_sql(path, "PRAGMA application_id = 0x46545259; PRAGMA user_version = 9"),
                f"version 9 of the key-value store's schema, this ftray has version {SCHEMA_VERSION}",
            ),
            (lambda path: path.mkdir(), "Is a directory"),
        ],
    )
    def test_a_file_that_is_not_ours(self, tmp_path: Path, make: Callable[[Path], Any], words: str) -> None:
        make(tmp_path / DATABASE_FILE)
        before = None if (tmp_path / DATABASE_FILE).is_dir() else (tmp_path / DATABASE_FILE).read_bytes()
        tables = sqlite(tmp_path)
        for _ in range(2):
            with pytest.raises(StorageError, match=words) as caught:
                tables.put(b"t", b"k", b"v", True)
            assert str(tmp_path) in str(caught.value)
        tables.close()
        assert before is None or (tmp_path / DATABASE_FILE).read_bytes() == before

    def test_a_page_that_was_damaged(self, tmp_path: Path) -> None:
        tables = sqlite(tmp_path)
        for number in range(300):
            tables.put(b"t", b"%d" % number, bytes(2000), True)
        tables.close()
        with (tmp_path / DATABASE_FILE).open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(200_000))
        with pytest.raises(StorageError, match="damaged|malformed"):
            for number in range(300):
                tables.get(b"t", b"%d" % number)
        tables.close()

    def test_a_directory_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(StorageError, match="No such file or directory; its directory must exist"):
            sqlite(tmp_path / "none").open()

    def test_another_process_holds_the_file(self, tmp_path: Path) -> None:
        tables = sqlite(tmp_path)
        tables.put(b"t", b"k", b"v", True)
        with pytest.raises(StorageError, match="another process uses it"):
            sqlite(tmp_path).open()
        tables.close()

    def test_a_full_disk_costs_the_write_only(self, tmp_path: Path) -> None:
        def body(tell: Callable[[Any], None]) -> None:
            tables = sqlite(tmp_path)
            tables.put(b"t", b"small", b"1", True)
            try:
                tables.put(b"t", b"large", bytes(4 << 20), True)
            except StorageFullError as error:
                tell(str(error))
            tell([tables.exists(b"t", b"large"), (tables.get(b"t", b"small") or b"").decode()])
            tables.put(b"t", b"small", b"2", True)
            tables.close()
            tell((sqlite(tmp_path).get(b"t", b"small") or b"").decode())

        error, after, reopened = in_own_mount(tmp_path, b"size=1m,mode=700", body)
        assert "free disk space" in error and str(tmp_path) in error
        assert after == [False, "1"] and reopened == "2"

    def test_a_file_system_that_cannot_be_written(self, tmp_path: Path) -> None:
        def body(tell: Callable[[Any], None]) -> None:
            for attempt in (lambda: sqlite(tmp_path).open(), lambda: StorageDirectory(str(tmp_path))):
                try:
                    attempt()
                except StorageError as error:
                    tell(str(error))

        opened, claimed = in_own_mount(tmp_path, b"size=1m,mode=700", body, read_only=True)
        assert "Read-only file system" in opened and "Read-only file system" in claimed


def run_sql(path: Path, script: str) -> None:
    connection = sqlite3.connect(path)
    connection.executescript(script)
    connection.close()


def in_own_mount(
    path: Path, options: bytes, body: Callable[[Callable[[Any], None]], None], read_only: bool = False
) -> list[Any]:
    """Run `body(tell)` in a child that has a small file system of its own at `path`; return what it told."""

    def mounted(tell: Callable[[Any], None]) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        private, recursive, new_mounts = 1 << 18, 1 << 14, 0x00020000
        failed = (
            libc.unshare(new_mounts)
            or libc.mount(b"none", b"/", None, recursive | private, None)
            or libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", int(read_only), options)
        )
        if failed:
            tell({"skip": os.strerror(ctypes.get_errno())})
        else:
            body(tell)

    status, told = in_child(mounted)
    if told and isinstance(told[0], dict):
        pytest.skip(f"no mount namespace of our own: {told[0]['skip']}")
    assert status == 0
    return told


class TestDirectory:
    def test_one_head_at_a_time(self, tmp_path: Path) -> None:
        path = str(tmp_path / "a" / "b")
        first = StorageDirectory(path)
        assert os.stat(path).st_mode & 0o777 == 0o700
        with pytest.raises(StorageError, match=f"in use by another head \\(process {os.getpid()}\\)"):
            StorageDirectory(path)
        first.close()
        StorageDirectory(path).close()

    def test_a_file_in_its_place(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="cannot be used.*File exists"):
            StorageDirectory(str(tmp_path / "file"))


@pytest.mark.parametrize("large", [False, True])
def test_a_write_that_was_acknowledged_survives_a_kill_at_any_instant(tmp_path: Path, large: bool) -> None:
    """The child is killed while it writes, ten times over; what it told of is there."""
    size = 300_000 if large else 10
    acknowledged: set[int] = set()
    for round_number in range(5):
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            tables = sqlite(tmp_path)
            for number in range(round_number * 10_000, (round_number + 1) * 10_000):
                tables.put(b"t", b"%d" % number, b"%d|" % number + bytes(size), True)
                os.write(writer, b"%d\n" % number)
            os._exit(1)
        os.close(writer)
        with os.fdopen(reader) as lines:
            for _ in range(1 + 7 * round_number):
                acknowledged.add(int(lines.readline()))
            os.kill(pid, signal.SIGKILL)
            acknowledged.update(int(line) for line in lines)
        os.waitpid(pid, 0)
        tables = sqlite(tmp_path)
        found = {int(key) for key in tables.keys(b"t", b"")}
        assert acknowledged <= found and len(found - acknowledged) <= round_number + 1
        for number in found:
            value = tables.get(b"t", b"%d" % number)
            assert value is not None and value.startswith(b"%d|" % number) and len(value) >= size
        tables.close()
