"""Tables in a SQLite database, with a write-ahead log.

Owns: the file, its schema and its settings, and what SQLite's errors mean for people.
Invariants: a statement is a transaction; one that fails has changed nothing and does not affect later ones.
With ``durable`` a write that has returned survives the end of the process at any instant and, as far as the
disk keeps its word, of the machine (``synchronous=FULL``); without, the file is worth no more than its
process (``synchronous=OFF``). The file is opened by the first call and then held exclusively.
Leaves to others: that only one head uses a directory (``storage.StorageDirectory``).
"""

from __future__ import annotations

import errno
import os

from ftray._node.storage import StorageError, StorageFullError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

_APPLICATION_ID = 0x46545259  # FTRY
SCHEMA_VERSION = 1
# The unique index finds keys; rows of large values are not moved when it is reordered.
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE entries (space BLOB NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, UNIQUE (space, key));
PRAGMA application_id = {_APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""
_RANGE = "space = ? AND key >= ? AND (? IS NULL OR key < ?)"


class SqliteTables:
    """Tables in one file.

    Parameters
    ----------
    path
        The database; made if missing. Its directory must be there.
    durable
        See above.

    Notes
    -----
    All methods raise ``StorageError``, and ``StorageFullError`` when the disk is full.
    """

    def __init__(self, path: str, durable: bool) -> None:
        self._path = path
        self._durable = durable
        self._connection: sqlite3.Connection | None = None

    def open(self) -> None:
        """Open now what the first call would open."""
        self._run("SELECT 1", ())

    def put(self, table: bytes, key: bytes, value: bytes, overwrite: bool) -> bool:
        """Store unless the key is there and ``overwrite`` is False; return whether it was there."""
        made = self._run(
            "INSERT INTO entries VALUES (?, ?, ?) ON CONFLICT DO NOTHING", (table, key, value)
        ).rowcount
        if not made and overwrite:
            self._run("UPDATE entries SET value = ? WHERE space = ? AND key = ?", (value, table, key))
        return not made

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """Return the value, None without one."""
        row = self._run("SELECT value FROM entries WHERE space = ? AND key = ?", (table, key)).row
        return None if row is None else bytes(row[0])

    def exists(self, table: bytes, key: bytes) -> bool:
        """Whether the key is there."""
        return self._run("SELECT 1 FROM entries WHERE space = ? AND key = ?", (table, key)).row is not None

    def delete(self, table: bytes, key: bytes, by_prefix: bool) -> int:
        """Remove the key, or all that begin with it; return how many went."""
        if by_prefix:
            return self._run(f"DELETE FROM entries WHERE {_RANGE}", _range(table, key)).rowcount
        return self._run("DELETE FROM entries WHERE space = ? AND key = ?", (table, key)).rowcount

    def keys(self, table: bytes, prefix: bytes) -> list[bytes]:
        """Return the keys that begin with ``prefix``, sorted."""
        found = self._run(f"SELECT key FROM entries WHERE {_RANGE} ORDER BY key", _range(table, prefix))
        return [bytes(row[0]) for row in found.rows]

    def close(self) -> None:
        """Close the file; the log goes into it."""
        if self._connection is not None:
            import sqlite3

            connection, self._connection = self._connection, None
            try:
                connection.close()
            except sqlite3.Error as error:
                raise self._explained(error) from None

    # Mechanics ------------------------------------------------------------------------------------

    def _run(self, statement: str, values: Sequence[object]) -> _Result:
        try:
            import sqlite3
        except ImportError as error:
            raise StorageError(
                f"this Python has no module sqlite3, in which the key-value store is kept: {error}"
            ) from None
        try:
            if self._connection is None:
                self._connection = self._open()
            cursor = self._connection.execute(statement, values)
            return _Result(cursor.fetchall(), cursor.rowcount)
        except (sqlite3.Error, OverflowError) as error:
            raise self._explained(error) from None

    def _open(self) -> sqlite3.Connection:
        import sqlite3

        try:  # SQLite would make it readable for others
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            kind = StorageFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
            raise kind(
                f"the key-value store {self._path} cannot be opened: {error.strerror}; its directory must"
                " exist, have room, and be allowed to be written"
            ) from None
        connection = sqlite3.connect(self._path, timeout=0.0, isolation_level=None)
        try:
            # Alone on the file: no shared-memory file beside it, whose mapping a full disk would break.
            connection.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._check_schema(connection)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'FULL' if self._durable else 'OFF'}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_schema(self, connection: sqlite3.Connection) -> None:
        """Make the schema in an empty file; refuse a file that is somebody else's or another version's."""
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not application and not version and not tables:
            connection.executescript(_SCHEMA)
        elif application != _APPLICATION_ID:
            raise StorageError(f"{self._path} is a SQLite database, but none of ftray's; give another place")
        elif version != SCHEMA_VERSION:
            raise StorageError(
                f"{self._path} has version {version} of the key-value store's schema, this ftray has version"
                f" {SCHEMA_VERSION}; use the ftray that wrote it, or give another place"
            )

    def _explained(self, error: Exception) -> StorageError:
        text = str(error)
        if "full" in text:
            return StorageFullError(f"no room for the key-value store {self._path}: {text}; free disk space")
        if "malformed" in text or "not a database" in text:
            hint = "it is damaged: restore it from a copy, or move it away and begin with an empty one"
        elif "readonly" in text or "unable to open" in text:
            hint = "its directory must exist, and it must be allowed to write there"
        elif "locked" in text:
            hint = "another process uses it"
        else:
            hint = "see the system's log for errors of the disk"
        return StorageError(f"the key-value store {self._path} cannot be used: {text}; {hint}")


class _Result:
    """What a statement gave."""

    def __init__(self, rows: list[tuple[bytes]], rowcount: int) -> None:
        self.rows = rows
        self.rowcount = rowcount

    @property
    def row(self) -> tuple[bytes] | None:
        return self.rows[0] if self.rows else None


def _range(table: bytes, prefix: bytes) -> tuple[bytes, bytes, bytes | None, bytes | None]:
    """Return the values for ``_RANGE``: the keys that begin with ``prefix``."""
    stem = prefix.rstrip(b"\xff")
    end = stem[:-1] + bytes([stem[-1] + 1]) if stem else None
    return table, prefix, end, end
