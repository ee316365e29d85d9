"""Reading snapshots outside of actors: list, load, verify. Changes nothing in the store and fences nobody."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

from . import capture, format
from .errors import (
    CheckpointCorruptedError,
    CheckpointFormatError,
    CheckpointLoadError,
    CheckpointNotFoundError,
)
from .lineage import SnapshotName, parse_id
from .snapshots import present
from .stores import connect
from .stores.protocol import Store


class SnapshotInfo(NamedTuple):
    """One snapshot as its header describes it.

    ``counts`` is False for one of an earlier history, which no actor restores. ``error`` is "" or says why
    the file does not verify; then the fields that could not be read are empty.
    """

    id: str
    counts: bool
    size_bytes: int
    class_name: str
    state_version: int
    history: str
    created_unix_s: float
    calls: int
    reason: str
    error: str


_Infos = list[SnapshotInfo]  # in the class below, `list` is its method


class CheckpointReader:
    """A store, opened for reading. Made by `ftray.checkpoint.open`."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @property
    def url(self) -> str:
        """URL of the store."""
        return self._store.url

    def keys(self) -> list[str]:
        """Return all keys, sorted."""
        return self._store.keys()

    def list(self, key: str) -> _Infos:
        """Describe the snapshots of `key`, oldest first, from their headers; payloads are not read."""
        return self._describe(key, whole=False)

    def verify(self, key: str) -> _Infos:
        """Like `list`, after checking every byte of every snapshot."""
        return self._describe(key, whole=True)

    def load(self, key: str, snapshot_id: str | None = None) -> Any:
        """Return the saved state: what `save_checkpoint` returned, or the dict of attributes.

        Unpickling runs code that the file names: open only stores that you trust.

        Parameters
        ----------
        key : str
            ``checkpoint_key``, or ``namespace/name``.
        snapshot_id : str, optional
            Default: the newest snapshot that counts; a damaged one is an error here, not passed over.

        Raises
        ------
        CheckpointNotFoundError, CheckpointCorruptedError, CheckpointLoadError
        """
        name = self._newest(key) if snapshot_id is None else parse_id(snapshot_id)
        try:
            with self._store.read(key, name) as file:
                segments, _ = format.split_ledger(*format.read(file))
        except FileNotFoundError:
            raise self._not_found(key, f"snapshot {name.id}") from None
        except (CheckpointFormatError, OSError) as error:
            raise CheckpointCorruptedError(
                f"snapshot {name.id} of checkpoint key {key!r} in {self.url}: {error}. "
                "list() shows the others"
            ) from error
        try:
            return capture.load(segments)
        except Exception as error:
            raise CheckpointLoadError(
                f"snapshot {name.id} of checkpoint key {key!r} is whole, but unpickling it raised "
                f"{type(error).__name__}: {error}. "
                "Are the modules that its classes come from importable here?"
            ) from error

    def _newest(self, key: str) -> SnapshotName:
        names = present(self._store, key).counted
        if not names:
            raise self._not_found(key, "snapshot that counts")
        return names[-1]

    def _not_found(self, key: str, what: str) -> CheckpointNotFoundError:
        listing = self._store.scan(key)
        have = ", ".join(n.id for n in listing.snapshots) or "none"
        keys = "" if listing.snapshots else f"; keys here: {', '.join(map(repr, self.keys()[:20])) or 'none'}"
        return CheckpointNotFoundError(
            f"there is no {what} under checkpoint key {key!r} in {self.url}; snapshots there: {have}{keys}"
        )

    def _describe(self, key: str, whole: bool) -> _Infos:
        listing, counted, _, _ = present(self._store, key)
        return [self._info(key, name, name in counted, whole) for name in listing.snapshots]

    def _info(self, key: str, name: SnapshotName, counts: bool, whole: bool) -> SnapshotInfo:
        try:
            with self._store.read(key, name) as file:
                header = format.verify(file) if whole else format.read_header(file)
        except (CheckpointFormatError, OSError) as error:
            return SnapshotInfo(name.id, counts, 0, "", 0, "", 0.0, 0, "", str(error))
        fields = header.fields
        return SnapshotInfo(
            name.id,
            counts,
            header.file_length,
            fields["class"],
            fields["state_version"],
            fields["history"],
            fields["created_unix_s"],
            fields["calls"],
            fields["reason"],
            "",
        )


def open_reader(store: str | os.PathLike[str] | Store) -> CheckpointReader:
    """Open a store for reading: a path, a URL such as ``file:///path``, or a store object."""
    return CheckpointReader(connect(os.fspath(store)) if isinstance(store, (str, os.PathLike)) else store)
