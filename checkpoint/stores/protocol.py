"""The Store protocol: durable, fenced storage of snapshots under keys.

A store moves bytes; what they mean is decided above it (`format`, `lineage`, `snapshots`). The one
conformance suite (tests/unit/checkpoint/store_suite.py) is the contract; a backend adopts it in a few
lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO, NamedTuple, Protocol

from ..lineage import SnapshotName


class Listing(NamedTuple):
    """All that a store holds under one key, each list ascending."""

    claims: list[int]
    seals: list[int]
    snapshots: list[SnapshotName]

    @property
    def newest_epoch(self) -> int:
        """The highest epoch that was ever used here, 0 for a fresh key."""
        return max([0, *self.claims[-1:], *self.seals[-1:], *(s.epoch for s in self.snapshots[-1:])])


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
