"""Journals and blobs of the store in memory: the simplest thing that fulfils the protocol.

Owns nothing but Python lists under the lock of the store. `JournaledKey` is what a key holds beside its
snapshots; `MemoryJournals` is the part of `MemoryStore` that is about them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence

from .. import blobs
from ..errors import (
    CheckpointCorruptedError,
    CheckpointSaveError,
    CheckpointTimeoutError,
    FencedError,
)
from ..journal import (
    CALL_ID_SIZE,
    MAX_RECORD_BYTES,
    Buffer,
    Durability,
    Journal,
    JournalRecord,
    OnDurable,
    OnFailure,
)


class Life:
    """Which call an incarnation runs, and in which one those before it have died."""

    def __init__(self, past: tuple[bytes, int] | None = None) -> None:
        self._running: bytes | None = None
        self._past = past

    def run(self, call_id: bytes | None) -> None:
        """Note the call that runs now."""
        if call_id is None and self._past and self._running == self._past[0]:
            self._past = None
        self._running = call_id

    def row(self) -> tuple[bytes, int] | None:
        """Return what there is to say if this incarnation is dead."""
        if self._running is None:
            return self._past
        before = self._past[1] if self._past and self._past[0] == self._running else 0
        return self._running, before + 1


class JournaledKey:
    """What a key holds beside its snapshots."""

    def __init__(self) -> None:
        self.claims: dict[int, bytes] = {}
        self.seals: dict[int, bytes] = {}
        self.records: list[JournalRecord] = []
        self.opened: dict[int, int] = {}
        self.fenced_below = 0
        self.life = Life()
        self.watch: bytes | None = None
        self.blobs: dict[str, bytes] = {}


class MemoryWatch:
    """See `protocol.WatchFile`."""

    def __init__(self, held: JournaledKey) -> None:
        self._held = held

    def write(self, data: bytes, at: int = 0) -> None:
        """Keep it."""
        before = self._held.watch or b""
        self._held.watch = before[:at] + data + before[at + len(data) :] if at else data

    def close(self) -> None:
        """Nothing is open."""


class MemoryReading:
    """Records of a journal in memory."""

    def __init__(self, records: list[JournalRecord], last_position: int) -> None:
        self.last_position = last_position
        self.notes: list[str] = []
        self.lost: list[str] = []
        self._records = iter(records)

    def __iter__(self) -> MemoryReading:
        return self

    def __next__(self) -> JournalRecord:
        return next(self._records)


def check_call_id(call_id: bytes | None) -> None:
    """Raise `ValueError` unless it is None or as long as a CallID is."""
    if call_id is not None and len(call_id) != CALL_ID_SIZE:
        raise ValueError(f"a CallID has {CALL_ID_SIZE} bytes, got {len(call_id)}")


def joined(payload: Buffer | Sequence[Buffer]) -> bytes:
    """Return one record's bytes, or raise `ValueError` for a size that no journal takes."""
    data = bytes(payload) if isinstance(payload, (bytes, bytearray, memoryview)) else b"".join(payload)
    if not 0 < len(data) <= MAX_RECORD_BYTES:
        raise ValueError(
            f"a journal record has 1 to {MAX_RECORD_BYTES} bytes, got {len(data)}; "
            "larger values belong into blobs"
        )
    return data


class MemoryJournal:
    """The journal of one epoch. Durable at once, unless the store holds durability back."""

    survives: frozenset[str] = frozenset()

    def __init__(
        self,
        store: MemoryJournals,
        key: str,
        epoch: int,
        first_position: int,
        on_durable: OnDurable | None,
        on_failure: OnFailure | None,
    ) -> None:
        self.on_durable, self.on_failure = on_durable, on_failure
        self.last_position = self.durable_position = first_position - 1
        self._store, self._key, self._epoch = store, key, epoch
        self._closed = False
        self._failure: BaseException | None = None
        self._changed = threading.Condition(store._lock)

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._closed:
            raise CheckpointSaveError(f"the journal of epoch {self._epoch} of {self._key!r} is closed")

    @property
    def waiting_bytes(self) -> int:
        """How much `commit` would make durable."""
        with self._changed:
            held = self._store._keys.get(self._key)
            if held is None or self.durable_position == self.last_position:
                return 0
            return sum(len(r.payload) for r in held.records if r.position > self.durable_position)

    def append(self, payload: Buffer | Sequence[Buffer]) -> int:
        """Append one record."""
        data = joined(payload)
        with self._changed:
            self._check()
            if self._store._holds(self._key, self._epoch):
                self.last_position += 1
                held = self._store._keys[self._key]
                held.records.append(JournalRecord(self.last_position, self._epoch, data))
                if not self._store.hold_durability:
                    self.durable_position = self.last_position
                return self.last_position
        self._fence()
        self._check()
        raise AssertionError("fenced without a failure")

    def _fence(self) -> None:
        with self._changed:
            if self._failure is not None:
                return
            self._failure = FencedError(
                f"epoch {self._epoch} does not hold checkpoint key {self._key!r} in {self._store.url} "
                "any more"
            )
            self._changed.notify_all()
        if self.on_failure is not None:
            self.on_failure(self._failure)

    def hold_back(self, position: int | None) -> bool:
        """Never: blobs are here at once."""
        return False

    def fail(self, error: BaseException) -> None:
        """Nothing becomes durable any more."""
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify_all()
        if self.on_failure is not None:
            self.on_failure(error)

    def commit(self, upto: int | None = None) -> None:
        """For tests with `hold_durability`: what was appended (up to a position) becomes durable now."""
        with self._changed:
            if self._failure is not None:
                return
            held = self._store._holds(self._key, self._epoch)
            if held:
                wanted = self.last_position if upto is None else min(upto, self.last_position)
                self.durable_position = max(self.durable_position, wanted)
                self._changed.notify_all()
            durable = self.durable_position
        if not held:
            self._fence()
        elif self.on_durable is not None:
            self.on_durable(durable)

    def flush(self) -> None:
        """Nothing gathers here."""

    def wait(self, position: int, timeout_s: float) -> None:
        """Wait until `position` is durable."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            while self.durable_position < position:
                self._check()
                left_s = deadline_s - time.monotonic()
                if left_s <= 0:
                    raise CheckpointTimeoutError(
                        f"position {position} of {self._key!r} is not durable after {timeout_s} s"
                    )
                self._changed.wait(left_s)

    def running(self, call_id: bytes | None) -> None:
        """Note which call runs."""
        check_call_id(call_id)
        with self._changed:
            if self._store._holds(self._key, self._epoch):
                self._store._keys[self._key].life.run(call_id)

    def holds(self) -> bool:
        """Look at the key's newest epoch."""
        with self._changed:
            return self._store._holds(self._key, self._epoch)

    def close(self, timeout_s: float) -> None:
        """End it."""
        if not self._closed and self._failure is None:
            self.commit()
        with self._changed:
            closed, self._closed = self._closed, True
            self._changed.notify_all()
            if self._failure is not None and not closed:
                raise self._failure


class MemoryJournals:
    """The part of `MemoryStore` that is about journals and blobs."""

    hold_durability = False
    """For tests: what is appended is durable only after the journal's `commit`."""

    _lock: threading.RLock
    _keys: Mapping[str, JournaledKey]

    @property
    def url(self) -> str:
        """For messages."""
        raise NotImplementedError

    def _holds(self, key: str, epoch: int) -> bool:
        held = self._keys.get(key)
        return held is not None and max(held.claims, default=0) == epoch >= held.fenced_below

    def _holder(self, key: str, epoch: int) -> JournaledKey:
        if not self._holds(key, epoch):
            raise FencedError(f"epoch {epoch} does not hold checkpoint key {key!r} in {self.url} any more")
        return self._keys[key]

    def fence_journals(self, key: str, epoch: int) -> None:
        """Claiming has done it already; this makes it last over the end of the claim."""
        with self._lock:
            held = self._holder(key, epoch)
            held.fenced_below = max(held.fenced_below, epoch)

    def read_journal(self, key: str, after: int) -> MemoryReading:
        """Return what counts after a position."""
        with self._lock:
            held = self._keys.get(key)
            records = [r for r in held.records if r.position > after] if held else []
        for expected, record in enumerate(records, after + 1):
            if record.position != expected:
                raise CheckpointCorruptedError(
                    f"the journal of {key!r} in {self.url} has a gap: position {expected} is asked for, "
                    f"{record.position} comes next"
                )
        return MemoryReading(records, records[-1].position if records else after)

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
        """Start the journal of an epoch. Any durability is taken: a test asks for what it is about."""
        if first_position < 1:
            raise ValueError(f"positions count from 1, got {first_position}")
        with self._lock:
            held = self._holder(key, epoch)
            if epoch in held.opened:
                raise CheckpointSaveError(f"epoch {epoch} of {key!r} has a journal already")
            held.opened[epoch] = first_position
            held.records = [r for r in held.records if r.position < first_position]
            held.life = Life(held.life.row())
        return MemoryJournal(self, key, epoch, first_position, on_durable, on_failure)

    def trim_journal(self, key: str, upto: int, epoch: int) -> None:
        """Forget records."""
        with self._lock:
            held = self._holder(key, epoch)
            held.records = [r for r in held.records if r.position > upto]

    def last_running(self, key: str) -> tuple[bytes, int] | None:
        """Return the call that the last incarnations died in."""
        with self._lock:
            held = self._keys.get(key)
            return held.life.row() if held else None

    notes_each_call = True

    def open_watch(self, key: str, epoch: int) -> MemoryWatch:
        """Return where an incarnation notes how far its recovery is."""
        with self._lock:
            return MemoryWatch(self._holder(key, epoch))

    def read_watch(self, key: str) -> bytes | None:
        """Return what was written last."""
        with self._lock:
            held = self._keys.get(key)
            return held.watch if held else None

    def put_blob(
        self, key: str, epoch: int, name: str, parts: Sequence[Buffer], *, durability: Durability = "power"
    ) -> None:
        """Keep a blob."""
        blobs.check_name(name)
        data = b"".join(blobs.encode(parts))
        with self._lock:
            held = self._holder(key, epoch)
            if name in held.blobs:
                raise CheckpointSaveError(f"blob {name} of {key!r} exists already")
            held.blobs[name] = data

    def read_blob(self, key: str, name: str) -> bytes:
        """Return a blob."""
        blobs.check_name(name)
        with self._lock:
            held = self._keys.get(key)
            if held is None or name not in held.blobs:
                raise FileNotFoundError(2, f"no blob {name} of {key!r}")
            return blobs.decode(held.blobs[name])

    def list_blobs(self, key: str) -> list[str]:
        """Return the names of all blobs."""
        with self._lock:
            held = self._keys.get(key)
            return sorted(held.blobs) if held else []

    def delete_blobs(self, key: str, names: Collection[str], epoch: int) -> None:
        """Delete blobs."""
        with self._lock:
            if names:
                held = self._holder(key, epoch)
                for name in names:
                    held.blobs.pop(blobs.check_name(name), None)

    def usage(self, key: str) -> Mapping[str, int]:
        """Return bytes by kind."""
        with self._lock:
            held = self._keys.get(key)
            if held is None:
                return dict.fromkeys(("snapshots", "journal", "blobs", "other"), 0)
            return {
                "snapshots": sum(map(len, getattr(held, "snapshots", {}).values())),
                "journal": sum(len(r.payload) for r in held.records),
                "blobs": sum(map(len, held.blobs.values())),
                "other": sum(map(len, [*held.claims.values(), *held.seals.values()])),
            }
