"""Reads the newest snapshot of a key on a thread of its own, while the instance that will get it is made.

Only a reading: which snapshot counts is decided after the key was claimed, as always
(`SnapshotLog.find_past`). Snapshots never change under their names, so what was read of that one before the
claim is what is read after it; that the file is still the same one is looked at then. The thread is none of
Python's: a constructor that makes a large state does not let others have the interpreter meanwhile. Owns
what was read. Invariants: errors mean that nothing was read ahead; whoever comes for the snapshot before the
thread has got to run reads it himself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

from . import format
from .errors import CheckpointFormatError
from .keys import key_of
from .options import validate
from .snapshots import present
from .stores import connect, urls

if TYPE_CHECKING:
    from .host import ActorIdentity
    from .lineage import SnapshotName
    from .stores.protocol import Store

Snapshot = tuple[format.Header, list[bytearray]]


class Ahead:
    """One snapshot that is being read, or was.

    Parameters
    ----------
    store : Store
        On a local disk: elsewhere a request may cost, and names may be listed late.
    key : str
    """

    def __init__(self, store: Store, key: str) -> None:
        self._found: tuple[SnapshotName, tuple[int, ...], BinaryIO, format.Reading] | None = None
        try:
            counted = present(store, key).counted
            if counted:
                file = store.read(key, counted[-1])
                self._found = counted[-1], _same(file), file, format.Reading(file)
        except Exception:  # whoever restores finds out what is wrong, and says so
            self._found = None

    def take(self, name: SnapshotName, file: BinaryIO) -> Snapshot | None:
        """Return what was read of a snapshot, which is open now as `file`; None if it was another one."""
        if self._found is None:
            return None
        (read, same, own, reading), self._found = self._found, None
        with own:
            if (read, same) != (name, _same(file)):
                return None
            try:
                return reading.take()
            except (CheckpointFormatError, OSError):  # as above
                return None


def _same(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_ahead(spec: Mapping[str, object], identity: ActorIdentity) -> Ahead | None:
    """Begin to read what an actor that is being restarted will restore; None where that does not pay."""
    options = validate(spec)
    if urls.parse(options.store).scheme != "file":
        return None
    return Ahead(connect(options.store), key_of(identity, options.checkpoint_key).text)
