"""How far a recovery is, on a local disk: ``epoch-EEEEEEEEEE.watch``, written in place, never fsynced.

    0 magic 8s, format version u16, zero 6s; 16 boot id 16s; 32 what was written last (`watch`)

One write of a few bytes replaces what is there, so that a process that is killed leaves one or the other.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .local_files import CREATE, write_all

if TYPE_CHECKING:
    from ..errors import CheckpointSaveError

_NAME = re.compile(r"epoch-(\d{10,})\.watch")
_HEADER = struct.Struct("<8sH6x16s")
_MAGIC, _VERSION = b"\x89FTWCH\r\n", 1
_MOST_BYTES = 256


class LocalWatch:
    """See `protocol.WatchFile`."""

    def __init__(self, store: LocalWatches, key: str, fd: int) -> None:
        self._store, self._key, self._fd = store, key, fd

    def write(self, data: bytes, at: int = 0) -> None:
        """Replace what is there."""
        try:
            os.pwrite(self._fd, data, 32 + at)  # twice for each call that is run again
        except OSError as error:
            raise self._store._failed("note how far the recovery is", self._key, error) from error

    def close(self) -> None:
        """Close the file."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class LocalWatches:
    """The part of `LocalStore` that is about recoveries under way."""

    notes_each_call = True

    if TYPE_CHECKING:

        def _names(self, key: str) -> list[str]: ...
        def _path(self, key: str, file_name: str) -> str: ...
        def _failed(self, what: str, key: str, error: OSError) -> CheckpointSaveError: ...

    def _watches(self, key: str) -> list[tuple[int, str]]:
        return sorted((int(m[1]), name) for name in self._names(key) if (m := _NAME.fullmatch(name)))

    def _stale_watches(self, key: str, below: int) -> Sequence[str]:
        return [name for epoch, name in self._watches(key) if epoch < below]

    def open_watch(self, key: str, epoch: int) -> LocalWatch:
        """Return where an incarnation notes how far its recovery is."""
        from .local_journal import boot_bytes

        try:
            path = self._path(key, f"epoch-{epoch:010}.watch")
            fd = os.open(path, CREATE & ~os.O_EXCL, 0o600)
            try:
                write_all(fd, [_HEADER.pack(_MAGIC, _VERSION, boot_bytes())])
            except OSError:
                os.close(fd)
                raise
        except OSError as error:
            raise self._failed("note how far the recovery is", key, error) from error
        return LocalWatch(self, key, fd)

    def read_watch(self, key: str) -> bytes | None:
        """Return what the newest one wrote last."""
        from .local_journal import boot_bytes

        found = self._watches(key)
        if not found:
            return None
        try:
            with open(self._path(key, found[-1][1]), "rb", buffering=0) as file:
                data = file.read(_MOST_BYTES)
        except OSError:  # only ever a hint
            return None
        wanted = _HEADER.pack(_MAGIC, _VERSION, boot_bytes())
        return data[len(wanted) :] if data.startswith(wanted) and len(data) > len(wanted) else None
