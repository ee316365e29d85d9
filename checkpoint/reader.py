"""Reading snapshots outside of actors: list, load, verify. Changes nothing in the store and fences nobody."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from . import capture, format, transfers
from .errors import (
    CheckpointCorruptedError,
    CheckpointError,
    CheckpointFormatError,
    CheckpointLoadError,
    CheckpointNotFoundError,
)
from .lineage import SnapshotName, parse_id
from .membership import group_name
from .snapshots import T, is_there, of_newest, present
from .stores import connect
from .stores.protocol import Store

if TYPE_CHECKING:
    from .codec import Codec
    from .keyinfo import KeyInfo
    from .outcomes import Outcome

_CALL = 1  # kind of a record, see _core.records


class SnapshotInfo(NamedTuple):
    """One snapshot as its header describes it.

    ``counts`` is False for one of an earlier history, which no actor restores. ``error`` is "" or says why
    the file does not verify; then the fields that could not be read are empty. ``journal_position`` and
    ``code_version`` are those of exactly-once actors: the snapshot contains the journal up to there.
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
    journal_position: int | None = None
    code_version: int | None = None


class JournalInfo(NamedTuple):
    """The journal of a key, as far as it counts.

    Attributes
    ----------
    first_position, last_position : int
        Of the records that are there, which reach back to the oldest snapshot that counts. With no record
        the last one is what the snapshot contains.
    records : int
    behind : int
        How many of them the newest snapshot that counts does not contain: what a restart runs again.
    calls : int
        Finished calls among those.
    size_bytes : int
        Of the records' payloads, without blobs.
    epochs : list of int
        Incarnations that have written them.
    notes, lost : list of str
        What was found on the way: unfinished tails; what a loss of power took.
    error : str
        Why the journal cannot be read, or "". Then the figures are those up to there.
    """

    first_position: int
    last_position: int
    records: int
    behind: int
    calls: int
    size_bytes: int
    epochs: list[int]
    notes: list[str]
    lost: list[str]
    error: str


_Infos = list[SnapshotInfo]  # in the class below, `list` is its method
_Segments = list[bytearray]


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

    def journal(self, key: str) -> JournalInfo:
        """Read the journal of an exactly-once key, every record verified; of another key nothing is found."""
        while True:
            start, newest = self._positions(key)
            found = self._journal(key, start, newest)
            if not found.error or self._positions(key)[0] == start:
                return found  # else it was trimmed while it was read

    def _positions(self, key: str) -> tuple[int, int]:
        """Return what the oldest and the newest snapshot that count contain of the journal."""
        positions = [
            i.journal_position for i in self.list(key) if i.counts and i.journal_position is not None
        ]
        if positions:
            return min(positions), max(positions)
        position = int(present(self._store, key).sealed.get("journal_position", 0))
        return position, position

    def _journal(self, key: str, start: int, newest: int) -> JournalInfo:
        last, sizes, behind, calls, epochs = start, 0, 0, 0, set()
        notes, lost, error = [], [], ""
        try:
            reading = self._store.read_journal(key, start)
            for record in reading:
                last, sizes = record.position, sizes + len(record.payload)
                transfers.moved(len(record.payload))
                epochs.add(record.epoch)
                if record.position > newest:
                    behind += 1
                    calls += record.payload[0] == _CALL
            notes, lost = reading.notes, reading.lost
        except (CheckpointCorruptedError, OSError) as raised:
            error = str(raised)
        return JournalInfo(
            start + 1, last, last - start, behind, calls, sizes, sorted(epochs), notes, lost, error
        )

    def usage(self, key: str) -> dict[str, int]:
        """Return the bytes that a key takes by kind: ``snapshots``, ``journal``, ``blobs``, ``other``."""
        return dict(self._store.usage(key))

    def describe(self, key: str) -> KeyInfo:
        """Say of a key who holds it, which history it has, and what lies under it; reads headers only."""
        from .keyinfo import describe

        return describe(self._store, key, self.list(key))

    def ledger(self, key: str, snapshot_id: str | None = None) -> dict[str, int]:
        """Return the figures of a snapshot's ledger: callers, kept calls and bytes of replies, history.

        Raises
        ------
        CheckpointNotFoundError
            The snapshot is not that of an exactly-once actor.
        """
        from ftray._core.ledger import Ledger

        def figures(name: SnapshotName) -> dict[str, int]:
            ledger = self._read(key, name)[1]
            if ledger is None:
                raise CheckpointNotFoundError(
                    f"snapshot {name.id} of checkpoint key {key!r} in {self.url} has no ledger: it is not "
                    "that of an exactly-once actor"
                )
            found = Ledger(bytes(16))
            found.load(ledger)
            return {"history_number": found.history, **found.counters()}

        return self._use(key, snapshot_id, figures)

    def outcome(self, key: str, *, call_key: str, codec: Codec | None = None) -> Outcome:
        """Say what became of the call of an exactly-once actor that was named `call_key`.

        Reads snapshot and journal; the actor is not asked. While that lives, a call without a record is
        unknown.

        Parameters
        ----------
        call_key : str
            As given with ``.options(call_key=...)``.
        codec : Codec, optional
            How the actor's engine writes replies. Default: as ftray's own actors do.
        """
        from ftray._core.identity import derive_callee_key

        from . import outcomes

        if codec is None:
            from ftray._call_outcomes import Codec

            codec = Codec()
        head = outcomes.keyed_head(call_key, derive_callee_key(key))
        return outcomes.of_store(self._store, key, head, codec)

    def load(self, key: str, snapshot_id: str | None = None) -> Any:
        """Return the saved state: what `save_checkpoint` returned, or the dict of attributes.

        Unpickling runs code that the file names: open only stores that you trust.

        Parameters
        ----------
        key : str
            ``checkpoint_key``, or ``namespace/name``.
        snapshot_id : str, optional
            Default: the newest snapshot that counts; a damaged one is an error here, not passed over. A cut
            of the group, whose states are given by the members' keys, if `key` is ``_group/NAME``.

        Raises
        ------
        CheckpointNotFoundError, CheckpointCorruptedError, CheckpointLoadError
        """
        return self._use(key, snapshot_id, lambda name: self._load(key, name))

    def _load(self, key: str, name: SnapshotName) -> Any:
        group = group_name(key)
        try:
            if group is not None:
                from . import regroup

                return regroup.load(self._store, group, name.id)
            return capture.load(self._read(key, name)[0])
        except CheckpointError:
            raise
        except Exception as error:
            raise CheckpointLoadError(
                f"snapshot {name.id} of checkpoint key {key!r} is whole, but unpickling it raised "
                f"{type(error).__name__}: {error}. "
                "Are the modules that its classes come from importable here?"
            ) from error

    def _read(self, key: str, name: SnapshotName) -> tuple[_Segments, bytes | None]:
        try:
            with self._store.read(key, name) as file:
                return format.split_ledger(*format.read(file))
        except FileNotFoundError:
            raise self._not_found(key, f"snapshot {name.id}") from None
        except (CheckpointFormatError, OSError) as error:
            raise CheckpointCorruptedError(
                f"snapshot {name.id} of checkpoint key {key!r} in {self.url}: {error}. "
                "list() shows the others"
            ) from error

    def _use(self, key: str, snapshot_id: str | None, use: Callable[[SnapshotName], T]) -> T:
        """Do something with a snapshot, by default the newest one that counts."""
        if snapshot_id is not None:
            return use(parse_id(snapshot_id))
        return of_newest(self._store, key, use, lambda: self._not_found(key, "snapshot that counts"))

    def _not_found(self, key: str, what: str) -> CheckpointNotFoundError:
        listing = self._store.scan(key)
        have = ", ".join(n.id for n in listing.snapshots) or "none"
        keys = "" if listing.snapshots else f"; keys here: {', '.join(map(repr, self.keys()[:20])) or 'none'}"
        return CheckpointNotFoundError(
            f"there is no {what} under checkpoint key {key!r} in {self.url}; snapshots there: {have}{keys}"
        )

    def _describe(self, key: str, whole: bool) -> _Infos:
        listing, counted, _, _ = present(self._store, key)
        infos = [(name, self._info(key, name, name in counted, whole)) for name in listing.snapshots]
        return [info for name, info in infos if not info.error or is_there(self._store, key, name)]

    def _info(self, key: str, name: SnapshotName, counts: bool, whole: bool) -> SnapshotInfo:
        try:
            with self._store.read(key, name) as file:
                header = format.verify(transfers.counted(file)) if whole else format.read_header(file)
            if whole and "blobs" in header.fields:
                from .cutfiles import verify_states

                verify_states(self._store, key, header.fields["blobs"])
        except (CheckpointFormatError, OSError) as error:
            return SnapshotInfo(name.id, counts, 0, "", 0, "", 0.0, 0, "", str(error))
        fields = header.fields
        return SnapshotInfo(
            name.id,
            counts,
            header.file_length + int(fields.get("state_bytes", 0)),
            fields["class"],
            fields["state_version"],
            fields["history"],
            fields["created_unix_s"],
            fields["calls"],
            fields["reason"],
            "",
            fields.get("journal_position"),
            fields.get("code_version"),
        )


def open_reader(store: str | os.PathLike[str] | Store) -> CheckpointReader:
    """Open a store for reading: a path, a URL such as ``file:///path``, or a store object."""
    return CheckpointReader(connect(os.fspath(store)) if isinstance(store, (str, os.PathLike)) else store)
