"""`ExactlyOnceCalls`: runs the calls of an exactly-once actor for hosts without a path of their own.

The reference for engines: admit, take turns, run, finish, hold, answer; for threads (`call`) and for an
event loop (`call_async`), from one text. Invariants: a call that was admitted as new runs once and is
finished, or the process ends; nothing is answered before what it depends on may leave; a duplicate waits for
the run that is under way.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple, Protocol, TypeVar

from ftray._core.gate import Outcome, Verdict

from . import faults
from .codec import Arguments
from .drive import drive
from .errors import (
    CallCycleError,
    CallerHeldBackError,
    CallError,
    CallMismatchError,
    CheckpointError,
    CheckpointRolledBackError,
    CheckpointTimeoutError,
    FencedError,
    NoSessionError,
    ReplyExpiredError,
    StaleCallerError,
    ended_by,
)
from .exactly_once import DURABLE_TIMEOUT_S, describe
from .replay import poisoned
from .running import run_method
from .session import ActorSession
from .turns import Ticket, Turns
from .values import CALL_ID, PARENT, READING
from .verify import Verifier


class Answer(NamedTuple):
    """A reply that may leave."""

    status: int
    reply: bytes


_Setter = Callable[[Any], None]


class _Waits(Protocol):
    """How one caller waits: by blocking its thread, or on its event loop."""

    def arm(self) -> _Setter:
        """Return what ends the next `fired`, from any thread, with a value; an exception is raised there."""

    async def fired(self, timeout_s: float) -> Any:
        """Wait for it."""


class _ThreadWaits:
    def __init__(self) -> None:
        self._event = threading.Event()
        self._value: Any = None

    def arm(self) -> _Setter:
        self._event, self._value = threading.Event(), None
        event = self._event

        def fire(value: Any) -> None:
            if event is self._event and not event.is_set():
                self._value = value
                event.set()

        return fire

    async def fired(self, timeout_s: float) -> Any:
        if not self._event.wait(timeout_s):
            raise TimeoutError
        return _or_raise(self._value)


class _LoopWaits:
    def __init__(self) -> None:
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        self._future: asyncio.Future[Any] = self._loop.create_future()

    def arm(self) -> _Setter:
        future = self._future = self._loop.create_future()

        def settle(value: Any) -> None:
            if not future.done():
                future.set_result(value)

        def fire(value: Any) -> None:
            if threading.get_ident() == self._thread:  # no way through the loop, which costs a system call
                settle(value)
            else:
                _soon(self._loop, settle, value)

        return fire

    async def fired(self, timeout_s: float) -> Any:
        if self._future.done():
            return _or_raise(self._future.result())
        try:
            return _or_raise(await asyncio.wait_for(self._future, timeout_s))
        except asyncio.TimeoutError:
            raise TimeoutError from None


def _soon(loop: asyncio.AbstractEventLoop, settle: _Setter, value: Any) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(settle, value)


def _or_raise(value: Any) -> Any:
    if isinstance(value, BaseException):
        raise value
    return value


class _Running:
    """A call under way, and those who wait for its end."""

    def __init__(self) -> None:
        self.waiting: list[_Setter] = []
        self.ticket = Ticket(0, True)


_Done = tuple[int, bytes, int]  # status, reply, position
_T = TypeVar("_T")
_NO_ARGUMENTS = b"\0\0"
_HELD_BACK = Verdict(Outcome.HELD_BACK, 0, None, 0)


async def _here(coroutine: Coroutine[Any, Any, _T]) -> _T:
    return await coroutine


class ExactlyOnceCalls:
    """Runs the calls of one session.

    Parameters
    ----------
    session : ActorSession
        With ``exactly_once``.
    held_back_s : float
        How long a call may wait for the bound on unacknowledged replies, in seconds.
    run_on : callable, optional
        For hosts whose methods have a thread of their own: takes a coroutine that runs one method and never
        waits (`drive.drive` runs it), and returns what awaits its result. Default: where the call came.
    """

    def __init__(
        self,
        session: ActorSession,
        *,
        held_back_s: float = DURABLE_TIMEOUT_S,
        run_on: Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]] = _here,
    ) -> None:
        if session.exactly_once is None:
            raise NoSessionError("this actor is not exactly_once: run its methods as they are")
        self._session, self._once = session, session.exactly_once
        self._held_back_s, self._run_on = held_back_s, run_on
        self._lock = threading.Lock()
        self._turns = Turns(self._once.full)
        self._waiting: dict[Ticket, _Setter] = {}
        self._running: dict[bytes, _Running] = {}
        # By caller: who waits for room among the kept replies, in order.
        self._lines: dict[bytes, dict[_Waits, _Setter]] = {}
        self._verifier = Verifier(session, self._once) if self._once.options.verify else None
        self._once.on_room = self._room_found
        session.count_beside()

    def call(self, head: bytes, method: str, args: bytes, timeout_s: float = DURABLE_TIMEOUT_S) -> Answer:
        """Run one call, or find its reply, and return that once it may leave; blocks the thread.

        Parameters
        ----------
        head : bytes
            The call's identity (``_core.records.encode_head``).
        method : str
        args : bytes
            Arguments, as the codec of the session writes them.
        timeout_s : float
            Bound on each wait, in seconds: for a turn, for the same call under way, for durability.

        Raises
        ------
        CallError
            The call did not run, and why.
        CheckpointTimeoutError
            It may have run; ask again with the same head.
        NoSessionError, FencedError, CheckpointSaveError
            This process can answer nothing more; ask its successor with the same head.
        """
        return drive(self._call(_ThreadWaits(), head, method, args, timeout_s))

    async def call_async(
        self,
        head: bytes,
        method: str,
        args: bytes,
        timeout_s: float = DURABLE_TIMEOUT_S,
        arguments: Arguments | None = None,
    ) -> Answer:
        """`call` on the running event loop; cancelling it gives up waiting, and the method goes on."""
        return await asyncio.shield(self.begin(head, method, args, timeout_s, arguments))

    def begin(
        self,
        head: bytes,
        method: str,
        args: bytes,
        timeout_s: float = DURABLE_TIMEOUT_S,
        arguments: Arguments | None = None,
    ) -> asyncio.Task[Answer]:
        """Begin a call on the running event loop; calls enter in the order in which this is called.

        `arguments`: what `args` says, from a host that has it as objects which nobody else uses.
        """
        return asyncio.ensure_future(self._call(_LoopWaits(), head, method, args, timeout_s, arguments))

    def acknowledged(self, head: bytes) -> None:
        """The caller of `head` has what it says there, and makes no call with it; may make room."""
        with self._lock:
            self._once.gate.admit(head, "", _NO_ARGUMENTS, False)
        self._made_room()

    # -- the way of a call

    async def _call(
        self,
        waits: _Waits,
        head: bytes,
        method: str,
        args: bytes,
        timeout_s: float,
        given: Arguments | None = None,
    ) -> Answer:
        self._check_alive()
        once = self._once
        arguments = once.codec.decode_args(args) if given is None else given  # else it is not entered
        if method in self._session.entry_points:
            return await self._entry_point(waits, method, arguments, timeout_s)
        function = once.find_method(method)
        if function is None:
            raise AttributeError(f"{type(self._session.instance).__name__!r} has no method {method!r}")
        if method in once.readonly_names:
            return await self._read(waits, head, method, args, function, arguments, timeout_s)
        verdict, running = await self._admit(waits, head, method, args)
        if faults.active:
            faults.hit("once.admitted")
        if verdict.outcome == Outcome.NEW:
            await self._turn_of(waits, head, method, running, timeout_s)
            status, reply, position = await self._run(head, method, args, function, arguments, running)
        elif verdict.outcome == Outcome.IN_PROGRESS:
            status, reply, position = await _fired(waits, timeout_s, "the same call under way has not ended")
            position = max(position, verdict.position)
        else:
            assert verdict.reply is not None
            status, reply, position = verdict.status, verdict.reply, verdict.position
        await self._released(waits, position, timeout_s)
        return Answer(status, reply)

    def _check_alive(self) -> None:
        dead = self._once.dead or self._once.releases.failed
        if dead is not None:
            raise ended_by(dead)

    async def _admit(self, waits: _Waits, head: bytes, method: str, args: bytes) -> tuple[Verdict, _Running]:
        deadline_s = time.monotonic() + self._held_back_s
        try:
            while True:
                verdict, running, behind = self._ask(waits, head, method, args)
                if behind or verdict.outcome != Outcome.HELD_BACK:
                    self._made_room()  # the head may have acknowledged others, or was the first of a line
                if verdict.outcome in (Outcome.NEW, Outcome.IN_PROGRESS, Outcome.RECORDED):
                    return verdict, running
                left_s = deadline_s - time.monotonic()
                if verdict.outcome != Outcome.HELD_BACK or left_s <= 0:
                    await self._released(waits, verdict.position, left_s)
                    raise refusal(verdict.outcome, head, method)
                try:
                    await waits.fired(left_s)
                except TimeoutError:
                    pass  # asked a last time
                self._check_alive()
        finally:
            self._leave_line(waits, head)

    def _ask(
        self, waits: _Waits, head: bytes, method: str, args: bytes
    ) -> tuple[Verdict, _Running, bool]:
        """Ask the gate. The last value: not asked, since earlier calls of the caller wait for room.

        Were this one let in first, its reply would take the room that they wait for, and nobody acknowledges
        it before they have run. Whoever asks again is known, and needs none.
        """
        call_id, caller = head[CALL_ID], head[PARENT]
        fire = waits.arm()
        with self._lock:
            line = self._lines.get(caller, {})
            behind = next(iter(line), waits) is not waits and not self._knows(head)
            if behind:
                self._once.gate.admit(head, "", _NO_ARGUMENTS, False)  # what it acknowledges
                verdict = _HELD_BACK
            else:
                verdict = self._once.gate.admit(head, method, args, True)
            if verdict.outcome == Outcome.HELD_BACK:
                self._lines.setdefault(caller, line)[waits] = fire
            elif verdict.outcome == Outcome.NEW:
                self._running[call_id] = _Running()
            elif verdict.outcome == Outcome.IN_PROGRESS:
                self._running[call_id].waiting.append(fire)
            if verdict.outcome != Outcome.HELD_BACK:
                self._remove(waits, caller)
            return verdict, self._running.get(call_id) or _Running(), behind

    def _knows(self, head: bytes) -> bool:
        return self._once.ledger.look(head)[0] not in ("unknown", "absent")

    def _made_room(self) -> None:
        """Have the first of each caller ask again; the next comes when it was let in, or has given up."""
        if not self._lines:
            return
        with self._lock:
            first = [next(iter(line.values())) for line in self._lines.values()]
        for fire in first:
            fire(None)

    def _room_found(self) -> None:
        """Replies were released, or the journal has moved."""
        self._made_room()
        if self._turns.stopped:
            with self._lock:
                told = self._begun(self._turns.go_on())
            self._tell(*told)

    def _remove(self, waits: _Waits, caller: bytes) -> bool:
        """With the lock; whether it was in the line."""
        line = self._lines.get(caller, {})
        was = line.pop(waits, None) is not None
        if was and not line:
            del self._lines[caller]
        return was

    def _leave_line(self, waits: _Waits, head: bytes) -> None:
        with self._lock:
            waited = self._remove(waits, head[PARENT])
        if waited:
            self._made_room()

    async def _turn_of(
        self, waits: _Waits, head: bytes, method: str, running: _Running, timeout_s: float
    ) -> None:
        """Wait for the turn of a call that was entered; if it never comes, the call may come again."""
        try:
            running.ticket = await self._turn(waits, True, timeout_s)
            try:
                self._check_alive()
                if self._once.gate.stale(head):
                    raise refusal(Outcome.STALE_ATTEMPT, head, method)
            except (NoSessionError, FencedError, CallError):
                self._leave(running.ticket)
                raise
        except BaseException as error:
            with self._lock:
                self._once.gate.forget(head)
            self._ended(head, running, error)
            raise

    async def _run(
        self,
        head: bytes,
        method: str,
        args: bytes,
        function: Callable[..., Any],
        arguments: Arguments,
        running: _Running,
    ) -> _Done:
        try:
            done: _Done = await self._run_on(self._run_alone(head, method, args, function, arguments))
        except BaseException as error:
            self._die(error)
            self._ended(head, running, ended_by(error))
            raise
        finally:
            self._leave(running.ticket)
        self._ended(head, running, done)
        return done

    async def _run_alone(
        self, head: bytes, method: str, args: bytes, function: Callable[..., Any], arguments: Arguments
    ) -> _Done:
        once, session = self._once, self._session
        if head[CALL_ID] in once.poison:
            return once.refuse(head, method, args, poisoned(head, method))
        session.before_call(method)
        execution = once.begin(head, method, args)
        before = self._verifier.before() if self._verifier is not None else None
        result, error = await run_method(once, execution, function, arguments)
        if faults.active:
            faults.hit("once.ran")
        status, reply = once.codec.encode_outcome(method, result, error)
        if self._verifier is not None:
            await self._verifier.run_again(before, execution, function, (status, reply))
        position = once.finish(execution, status, reply)
        session.after_call(method)
        return status, reply, position

    def _ended(self, head: bytes, running: _Running, ended: object) -> None:
        with self._lock:
            self._running.pop(head[CALL_ID], None)
            waiting, running.waiting = running.waiting, []
        for fire in waiting:
            fire(ended)

    def _die(self, error: BaseException) -> None:
        """The state may be half of a method's: nothing more runs in this process."""
        self._once.crash(error)
        with self._lock:
            waiting, self._waiting = list(self._waiting.values()), {}
            room = [fire for line in self._lines.values() for fire in line.values()]
            self._lines = {}
        for fire in [*waiting, *room]:
            fire(ended_by(error))

    # -- what changes nothing

    async def _read(
        self,
        waits: _Waits,
        head: bytes,
        method: str,
        args: bytes,
        function: Callable[..., Any],
        arguments: Arguments,
        timeout_s: float,
    ) -> Answer:
        """A read-only method: beside its like, never beside one that changes what it looks at."""
        once = self._once
        with self._lock:
            verdict = once.gate.admit(head, method, args, False)
        if verdict.outcome != Outcome.NEW:
            raise refusal(verdict.outcome, head, method)
        ticket = await self._turn(waits, False, timeout_s)
        try:
            self._check_alive()
            position = max(once.seen(), verdict.position)
            status, reply = await self._run_on(self._look(method, function, arguments))
        except (NoSessionError, FencedError):
            raise
        except BaseException as raised:
            self._die(raised)
            raise
        finally:
            self._leave(ticket)
        await self._released(waits, position, timeout_s)
        if not once.holds_key():  # for every read: a look that is later than its beginning
            self._check_alive()
            raise FencedError(f"checkpoint key {once.log.key!r} is held by a newer incarnation: ask that one")
        return Answer(status, reply)

    async def _look(
        self, method: str, function: Callable[..., Any], arguments: Arguments
    ) -> tuple[int, bytes]:
        before = self._verifier.before() if self._verifier is not None else None
        result, error = await run_method(self._once, READING, function, arguments)
        if self._verifier is not None:
            self._verifier.unchanged(before, method)
        return self._once.codec.encode_outcome(method, result, error)

    async def _entry_point(
        self, waits: _Waits, method: str, arguments: Arguments, timeout_s: float
    ) -> Answer:
        """`checkpoint`, asked for from outside: between two methods."""
        once, function = self._once, self._session.entry_points[method]
        beside = (
            self._session.is_async
        )  # there it waits on a thread of its own, and the capture finds its gap
        ticket = None if beside else await self._turn(waits, True, timeout_s, free=True)
        running = run_method(once, READING, function, arguments)
        try:
            result, error = await (running if beside else self._run_on(running))
        finally:
            if ticket is not None:
                self._leave(ticket)
        return Answer(*once.codec.encode_outcome(method, result, error))

    # -- waiting

    async def _turn(self, waits: _Waits, exclusive: bool, timeout_s: float, free: bool = False) -> Ticket:
        fire = waits.arm()
        with self._lock:
            ticket, begun = self._turns.arrive(exclusive, free)
            self._waiting[ticket] = fire
            told = self._begun(begun)
        self._tell(*told)
        try:
            await _fired(waits, timeout_s, "the actor or its store was busy, and no turn came for the call")
        except BaseException:
            self._leave(ticket)
            raise
        return ticket

    def _leave(self, ticket: Ticket) -> None:
        with self._lock:
            self._waiting.pop(ticket, None)
            told = self._begun(self._turns.leave(ticket))
        self._tell(*told)

    def _begun(self, tickets: list[Ticket]) -> tuple[list[_Setter], bool]:
        """With the lock: how to tell whose turn it is, and whether the next one's waits for the journal."""
        ready = [self._waiting.pop(ticket) for ticket in tickets if ticket in self._waiting]
        return ready, self._turns.stopped

    def _tell(self, ready: list[_Setter], stopped: bool) -> None:
        for fire in ready:
            fire(None)
        if stopped:
            self._once.ask_room()

    async def _released(self, waits: _Waits, position: int, timeout_s: float) -> None:
        self._once.hold(position, waits.arm())
        if self._once.journal is not None and self._once.releases.position < position:
            self._once.journal.flush()
        await _fired(waits, timeout_s, f"position {position} of the journal is not durable yet")
        if faults.active:
            faults.hit("once.answered")


async def _fired(waits: _Waits, timeout_s: float, what: str) -> Any:
    try:
        return await waits.fired(timeout_s)
    except TimeoutError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointTimeoutError(
            f"{what} within {timeout_s} s. Ask again with the same call, or allow more time"
        ) from None


def refusal(outcome: Outcome, head: bytes, method: str) -> CallError:
    """Return the error for a call that the ledger does not let in."""
    kind, why = _REFUSALS[outcome]
    return kind(f"{describe(head)} of {method!r} {why}")


_REFUSALS: dict[Outcome, tuple[type[CallError], str]] = {
    Outcome.MISMATCH: (
        CallMismatchError,
        "was made before with another method or other arguments, and nothing was changed. A caller that is "
        "executed again must make the same calls in the same order; a call_key must not be used for two "
        "different calls",
    ),
    Outcome.STALE_ATTEMPT: (
        StaleCallerError,
        "comes from an attempt of its caller that a newer one has replaced. The newer one makes this call",
    ),
    Outcome.EXPIRED: (
        ReplyExpiredError,
        "has run, and its reply is not kept any more: it was acknowledged (or named by a key), and "
        "reply_bound_bytes or reply_bound_calls made room for others. It is never run twice; raise the "
        "bounds to keep replies longer",
    ),
    Outcome.ROLLED_BACK: (
        CheckpointRolledBackError,
        "belongs to a history that was given up: the actor was taken back to an earlier state. Begin anew "
        "from what the actor has now: in a new task, or another driver",
    ),
    Outcome.CYCLE: (
        CallCycleError,
        "comes back to an actor whose own method waits for it, which would wait for ever. Return the value "
        "instead",
    ),
    Outcome.HELD_BACK: (
        CallerHeldBackError,
        "was not started: replies that nobody has acknowledged fill reply_bound_bytes or reply_bound_calls. "
        "Get the results of earlier calls first, or raise the bounds",
    ),
}
