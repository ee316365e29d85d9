"""The generations of a group: who begins one, and that nothing of the one before lives when it is in force.

A group has a key of its own in its members' store, ``_group/NAME``. Its epochs are *generations*: claimed by
exclusive creation, so that one process takes the group back; sealed when every process of the generations
before is dead. Its snapshots are the *cuts*: a manifest each, published last; the states that a manifest
names are blobs of the same key. A cut of an older generation than the newest claimed one cannot be published.

Leaves to others: what a member does when it opens (`cuts.step_of_member`), and taking cuts (`groups`).
"""

from __future__ import annotations

import io
import os
import select
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from . import capture, faults, format
from .capture import Captured
from .cuts import Standing
from .errors import CheckpointCorruptedError, CheckpointError, CheckpointFormatError, CheckpointTimeoutError
from .holders import start_ticks
from .lineage import SnapshotName, parse_id
from .membership import group_key
from .snapshots import Loaded, Past, SnapshotLog, boot_id, present
from .stores.protocol import Store

DEATH_TIMEOUT_S = 30.0


class Moved(CheckpointError):
    """Another process has begun the next generation."""


class Plan(NamedTuple):
    """Why a generation is begun: from which cut (None: the newest), and whether on purpose."""

    cut: str | None
    on_purpose: bool


class CutRecord(NamedTuple):
    """What a manifest says: the members' keys, the blob of each, and the user's note."""

    name: SnapshotName
    header: format.Header
    blobs: dict[str, str]
    note: Any


def this_process() -> dict[str, Any]:
    """Return what the claim of a generation says of who claims it."""
    return {"host": os.uname().nodename, "pid": os.getpid(), "started_ticks": start_ticks(os.getpid())}


def is_here(record: Mapping[str, Any]) -> bool:
    """Whether the process of a claim is, or was, on this machine."""
    return bool(record.get("host") == os.uname().nodename)


def lives(record: Mapping[str, Any]) -> bool:
    """Whether the process of a claim of this machine lives."""
    if record.get("boot_id") != boot_id():
        return False
    ticks = start_ticks(int(record.get("pid", 0)))
    return ticks is not None and ticks == record.get("started_ticks")


def read_claim(store: Store, key: str, epoch: int) -> dict[str, Any]:
    """Return the record of a claim; empty if it is gone or was never completed."""
    try:
        return format.decode_record(store.read_claim(key, epoch))
    except (CheckpointFormatError, OSError):
        return {}


def standing(store: Store, name: str, member_key: str) -> Standing:
    """Return what a member sees of its group."""
    here = present(store, group_key(name))
    generation = here.listing.newest_epoch
    sealed = here.sealed.get("epoch") == generation and generation > 0
    claim = {} if sealed else read_claim(store, group_key(name), generation)
    return Standing(
        generation,
        sealed,
        not sealed and lives(claim),
        int(here.sealed.get("ended", {}).get(member_key, 0)),
        here.sealed.get("base"),
        here.counted[-1].id if here.counted else None,
        int(here.sealed.get("restored", 0)),
    )


def plan_of(store: Store, name: str, generation: int) -> Plan:
    """Return what the claim of a generation was to do: whoever takes it over does that."""
    claim = read_claim(store, group_key(name), generation)
    return Plan(claim.get("cut"), bool(claim.get("on_purpose")))


def begin(
    store: Store,
    name: str,
    keep: int,
    members: Iterable[str],
    own: tuple[str, int] | None,
    seen: int,
    plan: Plan,
) -> int:
    """Claim the next generation, end every process of the one before, seal; returns its number.

    Parameters
    ----------
    members : iterable of str
        Keys of all members.
    own : (str, int) or None
        Key and epoch of the member that begins; None if the caller is no member.
    seen : int
        The newest generation that the caller has seen.

    Raises
    ------
    Moved
        Another process was faster.
    CheckpointTimeoutError
        A process did not end.
    """
    log = SnapshotLog(store, group_key(name), keep)

    def check(newest: int) -> None:
        if newest != seen:
            raise Moved(f"generation {newest} of group {name!r} was begun meanwhile")

    log.claim({**this_process(), **plan._asdict(), "group": name}, check)
    if faults.active:
        faults.hit("group.claimed")
    ended = {key: end_holder(store, key) for key in members if own is None or key != own[0]}
    if own is not None:
        ended[own[0]] = own[1] - 1
    if faults.active:
        faults.hit("group.ended")
    before = present(store, log.key).sealed
    past = _base(log, plan)
    restored = log.epoch if plan.on_purpose else int(before.get("restored", 0))
    base = past.newest.name if past.newest else None
    log.seal(base, past.history, {"ended": ended, "restored": restored})
    if faults.active:
        faults.hit("group.sealed")
    return log.epoch


def found(store: Store, name: str, keep: int, epochs: Mapping[str, int]) -> int:
    """Make a new group of members that live: generation 1 has no cut, and nobody is ended for it."""
    log = SnapshotLog(store, group_key(name), keep)

    def check(newest: int) -> None:
        raise Moved(f"group {name!r} was made meanwhile")

    log.claim({**this_process(), **Plan(None, False)._asdict(), "group": name}, check)
    if faults.active:
        faults.hit("group.founded")
    log.seal(None, "", {"ended": {key: epoch - 1 for key, epoch in epochs.items()}, "restored": 0})
    return log.epoch


def _base(log: SnapshotLog, plan: Plan) -> Past:
    """Return the cut to begin from: the one asked for, or the newest of which every part verifies."""
    here = present(log.store, log.key)
    wanted = [parse_id(plan.cut)] if plan.cut else list(reversed(here.counted))
    history = "" if plan.on_purpose else str(here.sealed.get("history", ""))
    skipped: list[str] = []
    for cut in wanted:
        try:
            record = read_cut(log.store, log.key, cut)
            for blob in record.blobs.values():
                format.verify(io.BytesIO(log.store.read_blob(log.key, blob)))
        except (CheckpointError, OSError) as error:
            skipped.append(f"{cut.id}: {error}")
            continue
        return Past(Loaded(cut, record.header, []), skipped, [], [], history)
    if skipped:
        corrupted = CheckpointCorruptedError(
            f"no cut of {log.key!r} in {log.store.url} verifies: {'; '.join(skipped)}. Put back "
            f"a good copy, or "
            "move the key's directory away to start without a group"
        )
        corrupted.skipped = skipped
        raise corrupted
    return Past(None, [], [], [], history)


def end_holder(store: Store, key: str) -> int:
    """Kill the process that holds a member's key, wait for its end, and return its epoch (0: none)."""
    listing = store.scan(key)
    if not listing.claims:
        return listing.newest_epoch
    epoch = listing.claims[-1]
    record = read_claim(store, key, epoch)
    if record and not is_here(record):
        from ftray.exceptions import NotSupportedError

        raise NotSupportedError(
            f"taking a group back whose members are on several machines is not supported: "
            f"checkpoint key {key!r} is "
            f"held on {record.get('host')}, and this is {os.uname().nodename}"
        )
    if record and lives(record):
        if record["pid"] == os.getpid():
            raise CheckpointError(f"checkpoint key {key!r} is held by this very process: members are actors")
        _kill(int(record["pid"]), record["started_ticks"], key)
    return epoch


def _kill(pid: int, ticks: int, key: str) -> None:
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if start_ticks(pid) != ticks:  # the number was given to another process
            return
        try:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        except ProcessLookupError:
            return
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(DEATH_TIMEOUT_S * 1000):
            raise CheckpointTimeoutError(
                f"process {pid}, which holds checkpoint key {key!r}, did not end within "
                f"{DEATH_TIMEOUT_S} s of being "
                "killed: its group cannot be taken back while it lives"
            )
    finally:
        os.close(fd)


# -- cuts


def save_cut(log: SnapshotLog, name: str, blobs: Mapping[str, str], note: object) -> SnapshotName:
    """Publish the manifest of a cut: from now on the cut exists."""
    fields = {
        "class": "group",
        "module": "",
        "state_version": 1,
        "created_unix_s": time.time(),
        "calls": 0,
        "reason": "cut",
        "deleted": [],
        "python": "",
        "group": name,
        "blobs": dict(blobs),
    }
    cut = log.next_name()
    if faults.active:
        faults.hit("group.publish")
    log.save(cut, fields, Captured([[capture_note(note)]]))
    if faults.active:
        faults.hit("group.published")
    return cut


def capture_note(note: object) -> bytes:
    """Pickle the user's note; raises what pickling raises."""
    captured = capture.StateCapturer().capture(note)
    if len(captured.segments) != 1:
        raise CheckpointError("the note of a cut is for a few plain values, not for large buffers")
    return b"".join(bytes(piece) for piece in captured.segments[0])


def retire_cuts(log: SnapshotLog) -> None:
    """Delete the cuts that newer ones have replaced, and blobs that no cut names."""
    log.retire()
    named = {b for cut in log.counted for b in read_cut(log.store, log.key, cut).blobs.values()}
    stale = [blob for blob in log.store.list_blobs(log.key) if blob not in named]
    if stale:
        log.store.delete_blobs(log.key, stale, log.epoch)
    if faults.active:
        faults.hit("group.retired")


def read_cut(store: Store, key: str, cut: SnapshotName) -> CutRecord:
    """Read a manifest, verified."""
    with store.read(key, cut) as file:
        header, segments = format.read(file)
    return CutRecord(cut, header, dict(header.fields["blobs"]), capture.load(segments))


def read_state(store: Store, name: str, cut: str, member_key: str) -> Loaded:
    """Read a member's part of a cut, verified."""
    key = group_key(name)
    try:
        record = read_cut(store, key, parse_id(cut))
        header, segments = format.read(io.BytesIO(store.read_blob(key, record.blobs[member_key])))
    except KeyError:
        raise CheckpointCorruptedError(
            f"cut {cut} of group {name!r} has no state of {member_key!r}"
        ) from None
    except (CheckpointFormatError, OSError) as error:
        raise CheckpointCorruptedError(
            f"the state of {member_key!r} in cut {cut} of group {name!r} in {store.url}: {error}"
        ) from error
    return Loaded(parse_id(cut), header, segments)
