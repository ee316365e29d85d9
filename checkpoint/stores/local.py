"""``file://``: snapshots as immutable files on a local disk.

One directory per key (mode 0700), in it (mode 0600):

    epoch-EEEEEEEEEE.claim             exclusive creation: this epoch is taken; the highest one holds the key
    epoch-EEEEEEEEEE.seal              which older snapshots are this epoch's past
    snap-EEEEEEEEEE-SSSSSSSSSSSS.ckpt  a whole snapshot, never changed
    .tmp-EEEEEEEEEE-...                unfinished; swept by the next epoch

Invariants: a final name appears by rename of a file that has been fsynced, and the directory is fsynced
after it; a file whose fsync failed is removed and never retried; an epoch that is not the highest claimed
one publishes nothing that counts and deletes nothing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import BinaryIO

from ftray._core.snapfile import STEPS, Publication, unlink_all

from .. import faults, transfers
from ..errors import CheckpointSaveError, CheckpointStoreError, FencedError, UntrustedStoreError
from ..journal import Buffer
from ..keys import from_file_name, to_file_name
from ..lineage import SnapshotName
from .local_files import (
    CREATE,
    empty_directory,
    file_system,
    fsync_directory,
    fsync_path,
    make_directories,
    remove_file,
    write_all,
)
from .local_journal import LocalJournals, journal_epoch, sweep_probe
from .local_watch import LocalWatches
from .names import claim_name, numbers, seal_name, snapshot_name
from .protocol import Listing

_VOLATILE = frozenset({"tmpfs", "ramfs", "overlay-tmpfs"})
_TRASH = ".trash-"
_HALF_WRITTEN, _WRITTEN = STEPS.index("half_written") + 1, STEPS.index("written") + 1
_RENAMED, _DIR_SYNCED, _LAST = STEPS.index("renamed") + 1, STEPS.index("dir_synced") + 1, len(STEPS)


def _hit(steps: str, step: int) -> None:
    """Reach the fault point of a step of publishing, if files of this kind have it."""
    point = f"{steps}.{STEPS[step - 1]}"
    if faults.active and point in faults.POINTS:
        faults.hit(point)


class LocalStore(LocalJournals, LocalWatches):
    """Snapshots under a directory of the local disk."""

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)

    @property
    def url(self) -> str:
        """``file://`` URL of the directory."""
        from . import _file_url

        return _file_url(self._root)

    @property
    def survives(self) -> frozenset[str]:
        """Process deaths and, unless the directory lies in memory, loss of power."""
        volatile = file_system(self._root) in _VOLATILE
        return frozenset({"process"}) if volatile else frozenset({"process", "power"})

    def _directory(self, key: str) -> str:
        return os.path.join(self._root, to_file_name(key))

    def _path(self, key: str, file_name: str) -> str:
        return os.path.join(self._directory(key), file_name)

    def keys(self) -> list[str]:
        """Return all keys, sorted."""
        try:
            names = os.listdir(self._root)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unlisted(error) from error
        return sorted(key for name in names if (key := from_file_name(name)) is not None)

    def scan(self, key: str) -> Listing:
        """List one key."""
        self._check_trust(key)
        claims, seals, snapshots, journals = [], [], [], set()
        try:
            names = os.listdir(self._directory(key))
        except FileNotFoundError:
            names = []
        except OSError as error:
            raise self._unlisted(error) from error
        for name in names:
            if found := numbers(name, "epoch-", ".claim", 1):
                claims.append(found[0])
            elif found := numbers(name, "epoch-", ".seal", 1):
                seals.append(found[0])
            elif found := numbers(name, "snap-", ".ckpt", 2):
                snapshots.append(SnapshotName(*found))
            elif (epoch := journal_epoch(name)) is not None:
                journals.add(epoch)
        return Listing(sorted(claims), sorted(seals), sorted(snapshots), sorted(journals))

    def _check_trust(self, key: str) -> None:
        """Refuse a directory into which somebody else could have put a pickle of their own."""
        path = self._directory(key)
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unlisted(error) from error
        if not stat.S_ISDIR(status.st_mode):
            raise UntrustedStoreError(
                f"{path} is not a directory; checkpoint keys are directories made by ftray"
            )
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            raise UntrustedStoreError(
                f"{path} belongs to uid {status.st_uid} with mode {stat.S_IMODE(status.st_mode):o}: "
                f"snapshots are unpickled only from a directory that uid {os.geteuid()} owns "
                "and nobody else may write to (chown it, chmod 700)"
            )

    def _unlisted(self, error: OSError) -> CheckpointStoreError:
        return CheckpointStoreError(
            f"checkpoint store {self.url} cannot be listed: {error.strerror} ({error.filename}). "
            "Give a directory that this user may read and write, or one that can be created"
        )

    def _check_fence(self, key: str, epoch: int) -> None:
        """Raise `FencedError` unless `epoch` is the highest claimed one, as the directory lists them."""
        claims = self.scan(key).claims
        if claims[-1:] != [epoch]:
            raise self._fenced(key, epoch, claims)

    def _look_at_fence(self, key: str, epoch: int) -> None:
        """Like `_check_fence`, in two system calls. May miss a successor while several claim at once."""
        if os.path.lexists(self._path(key, claim_name(epoch + 1))) or not os.path.lexists(
            self._path(key, claim_name(epoch))
        ):
            raise self._fenced(key, epoch, self.scan(key).claims)

    def _fenced(self, key: str, epoch: int, claims: list[int]) -> FencedError:
        if claims and claims[-1] > epoch:
            return FencedError(
                f"epoch {epoch} of checkpoint key {key!r} in {self.url} was superseded by epoch "
                f"{claims[-1]}: another incarnation holds the key, and what this one saves no longer counts"
            )
        return FencedError(
            f"the claim of epoch {epoch} on checkpoint key {key!r} in {self.url} is gone: the key was removed"
        )

    def claim(self, key: str, epoch: int, record: bytes) -> bool:
        """Publish `epoch` by exclusive creation."""
        directory = self._directory(key)
        try:
            make_directories(directory)
            self._check_trust(key)
            fd = os.open(self._path(key, claim_name(epoch)), CREATE, 0o600)
        except FileExistsError:
            return False
        except OSError as error:
            raise self._failed("claim", key, error) from error
        try:
            if faults.active:
                faults.hit("file.claim.created")
            try:
                write_all(fd, [record])
            finally:
                os.close(fd)
        except OSError as error:  # the number stays taken
            raise self._failed("claim", key, error) from error
        if faults.active:
            faults.hit("file.claim.written")
        if self.scan(key).claims[-1:] != [epoch]:
            return False
        self._fence_lives(key, epoch)
        return True

    def seal(self, key: str, epoch: int, record: bytes) -> None:
        """Publish which snapshots are this epoch's past."""
        if faults.active:
            faults.hit("file.seal.begin")
        name = seal_name(epoch)
        self._publish(key, epoch, f"{epoch:010}-seal", name, [record], "file.seal", durable=False)

    def settle(self, key: str, epoch: int) -> None:
        """Make claim and seal durable, then remove what is older.

        A restart does not wait for this: without it a loss of power takes back the claim and the seal, but
        neither the older ones nor any snapshot, and all that held epochs is gone as well.
        """
        if faults.active:
            faults.hit("file.settle.begin")
        try:
            for name in (claim_name(epoch), seal_name(epoch)):
                fsync_path(self._path(key, name), os.O_RDONLY)
            if faults.active:
                faults.hit("file.settle.synced")
            fsync_directory(self._directory(key))
            fsync_directory(self._root)  # whoever made the key's directory may have died before this
            if faults.active:
                faults.hit("file.settle.dir_synced")
            self._drop_epochs(key, epoch)
            self._sweep(key, epoch)
        except OSError as error:
            self._check_fence(key, epoch)
            raise self._failed("settle", key, error) from error

    def _drop_epochs(self, key: str, below: int) -> None:
        listing = self.scan(key)
        # Lowest first, so that no claim goes before a lower one: `_look_at_fence` relies on it.
        stale = [seal_name(e) for e in listing.seals if e < below]
        stale += [claim_name(e) for e in listing.claims if e < below]
        stale += [*self._stale_lives(key, below), *self._stale_watches(key, below)]
        for name in stale:
            remove_file(self._path(key, name))
            if faults.active:
                faults.hit("file.settle.dropped")

    def _sweep(self, key: str, below: int) -> None:
        for name in os.listdir(self._directory(key)):
            found = numbers(name, ".tmp-", "", 1)
            if found and found[0] < below:
                remove_file(self._path(key, name))
                if faults.active:
                    faults.hit("file.settle.swept")
        for name in os.listdir(self._root):
            path = os.path.join(self._root, name)
            if name.startswith(_TRASH):
                empty_directory(path)
            else:
                sweep_probe(path)

    def read_claim(self, key: str, epoch: int) -> bytes:
        """Return the record of a claim."""
        with self._open(key, claim_name(epoch)) as file:
            return file.read()

    def read_seal(self, key: str, epoch: int) -> bytes:
        """Return the record of a seal."""
        with self._open(key, seal_name(epoch)) as file:
            return file.read()

    def _open(self, key: str, file_name: str) -> BinaryIO:
        fd = os.open(self._path(key, file_name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        return open(fd, "rb", buffering=0)

    def put(self, key: str, name: SnapshotName, parts: Sequence[Buffer]) -> None:
        """Make a snapshot durable."""
        if faults.active:
            faults.hit("file.put.begin")
        tag = f"{name.epoch:010}-{name.sequence:012}"
        self._publish(key, name.epoch, tag, snapshot_name(name), parts, "file.put", durable=True)
        if faults.active:
            faults.hit("file.put.fence_rechecked")

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
    ) -> None:
        """Temporary file, fsync, look at the fence, rename, fsync of the directory, check the fence."""
        directory = self._directory(key)
        temp = os.path.join(directory, f".tmp-{tag}-{os.getpid()}-{os.urandom(6).hex()}")
        final = os.path.join(directory, final_name)
        file = Publication(directory, temp, final, *self._claims(key, epoch), epoch, parts, durable)
        try:
            sure = self._advance(file, key, epoch, steps, sum(len(part) for part in parts))
        except FencedError:
            remove_file(temp)
            raise
        except (OSError, CheckpointSaveError, CheckpointStoreError) as error:
            # Not after the rename by a stale epoch: its successor may have taken the file as its own past.
            self._give_up(key, epoch, final if file.step >= _RENAMED else temp)
            self._check_fence(key, epoch)
            if isinstance(error, FileExistsError) and file.step == _RENAMED - 1:
                raise CheckpointSaveError(f"{final} exists already; nothing is overwritten here") from None
            if isinstance(error, OSError):
                raise self._failed("save", key, error) from error
            raise
        if file.step < _LAST:
            _hit(steps, _DIR_SYNCED)
            sure = file.run(_LAST)
        if not sure:
            self._check_fence(key, epoch)

    def _advance(self, file: Publication, key: str, epoch: int, steps: str, size: int) -> bool:
        """Go on to the last step, or to the fsync of the directory if steps have fault points or are watched.

        Returns whether the epoch was surely held at the end.
        """
        stepwise = faults.active is not None or transfers.watched()
        end = _DIR_SYNCED if stepwise else _LAST
        sure = True
        while file.step < end:
            sure = file.run(file.step + 1 if stepwise else end)
            if not sure and file.step < _LAST:
                self._look_at_fence(key, epoch)
            if stepwise and file.step in (_HALF_WRITTEN, _WRITTEN):
                transfers.moved(size // 2)
            if stepwise and file.step < _DIR_SYNCED:
                _hit(steps, file.step)
        return sure

    def _claims(self, key: str, epoch: int) -> tuple[str, str]:
        """Paths of the claim of `epoch`, and of the one that would supersede it first."""
        directory = self._directory(key)
        return (
            os.path.join(directory, claim_name(epoch)),
            os.path.join(directory, claim_name(epoch + 1)),
        )

    def _give_up(self, key: str, epoch: int, path: str) -> None:
        if os.path.basename(path).startswith(".tmp-") or self.scan(key).claims[-1:] == [epoch]:
            try:
                remove_file(path)
            except OSError:  # the medium refuses everything: the error that led here is the one to report
                pass

    def _failed(self, what: str, key: str, error: OSError) -> CheckpointSaveError:
        return CheckpointSaveError(
            f"cannot {what} under checkpoint key {key!r} in {self.url}: {error.strerror or error} "
            f"({type(error).__name__}, errno {error.errno}). What was saved before is untouched"
        )

    def read(self, key: str, name: SnapshotName) -> BinaryIO:
        """Open a snapshot for reading."""
        self._check_trust(key)
        return self._open(key, snapshot_name(name))

    def delete(self, key: str, names: Sequence[SnapshotName], epoch: int) -> None:
        """Delete snapshots, oldest first. One that a loss of power brings back is only older."""
        if not names:
            return
        paths = [self._path(key, snapshot_name(name)) for name in sorted(names)]
        claims = self._claims(key, epoch)
        if faults.active:
            faults.hit("file.delete.begin")
        try:
            for some in [[path] for path in paths] if faults.active else [paths]:
                if not unlink_all(some, *claims):
                    self._look_at_fence(key, epoch)
                    raise self._fenced(key, epoch, self.scan(key).claims)
                if faults.active:
                    faults.hit("file.delete.unlinked")
        except OSError as error:
            raise self._failed("delete", key, error) from error

    def remove(self, key: str) -> None:
        """Remove a key with all that it holds: renamed out of sight at once, then deleted."""
        self._fence_all(key)
        trash = os.path.join(self._root, f"{_TRASH}{os.getpid()}-{os.urandom(6).hex()}")
        try:
            os.rename(self._directory(key), trash)
        except FileNotFoundError:
            return
        fsync_directory(self._root)
        empty_directory(trash)
