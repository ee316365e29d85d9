"""Groups without an engine: simulated processes in one thread, which die where a fault point says."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from ftray.checkpoint import Checkpointable, actor, engine, faults, generations, readonly, regroup
from ftray.checkpoint.groups import Group, open_group
from ftray.checkpoint.members import Member
from ftray.checkpoint.session import ActorSession
from ftray.checkpoint.stores.protocol import Store
from ftray.checkpoint.testing import InlineBackground, LocalHost, crash
from ftray.checkpoint.wire import Wire

NAME = "pair"
KEY = "_group/pair"


class Dead(Exception):
    """The actor is dead for good."""


class Account(Checkpointable):
    """Pays others: what one has sent, another one has received."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        self.received: dict[str, int] = {}
        self.post: Callable[[str], None] = lambda to: None

    def save_checkpoint(self) -> object:
        return {"sent": self.sent, "received": self.received}

    def pay(self, to: str, further: int = 0) -> None:
        self.sent[to] = self.sent.get(to, 0) + 1
        self.post(to)

    def receive(self, sender: str) -> int:
        self.received[sender] = self.received.get(sender, 0) + 1
        return self.received[sender]

    @readonly
    def books(self) -> tuple[dict[str, int], dict[str, int]]:
        return dict(self.sent), dict(self.received)


class Incarnation:
    """One process of an actor, as those see it whom it has called."""

    def __init__(self, process: Process) -> None:
        self.process, self.worker, self.dead = process, process.worker, False


class Port:
    """See `ftray.checkpoint.members.GroupPort`."""

    def __init__(self, process: Process) -> None:
        self._process = process

    def describe(self) -> dict[str, Any]:
        process = self._process
        return {"worker": process.worker, "actor": process.name.encode().ljust(16), "max_restarts": -1}

    def meet(self, actors: Sequence[bytes]) -> None:
        """A call says whose it is, wherever it goes."""

    def hold(self, workers: Sequence[bytes]) -> None:
        if self._process.held is None:
            self._process.begun = 0
        self._process.held = frozenset(workers)

    def release(self) -> None:
        self._process.held = None

    def begun(self) -> int | None:
        return None if self._process.held is None else self._process.begun

    def unanswered(self, actors: Sequence[bytes]) -> int:
        return self._process.unanswered

    def end(self, claim: Mapping[str, Any]) -> None:
        self._process.world.end(claim)

    def settle_deaths(self, timeout_s: float) -> None:
        process = self._process
        process.queue = deque(call for call in process.queue if call[0] is None or not call[0].dead)


class GroupHost(LocalHost):
    """A host of an actor that can be a member."""

    def __init__(self, process: Process) -> None:
        super().__init__(process.name, unique_id=process.name, class_name="Account", incarnation=process.life)
        self._process = process

    def group_port(self) -> Port:
        return Port(self._process)


class Process:
    """One actor and its processes, one after the other."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name, self.key = world, name, f"test/{name}"
        self.life = 0
        self.session: ActorSession | None = None
        self.host: Any = None
        self.queue: deque[tuple[Incarnation | None, str, tuple[Any, ...]]] = deque()
        self.sender = Incarnation(self)
        self.held: frozenset[bytes] | None = None
        self.begun = self.unanswered = 0
        self.for_good = False

    @property
    def worker(self) -> bytes:
        return f"{self.name}-{self.life}".encode().ljust(28)

    def die(self) -> None:
        """The process is gone; calls of others to it are made again.

        Its own calls stay in the queues of others, which hear of its death when they ask, and not before.
        """
        session, self.session, self.held, self.unanswered = self.session, None, None, 0
        self.sender.dead = True
        if session is not None:
            _stop_clock(session.member)
            crash(session)

    def live(self) -> ActorSession:
        """Start it again if it is dead, as the engine does; more than once if it dies on its way."""
        if self.for_good:
            raise Dead(self.name)
        while self.session is None:
            self.life += 1
            self.sender = Incarnation(self)
            instance = Account()
            self.host = GroupHost(self)
            try:
                self.session = engine.open(
                    instance,
                    self.host,
                    self.world.spec,
                    store=self.world.connect(),
                    background=InlineBackground,  # type: ignore[arg-type]
                )
            except faults.SimulatedCrash:
                faults.active = None
                self.session = actor.sessions.pop(id(instance), None)
                self.die()
            else:
                instance.post = self.send
        return self.session

    def send(self, to: str) -> None:
        self.unanswered += 1
        self.world.process(to).queue.append((self.sender, "receive", (self.name,)))

    def run(self, method: str, *args: Any) -> Any:
        """One call; it is made again if the process dies in it."""
        while True:
            session = self.live()
            try:
                return self.host.call(session, method, *args)
            except faults.SimulatedCrash:
                faults.active = None
                self.die()

    def books(self) -> Any:
        return self.run("books")


def _stop_clock(member: Member | None) -> None:
    if member is not None and member._timer is not None:
        member._timer.cancel()


class World:
    """Actors, their store, and the calls that are under way."""

    def __init__(
        self, store: Store, names: str = "ab", *, exactly_once: bool = False, reopen: Any = None
    ) -> None:
        self.store, self._reopen = store, reopen or (lambda store: store)
        self.exactly_once = exactly_once
        self.spec = engine.spec_of(Account, {"exactly_once": exactly_once})
        self.processes = [Process(self, name) for name in names]

    def connect(self) -> Store:
        """The store as another process sees it."""
        found: Store = self._reopen(self.store)
        return found

    def process(self, name: str) -> Process:
        return next(process for process in self.processes if process.name == name)

    def group(self, names: str = "", *, name: str = NAME, **options: Any) -> Group:
        """Find the group, as a new program does."""
        found = [self.process(name) for name in names] or self.processes
        return open_group(SimulatedWire(found), name, **options)

    def end(self, claim: Mapping[str, Any]) -> None:
        for process in self.processes:
            if process.key == claim["key"]:
                process.die()

    def pump(self) -> bool:
        """Run one call that may begin, if there is one."""
        for process in self.processes:
            if process.queue and process.session is None:  # calls reach it when it has opened: not before
                process.live()
                return True
            for call in process.queue:
                sender, method, args = call
                if process.held is not None and (sender is None or sender.worker not in process.held):
                    continue
                process.queue.remove(call)
                process.begun += process.held is not None
                process.run(method, *args)
                if sender is not None and not sender.dead:
                    sender.process.unanswered -= 1
                return True
        return False

    def traffic(self, n: int = 3) -> None:
        """Calls from outside, of which each causes one of a member; none has begun yet."""
        for i, process in enumerate(self.processes):
            other = self.processes[(i + 1) % len(self.processes)].name
            for _ in range(n):
                process.queue.append(
                    (None, "receive", ("outside",)) if self.exactly_once else (None, "pay", (other,))
                )

    def settle(self) -> None:
        """Until all calls are done."""
        while self.pump():
            continue

    def coordinator_died(self) -> None:
        """Nobody is held any more."""
        for process in self.processes:
            process.held = None
            if process.session is not None:
                _stop_clock(process.session.member)

    def next_program(self) -> None:
        """It finds what one before it may have left half done."""
        generations.settle(self.connect(), NAME, 2, self.end, time.monotonic() + 10)

    def books(self) -> dict[str, Any]:
        """What every member has, once all of them live."""
        for process in self.processes:
            if not process.for_good:
                process.live()
        return {process.key: process.books() for process in self.processes if not process.for_good}

    def states(self, cut: str) -> dict[str, Any]:
        """What a cut has, as `books` does."""
        states = regroup.load(self.connect(), NAME, cut)
        return {key: (state["sent"], state["received"]) for key, state in states.items()}

    def close(self) -> None:
        for process in self.processes:
            process.die()


@contextlib.contextmanager
def world_of(store: Store, names: str = "ab", **options: Any) -> Iterator[World]:
    world = World(store, names, **options)
    try:
        yield world
    finally:
        world.close()


class _Ref:
    def __init__(self, process: Process, what: str, fields: dict[str, Any]) -> None:
        self.process, self.what, self.fields = process, what, fields
        self.answer: list[Any] = []


class SimulatedWire(Wire):
    """Calls to simulated processes. Messages of members are delivered while somebody waits."""

    handles: list[Process]

    def send(self, member: int, what: str, fields: Mapping[str, Any]) -> Any:
        ref = _Ref(self.handles[member], what, dict(fields))
        if what == "release":  # who takes the cut may not wait for it
            ref.answer = [ref.process.run("_checkpoint_group", what, ref.fields)]
        return ref

    def wait(self, refs: Sequence[Any], timeout_s: float) -> list[Any]:
        if not refs or timeout_s <= 0:
            return []
        self.handles[0].world.pump()
        return [refs[0]]

    def answer(self, ref: Any, timeout_s: float | None = None) -> Any:
        return ref.answer[0] if ref.answer else ref.process.run("_checkpoint_group", ref.what, ref.fields)

    def is_death(self, error: BaseException) -> bool:
        return isinstance(error, Dead)

    def connect(self, url: str) -> Store:
        return self.handles[0].world.connect()

    def end(self, claim: Mapping[str, Any]) -> None:
        self.handles[0].world.end(claim)

    def check_outside(self, keys: Sequence[str]) -> None:
        """The test is no actor."""


def require_consistent(books: Mapping[str, Any]) -> None:
    """What a member has sent according to its books, the other one has received according to its."""
    names = {key.rpartition("/")[2]: book for key, book in books.items()}
    for sender, (sent, _) in names.items():
        for receiver, (_, received) in names.items():
            assert sent.get(receiver, 0) == received.get(sender, 0), books


def crashes(
    hits: Mapping[str, int], wanted: Callable[[str], bool], most: int
) -> Collection[tuple[str, int]]:
    """Each time that each point was reached, or the first `most` times."""
    points = [point for point in faults.POINTS + faults.ROLLBACK_POINTS if wanted(point)]
    return [(point, n) for point in points for n in range(1, min(most, hits.get(point, 0)) + 1)]
