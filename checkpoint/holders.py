"""Decides whether the holder of a checkpoint key still lives, from the record of its claim.

On one machine a process is told by its boot, its number and when it started. Elsewhere nobody can tell,
unless the engine knows the actor's predecessor, or the holder said that it ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from . import format
from .errors import CheckpointFormatError, CheckpointKeyInUseError
from .host import Host
from .options import Options
from .snapshots import boot_id
from .stores.protocol import Store

open_here: set[str] = set()
"""Nonces of the claims that sessions of this process hold."""
_ENDED = "ended-"
LEASE = "lease"
"""Value of a claim's field ``fencing`` where the holder has to renew it."""


def start_ticks(pid: int) -> int | None:
    """Return when a process of this machine started, in clock ticks since boot; None if it is not there."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def identify(host: Host) -> dict[str, Any]:
    """Return what the claim of an exactly-once actor says of its holder."""
    return {"nonce": os.urandom(8).hex(), "exactly_once": True}


def fencing(store: Store, options: Options) -> dict[str, Any]:
    """Return what the claim says of how the key is held: nothing, or that it is by a lease."""
    if options.fencing != LEASE or getattr(store, "fencing", None) is None:
        return {}
    if store.fencing(".probe") == "conditional":  # type: ignore[attr-defined]
        return {}
    return {"fencing": LEASE, "lease_s": options.lease_s}


def tool(name: str, before: Holder | None = None) -> dict[str, Any]:
    """Return what the claim of somebody says who works on a key without running its actor.

    `before`: who held the key; what is known to be gone with its session stays known, whatever becomes of
    the one who works on it.
    """
    gone = before is not None and before.session_lives is False
    return {
        **({"session_pid": 0} if gone else {}),
        "host": os.uname().nodename,
        "pid": os.getpid(),
        "started_ticks": start_ticks(os.getpid()),
        "incarnation": 0,
        "actor": "",
        "class": name,
    }


class Holder(NamedTuple):
    """Who has claimed a key, as far as can be told from here.

    Attributes
    ----------
    epoch : int
    record : mapping
        What the claim says: class, host, pid, incarnation, since_unix_s, ...
    lives : bool or None
        None if that cannot be told from here.
    session_lives : bool or None
        Whether the engine's session still lives, which would restart the actor; None if that is not known.
    abandoned : bool
        Its driver is known to be dead: it will not be answered for again, and ends as soon as it is told.
    """

    epoch: int
    record: Mapping[str, Any]
    lives: bool | None
    session_lives: bool | None
    abandoned: bool = False

    def __str__(self) -> str:
        record = self.record
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.get("since_unix_s", 0)))
        doubt = "" if self.lives is not None else " (whether that still lives cannot be told from here)"
        return (
            f"a {record.get('class')} in process {record.get('pid')} on {record.get('host')}, "
            f"incarnation {record.get('incarnation')}, since {since}{doubt}"
        )


def look(store: Store, key: str, epoch: int) -> Holder | None:
    """Return who claimed `epoch`; None if the claim cannot be read, under which nobody has served."""
    try:
        record = format.decode_record(store.read_claim(key, epoch))
    except (CheckpointFormatError, OSError):
        return None
    lives = False if f"{_ENDED}{epoch}" in store.list_blobs(key) else _lives(record)
    return Holder(epoch, record, lives, _session_lives(record), _abandoned(record))


def last_holder(store: Store, key: str) -> Holder | None:
    """Return who made the newest claim that can be read: whoever died in the midst of a later one is none."""
    for epoch in reversed(store.scan(key).claims):
        holder = look(store, key, epoch)
        if holder is not None:
            return holder
    return None


def check_free(store: Store, key: str, epoch: int, host: Host) -> None:
    """Raise `CheckpointKeyInUseError` if the holder of `epoch` lives and is not this actor's predecessor."""
    holder = look(store, key, epoch)
    if holder is None:
        return
    if not _precedes(holder.record, host):  # else the engine has ended the incarnation before
        if holder.abandoned and holder.lives is not False:
            return  # who runs its driver again need not wait for its end: the fence holds
        if holder.lives is None and holder.record.get("fencing") == LEASE:
            holder = holder._replace(lives=not store.lease_ran_out(key))  # type: ignore[attr-defined]
        check_ended(store, key, holder)
    if holder.record.get("fencing") == LEASE:
        store.holder_ended(key, epoch)  # type: ignore[attr-defined]


def _precedes(record: Mapping[str, Any], host: Host) -> bool:
    same = record.get("actor") == host.identity.unique_id
    return bool(same and record.get("incarnation", 0) < host.incarnation)


def check_ended(store: Store, key: str, holder: Holder | None) -> None:
    """Raise `CheckpointKeyInUseError` unless the holder is known to have ended."""
    if holder is None or holder.lives is False:
        return
    raise CheckpointKeyInUseError(
        f"checkpoint key {key!r} in {store.url} is held by {holder}. End that actor, use another "
        "checkpoint_key or actor name or, to take the key from it, takeover=True"
    )


def _lives(record: Mapping[str, Any]) -> bool | None:
    """True, False, or None if that cannot be told from here."""
    if record.get("nonce") in open_here:
        return True
    if record.get("pid") == os.getpid() and record.get("host") == os.uname().nodename:
        return False
    return _process_lives(record, "pid", "started_ticks")


def _abandoned(record: Mapping[str, Any]) -> bool:
    if "driver_pid" not in record:
        return False  # a detached actor outlives its driver, and other engines do not say
    return _process_lives(record, "driver_pid", "driver_ticks") is False


def _session_lives(record: Mapping[str, Any]) -> bool | None:
    if "session_pid" not in record:
        return (
            False if _process_lives(record, "pid", "started_ticks") is False and _old_boot(record) else None
        )
    return _process_lives(record, "session_pid", "session_ticks")


def _old_boot(record: Mapping[str, Any]) -> bool:
    return bool(record.get("boot_id") != boot_id())


def _process_lives(record: Mapping[str, Any], pid: str, started: str) -> bool | None:
    if record.get("host") != os.uname().nodename:
        return None
    if _old_boot(record):
        return False
    ticks = start_ticks(int(record.get(pid) or 0))
    return ticks is not None and record.get(started) in (None, ticks)


def ended(store: Store, key: str, epoch: int) -> None:
    """Note that the holder of `epoch` has ended as planned, for those who cannot see its process."""
    store.put_blob(key, epoch, f"{_ENDED}{epoch}", [b"ended"], durability="process")


def stale_notes(store: Store, key: str, epoch: int) -> list[str]:
    """Return the notes of earlier holders, which the claim of `epoch` has made pointless."""
    return [name for name in store.list_blobs(key) if name.startswith(_ENDED) and name != f"{_ENDED}{epoch}"]
