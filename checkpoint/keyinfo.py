"""What people want to know of one key: who holds it, what history it has, how much space it takes.

Reads the store only, so it works for keys whose actor is gone, hangs, or runs elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from . import holders, membership, parking, recoveries
from .errors import CheckpointError, CheckpointKeyInUseError, CheckpointNotFoundError
from .keys import EPHEMERAL_PREFIX
from .reader import SnapshotInfo
from .snapshots import SnapshotLog, present
from .stores.protocol import Store


class KeyInfo(NamedTuple):
    """One key as its store has it.

    Attributes
    ----------
    key, store : str
    mode : {"snapshot", "exactly_once", "group", ""}
    state : {"held", "free", "unknown", "parked"}
        A process that lives holds the key; none does; that cannot be told from here; recovery of its actor
        has failed too often.
    orphan : bool
        That of an unnamed actor whose session is gone: nobody can ever ask for it again.
    fencing : {"exclusive", "lease"}
        How the holder keeps others away; a lease has to be renewed.
    holder : dict or None
        What the newest claim says: ``class``, ``host``, ``pid``, ``incarnation``, ``since_unix_s`` and
        ``epoch``.
    history : str
        Id of the present history.
    history_number : int or None
        Of an exactly-once key; goes up when somebody takes the key back.
    restored_from : str
        Reason of the oldest snapshot of this history if it is a copy of an older one, else "".
    snapshots : list of SnapshotInfo
    snapshot_age_s : float or None
        Since the newest one that counts was captured.
    journal_position : int or None
        Up to where the newest snapshot that counts contains the journal.
    bytes : dict
        By kind: ``snapshots``, ``journal``, ``blobs``, ``other``.
    failed_recoveries : list of str
        Causes of those since the last one that succeeded.
    recoveries : list of dict
        The newest 16 that succeeded, oldest first: ``epoch``, ``at_unix_s``, ``duration_s`` from the opening
        of the key until its past was sealed, ``snapshot`` that it began from, of an exactly-once actor
        ``calls_replayed`` until then, and ``whole``: False if more of a long replay came after that.
    group : str
        Name of the group that the key is a member of, or is that of.
    members : tuple of str
        Keys of a group's members.
    """

    key: str
    store: str
    mode: str
    state: str
    orphan: bool
    fencing: str
    holder: dict[str, Any] | None
    history: str
    history_number: int | None
    restored_from: str
    snapshots: list[SnapshotInfo]
    snapshot_age_s: float | None
    journal_position: int | None
    bytes: dict[str, int]
    failed_recoveries: list[str]
    recoveries: list[dict[str, Any]]
    group: str = ""
    members: tuple[str, ...] = ()

    @property
    def total_bytes(self) -> int:
        """All that the key takes."""
        return sum(self.bytes.values())


_SAID = ("class", "host", "pid", "incarnation", "since_unix_s")


def describe(store: Store, key: str, snapshots: list[SnapshotInfo]) -> KeyInfo:
    """See `CheckpointReader.describe`."""
    name = membership.group_name(key)
    if name is not None:
        return _describe_group(store, key, name, snapshots)
    here = present(store, key)
    claims = here.listing.claims
    holder = holders.look(store, key, claims[-1]) if claims else None
    counted = [info for info in snapshots if info.counts and not info.error]
    newest = counted[-1] if counted else None
    copied = next((i.reason for i in counted if i.reason.startswith("restored from")), "")
    number = here.sealed.get("history_number")
    failed, parked = parking.state(store, key)
    return KeyInfo(
        key=key,
        store=store.url,
        mode=_mode(number, newest, holder),
        state=_state(holder, parked),
        orphan=_is_orphan_key(store, key),
        fencing=str(holder.record.get("fencing", "exclusive")) if holder is not None else "exclusive",
        holder=_said(holder),
        history=newest.history if newest else str(here.sealed.get("history", "")),
        history_number=None if number is None else int(number),
        restored_from=copied,
        snapshots=snapshots,
        snapshot_age_s=max(0.0, time.time() - newest.created_unix_s) if newest else None,
        journal_position=newest.journal_position if newest else None,
        bytes=dict(store.usage(key)),
        failed_recoveries=failed,
        recoveries=recoveries.of(here.sealed),
        group=membership.group_of(store, key),
    )


def _describe_group(store: Store, key: str, name: str, cuts: list[SnapshotInfo]) -> KeyInfo:
    from . import generations

    here, members = present(store, key), generations.members_of(store, name)
    counted = [info for info in cuts if info.counts and not info.error]
    states = {_state_of(store, member) for member in members}
    return KeyInfo(
        key=key,
        store=store.url,
        mode="group",
        state="held" if "held" in states else "unknown" if "unknown" in states else "free",
        orphan=_is_orphan_group(store, members),
        fencing="exclusive",
        holder=None,
        history=str(here.sealed.get("history", "")),
        history_number=here.listing.newest_epoch,
        restored_from="",
        snapshots=cuts,
        snapshot_age_s=max(0.0, time.time() - counted[-1].created_unix_s) if counted else None,
        journal_position=None,
        bytes=dict(store.usage(key)),
        failed_recoveries=[],
        recoveries=[],
        group=name,
        members=tuple(members),
    )


def _is_orphan_group(store: Store, members: Sequence[str]) -> bool:
    """Whether all members were unnamed, and have gone with their keys or are orphans; or nobody is left."""
    return all(_is_orphan_key(store, member) or not store.scan(member).claims for member in members)


def _state_of(store: Store, key: str) -> str:
    claims = store.scan(key).claims
    return _state(holders.look(store, key, claims[-1]) if claims else None, False)


def _mode(number: object, newest: SnapshotInfo | None, holder: holders.Holder | None) -> str:
    if number is not None or (newest is not None and newest.journal_position is not None):
        return "exactly_once"
    if holder is not None and holder.record.get("exactly_once"):
        return "exactly_once"
    return "snapshot" if newest is not None or holder is not None else ""


def _state(holder: holders.Holder | None, parked: bool) -> str:
    if holder is not None and holder.lives:
        return "held"
    if parked:
        return "parked"
    return "free" if holder is None or holder.lives is False else "unknown"


def _said(holder: holders.Holder | None) -> dict[str, Any] | None:
    if holder is None:
        return None
    said = {name: holder.record.get(name) for name in _SAID}
    return {**said, "epoch": holder.epoch, "lives": holder.lives}


def _is_orphan_key(store: Store, key: str) -> bool:
    """Whether a key is that of an unnamed actor which nothing can start again."""
    if not key.startswith(EPHEMERAL_PREFIX):
        return False
    holder = holders.last_holder(store, key)
    return holder is not None and holder.lives is False and holder.session_lives is False


def orphans(store: Store) -> list[str]:
    """Return the keys of unnamed actors whose session is known to be gone, and of groups of such, sorted.

    A key that another machine has made is never among them: whether its session lives cannot be told here.
    """
    from .generations import members_of

    found = []
    keys = store.keys()
    for key in keys:
        name = membership.group_name(key)
        if name is None:
            orphan = _is_orphan_key(store, key)
        else:
            orphan = _is_orphan_group(store, members_of(store, name))
        if orphan:
            found.append(key)
    return found


def remove_orphans(store: Store, keys: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Remove what `orphans` has found; one that cannot be removed does not keep the others.

    The members of a group go before it: it is an orphan as long as it is there, wherever this ends.

    Returns
    -------
    removed : list of str
        Sorted; without those that somebody else has removed meanwhile.
    kept : dict of str to str
        Why each of the others is still there.
    """
    removed: list[str] = []
    kept: dict[str, str] = {}
    whole: dict[str, bool] = {}  # groups: whether all that is left of them goes
    for key in sorted(keys, key=lambda key: (membership.group_name(key) is not None, key)):
        try:
            if membership.group_name(key) is None:
                _remove_orphan(store, key, whole)
            else:
                _remove_orphan_group(store, key)
        except CheckpointNotFoundError:
            continue
        except (CheckpointError, OSError) as error:
            kept[key] = str(error)
        else:
            removed.append(key)
    return sorted(removed), kept


def _remove_orphan(store: Store, key: str, whole: dict[str, bool]) -> None:
    from .generations import members_of

    _check_there(store, key)
    name = membership.group_of(store, key)
    if name and name not in whole:
        whole[name] = _is_orphan_group(store, members_of(store, name))
    if not whole.get(name, False):
        membership.check_alone(store, key, "removed")
    _remove_key(store, key, takeover=False)


def _remove_orphan_group(store: Store, key: str) -> None:
    from .generations import members_of

    members = members_of(store, str(membership.group_name(key)))
    left = [member for member in members if store.scan(member).claims]
    if left:
        raise CheckpointKeyInUseError(
            f"group {key!r} in {store.url} still has members: {', '.join(map(repr, left))}"
        )
    remove(store, key, takeover=False)


def remove(store: Store, key: str, takeover: bool) -> None:
    """Remove a key with all that it holds, unless somebody who lives holds it; see `manage.delete`."""
    _check_there(store, key)
    group = membership.group_name(key)
    if group is not None:
        from . import regroup

        return regroup.remove(store, group, takeover)
    membership.check_alone(store, key, "removed")
    _remove_key(store, key, takeover)


def _check_there(store: Store, key: str) -> None:
    keys = store.keys()
    if key not in keys:
        have = ", ".join(map(repr, keys[:20])) or "none"
        raise CheckpointNotFoundError(
            f"there is no checkpoint key {key!r} in {store.url}; keys there: {have}"
        )


def _remove_key(store: Store, key: str, takeover: bool) -> None:
    """Remove the key of an actor."""

    def check(epoch: int) -> None:
        if epoch and not takeover:
            holders.check_ended(store, key, holders.look(store, key, epoch))

    record = holders.tool("rm", holders.last_holder(store, key))
    SnapshotLog(store, key, keep=2).claim(record, check)  # fences whoever holds it
    store.remove(key)
