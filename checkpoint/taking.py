"""One cut being taken: asks the members what `cuts` decides, publishes the manifest last.

Invariant: however it ends, every member that was asked to hold is asked to release.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import cutfiles, faults
from .cuts import HOLD, WRITTEN, Ask, Cut, Finish, Nap, Publish
from .errors import CheckpointError, CheckpointTimeoutError
from .holders import start_ticks
from .snapshots import SnapshotLog
from .wire import Wire


class Taking:
    """One cut being taken."""

    def __init__(
        self, wire: Wire, name: str, log: SnapshotLog, about: Sequence[Mapping[str, Any]], timeout_s: float
    ) -> None:
        self._wire, self._name, self._log, self._timeout_s = wire, name, log, timeout_s
        self._deadline_s = time.monotonic() + timeout_s
        self._nonce = os.urandom(8).hex()
        self._about = about
        self._cut = log.next_name()  # of the generation that it is of, whatever becomes of `log` meanwhile
        self._before = log.store.list_blobs(log.key)
        self._machine = Cut(len(self._about))
        self._open: dict[Any, Ask] = {}
        self._blobs = {
            about["key"]: f"cut-{self._cut.epoch}-{self._nonce}-{i}" for i, about in enumerate(self._about)
        }
        self._sizes: dict[int, int] = {}
        self._over = False

    def run(self, note: object) -> str:
        """Take it; returns its id."""
        commands = list(self._machine.start())
        try:
            while True:
                while commands:
                    command = commands.pop(0)
                    if isinstance(command, Finish):
                        return self._end(command)
                    commands += self._obey(command, note)
                commands += self._await()
        except BaseException:
            self._release_all()
            raise

    def _end(self, command: Finish) -> str:
        if command.error is not None:
            raise command.error
        # The cut is there; what older ones leave behind, the next one removes.
        with contextlib.suppress(CheckpointError, OSError):
            cutfiles.retire_cuts(self._log, self._before)
        return self._cut.id

    def _obey(self, command: Any, note: object) -> Sequence[Any]:
        if isinstance(command, Ask):
            return self._ask(command)
        if isinstance(command, Nap):
            time.sleep(command.seconds)
            return self._machine.rested()
        assert isinstance(command, Publish)
        try:
            size_bytes = sum(self._sizes.values())
            cutfiles.save_cut(self._log, self._cut, self._name, self._blobs, note, size_bytes)
        except Exception as error:
            return self._machine.failed(None, error)
        return self._machine.published()

    def _ask(self, ask: Ask) -> Sequence[Any]:
        about = self._about[ask.member]
        fields: dict[str, Any] = {
            "nonce": self._nonce,
            "generation": self._cut.epoch,
            "epoch": about["epoch"],
        }
        if ask.what == HOLD:
            fields["workers"] = [one["worker"] for one in self._about]
            fields["actors"] = [one["actor"] for one in self._about]
            fields["timeout_s"] = max(0.001, self._deadline_s - time.monotonic())
            fields["by"] = (os.getpid(), start_ticks(os.getpid()))
        elif ask.what == WRITTEN:
            fields["blob"] = self._blobs[about["key"]]
        try:
            self._open[self._wire.send(ask.member, ask.what, fields)] = ask
        except Exception as error:
            return self._machine.failed(ask, error)
        return []

    def _await(self) -> list[Any]:
        ready = self._wire.wait(list(self._open), self._deadline_s - time.monotonic())
        if not ready:
            return self._late()
        commands: list[Any] = []
        for ref in ready:
            ask = self._open.pop(ref)
            try:
                answer = self._wire.answer(ref)
            except Exception as error:
                commands += self._machine.failed(ask, error)
            else:
                if faults.active:
                    faults.hit(f"group.answered.{ask.what}")
                if answer.get("done"):
                    self._sizes[ask.member] = answer["size_bytes"]
                commands += self._machine.answered(ask, answer)
        return commands

    def _late(self) -> list[Any]:
        phase, waits = self._machine.phase.value, sorted({ask.member for ask in self._open.values()})
        error = CheckpointTimeoutError(
            f"group {self._name!r}: no cut within {self._timeout_s} s; it was {phase}, after "
            f"{self._machine.waves} rounds, and waited for "
            f"{', '.join(self._about[i]['key'] for i in waits) or 'nobody'}. Members must come to rest: end "
            "methods that wait for something outside of the group (a task is outside, too, and its calls of "
            "members wait until the cut is taken), and calls that go round for ever"
        )
        if self._over:  # they do not even answer that they go on: their own clocks make them
            raise error
        self._over, self._open = True, {}
        self._deadline_s = time.monotonic() + min(1.0, self._timeout_s)
        return list(self._machine.failed(None, error))

    def _release_all(self) -> None:
        """Nobody waits any more. A member that cannot be asked is dead, or its clock makes it go on."""
        for i in range(len(self._about)):
            with contextlib.suppress(Exception):
                self._wire.send(i, "release", {"nonce": self._nonce})
