"""Model of going back: an actor is restored from an older snapshot while calls of the old history are under
way.

A driver makes two calls at once; a task makes one and may be executed again by a process that has heard
nothing. Effects are durable when they happen (the journal's model is about that). A request goes to one
incarnation and is lost with it; a reply that has left may arrive at any later time. Who restores (once, or
as often as the model says) picks the empty state or the snapshot; the incarnation from before may still
carry out a deletion that it had decided on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.sim.exactly_once_rules import I1, I2, I7, Rules

DRIVER, TASK = "driver", "task"
Call = tuple[str, int]


class Request(NamedTuple):
    caller: str
    attempt: int
    n: int
    history: int  # that the caller knows, 0: none
    epoch: int


class Reply(NamedTuple):
    caller: str
    attempt: int
    n: int
    history: int
    epoch: int


class Caller(NamedTuple):
    """A calling context: the driver, or one attempt of the task."""

    name: str
    attempt: int
    calls: int
    replies: frozenset[tuple[int, int]] = frozenset()  # n, history
    sent_to: int = 0  # newest epoch
    over: str = ""

    @property
    def history(self) -> int:
        return max([0, *(history for _, history in self.replies)])


class Snapshot(NamedTuple):
    effects: tuple[Call, ...]


class State(NamedTuple):
    callers: tuple[Caller, ...]
    epoch: int = 1
    history: int = 1
    effects: tuple[Call, ...] = ()
    ledger: frozenset[Call] = frozenset()
    ran: frozenset[tuple[str, int, int]] = frozenset()  # caller, attempt, history
    snapshot: Snapshot | None = None
    base_is_old: bool = False  # what a crash now would go back to is a snapshot of an older epoch alone
    requests: frozenset[Request] = frozenset()
    replies: frozenset[Reply] = frozenset()
    crashes_left: int = 1
    reruns_left: int = 1
    broken: str = ""


@dataclass(frozen=True)
class HistoriesModel:
    rules: Rules
    driver_calls: int = 2
    with_task: bool = False
    restarts: int = 1

    def initial(self) -> State:
        callers = [Caller(DRIVER, 1, self.driver_calls)] if self.driver_calls else []
        if self.with_task:
            callers.append(Caller(TASK, 1, 1))
        return State(tuple(callers), crashes_left=self.restarts, reruns_left=int(self.with_task))

    def done(self, state: State) -> bool:
        return all(caller.over for caller in state.callers)

    def broken(self, state: State) -> str:
        if state.broken:
            return state.broken
        return I2 if len(set(state.effects)) < len(state.effects) else ""

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        for index, caller in enumerate(state.callers):
            yield from self.send(state, index, caller)
        for request in sorted(state.requests):
            yield from self.arrive(state, request)
        for reply in sorted(state.replies):
            yield from self.receive(state, reply)
        yield from self.actor(state)
        if state.reruns_left:
            again = Caller(TASK, 2, 1)
            callers = tuple(c._replace(over="lost") if c.name == TASK else c for c in state.callers)
            rerun = state._replace(callers=(*callers, again), reruns_left=0)
            yield "! the task's process dies; attempt 2 begins in another one", rerun

    # -- the actor

    def actor(self, state: State) -> Iterator[tuple[str, State]]:
        if state.snapshot is None and state.effects:
            saved = state._replace(snapshot=Snapshot(state.effects))
            yield f"a snapshot is saved: {self.names(state.effects)}", saved
        if state.crashes_left:
            yield from self.restart(state._replace(crashes_left=state.crashes_left - 1))
        if state.base_is_old:
            yield "! a deletion of the old incarnation is carried out late", state._replace(broken=I1)

    def restart(self, state: State) -> Iterator[tuple[str, State]]:
        """A crash (nothing is lost), or somebody restores the past: a new epoch either way."""
        state = state._replace(epoch=state.epoch + 1, requests=frozenset())
        yield "! the actor crashes and recovers", state
        for snapshot in (Snapshot(()), state.snapshot):
            if snapshot is None or not state.effects:
                continue
            ledger = frozenset(snapshot.effects) if self.rules.restored_frontier_stays else frozenset()
            back = state._replace(
                history=state.history + 1,
                effects=snapshot.effects,
                ledger=ledger,
                base_is_old=bool(snapshot.effects) and not self.rules.restore_saves_anew,
            )
            yield f"! somebody restores {self.names(snapshot.effects)}: history {back.history}", back

    @staticmethod
    def names(effects: tuple[Call, ...]) -> str:
        return "[" + ", ".join(f"{caller} call {n}" for caller, n in effects) + "]"

    def arrive(self, state: State, request: Request) -> Iterator[tuple[str, State]]:
        after = state._replace(requests=state.requests - {request})
        who = f"{request.caller} {request.attempt} call {request.n}"
        if self.rules.history_in_calls and request.history not in (0, state.history):
            refused = self.change(after, request.caller, request.attempt, over="CheckpointRolledBackError")
            yield f"{who} arrives, made in history {request.history}: refused", refused
            return
        reply = Reply(request.caller, request.attempt, request.n, state.history, state.epoch)
        after = after._replace(replies=state.replies | {reply})
        call = (request.caller, request.n)
        if call in state.ledger:
            yield f"{who} arrives: recorded", after
            return
        caller = next(c for c in state.callers if c[:2] == request[:2])
        mixed = any(history != state.history for _, history in caller.replies)
        yield (
            f"{who} arrives and runs in history {state.history}",
            after._replace(
                effects=(*state.effects, call),
                ledger=state.ledger | {call},
                ran=state.ran | {(request.caller, request.attempt, state.history)},
                broken=I7 if mixed else "",
            ),
        )

    # -- callers

    @staticmethod
    def change(state: State, name: str, attempt: int, **changes: object) -> State:
        callers = tuple(
            c._replace(**changes) if c[:2] == (name, attempt) and not c.over else c  # type: ignore[arg-type]
            for c in state.callers
        )
        return state._replace(callers=callers)

    def send(self, state: State, index: int, caller: Caller) -> Iterator[tuple[str, State]]:
        had = {n for n, _ in caller.replies}
        for n in range(1, caller.calls + 1):
            under_way = any(
                m[:3] == (caller.name, caller.attempt, n) for m in (*state.requests, *state.replies)
            )
            lost_reply = any(
                r[:3] == (caller.name, caller.attempt, n) and r.epoch < state.epoch for r in state.replies
            )
            if caller.over or n in had or (under_way and not lost_reply):
                continue
            history = (
                caller.history if self.rules.history_stamped_when_sent else 0
            )  # all were made at the start
            request = Request(caller.name, caller.attempt, n, history, state.epoch)
            if request in state.requests:
                continue
            after = self.change(state, caller.name, caller.attempt, sent_to=state.epoch)
            who = f"{caller.name} {caller.attempt}"
            what = f"{who} sends call {n} to epoch {state.epoch}, knows history {history}"
            yield what, after._replace(requests=state.requests | {request})

    def receive(self, state: State, reply: Reply) -> Iterator[tuple[str, State]]:
        after = state._replace(replies=state.replies - {reply})
        caller = next(c for c in state.callers if c[:2] == reply[:2])
        who = f"{reply.caller} {reply.attempt}"
        had = {n for n, _ in caller.replies}
        old = reply.epoch < caller.sent_to and self.rules.drop_replies_of_older_epochs
        if caller.over or reply.n in had or old:
            yield f"{who} drops a reply of epoch {reply.epoch} to call {reply.n}", after
            return
        ran = [history for name, attempt, history in state.ran if (name, attempt) == reply[:2]]
        mixed = any(history > reply.history for history in ran) or any(
            h != reply.history for _, h in caller.replies
        )
        replies = caller.replies | {(reply.n, reply.history)}
        over = "finished" if len(replies) == caller.calls else ""
        after = self.change(after, reply.caller, reply.attempt, replies=replies, over=over)
        what = f"{who} gets the reply of call {reply.n}, of history {reply.history}"
        yield what, after._replace(broken=I7 if mixed else "")
