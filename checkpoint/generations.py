"""The generations of a group: who begins one, and that nothing of the one before lives when it is in force.

A group has a key of its own in its members' store, ``_group/NAME``. Its epochs are *generations*: claimed by
exclusive creation, so that one process begins each; sealed when it is in force, which says who the members
are and which of their processes had ended by then. Its snapshots are the *cuts* (`cutfiles`).

Invariant: what a generation is for is written in its claim, so whoever finds one that its beginner did not
live to seal does just that. Leaves to others: what a member does when it opens (`cuts.step_of_member`).
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import faults, format
from .cutfiles import find_base
from .cuts import Standing
from .errors import CheckpointError, CheckpointFormatError, CheckpointTimeoutError, FencedError
from .holders import open_here, start_ticks
from .lineage import SnapshotName
from .membership import group_key
from .snapshots import SnapshotLog, boot_id, present
from .stores.protocol import Store

DEATH_TIMEOUT_S = 30.0
WAIT_TIMEOUT_S = 60.0
FIRST_NAP_S, LONGEST_NAP_S = 0.001, 0.02

EndProcess = Callable[[Mapping[str, Any]], None]
"""Ends the process that a claim names, and waits until it has ended."""

_beginning: set[str] = set()  # nonces of what this process begins just now


class Moved(CheckpointError):
    """Another process has begun the next generation."""


class Plan(NamedTuple):
    """What a generation is for.

    Attributes
    ----------
    members : sequence of str
        Their keys.
    cut : str or None
        Id of the cut that it begins from; None: the newest.
    on_purpose : bool
        Whether exactly-once members go back, too.
    ended : mapping or None
        None: every process of the generation before is ended. Else they live on, and these are the epochs of
        the members' keys that had ended before.
    disbanded : bool
        There is no group any more.
    """

    members: Sequence[str]
    cut: str | None = None
    on_purpose: bool = False
    ended: Mapping[str, int] | None = None
    disbanded: bool = False


def _this_process(nonce: str) -> dict[str, Any]:
    pid = os.getpid()
    return {"host": os.uname().nodename, "pid": pid, "started_ticks": start_ticks(pid), "nonce": nonce}


@contextmanager
def _noted() -> Iterator[str]:
    """While this process begins a generation."""
    nonce = os.urandom(8).hex()
    _beginning.add(nonce)
    try:
        yield nonce
    finally:
        _beginning.discard(nonce)


def lives(record: Mapping[str, Any]) -> bool:
    """Whether who claimed a generation on this machine may still seal it."""
    if record.get("boot_id") != boot_id():
        return False
    pid = int(record.get("pid", 0))
    if pid == os.getpid():
        return record.get("nonce") in _beginning
    ticks = start_ticks(pid)
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
        generation > 0 and (not sealed or member_key in here.sealed["members"]),
    )


def plan_of(store: Store, name: str, generation: int) -> Plan:
    """Return what a generation is for that was claimed and not sealed."""
    key = group_key(name)
    claim = read_claim(store, key, generation)
    if "plan" in claim:
        return Plan(**claim["plan"])
    return Plan(tuple(present(store, key).sealed.get("members", ())))  # a power loss has damaged the claim


def begin(
    store: Store,
    name: str,
    keep: int,
    seen: int,
    plan: Plan,
    end: EndProcess,
    own: tuple[str, int] | None = None,
) -> int:
    """Claim the next generation, do what its plan says, seal it; returns its number.

    Parameters
    ----------
    seen : int
        The newest generation that the caller has seen; 0: the group is new.
    end : callable
        Ends a process of this machine.
    own : (str, int) or None
        Key and epoch of the member that begins; None if the caller is no member.

    Raises
    ------
    Moved, FencedError
        Another process was faster.
    CheckpointTimeoutError
        A process did not end.
    """
    log = SnapshotLog(store, group_key(name), keep)

    def check(newest: int) -> None:
        if newest not in (0, seen):
            raise Moved(f"generation {newest} of group {name!r} was begun meanwhile")

    with _noted() as nonce:
        log.claim({**_this_process(nonce), "plan": plan._asdict(), "group": name}, check)
        if log.epoch != seen + 1:  # it was disbanded, and its key removed, meanwhile: this is a new one
            store.remove(log.key)
            raise Moved(f"group {name!r} is gone")
        if faults.active:
            faults.hit("group.claimed")
        base, history = _base(log, plan)  # nobody retires it any more; without one, nobody is ended
        ended = _end_all(store, plan, end, own)
        if faults.active:
            faults.hit("group.ended")
        _seal(log, plan, ended, base, history)
    return log.epoch


def _end_all(store: Store, plan: Plan, end: EndProcess, own: tuple[str, int] | None) -> dict[str, int]:
    if plan.ended is not None:
        return dict(plan.ended)
    ended = {key: end_holder(store, key, end) for key in plan.members if own is None or key != own[0]}
    if own is not None:
        ended[own[0]] = own[1] - 1
    return ended


def _base(log: SnapshotLog, plan: Plan) -> tuple[SnapshotName | None, str]:
    """Return the cut that a generation begins from, and its history; verified where members begin from it."""
    if plan.disbanded:
        return None, ""
    if plan.ended is None:
        return find_base(log, plan.cut)
    here = present(log.store, log.key)
    return here.counted[-1] if here.counted else None, str(here.sealed.get("history", ""))


def _seal(
    log: SnapshotLog, plan: Plan, ended: Mapping[str, int], base: SnapshotName | None, history: str
) -> None:
    before = present(log.store, log.key).sealed
    back = plan.on_purpose and base is not None
    extra = {
        "ended": dict(ended),
        "restored": log.epoch if back else int(before.get("restored", 0)),
        "members": list(plan.members),
    }
    log.seal(base, "" if back else history, extra)
    if faults.active:
        faults.hit("group.sealed")


def members_of(store: Store, name: str) -> list[str]:
    """Return the keys of the members, sorted; none if there is no such group or it was disbanded."""
    here = present(store, group_key(name))
    if not here.sealed and here.listing.newest_epoch:
        return sorted(plan_of(store, name, here.listing.newest_epoch).members)
    return sorted(here.sealed.get("members", ()))


def wait_for_beginner(store: Store, name: str, deadline_s: float) -> tuple[int, bool]:
    """Wait until nobody is beginning a generation; the newest one, and whether it is in force."""
    nap_s, key = FIRST_NAP_S, group_key(name)
    while True:
        here = present(store, key)
        generation = here.listing.newest_epoch
        if not generation or here.sealed.get("epoch") == generation:
            return generation, True
        if not lives(read_claim(store, key, generation)):
            return generation, False
        if time.monotonic() > deadline_s:
            raise not_in_force(name, generation)
        time.sleep(nap_s)
        nap_s = min(2 * nap_s, LONGEST_NAP_S)


def settle(store: Store, name: str, keep: int, end: EndProcess, deadline_s: float) -> int:
    """Wait until the newest generation is in force, or do what its dead beginner has left; its number.

    0 if there is no group.
    """
    while True:
        generation, in_force = wait_for_beginner(store, name, deadline_s)
        if in_force:
            return generation
        try:
            begin(store, name, keep, generation, plan_of(store, name, generation), end)
        except (Moved, FencedError):
            if time.monotonic() > deadline_s:
                raise


def go_on(store: Store, name: str, keep: int, end: EndProcess, deadline_s: float) -> None:
    """Overtake a generation that cannot come into force: members live on as in the one before."""
    while True:
        seen, in_force = wait_for_beginner(store, name, deadline_s)
        sealed = present(store, group_key(name)).sealed
        if in_force or not sealed:
            return
        try:
            begin(store, name, keep, seen, Plan(sealed["members"], ended=sealed["ended"]), end)
        except (Moved, FencedError):
            if time.monotonic() > deadline_s:
                raise


def not_in_force(name: str, generation: int) -> CheckpointTimeoutError:
    """Return the error of those who have waited too long."""
    return CheckpointTimeoutError(
        f"generation {generation} of group {name!r} was not in force in time: the process that claimed it "
        "lives and does not go on"
    )


def end_holder(store: Store, key: str, end: EndProcess) -> int:
    """End the process that holds a member's key, and return its epoch (0: none)."""
    listing = store.scan(key)
    if not listing.claims:
        return listing.newest_epoch
    epoch = listing.claims[-1]
    record = read_claim(store, key, epoch)
    if not record.get("actor"):
        return epoch  # never completed, or that of somebody who worked on the key: nobody has served under it
    if record.get("host") != os.uname().nodename:
        from ftray.exceptions import NotSupportedError

        raise NotSupportedError(
            f"taking a group back whose members are on several machines is not supported: "
            f"checkpoint key {key!r} is held on {record.get('host')}, and this is {os.uname().nodename}"
        )
    if record.get("boot_id") == boot_id():
        end(record)
    return epoch


def end_process(record: Mapping[str, Any]) -> None:
    """Kill the process that a claim names, and wait for its end."""
    pid, ticks = int(record.get("pid", 0)), record.get("started_ticks")
    if start_ticks(pid) != ticks:
        return
    if pid == os.getpid():
        if record.get("nonce") in open_here:
            raise CheckpointError(f"checkpoint key {record['key']!r} is held by this very process")
        return  # what it was once
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if start_ticks(pid) == ticks:  # else the number was given to another process
            _kill(fd, pid, str(record["key"]))
    finally:
        os.close(fd)


def _kill(fd: int, pid: int, key: str) -> None:
    try:
        signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(DEATH_TIMEOUT_S * 1000):
        raise CheckpointTimeoutError(
            f"process {pid}, which holds checkpoint key {key!r}, did not end within {DEATH_TIMEOUT_S} s of "
            "being killed: its group cannot be taken back while it lives"
        )
