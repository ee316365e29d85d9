"""Counts recoveries that failed, in the store: after three of the same actor and code, it is *parked*.

A parked actor stays down, whatever restarts it has left, until somebody has changed something: an actor that
is created anew, and other code, are tried again. Every error that a restore or replay raises counts, also
one that another attempt would hardly get past: the engine starts the actor again, which takes a fraction of
a second, and nobody has to decide which errors can pass. Three exceptions: what says that nothing was tried
(`FINAL`) ends the actor at once; what the store alone is to blame for (`MEDIUM`) is tried for as long as it
takes; and a recorded call that ends each process that runs it again (`watch`) parks the actor by itself,
since that was counted already. The count ends with the first recovery that succeeds.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from .errors import (
    CheckpointCaptureError,
    CheckpointError,
    CheckpointFormatError,
    CheckpointKeyInUseError,
    CheckpointLoadError,
    CheckpointNotFoundError,
    CheckpointOptionError,
    CheckpointParkedError,
    CheckpointSaveError,
    CheckpointStoreError,
    FencedError,
    ReplayCrashedError,
)
from .format import decode_record
from .keys import EPHEMERAL_PREFIX
from .snapshots import present
from .stores.protocol import Store
from .watch import after_death, decode

if TYPE_CHECKING:
    from .host import Host
    from .snapshots import SnapshotLog

PARK_AFTER = 3
MEDIUM = (CheckpointSaveError, CheckpointStoreError)
"""Failures of the store; they say nothing of the state and the code."""
FINAL = (
    FencedError,
    CheckpointKeyInUseError,
    CheckpointNotFoundError,
    CheckpointOptionError,
    CheckpointParkedError,
)
"""Another attempt is not due: the key is somebody else's, what was asked for is not there or not possible.
`NotSupportedError` is of the same kind."""
_PREFIX = "failed-restore-"


def may_pass(error: BaseException, first: bool) -> bool:
    """Whether the engine starts the actor again, if it may, after `engine.open` has raised `error`.

    `first`: in the first process of the actor, whose maker is told at once of a store that is not there and
    of a state that cannot be saved.
    """
    if _is_final(error) or not isinstance(error, Exception):
        return False
    return not (first and isinstance(error, (*MEDIUM, CheckpointCaptureError)))


def _is_final(error: BaseException) -> bool:
    from ftray.exceptions import NotSupportedError

    return isinstance(error, (*FINAL, NotSupportedError))


def _failures(store: Store, key: str, names: Sequence[str] | None = None) -> list[dict[str, Any]]:
    found = []
    for name in store.list_blobs(key) if names is None else names:
        if not name.startswith(_PREFIX):
            continue
        with contextlib.suppress(FileNotFoundError):  # its holder forgets it just now
            found.append(json.loads(store.read_blob(key, name)))
    return sorted(found, key=lambda failure: int(failure["epoch"]))


def causes(store: Store, key: str) -> list[str]:
    """Return why recoveries have failed since the last one that succeeded, oldest first."""
    return [str(failure["cause"]) for failure in _failures(store, key)]


def state(store: Store, key: str) -> tuple[list[str], bool]:
    """Return `causes`, and whether the actor that has failed last is parked."""
    failures = _failures(store, key)
    last = failures[-1:]
    same = _of(failures, str(last[0]["actor"]), int(last[0]["code_version"])) if last else []
    return [str(failure["cause"]) for failure in failures], _too_many(same)


def _of(failures: Sequence[dict[str, Any]], actor: str, code_version: int) -> list[dict[str, Any]]:
    return [f for f in failures if (f["actor"], f["code_version"]) == (actor, code_version)]


def _too_many(same: Sequence[dict[str, Any]]) -> bool:
    return len(same) >= PARK_AFTER or any(failure.get("parked") for failure in same)


def check(store: Store, key: str, actor: str, code_version: Callable[[], int]) -> None:
    """Raise `CheckpointParkedError` if this actor with this code is parked."""
    names = [name for name in store.list_blobs(key) if name.startswith(_PREFIX)]
    if not names:
        return
    same = _of(_failures(store, key, names), actor, code_version())
    if _too_many(same):
        raise parked(store, key, str(same[-1]["cause"]))


def parked(store: Store, key: str, cause: str) -> CheckpointParkedError:
    """Return the error that says why an actor stays down."""
    then = "correct the cause and create the actor anew"
    if key.startswith(EPHEMERAL_PREFIX):  # nobody can ask for this key again
        then = (
            "the actor has no name, so begin another one from it with ftray.checkpoint.export and "
            "ftray.checkpoint.restore, or let ftray.checkpoint.prune remove it when the session is over"
        )
    error = CheckpointParkedError(
        f"checkpoint key {key!r} in {store.url}: recovery failed {PARK_AFTER} times, so the actor is parked. "
        f"Last cause: {cause}. What was saved is untouched: {then}"
    )
    error.key, error.store, error.cause = key, store.url, cause
    return error


def note(
    store: Store,
    key: str,
    epoch: int,
    actor: str,
    code_version: int,
    error: BaseException,
    failed: int | None = None,
) -> bool:
    """Write a failure down, by default of the own epoch; returns whether it was the last one allowed."""
    failed = failed or epoch
    if _is_final(error) or isinstance(error, MEDIUM):  # the engine does not try again, or as long as it takes
        return False
    record = {
        "epoch": failed,
        "actor": actor,
        "code_version": code_version,
        "cause": said(error),
        "parked": isinstance(error, ReplayCrashedError),
    }
    store.put_blob(key, epoch, f"{_PREFIX}{failed}", [json.dumps(record).encode()], durability="process")
    return _too_many(_of(_failures(store, key), actor, code_version))


def said(error: BaseException) -> str:
    """Return a cause as people read it, and what it came from."""
    text = f"{type(error).__name__}: {error}"
    return text[:4000]


def among(names: Sequence[str]) -> bool:
    """Whether some of a key's blobs are notes of failures."""
    return any(name.startswith(_PREFIX) for name in names)


def forget(store: Store, key: str, epoch: int) -> None:
    """A recovery has succeeded."""
    names = [name for name in store.list_blobs(key) if name.startswith(_PREFIX)]
    if names:
        store.delete_blobs(key, names, epoch)


def _count_death(log: SnapshotLog, host: Host, actor: str, code_version: Callable[[], int]) -> None:
    """The process before this one may have ended itself on the way: one more failure, which nobody has noted.

    One that others have ended gets further the next time; one that died while it ran a recorded call again
    is the watch's, which can tell the call.
    """
    fault = host.predecessor_fault() if host.is_reconstructed else ""
    before = log.epoch - 1
    if not fault or present(log.store, log.key).sealed.get("epoch") == before:
        return
    if f"{_PREFIX}{before}" in log.store.list_blobs(log.key) or _claimant(log, before) != actor:
        return
    if after_death(decode(log.store.read_watch(log.key))).too_many:
        return
    error = CheckpointLoadError(f"the process that restored it ended itself: {fault}")
    if note(log.store, log.key, log.epoch, actor, code_version(), error, before):
        raise parked(log.store, log.key, said(error)) from error


def _claimant(log: SnapshotLog, epoch: int) -> object:
    try:
        return decode_record(log.store.read_claim(log.key, epoch)).get("actor")
    except (CheckpointFormatError, OSError):
        return None


@contextmanager
def counted(log: SnapshotLog, host: Host, code_version: Callable[[], int]) -> Iterator[None]:
    """A recovery of a key that was claimed: an error in it is noted, and the last one allowed parks."""
    actor = host.identity.unique_id
    _count_death(log, host, actor, code_version)
    try:
        yield
    except Exception as error:
        if _noted(log, actor, code_version, error):
            raise parked(log.store, log.key, said(error)) from error
        raise


def _noted(log: SnapshotLog, actor: str, code_version: Callable[[], int], error: Exception) -> bool:
    try:
        return note(log.store, log.key, log.epoch, actor, code_version(), error)
    except (CheckpointError, OSError):  # the store may be what has failed
        return False
