"""Explore every state of a small model, breadth first, and say by which shortest way an invariant breaks.

A model is a value with `initial`, `steps`, `broken` and `done`. States are hashable and immutable; equal
states are one. A step is a label and the next state; labels that begin with ``!`` are faults, which need
not happen. Nothing is drawn at random: the same model gives the same counts and the same counterexample
each time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

FAULT = "!"


class Model(Protocol):
    """What is explored."""

    def initial(self) -> Hashable:
        """Return the first state."""

    def steps(self, state: Any) -> Iterable[tuple[str, Hashable]]:
        """Return all that can happen next."""

    def broken(self, state: Any) -> str:
        """Return the name of the invariant that this state breaks, else an empty string."""

    def done(self, state: Any) -> bool:
        """Say whether nothing more is waited for."""


class TooLargeError(Exception):
    """There are more states than allowed: the exploration would not be exhaustive."""


@dataclass(frozen=True)
class Result:
    """How an exploration ended: all states seen, or one that breaks `broken`."""

    states: int
    transitions: int
    broken: str
    trace: tuple[str, ...]

    def __str__(self) -> str:
        if not self.broken:
            return f"{self.states:,} states, {self.transitions:,} transitions, no invariant breaks"
        lines = [f"{self.broken} breaks after {len(self.trace)} steps ({self.states:,} states seen):"]
        return "\n".join(lines + [f"  {number:2}. {label}" for number, label in enumerate(self.trace, 1)])


class Explorer:
    """One exploration of one model."""

    def __init__(self, model: Model, stuck: str, max_states: int) -> None:
        self._model, self._stuck, self._max_states = model, stuck, max_states
        self._number: dict[Hashable, int] = {}
        self._from: list[tuple[int, str]] = []  # of each state: from which it was first reached, and how
        self._before: list[list[int]] = []  # of each state: from where a step that is no fault leads here
        self._goes_on = bytearray()  # of each state: does any such step lead out of it?
        self._transitions = 0

    def run(self) -> Result:
        """Explore; the first state that breaks an invariant, nearest to the initial one, ends it."""
        initial = self._model.initial()
        self._add(initial, -1, "")
        queue = deque([initial])
        finished = []
        while queue:
            state = queue.popleft()
            number = self._number[state]
            broken = self._model.broken(state)
            if broken:
                return self._result(broken, number)
            if self._model.done(state):
                finished.append(number)
            queue.extend(self._expand(state, number))
        stuck = self._first_stuck(finished)
        return self._result("", 0) if stuck is None else self._result(self._stuck, stuck)

    def _expand(self, state: Hashable, number: int) -> Iterator[Hashable]:
        for label, following in self._model.steps(state):
            self._transitions += 1
            known = self._number.get(following)
            if known is None:
                known = self._add(following, number, label)
                yield following
            if label[0] != FAULT and known != number:
                self._goes_on[number] = 1
                self._before[known].append(number)

    def _add(self, state: Hashable, before: int, label: str) -> int:
        number = self._number[state] = len(self._from)
        if number >= self._max_states:
            raise TooLargeError(f"more than {self._max_states:,} states")
        self._from.append((before, label))
        self._before.append([])
        self._goes_on.append(0)
        return number

    def _first_stuck(self, finished: list[int]) -> int | None:
        """Return a state from which no way without a fault leads to a finished one.

        The nearest one in which nothing can happen, if there is one: its trace tells most.
        """
        hopeful = bytearray(len(self._from))
        todo = list(finished)
        while todo:
            number = todo.pop()
            if not hopeful[number]:
                hopeful[number] = 1
                todo.extend(self._before[number])
        stuck = [number for number, hope in enumerate(hopeful) if not hope]
        return next((number for number in stuck if not self._goes_on[number]), stuck[0] if stuck else None)

    def _result(self, broken: str, number: int) -> Result:
        trace: list[str] = []
        while broken and number > 0:
            number, label = self._from[number]
            trace.append(label)
        return Result(len(self._from), self._transitions, broken, tuple(reversed(trace)))


def explore(model: Model, *, stuck: str, max_states: int = 2_000_000) -> Result:
    """Explore `model` exhaustively.

    Parameters
    ----------
    model : Model
        What is explored.
    stuck : str
        Name of the invariant that breaks where no step but faults can lead to a finished state.
    max_states : int
        `TooLargeError` beyond it.
    """
    return Explorer(model, stuck, max_states).run()
