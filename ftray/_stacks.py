"""What runs and hangs where: per worker its task, since when, and the Python stacks of its threads.

A worker is never asked to cooperate: py-spy looks into it from outside when it is installed and allowed to,
otherwise a signal handler in C writes the stacks (``ftray/_node/stacks.py``), which also a worker does that
holds the interpreter's lock. One that is stopped by a signal answers to neither; it is named with its
state.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from typing import Any

_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for the disk or the kernel",
    "T": "stopped",
    "t": "traced",
    "Z": "dead",
}
_SETTLED_S = 0.05


class WorkerStack:
    """One worker.

    Attributes
    ----------
    pid, worker_id
        Which.
    label
        Its actor's class, "" for a plain worker.
    running
        (name of task or method, seconds since it began), one for each call that runs.
    stack
        Text; "" when it could not be had, then `problem` says why.
    """

    def __init__(self, pid: int, worker_id: str, label: str) -> None:
        self.pid = pid
        self.worker_id = worker_id
        self.label = label
        self.running: list[tuple[str, float]] = []
        self.stack = ""
        self.problem = ""
        self.source = ""

    def asdict(self) -> dict[str, Any]:
        """Return everything as a dict."""
        return dict(vars(self))


def stacks(address: str | None = None, timeout_s: float = 10.0, use_py_spy: bool = True) -> list[WorkerStack]:
    """Return what every worker does.

    Raises
    ------
    ServerUnavailable
        There is no session, or its node process does not answer.
    """
    from ftray.util.state.filters import checked_timeout
    from ftray.util.state.link import Link
    from ftray.util.state.tables import Table, Tasks

    deadline_s = time.monotonic() + checked_timeout(timeout_s)
    with Link(address, timeout_s) as link:
        tasks = Tasks(link, Table([]))
        now_ns = time.monotonic_ns()
        found = {
            p["pid"]: WorkerStack(p["pid"], p["worker_id"].hex(), p["label"])
            for p in tasks.processes.all
            if not p["is_driver"] and p["death"] is None
        }
        for attempt in tasks.attempts:
            if attempt.running and attempt.executor is not None and attempt.executor["pid"] in found:
                since_s = (now_ns - attempt.started_ns) / 1e9
                found[attempt.executor["pid"]].running.append((tasks.maker.name(attempt), since_s))
        program = shutil.which("py-spy") if use_py_spy else None
        if program is not None:
            for worker in found.values():
                _from_outside(program, worker, deadline_s)
        silent = [worker for worker in found.values() if not worker.stack]
        if silent:
            _by_signal(link.call("dump_stacks", pids=[w.pid for w in silent]), found, deadline_s)
    return sorted(found.values(), key=lambda worker: worker.pid)


def _from_outside(program: str, worker: WorkerStack, deadline_s: float) -> None:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0.1:
        return
    try:
        done = subprocess.run(
            [program, "dump", "--pid", str(worker.pid)],
            capture_output=True,
            text=True,
            timeout=left_s / 2,
            check=False,
        )
    except (subprocess.TimeoutExpired, OSError):
        return
    if done.returncode == 0:
        worker.stack, worker.source = done.stdout.strip(), "py-spy"


def _by_signal(asked: list[dict[str, Any]], found: dict[int, WorkerStack], deadline_s: float) -> None:
    waiting = {a["pid"]: a for a in asked}
    for pid, worker in found.items():
        if not worker.stack and pid not in waiting:
            worker.problem = "it ended meanwhile"
    for pid, answer in list(waiting.items()):
        if not answer["asked"]:
            found[pid].problem = "it has no handler for stacks yet, or its program replaced it"
            del waiting[pid]
    sizes: dict[int, tuple[int, float]] = {}
    while waiting and time.monotonic() < deadline_s:
        for pid, answer in list(waiting.items()):
            text = _new_text(answer)
            size, since_s = sizes.get(pid, (0, 0.0))
            now_s = time.monotonic()
            if len(text) != size:
                sizes[pid] = (len(text), now_s)
            elif text and now_s - since_s >= _SETTLED_S:
                found[pid].stack, found[pid].source = text.strip(), "signal"
                del waiting[pid]
        time.sleep(0.01)
    for pid in waiting:
        found[pid].problem = f"no answer in time; the process is {_state(pid)}"


def _new_text(answer: dict[str, Any]) -> str:
    try:
        with open(answer["path"], "rb") as file:
            file.seek(answer["size_bytes"])
            return file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def _state(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/stat") as file:
            letter = file.read().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    return _STATES.get(letter, letter)
