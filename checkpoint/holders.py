"""Decides whether the holder of a checkpoint key still lives, from the record of its claim.

On one machine a process is told by its boot, its number and when it started. Elsewhere nobody can tell,
unless the engine knows the actor's predecessor, or the holder said that it ended.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any

from . import format
from .errors import CheckpointFormatError, CheckpointKeyInUseError
from .host import Host
from .snapshots import boot_id
from .stores.protocol import Store

open_here: set[str] = set()
"""Nonces of the claims that sessions of this process hold."""
_ENDED = "ended-"


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
    return {"started_ticks": start_ticks(os.getpid()), "nonce": os.urandom(8).hex(), "exactly_once": True}


def check_free(store: Store, key: str, epoch: int, host: Host) -> None:
    """Raise `CheckpointKeyInUseError` if the holder of `epoch` lives and is not this actor's predecessor."""
    try:
        record = format.decode_record(store.read_claim(key, epoch))
    except (CheckpointFormatError, OSError):
        return  # nobody has served under a claim that cannot be read: it is followed by a seal
    if record.get("actor") == host.identity.unique_id and record.get("incarnation", 0) < host.incarnation:
        return  # a restart: the engine has ended the incarnation before
    if f"{_ENDED}{epoch}" in store.list_blobs(key):
        return
    lives = _lives(record)
    if lives is False:
        return
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(record.get("since_unix_s", 0)))
    doubt = "" if lives else " (whether that still lives cannot be told from here)"
    raise CheckpointKeyInUseError(
        f"checkpoint key {key!r} in {store.url} is held by a {record.get('class')} in process "
        f"{record.get('pid')} on "
        f"{record.get('host')}, incarnation {record.get('incarnation')}, since {since}{doubt}. End that "
        "actor, use "
        "another checkpoint_key or actor name or, to take the key from it, takeover=True"
    )


def _lives(record: Mapping[str, Any]) -> bool | None:
    """True, False, or None if that cannot be told from here."""
    if record.get("nonce") in open_here:
        return True
    if record.get("host") != os.uname().nodename:
        return None
    if record.get("boot_id") != boot_id() or record.get("pid") == os.getpid():
        return False
    ticks = start_ticks(int(record.get("pid", 0)))
    return ticks is not None and record.get("started_ticks") in (None, ticks)


def ended(store: Store, key: str, epoch: int) -> None:
    """Note that the holder of `epoch` has ended as planned, for those who cannot see its process."""
    store.put_blob(key, epoch, f"{_ENDED}{epoch}", [b"ended"], durability="process")


def stale_notes(store: Store, key: str, epoch: int) -> list[str]:
    """Return the notes of earlier holders, which the claim of `epoch` has made pointless."""
    return [name for name in store.list_blobs(key) if name.startswith(_ENDED) and name != f"{_ENDED}{epoch}"]
