"""A thread that ends processes with SIGKILL in the middle of their work, on a plan that the seed fixes.

Only a death that was seen counts, and only of a process that was at work: the signal goes through a pidfd to
a process whose start time was compared, the pidfd says when it is dead, and the board says that it never
ended what it had begun.

The plan holds on a machine of any speed. A strike is due in a certain round, at a certain fraction of a
piece of work; how long that piece takes is learnt from the board. Should the work be over before the signal,
the strike is tried again, and the feeder feeds that round once more until it has landed: the server ignores
an update that it has, so that this changes nothing but the time.
"""

from __future__ import annotations

import math
import os
import random
import select
import signal
import threading
import time
from types import TracebackType
from typing import NamedTuple

from immortal_parts.board import SERVER, WORKER, Board, Process, started
from immortal_parts.story import ROLES, Story

DEATH_TIMEOUT_S = 10.0
STRIKE_TIMEOUT_S = 120.0  # hundreds of rounds on a slow machine: nobody is ever at work, which is a bug
POLL_S = 0.0002  # only while a strike is due
LAST_KILL = 0.92  # of the rounds: the last kills need some training after them to recover in


class Strike(NamedTuple):
    """One planned kill."""

    round: int
    role: int
    fraction: float  # of the piece of work that is done when the signal is sent


def plan(kills: int, rounds: int, seed: int) -> list[Strike]:
    """So many strikes spread over the rounds, half of them at the server, in random order. Pure."""
    dice = random.Random(seed)
    roles = [SERVER if index % 2 == 0 else WORKER for index in range(kills)]
    dice.shuffle(roles)
    last = int(rounds * LAST_KILL)
    edges = [1 + index * (last - 1) // kills for index in range(kills + 1)] if kills else []
    return [
        Strike(dice.randrange(edges[index], edges[index + 1]), role, dice.uniform(0.0, 0.8))
        for index, role in enumerate(roles)
    ]


class Monkey:
    """The chaos thread, as a context manager around the training. What it did is in the story."""

    def __init__(self, board: Board, story: Story, seed: int) -> None:
        self._board = board
        self._story = story
        self._plan = plan(story.kills_wanted, story.rounds, seed)
        self._changed = threading.Condition()  # guards the three below
        self._round = -1  # furthest round that the feeder has begun
        self._due: float = self._plan[0].round if self._plan else math.inf  # round of the next strike
        self._failure: BaseException | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)

    def __enter__(self) -> Monkey:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        with self._changed:
            self._changed.notify_all()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def begin(self, round: int) -> None:
        """The feeder begins a round: a strike that is due in it may land from now on."""
        with self._changed:
            if round > self._round:
                self._round = round
                self._changed.notify_all()

    def holds(self, round: int) -> bool:
        """Whether the feeder has to feed this round once more, since a strike has not landed yet."""
        with self._changed:
            if self._failure is not None:
                raise RuntimeError("the chaos thread failed") from self._failure
            held = self._due <= round
        self._story.repeated += held
        return held

    def _run(self) -> None:
        try:
            for index, strike in enumerate(self._plan):
                with self._changed:
                    self._changed.wait_for(lambda: self._over.is_set() or self._round >= self._due)
                self._land(strike)
                with self._changed:
                    self._due = self._plan[index + 1].round if index + 1 < len(self._plan) else math.inf
        except BaseException as error:  # raised in the main thread by holds() or __exit__
            with self._changed:
                self._failure = error

    def _land(self, strike: Strike) -> None:
        deadline = time.monotonic() + STRIKE_TIMEOUT_S
        fraction = strike.fraction
        while not self._over.is_set():
            victims = self._board.at_work(strike.role)
            if victims:
                if self._strike(victims[-1], fraction):
                    return
                fraction /= 2  # it was too late
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"no {ROLES[strike.role]} was killed in the middle of its work within"
                    f" {STRIKE_TIMEOUT_S:.0f} s of round {strike.round} ({self._story.missed} kills missed)"
                )
            self._over.wait(POLL_S)

    def _strike(self, victim: Process, fraction: float) -> bool:
        """Kill it when so much of its work should be done; True if it died at its work."""
        if not self._await_moment(victim, fraction):
            return False
        try:
            killed_at = kill(victim)
        except ProcessLookupError:  # ended meanwhile, and not by us
            self._board.forget(victim)
            return False
        if self._board.died_at_work(victim):
            self._story.killed(victim.role, victim.pid, killed_at)
            return True
        self._story.missed += 1
        return False

    def _await_moment(self, victim: Process, fraction: float) -> bool:
        """Wait for the moment; whether it is still at the piece of work that it was at before."""
        began = self._board.began(victim)
        if began is None:
            return False
        moment = began + fraction * self._board.usual_s(victim.role)
        self._over.wait(max(0.0, moment - time.monotonic()))
        return self._board.began(victim) == began


def kill(victim: Process) -> float:
    """End a process for sure; return when the signal was sent.

    Raises
    ------
    ProcessLookupError
        When the process is gone already.
    TimeoutError
        When SIGKILL has not ended it: then nothing said here would be true.
    """
    fd = os.pidfd_open(victim.pid)
    try:
        # From here on the pidfd means one process; the start time says whether it is the one we want.
        if started(victim.pid) != victim.started:
            raise ProcessLookupError(victim.pid)
        sent_at = time.monotonic()
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(DEATH_TIMEOUT_S * 1000):
            raise TimeoutError(f"process {victim.pid} is still there {DEATH_TIMEOUT_S:.0f} s after SIGKILL")
        return sent_at
    finally:
        os.close(fd)
