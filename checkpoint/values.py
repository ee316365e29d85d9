"""What a running call gets from outside: recorded the first time, given back when it runs again.

Owns the order of the values of one call. Invariants: the n-th value asked for is the n-th recorded, and of
the same kind, or `ReplayDivergedError`; a value is journalled before the method sees it; a finished call that
is run again produces nothing; what is got while a value is produced is part of that value. An engine records
what `get`, `wait`, `put` and the creation of actors give with `Execution.take`, under kinds of its own from
`ENGINE_KINDS` on.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

from ftray._core.identity import call_id as derive_call_id
from ftray._core.identity import derive_callee_key
from ftray._core.serial import deserialize, serialize

from . import faults
from .errors import ReplayDivergedError

T = TypeVar("T")
simulated: dict[tuple[bytes, int], bytes] | None = None
"""In simulations: what each call got as its n-th value first it gets in all runs, so that they compare."""
USER_VALUE = 0
ENGINE_KINDS = 16
_VALUE, _ERROR = b"\x00", b"\x01"
_MOMENT = struct.Struct("<I")
_VALUE_KEY = derive_callee_key("\0value")
PARENT, CALL_ID = slice(32, 48), slice(48, 64)
"""Where a call head has the CallIDs of the caller and of the call."""


class ValueJournal(Protocol):
    """Where the values of a live call go; `_core.gate.Gate` is one."""

    def start(self, head: bytes, method: str, args: bytes, values: Sequence[bytes]) -> int:
        """Journal the start of a call; returns the position."""

    def value(self, call_id: bytes, index: int, data: bytes) -> int:
        """Journal one value of a started call; returns the position."""


class Execution:
    """One run of a method that changes the state.

    Parameters
    ----------
    head, method, args : bytes, str, bytes
        The call as the journal has it.
    call_id : bytes
    journal : ValueJournal or None
        None where a finished call is run again for recovery: then nothing may happen outside.
    recorded : sequence of bytes
        Values that an earlier run has recorded.
    started : bool
        The journal has the start of the call already.
    """

    __slots__ = (
        "args",
        "awaits",
        "call_id",
        "callers",
        "diverged",
        "exits",
        "head",
        "journal",
        "method",
        "moments",
        "over",
        "position",
        "producing",
        "recorded",
        "started",
        "used",
    )

    def __init__(
        self,
        head: bytes,
        method: str,
        args: bytes,
        call_id: bytes,
        journal: ValueJournal | None,
        recorded: Sequence[bytes] = (),
        started: bool = False,
    ) -> None:
        self.head, self.method, self.args, self.call_id, self.journal = head, method, args, call_id, journal
        self.recorded = list(recorded)
        self.used = 0
        self.started = started
        self.awaits: Any = None  # an engine's own order of what the method awaits at the same time
        self.moments = 0
        self.over = False
        self.exits = False  # the method has ended by ending its actor, while it ran for recovery
        self.producing = False
        self.callers: list[bytes] = []  # what has called exactly-once actors to produce values
        self.position = 0
        self.diverged: ReplayDivergedError | None = None

    @property
    def replaying(self) -> bool:
        """Whether this run repeats a finished call: nothing is sent, everything is given back."""
        return self.journal is None

    def start(self) -> int:
        """Journal that the call has begun: before anything of it leaves the actor.

        Returns
        -------
        int
            Position that must be durable before what depends on this call so far may leave; 0 if there is
            none.
        """
        if self.journal is not None and not self.started:
            self.position = self.journal.start(self.head, self.method, self.args, self.recorded[: self.used])
            self.started = True
            if faults.active:
                faults.hit("once.started")
        return self.position

    def take(self, kind: int, produce: Callable[[], bytes]) -> bytes:
        """Return the next recorded value, or what `produce` gives, journalled.

        Parameters
        ----------
        kind : int
            0 to 255: what sort of value it is.
        produce : callable
            Makes the bytes of the value.
        """
        if self.used < len(self.recorded):
            value = self.recorded[self.used]
            if value[0] != kind:
                raise self.differs(
                    f"asks for a value of kind {kind} where one of kind {value[0]} was recorded"
                )
            self.used += 1
            if self.awaits is not None:
                self.awaits.taken()
            return value[1:]
        if self.journal is None:
            raise self.differs(f"asks for more values than the {len(self.recorded)} recorded")
        if self.producing:  # a part of the value that is being made, and recorded with it
            return produce()
        self.producing = True
        try:
            data = produce() if simulated is None else self._simulate(simulated, produce)
        finally:
            self.producing = False
        if faults.active:
            faults.hit("once.value_produced")
        self.start()
        value = bytes([kind]) + data
        self.position = self.journal.value(self.call_id, self.used, value)
        self.recorded.append(value)
        self.used += 1
        if faults.active:
            faults.hit("once.value_recorded")
        return data

    def happened(self, kind: int) -> bytes | None:
        """Return what `happens` has recorded at this moment of the method, None: nothing.

        For what is rare and would cost a record each time: a moment counts, only an event is recorded.
        """
        if self.producing:
            return None
        self.moments += 1
        if self.used == len(self.recorded):
            return None
        value, moment = self.recorded[self.used], _MOMENT.pack(self.moments)
        if value[0] != kind or value[1 : 1 + _MOMENT.size] != moment:
            return None
        return self.take(kind, bytes)[_MOMENT.size :]

    def happens(self, kind: int, data: bytes) -> None:
        """Record what has happened at the moment that `happened` was asked for last."""
        if self.producing:
            return
        moment = _MOMENT.pack(self.moments)
        self.take(kind, lambda: moment + data)

    def _simulate(self, known: dict[tuple[bytes, int], bytes], produce: Callable[[], bytes]) -> bytes:
        place = (self.call_id, self.used)
        if place not in known:
            known[place] = produce()
        return known[place]

    def ended(self) -> None:
        """The method has ended: a run that repeats must have used every value, each at its place."""
        if self.awaits is not None:
            self.awaits.over()
        self.over = True
        if self.diverged is not None:  # the method may have caught it
            raise self.diverged
        if self.used < len(self.recorded):
            raise self.differs(f"used {self.used} of the {len(self.recorded)} values recorded")

    def differs(self, what: str) -> ReplayDivergedError:
        """Return the error for a method that does something else than the first time."""
        self.diverged = ReplayDivergedError(
            f"call {self.call_id.hex()} of {self.method!r}, run again for recovery, {what}. Its method must "
            "ask for the "
            "same outside values in the same order each time; what chooses between them must be recorded too"
        )
        return self.diverged


class _Reading:
    """Stands in for an execution while a read-only method runs."""


READING = _Reading()
current: ContextVar[Execution | _Reading | None] = ContextVar("ftray.checkpoint.call", default=None)
"""The call that the present context runs; an engine with contexts of its own gives `ExactlyOnce.locate`."""


def located() -> Execution | _Reading | None:
    """Return what the present code is part of; see `ExactlyOnce.locate`."""
    found = current.get()
    # What a method has left behind on its event loop is not part of it any more.
    return None if isinstance(found, Execution) and found.over and not found.replaying else found


def value_caller(call_id: bytes, index: int) -> bytes:
    """Return the CallID of what makes the value number `index` of a call.

    What it calls is numbered apart from the method's own calls: when the method runs again, values that are
    known are not made again.
    """
    return derive_call_id(call_id, _VALUE_KEY, index + 1, 0)


def user_value(execution: Execution, produce: Callable[[], T]) -> T:
    """`Checkpointable.record` inside of a call."""
    data = execution.take(USER_VALUE, lambda: _encode(produce))
    value: Any = deserialize(data[1:])
    if data[:1] == _ERROR:
        raise value
    recorded: T = value
    return recorded


def _encode(produce: Callable[[], object]) -> bytes:
    try:
        return _VALUE + serialize(produce())
    except Exception as error:  # also of a value that cannot be written
        if isinstance(error, MemoryError):
            raise
        return _ERROR + _encode_error(error)


def _encode_error(error: Exception) -> bytes:
    """The exception, or one that says the same where it cannot be carried."""
    try:
        data = serialize(error)
        deserialize(data)
        return data
    except Exception:
        return serialize(RuntimeError(f"{type(error).__name__}: {error}"))
