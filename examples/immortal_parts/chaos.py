"""A thread that ends processes with SIGKILL in the middle of their work, on a plan that the seed fixes.

Only a death that was seen counts, and only of a process that was at work: the signal goes through a pidfd to
a process whose start time was compared, the pidfd says when it is dead, and the board says that it never
ended what it had begun. When and whom to kill is planned beforehand: at which round, server or worker, and
how long after the round began.
"""

from __future__ import annotations

import os
import random
import select
import signal
import threading
import time
from types import TracebackType
from typing import NamedTuple

from immortal_parts.board import SERVER, WORKER, Board, Process, started
from immortal_parts.story import Story

DEATH_TIMEOUT_S = 10.0
POLL_S = 0.0002
LAST_KILL = 0.9  # of the rounds: the last kills need some training after them to recover in


class Strike(NamedTuple):
    """One planned kill."""

    round: int
    role: int
    delay_s: float


def plan(kills: int, rounds: int, seed: int) -> list[Strike]:
    """So many strikes over the rounds, half of them at the server, in random order. Pure."""
    dice = random.Random(seed)
    roles = [SERVER if index % 2 == 0 else WORKER for index in range(kills)]
    dice.shuffle(roles)
    when = sorted(dice.sample(range(1, int(rounds * LAST_KILL)), kills))
    return [Strike(round, role, dice.uniform(0.0, 0.004)) for round, role in zip(when, roles, strict=True)]


class Monkey:
    """The chaos thread, as a context manager around the training. What it did is in the story."""

    def __init__(self, board: Board, story: Story, seed: int) -> None:
        self._board = board
        self._story = story
        self._plan = plan(story.kills_wanted, story.rounds, seed)
        self._over = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="chaos", daemon=True)

    def __enter__(self) -> Monkey:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        if self._failure is not None and error is None:
            raise self._failure

    def _run(self) -> None:
        try:
            for strike in self._plan:
                if not self._due(strike):
                    return
                while not self._over.is_set() and not self._strike(strike.role):
                    time.sleep(POLL_S)
        except BaseException as error:  # raised in the main thread by __exit__
            self._failure = error

    def _due(self, strike: Strike) -> bool:
        """Wait for the round and the moment in it; False when the training is over before."""
        while self._story.furthest < strike.round:
            if self._over.wait(POLL_S * 5):
                return False
        return not self._over.wait(strike.delay_s)

    def _strike(self, role: int) -> bool:
        """Kill the one of this role that began last; True if there was one and it died at its work."""
        candidates = self._board.at_work(role)
        if not candidates:
            return False
        victim = candidates[-1]
        try:
            killed_at = kill(victim)
        except ProcessLookupError:  # ended meanwhile, and not by us
            self._board.forget(victim)
            return False
        if self._board.died_at_work(victim):
            self._story.killed(role, victim.pid, killed_at)
            return True
        self._story.missed += 1
        return False


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
