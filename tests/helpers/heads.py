"""Heads started with the command line, in a directory of their own; nothing of them outlives the test."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers import processes
from tests.helpers.sync import DEADLINE_S, eventually


class Head:
    """The commands ``ftray ...`` with sessions and storage below one directory; a context manager."""

    def __init__(self, workdir: Path, wrapper: Sequence[str] = ()) -> None:
        self.wrapper = wrapper
        self.base = workdir / "sessions"
        self.storage = workdir / "storage"
        self.base.mkdir(parents=True, exist_ok=True)
        self.mark = processes.new_mark()
        # Attached drivers are marked by themselves.
        self.env = {"FTRAY_TMPDIR": str(self.base), "XDG_STATE_HOME": str(workdir / "state")}

    def popen(self, *args: str, **env: str) -> subprocess.Popen[str]:
        """Begin a command."""
        path = [entry for entry in sys.path if entry and os.path.isdir(entry)]
        own = {"PYTHONPATH": os.pathsep.join(path), processes.MARK: self.mark, **self.env}
        dropped = ("FTRAY_ADDRESS", "RAY_ADDRESS")
        inherited = {name: value for name, value in os.environ.items() if name not in dropped}
        return subprocess.Popen(
            [*self.wrapper, sys.executable, "-m", "ftray", *args],
            env={**inherited, **own, **env},
            cwd=self.base,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *args: str, status: int = 0, **env: str) -> str:
        """Run a command, require its exit status, return what it printed."""
        process = self.popen(*args, **env)
        try:
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == status, f"{args}: status {process.returncode}\n{out}\n{err}"
        return out + err

    def quick(self, *args: str, status: int = 0, **env: str) -> str:
        """The same for a command that starts nothing, in this process."""
        from click.testing import CliRunner

        unset = {"FTRAY_ADDRESS": None, "RAY_ADDRESS": None}
        group = importlib.import_module("ftray._cli.main").group
        done = CliRunner().invoke(group, args, prog_name="ftray", env={**unset, **self.env, **env})
        assert done.exit_code == status, f"{args}: status {done.exit_code}\n{done.output}\n{done.exception!r}"
        return str(done.output)

    def start(self, *args: str) -> str:
        """Start a head and return its session directory."""
        self.run("start", "--head", "--num-cpus", "2", "--storage", str(self.storage), *args)
        return self.session

    @property
    def sessions(self) -> list[Path]:
        return sorted(self.base.glob("ftray-*/s-*"))

    @property
    def session(self) -> str:
        (found,) = self.sessions
        return str(found)

    @property
    def pid(self) -> int:
        return int(os.path.basename(self.session).split("-")[2])

    def kill(self) -> None:
        """SIGKILL for ``ftrayd``; what it leaves is removed here as the next start would do it."""
        pid, session = self.pid, self.session
        processes.send_signal(pid, signal.SIGKILL)
        processes.wait_ended([pid])
        self.check_processes_ended()
        os.rename(session, f"{session}.killed")
        for path in Path(f"{session}.killed").iterdir():
            path.unlink()
        os.rmdir(f"{session}.killed")

    def check_processes_ended(self) -> None:
        eventually(lambda: not processes.marked(self.mark), "the head's processes end", DEADLINE_S)

    def check_nothing_left(self) -> None:
        self.check_processes_ended()
        assert not self.sessions
        assert not processes.bound_sockets(self.base)

    def __enter__(self) -> Head:
        return self

    def __exit__(self, *_exc: object) -> None:
        for pid in processes.marked(self.mark):
            processes.send_signal(pid, signal.SIGCONT)
            processes.send_signal(pid, signal.SIGKILL)
        self.check_processes_ended()
