"""What a program does with the checkpoints of an actor from outside: ask for its figures, remove them.

A handle is asked through a read-only method that every actor has, so nothing of the actor changes; a key is
looked up in its store, and needs no actor.
"""

from __future__ import annotations

import os
from typing import Any

from .errors import (
    CheckpointError,
    CheckpointOptionError,
    CheckpointParkedError,
    NoSessionError,
)
from .figures import STATUS_METHOD
from .keyinfo import orphans, remove, remove_orphans
from .reader import open_reader
from .stores import connect
from .stores.protocol import Store
from .wire import engine_of


def status(handle: Any, *, timeout_s: float = 30.0) -> dict[str, Any]:
    """Ask an actor for the figures of its checkpoints.

    The actor answers between two of its methods, as to any call that only reads; nothing is counted or
    journalled. The bytes that the store holds are measured here, not by the actor. Of one that is parked, and
    answers nothing any more, its store tells.

    Parameters
    ----------
    handle : ActorHandle
        Of an actor whose class is `Checkpointable`.
    timeout_s : float
        How long to wait for the answer, in seconds.

    Returns
    -------
    dict
        docs/checkpoint-guide.md has the table.

    Raises
    ------
    NoSessionError
        The actor keeps no checkpoints.
    GetTimeoutError, ActorDiedError
        As of any call.
    """
    method = getattr(handle, STATUS_METHOD, None)
    if method is None and hasattr(handle, "_actor_id"):  # on Ray: others have no such method at all
        raise NoSessionError(f"{handle!r} keeps no checkpoints: its class is not Checkpointable")
    if method is None:
        raise CheckpointOptionError(f"status() takes the handle of an actor, not {handle!r:.100}")
    try:
        found: dict[str, Any] = engine_of(handle).get(method.remote(), timeout=timeout_s)
    except Exception as error:
        parked = _parked(error)
        if parked is None:
            raise
        found = _status_of_parked(parked)
    try:
        found["bytes"] = dict(connect(found["store"]).usage(found["key"]))
        found["journal_bytes"] = found["bytes"]["journal"]
    except (CheckpointError, OSError) as error:  # a store that only the actor reaches
        found["bytes"], found["bytes_error"] = None, f"{type(error).__name__}: {error}"
    return found


def _parked(error: BaseException | None) -> CheckpointParkedError | None:
    """Return why an actor is parked, if that is what its death came from."""
    while error is not None:
        if isinstance(error, CheckpointParkedError) and error.key:
            return error
        error = error.__cause__
    return None


def _status_of_parked(error: CheckpointParkedError) -> dict[str, Any]:
    found: dict[str, Any] = {
        "state": "parked",
        "key": error.key,
        "store": error.store,
        "last_error": error.cause,
        "failed_recoveries": [error.cause],
    }
    try:
        info = open_reader(error.store).describe(error.key)
    except (CheckpointError, OSError):  # a store that only the actor reaches
        return found
    newest = [snapshot.id for snapshot in info.snapshots if snapshot.counts and not snapshot.error][-1:]
    return {
        **found,
        "mode": info.mode,
        "last_snapshot": newest[0] if newest else None,
        "snapshot_age_s": info.snapshot_age_s,
        "failed_recoveries": info.failed_recoveries or found["failed_recoveries"],
    }


def delete(
    handle_or_key: Any,
    *,
    store: str | os.PathLike[str] | Store | None = None,
    takeover: bool = False,
    timeout_s: float = 30.0,
) -> str:
    """Remove a key with its snapshots, journal and blobs; savepoints stay. Returns the key.

    Parameters
    ----------
    handle_or_key : str or ActorHandle
        A checkpoint key (``namespace/name`` of a named actor), or the handle of an actor that lives.
    store : path, URL or Store, optional
        Required with a key.
    takeover : bool
        Also if somebody who lives holds the key: that actor is fenced, ends, and is not restarted.
    timeout_s : float
        How long to wait for the actor's answer, in seconds.

    Raises
    ------
    CheckpointKeyInUseError
        The holder lives, or that cannot be told from here.
    CheckpointNotFoundError
        There is no such key.
    """
    if isinstance(handle_or_key, str):
        if store is None:
            raise CheckpointOptionError("delete() of a key needs store=")
        held = connect(os.fspath(store)) if isinstance(store, (str, os.PathLike)) else store
        remove(held, handle_or_key, takeover)
        return handle_or_key
    if store is not None:
        raise CheckpointOptionError("delete() of a handle takes no store=: the actor knows its own")
    found = status(handle_or_key, timeout_s=timeout_s)
    remove(connect(found["store"]), found["key"], takeover)
    return str(found["key"])


def prune(store: str | os.PathLike[str] | Store) -> list[str]:
    """Remove what unnamed actors of sessions that are gone have left behind.

    An unnamed actor's key goes with the actor; one that is still there was left by a session that was
    killed. A key whose session may live (this machine cannot tell for others) stays. So does that of a member
    of a group of which others may start again; a group of nothing but such keys goes with them.

    Parameters
    ----------
    store : path, URL or Store

    Returns
    -------
    list of str
        The keys that were removed, sorted.

    Raises
    ------
    CheckpointError
        Some could not be removed: says which, and why. All others were.
    """
    held = connect(os.fspath(store)) if isinstance(store, (str, os.PathLike)) else store
    removed, kept = remove_orphans(held, orphans(held))
    if kept:
        reasons = "; ".join(f"{key!r}: {why}" for key, why in sorted(kept.items()))
        raise CheckpointError(
            f"{len(kept)} orphans in {held.url} were not removed: {reasons}. Removed: "
            f"{', '.join(map(repr, removed)) or 'none'}"
        )
    return removed
