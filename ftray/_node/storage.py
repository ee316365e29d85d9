"""Tables of the head behind one small interface.

Owns: ``TableStorage`` (what a table must do) and its in-memory implementation.
Invariants: keys and values are bytes; a write is visible to the next read.
Leaves to others: what tables mean (``rpc``: the internal key-value store), durable implementations.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class TableStorage(Protocol):
        """Named tables of byte strings."""

        def put(self, table: bytes, key: bytes, value: bytes, overwrite: bool) -> bool:
            """Store; False when the key was there and stays as it was."""
            ...

        def get(self, table: bytes, key: bytes) -> bytes | None:
            """Return the value, None without one."""
            ...

        def delete(self, table: bytes, key: bytes, by_prefix: bool) -> int:
            """Remove the key, or all that begin with it; return how many went."""
            ...

        def keys(self, table: bytes, prefix: bytes) -> list[bytes]:
            """Return the keys that begin with ``prefix``, sorted."""
            ...


class MemoryTables:
    """Tables that live as long as the head."""

    def __init__(self) -> None:
        self._tables: dict[bytes, dict[bytes, bytes]] = {}

    def put(self, table: bytes, key: bytes, value: bytes, overwrite: bool) -> bool:
        """Store; False when the key was there and stays as it was."""
        rows = self._tables.setdefault(table, {})
        if key in rows and not overwrite:
            return False
        rows[key] = value
        return True

    def get(self, table: bytes, key: bytes) -> bytes | None:
        """Return the value, None without one."""
        return self._tables.get(table, {}).get(key)

    def delete(self, table: bytes, key: bytes, by_prefix: bool) -> int:
        """Remove the key, or all that begin with it; return how many went."""
        rows = self._tables.get(table, {})
        doomed = self.keys(table, key) if by_prefix else [key] if key in rows else []
        for name in doomed:
            del rows[name]
        if not rows:
            self._tables.pop(table, None)
        return len(doomed)

    def keys(self, table: bytes, prefix: bytes) -> list[bytes]:
        """Return the keys that begin with ``prefix``, sorted."""
        return sorted(key for key in self._tables.get(table, {}) if key.startswith(prefix))
