"""The head's table of actors: who lives where, who restarts, who is dead and why.

A pure state machine: methods are events, their results are commands; time is an argument.

Owns: every actor's state and incarnation, names, restart budgets and backoff, subscribers, causes of death.
Invariants: one process an incarnation; an incarnation starts only after its predecessor's process is known to
be dead; events of another incarnation or another process change nothing; a name is free in the very step in
which its actor is dead, and whoever wants the name of an actor that is about to end waits for that step; DEAD
is final.
Leaves to others: processes and resources (``pool``, ``scheduler``), the spec's blobs, frames.

States: PENDING -> ALIVE -> (RESTARTING -> ALIVE)* -> DEAD. ALIVE begins when a process is assigned: calls
queue behind the constructor. An actor whose constructor's arguments are awaited is *announced* first: it is
PENDING, can be named, found and killed, and is placed when it is created.
"""

from __future__ import annotations

from enum import IntEnum

from ftray._node.frames import EXIT_SIGTERM, READY_FAILED, READY_PARKED, READY_TRY_AGAIN
from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Commands = list["Command"]
    Cause = dict[str, Any]

# How long a subscription to an actor that nobody has created waits for its creation.
EARLY_SUBSCRIBER_S = 10.0
# Dead actors whose cause late subscribers can still learn.
MAX_TOMBSTONES = 10_000


class State(IntEnum):
    """The public state of an actor."""

    PENDING = 1
    ALIVE = 2
    RESTARTING = 3
    DEAD = 4


class ActorSettings(Record):
    """Pace of restarts.

    A restart is immediate, unless restarting does not help: from the second incarnation in a row that dies
    before it was ready, or from the ``free_restarts``-th that dies less than ``stable_s`` after it was, the
    restart waits ``backoff_s``, doubled each time up to ``max_backoff_s``.
    """

    free_restarts: int = 64

    stable_s: float = 0.1
    backoff_s: float = 0.02
    max_backoff_s: float = 1.0


class Spec(Record):
    """What the table needs to know of an actor; ``owner`` is b"" for a detached one."""

    actor_id: bytes
    owner: bytes
    job_id: int
    class_name: str
    name: str
    namespace: str
    get_if_exists: bool
    max_restarts: int

    @property
    def title(self) -> str:
        """The actor in words."""
        return f"{self.class_name} {self.name!r}" if self.name else f"{self.class_name} {self.actor_id.hex()}"


class Command(Record):
    """What the daemon is to do."""


class Place(Command):
    """Find resources and a process; a ``restart`` needs only what the actor holds."""

    actor_id: bytes
    incarnation: int
    restart: bool


class CancelPlace(Command):
    """The placement is not needed any more."""

    actor_id: bytes
    incarnation: int


class Start(Command):
    """Run this incarnation in ``worker``."""

    actor_id: bytes
    incarnation: int
    worker: int


class Terminate(Command):
    """Let the process finish its queued calls and exit."""

    actor_id: bytes
    worker: int


class Kill(Command):
    """End the process at once."""

    actor_id: bytes
    worker: int
    text: str


class ReleaseWorker(Command):
    """A process was found for an actor that needs none any more."""

    worker: int


class Publish(Command):
    """Tell ``clients`` the state; ``worker`` is None unless ALIVE."""

    clients: tuple[int, ...]
    actor_id: bytes
    state: State
    incarnation: int
    worker: int | None
    cause: Any


class Created(Command):
    """Answer a creation: the actor that the caller has now (an existing one with get_if_exists)."""

    client: int
    req: int
    actor_id: bytes
    existing: bool


class Refused(Command):
    """Answer a creation that cannot be."""

    client: int
    req: int
    actor_id: bytes
    text: str


class Postponed(Command):
    """A creation that waits until a name is free: give ``created`` again after `NameFree`."""

    client: int
    req: int
    actor_id: bytes
    namespace: str
    name: str


class NameFree(Command):
    """The actor that had a name is dead."""

    namespace: str
    name: str


class SetTimer(Command):
    """Give ``backoff_over`` at ``when_s``."""

    actor_id: bytes
    incarnation: int
    when_s: float


class Forget(Command):
    """The actor is dead: what was kept to start it can go."""

    actor_id: bytes


class _Phase(IntEnum):
    ANNOUNCED = 0
    PLACING = 1
    RUNNING = 2
    BACKOFF = 3
    OVER = 4


class _Actor:
    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.state = State.PENDING
        self.phase = _Phase.PLACING
        self.announced = False
        self.incarnation = 1
        self.worker: int | None = None
        self.ready_s: float | None = None
        self.has_served = False  # some incarnation was ready
        self.restarts = 0  # counted against max_restarts
        self.quick_deaths = 0
        self.stillborn = 0
        self.intended: int | None = None  # kind of the exit that the process announced
        self.doom: tuple[str, str] | None = None  # kind and reason of a coming death that is final
        self.error = b""  # serialised error of the constructor, or of the restore
        self.cause: Cause | None = None
        self.subscribers: dict[int, None] = {}

    @property
    def is_leaving(self) -> bool:
        """Whether its end is certain, and only its process is not dead yet."""
        return self.doom is not None or self.intended not in (None, EXIT_SIGTERM)


class ActorTable:
    """All actors of a session."""

    def __init__(self, settings: ActorSettings | None = None) -> None:
        self._settings = settings or ActorSettings()
        self._actors: dict[bytes, _Actor] = {}
        self._names: dict[tuple[str, str], bytes] = {}
        self._by_worker: dict[int, bytes] = {}
        self._dead: dict[bytes, None] = {}  # the oldest first
        self._early: dict[bytes, list[int]] = {}  # subscribers of actors that are not created yet

    # Creation -------------------------------------------------------------------------------------

    def created(self, spec: Spec, client: int, req: int, announced: bool = False) -> Commands:
        """A client creates an actor, or says that it will (``announced``); it is subscribed to it."""
        known = self._actors.get(spec.actor_id)
        if known is not None:
            return self._again(known, client, req, announced)
        holder = self._names.get((spec.namespace, spec.name)) if spec.name else None
        if holder is not None:
            if self._actors[holder].is_leaving:
                return [Postponed(client, req, spec.actor_id, spec.namespace, spec.name)]
            if not spec.get_if_exists:
                text = (
                    f"the name {spec.name!r} is taken in namespace {spec.namespace!r} by a living actor; "
                    "use another name, get_if_exists=True, or get_actor()"
                )
                return [Refused(client, req, spec.actor_id, text)]
            return [Created(client, req, holder, existing=True), *self.subscribed(holder, client, 0.0)]
        actor = _Actor(spec)
        actor.subscribers = dict.fromkeys([client, *self._early.pop(spec.actor_id, ())])
        self._actors[spec.actor_id] = actor
        if spec.name:
            self._names[spec.namespace, spec.name] = spec.actor_id
        commands: Commands = [Created(client, req, spec.actor_id, existing=False), self._publish(actor)]
        if announced:
            actor.announced, actor.phase = True, _Phase.ANNOUNCED
            return commands
        return [*commands, Place(spec.actor_id, 1, restart=False)]

    def _again(self, actor: _Actor, client: int, req: int, announced: bool) -> Commands:
        """A client creates an actor that is known: as announced, or by mistake."""
        actor_id = actor.spec.actor_id
        if actor.announced and not announced:
            if actor.phase is _Phase.ANNOUNCED:
                actor.phase = _Phase.PLACING
                return [Place(actor_id, 1, restart=False)]
            if actor.state is State.DEAD:
                return []  # it ended meanwhile, of which its creator was told
        return [Refused(client, req, actor_id, f"an actor with the id {actor_id.hex()} exists already")]

    def not_made(self, actor_id: bytes, text: str, error: bytes) -> Commands:
        """An announced actor cannot be created; ``error`` (serialised) is why."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.phase is not _Phase.ANNOUNCED:
            return []
        actor.error = error
        return self._die(actor, self._cause(actor, "creation failed", text))

    def worker_found(self, actor_id: bytes, incarnation: int, worker: int) -> Commands:
        """A process is there for an incarnation."""
        actor = self._current(actor_id, incarnation)
        if actor is None or actor.phase is not _Phase.PLACING:
            return [ReleaseWorker(worker)]
        actor.phase = _Phase.RUNNING
        actor.state = State.ALIVE
        actor.worker = worker
        actor.ready_s = None
        actor.intended = None
        self._by_worker[worker] = actor_id
        return [Start(actor_id, incarnation, worker), self._publish(actor)]

    def placement_failed(
        self, actor_id: bytes, incarnation: int, text: str, kind: str = "start_failed"
    ) -> Commands:
        """No process can be made for an incarnation."""
        actor = self._current(actor_id, incarnation)
        if actor is None or actor.phase is not _Phase.PLACING:
            return []
        return self._die(actor, self._cause(actor, kind, text))

    def constructed(
        self,
        actor_id: bytes,
        incarnation: int,
        worker: int,
        error: bytes | None,
        now_s: float,
        outcome: int = READY_FAILED,
    ) -> Commands:
        """The constructor ended, with ``error`` (serialised) unless None.

        Its checkpoints, if it has any, were restored, or that failed: for good (``READY_PARKED``), or its
        process ends now, so that another one tries (``READY_TRY_AGAIN``).
        """
        actor = self._running(actor_id, worker)
        if actor is None or actor.incarnation != incarnation:
            return []
        if error is None:
            actor.ready_s = now_s
            actor.has_served = True
            return []
        actor.error = error
        if outcome == READY_TRY_AGAIN:
            return []
        if outcome == READY_PARKED:
            return self._doom(actor, "restore", "it is parked")
        return self._doom(actor, "constructor", "its constructor raised")

    # Ends -----------------------------------------------------------------------------------------

    def killed(self, actor_id: bytes, no_restart: bool) -> Commands:
        """Somebody kills the actor; it is dead once its process is."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.state is State.DEAD:
            return []
        if no_restart:
            return self._doom(actor, "killed", "it was killed by kill()")
        if actor.worker is None:
            return []  # it restarts already
        return [Kill(actor_id, actor.worker, "was killed by kill(no_restart=False)")]

    def out_of_scope(self, actor_id: bytes) -> Commands:
        """No handle is left and no call of its owner is pending: the actor may end."""
        actor = self._actors.get(actor_id)
        if actor is None or actor.state is State.DEAD or actor.doom:
            return []
        text = "no handle to it was left"
        if actor.worker is None:
            return self._die(actor, self._cause(actor, "out_of_scope", text))
        actor.doom = ("out_of_scope", text)
        return [Terminate(actor_id, actor.worker)]

    def ended(self, actor_id: bytes, kind: str, why: str) -> Commands:
        """What the actor needs is not there any more, or never will be: it is dead once its process is."""
        actor = self._actors.get(actor_id)
        return [] if actor is None or actor.state is State.DEAD else self._doom(actor, kind, why)

    def owner_died(self, owner: bytes, text: str) -> Commands:
        """A process died: the actors that it owns go with it, detached ones have no owner."""
        commands: Commands = []
        for actor in list(self._actors.values()):
            if owner and actor.spec.owner == owner and actor.state is not State.DEAD:
                commands += self._doom(actor, "owner_died", f"its owner died: {text}")
        return commands

    def exit_announced(self, actor_id: bytes, worker: int, kind: int) -> Commands:
        """The process will exit on purpose."""
        actor = self._running(actor_id, worker)
        if actor is not None:
            actor.intended = kind
        return []

    def worker_died(self, worker: int, death: Cause, now_s: float) -> Commands:
        """A process ended; ``death`` has pid, kind, code, unix_time_s and text."""
        actor_id = self._by_worker.pop(worker, None)
        if actor_id is None:
            return []
        actor = self._actors[actor_id]
        actor.worker = None
        if actor.doom:
            return self._die(actor, self._cause(actor, *actor.doom, death))
        if actor.intended is not None and actor.intended != EXIT_SIGTERM:
            return self._die(actor, self._cause(actor, "exit", "it exited on purpose", death))
        planned = actor.intended == EXIT_SIGTERM
        limit = actor.spec.max_restarts
        if limit == 0 or (limit > 0 and actor.restarts >= limit and not planned):
            budget = f"; it was restarted {actor.restarts} of {limit} times" if limit else ""
            crash = ("crash", "its process died")
            kind, why = ("restore", "it could not be restored") if actor.error else crash
            return self._die(actor, self._cause(actor, kind, f"{why}{budget}", death))
        if not planned:
            actor.restarts += 1
        actor.error = b""
        return self._restart(actor, self._cause(actor, "crash", "its process died", death), now_s)

    def backoff_over(self, actor_id: bytes, incarnation: int) -> Commands:
        """A timer that was set for this incarnation fired."""
        if incarnation == 0:
            return self._never_created(actor_id)
        actor = self._current(actor_id, incarnation)
        if actor is None or actor.phase is not _Phase.BACKOFF:
            return []
        actor.phase = _Phase.PLACING
        return [Place(actor_id, incarnation, restart=True)]

    # Subscribers ----------------------------------------------------------------------------------

    def subscribed(self, actor_id: bytes, client: int, now_s: float) -> Commands:
        """A client wants to know the state, now and after each change.

        A handle can travel faster than the word of its actor's creation: an unknown actor gets
        ``EARLY_SUBSCRIBER_S`` to appear.
        """
        actor = self._actors.get(actor_id)
        if actor is None:
            waiting = self._early.setdefault(actor_id, [])
            waiting.append(client)
            return [] if len(waiting) > 1 else [SetTimer(actor_id, 0, now_s + EARLY_SUBSCRIBER_S)]
        if actor.state is not State.DEAD:
            actor.subscribers[client] = None
        return [self._publish(actor, (client,))]

    def _never_created(self, actor_id: bytes) -> Commands:
        waiting = tuple(self._early.pop(actor_id, ()))
        if not waiting:
            return []
        text = f"no actor with the id {actor_id.hex()} is known in this session"
        cause = {"kind": "unknown", "text": text, "actor_id": actor_id}
        return [Publish(waiting, actor_id, State.DEAD, 0, None, cause)]

    def client_gone(self, client: int) -> None:
        """A subscriber left."""
        for actor_id in [a for a, waiting in self._early.items() if client in waiting]:
            self._early[actor_id].remove(client)
        for actor in self._actors.values():
            actor.subscribers.pop(client, None)

    # Queries --------------------------------------------------------------------------------------

    def lookup(self, name: str, namespace: str) -> Spec | None:
        """Return the living actor of that name, unless it is about to end."""
        actor_id = self._names.get((namespace, name))
        if actor_id is None or self._actors[actor_id].is_leaving:
            return None
        return self._actors[actor_id].spec

    def names(self) -> list[tuple[str, str]]:
        """Return (namespace, name) of every living named actor that is not about to end, sorted."""
        return sorted(name for name, actor_id in self._names.items() if not self._actors[actor_id].is_leaving)

    def info(self, actor_id: bytes) -> dict[str, Any] | None:
        """Return what is known of an actor, None when nothing is."""
        actor = self._actors.get(actor_id)
        if actor is None:
            return None
        return {
            "actor_id": actor_id,
            "state": actor.state.name,
            "incarnation": actor.incarnation,
            "restarts": actor.restarts,
            "ready": actor.ready_s is not None,
            "class_name": actor.spec.class_name,
            "name": actor.spec.name,
            "namespace": actor.spec.namespace,
            "job_id": actor.spec.job_id,
            "worker": actor.worker,
            "cause": actor.cause,
        }

    def awaits_creation(self, actor_id: bytes) -> bool:
        """Whether a creation under this id would not be a mistake: it is unknown, or announced."""
        actor = self._actors.get(actor_id)
        return actor is None or actor.phase is _Phase.ANNOUNCED

    def actor_ids(self) -> list[bytes]:
        """Return every actor that is known, the dead ones that are remembered included."""
        return list(self._actors)

    def last_death(self, actor_id: bytes) -> Cause | None:
        """Return how the actor's process before the present one has ended; None if there was none."""
        actor = self._actors.get(actor_id)
        return None if actor is None or actor.cause is None else actor.cause.get("death")

    def has_served(self, actor_id: bytes) -> bool:
        """Return whether the constructor of some process of the actor has ended."""
        actor = self._actors.get(actor_id)
        return actor is not None and actor.has_served

    def serving_worker(self, actor_id: bytes) -> int | None:
        """Return the worker of an actor whose constructor has ended; None if it is not there, or not yet."""
        actor = self._actors.get(actor_id)
        return None if actor is None or actor.ready_s is None else actor.worker

    def actor_of(self, worker: int) -> bytes | None:
        """Return the actor that runs in ``worker``."""
        return self._by_worker.get(worker)

    def check(self) -> None:
        """Raise AssertionError when the state contradicts itself (for tests)."""
        for (namespace, name), actor_id in self._names.items():
            actor = self._actors[actor_id]
            assert (actor.spec.namespace, actor.spec.name) == (namespace, name)
            assert actor.state is not State.DEAD
        for worker, actor_id in self._by_worker.items():
            assert self._actors[actor_id].worker == worker
        for actor in self._actors.values():
            assert (
                (actor.worker is not None) == (actor.phase is _Phase.RUNNING) == (actor.state is State.ALIVE)
            )
            assert (actor.state is State.DEAD) == (actor.phase is _Phase.OVER)
            assert actor.state is not State.DEAD or (actor.cause and not actor.subscribers)
            limit = actor.spec.max_restarts
            assert limit < 0 or actor.restarts <= limit
        assert len(self._dead) <= MAX_TOMBSTONES

    # Mechanics ------------------------------------------------------------------------------------

    def _current(self, actor_id: bytes, incarnation: int) -> _Actor | None:
        actor = self._actors.get(actor_id)
        return actor if actor is not None and actor.incarnation == incarnation else None

    def _running(self, actor_id: bytes, worker: int) -> _Actor | None:
        """Return the actor if ``worker`` is the process that it has now."""
        actor = self._actors.get(actor_id)
        return actor if actor is not None and actor.worker == worker else None

    def _publish(self, actor: _Actor, clients: tuple[int, ...] | None = None) -> Command:
        receivers = tuple(actor.subscribers) if clients is None else clients
        return Publish(
            receivers, actor.spec.actor_id, actor.state, actor.incarnation, actor.worker, actor.cause
        )

    def _cause(self, actor: _Actor, kind: str, why: str, death: Cause | None = None) -> Cause:
        cause: Cause = {
            "kind": kind,
            "actor_id": actor.spec.actor_id,
            "class_name": actor.spec.class_name,
            "incarnation": actor.incarnation,
        }
        text = f"actor {actor.spec.title} (incarnation {actor.incarnation}): {why}"
        if death is not None:
            cause["death"] = death
            text += f"; {death['text']}"
        if actor.error:
            cause["error"] = actor.error
        return {**cause, "text": text}

    def _doom(self, actor: _Actor, kind: str, why: str) -> Commands:
        """End the actor for good; it is dead as soon as its process is."""
        if actor.worker is None:
            return self._die(actor, self._cause(actor, kind, why))
        actor.doom = actor.doom or (kind, why)
        return [Kill(actor.spec.actor_id, actor.worker, why)]

    def _die(self, actor: _Actor, cause: Cause) -> Commands:
        commands: Commands = []
        if actor.phase is _Phase.PLACING:
            commands.append(CancelPlace(actor.spec.actor_id, actor.incarnation))
        actor.state = State.DEAD
        actor.phase = _Phase.OVER
        actor.cause = cause
        commands += (self._publish(actor), Forget(actor.spec.actor_id))
        if actor.spec.name:
            del self._names[actor.spec.namespace, actor.spec.name]
            commands.append(NameFree(actor.spec.namespace, actor.spec.name))
        actor.subscribers.clear()
        self._dead[actor.spec.actor_id] = None
        if len(self._dead) > MAX_TOMBSTONES:
            oldest = next(iter(self._dead))
            del self._dead[oldest], self._actors[oldest]
        return commands

    def _restart(self, actor: _Actor, cause: Cause, now_s: float) -> Commands:
        settings = self._settings
        quick = actor.ready_s is None or now_s - actor.ready_s < settings.stable_s
        actor.stillborn = actor.stillborn + 1 if actor.ready_s is None else 0
        actor.quick_deaths = actor.quick_deaths + 1 if quick else 0
        steps = max(actor.stillborn - 2, actor.quick_deaths - settings.free_restarts)
        actor.state = State.RESTARTING
        actor.cause = cause
        actor.incarnation += 1
        actor.intended = None
        actor.ready_s = None
        if steps < 0:
            actor.phase = _Phase.PLACING
            return [self._publish(actor), Place(actor.spec.actor_id, actor.incarnation, restart=True)]
        actor.phase = _Phase.BACKOFF
        when_s = now_s + min(settings.backoff_s * 2 ** min(steps, 16), settings.max_backoff_s)
        return [self._publish(actor), SetTimer(actor.spec.actor_id, actor.incarnation, when_s)]
