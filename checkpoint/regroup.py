"""What is done to a group in its store, without its actors: taken back, left, removed, described.

Going back is one claim: who has claimed a generation and does not live to see it in force leaves a plan that
the next one carries out (`generations`), so a group is never taken back by half.
"""

from __future__ import annotations

import time
from typing import Any

from . import capture, cutfiles, format, generations, holders, membership, rollback, transfers
from .errors import (
    CheckpointCorruptedError,
    CheckpointError,
    CheckpointKeyInUseError,
    CheckpointNotFoundError,
    CheckpointOptionError,
    FencedError,
)
from .generations import EndProcess, Moved, Plan
from .lineage import parse_id
from .membership import group_key
from .snapshots import present
from .stores.protocol import Store

_KEEP = 2  # nothing is retired here
_TIMEOUT_S = 60.0
_LOOKS = 3  # before anybody is ended, before the claim, and by who begins the generation


def _members(store: Store, name: str) -> list[str]:
    members = generations.members_of(store, name)
    if not members:
        keys = store.keys()
        have = [key for key in keys if key.startswith(membership.KEY_PREFIX)]
        raise CheckpointNotFoundError(
            f"there is no group {name!r} in {store.url}; groups there: {', '.join(have) or 'none'}"
        )
    return members


def _verified(store: Store, name: str, cut: str | None) -> int:
    """Check that a cut counts and is whole, before anything is touched; the bytes of its states."""
    key = group_key(name)
    ids = [found.id for found in present(store, key).counted]
    if not ids or (cut is not None and cut not in ids):
        raise CheckpointNotFoundError(
            f"group {name!r} has no cut {cut or 'at all'} that counts; there are: {', '.join(ids) or 'none'}"
        )
    if cut is None:
        return 0
    try:
        with store.read(key, parse_id(cut)) as file:
            fields = format.read_header(file).fields
        transfers.expect(_LOOKS * int(fields.get("state_bytes", 0)))
        cutfiles.verify_states(store, key, fields["blobs"])
    except (CheckpointError, OSError) as error:
        raise CheckpointCorruptedError(
            f"cut {cut} of group {name!r} in {store.url}: {error}. Nothing was changed"
        ) from error
    return int(fields.get("state_bytes", 0))


def go_back(
    store: Store, name: str, cut: str | None, keep: int, end: EndProcess, deadline_s: float
) -> int:
    """End every process of the members; whichever opens next begins from the cut. The new generation."""
    _verified(store, name, cut)
    while True:  # what a dead process had begun is overtaken by this, also where it could not be done
        seen, _ = generations.wait_for_beginner(store, name, deadline_s)
        try:
            plan = Plan(_members(store, name), cut, on_purpose=True)
            return generations.begin(store, name, keep, seen, plan, end)
        except CheckpointCorruptedError as error:  # it was retired, or damaged, since it was looked at
            generations.go_on(store, name, keep, end, deadline_s)
            raise CheckpointCorruptedError(f"{error}. The group goes on as it was") from error
        except (Moved, FencedError):  # a member that has crashed begins one at the same time
            if time.monotonic() > deadline_s:
                raise


def restore(store: Store, name: str, cut: str, takeover: bool) -> rollback.Restored:
    """`rollback.restore` for the key of a group: all its members start from the cut next time."""
    members, size_bytes = _members(store, name), _verified(store, name, cut)
    if not takeover:
        _check_ended(store, members)
    go_back(store, name, cut, _KEEP, generations.end_process, time.monotonic() + _TIMEOUT_S)
    return rollback.Restored(store.url, group_key(name), cut, cut, None, None, True, size_bytes)


def _check_ended(store: Store, members: list[str]) -> None:
    for key in members:
        claims = store.scan(key).claims
        holders.check_ended(store, key, holders.look(store, key, claims[-1]) if claims else None)


def take_out(store: Store, name: str, key: str) -> None:
    """Leave under the key of a member that is dead for good what an actor of that name would begin from.

    That is its part of the newest cut; exactly-once members have that, and more, under their keys already.
    """
    listing = store.scan(key)
    if not listing.claims:  # that of an unnamed actor went with it
        return
    _check_ended(store, [key])
    here, own = present(store, group_key(name)), present(store, key).sealed
    if not here.counted:
        return
    if "history_number" in own and int(here.sealed.get("restored", 0)) <= int(own.get("group_generation", 0)):
        return
    loaded = cutfiles.read_state(store, name, here.counted[-1].id, key)
    text = f"cut {here.counted[-1].id} of group {name!r}"
    said = {"group_generation": here.listing.newest_epoch} if "history_number" in own else {}
    rollback.take_back(store, key, text, loaded, said=said)


def remove(store: Store, name: str, takeover: bool) -> None:
    """Remove a group whose members have all ended; each will begin alone, from its part of the last cut."""
    members = generations.members_of(store, name)
    if takeover:
        raise CheckpointOptionError(
            f"group {name!r} is not taken from members that live: Group.disband() ends it while they go on"
        )
    _check_ended(store, members)
    end, deadline_s = generations.end_process, time.monotonic() + _TIMEOUT_S
    if any(store.scan(key).claims for key in members):
        seen = generations.settle(store, name, _KEEP, end, deadline_s)
    else:  # nobody begins from a cut any more: what a dead process had begun for them need not be done
        seen, _ = generations.wait_for_beginner(store, name, deadline_s)
    for key in members:
        take_out(store, name, key)
    if members:
        try:
            generations.begin(store, name, _KEEP, seen, Plan([], disbanded=True, ended={}), end)
        except (Moved, FencedError) as error:
            raise CheckpointKeyInUseError(
                f"group {name!r} in {store.url}: a member has just started: {error}"
            ) from error
        store.settle(group_key(name), seen + 1)
    for key in members:
        membership.forget_unheld(store, key)
    store.remove(group_key(name))


def load(store: Store, name: str, cut: str | None) -> dict[str, Any]:
    """Return the members' states in a cut by their keys; unpickles them."""
    _verified(store, name, cut)
    found = cut or present(store, group_key(name)).counted[-1].id
    states = {}
    for key in cutfiles.blobs_of(store, group_key(name), parse_id(found)):
        loaded = cutfiles.read_state(store, name, found, key)
        states[key] = capture.load(format.split_ledger(loaded.header, loaded.segments)[0])
    return states
