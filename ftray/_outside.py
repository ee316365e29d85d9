"""The guard of an exactly-once actor in this engine: what leaves its methods, and what they get from outside.

Nothing leaves before everything that it depends on is durable: the journal's records up to now, and the
start record and the values of the method that sends it. What a method gets (`get`, `wait`, `await`, a new
actor) is journalled before the method sees it, so that a method that runs again gets the same; one that
only repeats a finished call sends nothing at all (docs/exactly-once.md). Requests to a store that is an
actor are no outputs: they pass (`_core.context.Apart`), since all that waits here waits for them.

Owns: what is asked of a method's record, and when. Leaves to others: the values themselves
(`ftray.checkpoint.values`, `ftray._outside_values`, `ftray._await_order`), and who asks
(``_core/guards.pyx``).
"""

from __future__ import annotations

from typing import Any

from ftray import _core
from ftray._await_order import AwaitOrder, PlainAwait
from ftray._core.context import is_apart
from ftray._core.gets import plain_get
from ftray._core.waits import plain_wait
from ftray._long_waits import LongWaits
from ftray._outside_values import CANCELLED, ERROR, GET, MADE, NOT_SENT, WAIT, decode, encode, encode_error
from ftray.checkpoint.values import READING, Execution, current
from ftray.exceptions import NotSupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from ftray.checkpoint.exactly_once import ExactlyOnce


class Outside:
    """See the module; one per process of an exactly-once actor."""

    def __init__(self, once: ExactlyOnce) -> None:
        self._once = once
        self._long = LongWaits(once)
        # Where methods that only read run one at a time, they too keep out whom they wait for.
        self._reads_alone = once.host.max_concurrency == 1 and not once.host.is_async
        self._ends = False

    def loop_ends(self) -> None:
        """The event loop of the actor ends, with whatever is still awaited in it."""
        self._ends = True

    def _located(self) -> Execution | object | None:
        return None if is_apart() else self._once.locate()

    def _execution(self) -> Execution | None:
        """The method that changes the state and that the present code belongs to."""
        found = self._located()
        return None if found is None or found is READING else found  # type: ignore[return-value]

    def is_cancelled(self, asked: Callable[[], bool]) -> bool:
        """Whether the running method was cancelled, as `asked` says: at the same place when it runs again."""
        execution = self._execution()
        if execution is None:
            return asked()
        if execution.happened(CANCELLED) is None:
            if execution.used < len(execution.recorded) or execution.replaying or not asked():
                return False
            execution.happens(CANCELLED, b"")
        return True

    def exits(self) -> bool:
        """Whether `exit_actor` was called by a method that runs again for recovery: it ends that method only.

        The actor was to end, and was killed before its last save; else every later one would end there, too.
        """
        found = current.get()
        if not isinstance(found, Execution):
            return False
        found.exits = True
        return True

    # -- what leaves

    def sends(self, num_returns: int) -> bool:
        """Something is about to leave. True: it has left before, and must not again.

        Raises what `not_sent` was given here the first time.
        """
        if is_apart():
            return False
        execution = self._execution()
        if execution is None:
            if self._once.journal is not None:
                self._once.wait(self._once.last_position)
            return False
        if num_returns < 0:
            self.refuse('a call with num_returns="streaming" or "dynamic"')
        self._sent_before(execution)
        if execution.replaying:
            return True
        self._once.wait(execution.start(), in_method=True)
        return False

    def puts(self) -> bool:
        """A value is about to be stored; as `sends`, but for what stays here."""
        execution = self._execution()
        if execution is None:
            return False
        self._sent_before(execution)
        return execution.replaying

    def not_sent(self, error: Exception) -> None:
        """What was about to leave, or to be stored, was not, and the method gets this error."""
        execution = self._execution()
        if execution is not None and not is_apart():
            execution.happens(NOT_SENT, encode_error(error))

    @staticmethod
    def _sent_before(execution: Execution) -> None:
        """Raise what this could not be sent for the first time."""
        failed = execution.happened(NOT_SENT)
        if failed is not None:
            decode(ERROR + failed, [])

    def repeats(self) -> bool:
        """Whether the present code repeats a finished call."""
        execution = self._execution()
        return execution is not None and execution.replaying

    def refuse(self, what: str) -> None:
        """Raise if a method that changes the state asks for what no journal can put in order."""
        if self._execution() is not None:
            raise NotSupportedError(
                f"{what} is not supported in a method of an exactly-once actor that changes its state: what"
                " comes of it could not be repeated in the same order. Use ftray.get, ftray.wait or await"
            )

    # -- what comes in

    def get(self, refs: Any, timeout: float | None) -> Any:
        """`ftray.get`."""
        return self._value(GET, lambda: self._patient_get(refs, timeout))

    def _patient_get(self, refs: Any, timeout: float | None) -> Any:
        several = refs if isinstance(refs, list) else [refs]
        method = self._holding()
        known = _is_timeout(timeout) and all(isinstance(ref, _core.ObjectRef) for ref in several)
        if method is None or not known:
            return plain_get(refs, timeout)
        return self._long.patient(
            lambda left_s: plain_get(refs, left_s), lambda _: True, several, timeout, method
        )

    def _holding(self) -> str | None:
        """The method that runs here, if no other begins before it ends."""
        found = self._located()
        if found is READING:
            return "a method that reads" if self._reads_alone else None
        return None if found is None else found.method  # type: ignore[attr-defined]

    def wait(
        self, refs: Any, num_returns: int, timeout: float | None, fetch_local: bool
    ) -> tuple[list[Any], list[Any]]:
        """`ftray.wait`: which of the refs were ready is the value."""
        execution = self._execution()
        if execution is None or execution.producing:
            return plain_wait(refs, num_returns, timeout, fetch_local)
        given = list(refs)

        def look() -> list[int]:
            ready = self._patient_wait(given, num_returns, timeout, fetch_local)
            places = {id(ref): place for place, ref in enumerate(given)}
            return [places[id(ref)] for ref in ready]

        ready: list[int] = self._value(WAIT, look)
        chosen = set(ready)
        return [given[i] for i in ready], [ref for i, ref in enumerate(given) if i not in chosen]

    def _patient_wait(
        self, refs: list[Any], num_returns: int, timeout: float | None, fetch_local: bool
    ) -> list[Any]:
        """`num_returns` below the number of refs may be had from others: only a wait for all is looked at."""
        method = self._holding()
        if method is None or num_returns != len(refs) or not _is_timeout(timeout):
            return plain_wait(refs, num_returns, timeout, fetch_local)[0]
        found: list[Any] = self._long.patient(
            lambda left_s: plain_wait(refs, num_returns, left_s, fetch_local)[0],
            lambda ready: len(ready) == num_returns,
            refs,
            timeout,
            method,
        )
        return found

    def made(self, make: Callable[[], Any]) -> Any:
        """A handle that `make` gets by making, or finding, an actor."""
        execution = self._execution()
        if execution is not None and not execution.replaying:
            self._once.wait(execution.start(), in_method=True)
        return self._value(MADE, make)

    def _value(self, kind: int, produce: Callable[[], Any]) -> Any:
        execution = self._execution()
        if execution is None or execution.producing:
            return produce()
        kept: list[Any] = []

        def encoded() -> bytes:
            outcome = encode(produce, kind == MADE)  # a handle has the ref of its actor
            kept.append(outcome.pop())  # a frame that refers to an error is kept by its traceback
            data: bytes = outcome.pop()
            return data

        return decode(execution.take(kind, encoded), kept)

    async def _awaited(self, ref: _core.ObjectRef, execution: Execution) -> Any:
        order = execution.awaits
        if order is None:
            order = execution.awaits = AwaitOrder(execution, self._long, lambda: self._ends)
        return await order.value(ref)

    def awaited(self, ref: _core.ObjectRef) -> Coroutine[Any, Any, Any] | PlainAwait:
        """``await ref``."""
        execution = self._execution()
        return PlainAwait(ref) if execution is None else self._awaited(ref, execution)


def _is_timeout(timeout: Any) -> bool:
    """Whether it is a timeout; what is none is said where it is used."""
    if timeout is None:
        return True
    return isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout >= 0
