"""Model of output commit: a method of an exactly-once actor draws a value and calls another such actor.

``m`` is the method: it depends on whether the method ``k`` ran before it, draws 0 or 1 (`self.record`),
calls ``B.x`` with both, and, where `calls` is 2, ``B.y`` with the reply. A has incarnations as in the
journal's model (at most two live, the older one stale); B is durable and never crashes here. What a record
after the cut says never counts; that is the journal's matter.

Atomic steps: claim, read, open; start ``m``, draw, write what was appended, look at the epoch, send, take
the reply, finish, answer, acknowledge to B, release at B.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.sim.exactly_once_rules import I2, I4, I5, I6, Rules

CLAIMED, READ, SERVING = "claimed", "read", "serving"
START, DRAWN, GOT, DONE, POISON, K = (
    "START m",
    "VALUE drawn",
    "VALUE reply",
    "CALL m",
    "CALL m: poison",
    "CALL k",
)

Record = tuple[str, object]


class Running(NamedTuple):
    """The method m in one incarnation."""

    seen: bool  # ran k before it?
    started: int  # position of START
    drawn: int | None = None
    replies: tuple[object, ...] = ()
    values_at: int = 0  # position of the last value of its own
    replies_at: tuple[int, ...] = ()


class Incarnation(NamedTuple):
    epoch: int
    phase: str = CLAIMED
    base: int = 0  # records that it found
    order: tuple[str, ...] = ()
    m: Running | None = None
    rerun: bool = False  # m is open since before this incarnation
    appended: tuple[Record, ...] = ()
    last: int = 0
    written: int = 0
    verified: int = 0
    sent: int = 0  # calls to B that this incarnation has sent without having the reply


class Child(NamedTuple):
    """What B knows of a call of m."""

    n: int
    arguments: object
    has_reply: bool = True


class State(NamedTuple):
    claimed: int = 0
    opened: int = 0
    incarnations: tuple[Incarnation, ...] = ()
    journal: tuple[Record, ...] = ()
    children: frozenset[Child] = frozenset()
    effects: tuple[int, ...] = ()  # at B, by n
    acknowledged: int = 0
    released: bool = False
    driver_ended: bool = False
    answered: frozenset[str] = frozenset()
    kills: int = 0  # in a row, by m
    kills_left: int = 0
    broken: str = ""


@dataclass(frozen=True)
class NestedModel:
    rules: Rules
    epochs: int = 3
    calls: int = 1
    kills: int = 0  # m may end so many incarnations; after that many it is given up
    with_k: bool = True
    draws: bool = True

    def initial(self) -> State:
        return State(kills_left=self.kills)

    def done(self, state: State) -> bool:
        ended = bool(state.answered & {"m", "m: poison"})
        return ended and ("k" in state.answered or not self.with_k)

    def broken(self, state: State) -> str:
        if state.broken:
            return state.broken
        if len(set(state.effects)) < len(state.effects):
            return I2
        names = [name for name, _ in state.journal]
        if DONE in names and "m: poison" in state.answered:
            return I4
        return ""

    # -- A's past

    @staticmethod
    def recover(journal: tuple[Record, ...]) -> tuple[tuple[str, ...], Running | None]:
        order: tuple[str, ...] = ()
        m: Running | None = None
        for position, (name, value) in enumerate(journal, 1):
            if name == K:
                order += ("k",)
            elif name == START:
                m = Running("k" in order, position)
            elif name == DRAWN and m:
                m = m._replace(drawn=int(value), values_at=position)  # type: ignore[call-overload]
            elif name == GOT and m:
                m = m._replace(replies=(*m.replies, value), replies_at=(*m.replies_at, position))
            elif name in (DONE, POISON):
                order, m = (*order, "m"), None
        return order, m

    # -- steps

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        if state.claimed < self.epochs:
            epoch = state.claimed + 1
            alive = state.incarnations[-1:] + (Incarnation(epoch),)
            held = any(inc.epoch == state.claimed for inc in state.incarnations)
            yield (
                f"{'! ' if held else ''}epoch {epoch} is claimed",
                state._replace(claimed=epoch, incarnations=alive),
            )
        for index, inc in enumerate(state.incarnations):
            for label, changed, after in self.act(state, inc):
                others = list(after.incarnations)
                others[index : index + 1] = [] if changed is None else [changed]
                yield f"epoch {inc.epoch}: {label}", after._replace(incarnations=tuple(others))
        if not self.rules.root_release_spares_open_calls and not state.driver_ended:
            yield "! the driver ends, its root is released", state._replace(driver_ended=True, released=True)
        for child in sorted(state.children, key=str):
            if child.has_reply and child.n <= state.acknowledged:
                fewer = (state.children - {child}) | {child._replace(has_reply=False)}
                yield f"B drops the acknowledged reply of call {child.n}", state._replace(children=fewer)

    def act(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        if inc.phase == CLAIMED:
            order, m = self.recover(state.journal)
            size = len(state.journal)
            read = inc._replace(phase=READ, base=size, order=order, m=m, rerun=m is not None, last=size)
            yield f"reads {[name for name, _ in state.journal]}", read, state
        elif inc.phase == READ:
            if inc.epoch == state.claimed:
                cut = state._replace(opened=inc.epoch, journal=state.journal[: inc.base])
                yield (
                    "opens its segment",
                    inc._replace(phase=SERVING, written=inc.base, verified=inc.base),
                    cut,
                )
            if not self.rules.open_journal_before_rerun and inc.m:
                yield from self.run_m(state, inc)
        else:
            yield from self.methods(state, inc)
            yield from self.write(state, inc)

    def append(self, inc: Incarnation, record: Record) -> Incarnation:
        return inc._replace(appended=(*inc.appended, record), last=inc.last + 1)

    def write(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        if inc.appended:
            cut = state.opened > inc.epoch  # its segment ends before
            after = state if cut else state._replace(journal=state.journal + inc.appended)
            verified = inc.verified if self.rules.recheck_epoch_before_outgoing else inc.last
            names = ", ".join(name for name, _ in inc.appended)
            yield f"{names} is durable", inc._replace(appended=(), written=inc.last, verified=verified), after
        if inc.verified < inc.written:
            holds = inc.epoch == state.claimed
            what = "sees that it holds its key" if holds else "is fenced"
            yield what, (inc._replace(verified=inc.written) if holds else None), state

    def methods(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        free = inc.m is None or (inc.rerun and not inc.sent and not self.rules.started_call_first)
        if self.with_k and "k" not in inc.order and free:
            yield "runs k", self.append(inc, (K, None))._replace(order=(*inc.order, "k")), state
        poisoned = self.kills and state.kills >= self.kills
        if poisoned and "m" not in inc.order:
            yield from self.poison(state, inc)
        elif inc.m is None and "m" not in inc.order:
            began = self.append(inc, (START, None))
            yield "starts m", began._replace(m=Running("k" in inc.order, began.last)), state
        elif inc.m is not None:
            yield from self.run_m(state, inc)
        if inc.m is not None and state.kills_left and not poisoned and state.claimed < self.epochs:
            died = state._replace(kills=state.kills + 1, kills_left=state.kills_left - 1)
            yield "! m kills the process", None, died
        yield from self.answers(state, inc)

    def poison(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        over = inc._replace(m=None, order=(*inc.order, "m"), rerun=False)
        if self.rules.record_poison:
            yield "gives m up", self.append(over, (POISON, None)), state
        else:
            after = state._replace(answered=state.answered | {"m: poison"}, kills=0)
            yield "answers m with PoisonCallError", over, after

    def answers(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        for position, (name, _) in enumerate(state.journal[: inc.verified], 1):
            call = {DONE: "m", POISON: "m: poison", K: "k"}.get(name)
            if call and call not in state.answered and position <= inc.verified:
                yield f"answers {call}", inc, state._replace(answered=state.answered | {call})
        finished = DONE in [name for name, _ in state.journal[: inc.verified]]
        early = inc.m is None and "m" in inc.order and not self.rules.release_children_after_durable
        if (finished or early) and not state.released:
            yield "releases m's calls at B", inc, state._replace(released=True)

    # -- the method m

    def run_m(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        m = inc.m
        assert m is not None
        if m.drawn is None and self.draws:
            for value in (0, 1):
                drawn = self.append(inc, (DRAWN, value))
                yield (
                    f"m draws {value}",
                    drawn._replace(m=m._replace(drawn=value, values_at=drawn.last)),
                    state,
                )
        elif len(m.replies) == self.calls:
            done = self.append(inc, (DONE, None))
            yield "m finishes", done._replace(m=None, order=(*inc.order, "m"), rerun=False), state
        elif inc.sent > len(m.replies):
            yield from self.take(state, inc, m)
        else:
            yield from self.send(state, inc, m)
        for n, position in enumerate(m.replies_at, 1):
            if n > state.acknowledged and (
                position <= inc.verified or not self.rules.acknowledge_durable_values_only
            ):
                yield f"acknowledges call {n} to B", inc, state._replace(acknowledged=n)

    def send(
        self, state: State, inc: Incarnation, m: Running
    ) -> Iterator[tuple[str, Incarnation | None, State]]:
        rules = self.rules
        last_value = max(m.values_at, *m.replies_at, 0)
        if inc.phase == SERVING:
            if rules.start_record_before_outgoing and m.started > inc.verified:
                return
            if rules.values_before_later_outgoing and last_value > inc.verified:
                return
        n, arguments = len(m.replies) + 1, m.replies[-1] if m.replies else ("k" in inc.order, m.drawn)
        known = next((child for child in state.children if child.n == n), None)
        broken = self.cause_is_missing(state, inc, m)
        after = state
        if state.released or (known and (known.arguments != arguments or not known.has_reply)):
            if inc.epoch < state.opened:
                yield (
                    f"m calls B, call {n}, is refused; it can commit nothing",
                    None,
                    state._replace(broken=broken),
                )
                return
            broken = broken or I4  # m gets an error that no run without a crash would get
        elif known is None:
            after = state._replace(
                children=state.children | {Child(n, arguments)}, effects=(*state.effects, n)
            )
        what = f"m calls B, call {n} with {arguments}"
        yield what, inc._replace(sent=n), after._replace(broken=broken)

    def cause_is_missing(self, state: State, inc: Incarnation, m: Running) -> str:
        """What leaves now must be what any successor would send."""
        _, found = self.recover(state.journal)
        finished = any(name == DONE for name, _ in state.journal)
        same = found is not None and (found.seen, found.drawn) == (m.seen, m.drawn)
        if finished or same:
            return ""
        return I6 if inc.epoch < state.claimed else I5

    def take(
        self, state: State, inc: Incarnation, m: Running
    ) -> Iterator[tuple[str, Incarnation | None, State]]:
        n = len(m.replies) + 1
        child = next(c for c in state.children if c.n == n)
        reply = ("reply to", child.arguments)
        got = self.append(inc, (GOT, reply))
        changed = m._replace(replies=(*m.replies, reply), replies_at=(*m.replies_at, got.last))
        yield f"m gets the reply of call {n}", got._replace(m=changed), state
