"""Takes a key back to a snapshot, or begins it from a savepoint: a new history of the key.

Owns the order of the steps, none of which leaves a key that is half taken back:

    1. the snapshot is read and verified     nothing is touched for one that is not whole
    2. claim, fence                          the holder, if there is one, ends
    3. end of the journal                    the new history begins behind everything that exists
    4. own segment, with a barrier in it     cuts what a fenced writer still appends; recovery from a snapshot
                                             of the old history stops here, and has lost nothing
    5. the snapshot is saved anew            **from here on the key is taken back**
    6. mark for the old history              a snapshot of the old history cannot take its place in silence
    7. seal                                  snapshots of the old history do not count any more

The ledger of the snapshot stays, under the number of the new history: it says what is in the state. Callers
that know the old history are refused (`CheckpointRolledBackError`).
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import faults, format, holders, marks, membership, parking, recoveries, transfers
from .errors import (
    CheckpointCorruptedError,
    CheckpointFormatError,
    CheckpointNotFoundError,
    CheckpointOptionError,
)
from .journal import Durability, Journal
from .lineage import SnapshotName, parse_id
from .savepoint import Savepoint, read_savepoint
from .snapshots import Loaded, SnapshotLog, boot_id, end_of_journal, present
from .stores import connect
from .stores.protocol import Store
from .transfers import Progress

_HISTORY = struct.Struct("<Q")
_HISTORY_AT, _LEDGER_MAGIC = 16, b"ftledger"
_WAIT_S = 60.0


class Restored(NamedTuple):
    """What a key has become.

    Attributes
    ----------
    store, key : str
    snapshot : str
        Id of the new snapshot, the first one of the new history.
    source : str
        Id of the snapshot that it is a copy of, or where the savepoint lies.
    history_number : int or None
        Of an exactly-once key.
    journal_position : int or None
        Where its new history begins.
    ledger : bool
        Whether the calls that the state contains are still known.
    size_bytes : int
    """

    store: str
    key: str
    snapshot: str
    source: str
    history_number: int | None
    journal_position: int | None
    ledger: bool
    size_bytes: int


class _Source(NamedTuple):
    """A verified snapshot: what it says, its state, its ledger."""

    text: str
    fields: Mapping[str, Any]
    state: list[bytearray]
    ledger: bytes | None


def restore(
    store: str | os.PathLike[str] | Store,
    key: str,
    snapshot: str | None = None,
    *,
    savepoint: str | os.PathLike[str] | None = None,
    keep_ledger: bool = True,
    takeover: bool = False,
    progress: Progress | None = None,
) -> Restored:
    """Take a key back to one of its snapshots, or begin it from a savepoint. Its actor starts from there.

    Everything that came later is given up: a new history begins, and callers that know the old one get
    `CheckpointRolledBackError`. The other snapshots stay until retention replaces them, so that this can be
    undone. The key of a group, ``_group/NAME``, takes all its members back to one of the group's cuts.

    Parameters
    ----------
    store : path, URL or Store
    key : str
        ``checkpoint_key``, or ``namespace/name``. Need not exist when `savepoint` is given.
    snapshot : str, optional
        Id of one of the key's snapshots, also of one that does not count.
    savepoint : path or URL, optional
        What `export` has written, of this key or any other.
    keep_ledger : bool
        Keep what the snapshot says of calls that were made: a caller that sends one of them again gets its
        reply, and it does not run twice. Always forgotten if the savepoint is that of another key, whose
        calls have other identities.
    takeover : bool
        Also if somebody who lives holds the key: that actor is fenced, ends, and is not restarted. Members of
        a group are killed, and restarted from the cut.
    progress : callable, optional
        ``progress(done_bytes, total_bytes)`` while the snapshot or savepoint is read, and while it is
        written: together twice its size.

    Returns
    -------
    Restored

    Raises
    ------
    CheckpointKeyInUseError
        The holder lives, or that cannot be told from here; says who and since when.
    CheckpointNotFoundError, CheckpointCorruptedError
        There is no such snapshot or savepoint, or it is not whole. Nothing was touched.
    FencedError
        Somebody else took the key meanwhile. Nothing was changed.
    CheckpointOptionError
        The key is that of a member of a group, which is taken back as a whole.
    """
    if (snapshot is None) == (savepoint is None):
        raise CheckpointOptionError("give either the id of a snapshot, or savepoint=")
    held = connect(os.fspath(store)) if isinstance(store, (str, os.PathLike)) else store
    with transfers.watch(progress) as meter:
        return _restore(held, key, snapshot, savepoint, keep_ledger, takeover, meter)


def _restore(
    held: Store,
    key: str,
    snapshot: str | None,
    savepoint: str | os.PathLike[str] | None,
    keep_ledger: bool,
    takeover: bool,
    meter: transfers.Meter,
) -> Restored:
    group = membership.group_name(key)
    if group is not None:
        if savepoint is not None or not keep_ledger:
            raise CheckpointOptionError(f"group {group!r} is taken back to one of its cuts, with its ledgers")
        from . import regroup

        return regroup.restore(held, group, str(snapshot), takeover)
    membership.check_alone(held, key, "taken back")
    if savepoint is not None:

        def told(done: int, total: int) -> None:
            meter.expect(2 * total)
            meter.reach(done)

        source = _from_savepoint(read_savepoint(savepoint, told), key if keep_ledger else None)
    else:
        source = _from_store(held, key, parse_id(str(snapshot)))
        if not keep_ledger:
            source = source._replace(ledger=None)
    return _Rollback(held, key, source, takeover).run()


def take_back(
    store: Store,
    key: str,
    text: str,
    loaded: Loaded,
    *,
    said: Mapping[str, Any] | None = None,
    holder: Mapping[str, Any] | None = None,
) -> Restored:
    """Take a key back to a state of its own that lies elsewhere, such as its part of a group's cut.

    Parameters
    ----------
    text : str
        Where that lies, for people.
    loaded : Loaded
        What was read there, verified.
    said : mapping, optional
        JSON values for the seal of the new history.
    holder : mapping, optional
        What the claim says of who does it; given by an actor that does it to its own key.
    """
    source = _Source(text, loaded.header.fields, *format.split_ledger(loaded.header, loaded.segments))
    return _Rollback(store, key, source, True, said, holder).run()


def _from_store(store: Store, key: str, name: SnapshotName) -> _Source:
    try:
        with store.read(key, name) as file:
            transfers.expect(2 * file.seek(0, 2))  # it is read, and written anew
            header, segments = format.read(transfers.counted(file))
    except FileNotFoundError:
        ids = ", ".join(n.id for n in store.scan(key).snapshots) or "none"
        raise CheckpointNotFoundError(
            f"there is no snapshot {name.id} under checkpoint key {key!r} in {store.url}; "
            f"snapshots there: {ids}"
        ) from None
    except (CheckpointFormatError, OSError) as error:
        raise CheckpointCorruptedError(
            f"snapshot {name.id} of checkpoint key {key!r} in {store.url}: {error}. Nothing was changed"
        ) from error
    return _Source(name.id, header.fields, *format.split_ledger(header, segments))


def _from_savepoint(found: Savepoint, key: str | None) -> _Source:
    state, ledger = format.split_ledger(found.header, found.segments)
    if found.info.key != key:
        ledger = None
    return _Source(found.info.url, found.header.fields, state, ledger)


def with_history(ledger: bytes, number: int) -> bytes:
    """Return a dumped ledger as one of another history; see docs/storage-format.md."""
    if ledger[: len(_LEDGER_MAGIC)] != _LEDGER_MAGIC:
        raise CheckpointCorruptedError("the snapshot's last segment is not a ledger")
    end = _HISTORY_AT + _HISTORY.size
    body = ledger[:_HISTORY_AT] + _HISTORY.pack(number) + ledger[end:-4]
    return body + zlib.crc32(body).to_bytes(4, "little")


class _Rollback:
    """One of them."""

    def __init__(
        self,
        store: Store,
        key: str,
        source: _Source,
        takeover: bool,
        said: Mapping[str, Any] | None = None,
        holder: Mapping[str, Any] | None = None,
    ) -> None:
        self.store, self.key, self.source, self.takeover = store, key, source, takeover
        self.said = said or {}
        self.holder = holder or holders.tool("restore", holders.last_holder(store, key))
        self.log = SnapshotLog(store, key, keep=2)
        self.history = os.urandom(16).hex()

    def run(self) -> Restored:
        self._claim()
        here = present(self.store, self.key)
        number = self._next_number(here.sealed)
        kept = recoveries.fields(recoveries.of(here.sealed))
        journalled = bool(self.source.fields.get("ledger")) or number > 1 or bool(here.listing.journals)
        if not journalled:
            self._hit("begun")
            size_bytes = self._save({}, None)
            self._seal(kept)
            return self._done(size_bytes, None, None)
        past, _ = end_of_journal(self.store, self.key, here.sealed)
        base = max(past, int(self.source.fields.get("journal_position", 0)))
        journal = self._cut(base)
        try:
            position = self._append(journal, marks.NONDETERMINISTIC, call_id="")
            self._hit("begun")
            fields = {"journal_position": position, "ledger": True, "history_number": number}
            size_bytes = self._save(fields, self._ledger(number))
            self._append(journal, marks.SAVED, upto=position, history=str(here.sealed.get("history", "")))
            self._hit("marked")
            self._seal({"history_number": number, "journal_position": position, **kept})
        finally:
            journal.close(_WAIT_S)
        return self._done(size_bytes, number, position)

    def _claim(self) -> None:
        def check(epoch: int) -> None:
            if epoch and not self.takeover:
                holders.check_ended(self.store, self.key, holders.look(self.store, self.key, epoch))

        self.log.claim(self.holder, check)
        self.store.fence_journals(self.key, self.log.epoch)
        self._hit("claimed")

    def _next_number(self, sealed: Mapping[str, Any]) -> int:
        """Number of the new history: above all that callers of this key may know."""
        known = [int(sealed.get("history_number", 0)), int(self.source.fields.get("history_number", 0))]
        for name in self.store.scan(self.key).snapshots:
            try:
                with self.store.read(self.key, name) as file:
                    known.append(int(format.read_header(file).fields.get("history_number", 0)))
            except (CheckpointFormatError, OSError):  # it cannot have been served either
                continue
        if self.source.ledger is not None:
            known.append(_HISTORY.unpack_from(self.source.ledger, _HISTORY_AT)[0])
        return max(known) + 1

    def _cut(self, base: int) -> Journal:
        """Begin a segment behind everything: what a fenced writer still appends does not count."""
        durability: Durability = "power" if "power" in self.store.survives else "process"
        return self.store.open_journal(self.key, self.log.epoch, base + 1, durability=durability)

    def _append(self, journal: Journal, kind: int, **fields: object) -> int:
        position = journal.append(marks.encode(kind, **fields))
        journal.flush()
        journal.wait(position, _WAIT_S)
        return position

    def _ledger(self, number: int) -> bytes:
        from ftray._core.identity import derive_callee_key
        from ftray._core.ledger import Ledger

        ledger = Ledger(derive_callee_key(self.key), number)
        if self.source.ledger is not None:
            ledger.load(with_history(self.source.ledger, number))
        return ledger.dump()

    def _save(self, extra: Mapping[str, Any], ledger: bytes | None) -> int:
        name = SnapshotName(self.log.epoch, 1)
        fields = {
            **self.source.fields,
            **extra,
            "key": self.key,
            "history": self.history,
            "epoch": name.epoch,
            "sequence": name.sequence,
            "boot_id": boot_id(),
            "created_unix_s": time.time(),
            "reason": f"restored from {self.source.text}",
        }
        segments: list[list[format.Buffer]] = [[segment] for segment in self.source.state]
        if ledger is not None:
            segments.append([ledger])
        parts = format.encode(fields, segments)
        self.store.put(self.key, name, parts)
        self._hit("saved")
        return sum(len(part) for part in parts)

    def _seal(self, extra: Mapping[str, Any]) -> None:
        epoch = self.log.epoch
        record = {"epoch": epoch, "history": self.history, "base": f"{epoch}-1", "line": []}
        record |= {**self.said, **extra}
        self.store.seal(self.key, epoch, format.encode_record(record))
        self._hit("sealed")
        self.store.settle(self.key, epoch)
        parking.forget(self.store, self.key, epoch)  # somebody has changed something
        stale = holders.stale_notes(self.store, self.key, epoch)
        if stale:
            self.store.delete_blobs(self.key, stale, epoch)
        holders.ended(self.store, self.key, epoch)

    def _done(self, size_bytes: int, number: int | None, position: int | None) -> Restored:
        ledger = self.source.ledger is not None
        return Restored(
            self.store.url,
            self.key,
            f"{self.log.epoch}-1",
            self.source.text,
            number,
            position,
            ledger,
            size_bytes,
        )

    def _hit(self, step: str) -> None:
        if faults.active:
            faults.hit(f"rollback.{step}")
