"""The concurrent ``await`` of one method of an exactly-once actor: recorded, and repeated in the same order.

An await ends, when the method runs again, after the same ones have begun and ended as the first time; one
that the method itself gave up (``asyncio.wait_for``, a cancelled task) gets no value until the method has
done so again.

Owns: which awaits of a method have begun and wait for their record. Leaves to others: how outcomes are
written (`ftray._outside_values`), and the records (`ftray.checkpoint.values`).
"""

from __future__ import annotations

import struct
from typing import Any

from ftray._outside_values import AWAIT, AWAIT_BY_NUMBER, ERROR, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ftray import _core
    from ftray._long_waits import LongWaits
    from ftray.checkpoint.values import Execution

_HEAD = struct.Struct("<IIB")  # number of an await, how many had begun when it ended, whether it had to wait
_NUMBER = struct.Struct("<I")  # all that journals had of an await before
_INTERRUPTED = b"\x02"
_LEFT = 0xFFFFFFFF  # in place of a number: some have never ended


class PlainAwait:
    """`ref`, awaited whatever guards this process."""

    def __init__(self, ref: _core.ObjectRef) -> None:
        self._ref = ref

    def __await__(self) -> Any:
        return self._ref._plain_await()


class AwaitOrder:
    """The concurrent awaits of one run of a method, numbered in the order in which they began.

    Parameters
    ----------
    execution : Execution
    long : LongWaits
    ends : callable
        Whether the event loop is about to end, and what it cancels was not cancelled by the method.
    """

    def __init__(self, execution: Execution, long: LongWaits, ends: Callable[[], bool]) -> None:
        self._execution, self._long, self._ends = execution, long, ends
        self._begun = 0
        self._waiting: dict[int, asyncio.Future[bytes | None]] = {}
        self._ended = 0
        self._giving = False

    async def value(self, ref: _core.ObjectRef) -> Any:
        """Await a ref."""
        number, self._begun = self._begun, self._begun + 1
        execution = self._execution
        if execution.used < len(execution.recorded) or self._waiting or execution.replaying:
            import asyncio  # here, since most actors have no event loop

            future = self._waiting[number] = asyncio.get_running_loop().create_future()
            self.taken()
            if execution.replaying and number in self._waiting and execution.used == len(execution.recorded):
                raise execution.differs("awaits more than the first time")
            try:
                recorded = await future
            except asyncio.CancelledError:
                self._waiting.pop(number, None)
                self._given_up(number, True)
                raise
            if recorded is not None:
                return decode(recorded, [])
        return await self._live(number, ref)

    def taken(self) -> None:
        """A recorded value was given to the method, or an await began: others may be next."""
        if not self._giving:
            self._giving = True
            try:
                self._give()
            finally:
                self._giving = False

    def over(self) -> None:
        """The method has ended: what it still awaits has no part in it, also when it runs again."""
        execution = self._execution
        left = _HEAD.pack(_LEFT, self._begun, False)
        if execution.used < len(execution.recorded):
            if execution.recorded[execution.used][1 : 1 + _HEAD.size] == left:
                execution.take(AWAIT, bytes)
        elif self._ended < self._begun and not execution.replaying:
            execution.take(AWAIT, lambda: left)
            self._ended = self._begun

    def _give(self) -> None:
        """Give recorded values to who waits for them, in the order of the records; then others go on live."""
        execution = self._execution
        while execution.used < len(execution.recorded):
            following = execution.recorded[execution.used]
            if following[0] == AWAIT:
                number, begun, waited = _HEAD.unpack_from(following, 1)
                data = following[1 + _HEAD.size :]
            elif following[0] == AWAIT_BY_NUMBER:
                (number,), begun, waited = _NUMBER.unpack_from(following, 1), 0, False
                data = following[1 + _NUMBER.size :]
            else:
                return
            if begun > self._begun or number not in self._waiting or data == _INTERRUPTED:
                return
            execution.take(following[0], bytes)
            self._ended += 1
            future = self._waiting.pop(number)
            if waited:  # others had their turn before it went on
                future.get_loop().call_soon(_set, future, data)
            else:
                future.set_result(data)
        if not execution.replaying:
            waiting, self._waiting = self._waiting, {}
            for number in sorted(waiting):
                waiting[number].set_result(None)

    def _given_up(self, number: int, waited: bool) -> None:
        """The method does not wait for this one any more."""
        execution = self._execution
        if self._ends() or (execution.over and not execution.replaying):
            return
        if execution.used < len(execution.recorded):
            following = execution.recorded[execution.used]
            known = following[0] == AWAIT and _HEAD.unpack_from(following, 1)[0] == number
            if not known or following[1 + _HEAD.size :] != _INTERRUPTED:
                raise execution.differs("gives up an await in another order than the first time")
        self._record(number, waited, _INTERRUPTED)

    def _record(self, number: int, waited: bool, data: bytes) -> None:
        self._ended += 1
        self._execution.take(AWAIT, lambda: _HEAD.pack(number, self._begun, waited) + data)

    async def _live(self, number: int, ref: _core.ObjectRef) -> Any:
        import asyncio

        turns: list[bool] = []  # of others, if this has to wait: the value may also come at the last moment
        turn = asyncio.get_running_loop().call_soon(turns.append, True)
        awaited = self._long.begin(ref, self._execution.method)
        value, error = None, None
        try:
            value = await PlainAwait(ref)
        except Exception as raised:
            error = raised
        except BaseException as raised:
            if not awaited.interrupted():
                if isinstance(raised, asyncio.CancelledError):
                    self._given_up(number, bool(turns))
                raise
            error = awaited.error
        finally:
            turn.cancel()
            self._long.end(awaited)

        def produce() -> Any:
            if error is not None:
                raise error
            return value

        data, found = encode(produce)
        if not self._execution.over:  # else the method has not waited for it
            self._record(number, bool(turns), data)
        if data[:1] == ERROR:
            raise found
        return found


def _set(future: asyncio.Future[bytes | None], data: bytes) -> None:
    if not future.done():
        future.set_result(data)
