"""Journals and blobs of an `ObjectStore`: fencing, reading over epochs, trimming, which call ran.

Objects below a key, besides those in `names`:

    journal/NNNNNNNNNNNNNNNNNNNN    records, or none: a fence. N counts over all epochs, without gaps
    journal/open-EEEEEEEEEE         where the journal of an epoch begins: its first number and position
    life-EEEEEEEEEE                 which call runs, and in which one those before have died
    watch-EEEEEEEEEE                how far a recovery is, if those before have died in theirs
    data/NAME                       a blob, or for a large one its manifest
    blob/data-EEEEEEEEEE-W-NAME     the bytes of a large blob

Invariants: numbers are never used again, because the newest object stays when the journal is trimmed; what
lies below a missing number is left over and counts only if no position is missing without it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

from .. import blobs, faults
from ..errors import (
    CheckpointCorruptedError,
    CheckpointFormatError,
    CheckpointSaveError,
    CheckpointStoreError,
    FencedError,
    UnsupportedStoreError,
)
from ..journal import Buffer, Durability, Journal, JournalRecord, OnDurable, OnFailure
from ..keys import to_file_name
from . import names
from .leases import Lease
from .memory_journal import Life
from .object_file import ObjectFile
from .object_journal import LENGTH, ObjectJournal, object_name, pack_records
from .objects import Entry, Medium, Objects, Retry, head_of, new_token, pack, unpack
from .outage import Outage

JOURNAL_RETRY = Retry(attempts=64, base_s=0.1, cap_s=5.0)
"""About four minutes: replies wait meanwhile; after that the incarnation gives up and is started anew."""
_HEAD_BYTES = 1024


class _Head(NamedTuple):
    """What a journal object says of itself before its records; a fence has none of them."""

    epoch: int
    first: int
    size: int

    @property
    def last(self) -> int:
        return self.first + self.size - 1


class _Opening(NamedTuple):
    epoch: int
    first: int
    number: int


class _Segment(NamedTuple):
    """The objects of one epoch that are there, and the positions of them that count."""

    epoch: int
    numbers: range
    first: int
    last: int


class ObjectReading:
    """See `journal.JournalReading`."""

    def __init__(self, records: Iterator[JournalRecord], last_position: int) -> None:
        self.last_position = last_position
        self.notes: list[str] = []
        self.lost: list[str] = []
        self._records = records

    def __iter__(self) -> ObjectReading:
        return self

    def __next__(self) -> JournalRecord:
        return next(self._records)


class ObjectWatch:
    """See `protocol.WatchFile`: each note is a request."""

    def __init__(self, store: ObjectJournals, key: str, epoch: int) -> None:
        self._store, self._key = store, key
        self._name = f"{to_file_name(key)}/watch-{epoch:010}"

    def write(self, data: bytes, at: int = 0) -> None:
        """Write it anew."""
        assert not at
        try:
            self._store.objects.write(self._name, pack("watch", data, new_token()))
        except CheckpointStoreError as error:
            raise self._store._failed("note how far the recovery is", self._key, error) from error

    def close(self) -> None:
        """Nothing is open."""


class ObjectJournals:
    """The part of `ObjectStore` that is about journals and blobs."""

    objects: Objects
    commit_interval_s: float
    _medium: Medium
    _journal_requests: Callable[[Outage], Objects]
    _clock: Callable[[], float]
    _check_fence: Callable[[str, int], None]
    _look_at_fence: Callable[..., None]
    _failed: Callable[[str, str, Exception], CheckpointSaveError]
    require_fencing: Callable[[str], None]
    lease_of: Callable[[str, int], Lease | None]

    @property
    def url(self) -> str:
        """See `ObjectStore`."""
        raise NotImplementedError

    # -- fencing and opening -----------------------------------------------------------------------

    def _numbers(self, key: str) -> tuple[list[int], list[int]]:
        """Return the numbers of all journal objects and the epochs of all openings."""
        numbers, openings = [], []
        for name, _ in self.objects.list(f"{to_file_name(key)}/journal"):
            if name.isascii() and name.isdigit():
                numbers.append(int(name))
            elif found := names.numbers(name, "open-", "", 1):
                openings.append(found[0])
        return sorted(numbers), sorted(openings)

    def fence_journals(self, key: str, epoch: int) -> None:
        """Take the next free number for `epoch`, so that no older epoch can go on."""
        try:
            self._check_fence(key, epoch)
            if faults.active:
                faults.hit("object.fence.begin")
            self._put_fence(key, epoch)
        except CheckpointStoreError as error:
            raise self._failed("fence the journal", key, error) from error

    def _fence_if_journaled(self, key: str, epoch: int) -> None:
        """What `claim` does, so that a claim alone stops the journal of the epoch before."""
        if self._numbers(key)[0]:
            self._put_fence(key, epoch)

    def _put_fence(self, key: str, epoch: int) -> None:
        while True:
            numbers, _ = self._numbers(key)
            number = numbers[-1] if numbers else 0
            head = self._head(key, number) if numbers else _Head(0, 0, 0)
            if head.epoch > epoch:
                raise FencedError(f"epoch {epoch} of checkpoint key {key!r} in {self.url} was superseded")
            if head.epoch == epoch and not head.size:
                return
            name = f"{to_file_name(key)}/{object_name(number + 1)}"
            if self.objects.create(name, pack_records(epoch, number + 1, 0, [])):
                if faults.active:
                    faults.hit("object.fence.created")
                return

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
        """Start the journal of `epoch`. `durability` only says what is asked for: what is durable is."""
        if first_position < 1:
            raise ValueError(f"positions count from 1, got {first_position}")
        self._check_survival(durability)
        directory = to_file_name(key)
        try:
            self.require_fencing(key)
            numbers, _ = self._numbers(key)
            self._check_fence(key, epoch)  # after the listing: it may have a successor's fence in it
            number = numbers[-1] + 1 if numbers else 1
            opening = json.dumps({"first": first_position, "number": number}).encode()
            name = f"{directory}/journal/open-{epoch:010}"
            if not self.objects.create(name, pack("opening", opening, new_token())):
                raise CheckpointSaveError(
                    f"epoch {epoch} of checkpoint key {key!r} in {self.url} has a journal already"
                )
            if faults.active:
                faults.hit("object.journal.opened")
            life = Life(self.last_running(key))
            self._write_life(self.objects, key, epoch, life.row())
        except CheckpointStoreError as error:
            raise self._failed("open the journal", key, error) from error
        outage = Outage(self._clock)
        objects = self._journal_requests(outage)
        return ObjectJournal(
            objects,
            directory,
            key,
            epoch,
            number,
            first_position,
            look=lambda: self._look_for_claim(objects, key, epoch),
            look_closely=lambda: self._look_at_fence(key, epoch, objects),
            lease=self.lease_of(key, epoch),
            note=lambda row: self._note_life(objects, key, epoch, row),
            put_blob=lambda name, parts: self._put_blob(objects, key, epoch, name, parts),
            life=life,
            outage=outage,
            commit_interval_s=self.commit_interval_s,
            on_durable=on_durable,
            on_failure=on_failure,
        )

    def _look_for_claim(self, objects: Objects, key: str, epoch: int) -> None:
        if self.lease_of(key, epoch) is not None:  # no creation is refused then: only this tells of others
            self._look_at_fence(key, epoch, objects)
        elif objects.size(f"{to_file_name(key)}/{names.claim_name(epoch)}") is None:
            self._look_at_fence(key, epoch, objects)  # says what is there instead

    def _check_survival(self, durability: Durability) -> None:
        survives = self._medium.survives
        if durability not in survives and not self.url.startswith("memory://"):
            raise UnsupportedStoreError(
                f"durability={durability!r} was asked for, and {self.url} survives only: "
                f"{', '.join(sorted(survives)) or 'nothing'}"
            )

    # -- reading -----------------------------------------------------------------------------------

    def _object(self, key: str, number: int) -> str:
        return f"{to_file_name(key)}/{object_name(number)}"

    def _head(self, key: str, number: int) -> _Head:
        """Read what an object says of itself, without its records."""
        raw = self.objects.read(self._object(key, number), 0, _HEAD_BYTES)
        try:
            fields = head_of(raw, "journal")
            return _Head(*(cast(int, fields[name]) for name in ("epoch", "first", "count")))
        except CheckpointFormatError as error:
            raise self._corrupted(key, f"journal object {number} does not verify: {error}") from error

    def _corrupted(self, key: str, what: str) -> CheckpointCorruptedError:
        return CheckpointCorruptedError(f"the journal of checkpoint key {key!r} in {self.url}: {what}")

    def _openings(self, key: str, epochs: Sequence[int]) -> list[_Opening]:
        found = []
        for epoch in epochs:
            raw = self.objects.read(f"{to_file_name(key)}/journal/open-{epoch:010}")
            try:
                fields = json.loads(unpack(raw, "opening")[1])
            except CheckpointFormatError as error:
                raise self._corrupted(key, f"the opening of epoch {epoch}: {error}") from error
            found.append(_Opening(epoch, fields["first"], fields["number"]))
        return found

    def _segments(self, key: str) -> list[_Segment]:
        """Return what each epoch has, oldest first, cut where a later epoch begins."""
        numbers, epochs = self._numbers(key)
        if not numbers:
            return []
        base = top = numbers[-1]  # base: the first number after the last gap
        for number in reversed(numbers[:-1]):
            if number != base - 1:
                break
            base = number
        segments: list[_Segment] = []
        end, limit = top + 1, 1 << 62
        for opening in reversed(self._openings(key, epochs)):
            segment = self._segment(key, opening, range(max(opening.number, base), end), limit)
            if segment is not None:
                segments.append(segment)
            end, limit = min(end, opening.number), min(limit, opening.first - 1)
        return segments[::-1]

    def _segment(self, key: str, opening: _Opening, numbers: range, limit: int) -> _Segment | None:
        """Return what is there of one epoch, None if all of it was trimmed; `limit`: what counts at most."""
        stop = numbers.stop
        while stop > numbers.start and not self._head(key, stop - 1).size:
            stop -= 1  # the fences of later epochs
        there = range(numbers.start, stop)
        if not there:
            whole = opening.number >= numbers.start
            return _Segment(opening.epoch, there, opening.first, opening.first - 1) if whole else None
        trimmed = opening.number < there.start
        first = self._head(key, there.start).first if trimmed else opening.first
        return _Segment(opening.epoch, there, first, min(self._head(key, stop - 1).last, limit))

    def read_journal(self, key: str, after: int) -> ObjectReading:
        """Read all records after a position, chained over epochs."""
        try:
            segments = self._segments(key)
        except FileNotFoundError as error:
            raise self._corrupted(key, f"it was trimmed while it was read: {error}") from error
        expected = after + 1
        wanted: list[tuple[_Segment, int]] = []
        for segment in segments:
            if segment.first > expected:
                raise self._corrupted(
                    key,
                    f"it has a gap: position {expected} is asked for, {segment.first} comes next (epoch "
                    f"{segment.epoch})",
                )
            if segment.last >= expected:
                wanted.append((segment, expected))
                expected = segment.last + 1
        return ObjectReading(self._records(key, wanted), expected - 1)

    def _records(self, key: str, wanted: list[tuple[_Segment, int]]) -> Iterator[JournalRecord]:
        for segment, first in wanted:
            position = None
            for number in segment.numbers[self._starting(key, segment, first) :]:
                head, records = self._read_object(key, number)
                if head.epoch != segment.epoch or position not in (None, head.first):
                    raise self._corrupted(
                        key,
                        f"journal object {number} begins with position {head.first} of epoch {head.epoch}, "
                        f"expected were position {position} and epoch {segment.epoch}",
                    )
                for position, record in enumerate(records, head.first):
                    if first <= position <= segment.last:
                        yield JournalRecord(position, head.epoch, record)
                position = head.last + 1
                if head.last >= segment.last:
                    break

    def _starting(self, key: str, segment: _Segment, position: int) -> int:
        """Return the index of the last object of a segment that does not begin after `position`."""
        low, high = 0, len(segment.numbers)
        if position == segment.first:
            return 0
        while high - low > 1:
            middle = (low + high) // 2
            if self._head(key, segment.numbers[middle]).first <= position:
                low = middle
            else:
                high = middle
        return low

    def _read_object(self, key: str, number: int) -> tuple[_Head, list[bytes]]:
        try:
            fields, payload = unpack(self.objects.read(self._object(key, number)), "journal")
        except CheckpointFormatError as error:
            raise self._corrupted(key, f"journal object {number} does not verify: {error}") from error
        except FileNotFoundError as error:
            raise self._corrupted(key, f"journal object {number} has gone: {error}") from error
        head = _Head(*(cast(int, fields[name]) for name in ("epoch", "first", "count")))
        records, offset = [], 0
        while offset < len(payload):
            (size,) = LENGTH.unpack_from(payload, offset)
            offset += LENGTH.size
            records.append(payload[offset : offset + size])
            offset += size
        if fields["number"] != number or len(records) != head.size or offset != len(payload):
            raise self._corrupted(key, f"journal object {number} is object {fields['number']}, copied here")
        return head, records

    # -- trimming ----------------------------------------------------------------------------------

    def _newest(self, key: str) -> int:
        numbers, _ = self._numbers(key)
        return numbers[-1] if numbers else 0

    def trim_journal(self, key: str, upto: int, epoch: int) -> None:
        """Delete objects that end at or before a position; the newest one stays, for its number."""
        try:
            self._look_at_fence(key, epoch)
            numbers, epochs = self._numbers(key)
            keep = self._first_kept(key, numbers, upto)
            doomed = [number for number in numbers if number < keep]
            if faults.active:
                faults.hit("object.trim.begin")
            for start in range(0, len(doomed), 500):  # oldest first, as far as a batch has an order
                chunk = doomed[start : start + 500]
                self.objects.delete([self._object(key, number) for number in chunk])
            if faults.active:
                faults.hit("object.trim.done")
            openings = self._openings(key, epochs)
            useless = [o for o, after in pairwise(openings) if after.number <= keep]
            self.objects.delete([f"{to_file_name(key)}/journal/open-{o.epoch:010}" for o in useless])
        except CheckpointStoreError as error:
            raise self._failed("trim the journal", key, error) from error

    def _first_kept(self, key: str, numbers: list[int], upto: int) -> int:
        """Return the number of the first object that has a position after `upto`, at most the newest."""
        low, high = 0, len(numbers) - 1
        while low < high:
            middle = (low + high) // 2
            index = middle
            head = self._head(key, numbers[index])
            while not head.size and index < high:  # a fence has no positions: ask the next
                index += 1
                head = self._head(key, numbers[index])
            if head.size and head.last <= upto:
                low = min(index + 1, high)
            else:
                high = middle
        return numbers[low] if numbers else 0

    # -- which call ran ----------------------------------------------------------------------------

    def _write_life(self, objects: Objects, key: str, epoch: int, row: tuple[bytes, int] | None) -> None:
        text = json.dumps(None if row is None else [row[0].hex(), row[1]]).encode()
        objects.write(f"{to_file_name(key)}/life-{epoch:010}", pack("life", text, new_token()))

    def _note_life(self, objects: Objects, key: str, epoch: int, row: tuple[bytes, int] | None) -> None:
        try:
            self._write_life(objects, key, epoch, row)
        except CheckpointStoreError as error:
            raise self._failed("note the running call", key, error) from error

    def last_running(self, key: str) -> tuple[bytes, int] | None:
        """Return the call that the last incarnations died in."""
        found = self.objects.list(to_file_name(key), "life-")
        if not found:
            return None
        try:
            raw = self.objects.read(f"{to_file_name(key)}/{found[-1].name}")
            row = json.loads(unpack(raw, "life")[1])
        except (CheckpointFormatError, FileNotFoundError):  # only ever a hint
            return None
        return None if row is None else (bytes.fromhex(row[0]), row[1])

    notes_each_call = False

    def open_watch(self, key: str, epoch: int) -> ObjectWatch:
        """Return where an incarnation notes how far its recovery is."""
        return ObjectWatch(self, key, epoch)

    def read_watch(self, key: str) -> bytes | None:
        """Return what the newest one wrote last."""
        found = self.objects.list(to_file_name(key), "watch-")
        if not found:
            return None
        try:
            return unpack(self.objects.read(f"{to_file_name(key)}/{found[-1].name}"), "watch")[1]
        except (CheckpointFormatError, FileNotFoundError):  # only ever a hint
            return None

    # -- blobs -------------------------------------------------------------------------------------

    def put_blob(
        self, key: str, epoch: int, name: str, parts: Sequence[Buffer], *, durability: Durability = "power"
    ) -> None:
        """Make a blob durable."""
        self._put_blob(self.objects, key, epoch, name, parts)

    def _put_blob(self, objects: Objects, key: str, epoch: int, name: str, parts: Sequence[Buffer]) -> None:
        blobs.check_name(name)
        encoded = blobs.encode(parts)
        directory = to_file_name(key)
        try:
            self._look_at_fence(key, epoch, objects)
            token = new_token()
            length = sum(memoryview(part).nbytes for part in encoded)
            limit = self._medium.limit_bytes
            if limit is not None and length > limit:
                raise CheckpointSaveError(
                    f"a blob of {length} bytes does not fit into {self.url}, which takes {limit} at most"
                )
            if length <= self._medium.inline_bytes:
                data = pack("blob", b"".join(encoded), token)
            else:
                content = f"blob/data-{epoch:010}-{token}-{name}"
                objects.upload(f"{directory}/{content}", encoded)
                if faults.active:
                    faults.hit("object.blob.content_written")
                data = pack("blob", b"", token, blob=content, blob_length=length)
            if not objects.create(f"{directory}/data/{name}", data):
                raise CheckpointSaveError(
                    f"blob {name} of checkpoint key {key!r} exists already in {self.url}"
                )
            if faults.active:
                faults.hit("object.blob.created")
        except CheckpointStoreError as error:
            raise self._failed(f"save blob {name}", key, error) from error

    def read_blob(self, key: str, name: str) -> bytes:
        """Return a blob."""
        blobs.check_name(name)
        directory = to_file_name(key)
        fields, payload = unpack(self.objects.read(f"{directory}/data/{name}"), "blob")
        if "blob" not in fields:
            return blobs.decode(payload)
        content, length = f"{directory}/{fields['blob']}", cast(int, fields["blob_length"])
        data = bytearray(length)
        view, done = memoryview(data), 0
        file = ObjectFile(self.objects, content, length)
        while done < length and (got := file.readinto(view[done:])):
            done += got
        return blobs.decode(bytes(view[:done]))

    def list_blobs(self, key: str) -> list[str]:
        """Return the names of all blobs."""
        return [entry.name for entry in self.objects.list(f"{to_file_name(key)}/data")]

    def delete_blobs(self, key: str, names: Collection[str], epoch: int) -> None:
        """Delete blobs: their manifests, then their contents."""
        if not names:
            return
        wanted = {blobs.check_name(name) for name in names}
        directory = to_file_name(key)
        try:
            self._look_at_fence(key, epoch)
            self.objects.delete([f"{directory}/data/{name}" for name in sorted(wanted)])
            doomed = [e.name for e in self._contents(key) if _blob_of(e) in wanted]
            self.objects.delete([f"{directory}/blob/{name}" for name in doomed])
        except CheckpointStoreError as error:
            raise self._failed("delete blobs", key, error) from error

    def _contents(self, key: str) -> list[Entry]:
        if self._medium.limit_bytes is not None:  # every blob is one object there
            return []
        return self.objects.list(f"{to_file_name(key)}/blob", "data-")

    def _orphans(self, key: str, below: int) -> list[str]:
        """Return contents that earlier epochs uploaded and did not name."""
        contents = [
            e for e in self._contents(key) if (names.numbers(e.name, "data-", "", 1) or (below,))[0] < below
        ]
        named = set(self.list_blobs(key)) if contents else set()
        return [f"{to_file_name(key)}/blob/{e.name}" for e in contents if _blob_of(e) not in named]

    def usage(self, key: str) -> Mapping[str, int]:
        """Return bytes by kind."""
        found = dict.fromkeys(("snapshots", "journal", "blobs", "other"), 0)
        directory = to_file_name(key)
        for name, size in self.objects.walk(directory):
            found[_kind(name[len(directory) + 1 :])] += size
        return found


def _blob_of(entry: Entry) -> str:
    return entry.name.split("-", 3)[3]


def _kind(name: str) -> str:
    if name.startswith(("snap-", "blob/snap-")):
        return "snapshots"
    if name.startswith("journal/"):
        return "journal"
    return "blobs" if name.startswith(("data/", "blob/data-")) else "other"
