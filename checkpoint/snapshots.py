"""The snapshots of one key, as the holder of one epoch sees them: claim, restore, seal, save, retire.

Owns the order of those steps over any `Store`. Invariants: nothing is read for restoring before the epoch
is claimed; nothing is served before the past is sealed; old snapshots are deleted only after a newer one is
durable and counted, and never fewer than `keep` that count remain; if snapshots count and none verifies, an
error is raised.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from . import faults, format, lineage, recoveries
from .capture import Captured
from .errors import (
    CheckpointCorruptedError,
    CheckpointError,
    CheckpointFormatError,
    CheckpointNotFoundError,
)
from .lineage import SnapshotName
from .stores.protocol import Listing, Store

if TYPE_CHECKING:
    from .ahead import Ahead

T = TypeVar("T")
_CLAIM_ATTEMPTS = 1000
_NEWEST_TRIES = 10
_LEAP = 1 << 32
"""How far behind an unreadable journal a new history begins."""


class Loaded(NamedTuple):
    """A snapshot that verified, read whole."""

    name: SnapshotName
    header: format.Header
    segments: list[bytearray]


class Past(NamedTuple):
    """What was found under a key: the newest snapshot that verifies, and what was passed over.

    ``skipped`` has one line per snapshot that counts, is newer, and does not verify; ``ignored`` are
    snapshots of earlier histories, which do not count; ``notes`` tells of an unreadable seal.
    """

    newest: Loaded | None
    skipped: list[str]
    ignored: list[SnapshotName]
    notes: list[str]
    history: str
    sealed: Mapping[str, Any] = {}


@functools.cache
def boot_id() -> str:
    """Return the kernel's id of this boot, "" where there is none."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return ""


class Present(NamedTuple):
    """A key as it is: what is there, what of it counts, the newest seal, notes about a bad seal."""

    listing: Listing
    counted: list[SnapshotName]
    sealed: dict[str, Any]
    notes: list[str]


def present(store: Store, key: str) -> Present:
    """Look at a key.

    The newest seal that can be read says what counts. One that a loss of power damaged was not settled: the
    one before it is still there, and no snapshot of its epoch was announced.
    """
    for attempts_left in (2, 1, 0):
        listing = store.scan(key)
        notes: list[str] = []
        vanished = False
        for epoch in reversed(listing.seals):
            try:
                sealed = format.decode_record(store.read_seal(key, epoch))
            except (CheckpointFormatError, OSError) as error:
                vanished = vanished or isinstance(error, FileNotFoundError)
                notes.append(f"the seal of epoch {epoch} is unreadable and was passed over: {error}")
                continue
            line = frozenset(lineage.parse_id(text) for text in sealed["line"])
            return Present(listing, lineage.counted(listing.snapshots, epoch, line), sealed, notes)
        if not (vanished and attempts_left):  # else the holder is replacing its seal just now
            break
    return Present(listing, listing.snapshots, {}, notes)


def is_there(store: Store, key: str, name: SnapshotName) -> bool:
    """Whether a snapshot has not been retired."""
    return name in store.scan(key).snapshots


def of_newest(
    store: Store, key: str, use: Callable[[SnapshotName], T], none: Callable[[], CheckpointError]
) -> T:
    """Return what `use` makes of the newest snapshot that counts, whose actor may retire it meanwhile.

    Then it is called with the one that is newest by then. Raises what `none` gives if there is none.
    """
    for tries_left in reversed(range(_NEWEST_TRIES)):
        names = present(store, key).counted
        if not names:
            break
        try:
            return use(names[-1])
        except (CheckpointNotFoundError, CheckpointCorruptedError):
            if not tries_left or is_there(store, key, names[-1]):
                raise
    raise none()


def end_of_journal(store: Store, key: str, sealed: Mapping[str, Any]) -> tuple[int, bool]:
    """Return a position at or behind all that a key's journal has or ever had, and whether it can be read."""
    after = int(sealed.get("journal_position", 0))
    try:
        for name in store.scan(key).snapshots:
            with store.read(key, name) as file:
                after = max(after, int(format.read_header(file).fields.get("journal_position", 0)))
        reading = store.read_journal(key, after)
        for _ in reading:
            pass
    except (CheckpointError, OSError):  # what is left behind may be what cannot be read
        return after + _LEAP, False
    return int(reading.last_position), True


class SnapshotLog:
    """One key of a store, held by one incarnation."""

    def __init__(self, store: Store, key: str, keep: int) -> None:
        self.store, self.key, self.keep = store, key, keep
        self.epoch = 0
        self.history = ""
        self._actor = ""
        self.last_sequence = 0
        self.ahead: Ahead | None = None
        self.recoveries: list[dict[str, Any]] = []
        """The newest ones of this key, oldest first, with the present one if it was one; once sealed."""
        self._made_s = time.monotonic()
        self._settled = False
        self._there: list[SnapshotName] = []
        self._counted: list[SnapshotName] = []

    @property
    def counted(self) -> list[SnapshotName]:
        """The kept snapshots that count, oldest first; once the past is sealed."""
        return list(self._counted)

    def sealed_by(self, actor: str) -> bool:
        """Whether the newest seal is that of an incarnation of this actor."""
        return bool(actor) and present(self.store, self.key).sealed.get("actor") == actor

    @property
    def sealed(self) -> bool:
        """Whether this incarnation has said what its past is."""
        return bool(self.history)

    def claim(self, holder: Mapping[str, Any], check: Callable[[int], None] | None = None) -> int:
        """Take the next epoch, which fences every earlier holder.

        Parameters
        ----------
        holder : mapping
            JSON values for people: who holds the key, since when.
        check : callable, optional
            Called with the newest claimed epoch, 0 if there is none, before the next is taken; raises to
            refuse.
        """
        record = format.encode_record(
            {**holder, "key": self.key, "boot_id": boot_id(), "since_unix_s": time.time()}
        )
        self._actor = str(holder.get("actor", ""))
        for _ in range(_CLAIM_ATTEMPTS):
            listing = self.store.scan(self.key)
            if check is not None:
                check(listing.claims[-1] if listing.claims else 0)
            epoch = listing.newest_epoch + 1
            if self.store.claim(self.key, epoch, record):
                self.epoch = epoch
                if faults.active:
                    faults.hit("restore.claimed")
                return epoch
        raise CheckpointError(
            f"checkpoint key {self.key!r} in {self.store.url}: {_CLAIM_ATTEMPTS} epochs in a row were taken "
            "by others; give each of these actors a checkpoint_key of its own"
        )

    def find_past(self) -> Past:
        """Read the newest snapshot that counts and verifies.

        Raises
        ------
        CheckpointCorruptedError
            Snapshots count and none verifies.
        """
        listing, names, sealed, notes = present(self.store, self.key)
        skipped: list[str] = []
        for name in reversed(names):
            try:
                header, segments = self._read(name)
                self._check_belongs(name, header)
            except (CheckpointFormatError, OSError) as error:
                skipped.append(f"{name.id}: {error}")
                continue
            if faults.active:
                faults.hit("restore.verified")
            ignored = [s for s in listing.snapshots if s not in names]
            loaded = Loaded(name, header, segments)
            return Past(loaded, skipped, ignored, notes, header.fields["history"], sealed)
        if skipped:
            raise self._corrupted(skipped)
        return Past(None, [], listing.snapshots, notes, str(sealed.get("history", "")), sealed)

    def _read(self, name: SnapshotName) -> tuple[format.Header, list[bytearray]]:
        ahead, self.ahead = self.ahead, None
        with self.store.read(self.key, name) as file:
            return (ahead and ahead.take(name, file)) or format.read(file)

    def _check_belongs(self, name: SnapshotName, header: format.Header) -> None:
        said = (header.fields["key"], header.fields["epoch"], header.fields["sequence"])
        if said != (self.key, *name):
            raise CheckpointFormatError(f"it is snapshot {said[1]}-{said[2]} of key {said[0]!r}, copied here")

    def _corrupted(self, skipped: list[str]) -> CheckpointCorruptedError:
        error = CheckpointCorruptedError(
            f"none of the {len(skipped)} snapshots under checkpoint key {self.key!r} in {self.store.url} "
            f"verifies: {'; '.join(skipped)}. "
            "Put back a good copy, or move these files away to start from __init__"
        )
        error.skipped = skipped
        return error

    def seal(
        self,
        base: SnapshotName | None,
        history: str,
        extra: Mapping[str, Any] | None = None,
        recovered: Mapping[str, Any] | None = None,
    ) -> None:
        """Publish that this epoch continues from `base`.

        Parameters
        ----------
        base : SnapshotName or None
            None: from nothing.
        history : str
            "" begins a new one.
        extra : mapping, optional
            More JSON values.
        recovered : mapping, optional
            An actor begins here: if it has a past, this is a recovery, of which these JSON values are told.
        """
        here = present(self.store, self.key)
        self._there = here.listing.snapshots
        self._counted = [] if base is None else [n for n in here.counted if n <= base]
        self.history = history or os.urandom(16).hex()
        self.last_sequence = base.sequence if base else 0
        self.recoveries = recoveries.of(here.sealed)
        if recovered is not None and here.sealed:
            own = {"epoch": self.epoch, "snapshot": base.id if base else None}
            self.recoveries = [*self.recoveries, own][-recoveries.KEPT :]
            self.recovered(**recovered)
        record = format.encode_record(
            {
                "epoch": self.epoch,
                "history": self.history,
                "base": base.id if base else None,
                "line": [n.id for n in self._counted],
                **({"actor": self._actor} if self._actor else {}),
                **recoveries.fields(self.recoveries),
                **(extra or {}),
            }
        )
        self.store.seal(self.key, self.epoch, record)
        if faults.active:
            faults.hit("restore.sealed")

    def recovered(self, **values: object) -> None:
        """Say of the present recovery, if it is one, how long it took until now, and `values`."""
        if self.recoveries and self.recoveries[-1]["epoch"] == self.epoch:
            duration_s = time.monotonic() - self._made_s
            self.recoveries[-1] |= {"at_unix_s": time.time(), "duration_s": duration_s, **values}

    def join(self) -> Present:
        """Go on in the newest epoch, which another process has sealed; returns the key as it is."""
        here = present(self.store, self.key)
        self._settled = self._settled and self.epoch == here.listing.newest_epoch
        self.epoch, self.history = here.listing.newest_epoch, str(here.sealed.get("history", ""))
        self._there, self._counted = here.listing.snapshots, here.counted
        self.last_sequence = max([n.sequence for n in here.counted], default=0)
        return here

    def settle(self) -> None:
        """Make claim and seal durable, forget older epochs. A restart does not wait for it, a save does."""
        if not self._settled:
            self.store.settle(self.key, self.epoch)
            self._settled = True

    def next_name(self) -> SnapshotName:
        """Take the number of the next snapshot. A number is used once, also when its save fails."""
        self.last_sequence += 1
        return SnapshotName(self.epoch, self.last_sequence)

    def save(self, name: SnapshotName, fields: Mapping[str, Any], captured: Captured) -> int:
        """Make a snapshot durable; returns its size. The caller announces it, then calls `retire`."""
        self.settle()
        header = {
            **fields,
            "key": self.key,
            "history": self.history,
            "epoch": name.epoch,
            "sequence": name.sequence,
            "boot_id": boot_id(),
        }
        parts = format.encode(header, captured.segments)
        self.store.put(self.key, name, parts)
        self._there.append(name)
        self._counted.append(name)
        return sum(len(p) for p in parts)

    def retire(self) -> list[SnapshotName]:
        """Delete snapshots that `keep` newer ones have replaced; returns their names."""
        old = lineage.doomed(self._there, self._counted, self.keep)
        self.store.delete(self.key, old, self.epoch)
        self._there = [n for n in self._there if n not in old]
        self._counted = [n for n in self._counted if n not in old]
        return old
