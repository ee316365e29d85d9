"""Leases and worker assignment: carries the decisions of ``scheduler`` and ``pool`` out.

Owns: the link between an allocation, its demand and its worker process.
Invariants: commands are carried out in the order in which they were decided; an allocation whose worker
cannot be started is reported to whoever wants it.
Leaves to others: the decisions; actors' life cycle (``actor_service``).
"""

from __future__ import annotations

import json
import time

from ftray._node import pool as pool_machine
from ftray._node import scheduler as scheduler_machine
from ftray._node.amounts import GPU, ResourceError, fixed_point
from ftray._node.frames import (
    DEATH_DRIVER_LEFT,
    DEATH_INTENDED,
    DEATH_SIGNAL,
    INFEASIBLE_ENVIRONMENT,
    INFEASIBLE_NEVER,
    RETURN_SPENT,
    LeaseGrant,
    LeaseInfeasible,
    LeaseReclaim,
    LeaseRequest,
    LeaseReturn,
    clip,
)
from ftray._node.group_service import NoPlace
from ftray._node.memory_policy import Candidate
from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ftray._node.amounts import Amounts
    from ftray._node.clients import Client
    from ftray._node.daemon import Node
    from ftray._node.pool import Pool, PoolSettings
    from ftray._node.workers import WorkerProcess


class _Class(Record):
    """What matters here of a client's scheduling class."""

    name: str
    env: str
    retriable: bool


_GONE = _Class("", "", False)  # of a client that is dead, whose workers are about to be


class LeaseService:
    """Scheduler, pool and the clients' lease frames."""

    def __init__(self, node: Node, total: Amounts, settings: PoolSettings) -> None:
        self._node = node
        # Spares and starting workers need processes too.
        room = settings.max_workers - settings.spare_max - settings.prestart - settings.max_starting
        self.scheduler = scheduler_machine.Scheduler(total, max_allocations=max(1, room))
        self.pool = pool_machine.Pool(settings)
        self._wanted_by: dict[int, tuple[int, object, bool]] = {}
        self._told: dict[int, set[int]] = {}  # by client: classes that wait until they are cancelled
        self._classes: dict[tuple[int, int], _Class] = {}

    # Frames ---------------------------------------------------------------------------------------

    def on_request(self, client: Client, frame: LeaseRequest) -> None:
        """LEASE_REQUEST."""
        try:
            needed = fixed_point(frame.resources)
            place = self._node.groups.place(frame.strategy, needed, needed) if frame.wanted else None
            env = frame.runtime_env.decode()
        except (ResourceError, NoPlace, UnicodeDecodeError) as error:
            text = f"{frame.name or 'a task'} cannot be scheduled: {error}"
            fatal = error.fatal if isinstance(error, NoPlace) else INFEASIBLE_NEVER
            if fatal or self._is_news(client, frame.class_key):
                self._node.clients.send(client, LeaseInfeasible(frame.class_key, fatal, clip(text)))
            return
        self._classes[client.number, frame.class_key] = _Class(frame.name, env, bool(frame.retriable))
        self.apply(
            self.scheduler.lease_requested(
                client.number, frame.class_key, frame.wanted, needed, frame.name, place
            )
        )

    def _is_news(self, client: Client, class_key: int) -> bool:
        """Whether the client was not told before that this class has to wait."""
        told = self._told.setdefault(client.number, set())
        news = class_key not in told
        told.add(class_key)
        return news

    def on_return(self, client: Client, frame: LeaseReturn) -> None:
        """LEASE_RETURN; one of a lease that ended meanwhile means nothing."""
        worker, commands = self.scheduler.lease_returned(client.number, frame.lease_id)
        if worker is not None:
            self._released(worker, bool(frame.worker_reusable), frame.worker_reusable == RETURN_SPENT)
        self.apply(commands)

    def _released(self, number: object, reusable: bool, spent: bool = False) -> None:
        assert isinstance(number, int)
        process = self._node.workers.get(number)
        if process is not None:
            process.alloc_id = None
            if not reusable:
                process.verdict = (DEATH_INTENDED, "was not to be used again")
            self.pool_event(lambda pool, now_s: pool.released(number, reusable, now_s, spent))

    def release_actor_worker(self, worker: WorkerProcess) -> None:
        """A process was found for an actor that is dead by now: it can serve others."""
        commands = self.scheduler.worker_gone(worker.number)
        worker.actor_id = None
        self._released(worker.number, reusable=True)
        self.apply(commands)

    def on_blocked(self, client: Client, blocked: bool) -> None:
        """BLOCKED and UNBLOCKED; a driver holds no CPU."""
        if client.worker is None:
            return
        if blocked:
            self.apply(self.scheduler.worker_blocked(client.worker.number))
        else:
            self.scheduler.worker_unblocked(client.worker.number)

    # Deaths ---------------------------------------------------------------------------------------

    def client_gone(self, client: Client, why: str) -> None:
        """The client died: the workers that ran its tasks end, its demands go."""
        self._told.pop(client.number, None)
        workers, commands = self.scheduler.client_gone(client.number)
        for key in [key for key in self._classes if key[0] == client.number]:
            del self._classes[key]
        kind = DEATH_DRIVER_LEFT if client.is_driver else DEATH_SIGNAL
        for number in workers:
            process = self._node.workers.get(number) if isinstance(number, int) else None
            if process is not None:
                self._node.workers.kill(process, kind, f"was ended because the owner of its tasks {why}")
        self.apply(commands)

    def client_lost(self, client: Client) -> None:
        """The client's connection is closed: nothing can be granted to it."""
        self.apply(self.scheduler.client_lost(client.number))

    def worker_unusable(self, worker: WorkerProcess) -> None:
        """A worker lost its connection: nobody gets it any more, its end follows."""
        self.pool_event(lambda pool, now_s: pool.gone(worker.number, now_s))

    def worker_ended(self, worker: WorkerProcess) -> None:
        """A registered worker died."""
        self.apply(self.scheduler.worker_gone(worker.number))
        self.pool_event(lambda pool, now_s: pool.gone(worker.number, now_s))

    # Carrying out ---------------------------------------------------------------------------------

    def apply(self, commands: Sequence[scheduler_machine.Command]) -> None:
        """Carry out the scheduler's commands."""
        for command in commands:
            if isinstance(command, scheduler_machine.NeedWorker):
                self._need_worker(command)
            elif isinstance(command, scheduler_machine.DropWorkerRequest):
                self._wanted_by.pop(command.alloc_id, None)
                self.pool.cancelled(command.alloc_id)
            elif isinstance(command, scheduler_machine.Reclaim):
                client = self._node.clients.get(command.client)
                if client is not None:
                    self._node.clients.send(client, LeaseReclaim(command.alloc_id))
            elif isinstance(command, scheduler_machine.Infeasible):
                self._infeasible(command)
            elif isinstance(command, scheduler_machine.Reserved):
                self._node.groups.reserved(command.group_id)
            elif isinstance(command, scheduler_machine.Withdrawn):
                self._node.groups.withdrawn(command)

    def _need_worker(self, command: scheduler_machine.NeedWorker) -> None:
        alloc_id = command.alloc_id
        if not self.scheduler.waits_for_worker(alloc_id):
            return  # what an earlier command of the same decision led to has withdrawn it
        self._wanted_by[alloc_id] = (command.client, command.key, command.is_actor)
        if command.is_actor:
            job_id = self._node.actors.job_of(command.key)
            env = self._node.actors.env_of(command.key)
        else:
            client = self._node.clients.get(command.client)
            job_id = self._node.job_of(client) if client is not None else 0
            env = self._class_of(command.client, command.key).env
        is_actor, restart = command.is_actor, command.is_actor and self._node.actors.restarts(command.key)
        self.pool_event(lambda pool, now_s: pool.requested(alloc_id, job_id, is_actor, now_s, env, restart))

    def _class_of(self, client_number: int, key: object) -> _Class:
        assert isinstance(key, int)
        return self._classes.get((client_number, key), _GONE)

    def _infeasible(self, command: scheduler_machine.Infeasible) -> None:
        if command.is_actor:
            self._node.actors.placement_infeasible(command.key, command.text)
            return
        client = self._node.clients.get(command.client)
        if client is not None and isinstance(command.key, int):
            self._node.clients.send(client, LeaseInfeasible(command.key, 0, clip(command.text)))

    def pool_event(self, event: Callable[[Pool, float], Sequence[pool_machine.Command]]) -> None:
        """Give the pool an event and carry out what it decides."""
        for command in event(self.pool, time.monotonic()):
            if isinstance(command, pool_machine.Bind):
                self._bind(command.alloc_id, command.number)
            elif isinstance(command, pool_machine.Fork):
                self._node.workers.start(command.number, command.env)
            elif isinstance(command, pool_machine.Fail):
                self._fail(command)
            else:
                self._end(command)
        self._node.on_pool_trouble(self.pool.trouble)
        due_s = self.pool.next_tick_s()
        self._node.loop.set_timer(
            "pool", due_s, lambda: self.pool_event(lambda pool, now_s: pool.ticked(now_s))
        )

    def _end(self, command: pool_machine.Command) -> None:
        if isinstance(command, (pool_machine.Retire, pool_machine.Abort)):
            process = self._node.workers.get(command.number)
            if process is None:
                return
            if isinstance(command, pool_machine.Retire):
                self._node.workers.retire(process, command.may_decline)
            else:
                self._node.workers.kill(
                    process, DEATH_SIGNAL, "did not register, or exit, in time and was killed"
                )

    def _bind(self, alloc_id: int, number: int) -> None:
        """Give the worker to whoever the allocation is for."""
        client_number, key, is_actor = self._wanted_by.pop(alloc_id)
        process = self._node.workers.get(number)
        assert process is not None and process.client is not None
        self.scheduler.worker_bound(alloc_id, number)
        process.alloc_id = alloc_id
        assigned = self._assign(process, self.scheduler.devices_of(alloc_id))
        if is_actor:
            process.assigned = assigned
            process.job_id = self._node.actors.job_of(key)
            self._node.actors.worker_found(key, process)
            return
        client = self._node.clients.get(client_number)
        assert client is not None and isinstance(key, int), "a gone client's allocations were withdrawn"
        process.job_id = self._node.job_of(client)
        target = process.client
        self._node.clients.send(
            client,
            LeaseGrant(key, alloc_id, target.worker_id, target.slot, target.pid, target.sock_name, assigned),
        )

    def running(self) -> list[Candidate]:
        """Return every worker that runs a task or an actor, for the memory monitor."""
        found = []
        for alloc_id, client, key, is_actor, worker in self.scheduler.bound():
            assert isinstance(worker, int)
            process = self._node.workers.get(worker)
            if process is None or process.client is None:
                continue
            if is_actor:
                retriable = self._node.actors.restarts_left(key)
            elif self._node.board.is_busy(process.client.slot):
                retriable = self._class_of(client, key).retriable
            else:
                continue  # leased, but between two calls: its end would free little, and help nobody
            found.append(Candidate(worker, client, retriable, is_actor, alloc_id))
        return found

    def name_of(self, number: int) -> str:
        """Return the name of the task or actor that a worker is for, "" when it is for none."""
        for _alloc_id, client, key, is_actor, worker in self.scheduler.bound():
            if worker == number:
                return self._node.actors.class_name(key) if is_actor else self._class_of(client, key).name
        return ""

    def _assign(self, process: WorkerProcess, devices: tuple[int, ...]) -> bytes:
        """Return what the worker has to be told of its devices, b"" if it never had any."""
        process.had_devices = process.had_devices or bool(devices)
        if not process.had_devices:
            return b""
        return json.dumps({GPU: [self._node.gpu_ids[device] for device in devices]}).encode()

    def _fail(self, command: pool_machine.Fail) -> None:
        client_number, key, is_actor = self._wanted_by.pop(command.alloc_id)
        commands = self.scheduler.worker_failed(command.alloc_id)
        if is_actor:
            self._node.actors.placement_failed(key, command.text, command.env)
        else:
            client = self._node.clients.get(client_number)
            if client is not None and isinstance(key, int):
                fatal = INFEASIBLE_ENVIRONMENT if command.env else INFEASIBLE_NEVER
                self._node.clients.send(client, LeaseInfeasible(key, fatal, clip(command.text)))
        self.apply(commands)
