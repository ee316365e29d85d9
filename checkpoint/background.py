"""One background thread per session: runs one job at a time and keeps one timer.

Invariants: the thread starts when first needed, and nobody waits until it has got a core (`threading`
would, which on a busy machine takes longer than the rest of a recovery); a job never raises out of the
thread unseen (jobs handle their own errors, and what still escapes goes to `on_error`); `stop` lets the
running job finish, within a bound.
"""

from __future__ import annotations

import _thread
import threading
import time
from collections.abc import Callable

Job = Callable[[], None]


class Background:
    """Runs jobs in order, and calls `on_timer` when the deadline set last is reached."""

    def __init__(
        self,
        name: str,
        on_timer: Callable[[float], None],
        on_error: Callable[[BaseException], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._on_timer, self._on_error, self._clock = name, on_timer, on_error, clock
        self._changed = threading.Condition(threading.Lock())
        self._jobs: list[Job] = []
        self._deadline_s: float | None = None
        self._ended: threading.Event | None = None  # None: there is no thread
        self._ident = 0
        self._stopping = False

    @staticmethod
    def cpu_s() -> float:
        """CPU time of the present thread, by which the cost of a save is measured."""
        return time.thread_time()

    def _ensure_thread(self) -> None:
        if self._ended is None:
            self._ended = threading.Event()
            _thread.start_new_thread(self._run, (self._ended,))

    def submit(self, job: Job) -> None:
        """Run `job` after those submitted before it."""
        with self._changed:
            if self._stopping:
                raise RuntimeError(f"{self._name}: the session is closed")
            self._jobs.append(job)
            self._ensure_thread()
            self._changed.notify()

    def set_timer(self, deadline_s: float | None) -> None:
        """Call `on_timer` at this instant of the clock, or never; replaces the deadline set before."""
        with self._changed:
            if self._stopping or deadline_s == self._deadline_s:
                return
            self._deadline_s = deadline_s
            if deadline_s is not None:
                self._ensure_thread()
            self._changed.notify()

    def stop(self, timeout_s: float) -> bool:
        """End the thread once its jobs are done; False if that took longer than `timeout_s`."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
            ended = self._ended
        if ended is None or self._ident == threading.get_ident():
            return True
        return ended.wait(timeout_s)

    def _next(self) -> Job | None:
        with self._changed:
            while True:
                if self._jobs:
                    return self._jobs.pop(0)
                if self._stopping:
                    return None
                now_s = self._clock()
                if self._deadline_s is not None and now_s >= self._deadline_s:
                    self._deadline_s = None
                    return lambda: self._on_timer(now_s)
                self._changed.wait(None if self._deadline_s is None else self._deadline_s - now_s)

    def _run(self, ended: threading.Event) -> None:
        self._ident = threading.get_ident()
        try:
            while (job := self._next()) is not None:
                try:
                    job()
                except BaseException as error:
                    self._on_error(error)
        finally:
            ended.set()
