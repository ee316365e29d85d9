"""Decides which snapshots of a key count and which may go: pure functions over names.

A *seal* is published by each incarnation after it has restored and before it serves: it lists the snapshots
that belong to its past. A snapshot counts if it was written by the sealing epoch or a later one, or is in
that list. So a file that a stale incarnation still manages to publish after its successor has sealed never
counts, whatever its number, and one seal says everything about all the epochs before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import NamedTuple

from .errors import CheckpointOptionError


class SnapshotName(NamedTuple):
    """Identity and order of one snapshot under a key: first by epoch, then by sequence."""

    epoch: int
    sequence: int

    @property
    def id(self) -> str:
        """The name for people, ``epoch-sequence``."""
        return f"{self.epoch}-{self.sequence}"


def parse_id(text: str) -> SnapshotName:
    """Turn ``epoch-sequence`` back into a `SnapshotName`."""
    epoch, dash, sequence = text.partition("-")
    if not (dash and epoch.isascii() and epoch.isdigit() and sequence.isascii() and sequence.isdigit()):
        raise CheckpointOptionError(f"{text!r} is not a snapshot id; ids look like 3-17 (epoch-sequence)")
    return SnapshotName(int(epoch), int(sequence))


def counted(
    snapshots: Iterable[SnapshotName], sealed_epoch: int, line: Collection[SnapshotName]
) -> list[SnapshotName]:
    """Return the snapshots that belong to the key's present history, oldest first.

    Parameters
    ----------
    snapshots : iterable of SnapshotName
        All that the store holds.
    sealed_epoch : int
        Epoch of the newest seal; 0 if there is none, and then all count.
    line : collection of SnapshotName
        The past that this seal lists.
    """
    return sorted(s for s in snapshots if s.epoch >= sealed_epoch or s in line)


def doomed(snapshots: Iterable[SnapshotName], present: list[SnapshotName], keep: int) -> list[SnapshotName]:
    """Return the snapshots to delete, oldest first.

    Everything older than the `keep` newest that count, whether it counts or not: what does not count
    stays as long as its neighbours, for people to look at.
    """
    if len(present) < keep:
        return []
    oldest_kept = present[-keep]
    return sorted(s for s in snapshots if s < oldest_kept)
