"""For tests: a store in memory, a host that runs an actor object in the present thread, simulated crashes.

`LocalHost` lets the tests of a `Checkpointable` class crash and restore it without an engine:

>>> host = LocalHost("counter")
>>> session = engine.open(counter, host)
>>> host.call(session, "incr", 2)

`crash_everywhere` does that at every step that there is, and compares with a run without crashes:

>>> crash_everywhere(Counter, [("incr", 2), "incr"])
"""

from __future__ import annotations

import io
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from .errors import CheckpointSaveError, FencedError
from .host import ActorIdentity, Incident
from .keys import to_file_name
from .lineage import SnapshotName
from .session import ActorSession
from .stores.memory_journal import JournaledKey, MemoryJournals
from .stores.protocol import Listing

if TYPE_CHECKING:
    from .callers import Call as Call
    from .callers import Caller as Caller
    from .crashes import CrashReport as CrashReport
    from .crashes import crash_everywhere as crash_everywhere
    from .serving import ExactlyOnceCalls

T = TypeVar("T")
_ELSEWHERE = {"Call": "callers", "Caller": "callers", "CrashReport": "crashes", "crash_everywhere": "crashes"}


class _Key(JournaledKey):
    def __init__(self) -> None:
        super().__init__()
        self.snapshots: dict[SnapshotName, bytes] = {}


class MemoryStore(MemoryJournals):
    """A store that lives and dies with the object. Behaves as any other; survives nothing."""

    def __init__(self, name: str = "test", *, survives: Iterable[str] = ()) -> None:
        self._name, self._survives = name, frozenset(survives)
        self._keys: dict[str, _Key] = {}
        self._lock = threading.RLock()

    @property
    def url(self) -> str:
        """``memory://name``, for messages only."""
        return f"memory://{self._name}"

    @property
    def survives(self) -> frozenset[str]:
        """What was given: nothing, unless a test simulates its processes and lets the store outlive them."""
        return self._survives

    def keys(self) -> list[str]:
        """Return all keys, sorted."""
        with self._lock:
            return sorted(self._keys)

    def scan(self, key: str) -> Listing:
        """List one key."""
        to_file_name(key)
        with self._lock:
            held = self._keys.get(key) or _Key()
            return Listing(sorted(held.claims), sorted(held.seals), sorted(held.snapshots))

    def claim(self, key: str, epoch: int, record: bytes) -> bool:
        """Publish `epoch` if it is the highest."""
        with self._lock:
            held = self._keys.setdefault(key, _Key())
            if epoch <= max(held.claims, default=0):
                return False
            held.claims[epoch] = record
            return True

    def _held(self, key: str, epoch: int) -> _Key:
        held = self._keys.get(key)
        if held is None or max(held.claims, default=0) != epoch:
            raise FencedError(f"epoch {epoch} does not hold checkpoint key {key!r} in {self.url} any more")
        return held

    def seal(self, key: str, epoch: int, record: bytes) -> None:
        """Publish the past of an epoch."""
        with self._lock:
            held = self._held(key, epoch)
            if epoch in held.seals:
                raise CheckpointSaveError(f"epoch {epoch} of {key!r} is sealed already")
            held.seals[epoch] = record

    def _read(self, key: str, kind: str, name: object) -> bytes:
        with self._lock:
            held = self._keys.get(key) or _Key()
            try:
                return bytes(getattr(held, kind)[name])
            except KeyError:
                raise FileNotFoundError(2, f"no {name} in {kind} of {key!r}") from None

    def read_claim(self, key: str, epoch: int) -> bytes:
        """Return the record of a claim."""
        return self._read(key, "claims", epoch)

    def read_seal(self, key: str, epoch: int) -> bytes:
        """Return the record of a seal."""
        return self._read(key, "seals", epoch)

    def put(self, key: str, name: SnapshotName, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Keep a snapshot."""
        data = b"".join(parts)
        with self._lock:
            held = self._held(key, name.epoch)
            if name in held.snapshots:
                raise CheckpointSaveError(f"snapshot {name.id} of {key!r} exists already")
            held.snapshots[name] = data

    def read(self, key: str, name: SnapshotName) -> BinaryIO:
        """Open a snapshot."""
        return io.BytesIO(self._read(key, "snapshots", name))

    def delete(self, key: str, names: Sequence[SnapshotName], epoch: int) -> None:
        """Delete snapshots."""
        with self._lock:
            if names:
                held = self._held(key, epoch)
                for name in names:
                    held.snapshots.pop(name, None)

    def settle(self, key: str, epoch: int) -> None:
        """Forget claims and seals of earlier epochs; nothing is ever unfinished here."""
        with self._lock:
            held = self._keys.get(key) or _Key()
            for records in (held.seals, held.claims):
                for old in [e for e in records if e < epoch]:
                    del records[old]

    def remove(self, key: str) -> None:
        """Remove a key."""
        with self._lock:
            self._keys.pop(key, None)


class LocalHost:
    """Runs an actor object in the present thread, as an engine would in a process.

    Attributes
    ----------
    incidents : list of Incident
        All that was reported.
    fenced_by, crashed_by : list of BaseException
        Arguments of `fenced` and `crashed`.
    hash_seed : str
        ``PYTHONHASHSEED``, as the interpreter was started with it.
    seeds_asked : list of str
        Arguments of `restart_with_hash_seed`, which restarts nothing here.
    caller : Caller
        Who makes the calls of an exactly-once actor; give one to have it outlive this host.
    """

    max_concurrency = 1
    is_async = False

    def __init__(
        self,
        name: str = "",
        *,
        namespace: str = "test",
        unique_id: str = "id",
        class_name: str = "Counter",
        incarnation: int = 1,
        caller: Caller | None = None,
    ) -> None:
        self.identity = ActorIdentity(namespace, name, unique_id, class_name)
        self.incarnation = incarnation
        self.is_reconstructed = incarnation > 1
        self.fault, self.served_before = "", False
        self.incidents: list[Incident] = []
        self.fenced_by: list[BaseException] = []
        self.crashed_by: list[BaseException] = []
        self.hash_seed = os.environ.get("PYTHONHASHSEED", "")
        self.seeds_asked: list[str] = []
        self.caller = caller
        self._calls: ExactlyOnceCalls | None = None
        self._actions: deque[Callable[[], None]] = deque()
        self._arrived = threading.Condition()

    def has_served(self) -> bool:
        """Return ``served_before``, which the test has set."""
        return self.served_before

    def predecessor_fault(self) -> str:
        """Return ``fault``, which the test has set."""
        return self.fault

    def run_between_calls(self, action: Callable[[], None]) -> None:
        """Queue `action` for the next `run_actions`."""
        self._keep(self._actions, action)

    def report_incident(self, incident: Incident) -> None:
        """Keep `incident`."""
        self._keep(self.incidents, incident)

    def restart_with_hash_seed(self, seed: str) -> None:
        """Keep `seed`: a thread cannot have another one than its process."""
        self.seeds_asked.append(seed)

    def fenced(self, error: BaseException) -> None:
        """Keep `error`."""
        self._keep(self.fenced_by, error)

    def crashed(self, error: BaseException) -> None:
        """Keep `error`; the session runs nothing more."""
        self._keep(self.crashed_by, error)

    def _keep(self, kept: list[T] | deque[T], event: T) -> None:
        with self._arrived:
            kept.append(event)
            self._arrived.notify_all()

    def wait_for(self, condition: Callable[[], object], timeout_s: float = 10.0) -> None:
        """Wait until `condition` holds; it is asked again after each event that reaches this host."""
        with self._arrived:
            if not self._arrived.wait_for(condition, timeout_s):
                raise TimeoutError(f"not within {timeout_s} s; incidents: {self.incidents}")

    def wait_for_action(self, timeout_s: float = 10.0) -> None:
        """Wait until the toolkit asks for a gap, then give it."""
        self.wait_for(lambda: self._actions, timeout_s)
        self.run_actions()

    def run_actions(self) -> None:
        """Give the toolkit its gap between two calls."""
        while self._actions:
            self._actions.popleft()()

    def call(self, session: ActorSession, method: str, *args: Any, **kwargs: Any) -> Any:
        """Run one method as an engine does; each time as a new call of `caller`."""
        if session.exactly_once is not None:
            return self._call_exactly_once(session, method, args, kwargs)
        self.run_actions()
        function = session.entry_points.get(method) or getattr(session.instance, method)
        try:
            return function(*args, **kwargs)
        finally:
            session.after_call(method)
            self.run_actions()

    def _call_exactly_once(
        self, session: ActorSession, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        from .callers import Caller

        if self.caller is None:
            self.caller = Caller()
        call = self.caller.call(session.log.key, method, *args, **kwargs)
        return self.send(session, call)

    def send(self, session: ActorSession, call: Call, timeout_s: float = 10.0) -> Any:
        """Send a call to an exactly-once actor, for the first time or again; its value, or its error."""
        self.run_actions()
        try:
            return call.sent_to(self.calls_of(session), timeout_s)
        finally:
            if session.exactly_once is not None and session.exactly_once.dead is None:
                self.run_actions()

    def calls_of(self, session: ActorSession) -> ExactlyOnceCalls:
        """Return what runs the calls of an exactly-once session."""
        from .serving import ExactlyOnceCalls

        if self._calls is None:
            self._calls = ExactlyOnceCalls(session)
        return self._calls


class InlineBackground:
    """Runs what a session does in the background at once, on the thread that asks."""

    def __init__(self, name: str, on_timer: object, on_error: object) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._busy = False

    def submit(self, job: Callable[[], None]) -> None:
        """Run `job` now, or after the one that is running."""
        self._jobs.append(job)
        if self._busy:
            return
        self._busy = True
        try:
            while self._jobs:
                self._jobs.popleft()()
        finally:
            self._busy = False

    def set_timer(self, deadline_s: float | None) -> None:
        """There is no time here."""

    @staticmethod
    def cpu_s() -> float:
        """Nor does saving take any: no save waits."""
        return 0.0

    def stop(self, timeout_s: float) -> bool:
        """Nothing is left to do."""
        return True


def crash(session: ActorSession) -> None:
    """End a session as if its process had died: nothing is saved or told, the store stays as it is."""
    from . import actor

    actor.sessions.pop(id(session.instance), None)
    if session.exactly_once is not None:
        session.exactly_once.abandon()


def __getattr__(name: str) -> object:
    import importlib

    if name in _ELSEWHERE:
        return getattr(importlib.import_module(f"{__package__}.{_ELSEWHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
