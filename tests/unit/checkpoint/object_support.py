"""What the tests of object stores share: a key with a life of saves, told step by step; outages."""

from __future__ import annotations

import threading
from typing import Any

from ftray.checkpoint import capture
from ftray.checkpoint.snapshots import SnapshotLog
from ftray.checkpoint.stores.object_store import ObjectStore
from ftray.checkpoint.stores.objects import Medium, Retry, TransientStoreError

KEY = "test/counter"
FAST = Retry(attempts=8, base_s=0.001, cap_s=0.004)
BALLAST_BYTES = 3000
WAIT_S = 20.0
REQUESTS = frozenset({"create", "write", "upload", "read", "size", "list", "delete"})


class Crash(BaseException):
    """A process that dies right here: no handler of ours runs for it."""


def small_objects(medium: Medium) -> ObjectStore:
    """A store that keeps even small snapshots as blob and manifest, tries again soon and does not probe."""
    medium.inline_bytes = 100  # type: ignore[misc]
    store = ObjectStore(medium, FAST)
    store._conditional = True
    return store


def open_log(store: Any) -> tuple[SnapshotLog, int, list[str]]:
    """Claim, restore, seal: what an incarnation does before it serves. Returns the number restored."""
    log = SnapshotLog(store, KEY, keep=2)
    log.claim({"pid": 1})
    past = log.find_past()
    log.seal(past.newest.name if past.newest else None, past.history)
    n = capture.load(past.newest.segments)["n"] if past.newest else 0
    return log, n, past.skipped


def save(log: SnapshotLog, n: int) -> None:
    """Save a state whose number is `n`; when this returns it is durable and counts."""
    state = {"n": n, "ballast": bytes(BALLAST_BYTES)}
    fields = {"class": "Counter", "module": "m", "state_version": 1, "calls": n, "reason": "test"}
    fields |= {"created_unix_s": 0.0, "deleted": [], "python": "3"}
    log.save(log.next_name(), fields, capture.StateCapturer().capture(state))


def live(store: Any, told: list[int], saves: int = 3) -> None:
    """One incarnation: restore, then some saves, each one told once it is announced."""
    log, n, _ = open_log(store)
    for number in range(n + 1, n + 1 + saves):
        save(log, number)
        told.append(number)
        log.retire()


def check_whole(store: ObjectStore, told: list[int]) -> int:
    """Restore in a new incarnation: nothing told is lost, nothing is left behind. Returns the number."""
    log, n, skipped = open_log(store)
    assert max(told, default=0) <= n <= max(told, default=0) + 1
    assert skipped == []
    save(log, n + 1)
    log.retire()
    listing = store.scan(KEY)
    assert listing.claims == listing.seals == [log.epoch]
    named = {f"{s.epoch:010}-{s.sequence:012}" for s in listing.snapshots}
    blobs = [entry.name for entry in store.objects.list("test%2Fcounter/blob")]
    assert {blob[5:28] for blob in blobs} <= named, "blobs that no manifest names"
    assert store.objects.medium.uploads("test%2Fcounter") == []
    return n


class Weather:
    """A medium whose requests fail for a time that passes only while somebody waits to try again."""

    def __init__(self, medium: Any) -> None:
        self._medium = medium
        self._changed = threading.Condition()
        self._now_s = 0.0
        self._bad_until_s = 0.0
        self._still = False
        self.only = REQUESTS

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._medium, name)
        if name not in self.only:
            return real

        def request(*args: Any) -> Any:
            if self._now_s < self._bad_until_s:
                raise TransientStoreError("503 SlowDown")
            return real(*args)

        return request

    def clock(self) -> float:
        return self._now_s

    def sleep(self, seconds: float) -> None:
        with self._changed:
            self._now_s += seconds
            assert self._changed.wait_for(lambda: not self._still or self._now_s < 10.0, WAIT_S)

    def turns_bad(self, for_s: float, still: bool = False) -> None:
        """Fail from now on; `still`: after 10 s the time stands still until `goes_on`."""
        with self._changed:
            self._now_s, self._bad_until_s, self._still = 0.0, for_s, still

    def goes_on(self) -> None:
        with self._changed:
            self._still = False
            self._changed.notify_all()
