"""What is stored of a group's cuts: a manifest each, published last, and the states that it names.

Both lie under the group's own key: the manifest as a snapshot, the states as blobs. A cut of an older
generation than the newest claimed one cannot be published: the key is fenced like any other.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from . import capture, faults, format, transfers
from .capture import Captured
from .errors import CheckpointCorruptedError, CheckpointError, CheckpointFormatError, CheckpointSaveError
from .lineage import SnapshotName, parse_id
from .membership import group_key
from .snapshots import Loaded, SnapshotLog, is_there, present
from .stores.protocol import Store

_NOTE_SHOWN = 80


class Busy(CheckpointError):
    """Somebody else takes a cut of the group."""


class CutRecord(NamedTuple):
    """What a manifest says: the blob of each member's key, and the user's note."""

    name: SnapshotName
    header: format.Header
    blobs: dict[str, str]
    note: Any


def save_cut(
    log: SnapshotLog, cut: SnapshotName, name: str, blobs: Mapping[str, str], note: object, size_bytes: int
) -> None:
    """Publish the manifest of a cut: from now on the cut exists. `size_bytes`: of the states."""
    fields = {
        "class": "group",
        "module": "",
        "state_version": 1,
        "created_unix_s": time.time(),
        "calls": 0,
        "reason": f"cut{_shown(note)}",
        "deleted": [],
        "python": "",
        "group": name,
        "blobs": dict(blobs),
        "state_bytes": size_bytes,
    }
    if faults.active:
        faults.hit("group.publish")
    try:
        log.save(cut, fields, Captured([[capture_note(note)]]))
    except CheckpointSaveError as error:
        if is_there(log.store, log.key, cut) and blobs_of(log.store, log.key, cut) != blobs:
            raise Busy(f"another cut of group {name!r} was taken at the same time: one at a time") from error
        raise
    if faults.active:
        faults.hit("group.published")


def _shown(note: object) -> str:
    """A note as tools show it, which unpickle nothing."""
    if note is None:
        return ""
    try:
        return f": {json.dumps(note)}"[:_NOTE_SHOWN]
    except (TypeError, ValueError):
        return f": a {type(note).__name__}"


def capture_note(note: object) -> bytes:
    """Pickle the user's note; raises what pickling raises."""
    captured = capture.StateCapturer().capture(note)
    if len(captured.segments) != 1:
        raise CheckpointError("the note of a cut is for a few plain values, not for large buffers")
    return b"".join(bytes(piece) for piece in captured.segments[0])


def retire_cuts(log: SnapshotLog, before: Sequence[str]) -> None:
    """Delete the cuts that newer ones have replaced, and states that no cut names.

    `before`: the blobs that were there when the number of the newest cut was taken. Others may be those of a
    cut that somebody else takes, and has not published; of those before, none can be: the number is used.
    """
    log.retire()
    named = {b for cut in log.counted for b in blobs_of(log.store, log.key, cut).values()}
    stale = [blob for blob in before if blob not in named]
    if stale:
        log.store.delete_blobs(log.key, stale, log.epoch)
    if faults.active:
        faults.hit("group.retired")


def _read(store: Store, key: str, cut: SnapshotName) -> tuple[format.Header, Sequence[bytearray]]:
    with store.read(key, cut) as file:
        return format.read(file)


def blobs_of(store: Store, key: str, cut: SnapshotName) -> dict[str, str]:
    """Return the blob of each member's key; unpickles nothing."""
    return dict(_read(store, key, cut)[0].fields["blobs"])


def read_cut(store: Store, key: str, cut: SnapshotName) -> CutRecord:
    """Read a manifest, verified."""
    header, segments = _read(store, key, cut)
    return CutRecord(cut, header, dict(header.fields["blobs"]), capture.load(list(segments)))


def verify_states(store: Store, key: str, blobs: Mapping[str, str]) -> None:
    """Check every byte of the states of a cut.

    Raises
    ------
    CheckpointFormatError, OSError
        Says which member's.
    """
    for member, blob in blobs.items():
        try:
            content = store.read_blob(key, blob)
            transfers.moved(len(content))
            format.verify(io.BytesIO(content))
        except FileNotFoundError:
            raise CheckpointFormatError(f"the state of {member!r} is missing") from None
        except CheckpointFormatError as error:
            raise CheckpointFormatError(f"the state of {member!r}: {error}") from None


def read_state(store: Store, name: str, cut: str, member_key: str) -> Loaded:
    """Read a member's part of a cut, verified."""
    key = group_key(name)
    try:
        blobs = blobs_of(store, key, parse_id(cut))
        header, segments = format.read(io.BytesIO(store.read_blob(key, blobs[member_key])))
    except KeyError:
        raise CheckpointCorruptedError(
            f"cut {cut} of group {name!r} has no state of {member_key!r}"
        ) from None
    except (CheckpointFormatError, OSError) as error:
        raise CheckpointCorruptedError(
            f"the state of {member_key!r} in cut {cut} of group {name!r} in {store.url}: {error}"
        ) from error
    return Loaded(parse_id(cut), header, segments)


def find_base(log: SnapshotLog, wanted: str | None) -> tuple[SnapshotName | None, str]:
    """Return the cut to begin from, and its history: the one asked for, or the newest that verifies whole.

    Raises
    ------
    CheckpointCorruptedError
        Cuts count, and none verifies (or the one asked for does not).
    """
    here = present(log.store, log.key)
    names = [parse_id(wanted)] if wanted else list(reversed(here.counted))
    skipped: list[str] = []
    for cut in names:
        try:
            header, _ = _read(log.store, log.key, cut)
            verify_states(log.store, log.key, header.fields["blobs"])
        except (CheckpointError, OSError) as error:
            skipped.append(f"{cut.id}: {error}")
            continue
        return cut, str(here.sealed.get("history", ""))
    if skipped:
        what, do = "no cut", "move the key's directory away to start without a group"
        if wanted:
            what, do = "the cut to go back to", "restore another cut"
        corrupted = CheckpointCorruptedError(
            f"{what} of {log.key!r} in {log.store.url} verifies: {'; '.join(skipped)}. Put back "
            f"a good copy, or {do}"
        )
        corrupted.skipped = skipped
        raise corrupted
    return None, str(here.sealed.get("history", ""))
