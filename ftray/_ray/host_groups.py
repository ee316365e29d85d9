"""Members of groups (`ftray.checkpoint.group`) on Ray: whose calls begin while a cut is taken.

An exactly-once actor's calls come as coroutines: those that have to wait do so before they are entered. In
snapshot mode Ray has one thread that runs an actor's methods, and a call that waits keeps it. Therefore the
steps of a cut, and the calls of members to members, come in concurrency groups of Ray's of their own
(`LANES`), each with a thread; one method runs at a time all the same.

Owns: what is on hold, and which calls of this process to members have no answer. Invariants: a call that
waits is looked at again whenever others may begin, in the order in which they came; calls of one process to
one actor keep their order: one takes another lane only when none is under way beside it.
Leaves to others: the steps of a cut (`ftray.checkpoint.members`).
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from ftray._ray.host import worker
from ftray._ray.host_class import CALLER, MEMBERS
from ftray.checkpoint.errors import FencedError

_LOOK_EVERY = 1000
_FOLLOW_EVERY_S = 0.1
_RAYS_NAMES = {
    "concurrency_group_name": "concurrency_group",
    "generator_backpressure_num_objects": "_generator_backpressure_num_objects",
    "labels": "_labels",
    "num_objects_per_yield": "_num_objects_per_yield",
}
_PASSED_ON = (
    "name",
    "num_returns",
    "max_task_retries",
    "retry_exceptions",
    "enable_task_events",
    "tensor_transport",
)

serving: LanePort | None = None
"""Of the actor in snapshot mode that this process is; it may be in a group."""


Caller = tuple[bytes, str, int, int | None]
"""Of a call out of a member: its process as Ray calls it, its group, and its process as the machine does."""


class RayGroupPort:
    """See `ftray.checkpoint.members.GroupPort`.

    Parameters
    ----------
    own : bytes
        What calls of this member to others say of their caller.
    max_restarts : int
    unanswered : callable
        See `GroupPort.unanswered`.
    """

    def __init__(self, own: bytes, max_restarts: int, unanswered: Callable[[Sequence[bytes]], int]) -> None:
        self.own = own
        self.actors: frozenset[bytes] = frozenset()
        self._about = {"worker": own, "actor": worker().actor_id.binary(), "max_restarts": max_restarts}
        self._unanswered = unanswered
        self._lock = threading.Lock()
        self._let: frozenset[bytes] | None = None
        self._begun = 0
        self._waiting: list[Callable[[], None]] = []
        self._asked_by: tuple[int, int | None] | None = None
        self._follows = False

    def asked(self, what: str, fields: Mapping[str, Any]) -> None:
        """A step has come; Ray does not tell of which process, so that says itself who it is."""
        if what == "hold":
            self._asked_by = fields.get("by")

    def describe(self) -> dict[str, Any]:
        """See `GroupPort.describe`."""
        return dict(self._about)

    def meet(self, actors: Sequence[bytes]) -> None:
        """See `GroupPort.meet`."""
        self.actors = frozenset(actors)

    def hold(self, workers: Sequence[bytes]) -> None:
        """See `GroupPort.hold`."""
        self.apply(lambda: self._change(frozenset(workers)))
        with self._lock:
            begin = self._asked_by is not None and not self._follows
            self._follows = self._follows or begin
        if begin:
            threading.Thread(target=self._follow, name="ftray hold", daemon=True).start()

    def _follow(self) -> None:
        """Nobody is held for whoever has died."""
        from ftray.checkpoint.holders import start_ticks

        while True:
            with self._lock:
                if self._let is None or self._asked_by is None:
                    self._follows = False
                    return
                pid, ticks = self._asked_by
            if start_ticks(pid) != ticks:
                self.release()
            time.sleep(_FOLLOW_EVERY_S)

    def release(self) -> None:
        """See `GroupPort.release`."""
        self.apply(lambda: self._change(None))

    def apply(self, change: Callable[[], None]) -> None:
        """Run `change` where calls come, so that none comes in the middle of it."""
        change()

    def _change(self, let: frozenset[bytes] | None) -> None:
        with self._lock:
            if self._let is None:
                self._begun = 0
            self._let = let
            waiting, self._waiting = self._waiting, []
        for look_again in waiting:
            look_again()

    def begun(self) -> int | None:
        """See `GroupPort.begun`."""
        return None if self._let is None else self._begun

    def unanswered(self, actors: Sequence[bytes]) -> int:
        """See `GroupPort.unanswered`."""
        return self._unanswered(actors)

    def settle_deaths(self, timeout_s: float) -> None:
        """See `GroupPort.settle_deaths`: here calls say whose they are, and are looked at one by one."""

    def end(self, claim: Mapping[str, Any]) -> None:
        """See `GroupPort.end`."""
        from ftray.checkpoint.generations import end_process

        end_process(claim)

    def begins(self, callers: Sequence[bytes], look_again: Callable[[], None]) -> bool:
        """Whether a call on whose way these callers are begins now; else `look_again` is called, once."""
        if self.begun() is None:
            return True
        with self._lock:
            if self._let is None:
                return True
            if self._let.isdisjoint(callers):
                self._waiting.append(look_again)
                return False
            self._begun += 1
            return True


class LanePort(RayGroupPort):
    """Of an actor in snapshot mode: its calls wait on the threads that Ray has for them."""

    def __init__(self, max_restarts: int) -> None:
        from ftray.checkpoint.holders import start_ticks

        super().__init__(worker().worker_id, max_restarts, self._count)
        self.group: Callable[[], str] = str
        """Returns the name of the group that the actor is in, "" if it is in none."""
        self._process = os.getpid(), start_ticks(os.getpid())
        self._sent: dict[bytes, _Sent] = {}
        self._steps = 0
        self._no_steps = threading.Event()
        self._no_steps.set()

    def is_open(self) -> bool:
        """Whether every call may begin, and no step waits; certain with the turn."""
        return self._let is None and not self._steps

    def stamp(self, group: str) -> Caller:
        """Return what a call to another member says of its caller."""
        return (self.own, group, *self._process)

    def _check(self, caller: Caller) -> None:
        """A member that has died took its group back: what it had sent is of a past that was given up."""
        from ftray.checkpoint.holders import start_ticks

        _, group, pid, ticks = caller
        if group == self.group() and start_ticks(pid) != ticks:
            raise FencedError(f"process {pid} has ended, and group {group!r} goes back: its call is not run")

    @contextmanager
    def turn(self, turn: Any, caller: Caller | None) -> Iterator[None]:
        """Have the turn when the call of that process may begin, behind steps that wait for it."""
        callers = () if caller is None else caller[:1]
        while True:
            self._no_steps.wait()
            woken = threading.Event()
            with turn:
                if self.begins(callers, woken.set):
                    if caller is not None:
                        self._check(caller)
                    yield
                    return
            woken.wait()

    @contextmanager
    def step(self, turn: Any) -> Iterator[None]:
        """Have the turn for a step, before calls that wait for it."""
        with self._lock:
            self._steps += 1
            self._no_steps.clear()
        try:
            with turn:
                yield
        finally:
            with self._lock:
                self._steps -= 1
                if not self._steps:
                    self._no_steps.set()

    def sent_to(self, actor: bytes) -> _Sent:
        """Return what this process has under way at an actor."""
        with self._lock:
            return self._sent.setdefault(actor, _Sent())

    def _count(self, actors: Sequence[bytes]) -> int:
        with self._lock:
            known = [self._sent[actor] for actor in actors if actor in self._sent]
        return sum(sent.under_way() for sent in known)


class _Sent:
    """Calls of this process to one actor that may have no answer yet."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._calls: deque[tuple[Any, Any, str]] = deque()  # TaskID, TaskID of its parent, lane
        self._look_at = _LOOK_EVERY

    def under_way(self) -> int:
        """Look how many there are."""
        with self.lock:
            self._look()
            return len(self._calls)

    def _look(self) -> None:
        core_worker, open_calls = worker().core_worker, set()
        for parent in {parent for _, parent, _ in self._calls}:
            open_calls.update(core_worker.get_pending_children_task_ids(parent))
        self._calls = deque(call for call in self._calls if call[0] in open_calls)
        self._look_at = max(_LOOK_EVERY, 2 * len(self._calls))

    def lane(self, wanted: str) -> str:
        """Return the lane of the next call: that of those under way, if there are any. With the lock."""
        if self._calls and self._calls[-1][2] != wanted:
            self._look()
        return self._calls[-1][2] if self._calls else wanted

    def add(self, refs: Any, lane: str) -> None:
        """A call was sent. With the lock."""
        first = refs[0] if isinstance(refs, list) else refs
        task_id = getattr(first, "task_id", None)
        if task_id is None:  # a stream, or nothing to wait for
            return
        self._calls.append((task_id(), worker().core_worker.get_current_task_id(), lane))
        if len(self._calls) > self._look_at:
            self._look()


def send(known: dict[str, Any], invocation: Callable[..., Any], method: str, args: Any, kwargs: Any) -> Any:
    """Send a call out of an actor in snapshot mode.

    Parameters
    ----------
    known : dict
        What Ray's `invocation` refers to.
    """
    handle = getattr(known.get("self"), "_actor", None)
    if serving is None or handle is None:
        return invocation(args, kwargs)
    actor = handle._actor_id.binary()
    sent, group = serving.sent_to(actor), serving.group()
    named = {**(kwargs or {}), CALLER: serving.stamp(group)} if group else kwargs
    with sent.lock:
        given = known["concurrency_group"] or ""
        lane = sent.lane(MEMBERS if actor in serving.actors and not given else given)
        if lane == MEMBERS and not given:
            options = {name: known[name] for name in _PASSED_ON}
            options |= {theirs: known[name] for theirs, name in _RAYS_NAMES.items()}
            options |= {"concurrency_group_name": MEMBERS}
            refs = handle._actor_method_call(method, args=args or [], kwargs=named or {}, **options)
        else:
            lane = given
            refs = invocation(args, named)
        sent.add(refs, lane)
    return refs
