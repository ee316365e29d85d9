"""The event loop of the node: epoll, named timers, child-exit wake-ups.

Owns: the epoll descriptor, one callback a descriptor, one deadline a timer name.
Invariants: single-threaded; a callback that was unregistered during a round is not called in it, nor is one
that was registered in it for a descriptor of the same number.
Leaves to others: everything that callbacks do.
"""

from __future__ import annotations

import os
import select
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

READ = select.EPOLLIN
WRITE = select.EPOLLOUT
_MAX_EVENTS = 256


class Loop:
    """Dispatch readiness and time to callbacks."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[int], object]] = {}
        self._timers: dict[object, tuple[float, Callable[[], object]]] = {}
        self._running = False
        self._wakeup: tuple[int, int] | None = None
        self.last_poll_s = time.monotonic()

    def register(self, fd: int, callback: Callable[[int], object], events: int = READ) -> None:
        """Call ``callback(events)`` whenever ``fd`` is ready."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def modify(self, fd: int, events: int) -> None:
        """Change what ``fd`` is watched for."""
        self._epoll.modify(fd, events)

    def unregister(self, fd: int) -> None:
        """Watch ``fd`` no more; call it before closing."""
        del self._callbacks[fd]
        self._epoll.unregister(fd)

    def set_timer(self, name: object, when_s: float | None, callback: Callable[[], object]) -> None:
        """Call ``callback`` once at ``when_s`` (monotonic; None: not at all) instead of the old timer."""
        if when_s is None:
            self._timers.pop(name, None)
        else:
            self._timers[name] = (when_s, callback)

    def watch_children(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` after children may have ended."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = (reader, writer)
        # The Python-level handler does nothing, but without one the signal would not write to the pipe.
        signal.signal(signal.SIGCHLD, lambda _signum, _frame: None)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

        def woken(_events: int) -> None:
            while len(_read(reader)) == 4096:
                pass
            callback()

        self.register(reader, woken)

    def run(self) -> None:
        """Dispatch until ``stop``."""
        self._running = True
        while self._running:
            timeout_s = self._timeout_s()
            ready = self._epoll.poll(timeout_s, _MAX_EVENTS)
            self.last_poll_s = time.monotonic()
            # A callback may close a descriptor whose number the next one gives to something new: an event
            # belongs to the registration that it was reported for.
            batch = [(fd, events, self._callbacks.get(fd)) for fd, events in ready]
            for fd, events, callback in batch:
                if callback is not None and self._callbacks.get(fd) is callback:
                    callback(events)
            self._fire_timers()

    def stop(self) -> None:
        """Leave ``run`` after this round."""
        self._running = False

    def _timeout_s(self) -> float:
        if not self._timers:
            return -1
        return max(0.0, min(when for when, _callback in self._timers.values()) - time.monotonic())

    def _fire_timers(self) -> None:
        if not self._timers:
            return
        now_s = time.monotonic()
        for name in [name for name, (when, _callback) in self._timers.items() if when <= now_s]:
            timer = self._timers.pop(name, None)
            if timer is not None:
                timer[1]()

    def close(self) -> None:
        """Close what the loop made."""
        signal.set_wakeup_fd(-1)
        if self._wakeup is not None:
            for fd in self._wakeup:
                os.close(fd)
        self._epoll.close()


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 4096)
    except BlockingIOError:
        return b""
