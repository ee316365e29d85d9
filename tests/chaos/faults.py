"""Who is killed, how and when. Only processes of the runtime that this process started are candidates."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections import Counter
from collections.abc import Callable

from tests.helpers import introspection, processes

MEAN_PAUSE_S = 0.15
LONGEST_STOP_S = 0.3
KINDS = {
    "SIGKILL worker": 6,
    "SIGSTOP then SIGKILL worker": 2,
    "SIGSTOP then SIGCONT worker": 1,
    "SIGKILL zygote": 1,
}


class Saboteur:
    """A thread that does harm at random moments until it is told to stop, to processes of one ``ftrayd``."""

    def __init__(self, rng: random.Random, node: Callable[[], int] = introspection.node_pid) -> None:
        self._node = node
        self.done: Counter[str] = Counter()
        self.error: BaseException | None = None
        self._rng = rng
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="saboteur", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        if self.error:
            raise self.error

    def _run(self) -> None:
        try:
            while not self._stop.wait(self._rng.expovariate(1 / MEAN_PAUSE_S)):
                self._harm(self._rng.choices(list(KINDS), list(KINDS.values()))[0])
        except BaseException as error:
            self.error = error

    def _harm(self, kind: str) -> None:
        node = self._node()
        if kind == "SIGKILL zygote":
            candidates = introspection.zygotes_of(node)
        else:
            candidates = introspection.workers_of(node)
        if not candidates:
            return
        with processes.watched([self._rng.choice(candidates)]) as pidfds:
            for pidfd in pidfds:
                # The number may have passed to another process since it was listed; the pidfd is checked.
                if processes.parent_of(processes.pid_of(pidfd)) == node:
                    self._strike(pidfd, kind)

    def _strike(self, pidfd: int, kind: str) -> None:
        try:
            if "SIGSTOP" in kind:
                signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
                self._stop.wait(self._rng.uniform(0, LONGEST_STOP_S))
            last = signal.SIGCONT if "SIGCONT" in kind else signal.SIGKILL
            signal.pidfd_send_signal(pidfd, last)
        except ProcessLookupError:
            return
        self.done[kind] += 1


def kill_node() -> None:
    """SIGKILL this process's own ``ftrayd``."""
    node = introspection.node_pid()
    assert processes.parent_of(node) == os.getpid()
    processes.end(node)
