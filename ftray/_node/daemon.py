"""``ftrayd``: one process per machine that ties the node's services together.

Owns: the order of start and shutdown, routing of frames, what one death means to every service.
Invariants: single-threaded, nothing here waits; when the lifeline ends, or the driver that started the node
leaves, every process of the session ends and its directory goes, whatever state they are in.
Leaves to others: everything else; each service is a file of its own.
"""

from __future__ import annotations

import json
import marshal
import math
import os
import resource
import signal
import socket
import sys
import time

from ftray._core import procs
from ftray._node import discards, frames, session
from ftray._node.actor_service import ActorService
from ftray._node.amounts import CPU, GPU, MEMORY, fixed_point
from ftray._node.board import Board
from ftray._node.clients import Clients, described
from ftray._node.group_service import GroupService
from ftray._node.jobs import OWN_JOB, Jobs
from ftray._node.lease_service import LeaseService
from ftray._node.log_service import LogService
from ftray._node.loop import Loop
from ftray._node.memory_monitor import MemoryMonitor
from ftray._node.object_service import ObjectService
from ftray._node.pool import PoolSettings
from ftray._node.protocol import VERSION, ProtocolError
from ftray._node.resources import (
    NODE_NAMES,
    OBJECT_STORE_SHARE,
    count_cpus,
    count_gpus,
    has_steady_tsc,
    memory_limit_bytes,
    visible_gpus,
)
from ftray._node.rpc import RpcService
from ftray._node.sqlite_storage import SqliteTables
from ftray._node.state_service import StateService
from ftray._node.storage import DATABASE_FILE, StorageDirectory, StorageError
from ftray._node.workers import Death, Workers
from ftray._node.zygote_link import ZygoteLink

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from ftray._node.clients import Client
    from ftray._node.pool import Command, Pool
    from ftray._node.protocol import Message
    from ftray._node.storage import TableStorage
    from ftray._node.workers import WorkerProcess

LOG_FILE = "ftrayd.log"
# Processes without state to save get this long between EXIT and SIGKILL.
_PLAIN_GRACE_S = 0.5
_REPORTS_KEPT = 4096  # of deaths, for processes that ask late
# A process whose socket is gone is dead, which is seen soon.
_DEATH_PATIENCE_S = 5.0
# Importing what is to be preloaded competes with the first tasks for CPUs.
_PRELOAD_PAUSE_S = 0.1
_SWEEP_PAUSE_S = 5.0


class Node:
    """The services of one node and their common events.

    Parameters
    ----------
    lifeline
        Socket to the driver that started this node.
    config
        ``launch.NodeOptions`` as a dict, and what the launching process adds.
    zygote_sock, zygote_pid
        The zygote that was forked at the start.
    """

    def __init__(
        self, lifeline: socket.socket, config: dict[str, Any], zygote_sock: socket.socket, zygote_pid: int
    ) -> None:
        self.config = config
        self.node_id = os.urandom(28)
        self.loop = Loop()
        self.storage = StorageDirectory(config["storage"]) if config["storage"] else None
        if self.storage is not None:
            kept = SqliteTables(os.path.join(self.storage.path, DATABASE_FILE), durable=True)
            kept.open()  # what cannot be kept is known now, not when somebody needs it
        self.is_head: bool = config["head"]
        self.start_unix_s = time.time()
        self.session = session.create_session(config["base_dir"], self.start_unix_s, self.is_head)
        if self.storage is None:
            # Opened when it is first used: most programs never do, and sqlite3 costs time and memory.
            kept = SqliteTables(os.path.join(self.session.path, DATABASE_FILE), durable=False)
        self.tables: TableStorage = kept
        self.info = self._describe_node()
        self.board = Board(store_bytes=self.info["object_store_memory"])
        self.gpu_ids = visible_gpus() or [
            str(n) for n in range(math.ceil(self.info["resources"].get(GPU, 0)))
        ]
        self.info_json = json.dumps(self.info).encode()
        self.zygote = ZygoteLink(zygote_sock, zygote_pid, self.loop, self, config)
        self.clients = Clients(self, session.listen_in(self.session.path, session.NODE_SOCKET))
        self.jobs = Jobs(has_owner=not self.is_head)
        self.logs = LogService(self)
        self.workers = Workers(self, config["hang_timeout_s"])
        self.objects = ObjectService(self, self.info["object_store_memory"])
        self.actors = ActorService(self)
        total = fixed_point(self.info["resources"].items())
        self.leases = LeaseService(self, total, self._pool_settings())
        self.labels = {**config["labels"], "ray.io/node-id": self.node_id.hex()}
        self.groups = GroupService(self, total, self.labels)
        self.state = StateService(self)
        self.rpc = RpcService(self)
        self.memory = MemoryMonitor(
            self, config["memory_monitor_refresh_ms"], config["memory_usage_threshold"]
        )
        self._lifeline = lifeline
        self._primary: Client | None = None
        self.stopping = False
        self._reports: dict[bytes, frames.WorkerDied] = {}
        self._terminated = False
        self._warm = False
        self._trouble = ""
        self._routes = self._make_routes()
        self.loop.register(lifeline.fileno(), self._on_lifeline)
        self.loop.watch_children(self._children_changed)
        signal.signal(signal.SIGTERM, self._on_sigterm)

    def _describe_node(self) -> dict[str, Any]:
        """Return what clients learn at registration."""
        config = self.config
        limit_bytes = memory_limit_bytes()
        store_bytes = int(config["object_store_memory"] or limit_bytes * OBJECT_STORE_SHARE)
        cpus = config["num_cpus"] if config["num_cpus"] is not None else count_cpus()
        gpus = config["num_gpus"] if config["num_gpus"] is not None else count_gpus()
        memory_bytes = config["memory"] if config["memory"] is not None else max(0, limit_bytes - store_bytes)
        resources = {CPU: float(cpus), GPU: float(gpus), MEMORY: float(memory_bytes)}
        resources |= {"object_store_memory": float(store_bytes), **dict.fromkeys(NODE_NAMES, 1.0)}
        resources |= {name: float(amount) for name, amount in config["resources"].items()}
        return {
            "pid": os.getpid(),
            "node_id": self.node_id.hex(),
            "version": VERSION,
            # Workers have the environment of the driver that started the node, and ask for any other.
            "own_job": 0 if self.is_head else OWN_JOB,
            "num_cpus": cpus,
            "resources": {name: amount for name, amount in resources.items() if amount},
            "object_store_memory": store_bytes,
            "hang_timeout_s": config["hang_timeout_s"],
            "tsc": has_steady_tsc(),
        }

    def _pool_settings(self) -> PoolSettings:
        cpus = max(1, int(self.info["num_cpus"]))
        prestart = self.config["prestart_workers"]
        return PoolSettings(
            prestart=cpus if prestart is None else prestart,
            spare_max=max(2, 2 * cpus),
            max_starting=max(2, 2 * cpus),
            idle_timeout_s=self.config["idle_timeout_s"],
            startup_timeout_s=self.config["startup_timeout_s"],
        )

    # Frames ---------------------------------------------------------------------------------------

    def _make_routes(self) -> dict[type, Callable[[Client, Message], None]]:
        """Return the handler of each frame that a client may send."""
        leases, actors, objects = self.leases, self.actors, self.objects
        return {
            frames.LeaseRequest: lambda c, m: leases.on_request(c, m.frame),
            frames.LeaseReturn: lambda c, m: leases.on_return(c, m.frame),
            frames.Blocked: lambda c, m: leases.on_blocked(c, True),
            frames.Unblocked: lambda c, m: leases.on_blocked(c, False),
            frames.ActorCreate: lambda c, m: actors.on_create(c, m.frame, m.req),
            frames.ActorSubscribe: lambda c, m: actors.on_subscribe(c, m.frame),
            frames.ActorKill: lambda c, m: actors.on_kill(m.frame),
            frames.ActorReady: lambda c, m: actors.on_ready(_worker(c), m.frame),
            frames.ActorExit: lambda c, m: actors.on_exit(_worker(c), m.frame),
            frames.CallersDone: lambda c, m: actors.releases.reported(self.job_of(c), m.frame),
            frames.SegReserve: lambda c, m: objects.on_reserve(c, m.frame, m.req, m.flags),
            frames.SegRegister: lambda c, m: objects.on_register(c, m.frame, m.fds[0]),
            frames.SegRelease: lambda c, m: objects.on_release(c, m.frame),
            frames.SegOpen: lambda c, m: objects.on_open(c, m.frame, m.req),
            frames.SegUnhold: lambda c, m: objects.on_unhold(c, m.frame),
            frames.SpillOffer: lambda c, m: objects.spills.on_offer(c, m.frame),
            frames.SpillSettled: lambda c, m: objects.spills.on_settled(c, m.frame),
            frames.SpillRestore: lambda c, m: objects.spills.on_restore(c, m.frame),
            frames.DeathAsk: lambda c, m: self._on_death_ask(c, m.frame.worker_id),
            frames.DeathAck: lambda c, m: objects.on_death_ack(c, m.frame),
            frames.WorkerKill: lambda c, m: self._on_worker_kill(m.frame),
            frames.ExitDeclined: lambda c, m: self._on_exit_declined(_worker(c)),
            frames.EventsRing: lambda c, m: self.state.on_ring(c, m.frame, m.fds[0]),
            frames.FunctionName: lambda c, m: self.state.on_function(c, m.frame),
            frames.Inspected: lambda c, m: self.state.on_inspected(c, m.frame, m.req),
            frames.Rpc: lambda c, m: self.rpc.on_rpc(c, m.frame, m.req),
        }

    def handle(self, client: Client, message: Message) -> None:
        """Route a frame of a registered client."""
        route = self._routes.get(type(message.frame))
        if route is None:
            for fd in message.fds:
                os.close(fd)
            raise ProtocolError(f"{type(message.frame).__name__} is not for the node")
        if not self.stopping or isinstance(message.frame, (frames.ActorExit, frames.Rpc)):
            route(client, message)
        else:
            for fd in message.fds:
                os.close(fd)

    def _on_death_ask(self, client: Client, worker_id: bytes) -> None:
        """DEATH_ASK: the socket of a process is gone, of whose death the client has no report."""
        report = self._reports.get(worker_id)
        if report is not None:
            self.clients.send(client, report)
        elif self.clients.by_worker_id(worker_id) is None:
            self.clients.send(client, frames.DeathUnknown(worker_id))
        else:  # its end will be seen, and reported to everybody
            number = client.number
            self.loop.set_timer(
                ("death asked", number, worker_id),
                time.monotonic() + _DEATH_PATIENCE_S,
                lambda: self._death_not_seen(number, worker_id),
            )

    def _death_not_seen(self, number: int, worker_id: bytes) -> None:
        client = self.clients.get(number)
        if client is not None and worker_id not in self._reports:
            self.clients.send(client, frames.DeathUnknown(worker_id))

    def _on_worker_kill(self, frame: frames.WorkerKill) -> None:
        target = self.clients.by_worker_id(frame.worker_id)
        if target is None or target.worker is None:
            return  # it is dead already; everybody was told
        if frame.force:
            self.workers.kill(target.worker, frames.DEATH_INTENDED, f"was killed: {frame.why}")
        else:
            self.workers.retire(target.worker, may_decline=False)

    def _on_exit_declined(self, worker: WorkerProcess) -> None:
        worker.asked_to_exit = False
        self.pool_event(lambda pool, now_s: pool.declined(worker.number, now_s))

    # Arrivals -------------------------------------------------------------------------------------

    def job_started(self, client: Client, frame: frames.Register) -> int:
        """A driver registers: return its job."""
        is_owner = not self.is_head and self._primary is None and client.pid == self.config["driver_pid"]
        if is_owner:
            self._primary = client
        return self.jobs.started(client.pid, frame.namespace, described(frame), time.time(), is_owner)

    def on_registered(self, client: Client, _frame: frames.Register) -> None:
        """A process has its slot and its answer."""
        self.state.registered(client)
        worker = client.worker
        if worker is None:
            return
        if self.stopping:
            self.workers.retire(worker, may_decline=False)
            return
        self.pool_event(lambda pool, now_s: pool.started(worker.number, now_s))
        if not self._warm:
            self._set_warm("")

    def on_pool_trouble(self, text: str) -> None:
        """The pool's trouble in starting workers, "" when there is none."""
        if text and not self._trouble:
            self.report(text)
            if not self._warm:
                self._set_warm(text)
        self._trouble = text

    def _set_warm(self, error: str) -> None:
        """Tell the launching process that tasks can run now (or why they cannot)."""
        self._warm = True
        self._tell_lifeline({"warm": not error, "error": error})
        preload = list(self.config["preload"])
        if preload and not error:
            due_s = time.monotonic() + _PRELOAD_PAUSE_S
            self.loop.set_timer("preload", due_s, lambda: self.zygote.preload(preload))

    def _on_lifeline(self, _events: int) -> None:
        """The process that started this node has left; a head stays, if it was told to."""
        try:
            word = self._lifeline.recv(len(session.DETACH))
        except ConnectionResetError:
            word = b""
        if word != session.DETACH:
            self.begin_shutdown("its driver left")
            return
        self.loop.unregister(self._lifeline.fileno())
        self._lifeline.close()

    def _tell_lifeline(self, message: dict[str, Any]) -> None:
        if self._lifeline.fileno() < 0:
            return  # detached
        try:
            self._lifeline.send(marshal.dumps(message), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError):
            return  # the driver is gone; the loop sees the end of the lifeline

    def tell_crash(self) -> None:
        """This process ends because of an error in it: its log goes with the session, so tell the drivers."""
        import traceback

        text = f"the node process (ftrayd) failed:\n{traceback.format_exc()}"
        self._tell_lifeline({"crashed": text})
        for client in self.clients.registered():
            if client.is_driver:
                self.clients.send(client, frames.Warn(frames.clip(text)))

    def send_ready(self, spans_ms: dict[str, float]) -> None:
        """Tell the launching process that it may register."""
        self._tell_lifeline(
            {
                "session_dir": self.session.path,
                "token": self.session.token,
                "info": self.info_json,
                "spans_ms": spans_ms,
            }
        )

    # Zygote ---------------------------------------------------------------------------------------

    def on_forked(self, number: int, pid: int) -> None:
        """The zygote made a worker."""
        self.workers.on_forked(number, pid)

    def on_fork_failed(self, number: int, text: str, fault: bool) -> None:
        """The zygote could not make a worker."""
        self.workers.on_fork_failed(number, text, fault)

    def on_preloaded(self, modules: list[str], error: str) -> None:
        """The zygote has imported modules for further workers."""
        if error:
            self.report(f"workers cannot share {', '.join(modules)}: {error}")
        else:
            self.pool_event(lambda pool, now_s: pool.preloaded(now_s))

    def on_zygote_restarted(self, text: str) -> None:
        """The zygote died and another takes its place."""
        if not self.stopping:
            self.report(f"the process that forks workers {text}; it was started again")

    # Departures -----------------------------------------------------------------------------------

    def _children_changed(self) -> None:
        self.workers.reap()
        if self._terminated:
            self.begin_shutdown("it was terminated")
        if self.stopping:
            self.stop_when_empty()

    def on_connection_lost(self, client: Client, why: str) -> None:
        """A registered process closed its connection."""
        self.leases.client_lost(client)
        if client.worker is not None:
            self.workers.connection_lost(client.worker)
            self.leases.worker_unusable(client.worker)
            return
        text = f"driver {client.pid} {why}"
        death = Death(client.worker_id, client.pid, frames.DEATH_DRIVER_LEFT, 0, time.time(), text)
        self._process_died(client, None, death)
        self.groups.job_ended(client.job_id)
        self._job_ended(client.job_id, death.unix_time_s)
        self.pool_event(lambda pool, now_s: pool.job_ended(client.job_id, now_s))
        if client is self._primary:
            self.begin_shutdown("its driver left")

    def _job_ended(self, job_id: int, unix_time_s: float) -> None:
        """Forget ended jobs of which nothing runs any more, and have exactly-once actors forget them."""
        needed = {worker.job_id for worker in self.workers.all()} | self.actors.jobs()
        for job in self.jobs.ended(job_id, unix_time_s, needed):
            # Not before: what of it still runs may ask again for what it was answered.
            if job.root and not job.resumes:
                self.actors.releases.report(frames.CallersDone(b"", bytes.fromhex(job.root)))
            self.actors.releases.job_over(job.job_id)

    def on_worker_ended(self, client: Client, worker: WorkerProcess, death: Death) -> None:
        """A registered worker was reaped."""
        self._process_died(client, worker, death)
        job = self.jobs.get(worker.job_id)
        if job is not None and job.end_unix_s is not None:
            self._job_ended(job.job_id, job.end_unix_s)

    def _process_died(self, client: Client, worker: WorkerProcess | None, death: Death) -> None:
        """Tell everybody, and every service, that a process is gone."""
        self.clients.forget(client)
        self.state.process_gone(client, death)
        if self.stopping:
            if worker is not None:
                self.actors.ended_with_session(worker, death)
            return
        self.objects.process_died(client)
        report = frames.WorkerDied(
            death.worker_id, death.pid, death.kind, death.code, death.unix_time_s, frames.clip(death.text)
        )
        self._reports[death.worker_id] = report
        if len(self._reports) > _REPORTS_KEPT:
            del self._reports[next(iter(self._reports))]
        self.clients.broadcast(report)
        self.actors.client_gone(client)
        # What it wanted goes first: the CPU that its end frees must not be granted to it.
        self.leases.client_gone(client, "left" if worker is None else "died")
        if worker is not None:
            self.leases.worker_ended(worker)
        self.actors.process_ended(worker, death)

    # Common to services ---------------------------------------------------------------------------

    def pool_event(self, event: Callable[[Pool, float], Sequence[Command]]) -> None:
        """Give the pool an event."""
        self.leases.pool_event(event)

    def job_of(self, client: Client) -> int:
        """Return the job that a process works for."""
        return client.job_id if client.worker is None else client.worker.job_id

    def namespace_of(self, client: Client) -> str:
        """Return where a process looks for names when it names no namespace: its job's."""
        return client.namespace if client.worker is None else self.jobs.namespace_of(client.worker.job_id)

    def warn_job(self, job_id: int, text: str) -> None:
        """Tell the driver of a job something that its user should know."""
        driver = self.clients.driver_of(job_id)
        if driver is not None:
            self.clients.send(driver, frames.Warn(frames.clip(text)))

    def report(self, text: str) -> None:
        """Record something unusual, in the node's log and at the first driver."""
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
        if not self.stopping:
            self.warn_job(0, text)

    def sweep(self) -> None:
        """Remove what dead nodes of this user left."""
        try:
            session.sweep_stale(self.config["base_dir"])
        except (OSError, session.SessionError) as error:
            self.report(f"directories of ended sessions cannot be removed: {error}")

    # Shutdown -------------------------------------------------------------------------------------

    def _on_sigterm(self, _signum: int, _frame: object) -> None:
        self._terminated = True  # the wake-up of the signal makes the loop look at it

    def begin_shutdown(self, why: str) -> None:
        """End every worker: asked first, killed when its grace is over."""
        if self.stopping:
            return
        self.report(f"the node shuts down: {why}")
        self.stopping = True
        if self._lifeline.fileno() >= 0:
            self.loop.unregister(self._lifeline.fileno())
        self.clients.stop_accepting()
        self.leases.pool.stopped()
        self.zygote.close()
        self.loop.set_timer("zygote", None, self.loop.stop)
        grace_s = _PLAIN_GRACE_S
        for worker in self.workers.all():
            if self.actors.saves_state(worker.actor_id):
                grace_s = max(grace_s, self.config["shutdown_grace_s"])
            self.workers.retire(worker, may_decline=False)
        self.actors.session_ends()
        now_s = time.monotonic()
        last_s = now_s + grace_s + discards.LAST_PATIENCE_S
        self.loop.set_timer("discards", last_s, self.actors.discards.give_up)
        self.loop.set_timer("grace", now_s + _PLAIN_GRACE_S, lambda: self._kill_workers(stateless_only=True))
        self.loop.set_timer("long grace", now_s + grace_s, lambda: self._kill_workers(stateless_only=False))
        self.stop_when_empty()

    def _kill_workers(self, stateless_only: bool) -> None:
        for worker in self.workers.all():
            if not stateless_only or not self.actors.saves_state(worker.actor_id):
                self.workers.kill(
                    worker, frames.DEATH_INTENDED, "did not end in time at shutdown and was killed"
                )

    def stop_when_empty(self) -> None:
        """Leave the loop when the last worker has ended and nothing is left to be removed."""
        if not self.actors.discards.busy and not any(worker.pid for worker in self.workers.all()):
            self.loop.stop()

    def _close_tables(self) -> None:
        try:
            self.tables.close()
        except StorageError as error:
            self.report(str(error))
        if self.storage is not None:
            self.storage.close()

    def close(self) -> None:
        """End what is left and remove every trace."""
        self.objects.close()
        kill_children()
        self.clients.close()
        self.memory.close()
        self._close_tables()
        self.state.close()
        self.logs.close()
        self.session.close()
        self.board.close()
        self.loop.close()


def _worker(client: Client) -> WorkerProcess:
    if client.worker is None:
        raise ProtocolError("a driver sent a frame that only workers send")
    return client.worker


def kill_children() -> None:
    """Kill and reap every child: the zygote, workers, and what orphans they left to this subreaper."""
    while children := _children():
        for pid in children:
            os.kill(pid, signal.SIGKILL)  # ours and not reaped: the id cannot be another's
        for pid in children:
            os.waitid(os.P_PID, pid, os.WEXITED)


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            return [int(pid) for pid in file.read().split()]
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return [
            int(name) for name in os.listdir("/proc") if name.isdigit() and _parent_of(name) == os.getpid()
        ]


def _parent_of(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return int(file.read().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def _prepare_process() -> None:
    procs.set_name("ftrayd")
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    procs.set_child_subreaper(True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # four descriptors a worker


def _redirect_output(directory: str) -> None:
    """From now on messages go to the session's log; before, to the launching process."""
    fd = os.open(os.path.join(directory, LOG_FILE), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(fd, 1)
    os.dup2(fd, 2)
    os.close(fd)


def run(
    lifeline: socket.socket,
    config: dict[str, Any],
    zygote_sock: socket.socket,
    zygote_pid: int,
    started_s: float,
) -> None:
    """Be ``ftrayd`` until the driver leaves; stderr of an error before "ready" is shown there."""
    spans_ms = {"boot": (time.monotonic() - started_s) * 1000}
    _prepare_process()
    if os.getppid() != config["driver_pid"]:
        return  # the driver died before it could be watched
    try:
        node = Node(lifeline, config, zygote_sock, zygote_pid)
    except (session.SessionError, StorageError) as error:
        lifeline.send(marshal.dumps({"failed": str(error)}))
        return
    try:
        node.pool_event(lambda pool, now_s: pool.opened(now_s))
        spans_ms["ready"] = (time.monotonic() - started_s) * 1000
        node.send_ready(spans_ms)
        _redirect_output(node.session.path)
        node.loop.set_timer("sweep", time.monotonic() + _SWEEP_PAUSE_S, node.sweep)
        node.loop.run()
    except BaseException:
        node.tell_crash()
        raise
    finally:
        node.close()
