"""Ray's `Host` for the toolkit: who an actor of Ray is, how to get between its methods, how it ends.

`SnapshotActor` runs the methods of an actor in snapshot mode; those of exactly-once actors are run by
`host_calls`. Ray's own actor object is a shell (`host_class`) that has one of these.

On Ray nobody but Ray itself can put work on a serial actor's thread. What has to run between two methods is
run by the thread that has just run one or, when the actor is idle, by a thread of ours that holds the turn
meanwhile. Invariant: no method of a serial actor runs while an action does.
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import sys
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import ray

from ftray._ray import host_served
from ftray.checkpoint.engine import OUT_OF_SCOPE
from ftray.checkpoint.host import NOT_NOW, ActorIdentity, Incident, ProcessHost
from ftray.checkpoint.keys import EPHEMERAL_PREFIX

if TYPE_CHECKING:
    from ftray._ray.host_groups import Caller, RayGroupPort

_SETTLES_S = 2.0
_BACKOFF_S, _LONGEST_BACKOFF_S = 0.02, 1.0
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")


def worker() -> Any:
    """Return Ray's global worker, which is connected."""
    found = ray._private.worker.global_worker
    found.check_connected()
    return found


def durable_namespace(namespace: str) -> str:
    """Return the namespace if the user gave one, else "": what outlives the job is found under this.

    Ray makes up a UUID for jobs without a namespace, another one in each run.
    """
    return "" if _UUID.match(namespace) else namespace


def actor_info() -> dict[str, Any]:
    """Return what Ray's control service says of this actor."""
    from ray._private.state import actors

    own = ray._private.worker.global_worker.actor_id
    found: dict[str, Any] = actors(actor_id=own.hex()) or {}
    return found


def gone_for_good(info: dict[str, Any]) -> bool:
    """Whether nobody can reach the actor any more."""
    cause = info.get("DeathCause")
    context = getattr(cause, "actor_died_error_context", None)
    reason = getattr(context, "reason", None)
    return info.get("State") == "DEAD" and reason is not None and reason == _out_of_scope(context)


def _out_of_scope(context: Any) -> int:
    return int(type(context).Reason.Value("OUT_OF_SCOPE"))


def identity_of(spec: dict[str, Any], cls: type) -> ActorIdentity:
    """Return who the actor is, from what was written down when it was made, or else from Ray."""
    if spec:
        return ActorIdentity(spec["namespace"], spec["name"], spec["unique_id"], cls.__name__)
    context = ray.get_runtime_context()
    name = context.get_actor_name() or ""
    namespace = durable_namespace(context.namespace) if name else ""
    cluster = worker().current_cluster_and_job[0].hex()
    return ActorIdentity(namespace, name, f"{cluster}-{context.get_actor_id()}", cls.__name__)


class RayHost(ProcessHost):
    """See `ftray.checkpoint.host.Host`."""

    def __init__(self, identity: ActorIdentity, *, max_concurrency: int, is_async: bool) -> None:
        info = actor_info()
        self.identity = identity
        self.incarnation = int(info.get("NumRestarts", 0)) + 1
        self.is_reconstructed = self.incarnation > 1
        self.max_concurrency, self.is_async = max_concurrency, is_async
        self.turn: Any = threading.Lock()
        self.actions: deque[Callable[[], None]] = deque()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self.post: Callable[[Callable[[], None]], None] = self._post_idle
        self.port: RayGroupPort | None = None

    def group_port(self) -> RayGroupPort:
        """See `ftray.checkpoint.members.GroupPort`."""
        assert self.port is not None
        return self.port

    def run_between_calls(self, action: Callable[[], None]) -> None:
        """See `Host.run_between_calls`."""
        self.post(action)

    def _post_idle(self, action: Callable[[], None]) -> None:
        self.actions.append(action)
        if self._thread is None:
            self._thread = threading.Thread(target=self._idle, name="ftray idle", daemon=True)
            self._thread.start()
        self._wake.set()

    def _idle(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            with self.turn:
                self.run_actions()

    def run_actions(self) -> None:
        """Run what waits for a gap between methods; with the turn."""
        while self.actions:
            try:
                action = self.actions.popleft()
            except IndexError:
                return
            try:
                action()
            except Exception as error:
                self.report_incident(Incident("save_failed", f"between two methods: {error!r}", error))

    @property
    def hash_seed(self) -> str:
        """See `Host.hash_seed`: known where the user has set it."""
        return os.environ.get("PYTHONHASHSEED", "")

    def restart_with_hash_seed(self, seed: str) -> None:
        """See `Host.restart_with_hash_seed`: a worker of Ray cannot be had with another one from inside."""

    def has_served(self) -> bool:
        """See `Host.has_served`."""
        return host_served.noted(worker().actor_id.binary())

    @contextmanager
    def restoring(self, max_restarts: int) -> Iterator[None]:
        """Around `engine.open`: where another process is to try what has failed, end this one.

        Ray restarts an actor whose process dies in the constructor, as often as `max_restarts` allows, and at
        once; a constructor that raises ends the actor.
        """
        from ftray.checkpoint.parking import may_pass

        try:
            yield
        except Exception as error:
            left = max_restarts < 0 or self.incarnation <= max_restarts
            if not left or not may_pass(error, self.incarnation == 1):
                raise
            what = f"{self.identity.class_name} cannot be restored now, and is started again"
            print(f"{what}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            time.sleep(min(_LONGEST_BACKOFF_S, _BACKOFF_S * 2 ** min(self.incarnation, 16)))
            os._exit(NOT_NOW)

    def fenced(self, error: BaseException) -> None:
        """See `Host.fenced`. A successor of the same actor is none of ours to end."""
        print(f"{self.identity.class_name} ends because of {error}", file=sys.stderr, flush=True)
        try:
            if int(actor_info().get("NumRestarts", 0)) + 1 == self.incarnation:
                worker().core_worker.kill_actor(worker().actor_id, True)
        finally:
            os._exit(1)


class SnapshotActor:
    """One incarnation of an actor in snapshot mode."""

    def __init__(
        self, cls: type, spec: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any], is_async: bool
    ) -> None:
        from ftray._ray import host_groups
        from ftray._ray.host_class import is_grouped, methods_of
        from ftray.checkpoint import engine, faults

        faults.arm_from_environment()
        self.instance: Any = cls(*args, **kwargs)
        concurrency = worker().core_worker.current_actor_max_concurrency()
        grouped = any(map(is_grouped, methods_of(cls).values()))
        self.host = RayHost(
            identity_of(spec, cls),
            max_concurrency=concurrency + int(grouped),
            is_async=is_async,
        )
        if is_async:
            loop = asyncio.get_running_loop()
            self.host.post = loop.call_soon_threadsafe  # type: ignore[assignment]
        if is_async or concurrency > 1 or grouped:
            self.host.turn = _NoTurn()  # the toolkit itself counts which methods run
        max_restarts = int(spec.get("max_restarts") or 0)
        self.port = self.host.port = host_groups.LanePort(max_restarts)
        host_groups.serving = self.port
        with self.host.restoring(max_restarts):
            self.session = engine.open(self.instance, self.host, spec.get("checkpoint"))
        host_served.note(worker().actor_id.binary())
        self.port.group = lambda: "" if self.session.member is None else self.session.member.name

    def find(self, name: str) -> Callable[..., Any]:
        """Return a method."""
        if name == "__ray_call__":
            return functools.partial(_call_with, self.instance)
        found = self.session.entry_points.get(name)
        method: Callable[..., Any] = found if found is not None else getattr(self.instance, name)
        return method

    def run(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], caller: Caller | None = None
    ) -> Any:
        """Run a method on Ray's thread for it. `caller`: the process whose call it is, from members only."""
        turn = self.host.turn
        if caller is None and self.port.is_open():  # nearly always
            with turn:
                if self.port.is_open():
                    return self._run(name, args, kwargs)
        with self.port.turn(turn, caller):
            return self._run(name, args, kwargs)

    def _run(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.session.before_call(name)
        try:
            return self.find(name)(*args, **kwargs)
        finally:
            self._ran(name)

    async def run_async(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an async method on the actor's loop."""
        self.session.before_call(name)
        try:
            result = self.find(name)(*args, **kwargs)
            return await result if hasattr(type(result), "__await__") else result
        finally:
            self._ran(name)

    def step(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run a step of a cut, on a thread of its own, while no method runs."""
        with self.port.step(self.host.turn):
            self.port.asked(*args)
            return self.find(name)(*args, **kwargs)

    def stream(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], caller: Caller | None = None
    ) -> Iterator[Any]:
        """Run a generator method; it is one method from its first item to its end."""
        with self.port.turn(self.host.turn, caller):
            self.session.before_call(name)
            try:
                yield from self.find(name)(*args, **kwargs)
            finally:
                self._ran(name)

    async def stream_async(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> AsyncIterator[Any]:
        """Run an async generator method."""
        self.session.before_call(name)
        try:
            async for item in self.find(name)(*args, **kwargs):
                yield item
        finally:
            self._ran(name)

    def _ran(self, name: str) -> None:
        self.session.after_call(name)
        if self.host.actions:
            self.host.run_actions()

    def close(self, reason: str) -> None:
        """A planned end, on whatever thread Ray has for it."""
        if reason == OUT_OF_SCOPE:
            host_served.forget(worker().actor_id.binary())
        with self.host.turn:
            self.session.close(True, reason)


def _call_with(instance: Any, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    return function(instance, *args, **kwargs)


class _NoTurn:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc_info: object) -> None:
        pass


def closing_reason(key: str) -> str:
    """Return why Ray ends this actor, as the toolkit calls it.

    Whether nobody can reach it matters for keys that go with their actor. Ray may tell the process before it
    has written that down, so we look for a while.
    """
    ends = "Ray ends the actor"
    if not key.startswith(EPHEMERAL_PREFIX):
        return ends
    deadline_s = time.monotonic() + _SETTLES_S
    try:
        while (info := actor_info()).get("State") != "DEAD" and time.monotonic() < deadline_s:
            time.sleep(0.05)
        return OUT_OF_SCOPE if gone_for_good(info) else ends
    except Exception as error:  # Ray is half gone
        print(f"checkpoint key {key!r} stays: Ray does not answer: {error}", file=sys.stderr, flush=True)
        return ends
