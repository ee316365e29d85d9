"""Journals and blobs of the store on a local disk: the part of `LocalStore` that `exactly_once` needs.

In the directory of a key, beside claims, seals and snapshots:

    journal-EEEEEEEEEE-NNNNNN.DURABILITY    segment N of epoch E (`segments`), written by `_core.journal`
    epoch-EEEEEEEEEE.live                   fence word and running call of epoch E (`life`)
    blob-EEEEEEEEEE-NAME                    a blob (`blobs`), never changed

Takeover (Dekker's protocol): the old writer stores a record, then loads its fence word; the new one stores
the words of all older epochs, then reads the records. Either the old one sees the word and answers nothing,
or its record is read. A writer that had no life file yet looks for later claims after it has made one.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ftray._core.segscan import read_descending

from .. import blobs, faults, recovery, segments
from ..errors import (
    CheckpointCorruptedError,
    CheckpointFormatError,
    CheckpointSaveError,
    CheckpointTimeoutError,
    FencedError,
    UnsupportedStoreError,
)
from ..journal import MAX_RECORD_BYTES, Buffer, Durability, Journal, JournalRecord, OnDurable, OnFailure
from . import life
from .local_files import CREATE, remove_file, write_all

if TYPE_CHECKING:
    from .protocol import Listing

_SEGMENT = re.compile(r"journal-(\d{10,})-(\d{6,})\.(process|power)")
_LIFE = re.compile(r"epoch-(\d{10,})\.live")
_BLOB = re.compile(r"blob-(\d{10,})-([A-Za-z0-9_-]+)")
_FIRST_SIZE = 256 << 10
_MAX_SIZE = {"process": 16 << 20, "power": 16 << 20}
_IN_PLACE = frozenset({"ext2", "ext3", "ext4", "xfs", "tmpfs"})
"""File systems where a page that was written once never needs space again, so that it may be mapped."""
_NETWORK = frozenset(
    {
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "9p",
        "ceph",
        "glusterfs",
        "lustre",
        "afs",
        "gpfs",
        "beegfs",
        "ocfs2",
    }
)
_PASSING = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM})
"""Errors that say nothing of what a file system can do."""
_READ_ATTEMPTS = 20
_PROBE = ".probe-"
_PROBE_KEPT_S = 3600.0
"""A probe takes milliseconds. No process number is asked: its maker may have one of another container."""


class SegmentFile:
    """One segment by its name."""

    __slots__ = ("durability", "epoch", "name", "number")

    def __init__(self, name: str, epoch: int, number: int, durability: str) -> None:
        self.name, self.epoch, self.number, self.durability = name, epoch, number, durability


def journal_epoch(name: str) -> int | None:
    """Return the epoch of a file of a journal, None for any other file."""
    found = _SEGMENT.fullmatch(name) or _LIFE.fullmatch(name)
    return int(found[1]) if found else None


def boot_bytes() -> bytes:
    """Return the id of this boot as 16 bytes, zeros where there is none."""
    from ..snapshots import boot_id

    return bytes.fromhex(boot_id().replace("-", "")) or bytes(16)


def check_exactly_once(path: str) -> None:
    """Raise `UnsupportedStoreError` if a directory lies where exclusive creation cannot be relied on.

    On a network file system another machine may hold names in its cache, and mapped memory of another machine
    is not seen at all; a probe from one machine proves neither, so all of them are refused. On a local one
    the probe creates, maps and links a file in `path` (or where it is going to be).
    """
    from .local_files import file_system

    kind = file_system(path)
    if kind in _NETWORK or kind.startswith("fuse"):
        raise UnsupportedStoreError(
            "exactly_once needs exclusive creation and shared memory between all who use a store, which the "
            f"{kind} file system of {path} does not give across machines; give a directory on a local disk, "
            "or an object store with conditional writes"
        )
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    probe = os.path.join(path, f"{_PROBE}{os.getpid()}-{os.urandom(6).hex()}")
    try:
        _probe(probe)
    except OSError as error:
        if error.errno in _PASSING:
            why = f"{error.strerror} (errno {error.errno})"
            raise CheckpointSaveError(f"cannot probe {path}: {why}") from error
        raise UnsupportedStoreError(
            f"the {kind or 'unknown'} file system of {path} failed the probe that exactly_once needs: "
            f"{error.strerror} (errno {error.errno})"
        ) from error
    finally:
        remove_file(probe)


def sweep_probe(path: str) -> None:
    """Remove a file if it is a probe whose process has died in it."""
    if not os.path.basename(path).startswith(_PROBE):
        return
    try:
        if os.lstat(path).st_mtime < time.time() - _PROBE_KEPT_S:
            remove_file(path)
    except FileNotFoundError:  # its maker has just removed it
        return


def _probe(path: str) -> None:
    import mmap

    fd = os.open(path, CREATE & ~os.O_WRONLY | os.O_RDWR, 0o600)
    try:
        write_all(fd, [bytes(mmap.PAGESIZE)])
        with mmap.mmap(fd, mmap.PAGESIZE, prot=mmap.PROT_READ) as shared:
            os.pwrite(fd, b"x", 0)
            if shared[:1] != b"x":
                raise OSError(95, "what is written is not seen in a mapping")
        try:
            os.close(os.open(path, CREATE, 0o600))
        except FileExistsError:
            return
        raise OSError(95, "exclusive creation succeeded twice")
    finally:
        os.close(fd)


class LocalReading:
    """The records of a journal that count, each sliced from its segment when it is asked for."""

    def __init__(self, chosen: recovery.Chosen, data: Mapping[tuple[int, int], bytes]) -> None:
        self.last_position, self.notes, self.lost = chosen.last_position, chosen.notes, chosen.lost
        self._chosen, self._data = chosen, data
        self._records = iter(chosen.records)

    def again(self) -> LocalReading:
        """Return the same records, from the first one: whoever goes through them twice reads them once."""
        return LocalReading(self._chosen, self._data)

    def __iter__(self) -> Iterator[JournalRecord]:
        return self

    def __next__(self) -> JournalRecord:
        epoch, number, record = next(self._records)
        payload = segments.payload_of(self._data[epoch, number], record)
        return JournalRecord(record.position, epoch, payload)


class LocalJournals:
    """The part of `LocalStore` that is about journals and blobs."""

    journal_first_size = _FIRST_SIZE
    journal_max_size: int | None = None
    journal_sync_interval_s = 2.0
    """How often `process` journals are written out beside the kernel's own pace; nothing waits for it."""

    @property
    def url(self) -> str:
        """For messages."""
        raise NotImplementedError

    @property
    def survives(self) -> frozenset[str]:
        """What the directory survives."""
        raise NotImplementedError

    if TYPE_CHECKING:

        def _directory(self, key: str) -> str: ...
        def _path(self, key: str, file_name: str) -> str: ...
        def _check_trust(self, key: str) -> None: ...
        def _check_fence(self, key: str, epoch: int) -> None: ...
        def _look_at_fence(self, key: str, epoch: int) -> None: ...
        def _fenced(self, key: str, epoch: int, claims: list[int]) -> FencedError: ...
        def _failed(self, what: str, key: str, error: OSError) -> CheckpointSaveError: ...
        def _publish(
            self,
            key: str,
            epoch: int,
            tag: str,
            final_name: str,
            parts: Sequence[Buffer],
            steps: str,
            *,
            durable: bool,
        ) -> None: ...
        def scan(self, key: str) -> Listing: ...

    def _names(self, key: str) -> list[str]:
        try:
            return os.listdir(self._directory(key))
        except FileNotFoundError:
            return []

    # -- life files

    def _lives(self, key: str) -> list[int]:
        return sorted(int(m[1]) for name in self._names(key) if (m := _LIFE.fullmatch(name)))

    def _life_path(self, key: str, epoch: int) -> str:
        return self._path(key, f"epoch-{epoch:010}.live")

    def _read_life(self, key: str, epoch: int) -> life.Life | None:
        try:
            with open(self._life_path(key, epoch), "rb", buffering=0) as file:
                found = life.decode(file.read(life.SIZE))
        except FileNotFoundError:
            return None
        return found if found and found.boot_id == boot_bytes() else None

    def _stale_lives(self, key: str, below: int) -> list[str]:
        """File names of older life files, once there is a newer one to say what they said."""
        lives = self._lives(key)
        return [f"epoch-{e:010}.live" for e in lives if e < below] if below in lives else []

    def _set_fence(self, key: str, epoch: int, by: int) -> None:
        from ftray._core.journal import set_fence

        try:
            fd = os.open(self._life_path(key, epoch), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:  # swept by somebody newer than we are
            return
        try:
            set_fence(fd, by)
        finally:
            os.close(fd)
        if faults.active:
            faults.hit("file.fence.word_set")

    def _fence_lives(self, key: str, epoch: int) -> None:
        try:
            for older in self._lives(key):
                if older < epoch:
                    self._set_fence(key, older, epoch)
        except OSError as error:
            raise self._failed("fence older epochs", key, error) from error

    def _fence_all(self, key: str) -> None:
        """The key goes: nobody holds it any more."""
        for epoch in self._lives(key):
            self._set_fence(key, epoch, epoch + 1)

    def fence_journals(self, key: str, epoch: int) -> None:
        """Set the fence words of all older epochs."""
        if faults.active:
            faults.hit("file.fence.begin")
        self._look_at_fence(key, epoch)
        self._fence_lives(key, epoch)
        if faults.active:
            faults.hit("file.fence.done")

    def last_running(self, key: str) -> tuple[bytes, int] | None:
        """Return what the newest life file says."""
        newest = self._lives(key)[-1:]
        found = self._read_life(key, newest[0]) if newest else None
        return found.deaths() if found else None

    def _make_life(self, key: str, epoch: int) -> int:
        past = self.last_running(key)
        fd = os.open(self._life_path(key, epoch), CREATE & ~os.O_WRONLY | os.O_RDWR, 0o600)
        try:
            write_all(fd, [life.encode(epoch, boot_bytes(), past)])
        except OSError:
            os.close(fd)
            raise
        return fd

    # -- the writing side

    def check_exactly_once(self) -> None:
        """Raise `UnsupportedStoreError` if the directory lies where a key could be held twice."""
        check_exactly_once(os.path.dirname(self._directory("probe")))

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
        """Make life file and first segment, and start the journal's thread. Waits for no fsync."""
        if durability not in ("process", "power"):
            raise ValueError(f"durability {durability!r}; allowed: 'process', 'power'")
        if first_position < 1:
            raise ValueError(f"positions count from 1, got {first_position}")
        if durability not in self.survives:
            raise UnsupportedStoreError(
                f"durability={durability!r} was asked for, but {self.url} survives only: "
                f"{', '.join(sorted(self.survives))}"
            )
        past = [s.name for s in self._segments(key) if s.epoch < epoch]
        try:
            life_fd = self._make_life(key, epoch)
        except FileExistsError:
            raise CheckpointSaveError(
                f"epoch {epoch} of checkpoint key {key!r} in {self.url} has a journal already"
            ) from None
        except OSError as error:
            self._check_fence(key, epoch)
            raise self._failed("open the journal", key, error) from error
        try:
            if faults.active:
                faults.hit("file.journal.life_created")
            # After the life file: who claims later finds it, and who has claimed before is found here.
            self._check_fence(key, epoch)
            dir_fd = os.open(self._directory(key), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except BaseException:
            os.close(life_fd)
            remove_file(self._life_path(key, epoch))
            raise
        return self._start(
            key, epoch, first_position, durability, dir_fd, life_fd, past, on_durable, on_failure
        )

    def _start(
        self,
        key: str,
        epoch: int,
        first_position: int,
        durability: Durability,
        dir_fd: int,
        life_fd: int,
        past: Sequence[str],
        on_durable: OnDurable | None,
        on_failure: OnFailure | None,
    ) -> Journal:
        from ftray._core.journal import POINTS, LocalJournal

        from .local_files import file_system

        try:
            return LocalJournal(
                dir_fd,
                life_fd,
                key,
                epoch,
                first_position,
                power=durability == "power",
                in_place=file_system(self._directory(key)) in _IN_PLACE,
                boot=boot_bytes(),
                error_of=lambda reason, step, code: self._journal_error(key, epoch, reason, step, code),
                past=past if durability == "power" else (),
                first_size=self.journal_first_size,
                max_size=self.journal_max_size or _MAX_SIZE[durability],
                sync_interval_s=self.journal_sync_interval_s,
                on_durable=on_durable,
                on_failure=on_failure,
                fault=faults.spec(POINTS),
            )
        except CheckpointSaveError:
            remove_file(self._life_path(key, epoch))  # so that the same epoch may try again
            raise

    def _journal_error(self, key: str, epoch: int, reason: str, step: str, code: int) -> Exception:
        """Turn what the journal's core says into the toolkit's errors."""
        where = f"the journal of epoch {epoch} of checkpoint key {key!r} in {self.url}"
        if reason == "fenced":
            return self._fenced(key, epoch, self.scan(key).claims)
        if reason == "timeout":
            return CheckpointTimeoutError(f"{where}: {step} not durable; it may still become so")
        if reason == "size":
            return ValueError(
                f"a journal record has 1 to {MAX_RECORD_BYTES} bytes; larger values belong into blobs"
            )
        if reason == "memory":
            return MemoryError(where)
        if reason == "closed":
            return CheckpointSaveError(f"{where} is closed")
        if reason == "forked":
            return CheckpointSaveError(f"{where} was opened by another process than this fork of it")
        return CheckpointSaveError(
            f"{where} has failed: cannot {step}: {os.strerror(code)} (errno {code}). Nothing appended later "
            "became durable; what was answered is untouched. Restart the actor once the medium is in order"
        )

    # -- the reading side

    def _segments(self, key: str) -> list[SegmentFile]:
        found = []
        for name in self._names(key):
            if m := _SEGMENT.fullmatch(name):
                found.append(SegmentFile(name, int(m[1]), int(m[2]), m[3]))
        return sorted(found, key=lambda s: (s.epoch, s.number))

    def read_journal(self, key: str, after: int) -> LocalReading:
        """Read what counts after a position. Reads again while a living writer makes a difference."""
        self._check_trust(key)
        before = ""
        for attempt in range(_READ_ATTEMPTS):
            try:
                return self._read_once(key, after)
            except (CheckpointCorruptedError, FileNotFoundError) as error:
                if str(error) == before or attempt == _READ_ATTEMPTS - 1:
                    raise
                before = str(error)
        raise AssertionError("the last attempt returns or raises")

    def _read_once(self, key: str, after: int) -> LocalReading:
        epochs: dict[int, list[SegmentFile]] = {}
        for file in self._segments(key):
            epochs.setdefault(file.epoch, []).append(file)
        data: dict[tuple[int, int], bytes] = {}
        scans: dict[int, list[segments.Scan | recovery.Unread]] = {}
        limits: dict[int, int] = {}
        for epoch in sorted(epochs, reverse=True):
            scans[epoch] = self._read_epoch(key, epochs[epoch], after, data)
            living = self._read_life(key, epoch)
            if living and living.doubt:
                limits[epoch] = living.doubt - 1
        return LocalReading(recovery.judge(scans, boot_bytes(), after, limits), data)

    def _read_epoch(
        self, key: str, files: list[SegmentFile], after: int, data: dict[tuple[int, int], bytes]
    ) -> list[segments.Scan | recovery.Unread]:
        """Read the segments of an epoch, the last one first; those wholly at or before `after` are left
        out."""
        found: list[segments.Scan | recovery.Unread] = []
        for file in reversed(files):
            raw = read_descending(self._path(key, file.name))
            scanned = self._scan(key, file, raw)
            found.insert(0, scanned)
            if isinstance(scanned, segments.Scan):
                # Most of a segment is empty, and need not be kept.
                end = scanned.records[-1].next_offset if scanned.records else 0
                data[file.epoch, file.number] = raw[:end]
                if scanned.data and scanned.data[0].position <= after + 1:
                    break
        return found

    def _scan(self, key: str, file: SegmentFile, raw: bytes) -> segments.Scan | recovery.Unread:
        try:
            scanned = segments.scan(raw)
        except CheckpointFormatError as error:
            living = self._read_life(key, file.epoch)
            head = raw[: segments.HEADER_SIZE]
            return recovery.Unread(
                file.epoch,
                file.number,
                file.durability,
                str(error),
                not head.strip(b"\0"),
                not raw.strip(b"\0"),
                living is not None,
            )
        header = scanned.header
        if (header.key, header.epoch, header.number) != (key, file.epoch, file.number):
            raise CheckpointCorruptedError(
                f"{self._path(key, file.name)} is segment {header.number} of epoch {header.epoch} of key "
                f"{header.key!r}, copied here; put back the right file"
            )
        return scanned

    # -- retiring

    def trim_journal(self, key: str, upto: int, epoch: int) -> None:
        """Delete segments, oldest first."""
        if faults.active:
            faults.hit("file.journal.trim_begin")
        self._look_at_fence(key, epoch)
        files = self._segments(key)
        try:
            firsts = [self._first_position(key, file) for file in files]
            for index, file in enumerate(files):
                # A segment ends where the next one that was used begins; the last one is in use.
                end = next((first for first in firsts[index + 1 :] if first is not None), None)
                if end is None or end > upto + 1:
                    break
                remove_file(self._path(key, file.name))
                if faults.active:
                    faults.hit("file.journal.trimmed")
        except OSError as error:
            raise self._failed("trim the journal", key, error) from error

    def _first_position(self, key: str, file: SegmentFile) -> int | None:
        """Where a segment begins; None if it holds nothing that says so."""
        try:
            with open(self._path(key, file.name), "rb", buffering=0) as opened:
                return segments.first_position(opened.read)
        except CheckpointFormatError:  # never written, or damaged: the reader says which
            return None

    # -- blobs

    def _blobs(self, key: str) -> dict[str, str]:
        return {m[2]: name for name in self._names(key) if (m := _BLOB.fullmatch(name))}

    def put_blob(
        self, key: str, epoch: int, name: str, parts: Sequence[Buffer], *, durability: Durability = "power"
    ) -> None:
        """Make a blob durable."""
        blobs.check_name(name)
        if faults.active:
            faults.hit("file.blob.begin")
        if name in self._blobs(key):
            raise CheckpointSaveError(f"blob {name} of checkpoint key {key!r} in {self.url} exists already")
        tag, final = f"{epoch:010}-blob", f"blob-{epoch:010}-{name}"
        durable = durability == "power"
        self._publish(key, epoch, tag, final, blobs.encode(parts), "file.blob", durable=durable)

    def read_blob(self, key: str, name: str) -> bytes:
        """Return a blob."""
        self._check_trust(key)
        blobs.check_name(name)
        file_name = self._blobs(key).get(name)
        if file_name is None:
            raise FileNotFoundError(2, f"no blob {name} of checkpoint key {key!r} in {self.url}")
        fd = os.open(self._path(key, file_name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        with open(fd, "rb", buffering=0) as file:
            return blobs.decode(file.read())

    def list_blobs(self, key: str) -> list[str]:
        """Return the names of all blobs."""
        return sorted(self._blobs(key))

    def delete_blobs(self, key: str, names: Collection[str], epoch: int) -> None:
        """Delete blobs."""
        if not names:
            return
        self._look_at_fence(key, epoch)
        have = self._blobs(key)
        try:
            for name in sorted(names):
                if blobs.check_name(name) in have:
                    remove_file(self._path(key, have[name]))
                    if faults.active:
                        faults.hit("file.blob.deleted")
        except OSError as error:
            raise self._failed("delete blobs", key, error) from error

    def usage(self, key: str) -> Mapping[str, int]:
        """Return the bytes of all files by kind."""
        sizes = dict.fromkeys(("snapshots", "journal", "blobs", "other"), 0)
        for name in self._names(key):
            kind = {"snap": "snapshots", "jour": "journal", "blob": "blobs"}.get(name[:4], "other")
            try:
                sizes[kind] += os.lstat(self._path(key, name)).st_size
            except FileNotFoundError:  # deleted since it was listed
                pass
        return sizes
