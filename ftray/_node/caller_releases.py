"""Tells exactly-once actors which callers can never ask again, so that they may forget what they answered.

Owns: what is to be told to each such actor. Invariants: an actor is told of every caller that was reported
while it existed, by the process that is its incarnation then, also if it was being restarted when the report
came; what one incarnation was told and did not live to note is not told again (the entries stay until the
end of their root).
Leaves to others: who can never ask again (owners of tasks report it), what an actor does about it.
"""

from __future__ import annotations

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

    def _tell(self, actor_id: bytes, frame: CallersDone) -> None:
        if self._send(actor_id, frame):
            return
        count = self._waiting.get(actor_id, 0) + len(frame.callers) // CALL_ID_SIZE
        if frame.roots or count <= _MAX_WAITING:
            self._actors[actor_id].append(frame)
            self._waiting[actor_id] = count
