"""Events between a test and the processes it caused: no test ever sleeps.

Each object is a path underneath, so it can be passed to tasks, actors and other drivers. All of them
survive the sudden death of any party: the kernel drops a dead process's locks and keeps what it wrote.

- ``Mailbox``: anybody posts small values, the test takes them with a deadline.
- ``Gate``: closed until the test opens it; those who wait pass at once afterwards.
- ``Tally``: counts across processes and incarnations, for "which attempt am I?".
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import select
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEADLINE_S = float(os.environ.get("FTRAY_TEST_DEADLINE_S", "20"))


class Mailbox:
    """A named pipe of JSON lines; the process that creates it is the one that takes."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(self.path)
        # Opened for both directions: the open does not block and the last writer's death is no EOF.
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._pending = b""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Sender, (self.path,))

    def post(self, value: Any = None) -> None:
        Sender(self.path).post(value)

    def take(self, timeout_s: float = DEADLINE_S) -> Any:
        """Return the next value, or raise TimeoutError."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._pending:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._fd], [], [], left_s)[0]:
                raise TimeoutError(f"nothing was posted to {self.path} within {timeout_s} s")
            self._pending += os.read(self._fd, 65536)
        line, self._pending = self._pending.split(b"\n", 1)
        return json.loads(line)

    def take_all(self) -> list[Any]:
        """Return what is there now, without waiting."""
        values = []
        while b"\n" in self._pending or select.select([self._fd], [], [], 0)[0]:
            values.append(self.take())
        return values

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Sender:
    """The far end of a ``Mailbox``."""

    def __init__(self, path: str) -> None:
        self.path = path

    def post(self, value: Any = None) -> None:
        line = json.dumps(value).encode() + b"\n"
        if len(line) > select.PIPE_BUF:
            raise ValueError(f"{len(line)} bytes would not be written in one piece")
        try:
            # A plain open would wait for a reader, for ever when the mailbox has been closed.
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # the test that would have taken it has ended
        try:
            os.set_blocking(fd, True)
            os.write(fd, line)
        finally:
            os.close(fd)


class Gate:
    """A door that only its creator opens. Waiting blocks in the kernel (a shared lock on a file)."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(self._fd, fcntl.LOCK_EX)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Waiter, (self.path,))

    def open(self) -> None:
        if self._fd >= 0:
            fcntl.flock(self._fd, fcntl.LOCK_UN)
            os.close(self._fd)
            self._fd = -1


class Waiter:
    """The far end of a ``Gate``."""

    def __init__(self, path: str) -> None:
        self.path = path

    def wait(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)


class Tally:
    """A counter in a file; ``bump`` returns how often it was called before, over all processes."""

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)

    def bump(self) -> int:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            before = os.fstat(fd).st_size
            os.write(fd, b"x")
            return before
        finally:
            os.close(fd)

    @property
    def count(self) -> int:
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0


def eventually(condition: Callable[[], Any], what: str = "", timeout_s: float = DEADLINE_S) -> Any:
    """Wait for what announces itself by no event, such as a counter; return its first true value."""
    deadline = time.monotonic() + timeout_s
    nap_s = 0.0005
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s} s: {what or condition}")
        select.select([], [], [], nap_s)
        nap_s = min(nap_s * 1.5, 0.05)
