"""Decides who may be a member of a group. Pure, but that it looks which machine this is."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from .cuts import missing
from .errors import CheckpointMismatchError, CheckpointOptionError
from .snapshots import boot_id
from .stores import resolve_url
from .wire import refuse


def check_members(name: str, about: Sequence[Mapping[str, Any]], store: str | None) -> None:
    """Raise what is wrong with actors that are to be a group; they have described themselves."""
    first = about[0]
    keys = [one["key"] for one in about]
    if len(set(keys)) != len(keys):
        raise CheckpointOptionError(
            f"group {name!r}: an actor was given twice, or two share a checkpoint key"
        )
    if store is not None and resolve_url(store) != first["store"]:
        raise CheckpointOptionError(
            f"group {name!r}: store={store!r} was given, and {keys[0]!r} keeps its state in "
            f"{first['store']}: a cut is kept where its members' states are"
        )
    for one in about:
        _check_member(name, one, first)


def _check_member(name: str, one: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    key = one["key"]
    if one["group"] not in (None, name):
        raise CheckpointOptionError(
            f"{key!r} is a member of group {one['group']!r}: an actor is in one group only"
        )
    if one["store"] != first["store"]:
        raise CheckpointOptionError(
            f"{key!r} is in store {one['store']}, {first['key']!r} in {first['store']}"
        )
    if (one["machine"], one["boot"]) != (os.uname().nodename, boot_id()):
        raise refuse(
            f"a member on another machine ({key!r} is on {one['machine']})",
            "files that are copied between machines are not one store. Keep the members on one machine "
            "(NodeAffinitySchedulingStrategy)",
        )
    if not one["serial"]:
        raise refuse(
            f"{key!r}, an async actor or one with max_concurrency > 1,", "members run one call at a time"
        )
    if one["exactly_once"] != first["exactly_once"]:
        raise refuse(
            "a group of exactly-once and other members",
            "a crash takes the others back, and exactly-once members never go back by themselves",
        )
    if one["max_restarts"] != -1:
        raise CheckpointOptionError(
            f"{key!r} has max_restarts={one['max_restarts']}: members need max_restarts=-1, "
            f"since going back restarts all"
        )
    if one["restore"] != "auto":
        raise CheckpointOptionError(f"{key!r} has restore={one['restore']!r}: members need restore='auto'")


def check_same(expected: Sequence[str], found: Sequence[str], name: str) -> None:
    """Raise `CheckpointMismatchError` unless a group has just these members."""
    wrong = missing(expected, found)
    if wrong:
        raise CheckpointMismatchError(
            f"group {name!r} was made of {', '.join(map(repr, expected))}, and is given other actors now: "
            f"{wrong}. Give the same names (or checkpoint_keys), or another name for the group; those that "
            "are dead for good go into gone="
        )


def seconds(name: str, value: Any) -> float:
    """Check a number of seconds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise CheckpointOptionError(
            f"{name}={value!r} is not allowed; {name} is a positive number of seconds"
        )
    return float(value)
