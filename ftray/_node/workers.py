"""Worker processes: starting, claiming, watching, ending and reaping them.

Owns: each worker's startup token, pidfd, pipes and the story of its death.
Invariants: a worker is a child of this process, so that its id stays its own until it is reaped here; a
signal goes through a pidfd; a death is told once, with the status that the kernel gave.
Leaves to others: how many workers there are (``pool``), what they do, their output (``log_service``).
"""

from __future__ import annotations

import marshal
import os
import pickle
import signal
import time

# What hmac.compare_digest is, without loading OpenSSL.
from _operator import _compare_digest as compare_digest

from ftray._node import stacks
from ftray._node.environments import EnvironmentSetupError, plan
from ftray._node.frames import (
    DEATH_EXIT,
    DEATH_HUNG,
    DEATH_INTENDED,
    DEATH_OOM,
    DEATH_SIGNAL,
    FLAG_MAY_DECLINE,
    Exit,
    RpcReply,
)
from ftray._node.record import Record
from ftray._node.resources import oom_kill_count

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ftray._node.clients import Client
    from ftray._node.daemon import Node

# A process that closed its connection is ending; it gets this long before it is killed.
_ENDING_S = 5.0


class Death(Record):
    """How a process ended; ``text`` is one line for people."""

    worker_id: bytes
    pid: int
    kind: int
    code: int
    unix_time_s: float
    text: str


class WorkerProcess:
    """A worker from its fork request to its end."""

    def __init__(self, number: int, token: bytes) -> None:
        self.number = number
        self.token: bytes | None = token
        self.pid = 0
        self.pidfd = -1
        self.client: Client | None = None
        self.alloc_id: int | None = None
        self.actor_id: bytes | None = None
        self.job_id = 0
        self.registered_ms = 0
        self.had_devices = False  # it has to be told of every change from then on
        self.assigned = b""  # what it is to be told with its actor
        self.asked_to_exit = False
        self.killed = False
        self.verdict: tuple[int, str] | None = (
            None  # kind and reason of a death that we caused or were told of
        )

    def signal(self, number: int) -> None:
        """Send a signal to the process if it still runs."""
        if self.pidfd >= 0:
            try:
                signal.pidfd_send_signal(self.pidfd, number)
            except ProcessLookupError:
                return


class Workers:
    """Every worker process of the node."""

    def __init__(self, node: Node, hang_timeout_s: float) -> None:
        self._node = node
        self._by_number: dict[int, WorkerProcess] = {}
        self._by_pid: dict[int, WorkerProcess] = {}
        self._early: dict[int, os.waitid_result] = {}
        self._hang_timeout_s = hang_timeout_s
        self._oom_kills = oom_kill_count()
        self._settling: list[tuple[Client, int]] = []
        self._checked_s = 0.0
        self._trusted_s = 0.0
        if hang_timeout_s > 0:
            self._schedule_check()

    # Starting -------------------------------------------------------------------------------------

    def start(self, number: int, env: str) -> None:
        """Have the zygote make a worker, in a runtime environment unless it is ""."""
        worker = WorkerProcess(number, os.urandom(32))
        try:
            fds = [self._plan(env)] if env else []
            try:
                fds = [*self._node.logs.open_pipes(worker), *fds]
            except OSError:
                for fd in fds:
                    os.close(fd)
                raise
        except (OSError, EnvironmentSetupError) as error:
            text, final = str(error), isinstance(error, EnvironmentSetupError)
            self._node.pool_event(lambda pool, now_s: pool.start_failed(number, text, now_s, final=final))
            return
        self._by_number[number] = worker
        assert worker.token is not None
        self._node.zygote.fork(number, worker.token, self._node.session.path, fds)

    def _plan(self, env: str) -> int:
        """Return a descriptor from which the new worker reads what its environment is."""
        found = plan(env, self._node.session.path)
        fd = os.memfd_create("ftray-plan", os.MFD_CLOEXEC)
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(marshal.dumps({name: getattr(found, name) for name in found._fields}))
        return fd

    def on_forked(self, number: int, pid: int) -> None:
        """The zygote made the process."""
        worker = self._by_number.get(number)
        if worker is not None and worker.pid == 0:
            self._adopt(worker, pid)

    def _adopt(self, worker: WorkerProcess, pid: int) -> None:
        worker.pid = pid
        status = self._early.pop(pid, None)
        self._by_pid[pid] = worker
        if status is not None:  # it was reaped before we knew whose it was
            self._ended(worker, status.si_code, status.si_status)
            return
        worker.pidfd = os.pidfd_open(pid)

    def on_fork_failed(self, number: int, text: str, fault: bool) -> None:
        """The zygote could not make the process."""
        worker = self._by_number.get(number)
        if worker is None or worker.client is not None:
            return
        if worker.pid:  # made, but the zygote died before it told
            worker.signal(signal.SIGKILL)
            return
        self._forget(worker)
        self._node.pool_event(lambda pool, now_s: pool.start_failed(number, text, now_s, fault))

    def claim(self, client: Client, token: bytes) -> str:
        """Match a registering process with its fork request; return why it is refused, or ""."""
        for worker in self._by_number.values():
            if worker.token is not None and compare_digest(worker.token, token):
                if worker.pid == 0:
                    self._adopt(worker, client.pid)
                if self._by_number.get(worker.number) is not worker:
                    return "it has ended meanwhile"  # and was reaped before we knew whose it was
                if worker.pid != client.pid:
                    return f"the startup token belongs to process {worker.pid}"
                worker.token = None
                worker.client = client
                worker.registered_ms = int(time.monotonic() * 1000)
                client.worker = worker
                return ""
        return "unknown startup token"

    # Looking up -----------------------------------------------------------------------------------

    def get(self, number: int) -> WorkerProcess | None:
        """Return the worker of this number while its process lives."""
        return self._by_number.get(number)

    def all(self) -> list[WorkerProcess]:
        """Return every worker process, also those that start."""
        return list(self._by_number.values())

    def dump_stacks(self, client: Client, pids: list[int] | None = None) -> list[dict[str, object]]:
        """Have workers write their threads' stacks; return where, and how long each file is beforehand."""
        found: list[dict[str, object]] = []
        for worker in self.all():
            if worker.client is None or (pids is not None and worker.pid not in pids):
                continue
            path = stacks.path_of(self._node.session.path, worker.pid)
            size_bytes = stacks.trim(path)
            asked = stacks.catches(worker.pid)
            if asked:
                worker.signal(stacks.SIGNAL)
            found.append({"pid": worker.pid, "path": path, "size_bytes": size_bytes, "asked": asked})
        return found

    # Ending ---------------------------------------------------------------------------------------

    def retire(self, worker: WorkerProcess, may_decline: bool) -> None:
        """Ask the worker to exit."""
        worker.asked_to_exit = True
        if worker.verdict is None and not may_decline:
            worker.verdict = (DEATH_INTENDED, "was asked to exit")
        if worker.client is not None:
            self._node.clients.send(worker.client, Exit(), flags=FLAG_MAY_DECLINE if may_decline else 0)
        else:
            worker.signal(signal.SIGKILL)

    def kill(self, worker: WorkerProcess, kind: int, why: str) -> None:
        """End the worker at once."""
        if worker.verdict is None:
            worker.verdict = (kind, why)
        worker.killed = worker.pidfd >= 0
        worker.signal(signal.SIGKILL)

    def connection_lost(self, worker: WorkerProcess) -> None:
        """The worker closed its connection: it is ending, or of no use any more."""

        def overdue() -> None:
            if self._by_number.get(worker.number) is worker:
                self.kill(worker, DEATH_SIGNAL, "lost its connection to the node and was killed")

        self._node.loop.set_timer(("ending", worker.number), time.monotonic() + _ENDING_S, overdue)

    def reap(self) -> None:
        """Collect every child that has ended."""
        while True:
            try:
                status = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if status is None:
                return
            self._reap_one(status)

    def _reap_one(self, status: os.waitid_result) -> None:
        worker = self._by_pid.get(status.si_pid)
        if worker is not None:
            try:
                # What it started ends with it; its id, and so its group, is still reserved.
                os.killpg(worker.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # it died before it had a group
        os.waitid(os.P_PID, status.si_pid, os.WEXITED)
        if worker is not None:
            self._ended(worker, status.si_code, status.si_status)
        elif status.si_pid == self._node.zygote.pid:
            self._node.zygote.exited(_describe_end(status.si_code, status.si_status))
        elif any(w.pid == 0 for w in self._by_number.values()):
            self._early[status.si_pid] = status

    def _ended(self, worker: WorkerProcess, si_code: int, si_status: int) -> None:
        client = worker.client
        if client is not None:
            self._node.clients.drain(client)
        death = self._story(worker, si_code, si_status)
        tail = self._node.logs.close_pipes(worker)
        self._forget(worker)
        if client is None:
            text = f"{death.text}; its last output: {tail}" if tail else death.text
            self._node.pool_event(lambda pool, now_s: pool.start_failed(worker.number, text, now_s))
        else:
            self._node.on_worker_ended(client, worker, death)
        if self._settling:
            self._settle_soon()

    # Settling -------------------------------------------------------------------------------------

    def settle(self, client: Client, req: int) -> None:
        """Answer when every process that has ended by now is reported to everybody (RPC ``settle_deaths``).

        So are those that end because of it: tasks and actors whose owner is dead, and theirs.
        """
        self._settling.append((client, req))
        self._settle_soon()

    def _settle_soon(self) -> None:
        # In a round of its own: in the midst of reaping, some that have ended are not reported yet.
        self._node.loop.set_timer("settle", time.monotonic(), self._settle_now)

    def _settle_now(self) -> None:
        self.reap()
        if any(worker.killed for worker in self._by_number.values()):
            return  # its end is looked at again
        settling, self._settling = self._settling, []
        for client, req in settling:
            self._node.clients.send(client, RpcReply(1, pickle.dumps(None)), req)

    def _story(self, worker: WorkerProcess, si_code: int, si_status: int) -> Death:
        """Decide what killed the worker: we, the kernel for memory, a signal, or its own exit."""
        client = worker.client
        worker_id = client.worker_id if client is not None else b""
        signalled = si_code in (os.CLD_KILLED, os.CLD_DUMPED)
        end = _describe_end(si_code, si_status)
        if worker.verdict is not None:
            kind, why = worker.verdict
            text = f"{why} ({end})"
        elif worker.asked_to_exit and not signalled and si_status == 0:
            kind, text = DEATH_INTENDED, "was idle and exited as asked"
        elif signalled and si_status == signal.SIGKILL and self._killed_for_memory():
            kind, text = DEATH_OOM, "was killed by the kernel because memory ran out"
        else:
            kind, text = (DEATH_SIGNAL if signalled else DEATH_EXIT), end
        name = self._node.logs.label_of(worker)
        who = f"worker {worker.pid} ({name})" if name else f"worker {worker.pid}"
        return Death(worker_id, worker.pid, kind, si_status, time.time(), f"{who} {text}")

    def _killed_for_memory(self) -> bool:
        before, self._oom_kills = self._oom_kills, oom_kill_count()
        return self._oom_kills > before

    def _forget(self, worker: WorkerProcess) -> None:
        self._by_number.pop(worker.number, None)
        self._by_pid.pop(worker.pid, None)
        self._node.loop.set_timer(("ending", worker.number), None, lambda: None)
        self._node.logs.close_pipes(worker)
        if worker.pidfd >= 0:
            os.close(worker.pidfd)
            worker.pidfd = -1
        if worker.pid:
            try:
                os.unlink(stacks.path_of(self._node.session.path, worker.pid))
            except FileNotFoundError:
                pass  # it never got so far
        if not any(w.pid == 0 for w in self._by_number.values()):
            self._early.clear()

    # Hanging --------------------------------------------------------------------------------------

    def _schedule_check(self) -> None:
        self._checked_s = time.monotonic()
        due_s = self._checked_s + min(1.0, self._hang_timeout_s / 4)
        self._node.loop.set_timer("heartbeats", due_s, self._check_heartbeats)

    def _check_heartbeats(self) -> None:
        """Kill workers whose heartbeat stopped, unless this process itself was not scheduled."""
        now_s = time.monotonic()
        interval_s = min(1.0, self._hang_timeout_s / 4)
        if now_s - self._checked_s > 2 * interval_s + 0.1:
            self._trusted_s = now_s  # silence before this may be the machine's
        for worker in self.all():
            if worker.client is None or not worker.client.registered:
                continue
            since_s = max(worker.registered_ms / 1000, self._trusted_s)
            overdue_s = self._node.board.overdue_s(worker.client.slot, now_s, since_s)
            if overdue_s > self._hang_timeout_s:
                self.kill(worker, DEATH_HUNG, f"hung: its heartbeat is overdue by {overdue_s:.1f} s")
        self._schedule_check()


def _describe_end(si_code: int, si_status: int) -> str:
    if si_code == os.CLD_EXITED:
        return f"exited with code {si_status}"
    try:
        name = signal.Signals(si_status).name
    except ValueError:
        name = "unknown"
    dumped = ", core dumped" if si_code == os.CLD_DUMPED else ""
    return f"was killed by signal {si_status} ({name}{dumped})"
