"""Which group a key is in: a note under the key itself, which outlives its actor's processes.

Owns the note. Read whenever an actor opens, so it imports nothing of what groups do.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import format
from .errors import CheckpointOptionError, FencedError

if TYPE_CHECKING:
    from .members import Member
    from .session import ActorSession
    from .stores.protocol import Store

KEY_PREFIX = "_group/"
"""Begins the keys of groups."""
_NOTE_PREFIX = "group-"


def group_key(name: str) -> str:
    """Return the key of a group."""
    return KEY_PREFIX + name


def group_name(key: str) -> str | None:
    """Return the name of the group that a key is that of, None for the key of an actor."""
    return key[len(KEY_PREFIX) :] if key.startswith(KEY_PREFIX) else None


def _notes(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.startswith(_NOTE_PREFIX)]


def read_note(store: Store, key: str, names: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Return what a key says of its group; None if it is in none. `names`: of its blobs, if known."""
    notes = _notes(store.list_blobs(key) if names is None else names)
    return format.decode_record(store.read_blob(key, notes[-1])) if notes else None


def write_note(store: Store, key: str, epoch: int, record: Mapping[str, Any]) -> None:
    """Say which group a key is in, durably."""
    name = f"{_NOTE_PREFIX}{epoch}-{os.urandom(4).hex()}"
    store.put_blob(key, epoch, name, [format.encode_record(dict(record))])


def forget(store: Store, key: str, epoch: int) -> None:
    """The key is in no group any more."""
    store.delete_blobs(key, _notes(store.list_blobs(key)), epoch)


def forget_unheld(store: Store, key: str) -> None:
    """`forget`, for a key whose actor has ended; nothing if one has begun meanwhile, which does so itself."""
    try:
        forget(store, key, store.scan(key).newest_epoch)
    except FencedError:
        return


def enter_group(session: ActorSession, names: Sequence[str] | None = None) -> Member | None:
    """A process opens and has claimed its key: which group it is in, once that is ready; None: in none.

    `names`: of the key's blobs as they are since the claim, if they are known.
    """
    record = read_note(session.log.store, session.log.key, names)
    if record is None:
        return None
    from .members import Member

    member = Member(session, record["group"], record["keep"])
    return member if member.enter() else None


def group_of(store: Store, key: str) -> str:
    """Return the name of the group that a key is in, "" if it is in none."""
    record = read_note(store, key)
    if record is None:
        return ""
    from .generations import members_of

    name = str(record["group"])
    return name if key in members_of(store, name) else ""  # it has left, and not opened since


def check_alone(store: Store, key: str, what: str) -> None:
    """Refuse to do with one member what has to be done with the whole group."""
    name = group_of(store, key)
    if name:
        raise CheckpointOptionError(
            f"checkpoint key {key!r} in {store.url} is a member of group {name!r}, whose members would "
            f"disagree if one of them was {what} alone: name the group, {group_key(name)!r}, or take the "
            "member out of it with Group.remove"
        )
