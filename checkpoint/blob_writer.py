"""Large arguments and replies on their way to the store: on a thread, and before the records that name them.

A call with a large argument ends like any other: its record is appended, and waits in the journal until the
blob is durable; so does what comes after it. The thread that serves calls never waits for the medium: with
too much on its way the actor starts no further call (`journal.MOST_WAITING_BYTES`).

Invariants: no record is written before the blobs that it names are durable; blobs are written in the order in
which they were given; a blob that cannot be written ends the journal, as a record that cannot be. Leaves to
others: names and sizes of blobs, and that the record is appended after `write` has returned.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from .background import Background
from .errors import CheckpointError, CheckpointSaveError
from .journal import Journal


class BlobWriter:
    """Writes the blobs of one incarnation.

    Parameters
    ----------
    put : callable
        ``put(name, content)`` makes a blob durable.
    journal : Journal
        With a `hold_back` that works.
    count : callable
        Told how many bytes more are on their way; negative: fewer.
    background : callable
        Makes the thread, see `background.Background`.
    """

    def __init__(
        self,
        name: str,
        put: Callable[[str, bytes], None],
        journal: Journal,
        count: Callable[[int], None],
        background: Callable[..., Background],
    ) -> None:
        self._put, self._journal, self._count = put, journal, count
        self._background = background(f"{name} blobs", _no_timer, self._failed)
        self._lock = threading.Lock()
        self._under_way: deque[int] = deque()  # positions of the first records held back
        self._error: BaseException | None = None

    def write(self, name: str, content: bytes) -> None:
        """Begin to make a blob durable; the record that names it is appended after this has returned.

        Raises what made an earlier one fail.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            self._under_way.append(self._journal.last_position + 1)
            self._journal.hold_back(self._under_way[0])
        self._count(len(content))
        self._background.submit(lambda: self._write(name, content))

    def _write(self, name: str, content: bytes) -> None:
        if self._error is not None:
            return
        try:
            self._put(name, content)
        except Exception as error:
            self._fail(error if isinstance(error, CheckpointError) else _cannot(name, error))
            return
        self._count(-len(content))
        with self._lock:
            self._under_way.popleft()
            self._journal.hold_back(self._under_way[0] if self._under_way else None)

    def _failed(self, error: BaseException) -> None:
        """Not by the medium: the thread has met something that nobody expects."""
        self._fail(_cannot("of a call", error))

    def _fail(self, error: BaseException) -> None:
        self._error = error
        self._journal.fail(error)

    def stop(self, timeout_s: float) -> None:
        """End the thread; the journal, which waits for all blobs, is closed already or has failed."""
        self._background.stop(timeout_s)


def _cannot(name: str, error: BaseException) -> CheckpointSaveError:
    return CheckpointSaveError(f"blob {name} cannot be written: {type(error).__name__}: {error}")


def _no_timer(_now_s: float) -> None:
    raise AssertionError("no timer was set")
