"""Which processes still have to acknowledge a death, and what waits for it.

A pure state machine.

Owns: per dead process, who was registered when it died and has not acknowledged yet.
Invariants: each of them is awaited until it acknowledges or dies itself; then the death is *settled*, once:
the slot of the dead process may be used again and its segments that nobody holds may go.
Leaves to others: segments (``segments``), slots (``board``).
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Deaths:
    """Acknowledgements that are outstanding, by dead process."""

    def __init__(self) -> None:
        self._awaited: dict[bytes, set[int]] = {}

    def died(self, dead: bytes, survivors: Iterable[int]) -> bool:
        """A process died while ``survivors`` (client numbers) lived; True when it is settled at once."""
        if dead in self._awaited:
            raise RuntimeError(f"process {dead.hex()} died twice")
        self._awaited[dead] = set(survivors)
        return self._settle(dead)

    def acknowledged(self, dead: bytes, client: int) -> bool:
        """``client`` has drained its channel to ``dead``; True when that settles the death.

        An acknowledgement that is not awaited (a second one, one of a death that was settled) means nothing.
        """
        awaited = self._awaited.get(dead)
        if awaited is None or client not in awaited:
            return False
        awaited.discard(client)
        return self._settle(dead)

    def client_gone(self, client: int) -> list[bytes]:
        """``client`` died too; the deaths that this settles, in the order in which they happened."""
        settled = []
        for dead, awaited in list(self._awaited.items()):
            if client in awaited:
                awaited.discard(client)
                if self._settle(dead):
                    settled.append(dead)
        return settled

    def unsettled(self) -> int:
        """Return how many deaths wait for acknowledgements."""
        return len(self._awaited)

    def _settle(self, dead: bytes) -> bool:
        if self._awaited[dead]:
            return False
        del self._awaited[dead]
        return True
