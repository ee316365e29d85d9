"""Reads the newest snapshot of a key on a thread of its own, while the instance that will get it is made.

Only a reading: which snapshot counts is decided after the key was claimed, as always
(`SnapshotLog.find_past`). Snapshots never change under their names, so what was read of that one before the
claim is what is read after it; that the file is still the same one is looked at then. Owns the thread and
what it has read. Invariants: errors mean that nothing was read ahead; whoever comes for the snapshot before
the thread has got to run reads it himself.
"""

from __future__ import annotations

import _thread
import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, BinaryIO

from . import format
from .keys import key_of
from .options import validate
from .snapshots import present
from .stores import connect, urls

if TYPE_CHECKING:
    from .host import ActorIdentity
    from .lineage import SnapshotName
    from .stores.protocol import Store

Snapshot = tuple[format.Header, list[bytearray]]
_WAITING, _READING, _OVER = 0, 1, 2


class Ahead:
    """One snapshot that is being read, or was.

    Parameters
    ----------
    store : Store
        On a local disk: elsewhere a request may cost, and names may be listed late.
    key : str
    """

    def __init__(self, store: Store, key: str) -> None:
        self._store, self._key = store, key
        self._state = _WAITING
        self._turn = threading.Lock()
        self._ended = threading.Lock()
        self._found: tuple[SnapshotName, tuple[int, ...], Snapshot] | None = None
        self._ended.acquire()
        _thread.start_new_thread(self._run, ())  # threading would wait until it has got a core

    def _begin(self, state: int) -> bool:
        with self._turn:
            begun, self._state = self._state == _WAITING, max(self._state, state)
            return begun

    def _run(self) -> None:
        try:
            if self._begin(_READING):
                self._found = self._read()
        except Exception:  # whoever restores finds out what is wrong, and says so
            self._found = None
        finally:
            self._ended.release()

    def _read(self) -> tuple[SnapshotName, tuple[int, ...], Snapshot] | None:
        counted = present(self._store, self._key).counted
        if not counted:
            return None
        with self._store.read(self._key, counted[-1]) as file:
            return counted[-1], _same(file), format.read(file)

    def take(self, name: SnapshotName, file: BinaryIO) -> Snapshot | None:
        """Return what was read of a snapshot, which is open now as `file`; None if it was another one."""
        if self._begin(_OVER):
            return None  # it has not got to run: faster without
        self._ended.acquire()
        self._ended.release()
        found, self._found = self._found, None
        return found[2] if found is not None and found[:2] == (name, _same(file)) else None


def _same(file: BinaryIO) -> tuple[int, ...]:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def read_ahead(spec: Mapping[str, object], identity: ActorIdentity) -> Ahead | None:
    """Begin to read what an actor that is being restarted will restore; None where that does not pay."""
    options = validate(spec)
    if urls.parse(options.store).scheme != "file":
        return None
    return Ahead(connect(options.store), key_of(identity, options.checkpoint_key).text)
