"""Counts recoveries that failed, in the store: after three of the same actor and code, it stays down.

A failure is an error that a restore or replay raised; a process that was killed meanwhile is none, since the
next one makes progress, nor is a store that is full or away. The count ends with the first recovery that
succeeds, and does not hold for another actor of the same key nor for other code: then somebody has changed
something.
"""

from __future__ import annotations

import json
from typing import Any

from .errors import CheckpointError, CheckpointParkedError, CheckpointSaveError, CheckpointStoreError
from .stores.protocol import Store

PARK_AFTER = 3
MEDIUM = (CheckpointSaveError, CheckpointStoreError)
"""Failures of the store, or of who has lost the key; they say nothing of the state and the code."""
_PREFIX = "failed-restore-"


def _failures(store: Store, key: str) -> list[dict[str, Any]]:
    found = []
    for name in store.list_blobs(key):
        if name.startswith(_PREFIX):
            found.append(json.loads(store.read_blob(key, name)))
    return sorted(found, key=lambda failure: int(failure["epoch"]))


def causes(store: Store, key: str) -> list[str]:
    """Return why recoveries have failed since the last one that succeeded, oldest first."""
    return [str(failure["cause"]) for failure in _failures(store, key)]


def check(store: Store, key: str, actor: str, code_version: int) -> None:
    """Raise `CheckpointParkedError` if this actor with this code has failed too often."""
    same = [f for f in _failures(store, key) if (f["actor"], f["code_version"]) == (actor, code_version)]
    if len(same) >= PARK_AFTER:
        raise parked(store, key, str(same[-1]["cause"]))


def parked(store: Store, key: str, cause: str) -> CheckpointParkedError:
    """Return the error that says why an actor stays down."""
    return CheckpointParkedError(
        f"checkpoint key {key!r} in {store.url}: recovery failed {PARK_AFTER} times, so the actor is parked. "
        "Last cause: "
        f"{cause}. What was saved is untouched: correct the cause and create the actor anew"
    )


def note(store: Store, key: str, epoch: int, actor: str, code_version: int, error: BaseException) -> bool:
    """Write a failure down; returns whether it was the last one allowed."""
    if isinstance(error, MEDIUM):  # the engine tries again, as long as it takes
        return False
    cause = f"{type(error).__name__}: {error}"[:4000]
    record = {"epoch": epoch, "actor": actor, "code_version": code_version, "cause": cause}
    store.put_blob(key, epoch, f"{_PREFIX}{epoch}", [json.dumps(record).encode()], durability="process")
    same = [f for f in _failures(store, key) if (f["actor"], f["code_version"]) == (actor, code_version)]
    return len(same) >= PARK_AFTER


def forget(store: Store, key: str, epoch: int) -> None:
    """A recovery has succeeded."""
    names = [name for name in store.list_blobs(key) if name.startswith(_PREFIX)]
    if names:
        store.delete_blobs(key, names, epoch)


def try_note(store: Store, key: str, epoch: int, actor: str, code_version: int, error: Exception) -> bool:
    """`note`, where the store may be what failed."""
    try:
        return note(store, key, epoch, actor, code_version, error)
    except (CheckpointError, OSError):
        return False
