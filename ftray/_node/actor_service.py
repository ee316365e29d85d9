"""Actors: carries the decisions of ``actors`` out.

Owns: the pickled spec of each living actor, the amounts that it needs and holds.
Invariants: an incarnation starts only in the process that the pool gave it; every change reaches every
subscriber.
Leaves to others: the decisions; resources and processes (``lease_service``, ``workers``).
"""

from __future__ import annotations

import pickle
import time

from ftray._node import actors as machine
from ftray._node import environments
from ftray._node.amounts import CPU, UNIT, ResourceError, fixed_point
from ftray._node.caller_releases import CallerReleases
from ftray._node.discards import Discards, is_own
from ftray._node.frames import (
    DEATH_INTENDED,
    EXIT_TERMINATED,
    INFEASIBLE_GROUP_REMOVED,
    INFEASIBLE_NOW,
    KILL_OUT_OF_SCOPE,
    READY_MADE,
    READY_PARKED,
    ActorCreate,
    ActorExit,
    ActorKill,
    ActorReady,
    ActorStart,
    ActorState,
    ActorSubscribe,
    ActorTerminate,
    CallersDone,
    RpcReply,
)
from ftray._node.group_service import NoPlace
from ftray._node.protocol import ProtocolError
from ftray._node.waits import WaitTable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from ftray._node.amounts import Amounts
    from ftray._node.clients import Client
    from ftray._node.daemon import Node
    from ftray._node.workers import Death, WorkerProcess


_MAX_STORY = 16
# A creation that waits for so long for the end of the actor of that name is told to its user.
_POSTPONED_S = 5.0
_PLACE_FIELDS = ("checkpoint", "checkpoint_namespace", "checkpoint_name", "unique_id", "class_name")
# What a process of an actor with checkpoints imports; some 60 ms, of which each restart would need its own.
_TOOLKIT = [
    "ftray._checkpoint_host",
    "ftray._core.reruns",
    "ftray._outside",
    "ftray._own_methods",
    "ftray.checkpoint.ahead",
    "ftray.checkpoint.drive",
    "ftray.checkpoint.engine",
    "ftray.checkpoint.replay",
    "ftray.checkpoint.stores.local",
    "ftray.checkpoint.stores.local_journal",
]


class _OwnerGone(Exception):
    """An actor whose owner died before it was created."""


class _Kept:
    """What is kept to start an actor."""

    def __init__(self, blob: bytes, fields: dict[str, Any]) -> None:
        self.blob = blob
        self.fields = fields
        self.hash_seed = ""  # when its processes need another one than the session's
        self.to_discard = False  # it has had a process, which may have left checkpoints that go with it
        self.held: Amounts = fixed_point(fields["resources"].items())
        # An actor that does not name a CPU needs one free to be placed and holds none, as in Ray.
        placement = fields.get("placement_resources")
        if placement is not None:
            self.needed = fixed_point(placement.items())
        else:
            self.needed = self.held if CPU in fields["resources"] else {**self.held, CPU: UNIT}


class ActorService:
    """The actor frames of clients and workers."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self.table = machine.ActorTable()
        self._kept: dict[bytes, _Kept] = {}
        self._stories: dict[bytes, list[tuple[str, int, float]]] = {}
        self._clients: dict[tuple[bytes, int], int] = {}  # placements by the client that they count for
        self._places: dict[bytes, dict[str, Any]] = {}  # of exactly-once actors, also of those that are dead
        self.waits = WaitTable()
        self.releases = CallerReleases(self._tell_actor)
        self._toolkit_shared = False
        # Creations that wait for a name: client, frame and request, the oldest first.
        self._postponed: dict[tuple[str, str], list[tuple[Client, ActorCreate, int]]] = {}
        self.discards = Discards(node)

    # Frames ---------------------------------------------------------------------------------------

    def on_create(self, client: Client, frame: ActorCreate, req: int) -> None:
        """ACTOR_CREATE."""
        try:
            fields = pickle.loads(frame.spec)
            kept = _Kept(frame.spec, fields)
            spec = machine.Spec(
                frame.actor_id,
                b"" if fields["lifetime"] == "detached" else fields["owner"],
                self._node.job_of(client),
                fields["class_name"],
                fields["name"] or "",
                fields["namespace"] or self._node.namespace_of(client),
                bool(fields["get_if_exists"]),
                fields["max_restarts"],
            )
            if spec.owner and self._node.clients.by_worker_id(spec.owner) is None:
                raise _OwnerGone(f"the owner of {spec.title} is dead, so that the actor would be too")
        except (ResourceError, _OwnerGone) as error:
            self.apply([machine.Refused(client.number, req, frame.actor_id, str(error))])
            return
        except Exception as error:
            raise ProtocolError(f"ACTOR_CREATE with an unusable spec: {error!r}") from error
        self._create(client, frame, req, spec, kept)

    def _create(
        self, client: Client, frame: ActorCreate, req: int, spec: machine.Spec, kept: _Kept
    ) -> None:
        fields, actor_id = kept.fields, spec.actor_id
        if "not_made" in fields:
            self.apply(self.table.not_made(actor_id, *fields["not_made"]))
            return
        wanted = self.table.awaits_creation(actor_id)
        if wanted:
            self._kept[actor_id] = kept
        commands = self.table.created(spec, client.number, req, announced="args_blob" not in fields)
        for command in commands:
            if isinstance(command, machine.Postponed):
                self._postpone(client, frame, req, command)
        self.apply(commands)
        if not wanted:
            return
        if self.table.info(actor_id) is None:
            self._kept.pop(actor_id, None)
        elif fields["checkpoint"] is not None:
            self._share_toolkit()
            if fields["checkpoint"].get("exactly_once"):
                self.releases.created(actor_id)
                self._keep_place(actor_id, fields)

    def _postpone(self, client: Client, frame: ActorCreate, req: int, command: machine.Postponed) -> None:
        key = (command.namespace, command.name)
        self._postponed.setdefault(key, []).append((client, frame, req))
        text = (
            f"an actor named {command.name!r} is created when the one that has the name has ended: it is to"
            " end, and runs what was called before"
        )
        self._node.loop.set_timer(
            ("name", *key),
            time.monotonic() + _POSTPONED_S,
            lambda: self._node.warn_job(self._node.job_of(client), text),
        )

    def _name_free(self, key: tuple[str, str]) -> None:
        self._node.loop.set_timer(("name", *key), None, lambda: None)
        for client, frame, req in self._postponed.pop(key, ()):
            if self._node.clients.get(client.number) is client:
                self.on_create(client, frame, req)

    def _share_toolkit(self) -> None:
        """Have the zygote import what actors with checkpoints need: their restarts do not wait for it."""
        if not self._toolkit_shared:
            self._toolkit_shared = True
            self._node.zygote.preload(_TOOLKIT)

    def on_subscribe(self, client: Client, frame: ActorSubscribe) -> None:
        """ACTOR_SUBSCRIBE."""
        self.apply(self.table.subscribed(frame.actor_id, client.number, time.monotonic()))

    def on_kill(self, frame: ActorKill) -> None:
        """ACTOR_KILL."""
        if frame.reason == KILL_OUT_OF_SCOPE:
            self.apply(self.table.out_of_scope(frame.actor_id))
        else:
            self.apply(self.table.killed(frame.actor_id, bool(frame.no_restart)))

    def on_ready(self, worker: WorkerProcess, frame: ActorReady) -> None:
        """ACTOR_READY."""
        error = None if frame.ok == READY_MADE else frame.error
        kept = self._kept.get(frame.actor_id)
        if frame.ok == READY_PARKED and kept is not None and worker.actor_id == frame.actor_id:
            kept.to_discard = False  # somebody may want to look at it, or to begin another actor from it
        if error is None and self.table.actor_of(worker.number) == frame.actor_id:
            self._note(frame.actor_id, "READY", frame.incarnation)
        now_s = time.monotonic()
        self.apply(
            self.table.constructed(frame.actor_id, frame.incarnation, worker.number, error, now_s, frame.ok)
        )
        if error is None:
            self.releases.ready(frame.actor_id)

    def on_exit(self, worker: WorkerProcess, frame: ActorExit) -> None:
        """ACTOR_EXIT."""
        if self.table.actor_of(worker.number) == frame.actor_id and worker.verdict is None:
            worker.verdict = (DEATH_INTENDED, "ended on purpose")
        kept = self._kept.get(frame.actor_id)
        if kept is not None and worker.actor_id == frame.actor_id and frame.kind == EXIT_TERMINATED:
            kept.to_discard = False  # it has done so itself
        self.apply(self.table.exit_announced(frame.actor_id, worker.number, frame.kind))

    def on_waits(
        self, client: Client, number: int, inside: str, targets: list[bytes], quiet: bool
    ) -> list[dict[str, str]] | None:
        """A method of an exactly-once actor waits for long (RPC ``actor_waits``), or does so no more (0).

        Returns
        -------
        list of dict or None
            Actors and methods that wait for each other in a circle, the caller's first.
        """
        worker = client.worker
        actor_id = self.table.actor_of(worker.number) if worker is not None else None
        if worker is None or actor_id is None:
            raise ValueError("actor_waits is for the processes of actors")
        if not number:
            self.waits.over(actor_id)
            return None
        circle = self.waits.polled(actor_id, worker.number, number, inside, targets, quiet)
        if circle is None:
            return None
        return [{"actor_id": a.hex(), "title": self._title(a), "method": m} for a, m in circle]

    def _title(self, actor_id: bytes) -> str:
        info = self.table.info(actor_id)
        assert info is not None
        return f"{info['class_name']} {repr(info['name']) if info['name'] else actor_id.hex()}"

    # Events of the node ---------------------------------------------------------------------------

    def worker_found(self, key: object, worker: WorkerProcess) -> None:
        """The pool has a process for a placement."""
        actor_id, incarnation = _placement(key)
        self._clients.pop((actor_id, incarnation), None)
        worker.actor_id = actor_id
        kept = self._kept.get(actor_id)
        if kept is not None:
            kept.to_discard = is_own(kept.fields)
        self.apply(self.table.worker_found(actor_id, incarnation, worker.number))

    def placement_failed(self, key: object, text: str, env: bool) -> None:
        """The pool cannot make a process (``env``: because of the actor's runtime environment)."""
        kind = "runtime_env" if env else "start_failed"
        self.apply(self.table.placement_failed(*_placement(key), text, kind))

    def placement_infeasible(self, key: object, text: str) -> None:
        """The node as a whole is too small; the actor waits."""
        info = self.table.info(_placement(key)[0])
        if info is not None:
            self._node.warn_job(info["job_id"], text)

    def process_ended(self, worker: WorkerProcess | None, death: Death) -> None:
        """A worker (None: a driver) died: its actor, and the actors that it owns, follow."""
        cause = {name: getattr(death, name) for name in death._fields}
        if worker is not None:
            self.waits.process_ended(worker.number)
            self.apply(self.table.worker_died(worker.number, cause, time.monotonic()))
        self.apply(self.table.owner_died(death.worker_id, death.text))

    def session_ends(self) -> None:
        """Nothing is restarted any more: actors without a process are gone for good."""
        for actor_id, kept in list(self._kept.items()):
            info = self.table.info(actor_id)
            if info is None or info["worker"] is None:
                self._discard(kept)

    def ended_with_session(self, worker: WorkerProcess, death: Death) -> None:
        """A process ended after `session_ends`: one that ended as it was asked to has left nothing."""
        kept = self._kept.get(worker.actor_id) if worker.actor_id is not None else None
        if kept is not None and not (worker.asked_to_exit and death.code == 0):
            self._discard(kept)

    def _discard(self, kept: _Kept) -> None:
        if kept.to_discard:
            kept.to_discard = False
            self.discards.add(kept.fields)

    def client_gone(self, client: Client) -> None:
        """A subscriber left."""
        self.table.client_gone(client.number)

    # Queries --------------------------------------------------------------------------------------

    def job_of(self, key: object) -> int:
        """Return the job of a placement's actor."""
        info = self.table.info(_placement(key)[0])
        return 0 if info is None else int(info["job_id"])

    def class_name(self, key: object) -> str:
        """Return the class of a placement's actor."""
        info = self.table.info(_placement(key)[0])
        return "" if info is None else str(info["class_name"])

    def env_of(self, key: object) -> str:
        """Return the runtime environment of a placement's actor."""
        kept = self._kept.get(_placement(key)[0])
        if kept is None:
            return ""
        text = kept.fields.get("runtime_env") or ""
        return environments.with_hash_seed(text, kept.hash_seed) if kept.hash_seed else text

    def set_hash_seed(self, client: Client, seed: str) -> None:
        """The next processes of a client's actor are to hash as an earlier one did (RPC ``hash_seed``)."""
        kept = self._kept.get(client.worker.actor_id or b"") if client.worker is not None else None
        if kept is None:
            raise ValueError("only an actor has a hash seed of its own")
        if not (seed.isascii() and seed.isdigit() and int(seed) < 1 << 32):
            raise ValueError(f"{seed!r} is no hash seed; a number from 0 to 2**32 - 1 is one")
        kept.hash_seed = seed

    def predecessor_death(self, client: Client) -> dict[str, Any] | None:
        """Return how the last process of a client's actor has ended (RPC ``predecessor_death``)."""
        actor_id = client.worker.actor_id if client.worker is not None else None
        return self.table.last_death(actor_id) if actor_id else None

    def has_served(self, client: Client) -> bool:
        """Return whether an earlier process of a client's actor has served (RPC ``has_served``)."""
        actor_id = client.worker.actor_id if client.worker is not None else None
        return self.table.has_served(actor_id) if actor_id else False

    def restarts(self, key: object) -> bool:
        """Whether a placement is that of an actor that has had a process before."""
        return _placement(key)[1] > 1

    def restarts_left(self, key: object) -> bool:
        """Whether a placement's actor would be restarted after a death."""
        actor_id = _placement(key)[0]
        info, kept = self.table.info(actor_id), self._kept.get(actor_id)
        if info is None or kept is None:
            return False
        limit = kept.fields["max_restarts"]
        return bool(limit < 0 or info["restarts"] < limit)

    def fields_of(self, actor_id: bytes) -> dict[str, Any] | None:
        """Return the spec of a living actor."""
        kept = self._kept.get(actor_id)
        return None if kept is None else kept.fields

    def with_key(self, callee_key: bytes) -> bytes | None:
        """Return the newest living actor whose callers number their calls by this key."""
        for actor_id, kept in reversed(self._kept.items()):
            info = self.table.info(actor_id)
            if kept.fields.get("callee_key") == callee_key and info is not None and info["state"] != "DEAD":
                return actor_id
        return None

    def checkpoint_of(self, actor_id: bytes) -> dict[str, Any] | None:
        """Return what names the checkpoints of an exactly-once actor, also of one that died not long ago."""
        return self._places.get(actor_id)

    def _keep_place(self, actor_id: bytes, fields: dict[str, Any]) -> None:
        self._places[actor_id] = {name: fields[name] for name in _PLACE_FIELDS}
        if len(self._places) > 2 * machine.MAX_TOMBSTONES:
            known = set(self.table.actor_ids())
            for gone in [a for a in self._places if a not in known]:
                del self._places[gone]

    def jobs(self) -> set[int]:
        """Return the jobs of all living actors."""
        return {self.job_of((actor_id, 0)) for actor_id in self._kept}

    def saves_state(self, actor_id: bytes | None) -> bool:
        """Whether the actor saves a checkpoint before a planned exit."""
        kept = self._kept.get(actor_id) if actor_id is not None else None
        return kept is not None and kept.fields.get("checkpoint") is not None

    def states(self, client: Client) -> list[dict[str, Any]]:
        """Return what people may want to know of every actor, the oldest first (RPC ``actor_states``)."""
        found = []
        for actor_id in self.table.actor_ids():
            info = self._node.rpc.actor_info(client, actor_id)
            if info is None:
                continue
            spec = info.pop("spec", None) or {}
            info["resources"] = spec.get("resources")
            info["is_detached"] = spec["lifetime"] == "detached" if spec else None
            info["story"] = self._stories.get(actor_id, [])
            found.append(info)
        return found

    def _note(self, actor_id: bytes, state: str, incarnation: int) -> None:
        """Remember when an actor reached a state: the first, and the latest few."""
        story = self._stories.setdefault(actor_id, [])
        if story and story[-1][:2] == (state, incarnation):
            return
        story.append((state, incarnation, time.time()))
        if len(story) > _MAX_STORY:
            del story[1]
        if len(self._stories) > machine.MAX_TOMBSTONES and state == "PENDING":
            known = set(self.table.actor_ids())
            for gone in [a for a in self._stories if a not in known][: len(self._stories) // 2]:
                del self._stories[gone]

    # Carrying out ---------------------------------------------------------------------------------

    def apply(self, commands: Sequence[machine.Command]) -> None:
        """Carry out the table's commands."""
        for command in commands:
            if isinstance(command, machine.Publish):
                self._publish(command)
            elif isinstance(command, machine.Place):
                self._place(command)
            elif isinstance(command, machine.CancelPlace):
                key = (command.actor_id, command.incarnation)
                client = self._clients.pop(key, 0)
                self._node.leases.apply(self._node.leases.scheduler.placement_cancelled(client, key))
            elif isinstance(command, (machine.Start, machine.Terminate, machine.Kill, machine.ReleaseWorker)):
                self._tell_worker(command)
            elif isinstance(command, (machine.Created, machine.Refused)):
                self._answer(command)
            elif isinstance(command, machine.SetTimer):
                self._set_timer(command.actor_id, command.incarnation, command.when_s)
            elif isinstance(command, machine.Forget):
                kept = self._kept.pop(command.actor_id, None)
                if kept is not None:
                    self._discard(kept)
                self.releases.gone(command.actor_id)
                self._node.groups.actor_dead(command.actor_id)
            elif isinstance(command, machine.NameFree):
                self._name_free((command.namespace, command.name))

    def _set_timer(self, actor_id: bytes, incarnation: int, when_s: float) -> None:
        self._node.loop.set_timer(
            ("backoff", actor_id), when_s, lambda: self.apply(self.table.backoff_over(actor_id, incarnation))
        )

    def _place(self, command: machine.Place) -> None:
        kept = self._kept[command.actor_id]
        key = (command.actor_id, command.incarnation)
        needed = kept.held if command.restart else kept.needed
        name = f"actor {kept.fields['class_name']}"
        try:
            place = self._node.groups.place(kept.fields.get("strategy", ""), needed, kept.held)
        except NoPlace as error:
            self._no_place(command.actor_id, name, error)
            return
        owner = self._node.clients.by_worker_id(kept.fields["owner"])
        client = owner.number if owner is not None else 0
        self._clients[key] = client
        scheduler = self._node.leases.scheduler
        self._node.leases.apply(scheduler.placement_requested(client, key, needed, kept.held, name, place))

    def _no_place(self, actor_id: bytes, name: str, error: NoPlace) -> None:
        text = f"{name} cannot be placed: {error}"
        if error.fatal == INFEASIBLE_NOW:
            self.placement_infeasible((actor_id, 0), text)
        elif error.fatal == INFEASIBLE_GROUP_REMOVED:
            self.end(actor_id, "group_removed", str(error))
        else:
            self.end(actor_id, "unschedulable", text)

    def end(self, actor_id: bytes, kind: str, why: str) -> None:
        """The actor cannot go on, for a reason that is the node's."""
        self.apply(self.table.ended(actor_id, kind, why))

    def _tell_worker(
        self, command: machine.Start | machine.Terminate | machine.Kill | machine.ReleaseWorker
    ) -> None:
        worker = self._node.workers.get(command.worker)
        if worker is None or worker.client is None:
            return  # it has just died: the table hears of that in its turn
        if isinstance(command, machine.Start):
            blob = self._kept[command.actor_id].blob
            start = ActorStart(command.actor_id, command.incarnation, blob, worker.assigned)
            self._node.clients.send(worker.client, start)
        elif isinstance(command, machine.Terminate):
            self._node.clients.send(worker.client, ActorTerminate(command.actor_id))
        elif isinstance(command, machine.Kill):
            self._node.workers.kill(worker, DEATH_INTENDED, command.text)
        else:
            self._node.leases.release_actor_worker(worker)

    def _tell_actor(self, actor_id: bytes, frame: CallersDone) -> bool:
        """Send to the process of an actor that serves; False when there is none."""
        number = self.table.serving_worker(actor_id)
        worker = self._node.workers.get(number) if number is not None else None
        if worker is None or worker.client is None:
            return False
        self._node.clients.send(worker.client, frame)
        return True

    def _publish(self, command: machine.Publish) -> None:
        if command.incarnation:
            self._note(command.actor_id, command.state.name, command.incarnation)
        worker = self._node.workers.get(command.worker) if command.worker is not None else None
        target = worker.client if worker is not None else None
        cause = b"" if command.cause is None else pickle.dumps(command.cause)
        frame = ActorState(
            command.actor_id,
            int(command.state),
            command.incarnation,
            target.worker_id if target is not None else bytes(28),
            target.slot if target is not None else 0,
            target.pid if target is not None else 0,
            target.sock_name if target is not None else "",
            cause,
        )
        for number in command.clients:
            client = self._node.clients.get(number)
            if client is not None:
                self._node.clients.send(client, frame)

    def _answer(self, command: machine.Created | machine.Refused) -> None:
        client = self._node.clients.get(command.client)
        if client is None:
            return
        if isinstance(command, machine.Created):
            if command.req:
                # In the same step: it may be dead when its creator could ask for it.
                info = self._node.rpc.actor_info(client, command.actor_id) if command.existing else False
                result = {"actor_id": command.actor_id, "existing": info}
                self._node.clients.send(client, RpcReply(1, pickle.dumps(result)), command.req)
        elif command.req:
            self._node.clients.send(client, RpcReply(0, pickle.dumps(ValueError(command.text))), command.req)
        else:
            cause = {"kind": "refused", "actor_id": command.actor_id, "text": command.text}
            self._publish(
                machine.Publish((client.number,), command.actor_id, machine.State.DEAD, 0, None, cause)
            )


def _placement(key: object) -> tuple[bytes, int]:
    assert isinstance(key, tuple)
    return key[0], key[1]
