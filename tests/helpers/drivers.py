"""Driver programs run as processes of their own, watched through pipes with deadlines.

A test writes a small program, starts it with ``Driver`` and talks to it by lines: the program calls
``tell(word, value)`` and ``await_word()``. Whatever the program started is found by its mark.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from tests.helpers import processes
from tests.helpers.sync import DEADLINE_S, eventually

ROOT = Path(__file__).resolve().parents[2]
TOLD = "@told "

PRELUDE = f"""
import json as _json, sys as _sys
def tell(word, value=None):
    _sys.stdout.write("{TOLD}" + _json.dumps([word, value]) + "\\n")
    _sys.stdout.flush()
def await_word():
    return _sys.stdin.readline().strip()
"""


class DriverFailedError(AssertionError):
    """A driver program ended otherwise than the test expected; carries all it wrote."""


class Driver:
    """One driver program; a context manager that leaves no process of it behind."""

    def __init__(
        self,
        source: str,
        workdir: Path,
        *,
        env: Mapping[str, str] | None = None,
        args: Sequence[str] = (),
        wrapper: Sequence[str] = (),
        python_flags: Sequence[str] = (),
        preexec: Callable[[], None] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        workdir.mkdir(parents=True, exist_ok=True)
        self.workdir = workdir
        self.base = Path(env["FTRAY_TMPDIR"]) if env and "FTRAY_TMPDIR" in env else workdir / "sessions"
        self.base.mkdir(parents=True, exist_ok=True)
        self.mark = processes.new_mark()
        script = workdir / f"driver_{self.mark[:8]}.py"
        script.write_text(PRELUDE + textwrap.dedent(source))
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-u", "-X", "faulthandler", *python_flags, str(script), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            cwd=workdir,
            env=self._environment(env or {}),
            preexec_fn=preexec,
            pass_fds=pass_fds,
        )
        self.pid = self.process.pid
        self._told: queue.Queue[tuple[str, Any] | None] = queue.Queue()
        self.out: list[str] = []
        self.err: list[str] = []
        self._arrived = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.out), daemon=True),
            threading.Thread(target=self._read, args=(self.process.stderr, self.err), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        path = [entry for entry in sys.path if entry and os.path.isdir(entry)]
        env = dict(os.environ, FTRAY_TMPDIR=str(self.base), PYTHONPATH=os.pathsep.join([*path, str(ROOT)]))
        env.pop("PYTHONSAFEPATH", None)  # programs import what lies beside them
        env.update(extra)
        env[processes.MARK] = self.mark
        return env

    def _read(self, stream: IO[str], lines: list[str]) -> None:
        for line in stream:
            with self._arrived:
                if line.startswith(TOLD):
                    word, value = json.loads(line[len(TOLD) :])
                    self._told.put((word, value))
                else:
                    lines.append(line.rstrip("\n"))
                self._arrived.notify_all()
        if lines is self.out:
            self._told.put(None)
        with self._arrived:
            self._arrived.notify_all()

    def expect(self, word: str, timeout_s: float = DEADLINE_S) -> Any:
        """Wait for ``tell(word, value)`` and return the value; any other word fails."""
        try:
            told = self._told.get(timeout=timeout_s)
        except queue.Empty:
            raise DriverFailedError(self._story(f"did not tell {word!r} within {timeout_s} s")) from None
        if told is None:
            raise DriverFailedError(self._story(f"{self._ending()} without telling {word!r}"))
        if told[0] != word:
            raise DriverFailedError(self._story(f"told {told} instead of {word!r}"))
        return told[1]

    def expect_output(
        self, match: Callable[[str], Any], stream: str = "out", timeout_s: float = DEADLINE_S
    ) -> str:
        """Wait for a line of output for which ``match`` holds."""
        lines = self.out if stream == "out" else self.err
        deadline = time.monotonic() + timeout_s
        seen = 0
        with self._arrived:
            while True:
                for line in lines[seen:]:
                    if match(line):
                        return line
                seen = len(lines)
                if not self._arrived.wait(deadline - time.monotonic()) or time.monotonic() > deadline:
                    raise DriverFailedError(self._story(f"no such line on std{stream} within {timeout_s} s"))

    def say(self, word: str) -> None:
        """Answer the program's ``await_word()``."""
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()

    def signal(self, signum: int) -> None:
        assert processes.send_signal(self.pid, signum), "the driver has ended"

    def finish(self, status: int | None = 0, timeout_s: float = 60) -> str:
        """Wait for the program's end, require its exit status, return its standard output."""
        try:
            got = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise DriverFailedError(self._story(f"did not end within {timeout_s} s")) from None
        if status is not None and got != status:
            self._join(2)
            raise DriverFailedError(self._story(f"ended with status {got}, not {status}"))
        self._join(DEADLINE_S)
        return "\n".join(self.out)

    def _ending(self) -> str:
        """What has become of a program whose output is closed, once all it wrote has been read."""
        self._join(2)
        try:
            return f"ended with status {self.process.wait(2)}"
        except subprocess.TimeoutExpired:
            return "closed its output"

    def _join(self, timeout_s: float) -> None:
        for reader in self._readers:
            reader.join(timeout_s)

    def started(self) -> list[int]:
        """Processes the program has started and that still run."""
        return [pid for pid in processes.marked(self.mark) if pid != self.pid]

    def sessions(self) -> list[Path]:
        """Session directories that exist now."""
        return sorted(self.base.glob("ftray-*/s-*"))

    def check_processes_ended(self, timeout_s: float = DEADLINE_S) -> None:
        """For a node that was killed: it could not remove its session directory."""
        # Not those of one moment: a node that starts while its driver is killed forks before it notices.
        deadline = time.monotonic() + timeout_s
        while left := processes.marked(self.mark):
            processes.wait_ended(left, max(0.0, deadline - time.monotonic()))

    def check_nothing_left(self, timeout_s: float = DEADLINE_S) -> None:
        """Every process of the program ends by itself and its session directory goes."""
        self.check_processes_ended(timeout_s)
        eventually(lambda: not self.sessions(), f"session directories go: {self.sessions()}", timeout_s)
        assert not processes.bound_sockets(self.base)

    def _story(self, what: str) -> str:
        with self._arrived:
            tree = [f"  {pid}: {processes.command_of(pid)}" for pid in processes.marked(self.mark)]
            parts = [f"driver {self.pid} {what}", "stdout:", *self.out[-40:], "stderr:", *self.err[-60:]]
        return "\n".join([*parts, "processes:", *tree])

    def close(self) -> list[str]:
        """End whatever still runs and say what it was."""
        left = processes.marked(self.mark)
        names = [f"{pid}: {processes.command_of(pid)}" for pid in left]
        for pid in left:
            processes.send_signal(pid, signal.SIGCONT)
            processes.send_signal(pid, signal.SIGKILL)
        processes.wait_ended(left)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        return names

    def __enter__(self) -> Driver:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        left = self.close()
        assert error is not None or not left, f"the test left processes of its driver: {left}"
