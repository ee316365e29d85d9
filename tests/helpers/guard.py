"""No test hangs: after its time every stack is dumped and the main thread gets ``HangError``.

If the main thread cannot even be interrupted (stuck in C), the whole run is ended a little later.
"""

from __future__ import annotations

import contextlib
import faulthandler
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

LAST_RESORT_S = 30
AGAIN_S = 0.5  # an alarm that comes just before a system call does not interrupt it: the next one does

_dump_fd = sys.__stderr__.fileno() if sys.__stderr__ else 2


def dump_to(fd: int) -> None:
    """Where stacks are written; pytest has its own idea of what standard error is while a test runs."""
    global _dump_fd
    _dump_fd = fd


class HangError(BaseException):
    """A test took too long. Not an ``Exception``, so that no handler under test swallows it."""


@contextlib.contextmanager
def time_limit(limit_s: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("the limit is set on the main thread only")

    def on_alarm(signum: int, frame: FrameType | None) -> None:
        if frame is not None and frame.f_lineno is None:  # between two lines: pytest cannot tell of that
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.dump_traceback(file=_dump_fd, all_threads=True)
        raise HangError(f"took longer than {limit_s} s")

    before = signal.signal(signal.SIGALRM, on_alarm)
    faulthandler.dump_traceback_later(limit_s + LAST_RESORT_S, exit=True, file=_dump_fd)
    signal.setitimer(signal.ITIMER_REAL, limit_s, AGAIN_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
