"""What a session counts for people: its saves, how long they took, how long calls stood still for them."""

from __future__ import annotations

import time
from typing import Any

from .lineage import SnapshotName
from .scheduler import SaveScheduler
from .snapshots import Past

STATUS_METHOD = "__ray_checkpoint_status__"
"""The method of every actor by which it tells its figures; see `manage.status`."""


class Figures:
    """Figures of one session. `paused` is called on the actor's thread, the rest under the session's lock."""

    __slots__ = (
        "failures",
        "first_pause_s",
        "journal_error",
        "last_error",
        "last_pause_s",
        "last_save_s",
        "last_saved_unix_s",
        "last_snapshot",
        "max_calls_unsaved",
        "max_pause_s",
        "pause_s_total",
        "restore_s",
        "restored_from",
        "save_cpu_s_total",
        "save_s_total",
        "saved_bytes_total",
        "saves",
        "size_bytes",
        "skipped",
    )

    def __init__(self) -> None:
        self.restored_from: str | None = None
        self.skipped: list[str] = []
        self.last_snapshot: str | None = None
        self.last_saved_unix_s: float | None = None
        self.size_bytes: int | None = None
        self.last_save_s: float | None = None
        self.saves = self.failures = self.saved_bytes_total = self.max_calls_unsaved = 0
        self.last_error: str | None = None
        self.journal_error: str | None = None
        self.restore_s: float | None = None
        self.first_pause_s: float | None = None
        self.last_pause_s: float | None = None
        self.max_pause_s = self.pause_s_total = self.save_s_total = self.save_cpu_s_total = 0.0

    def restored(self, past: Past) -> None:
        """The session goes on from this past."""
        self.restored_from = self.last_snapshot = past.newest.name.id if past.newest else None
        self.skipped = past.skipped
        if past.newest is not None:
            self.size_bytes = past.newest.header.file_length
            self.last_saved_unix_s = float(past.newest.header.fields["created_unix_s"])

    def paused(self, pause_s: float) -> None:
        """Calls stood still for a capture."""
        if self.first_pause_s is None:
            self.first_pause_s = pause_s
        self.last_pause_s = pause_s
        self.max_pause_s = max(self.max_pause_s, pause_s)
        self.pause_s_total += pause_s

    def unsaved(self, calls: int) -> None:
        """A snapshot has become durable; a crash just before would have lost the effects of so many calls."""
        self.max_calls_unsaved = max(self.max_calls_unsaved, calls)

    def saved(self, name: SnapshotName, size_bytes: int, save_s: float) -> None:
        """A snapshot is durable."""
        self.last_snapshot, self.size_bytes, self.last_save_s = name.id, size_bytes, save_s
        self.last_saved_unix_s, self.last_error = time.time(), self.journal_error
        self.saves += 1
        self.saved_bytes_total += size_bytes
        self.save_s_total += save_s

    def failed(self, error: BaseException, journal: bool = False) -> None:
        """A save, or what comes with it, failed; `journal`: what the journal asks of the store fails."""
        self.failures += 1
        self.last_error = f"{type(error).__name__}: {error}"
        if journal:
            self.journal_error = self.last_error

    def journal_goes_on(self) -> None:
        """The store answers the journal again."""
        if self.last_error == self.journal_error:
            self.last_error = None
        self.journal_error = None


def figures(of: Figures, scheduler: SaveScheduler, end: str | None) -> dict[str, Any]:
    """Return the figures as plain values."""
    saved_unix_s = of.last_saved_unix_s
    return {
        **{name: getattr(of, name) for name in Figures.__slots__},
        "snapshot_age_s": None if saved_unix_s is None else max(0.0, time.time() - saved_unix_s),
        "state": "ended" if end else "failing" if scheduler.failures or of.journal_error else "ok",
        "ended": end,
        "in_flight": scheduler.in_flight,
        "wanted": scheduler.wanted,
        "held_back": scheduler.held_back,
    }
