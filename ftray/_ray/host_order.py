"""In which order one caller's numbered calls begin at an exactly-once actor on Ray. Pure.

Ray sends calls that are retried again in any order, and lets calls whose arguments are there overtake others.
Each call has a number, and begins when all before it are known: they have begun here, an earlier incarnation
has recorded them, or their caller says that it has their answers.

Owns: the next number of each caller, and who waits for it. Invariants: a call that waits is let go once; a
number that never comes (its call was cancelled, or an argument of it has failed) stops nobody for ever,
because its caller says so (`acknowledged`), or because whoever waits gives up (`give_up`).
Leaves to others: what has been recorded, how one waits, and for how long.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

MOST_CALLERS = 100_000


class _Caller:
    __slots__ = ("next", "reads", "waiting")

    def __init__(self) -> None:
        self.next = 1
        self.waiting: dict[int, list[Callable[[], None]]] = {}
        self.reads: dict[int, list[Callable[[], None]]] = {}  # by the number of the next call


class Order:
    """The callers of one incarnation.

    Parameters
    ----------
    recorded : callable
        ``recorded(parent, n)``: whether the ledger knows the n-th call of that caller.
    most_callers : int
        Callers that nobody waits for are forgotten beyond this many; what is known of them is found again.
    """

    def __init__(
        self, recorded: Callable[[bytes, int], bool], most_callers: int = MOST_CALLERS
    ) -> None:
        self._recorded, self._most = recorded, most_callers
        self._callers: OrderedDict[bytes, _Caller] = OrderedDict()

    def arrive(self, parent: bytes, n: int, acked: int, go: Callable[[], None]) -> None:
        """The n-th call has come; `go` is called, once, when it begins: now, or later."""
        caller = self._caller(parent)
        self._known(parent, caller, acked)
        if n > caller.next:
            caller.waiting.setdefault(n, []).append(go)
            return
        go()
        if n == caller.next:
            caller.next += 1
            self._advance(parent, caller)

    def arrive_read(self, parent: bytes, n: int, acked: int, go: Callable[[], None]) -> None:
        """A call that changes nothing has come, made when the next one that does was to be number `n`."""
        caller = self._caller(parent)
        self._known(parent, caller, acked)
        if n > caller.next:
            caller.reads.setdefault(n, []).append(go)
        else:
            go()

    def acknowledged(self, parent: bytes, acked: int) -> None:
        """The caller has the outcome of all its calls below `acked`, of those too that never came."""
        caller = self._callers.get(parent)
        if caller is not None:
            self._known(parent, caller, acked)

    def give_up(self, parent: bytes, n: int) -> int:
        """Whoever waits as number `n` waits no longer; returns the first that never came."""
        caller = self._caller(parent)
        missing = caller.next
        if n > caller.next:
            caller.next = n
            self._advance(parent, caller)
        return missing

    def _caller(self, parent: bytes) -> _Caller:
        caller = self._callers.get(parent)
        if caller is None:
            caller = self._callers[parent] = _Caller()
            if len(self._callers) > self._most:
                self._forget_one()
        else:
            self._callers.move_to_end(parent)
        return caller

    def _forget_one(self) -> None:
        for parent, caller in self._callers.items():
            if not (caller.waiting or caller.reads):
                del self._callers[parent]
                return

    def _known(self, parent: bytes, caller: _Caller, acked: int) -> None:
        if acked > caller.next:
            caller.next = acked
            self._advance(parent, caller)
        elif caller.next == 1:
            self._advance(parent, caller)

    def _advance(self, parent: bytes, caller: _Caller) -> None:
        """Go on over what is recorded, and let go whose turn has come: a waiting call begins by that."""
        self._let_go(caller.waiting, caller.next)
        while True:
            waiting = caller.waiting.pop(caller.next, None)
            if waiting is None and not self._recorded(parent, caller.next):
                break
            caller.next += 1
            for go in waiting or ():
                go()
        self._let_go(caller.reads, caller.next + 1)

    @staticmethod
    def _let_go(held: dict[int, list[Callable[[], None]]], below: int) -> None:
        for n in sorted(n for n in held if n < below):
            for go in held.pop(n):
                go()
