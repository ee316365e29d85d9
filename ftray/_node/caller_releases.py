"""Tells exactly-once actors which callers can never ask again, so that they may forget what they answered.

Owns: what is to be told to each such actor. Invariants: an actor is told of every caller that was reported
while it existed, by the process that is its incarnation then, also if it was being restarted when the report
came; what one incarnation was told and did not live to note is not told again (the entries stay until the
end of their root).
Leaves to others: who can never ask again (owners of tasks report it), what an actor does about it.
"""

from __future__ import annotations

from ftray._node.caller_tree import CallerTree
from ftray._node.frames import CALL_ID_SIZE, CallersDone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_WAITING = 100_000  # callers an actor that is not there; older ones go with their root


class CallerReleases:
    """Reports on their way to actors.

    Parameters
    ----------
    send
        Send a frame to the process of an actor; False when it has none that is ready.
    """

    def __init__(self, send: Callable[[bytes, CallersDone], bool]) -> None:
        self._send = send
        self._actors: dict[bytes, list[CallersDone]] = {}
        self._waiting: dict[bytes, int] = {}
        self._trees: dict[int, CallerTree] = {}  # by job

    def created(self, actor_id: bytes) -> None:
        """An exactly-once actor exists from now on."""
        self._actors.setdefault(actor_id, [])

    def gone(self, actor_id: bytes) -> None:
        """It will have no further incarnation."""
        self._actors.pop(actor_id, None)
        self._waiting.pop(actor_id, None)

    def ready(self, actor_id: bytes) -> None:
        """An incarnation serves: it is told what came meanwhile."""
        waiting = self._actors.get(actor_id)
        if not waiting:
            return
        self._actors[actor_id] = []
        self._waiting.pop(actor_id, None)
        for frame in waiting:
            self._tell(actor_id, frame)

    def report(self, frame: CallersDone) -> None:
        """Callers, or all that come from a root, can never ask again."""
        for actor_id in list(self._actors):
            self._tell(actor_id, frame)

    def reported(self, job_id: int, frame: CallersDone) -> None:
        """A process of a job reports callers, and such as are over when others are."""
        if not self._actors:
            return
        tree = self._trees.setdefault(job_id, CallerTree())
        over = []
        for child, above in _pairs(frame.nested):
            over += tree.nested(child, above)
        for caller in _ids(frame.callers):
            over += tree.over(caller)
        if over or frame.roots:
            self.report(CallersDone(b"".join(over), frame.roots))

    def job_over(self, job_id: int) -> None:
        """Its root is reported: nothing more is to be known of its callers."""
        self._trees.pop(job_id, None)

    def _tell(self, actor_id: bytes, frame: CallersDone) -> None:
        if self._send(actor_id, frame):
            return
        count = self._waiting.get(actor_id, 0) + len(frame.callers) // CALL_ID_SIZE
        if frame.roots or count <= _MAX_WAITING:
            self._actors[actor_id].append(frame)
            self._waiting[actor_id] = count


def _ids(raw: bytes) -> list[bytes]:
    return [raw[at : at + CALL_ID_SIZE] for at in range(0, len(raw) - len(raw) % CALL_ID_SIZE, CALL_ID_SIZE)]


def _pairs(raw: bytes) -> list[tuple[bytes, bytes]]:
    ids = _ids(raw)
    return list(zip(ids[::2], ids[1::2], strict=False))
