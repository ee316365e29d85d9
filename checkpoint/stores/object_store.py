"""A `Store` over any `Medium` of objects: S3, fsspec, the internal key-value store, a store actor.

Objects are immutable. What must exist once (a claim, a seal, a snapshot's manifest) is created exclusively
under its final name, in one request; a large snapshot's bytes go up before it under a name that nobody else
uses. Names are in `names`. Invariants: a stale epoch may leave objects behind, and none of them counts (see
`lineage`); claims go lowest first and one by one, so that no claim goes before a lower one; a failing medium
is `CheckpointSaveError` or `CheckpointStoreError` and never looks like an absent or a damaged snapshot.
"""

from __future__ import annotations

import functools
import io
import threading
import time
from collections.abc import Callable, Sequence
from typing import BinaryIO, cast

from .. import faults
from ..errors import (
    CheckpointFormatError,
    CheckpointSaveError,
    CheckpointStoreError,
    FencedError,
    UnsupportedStoreError,
)
from ..keys import from_file_name, to_file_name
from ..lineage import SnapshotName
from . import leases, names
from .leases import Lease
from .object_file import ObjectFile
from .object_journals import JOURNAL_RETRY, ObjectJournals
from .objects import Bytes, Entry, Medium, Objects, Retry, new_token, pack, unpack
from .outage import Outage
from .protocol import Listing

CONDITIONAL = "conditional"
BEST_EFFORT = "best effort"
_PROBERS = 3
_PROBE_KEPT_S = 3600.0


def _reached(point: str) -> None:
    if faults.active:
        faults.hit(point)


class ObjectStore(ObjectJournals):
    """Snapshots as objects.

    Parameters
    ----------
    medium : Medium
    retry : Retry, optional
        Bound on the attempts of each request.
    sleep : callable, optional
        Waits between attempts.
    commit_interval_s : float
        Least time between two journal objects.
    """

    def __init__(
        self,
        medium: Medium,
        retry: Retry | None = None,
        sleep: Callable[[float], None] = time.sleep,
        commit_interval_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.objects = Objects(medium, retry, sleep)
        self.commit_interval_s = commit_interval_s
        self._journal_retry = retry or JOURNAL_RETRY
        self._medium = medium
        self._probe = threading.Lock()
        self._conditional: bool | None = None  # None: not tried yet
        self._claims: dict[tuple[str, int], bytes] = {}  # those made here, as they were written
        self._clock, self._sleep = clock, sleep
        self._lease_s: float | None = None
        self._leases: dict[tuple[str, int], Lease] = {}
        self._ended: set[tuple[str, int]] = set()
        self.keeps_leases = True
        """Whether a thread renews them; else `Lease.renew` is called by somebody."""

    @property
    def url(self) -> str:
        """The URL of the medium."""
        return self._medium.url

    @property
    def survives(self) -> frozenset[str]:
        """What the medium survives."""
        return self._medium.survives

    # -- fencing -----------------------------------------------------------------------------------

    def fencing(self, key: str) -> str:
        """Return how claims of `key` exclude each other, after trying it there once.

        Returns
        -------
        str
            `CONDITIONAL`: of several that create one object at once, one succeeds. `BEST_EFFORT`: the
            medium replaces objects whatever it is told; two that claim at the same instant may both believe
            to hold the key until one of them saves.
        """
        with self._probe:
            if self._conditional is None:
                self._conditional = self._try_creation(to_file_name(key))
                self.objects.exclusive = self._conditional
        return CONDITIONAL if self._conditional else BEST_EFFORT

    def require_fencing(self, key: str) -> None:
        """Raise `UnsupportedStoreError` unless exclusive creation works under `key` or a lease is allowed."""
        if self.fencing(key) != CONDITIONAL and self._lease_s is None:
            raise UnsupportedStoreError(
                f"exactly_once needs a store that creates an object only if there is none, and {self.url} "
                f"replaced one (tried below {key!r}). Use s3:// or a file:// store, or snapshots, "
                'or allow fencing="lease", which holds the key for a time only '
                "(docs/checkpoint-guide.md has what that costs)"
            )

    # -- leases ------------------------------------------------------------------------------------

    def allow_lease(self, lease_s: float) -> None:
        """Where exclusive creation does not work, hold keys by leases of this term, in seconds."""
        self._lease_s = lease_s

    def lease_of(self, key: str, epoch: int) -> Lease | None:
        """Return the lease of a claim made here; None where none is needed."""
        return self._leases.get((key, epoch))

    def is_leased(self, key: str) -> bool:
        """Whether the holder of a key holds it by a lease."""
        return self.fencing(key) != CONDITIONAL and leases.look(self.objects, to_file_name(key)) is not None

    def lease_ran_out(self, key: str) -> bool:
        """Watch the lease of a key for its term, unless it is renewed before."""
        return leases.wait_expired(self.objects, to_file_name(key), self._clock, self._sleep)

    def holder_ended(self, key: str, epoch: int) -> None:
        """The holder of `epoch` is known to have ended: the next claim does not wait for its lease."""
        self._ended.add((key, epoch))

    def _take_lease(self, key: str, epoch: int) -> bool:
        """After a claim: hold the key, if that needs a lease. False: another one was quicker."""
        if self.fencing(key) == CONDITIONAL:
            return True
        directory = to_file_name(key)
        said = leases.look(self.objects, directory)
        lease_s = self._lease_s or (said.lease_s if said is not None else None)
        if lease_s is None:
            return True
        ended = said if said is not None and (key, said.epoch) in self._ended else None
        check = functools.partial(self._check_claims, key, epoch)
        lease = Lease(self.objects, directory, epoch, lease_s, check, self._clock, self._sleep)
        try:
            if not lease.acquire(ended):
                return False
            check()
        except FencedError:
            return False
        self._leases[key, epoch] = lease
        if self.keeps_leases:
            lease.keep()
        return True

    def _check_lease(self, key: str, epoch: int) -> None:
        lease = self._leases.get((key, epoch))
        if lease is not None:
            lease.check()

    def check_exactly_once(self) -> None:
        """Raise `UnsupportedStoreError` unless exclusive creation works below the store's prefix."""
        self.require_fencing(".probe")

    def _try_creation(self, directory: str) -> bool:
        """Several create one object at once: exactly one succeeds."""
        name = f"{directory}/probe-{int(time.time()):010}-{new_token()}"
        start = threading.Barrier(_PROBERS)
        won: list[bool | Exception] = []

        def create() -> None:
            start.wait()
            try:
                won.append(self.objects.create(name, pack("probe", b"", new_token())))
            except Exception as error:
                won.append(error)

        threads = [threading.Thread(target=create, daemon=True) for _ in range(_PROBERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for outcome in won:
            if isinstance(outcome, NotImplementedError):
                return False
            if isinstance(outcome, Exception):
                raise self._failed("probe exclusive creation", directory, outcome) from outcome
        self.objects.delete([name])
        return won.count(True) == 1

    def _create(self, key: str, name: str, data: bytes) -> bool:
        if self.fencing(key) == CONDITIONAL:
            return self.objects.create(name, data)
        return self.objects.replace_if_absent(name, data)

    def _journal_requests(self, outage: Outage) -> Objects:
        """Return what sits out an outage, and tells of it."""
        objects = Objects(self._medium, self._journal_retry, self._sleep, outage)
        objects.exclusive = self.objects.exclusive
        return objects

    def _claimed(self, key: str, objects: Objects | None = None) -> list[int]:
        listed = self._list(key, "epoch-", objects)
        found = [names.numbers(e.name, "epoch-", ".claim", 1) for e in listed]
        return sorted(numbers[0] for numbers in found if numbers)

    def _check_fence(self, key: str, epoch: int) -> None:
        """Raise `FencedError` unless `epoch` holds the key."""
        self._check_claims(key, epoch)
        self._check_lease(key, epoch)

    def _check_claims(self, key: str, epoch: int) -> None:
        """Raise `FencedError` unless `epoch` is the highest claimed one, and the claim is as made here."""
        claims = self._claimed(key)
        if claims[-1:] != [epoch]:
            raise self._fenced(key, epoch, claims)
        mine = self._claims.get((key, epoch))
        if self._conditional is False and mine is not None and self._replaced(key, epoch, mine):
            raise self._fenced(key, epoch, [*claims, epoch])

    def _replaced(self, key: str, epoch: int, mine: bytes) -> bool:
        return self.objects.read(self._path(key, names.claim_name(epoch))) != mine

    def _look_at_fence(self, key: str, epoch: int, objects: Objects | None = None) -> None:
        """Like `_check_fence` by two cheap requests. May miss a successor while several claim at once."""
        for claim, wanted in ((epoch + 1, False), (epoch, True)):
            size = (objects or self.objects).size(self._path(key, names.claim_name(claim)))
            if (size is not None) != wanted:
                raise self._fenced(key, epoch, self._claimed(key, objects))
        self._check_lease(key, epoch)

    def _fenced(self, key: str, epoch: int, claims: list[int]) -> FencedError:
        if claims and claims[-1] >= epoch:
            return FencedError(
                f"epoch {epoch} of checkpoint key {key!r} in {self.url} was superseded by epoch "
                f"{claims[-1]}: another incarnation holds the key, and what this one saves no longer counts"
            )
        return FencedError(
            f"there is no claim of epoch {epoch} on checkpoint key {key!r} in {self.url}: the key was removed"
        )

    # -- listing and reading -----------------------------------------------------------------------

    def _path(self, key: str, name: str) -> str:
        return f"{to_file_name(key)}/{name}"

    def keys(self) -> list[str]:
        """Return all keys, sorted."""
        try:
            found = self.objects.directories()
        except CheckpointStoreError as error:
            raise CheckpointStoreError(f"checkpoint store {self.url} cannot be listed: {error}") from error
        return sorted(key for name in found if (key := from_file_name(name)) is not None)

    def _list(self, key: str, stem: str = "", objects: Objects | None = None) -> list[Entry]:
        directory = to_file_name(key)
        try:
            return (objects or self.objects).list(directory, stem)
        except CheckpointStoreError as error:
            raise CheckpointStoreError(
                f"checkpoint key {key!r} in {self.url} cannot be listed: {error}"
            ) from error

    def scan(self, key: str) -> Listing:
        """List one key."""
        claims, seals, snapshots = [], [], []
        for name, _ in self._list(key):
            if found := names.numbers(name, "epoch-", ".claim", 1):
                claims.append(found[0])
            elif found := names.numbers(name, "epoch-", ".seal", 1):
                seals.append(found[0])
            elif found := names.numbers(name, "snap-", ".ckpt", 2):
                snapshots.append(SnapshotName(*found))
        return Listing(sorted(claims), sorted(seals), sorted(snapshots))

    def _read(self, key: str, name: str, kind: str) -> tuple[dict[str, object], bytes]:
        path = self._path(key, name)
        try:
            return unpack(self.objects.read(path), kind)
        except CheckpointFormatError as error:
            raise CheckpointFormatError(f"{self.url}/{path}: {error}") from error
        except CheckpointStoreError as error:
            raise CheckpointStoreError(
                f"checkpoint key {key!r} in {self.url} cannot be read ({path}): {error}"
            ) from error

    def read_claim(self, key: str, epoch: int) -> bytes:
        """Return the record of a claim."""
        return self._read(key, names.claim_name(epoch), "claim")[1]

    def read_seal(self, key: str, epoch: int) -> bytes:
        """Return the record of a seal."""
        return self._read(key, names.seal_name(epoch), "seal")[1]

    def read(self, key: str, name: SnapshotName) -> BinaryIO:
        """Open a snapshot for reading."""
        fields, payload = self._read(key, names.snapshot_name(name), "snapshot")
        if "blob" not in fields:
            return io.BytesIO(payload)
        blob = self._path(key, str(fields["blob"]))
        length = cast(int, fields["blob_length"])
        found = self.objects.size(blob)
        if found is None:
            raise FileNotFoundError(
                2, "the manifest is there, and what it names is not", f"{self.url}/{blob}"
            )
        if found != length:
            raise CheckpointFormatError(f"truncated: {blob} has {found} bytes where {length} were written")
        return cast(BinaryIO, ObjectFile(self.objects, blob, length))

    # -- writing -----------------------------------------------------------------------------------

    def _failed(self, what: str, key: str, error: Exception) -> CheckpointSaveError:
        return CheckpointSaveError(
            f"cannot {what} under checkpoint key {key!r} in {self.url}: {error}. "
            "What was saved before is untouched"
        )

    def claim(self, key: str, epoch: int, record: bytes) -> bool:
        """Publish `epoch` by exclusive creation."""
        _reached("object.claim.begin")
        data = pack("claim", record, new_token())
        try:
            if not self._create(key, self._path(key, names.claim_name(epoch)), data):
                return False
            _reached("object.claim.created")
            self._claims[key, epoch] = data
            if not self._take_lease(key, epoch):
                return False
            self._fence_if_journaled(key, epoch)
            return self._claimed(key)[-1:] == [epoch]
        except CheckpointStoreError as error:  # the number may be taken, and stays so
            raise self._failed("claim", key, error) from error

    def seal(self, key: str, epoch: int, record: bytes) -> None:
        """Publish which snapshots are this epoch's past."""
        _reached("object.seal.begin")
        name = names.seal_name(epoch)
        try:
            self._look_at_fence(key, epoch)
            if not self._create(key, self._path(key, name), pack("seal", record, new_token())):
                raise CheckpointSaveError(f"{self.url}/{self._path(key, name)} exists already")
            _reached("object.seal.created")
            self._check_fence(key, epoch)
        except CheckpointStoreError as error:
            raise self._failed("seal", key, error) from error

    def put(self, key: str, name: SnapshotName, parts: Sequence[Bytes]) -> None:
        """Make a snapshot durable."""
        _reached("object.put.begin")
        self._check_size(key, parts)
        try:
            self._look_at_fence(key, name.epoch)
            manifest = self._upload(key, name, parts)
            if not self._create(key, self._path(key, names.snapshot_name(name)), manifest):
                self._check_fence(key, name.epoch)
                raise CheckpointSaveError(
                    f"snapshot {name.id} of checkpoint key {key!r} exists already in {self.url}; snapshots "
                    "are never overwritten"
                )
            _reached("object.put.created")
            self._check_fence(key, name.epoch)
        except CheckpointStoreError as error:
            raise self._failed(f"save snapshot {name.id}", key, error) from error
        _reached("object.put.fence_rechecked")

    def _check_size(self, key: str, parts: Sequence[Bytes]) -> None:
        limit = self._medium.limit_bytes
        length = sum(len(part) for part in parts)
        if limit is not None and length > limit:
            raise CheckpointSaveError(
                f"a snapshot of {length} bytes under checkpoint key {key!r} does not fit into {self.url}, "
                f"which takes at most {limit} bytes each. Use a file:// or s3:// store for larger states"
            )

    def _upload(self, key: str, name: SnapshotName, parts: Sequence[Bytes]) -> bytes:
        """Return the manifest, after what it names is there."""
        token = new_token()
        length = sum(len(part) for part in parts)
        if length <= self._medium.inline_bytes:
            return pack("snapshot", b"".join(parts), token)
        blob = names.snapshot_blob_name(name, token)
        path = self._path(key, blob)
        _reached("object.put.blob_begin")
        try:
            self.objects.upload(path, parts)
        except CheckpointStoreError:
            self._forget(path)
            raise
        _reached("object.put.blob_written")
        return pack("snapshot", b"", token, blob=blob, blob_length=length)

    def _forget(self, path: str) -> None:
        """Delete a blob that no manifest will name; the next epoch sweeps it if that is not possible now."""
        try:
            self._medium.delete([path])
        except CheckpointStoreError:  # the error that led here is the one to report
            pass

    def delete(self, key: str, snapshots: Sequence[SnapshotName], epoch: int) -> None:
        """Delete snapshots, oldest first: the manifest, then what it names."""
        if not snapshots:
            return
        _reached("object.delete.begin")
        try:
            self._look_at_fence(key, epoch)
            for name in sorted(snapshots):
                blobs = self._blobs_of(key, name)
                self.objects.delete([self._path(key, names.snapshot_name(name))])
                _reached("object.delete.manifest_gone")
                self.objects.delete(blobs)
        except CheckpointStoreError as error:
            raise self._failed("delete", key, error) from error
        _reached("object.delete.done")

    def _blobs_of(self, key: str, name: SnapshotName) -> list[str]:
        stem = names.snapshot_blob_name(name, "")
        directory, _, stem = self._path(key, stem).rpartition("/")
        if self._medium.limit_bytes is not None:  # everything is one object there
            return []
        return [f"{directory}/{entry.name}" for entry in self.objects.list(directory, stem)]

    def settle(self, key: str, epoch: int) -> None:
        """Forget the epochs before, and what their writers left unfinished."""
        _reached("object.settle.begin")
        try:
            self._check_fence(key, epoch)
            listing = self.scan(key)
            stale = [names.seal_name(e) for e in listing.seals if e < epoch]
            stale += [names.claim_name(e) for e in listing.claims if e < epoch]
            for name in stale:
                self.objects.delete([self._path(key, name)])
                _reached("object.settle.dropped")
            self._sweep(key, epoch)
        except CheckpointStoreError as error:
            raise self._failed("settle", key, error) from error
        _reached("object.settle.done")

    def _sweep(self, key: str, below: int) -> None:
        directory = to_file_name(key)
        self.objects.abort_uploads(directory, lambda name: _epoch_of_blob(name) < below)
        snapshots = set(self.scan(key).snapshots)
        doomed = []
        for entry in self.objects.list(f"{directory}/blob", "snap-"):
            found = names.numbers(entry.name, "snap-", "", 2)
            if found and found[0] < below and SnapshotName(*found) not in snapshots:
                doomed.append(f"{directory}/blob/{entry.name}")
        doomed += self._orphans(key, below)
        for stem in ("life-", "watch-"):
            for entry in self._list(key, stem):
                if (names.numbers(entry.name, stem, "", 1) or (below,))[0] < below:
                    doomed.append(f"{directory}/{entry.name}")
        for entry in self._list(key, "probe-"):
            found = names.numbers(entry.name, "probe-", "", 1)
            if found and found[0] < time.time() - _PROBE_KEPT_S:
                doomed.append(f"{directory}/{entry.name}")
        self.objects.delete(doomed)

    def remove(self, key: str) -> None:
        """Remove a key with all that it holds: the newest snapshot and the claims last."""
        directory = to_file_name(key)
        try:
            self.objects.abort_uploads(directory, lambda _: True)
            listing = self.scan(key)
            for snapshot in listing.snapshots:
                self.objects.delete([self._path(key, names.snapshot_name(snapshot))])
            rest = [entry.name for entry in self.objects.walk(directory)]
            self.objects.delete([name for name in rest if not name.endswith(".claim")])
            for epoch in listing.claims:
                self.objects.delete([self._path(key, names.claim_name(epoch))])
            self.objects.delete([entry.name for entry in self.objects.walk(directory)])
        except CheckpointStoreError as error:
            raise self._failed("remove", key, error) from error


def _epoch_of_blob(name: str) -> int:
    last = name.rpartition("/")[2]
    found = names.numbers(last, "snap-", "", 1) or names.numbers(last, "data-", "", 1)
    return found[0] if found else 0
