"""A time in which a store does not answer: told when it has begun, and when it is over."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from ..errors import CheckpointStoreError

AFTER_FAILURES, AFTER_S = 3, 1.0
"""One begins when a request has failed so often, or once more than so long after its beginning."""


class Outage:
    """What the requests of one journal, which may be under way beside each other, say of their store.

    Parameters
    ----------
    clock : callable
        Seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.on_change: Callable[[Exception | None], None] | None = None
        """Called with the cause when an outage begins, with None when the store answers again."""
        self._failing = 0
        self._lock = threading.Lock()  # held while telling: the end is told after the beginning

    def is_one(self, failures: int, began_s: float) -> bool:
        """Whether so many failures since `began_s` are more than what the next attempt mends."""
        return failures >= AFTER_FAILURES or self.clock() - began_s > AFTER_S

    def begins(self, error: Exception) -> None:
        """A request is not answered, and is tried again."""
        with self._lock:
            self._failing += 1
            if self._failing == 1 and self.on_change is not None:
                self.on_change(CheckpointStoreError(str(error)))  # without the frames of the request

    def ends(self) -> None:
        """A request that was not is answered."""
        with self._lock:
            self._failing -= 1
            if not self._failing and self.on_change is not None:
                self.on_change(None)
