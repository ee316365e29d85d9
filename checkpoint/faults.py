"""Named fault points: die, or fail, at one exact step of a save, a delete, a claim or a restore.

Owns the list of points and what is armed. Invariants: when nothing is armed a point costs one test of a
module global; arming an unknown name raises, so a renamed step cannot silently lose its test. Points are
armed by ``FTRAY_CHECKPOINT_FAULT=name[:exit|raise[:nth]]`` (read once, at import) or by `armed`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

EXIT_STATUS = 86
"""Exit status of a process that died at a fault point."""

POINTS: tuple[str, ...] = (
    "file.mkdir.created",
    "file.claim.created",
    "file.claim.written",
    "file.seal.begin",
    "file.seal.written",
    "file.seal.renamed",
    "file.settle.begin",
    "file.settle.synced",
    "file.settle.dir_synced",
    "file.settle.dropped",
    "file.settle.swept",
    "file.put.begin",
    "file.put.temp_created",
    "file.put.half_written",
    "file.put.written",
    "file.put.synced",
    "file.put.fence_checked",
    "file.put.renamed",
    "file.put.dir_synced",
    "file.put.fence_rechecked",
    "file.delete.begin",
    "file.delete.unlinked",
    "file.fence.begin",
    "file.fence.word_set",
    "file.fence.done",
    "file.journal.life_created",
    "file.journal.segment_created",
    "file.journal.segment_zeroed",
    "file.journal.segment_synced",
    "file.journal.segment_renamed",
    "file.journal.segment_dir_synced",
    "file.journal.past_synced",
    "file.journal.half_written",
    "file.journal.written",
    "file.journal.synced",
    "file.journal.rechecked",
    "file.journal.ended",
    "file.journal.marked",
    "file.journal.closed",
    "file.journal.trim_begin",
    "file.journal.trimmed",
    "file.blob.begin",
    "file.blob.temp_created",
    "file.blob.half_written",
    "file.blob.written",
    "file.blob.synced",
    "file.blob.fence_checked",
    "file.blob.renamed",
    "file.blob.dir_synced",
    "file.blob.deleted",
    "object.claim.begin",
    "object.claim.created",
    "object.seal.begin",
    "object.seal.created",
    "object.settle.begin",
    "object.settle.dropped",
    "object.settle.done",
    "object.put.begin",
    "object.put.blob_begin",
    "object.put.blob_written",
    "object.put.created",
    "object.put.fence_rechecked",
    "object.delete.begin",
    "object.delete.manifest_gone",
    "object.delete.done",
    "object.fence.begin",
    "object.fence.created",
    "object.journal.opened",
    "object.journal.begin",
    "object.journal.created",
    "object.journal.told",
    "object.trim.begin",
    "object.trim.done",
    "object.blob.content_written",
    "object.blob.created",
    "save.announced",
    "restore.claimed",
    "restore.verified",
    "restore.loaded",
    "restore.sealed",
    "once.admitted",
    "once.started",
    "once.value_produced",
    "once.value_recorded",
    "once.ran",
    "once.barrier_appended",
    "once.recorded",
    "once.answered",
    "once.save_waits",
    "once.barrier_saved",
    "once.trim_begin",
    "once.trimmed",
    "once.fenced",
    "once.replay_begin",
    "once.replayed",
    "once.replay_done",
    "once.journal_opened",
    "once.void_appended",
    "once.resumed",
    "group.noted",
    "group.held",
    "group.polled",
    "group.captured",
    "group.released",
    "group.writing",
    "group.written",
    "group.publish",
    "group.published",
    "group.retired",
    "group.claimed",
    "group.ended",
    "group.sealed",
    "group.settled",
    "group.loaded",
    "group.parted",
    "group.left",
    "group.answered.hold",
    "group.answered.poll",
    "group.answered.capture",
    "group.answered.release",
    "group.answered.written",
)
"""Every fault point of an actor's life, in the order of the steps."""

ROLLBACK_POINTS: tuple[str, ...] = (
    "rollback.claimed",
    "rollback.begun",
    "rollback.saved",
    "rollback.marked",
    "rollback.sealed",
)
"""Those of taking a key back, which no actor does."""


def _check(point: str) -> None:
    if point not in POINTS and point not in ROLLBACK_POINTS:
        known = ", ".join(POINTS + ROLLBACK_POINTS)
        raise ValueError(f"unknown fault point {point!r}; known: {known}")


class FaultError(OSError):
    """Raised at a point armed with ``raise`` when no other exception was given."""


class SimulatedCrash(BaseException):
    """Ends a simulated process at a fault point; nobody catches it but whoever simulates."""


class _Tracer:
    """Counts how often each point is reached."""

    def __init__(self) -> None:
        self.hits: dict[str, int] = {}

    def hit(self, point: str) -> None:
        _check(point)
        self.hits[point] = self.hits.get(point, 0) + 1


class _Armed:
    __slots__ = ("action", "nth", "point")

    def __init__(self, point: str, action: str | BaseException, nth: int) -> None:
        _check(point)
        if isinstance(action, str) and action not in ("exit", "raise"):
            raise ValueError(f"unknown fault action {action!r}; allowed: 'exit', 'raise' or an exception")
        if nth < 1:
            raise ValueError(f"nth counts from 1, got {nth}")
        self.point, self.action, self.nth = point, action, nth

    @property
    def dead(self) -> bool:
        """Whether a simulated process has ended here; it must not come to any further point."""
        return self.nth <= 0 and isinstance(self.action, SimulatedCrash)

    def hit(self, point: str) -> None:
        if point != self.point and not self.dead:
            return
        self.nth -= 1
        if self.nth > 0 or (self.nth < 0 and not self.dead):
            return
        if isinstance(self.action, BaseException):
            raise self.action
        if self.action == "raise":
            raise FaultError(5, f"fault point {point}")
        os._exit(EXIT_STATUS)


def _from_environment() -> _Armed | None:
    text = os.environ.get("FTRAY_CHECKPOINT_FAULT", "")
    if not text:
        return None
    point, _, rest = text.partition(":")
    action, _, nth = rest.partition(":")
    return _Armed(point, action or "exit", int(nth or 1))


active: _Armed | _Tracer | None = _from_environment()


def arm_from_environment() -> None:
    """Read the environment again: a process that was forked after the import has variables of its own."""
    global active
    active = active or _from_environment()


def spec(points: Collection[str]) -> tuple[str, str, int] | None:
    """Return what is armed if it is one of `points`, for code that counts and acts by itself: no GIL there.

    An exception that was to be raised becomes a failing system call.
    """
    if not isinstance(active, _Armed) or active.point not in points:
        return None
    return active.point, active.action if isinstance(active.action, str) else "raise", active.nth


def hit(point: str) -> None:
    """Die or fail here if `point` is armed. Call as ``if faults.active: faults.hit(name)``."""
    if active is not None:
        active.hit(point)


@contextmanager
def armed(point: str, action: str | BaseException = "exit", nth: int = 1) -> Iterator[None]:
    """Arm one point inside a ``with`` block.

    Parameters
    ----------
    point : str
        One of `POINTS`.
    action : {"exit", "raise"} or BaseException
        ``"exit"`` ends the process by `os._exit` with `EXIT_STATUS`, as a crash would; an exception is
        raised as it is.
    nth : int
        Act at the n-th time the point is reached, counted from 1.
    """
    global active
    before, active = active, _Armed(point, action, nth)
    try:
        yield
    finally:
        active = before


@contextmanager
def traced() -> Iterator[dict[str, int]]:
    """Count inside a ``with`` block how often each point is reached."""
    global active
    before, tracer = active, _Tracer()
    active = tracer
    try:
        yield tracer.hits
    finally:
        active = before
