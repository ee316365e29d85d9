"""Tables of the head behind one small interface.

Owns: ``TableStorage`` (what a table must do), its errors and limits, and the directory of a durable one.
Invariants: keys and values are bytes; a write is visible to the next read; one that was answered is kept as
long as the storage promises.
Leaves to others: what tables mean (``rpc``: the internal key-value store), how they are kept
(``sqlite_storage``).
"""

from __future__ import annotations

import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class TableStorage(Protocol):
        """Named tables of byte strings."""

        def put(self, table: bytes, key: bytes, value: bytes, overwrite: bool) -> bool:
            """Store unless the key is there and ``overwrite`` is False; return whether it was there."""
            ...

        def get(self, table: bytes, key: bytes) -> bytes | None:
            """Return the value, None without one."""
            ...

        def exists(self, table: bytes, key: bytes) -> bool:
            """Whether the key is there."""
            ...

        def delete(self, table: bytes, key: bytes, by_prefix: bool) -> int:
            """Remove the key, or all that begin with it; return how many went."""
            ...

        def keys(self, table: bytes, prefix: bytes) -> list[bytes]:
            """Return the keys that begin with ``prefix``, sorted."""
            ...

        def close(self) -> None:
            """Give everything back; no call follows."""
            ...


MAX_KEY_BYTES = 64 << 10
MAX_VALUE_BYTES = 64 << 20
_LOCK_FILE = "lock"
DATABASE_FILE = "head.sqlite"


class StorageError(Exception):
    """The tables cannot be read or written; the text names the file and says what to do."""


class StorageFullError(StorageError):
    """There is no room for what was to be written; nothing of it was."""


class StorageDirectory:
    """A directory that one head uses at a time.

    Parameters
    ----------
    path
        Made with mode 0700 if missing.

    Raises
    ------
    StorageError
        It cannot be used, or another head uses it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            os.makedirs(path, 0o700, exist_ok=True)
            self._fd = os.open(os.path.join(path, _LOCK_FILE), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"the storage {path!r} cannot be used: {error}; give a directory that can be written"
            ) from None
        try:
            self._claim()
        except BaseException:
            self.close()
            raise

    def _claim(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 64, 0).decode(errors="replace").strip()
            raise StorageError(
                f"the storage {self.path!r} is in use by another head (process {holder or 'unknown'});"
                " end that one, or give --storage another directory"
            ) from None
        try:
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, str(os.getpid()).encode(), 0)
        except OSError:
            return  # the disk is full: the lock holds, only the message of a second head has no number

    def close(self) -> None:
        """Give the directory up."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
