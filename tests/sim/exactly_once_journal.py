"""Model of one exactly-once actor over its journal and snapshots: incarnations, fencing, recovery, reads.

The actor numbers its calls: a reply is the call's place in the order of effects, so that any other order,
any lost and any doubled effect shows. A crash is an incarnation that does nothing any more; one that is
stopped and goes on is one that acts after a later epoch was claimed. Both are the same here: every
incarnation may act at any time, or never again. Callers ask again without end, and answers are taken from
whoever gives them.

Atomic steps: claim, read, open the own segment (which cuts older ones), run a call and append its record,
write what was appended, look at the epoch again, answer, capture, publish, trim; a read's start, its look
at the epoch, its answer. One published snapshot may go bad.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.sim.exactly_once_rules import I1, I2, I4, I5, I6, Rules

CLAIMED, READ, SERVING = "claimed", "read", "serving"
PARKED = (
    "parked: the newest snapshot is bad, and the one before does not reach over a call that is not replayed"
)


class Entry(NamedTuple):
    """A call that was run: in the journal and in the ledger."""

    call: str
    reply: int
    position: int


class Snapshot(NamedTuple):
    epoch: int
    position: int
    effects: tuple[str, ...]
    ledger: frozenset[Entry]
    good: bool = True


class Segment(NamedTuple):
    epoch: int
    first: int
    records: tuple[Entry, ...] = ()
    past: tuple[tuple[int, int], ...] = ()  # snapshots of older epochs that count


class Incarnation(NamedTuple):
    epoch: int
    phase: str = CLAIMED
    effects: tuple[str, ...] = ()
    ledger: frozenset[Entry] = frozenset()
    last: int = 0
    appended: tuple[Entry, ...] = ()
    written: int = 0
    verified: int = 0  # durable, and the epoch was looked at after that
    hold: int = 0  # position from which answers wait for a snapshot
    captured: Snapshot | None = None
    past: tuple[tuple[int, int], ...] = ()  # the snapshots that it found
    saved: int = 0  # position of its newest snapshot that is published, with the epoch looked at after that


class Read(NamedTuple):
    epoch: int
    effects: tuple[str, ...]
    position: int
    answered_before: frozenset[tuple[str, int]]
    checked: bool = False


class State(NamedTuple):
    claimed: int
    incarnations: tuple[Incarnation, ...]
    segments: tuple[Segment, ...] = ()
    snapshots: tuple[Snapshot, ...] = (Snapshot(0, 0, (), frozenset()),)
    trimmed: int = 0
    bad_left: int = 0
    answered: frozenset[tuple[str, int]] = frozenset()
    read: Read | None = None
    reads_left: int = 0
    broken: str = ""


class Past(NamedTuple):
    """What a new incarnation would find."""

    effects: tuple[str, ...]
    ledger: frozenset[Entry]
    last: int
    counting: tuple[tuple[int, int], ...]
    gap: bool = False
    parked: bool = False


@dataclass(frozen=True)
class JournalModel:
    """Calls named ``n…`` are of a method that is not replayed (a snapshot takes its record's place)."""

    rules: Rules
    calls: tuple[str, ...] = ("x1", "y1")
    epochs: int = 3
    snapshots: int = 0
    reads: int = 0
    bad: int = 0
    known: dict[tuple[object, ...], Past] = field(default_factory=dict, compare=False, repr=False)

    def initial(self) -> State:
        return State(0, (), bad_left=self.bad, reads_left=self.reads)

    def done(self, state: State) -> bool:
        return len(state.answered) == len(self.calls) or self.recover(state).parked

    # -- recovery

    def chain(self, state: State) -> tuple[list[tuple[int, Entry]], int]:
        """All records that count, with their positions, and the last position."""
        records: list[tuple[int, Entry]] = []
        last = 0
        for index, segment in enumerate(state.segments):
            ends = (
                [later.first for later in state.segments[index + 1 :]] if self.rules.seal_old_segment else []
            )
            for position, entry in enumerate(segment.records, segment.first):
                if all(position < end for end in ends) and position > state.trimmed:
                    records.append((position, entry))
            last = max(last, segment.first - 1, *(position for position, _ in records), 0)
        return records, last

    def recover(self, state: State) -> Past:
        """What an incarnation that begins now would find; many states differ in other things only."""
        disk = (state.segments, state.snapshots, state.trimmed)
        past = self.known.get(disk)
        if past is None:
            past = self.known[disk] = self.replay(state)
        return past

    def replay(self, state: State) -> Past:
        newest = state.segments[-1] if state.segments else Segment(0, 1)
        counting = [
            s for s in state.snapshots if s.epoch >= newest.epoch or (s.epoch, s.position) in newest.past
        ]
        names = tuple((s.epoch, s.position) for s in counting)
        good = [snapshot for snapshot in counting if snapshot.good]
        records, last = self.chain(state)
        if not good:
            return Past((), frozenset(), last, names, gap=True)
        base = good[-1]
        effects, ledger, at = base.effects, set(base.ledger), base.position
        for position, entry in records:
            if position <= base.position:
                continue
            if self.rules.seal_old_segment and position != at + 1:
                return Past(effects, frozenset(ledger), last, names, gap=True)
            if entry.call[0] == "n" and self.rules.nondeterministic_leaves_barrier:
                lost = any(not s.good and s.position >= position for s in counting)
                return Past(effects, frozenset(ledger), position - 1, names, parked=lost)
            at = position
            if entry.call[0] == "n":  # as if it had left no record
                continue
            effects += (entry.call,)
            ledger.add(Entry(entry.call, len(effects), position))
        return Past(effects, frozenset(ledger), last, names)

    # -- invariants

    def broken(self, state: State) -> str:
        if state.broken:
            return state.broken
        past = self.recover(state)
        if past.parked:
            return ""
        if past.gap and state.answered:
            return I1
        known = [past] + [inc for inc in state.incarnations[-1:] if inc.phase != CLAIMED]
        for view in known:
            if len(set(view.effects)) < len(view.effects):
                return I2
            replies = {entry.call: entry.reply for entry in view.ledger}
            for call, reply in state.answered:
                if call not in view.effects:
                    return I1
                if replies.get(call, reply) != reply:
                    return I4
        return ""

    # -- steps

    def steps(self, state: State) -> Iterator[tuple[str, State]]:
        yield from self.incarnate(state)
        for index, inc in enumerate(state.incarnations):
            for label, changed, after in self.act(state, inc):
                others = list(after.incarnations)
                if changed is None:
                    del others[index]
                else:
                    others[index] = changed
                yield f"epoch {inc.epoch}: {label}", after._replace(incarnations=tuple(others))
        if state.bad_left and len(state.snapshots) > 1 and all(s.good for s in state.snapshots):
            spoilt = state.snapshots[:-1] + (state.snapshots[-1]._replace(good=False),)
            yield "! the newest snapshot goes bad", state._replace(snapshots=spoilt, bad_left=0)

    def incarnate(self, state: State) -> Iterator[tuple[str, State]]:
        if state.claimed < self.epochs:
            epoch = state.claimed + 1
            alive = state.incarnations[-1:] + (Incarnation(epoch),)  # at most one predecessor lives on
            what = f"{'! ' if state.claimed else ''}epoch {epoch} is claimed"
            if self.rules.fence_before_read:
                yield what, state._replace(claimed=epoch, incarnations=alive)
            elif not state.incarnations or state.incarnations[-1].epoch == state.claimed:
                yield (
                    f"{'! ' if state.claimed else ''}epoch {epoch} begins, unclaimed",
                    state._replace(incarnations=alive),
                )
        newest = state.incarnations[-1] if state.incarnations else None
        if newest and newest.epoch > state.claimed and newest.phase == READ:
            yield f"epoch {newest.epoch} is claimed", state._replace(claimed=newest.epoch)

    def act(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        if inc.phase == CLAIMED:
            past = self.recover(state)
            if not past.gap and not past.parked:
                changed = inc._replace(
                    phase=READ, effects=past.effects, ledger=past.ledger, last=past.last, past=past.counting
                )
                yield f"reads the past: {list(past.effects)}", changed, state
        elif inc.phase == READ:
            yield from self.open(state, inc)
        else:
            yield from self.run(state, inc)
            yield from self.write(state, inc)
            yield from self.answer(state, inc)
            yield from self.save(state, inc)
            yield from self.reading(state, inc)

    def open(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        if inc.epoch < state.claimed:
            yield "is fenced", None, state
        elif inc.epoch == state.claimed:
            segment = Segment(inc.epoch, inc.last + 1, (), inc.past)
            changed = inc._replace(phase=SERVING, written=inc.last, verified=inc.last)
            yield (
                f"opens its segment at {segment.first}",
                changed,
                state._replace(segments=(*state.segments, segment)),
            )

    def run(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        for call in self.calls:
            if any(entry.call == call for entry in inc.ledger):
                continue
            effects = (*inc.effects, call)
            entry = Entry(call, len(effects), inc.last + 1)
            changed = inc._replace(
                effects=effects,
                ledger=inc.ledger | {entry},
                last=entry.position,
                appended=(*inc.appended, entry),
                hold=entry.position if call[0] == "n" else inc.hold,
            )
            yield f"runs {call} and appends its record: reply {entry.reply}", changed, state

    def write(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        recheck = self.rules.recheck_epoch_after_durable
        if inc.appended:
            segments = tuple(
                s._replace(records=s.records + inc.appended) if s.epoch == inc.epoch else s
                for s in state.segments
            )
            changed = inc._replace(
                appended=(), written=inc.last, verified=inc.verified if recheck else inc.last
            )
            yield "what it appended is durable", changed, state._replace(segments=segments)
        if inc.verified < inc.written:
            holds = inc.epoch >= state.claimed
            yield (
                ("sees that it holds its key" if holds else "is fenced"),
                (inc._replace(verified=inc.written) if holds else None),
                state,
            )

    def answer(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        for entry in sorted(inc.ledger):
            held = entry.position > inc.verified and self.rules.record_before_reply
            if inc.hold and entry.position >= inc.hold:
                held = held or inc.saved < inc.hold
            if held or (entry.call, entry.reply) in state.answered:
                continue
            past = self.recover(state)
            broken = ""
            if not past.parked and entry.call not in past.effects:
                broken = I5
            newest = state.incarnations[-1]
            if inc.epoch < state.claimed and (
                broken or (newest.phase != CLAIMED and entry.call not in newest.effects)
            ):
                broken = I6
            after = state._replace(answered=state.answered | {(entry.call, entry.reply)}, broken=broken)
            yield f"answers {entry.call} with {entry.reply}", inc, after

    def save(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        own = [s for s in state.snapshots if s.epoch == inc.epoch]
        newest = max(position for _, position in [*inc.past, *(s[:2] for s in own), (0, 0)])
        if len(own) < self.snapshots and inc.captured is None and inc.last > newest:
            ledger = inc.ledger if self.rules.frontier_in_snapshot else frozenset()
            taken = Snapshot(inc.epoch, inc.last, inc.effects, ledger)
            after = (
                state
                if self.rules.trim_after_snapshot
                else state._replace(trimmed=max(state.trimmed, inc.last))
            )
            yield f"captures its state at {inc.last}", inc._replace(captured=taken), after
        yield from self.publish(state, inc)
        yield from self.trim(state, inc)

    def publish(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        taken = inc.captured
        mine = [s.position for s in state.snapshots if s.epoch == inc.epoch]
        if taken and (taken.position <= inc.verified or not self.rules.snapshot_waits_for_journal):
            published = tuple(sorted((*state.snapshots, taken), key=lambda s: (s.epoch, s.position)))
            saved = inc.saved if self.rules.recheck_epoch_after_snapshot else taken.position
            changed = inc._replace(captured=None, saved=saved)
            yield f"publishes its snapshot at {taken.position}", changed, state._replace(snapshots=published)
        elif mine and mine[-1] > inc.saved:
            holds = inc.epoch >= state.claimed
            what = "sees that it holds its key, after the snapshot" if holds else "is fenced"
            yield what, (inc._replace(saved=mine[-1]) if holds else None), state

    def trim(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        mine = [s for s in state.snapshots if s.epoch == inc.epoch]
        if not mine or (mine[-1].position > inc.saved and self.rules.trim_after_recheck):
            return
        counting = [
            s for s in state.snapshots if s in mine or s[:2] in inc.past or not self.rules.keep_what_counts
        ]
        upto = counting[-2 if self.rules.trim_to_oldest_kept else -1].position if len(counting) > 1 else 0
        if upto > state.trimmed:
            snapshots = tuple(s for s in state.snapshots if s in counting[-2:] or s not in counting)
            yield f"trims the journal up to {upto}", inc, state._replace(trimmed=upto, snapshots=snapshots)

    def reading(self, state: State, inc: Incarnation) -> Iterator[tuple[str, Incarnation | None, State]]:
        read = state.read
        if read is None:
            if state.reads_left:
                begun = Read(inc.epoch, inc.effects, inc.last, state.answered)
                yield f"begins a read: {list(inc.effects)}", inc, state._replace(read=begun, reads_left=0)
            return
        if read.epoch != inc.epoch:
            return
        durable = inc.verified >= read.position or not self.rules.readonly_waits_durable
        if durable and not read.checked and self.rules.readonly_rechecks_epoch:
            holds = inc.epoch >= state.claimed
            what = "sees that it holds its key, for the read" if holds else "is fenced"
            yield (
                what,
                (inc if holds else None),
                state._replace(read=read._replace(checked=True) if holds else None),
            )
        elif durable:
            yield (
                f"answers the read: {list(read.effects)}",
                inc,
                state._replace(read=None, broken=self.judge(state, read)),
            )

    def judge(self, state: State, read: Read) -> str:
        past = self.recover(state)
        if not past.parked and past.effects[: len(read.effects)] != read.effects:
            return I5
        missing = {call for call, _ in read.answered_before} - set(read.effects)
        return I6 if missing else ""
