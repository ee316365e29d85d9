"""The Store protocol: durable, fenced storage of snapshots under keys.

A store moves bytes; what they mean is decided above it (`format`, `lineage`, `snapshots`). The one
conformance suite (tests/unit/checkpoint/store_suite.py) is the contract; a backend adopts it in a few
lines.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import BinaryIO, NamedTuple, Protocol

from ..journal import Buffer, Durability, Journal, JournalReading, OnDurable, OnFailure
from ..lineage import SnapshotName


class Listing(NamedTuple):
    """All that a store holds under one key, each list ascending.

    ``journals`` are the epochs that have anything of a journal: a loss of power may leave that without its
    claim.
    """

    claims: list[int]
    seals: list[int]
    snapshots: list[SnapshotName]
    journals: Sequence[int] = ()

    @property
    def newest_epoch(self) -> int:
        """The highest epoch that was ever used here, 0 for a fresh key."""
        snapshots = (s.epoch for s in self.snapshots[-1:])
        return max([0, *self.claims[-1:], *self.seals[-1:], *snapshots, *self.journals[-1:]])


class WatchFile(Protocol):
    """A few bytes that outlive the process which has written them; a loss of power may take them."""

    def write(self, data: bytes, at: int = 0) -> None:
        """Replace what was written before, as a whole. `CheckpointSaveError`: the medium.

        `at`: only what is there from this offset on, where `Store.notes_each_call`.
        """

    def close(self) -> None:
        """Write no more; what was written stays until a later epoch has settled."""


class Store(Protocol):
    """Durable storage. What a writer published is visible to every process as soon as the method returns.

    Errors of the medium are raised as `CheckpointSaveError` (writing), `CheckpointStoreError` (listing) or
    `OSError` (reading); nothing is retried here.
    """

    @property
    def url(self) -> str:
        """The absolute URL, for people and for other processes."""

    @property
    def survives(self) -> frozenset[str]:
        """A subset of {"process", "power", "node", "head"}: whose loss the data survives."""

    def keys(self) -> list[str]:
        """Return all keys, sorted."""

    def scan(self, key: str) -> Listing:
        """List one key. An unknown key gives empty lists."""

    def claim(self, key: str, epoch: int, record: bytes) -> bool:
        """Publish `epoch` by exclusive creation; False if it, or a later one, was claimed already."""

    def seal(self, key: str, epoch: int, record: bytes) -> None:
        """Publish, once, which snapshots are this epoch's past; `FencedError` if the epoch is stale."""

    def settle(self, key: str, epoch: int) -> None:
        """Make claim and seal of `epoch` durable; only then forget what is older than they.

        That is: claims and seals of earlier epochs, and what their writers left unfinished. Repeatable. The
        caller does not `put` before: what counts of an epoch's snapshots is said by its seal.
        """

    def read_claim(self, key: str, epoch: int) -> bytes:
        """Return the record given to `claim`. `FileNotFoundError` if there is none."""

    def read_seal(self, key: str, epoch: int) -> bytes:
        """Return the record given to `seal`. `FileNotFoundError` if there is none."""

    def put(self, key: str, name: SnapshotName, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Make a snapshot durable under its final, immutable name; visible as a whole or not at all.

        Then, and only then, check again that no later epoch was claimed: `FencedError` if so. When this
        returns, the snapshot is durable and counts.
        """

    def read(self, key: str, name: SnapshotName) -> BinaryIO:
        """Open a snapshot for reading, seekable. `FileNotFoundError` if it is not there."""

    def delete(self, key: str, names: Sequence[SnapshotName], epoch: int) -> None:
        """Delete snapshots for the holder of `epoch`; if it is stale, nothing, and `FencedError`."""

    def remove(self, key: str) -> None:
        """Remove a key with all that it holds."""

    # -- journals and blobs: what `exactly_once` needs

    def fence_journals(self, key: str, epoch: int) -> None:
        """Seal the journals of all epochs before `epoch`, which holds the key.

        After this returns no writer of theirs finds that a record of its may be answered, unless
        `read_journal` called from now on returns it. Repeatable.
        """

    def read_journal(self, key: str, after: int) -> JournalReading:
        """Read all records after position `after`, chained over epochs, each one verified.

        Does not write. Beside a living writer it gives a prefix of what that has appended.

        Raises
        ------
        CheckpointCorruptedError
            A record does not verify elsewhere than in the unfinished tail of an epoch, or positions are
            missing: between two epochs, or after `after` (then the journal was trimmed).
        OSError
            The medium.
        """

    def open_journal(
        self,
        key: str,
        epoch: int,
        first_position: int,
        *,
        durability: Durability = "process",
        on_durable: OnDurable | None = None,
        on_failure: OnFailure | None = None,
    ) -> Journal:
        """Start the journal of `epoch`; the caller has claimed it, fenced older ones and read their records.

        Parameters
        ----------
        first_position : int
            Of the first record. Records of older epochs from there on do not count any more.
        durability : {"process", "power"}
            What the journal's `durable_position` is to survive.

        Raises
        ------
        FencedError
            A later epoch was claimed.
        UnsupportedStoreError
            The store does not survive as much.
        CheckpointSaveError
            The medium, or the epoch has a journal already.
        """

    def trim_journal(self, key: str, upto: int, epoch: int) -> None:
        """Delete what of the journal lies wholly at or before `upto`, oldest first, for the holder.

        The caller has a durable snapshot that includes `upto`. Stale epoch: nothing, and `FencedError`.
        """

    def last_running(self, key: str) -> tuple[bytes, int] | None:
        """Return the call that the last incarnations died in, and how many did so in a row.

        A death between calls neither adds to the row nor ends it; one in another call begins another, and
        the end of the call forgets it. None if there is nothing of the sort, or after a new boot.
        """

    @property
    def notes_each_call(self) -> bool:
        """Whether `WatchFile.write` costs next to nothing: no request, no fsync."""

    def open_watch(self, key: str, epoch: int) -> WatchFile:
        """Return where the incarnation that holds `epoch` notes how far its recovery is; see `watch`."""

    def read_watch(self, key: str) -> bytes | None:
        """Return what the newest incarnation that has noted anything wrote last.

        None if there is nothing of the sort, or after a new boot.
        """

    def put_blob(
        self, key: str, epoch: int, name: str, parts: Sequence[Buffer], *, durability: Durability = "power"
    ) -> None:
        """Make a blob durable under an immutable name, whole or not at all.

        Parameters
        ----------
        name : str
            1 to 100 ASCII letters, digits, ``-`` and ``_``; new under this key.

        Raises
        ------
        FencedError, CheckpointSaveError, CheckpointOptionError
        """

    def read_blob(self, key: str, name: str) -> bytes:
        """Return a blob, verified.

        `FileNotFoundError` if it is not there, `CheckpointFormatError` if it is not as it was written.
        """

    def list_blobs(self, key: str) -> list[str]:
        """Return the names of all blobs, sorted."""

    def delete_blobs(self, key: str, names: Collection[str], epoch: int) -> None:
        """Delete blobs for the holder of `epoch`; names that are not there are passed over."""

    def usage(self, key: str) -> Mapping[str, int]:
        """Return bytes by kind: ``snapshots``, ``journal``, ``blobs``, ``other``."""
