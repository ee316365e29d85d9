"""How many methods that change an actor's state run beside each other, and who waits until none does.

Owns that number. All of it is done under the session's gate, which captures hold too: whoever holds it and
finds that none runs may capture.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class RunningMethods:
    """The counted methods of one session that run now.

    Parameters
    ----------
    gate : threading.RLock
        Held during captures.
    """

    __slots__ = ("_waiting", "gate", "number")

    def __init__(self, gate: threading.RLock) -> None:
        self.gate = gate
        """While it is held no counted method begins or ends, if methods may run beside each other."""
        self._waiting: list[Callable[[], object]] = []
        self.number = 0
        """Only kept when methods may run beside each other."""

    def begin(self) -> None:
        """A method begins; waits while a capture is being taken."""
        with self.gate:
            self.number += 1

    def tell(self) -> None:
        """A method has ended, and was counted: call those who wait if it was the last. Under the gate."""
        while self._waiting and not self.number:
            self._waiting.pop()()

    def when_none(self, action: Callable[[], object]) -> bool:
        """Have `action` called by the thread of the last one to end. False: none runs, nothing is called."""
        with self.gate:
            if self.number:
                self._waiting.append(action)
            return self.number > 0

    def wait(self, timeout_s: float, is_async: bool) -> None:
        """Wait until none runs, but not on the event loop that they need to go on."""
        none = threading.Event()
        if self.when_none(none.set) and not (is_async and _in_loop()):
            none.wait(timeout_s)


def _in_loop() -> bool:
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
