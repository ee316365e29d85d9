"""What became of tasks of processes that have ended: their last records, as far as there is room.

A pure table: pieces come in as bytes and go out as bytes; they are taken apart by who asks
(``_core/eventfold.pyx``). The records of a living process stay in its own ring (``event_rings``) until
somebody asks, so that tasks cost the node nothing.

Owns: which pieces are kept. Invariants: never more than ``max_tasks`` records; the oldest pieces go first,
of one that is too long the oldest records; what goes is counted.
"""

from __future__ import annotations

from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NamedTuple

    class Running(NamedTuple):
        """What the main thread of a process is in (``task`` 0: nothing), since when."""

        task: int
        attempt: int
        since: int

    class Piece(NamedTuple):
        """Records of one process, and what is needed to read them."""

        process: int
        records: bytes
        clock: tuple[int, int, int, int]
        running: Running

else:
    from collections import namedtuple

    Running = namedtuple("Running", "task attempt since")
    Piece = namedtuple("Piece", "process records clock running")

UNIT_BYTES = 64


class TaskEvents:
    """The records of processes that have ended.

    Parameters
    ----------
    max_tasks
        Records that are kept; 0 keeps none.

    Attributes
    ----------
    dropped
        Records that had to go, or were overwritten in their ring.
    """

    def __init__(self, max_tasks: int) -> None:
        self.max_tasks = max_tasks
        self.kept = 0
        self.dropped = 0
        self._pieces: deque[Piece] = deque()

    def add(self, piece: Piece, overwritten: int = 0) -> None:
        """Take in what a process left."""
        self.dropped += overwritten
        count = len(piece.records) // UNIT_BYTES
        if count > self.max_tasks:
            self.dropped += count - self.max_tasks
            piece = piece._replace(records=piece.records[(count - self.max_tasks) * UNIT_BYTES :])
            count = self.max_tasks
        if not count and not piece.running.task:
            return
        self._pieces.append(piece)
        self.kept += count
        while self.kept > self.max_tasks:
            oldest = self._pieces.popleft()
            gone = len(oldest.records) // UNIT_BYTES
            self.kept -= gone
            self.dropped += gone

    def pieces(self) -> list[Piece]:
        """Return what is kept, the oldest first."""
        return list(self._pieces)
