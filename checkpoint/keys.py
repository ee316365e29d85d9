"""Which key an actor's snapshots live under. Pure.

A *key* is a text: the user's own ``checkpoint_key``, else ``namespace/name`` of a named actor, else one
made of the actor's unique id. The last kind is *ephemeral*: nobody can ask for it again once the actor is
gone.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .errors import CheckpointOptionError
from .host import ActorIdentity

_SAFE = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
MAX_FILE_NAME = 240
EPHEMERAL_PREFIX = "_unnamed/"


class ActorKey(NamedTuple):
    """A key, and whether it goes away with its actor."""

    text: str
    ephemeral: bool


def key_of(identity: ActorIdentity, checkpoint_key: str | None) -> ActorKey:
    """Return the key of an actor."""
    if checkpoint_key is not None:
        key = ActorKey(checkpoint_key, False)
    elif identity.name:
        key = ActorKey(f"{identity.namespace}/{identity.name}", False)
    else:
        key = ActorKey(f"{EPHEMERAL_PREFIX}{identity.class_name}-{identity.unique_id}", True)
    to_file_name(key.text)
    return key


@lru_cache(maxsize=1024)  # a recovery alone asks a hundred times for that of its key
def to_file_name(key: str) -> str:
    """Spell `key` as one file name, reversibly: all but letters, digits, ``_`` and ``-`` become ``%XX``."""
    try:
        raw = key.encode()
    except UnicodeEncodeError as error:
        raise CheckpointOptionError(f"checkpoint key {key!r} is not valid Unicode text: {error}") from None
    name = "".join(chr(b) if b in _SAFE else f"%{b:02X}" for b in raw)
    if not 0 < len(name) <= MAX_FILE_NAME:
        raise CheckpointOptionError(
            f"checkpoint key {key!r} takes {len(name)} bytes as a file name; allowed: 1 to {MAX_FILE_NAME}. "
            "Give a shorter checkpoint_key or actor name"
        )
    return name


def from_file_name(name: str) -> str | None:
    """Undo `to_file_name`; None if `name` is not the file name of any key."""
    raw = bytearray()
    parts = name.split("%")
    raw += parts[0].encode()
    for part in parts[1:]:
        try:
            raw.append(int(part[:2], 16))
        except ValueError:
            return None
        raw += part[2:].encode()
    try:
        key = raw.decode()
        return key if to_file_name(key) == name else None
    except (UnicodeDecodeError, CheckpointOptionError):
        return None
