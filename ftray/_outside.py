"""The guard of an exactly-once actor in this engine: what leaves its methods, and what they get from outside.

Nothing leaves before everything that it depends on is durable: the journal's records up to now, and the
start record and the values of the method that sends it. What a method gets (`get`, `wait`, `await`, a new
actor) is journalled before the method sees it, so that a method that runs again gets the same; one that
only repeats a finished call sends nothing at all (docs/exactly-once.md). Requests to a store that is an
actor are no outputs: they pass (`_core.context.Apart`), since all that waits here waits for them.

Owns: how outside values are written, and the order of concurrent ``await`` of one method.
Leaves to others: the values themselves (`ftray.checkpoint.values`), and who asks (``_core/guards.pyx``).
"""

from __future__ import annotations

import struct
from typing import Any

from ftray import _core
from ftray._core.context import is_apart
from ftray._core.gets import plain_get
from ftray._core.serial import deserialize, serialize
from ftray._core.waits import plain_wait
from ftray._long_waits import LongWaits
from ftray.checkpoint.values import READING
from ftray.exceptions import NotSupportedError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from ftray.checkpoint.exactly_once import ExactlyOnce
    from ftray.checkpoint.values import Execution

# Kinds of outside values; below 16 are the toolkit's own.
GET, WAIT, AWAIT, MADE = 16, 17, 18, 19
_VALUE, _ERROR = b"\x00", b"\x01"
_ORDINAL = struct.Struct("<I")


class Outside:
    """See the module; one per process of an exactly-once actor."""

    def __init__(self, once: ExactlyOnce) -> None:
        self._once = once
        self._long = LongWaits(once)
        # Where methods that only read run one at a time, they too keep out whom they wait for.
        self._reads_alone = once.host.max_concurrency == 1 and not once.host.is_async

    def _located(self) -> Execution | object | None:
        return None if is_apart() else self._once.locate()

    def _execution(self) -> Execution | None:
        """The method that changes the state and that the present code belongs to."""
        found = self._located()
        return None if found is None or found is READING else found  # type: ignore[return-value]

    # -- what leaves

    def sends(self, num_returns: int) -> bool:
        """Something is about to leave. True: it has left before, and must not again."""
        if is_apart():
            return False
        execution = self._execution()
        if execution is None:
            if self._once.journal is not None:
                self._once.wait(self._once.last_position)
            return False
        if num_returns < 0:
            self.refuse('a call with num_returns="streaming" or "dynamic"')
        if execution.replaying:
            return True
        self._once.wait(execution.start())
        return False

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
        if execution is None:
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
        if self._execution() is not None and not self.repeats():
            self.sends(1)
        return self._value(MADE, make)

    def _value(self, kind: int, produce: Callable[[], Any]) -> Any:
        execution = self._execution()
        if execution is None:
            return produce()
        kept: list[Any] = []

        def encoded() -> bytes:
            outcome = _encode(produce, [] if kind == MADE else None)  # a handle has the ref of its actor
            kept.append(outcome.pop())  # a frame that refers to an error is kept by its traceback
            data: bytes = outcome.pop()
            return data

        return _decode(execution.take(kind, encoded), kept)

    async def _awaited(self, ref: _core.ObjectRef, execution: Execution) -> Any:
        order = execution.awaits
        if order is None:
            order = execution.awaits = _AwaitOrder(execution, self._long)
        return await order.value(ref)

    def awaited(self, ref: _core.ObjectRef) -> Coroutine[Any, Any, Any] | _Plain:
        """``await ref``."""
        execution = self._execution()
        return _Plain(ref) if execution is None else self._awaited(ref, execution)


def _is_timeout(timeout: Any) -> bool:
    """Whether it is a timeout; what is none is said where it is used."""
    if timeout is None:
        return True
    return isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout >= 0


class _Plain:
    def __init__(self, ref: _core.ObjectRef) -> None:
        self._ref = ref

    def __await__(self) -> Any:
        return self._ref._plain_await()


class _AwaitOrder:
    """The concurrent awaits of one run of a method, numbered in the order in which they began.

    They are recorded in the order in which they ended, with their numbers; a run that repeats this ends them
    in the same order.
    """

    def __init__(self, execution: Execution, long: LongWaits) -> None:
        self._execution, self._long = execution, long
        self._begun = 0
        self._waiting: dict[int, asyncio.Future[bytes | None]] = {}

    async def value(self, ref: _core.ObjectRef) -> Any:
        number, self._begun = self._begun, self._begun + 1
        execution = self._execution
        if execution.used < len(execution.recorded) or self._waiting:
            import asyncio  # here, since most actors have no event loop

            future = self._waiting[number] = asyncio.get_running_loop().create_future()
            self._give()
            recorded = await future
            if recorded is not None:
                return _decode(recorded, [])
        return await self._live(number, ref)

    def _give(self) -> None:
        """Give recorded values to who waits for them, in the order of the records; then others go on live."""
        execution = self._execution
        while execution.used < len(execution.recorded):
            following = execution.recorded[execution.used]
            if following[0] != AWAIT:
                return
            (number,) = _ORDINAL.unpack_from(following, 1)
            future = self._waiting.pop(number, None)
            if future is None:
                return
            future.set_result(execution.take(AWAIT, bytes)[_ORDINAL.size :])
        if not execution.replaying:
            waiting, self._waiting = self._waiting, {}
            for number in sorted(waiting):
                waiting[number].set_result(None)

    async def _live(self, number: int, ref: _core.ObjectRef) -> Any:
        error: Exception | None
        awaited = self._long.begin(ref, self._execution.method)
        try:
            value, error = await _Plain(ref), None
        except Exception as raised:
            value, error = None, raised
        except BaseException:
            if not awaited.interrupted():
                raise
            value, error = None, awaited.error
        finally:
            self._long.end(awaited)

        def produce() -> Any:
            if error is not None:
                raise error
            return value

        data: bytes = _encode(produce)[0]
        self._execution.take(AWAIT, lambda: _ORDINAL.pack(number) + data)
        if error is not None:
            raise error
        return value


def _encode(produce: Callable[[], Any], refs: list[Any] | None = None) -> list[Any]:
    """Return the bytes of an outcome, and the outcome itself: the value, or the exception.

    `refs` takes the refs inside, which nobody keeps for a later run; None: there must not be any.
    """
    try:
        value = produce()
    except Exception as error:
        return [_ERROR + _encode_error(error), error]
    return [_VALUE + serialize(value, refs), value]


def _encode_error(error: Exception) -> bytes:
    from ftray._task_errors import dump_error, load_error, make_task_error
    from ftray.exceptions import RayError

    data = dump_error(error)  # type: ignore[arg-type]
    if isinstance(error, RayError) or type(load_error(data)) is type(error):
        return data
    return make_task_error(error, "", 0)


def _decode(data: bytes, kept: list[Any]) -> Any:
    """Return the value that was recorded, or raise; `kept` is the very object, where this run has got it."""
    if data[:1] != _ERROR:
        return kept.pop() if kept else deserialize(data[1:])
    from ftray._task_errors import load_error

    error = kept.pop() if kept else load_error(data[1:])
    try:
        raise error
    finally:
        del error  # the frames that its traceback keeps shall not keep it
