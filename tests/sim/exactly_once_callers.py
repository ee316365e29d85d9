"""Model of a ledger and its callers: identity, attempts, acknowledgements, expiry, release, late messages.

A task makes calls to an actor, is executed again, and may then make other calls; an attempt that was given
up may go on (it was only thought to be dead), and what it sent may arrive at any later time. The actor
takes calls into a queue, runs one at a time, and loses at a crash what it had not made durable: its queue,
and entries since the last durable point. Journal and fencing are left to the journal's model: "durable" is
one step here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.sim.exactly_once_rules import I2, I3, I8, I9, Rules


class Message(NamedTuple):
    """A call on its way or in the queue: the n-th one of this attempt, and what it is to do."""

    attempt: int
    n: int
    what: str
    acknowledged: int = 0


class Entry(NamedTuple):
    """A call in the ledger; `reply` is what was done, or empty when the reply has expired."""

    identity: tuple[int, int]  # attempt (0 where identity is attempt-free), n
    what: str
    reply: str
    has_reply: bool = True


class Ledger(NamedTuple):
    entries: frozenset[Entry] = frozenset()
    newest_attempt: int = 0
    acknowledged: int = 0
    released: bool = False
    effects: tuple[tuple[int, int, str], ...] = ()  # attempt, n, what


class Attempt(NamedTuple):
    number: int
    program: tuple[str, ...]
    replies: tuple[str, ...] = ()
    asked: int = 0  # so many of its calls have come to the actor
    over: str = ""  # "finished" or the error that it got


class State(NamedTuple):
    attempts: tuple[Attempt, ...]
    now: Ledger = Ledger()
    durable: Ledger = Ledger()
    wire: frozenset[Message] = frozenset()
    queue: tuple[Message, ...] = ()
    crashes_left: int = 1
    release: str = ""  # "", "sent", "forgotten"
    reruns_left: int = 1
    answered_attempt: int = 0
    had: frozenset[int] = frozenset()  # calls whose reply some attempt has had
    broken: str = ""


STALE, EXPIRED, MISMATCH = "StaleCallerError", "ReplyExpiredError", "CallMismatchError"


@dataclass(frozen=True)
class CallersModel:
    """`programs`: what each attempt calls, in order; they differ where the task diverges."""

    rules: Rules
    programs: tuple[tuple[str, ...], ...] = (("add 1", "add 2"), ("add 1", "add 2"))
    crashes: int = 1
    pressure: bool = False  # the bound on replies is reached
    keyed: bool = (
        False  # the attempts are two unrelated callers that name different calls by keys of their own
    )

    def initial(self) -> State:
        first = Attempt(len(self.programs) if self.keyed else 1, self.programs[0])
        return State((first,), crashes_left=self.crashes, reruns_left=len(self.programs) - 1)

    def done(self, state: State) -> bool:
        return not state.reruns_left and bool(state.attempts[-1].over)

    def broken(self, state: State) -> str:
        if state.broken:
            return state.broken
        for ledger in (state.now, state.durable):
            done = [(attempt if self.keyed else 0, n) for attempt, n, _ in ledger.effects]
            if len(set(done)) < len(done):
                return I2
        return ""

    def identity(self, message: Message) -> tuple[int, int]:
        """CallID of a message."""
        return (message.attempt if self.keyed or not self.rules.attempt_free_identity else 0, message.n)

    # -- steps

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for index, attempt in enumerate(state.attempts):
            yield from self.send(state, attempt)
            if len(attempt.replies) == len(attempt.program) and not attempt.over:
                yield f"attempt {attempt.number} finishes", self.with_attempt(state, index, over="finished")
        yield from self.owner(state)
        for message in sorted(state.wire):
            yield from self.arrive(state, message)
        yield from self.run(state)
        durable = self.recorded(state.now)
        if durable != state.durable:
            yield "what the actor did is durable", state._replace(durable=durable)
        for entry in sorted(state.now.entries & state.durable.entries):
            yield from self.answer(state, entry)
        yield from self.drop(state)
        if state.crashes_left:
            crashed = state._replace(now=state.durable, queue=(), crashes_left=state.crashes_left - 1)
            yield "! the actor crashes and recovers", crashed

    def recorded(self, ledger: Ledger) -> Ledger:
        """What the journal has: the newest attempt comes with records of calls that ran, or by itself."""
        if self.rules.record_newer_attempts:
            return ledger
        return ledger._replace(newest_attempt=max([0, *(attempt for attempt, _, _ in ledger.effects)]))

    def with_attempt(self, state: State, index: int, **changes: object) -> State:
        changed = state.attempts[index]._replace(**changes)  # type: ignore[arg-type]
        return state._replace(attempts=state.attempts[:index] + (changed,) + state.attempts[index + 1 :])

    def send(self, state: State, attempt: Attempt) -> Iterator[tuple[str, State]]:
        """Every call is made at once; one without a reply may be sent again at any time."""
        for n in range(len(attempt.replies) + 1, len(attempt.program) + 1):
            message = Message(attempt.number, n, attempt.program[n - 1], len(attempt.replies))
            waiting = message in state.wire or any(m[:3] == message[:3] for m in state.queue)
            if not attempt.over and not waiting:
                what = f"attempt {attempt.number} sends call {n}: {message.what}"
                yield what, state._replace(wire=state.wire | {message})

    def owner(self, state: State) -> Iterator[tuple[str, State]]:
        if state.reruns_left and not state.release:
            number = len(state.attempts) + 1
            program = self.programs[number - 1]
            following = Attempt(1 if self.keyed else number, program)
            again = state._replace(attempts=(*state.attempts, following), reruns_left=state.reruns_left - 1)
            fault = f"! attempt {number} begins; its predecessor may go on"
            yield ("another caller begins" if self.keyed else fault), again
        if state.attempts[-1].over == "finished" and not state.release and not self.keyed:
            what = "the owner releases the task: it can never run again"
            gone = (
                self.forget(state.now)
                if self.rules.released_identity_stays
                else Ledger(effects=state.now.effects)
            )
            yield what, state._replace(now=gone, release="sent", reruns_left=0)
        drained = not state.wire and not state.queue and all(a.over for a in state.attempts)
        durable = state.release == "sent" and state.now.released and state.durable.released
        if durable and (drained or not self.rules.tombstones_outlive_messages):
            nothing = Ledger(effects=state.now.effects)
            forgotten = state._replace(now=nothing, durable=nothing, release="forgotten")
            yield "the released identity is forgotten", forgotten

    @staticmethod
    def forget(ledger: Ledger) -> Ledger:
        return Ledger(effects=ledger.effects, newest_attempt=ledger.newest_attempt, released=True)

    def arrive(self, state: State, message: Message) -> Iterator[tuple[str, State]]:
        """The verdict about a call. A copy of the message may be still under way (it is sent again)."""
        ledger, after = state.now, state._replace(wire=state.wire - {message})
        who = f"call {message.n} of attempt {message.attempt}"
        known = next((e for e in ledger.entries if e.identity == self.identity(message)), None)
        if ledger.released:
            yield f"{who} arrives: released", self.fail(after, message, EXPIRED)
            return
        compare = not self.keyed or not self.rules.keyed_calls_have_no_attempts
        if compare and self.rules.refuse_older_attempts and message.attempt < ledger.newest_attempt:
            broken = I9 if self.keyed else ""
            yield f"{who} arrives: older attempt", self.fail(after, message, STALE)._replace(broken=broken)
            return
        ledger = ledger._replace(
            newest_attempt=max(ledger.newest_attempt, message.attempt),
            acknowledged=max(ledger.acknowledged, message.acknowledged),
        )
        after = after._replace(now=ledger)
        index = next(i for i, a in enumerate(state.attempts) if a.number == message.attempt)
        after = self.with_attempt(after, index, asked=max(after.attempts[index].asked, message.n))
        if known and known.what != message.what and self.rules.digest_check:
            yield f"{who} arrives: mismatch", self.fail(after, message, MISMATCH)
        elif known and not known.has_reply:
            yield f"{who} arrives: expired", self.fail(after, message, EXPIRED)
        elif known:
            yield f"{who} arrives: recorded", after
        elif not any(self.identity(m) == self.identity(message) for m in state.queue):
            yield f"{who} arrives: new", after._replace(queue=(*state.queue, message))
        else:
            yield f"{who} arrives: in progress", after

    def fail(self, state: State, message: Message, error: str) -> State:
        """The caller gets an error. It must be one that the protocol names for what happened."""
        broken = ""
        if error == EXPIRED and message.n not in state.had and message.attempt == state.attempts[-1].number:
            broken = I9
        for index, attempt in enumerate(state.attempts):
            if attempt.number == message.attempt and not attempt.over and len(attempt.replies) < message.n:
                state = self.with_attempt(state, index, over=error)
        return state._replace(broken=broken)

    def run(self, state: State) -> Iterator[tuple[str, State]]:
        if not state.queue:
            return
        message, rest = state.queue[0], state.queue[1:]
        ledger = state.now
        stale = (
            message.attempt < ledger.newest_attempt
            and self.rules.recheck_attempts_at_start
            and not self.keyed
        )
        if stale and self.rules.refuse_older_attempts:
            yield (
                f"call {message.n} of attempt {message.attempt} is not started: older attempt",
                state._replace(queue=rest),
            )
            return
        entry = Entry(self.identity(message), message.what, message.what)
        effects = (*ledger.effects, (message.attempt, message.n, message.what))
        broken = I8 if message.attempt < state.answered_attempt and not self.keyed else ""
        changed = ledger._replace(entries=ledger.entries | {entry}, effects=effects)
        what = f"the actor runs call {message.n} of attempt {message.attempt}: {message.what}"
        yield what, state._replace(now=changed, queue=rest, broken=broken)

    def answer(self, state: State, entry: Entry) -> Iterator[tuple[str, State]]:
        """Who waits for this identity gets the reply, if what its verdict was built on is durable."""
        if not entry.has_reply:
            return
        for index, attempt in enumerate(state.attempts):
            n = entry.identity[1]
            if attempt.over or len(attempt.replies) != n - 1 or n > attempt.asked:
                continue
            mine = self.identity(Message(attempt.number, n, "")) == entry.identity
            current = (
                state.now.newest_attempt == attempt.number
                or self.keyed
                or not self.rules.refuse_older_attempts
            )
            recorded = (
                state.durable.newest_attempt == state.now.newest_attempt
                or not self.rules.record_newer_attempts
            )
            if not mine or not current or not recorded:
                continue
            wanted = attempt.program[n - 1]
            if wanted != entry.what and self.rules.digest_check:
                continue
            after = self.with_attempt(state, index, replies=(*attempt.replies, entry.reply))
            after = after._replace(
                answered_attempt=max(state.answered_attempt, attempt.number),
                had=state.had | {n},
                broken=I3 if entry.reply != wanted else "",
            )
            yield f"attempt {attempt.number} gets the reply of call {n}: {entry.reply}", after

    def drop(self, state: State) -> Iterator[tuple[str, State]]:
        """Past the bound, and without the rule also on the mere end of an attempt, replies go."""
        ledger = state.now
        ended = not self.rules.keep_replies_until_released and any(
            a.over == "finished" for a in state.attempts
        )
        for entry in sorted(ledger.entries):
            acknowledged = entry.identity[1] <= ledger.acknowledged
            if ended:
                less = ledger._replace(entries=ledger.entries - {entry})
                yield (
                    f"the reply of call {entry.identity[1]} goes, since its caller has ended",
                    state._replace(now=less),
                )
            elif (
                self.pressure and entry.has_reply and (acknowledged or not self.rules.drop_acknowledged_only)
            ):
                expired = {entry._replace(has_reply=False)} if self.rules.expired_identity_stays else set()
                less = ledger._replace(entries=(ledger.entries - {entry}) | expired)
                yield f"the reply of call {entry.identity[1]} expires", state._replace(now=less)
