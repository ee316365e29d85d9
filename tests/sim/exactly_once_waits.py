"""Three small models: methods that wait for each other, the bound on replies, and the fence word in shared
memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.sim.exactly_once_rules import I6, Rules

# --- methods that wait for each other

QUEUED, RUNNING, RETURNING, OVER = "queued", "running", "returning", "over"


class Chain(NamedTuple):
    """A call and the calls below it: at `depth` in its list of actors, all above it are waiting."""

    actors: str
    depth: int = 0
    status: str = QUEUED

    @property
    def holds(self) -> str:
        """The actors whose methods it has begun and not ended."""
        if self.status == OVER:
            return ""
        return self.actors[: self.depth + (self.status != QUEUED)]


@dataclass(frozen=True)
class WaitsModel:
    """Each chain is a string of actors: ``"AB"`` is a method of A that calls one of B."""

    rules: Rules
    chains: tuple[str, ...]

    def initial(self) -> tuple[Chain, ...]:
        return tuple(Chain(actors) for actors in self.chains)

    def done(self, state: tuple[Chain, ...]) -> bool:
        return all(chain.status == OVER for chain in state)

    def broken(self, state: tuple[Chain, ...]) -> str:
        return ""

    def steps(self, state: tuple[Chain, ...]) -> Iterator[tuple[str, tuple[Chain, ...]]]:
        for index, chain in enumerate(state):
            for label, changed in self.advance(state, index, chain):
                yield f"chain {chain.actors}: {label}", (*state[:index], changed, *state[index + 1 :])

    def advance(self, state: tuple[Chain, ...], index: int, chain: Chain) -> Iterator[tuple[str, Chain]]:
        actors, depth, status = chain
        if status == OVER:
            return
        here = actors[depth]
        if status == QUEUED:
            yield from self.start(state, index, chain)
        elif status == RUNNING and depth + 1 < len(actors):
            following = actors[depth + 1]
            if following in chain.holds and self.rules.refuse_chains_that_return:
                yield f"the call to {following} is refused: it comes back", Chain(actors, depth, RETURNING)
            else:
                yield f"the method of {here} calls {following}", Chain(actors, depth + 1, QUEUED)
        else:
            above = Chain(actors, depth - 1, RETURNING) if depth else Chain(actors, 0, OVER)
            yield f"the method of {here} ends", above

    def start(self, state: tuple[Chain, ...], index: int, chain: Chain) -> Iterator[tuple[str, Chain]]:
        here = chain.actors[chain.depth]
        holder = self.holder(state, here)
        if holder is None:
            yield f"{here} starts it", chain._replace(status=RUNNING)
        elif holder == index or not chain.depth or not self.rules.refuse_crossing_waits:
            return
        elif self.waits_for(state, holder, index):
            yield (
                f"the wait for {here} is refused: {here} waits for it",
                Chain(chain.actors, chain.depth - 1, RETURNING),
            )

    @staticmethod
    def holder(state: tuple[Chain, ...], actor: str) -> int | None:
        return next((number for number, chain in enumerate(state) if actor in chain.holds), None)

    def waits_for(self, state: tuple[Chain, ...], who: int, whom: int) -> bool:
        """Follow the waits from `who`: does its innermost call wait behind `whom`, directly or not?"""
        seen: set[int] = set()
        while who not in seen:
            seen.add(who)
            chain = state[who]
            following = self.holder(state, chain.actors[chain.depth]) if chain.status == QUEUED else None
            if following is None:
                return False
            if following == whom:
                return True
            who = following
        return False


# --- the bound on replies


class Client(NamedTuple):
    calls: int
    sent: int = 0  # its call number `sent` is under way when this is above `had`
    had: int = 0
    acknowledged: int = 0  # as the actor knows
    kept: int = 0  # replies of it that the actor keeps


@dataclass(frozen=True)
class BoundModel:
    """Callers of one actor that keeps at most `bound` unacknowledged replies; a call over it is held back."""

    rules: Rules
    calls: tuple[int, ...]
    bound: int = 1

    def initial(self) -> tuple[Client, ...]:
        return tuple(Client(calls) for calls in self.calls)

    def done(self, state: tuple[Client, ...]) -> bool:
        return all(client.had == client.calls for client in state)

    def broken(self, state: tuple[Client, ...]) -> str:
        return ""

    def steps(self, state: tuple[Client, ...]) -> Iterator[tuple[str, tuple[Client, ...]]]:
        for index, client in enumerate(state):
            for label, changed in self.advance(state, client):
                yield f"caller {index + 1} {label}", (*state[:index], changed, *state[index + 1 :])

    def advance(self, state: tuple[Client, ...], client: Client) -> Iterator[tuple[str, Client]]:
        unacknowledged = sum(each.kept - each.acknowledged for each in state)
        if client.sent == client.had and client.sent < client.calls:
            yield f"makes call {client.sent + 1}", client._replace(sent=client.sent + 1)
        if client.sent > client.had and client.kept < client.sent:
            known = client._replace(acknowledged=client.had)  # the head of the call says so
            if self.rules.acks_count_before_held_back:
                unacknowledged -= client.had - client.acknowledged
            if unacknowledged < self.bound:
                yield f"call {client.sent} runs", known._replace(kept=client.sent)
            else:
                yield (
                    f"call {client.sent} is held back",
                    known if self.rules.acks_count_before_held_back else client,
                )
        if client.kept > client.had:
            yield f"gets reply {client.kept}", client._replace(had=client.kept)
        idle = client.sent == client.had
        if idle and client.acknowledged < client.had and self.rules.ask_idle_callers_for_acks:
            yield "is asked, and acknowledges", client._replace(acknowledged=client.had)


# --- the fence word


class Words(NamedTuple):
    """Two processors with store buffers over shared memory: is there a record, is the fence closed?"""

    old_buffer: bool = False
    new_buffer: bool = False
    record: bool = False
    word: bool = False
    old_at: str = "append"
    new_at: str = "close"
    answered: bool = False
    found: bool = False


@dataclass(frozen=True)
class FenceWordModel:
    """The writer stores its record and loads the word; the successor the other way round."""

    rules: Rules

    def initial(self) -> Words:
        return Words()

    def done(self, state: Words) -> bool:
        return state.old_at == state.new_at == "end"

    def broken(self, state: Words) -> str:
        return I6 if state.answered and state.new_at == "end" and not state.found else ""

    def steps(self, state: Words) -> Iterator[tuple[str, Words]]:
        fences = self.rules.store_load_fences
        if state.old_buffer:
            yield "the old one's record becomes visible", state._replace(old_buffer=False, record=True)
        if state.new_buffer:
            yield "the fence word becomes visible", state._replace(new_buffer=False, word=True)
        if state.old_at == "append":
            yield "the old one stores its record", state._replace(old_at="look", old_buffer=True)
        elif state.old_at == "look" and not (fences and state.old_buffer):
            yield (
                "the old one loads the fence word: " + ("closed" if state.word else "open, and answers"),
                state._replace(old_at="end", answered=not state.word),
            )
        if state.new_at == "close":
            yield "the new one stores the fence word", state._replace(new_at="read", new_buffer=True)
        elif state.new_at == "read" and not (fences and state.new_buffer):
            what = "the new one reads: " + ("the record" if state.record else "no record")
            yield what, state._replace(new_at="end", found=state.record)
