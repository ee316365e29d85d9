"""Who calls: identities of the calls that a process of a Ray program makes to exactly-once actors.

A *flow* is one execution of a driver, a task or a method. Its calls to one callee are numbered from 1, and
the CallID of each is made of the flow's own CallID, the callee's key and that number
(docs/exactly-once.md). The flow's own CallID is

* of a driver's main thread: its root, made of the cluster's id and the job, or of its job key;
* of a task or method of Ray: made of its TaskID, which it keeps when Ray retries it, and not when what
  submitted it is itself executed again;
* of what ftray carries (`carry`, `carried`), and of methods of exactly-once actors: attempt-free, as the
  protocol wants it.

Owns: the flows of this process, and which of their calls have been answered, which Ray knows by the tasks
that are pending. Invariants: two calls of a flow never have one number; a flow that is forgotten is not begun
again from 1, but refused; what a call acknowledges has its outcome.
Leaves to others: sending (host_handle), telling callees of answers when no call follows (host_acks).
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from hashlib import blake2b
from itertools import islice
from typing import Any

from ftray._core.identity import call_id
from ftray._core.records import decode_head, encode_head
from ftray.checkpoint.errors import CallError
from ftray.checkpoint.values import value_caller

ROOT_DRIVER, ROOT_JOB, ROOT_PROCESS = 0, 1, 2
NOBODY = bytes(16)
MOST_FLOWS = 10_000
IDLE_S = 3600.0
_POLL_S = 0.005
_DRIVER = 0  # ray.SCRIPT_MODE


def hashed(*parts: bytes) -> bytes:
    """Return 16 bytes made of `parts`."""
    digest = blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(4, "little") + part)
    return digest.digest()


class Callee:
    """What one flow has called at one callee: how many calls, and which of them may still be unanswered."""

    __slots__ = (
        "acked",
        "actor",
        "base",
        "handle",
        "history",
        "lock",
        "look_s",
        "n",
        "pending",
        "plain",
        "told",
    )

    def __init__(self) -> None:
        self.lock = threading.Lock()  # the numbers and what is pending change together
        self.n = 0
        self.actor = b""  # the last calls went to; several may have had the key, one after the other
        self.base = 1  # the first of them
        self.acked = 1  # all calls below have their outcome
        self.told = 1  # what the callee was told of that
        self.history = 0
        self.pending: deque[tuple[int, Any, Any]] = deque()  # number, TaskID, TaskID of its parent
        self.look_s = 0.0
        self.handle: Any = None  # how to tell the callee of answers, while something is pending
        self.plain: Any = None  # how to tell it that a method is over

    def goes_to(self, actor: bytes) -> None:
        """The next call goes to that actor, which those before may not come to. With the lock."""
        if actor != self.actor:
            if self.actor:
                self.base = self.n + 1
            self.actor = actor

    def look(self, core_worker: Any, at_least_s: float = _POLL_S) -> int:
        """Return `acked` as of now, or as of the last look if that was just before. With the lock."""
        now_s = time.monotonic()
        if self.pending and now_s >= self.look_s:
            parents = {parent for _, _, parent in self.pending}
            open_calls: set[Any] = set()
            for parent in parents:
                open_calls.update(core_worker.get_pending_children_task_ids(parent))
            self.pending = deque(call for call in self.pending if call[1] in open_calls)
            took_s = time.monotonic() - now_s
            self.look_s = now_s + max(at_least_s, 20 * took_s)
        self.acked = self.pending[0][0] if self.pending else self.n + 1
        return self.acked


class Flow:
    """One execution of a caller.

    Parameters
    ----------
    parent : bytes
        Its CallID.
    root_kind, root : int, bytes
        Whose work it is.
    attempts : tuple of int
        One for each caller from the root down, its own last; empty for a driver.
    chain : tuple of bytes
        Keys of the exactly-once actors whose methods it is part of.
    keeps : bool
        A method of an exactly-once actor: it acknowledges nothing, since it may ask for it again.
    """

    __slots__ = ("attempts", "callees", "carried", "chain", "keeps", "parent", "root", "root_kind", "used_s")

    def __init__(
        self,
        parent: bytes,
        root_kind: int,
        root: bytes,
        attempts: tuple[int, ...] = (),
        chain: tuple[bytes, ...] = (),
        keeps: bool = False,
    ) -> None:
        self.parent, self.root_kind, self.root = parent, root_kind, root
        self.attempts, self.chain, self.keeps = attempts, chain, keeps
        self.callees: dict[bytes, Callee] = {}
        self.carried: dict[bytes, int] = {}  # tasks and plain actors that it has called, by their key
        self.used_s = time.monotonic()

    def callee(self, key: bytes) -> Callee:
        """Return what this flow has called there."""
        found = self.callees.get(key)
        if found is None:
            found = self.callees[key] = Callee()
        return found

    def head(self, key: bytes, callee: Callee, acked: int, reads: bool) -> bytes:
        """Return the head of the next call to `key`; one that only reads leaves its number to the next."""
        n = callee.n + 1
        if not reads:
            callee.n = n
        return self._head(key, n, acked=0 if self.keeps else acked, history=callee.history)

    def carry(self, key: bytes) -> bytes:
        """Return who the next task or plain actor's method of `key` is."""
        n = self.carried[key] = self.carried.get(key, 0) + 1
        return self._head(key, n)

    def _head(self, key: bytes, n: int, acked: int = 0, history: int = 0) -> bytes:
        return encode_head(
            root_kind=self.root_kind,
            root=self.root,
            parent=self.parent,
            call_id=call_id(self.parent, key, n, 0),
            n=n,
            acked=acked,
            history=history,
            attempts=self.attempts,
            chain=self.chain,
        )

    def settled(self) -> bool:
        """Whether nothing of it is under way."""
        return not any(callee.pending or callee.handle is not None for callee in self.callees.values())


def task_head(key: bytes, task_id: bytes) -> bytes:
    """Return the head of a call by plain Ray, known by the TaskID that it keeps over the actor's crashes."""
    return encode_head(
        root_kind=ROOT_JOB,
        root=NOBODY,
        parent=NOBODY,
        call_id=call_id(hashed(b"ray task", task_id), key, 0, 0),
        n=0,
        keyed=True,
    )


# -- the flows of this process

current: ContextVar[Flow | None] = ContextVar("ftray.ray.flow", default=None)
_lock = threading.Lock()
_flows: OrderedDict[bytes, Flow] = OrderedDict()
_gone: set[bytes] = set()
_nonce = os.urandom(16)
_job_root: bytes | None = None
_run: tuple[int, ...] = ()
"""Of a driver with a job key: when this run of it began, Unix seconds and nanoseconds."""
_session: object = None


def set_job_key(text: str | None) -> None:
    """Have the driver's own calls be those of job `text`, also when the driver is run again."""
    global _job_root, _run
    if text is not None and (not isinstance(text, str) or not text):
        raise ValueError(f"a job key is a text that is not empty, not {text!r}")
    _job_root = None if text is None else hashed(b"job key", text.encode())
    _run = divmod(time.time_ns(), 1_000_000_000)


def flow(worker: Any) -> Flow:
    """Return the flow that the present code is part of. `worker`: Ray's global worker, connected."""
    found = current.get()
    return found if found is not None else _of_ray(worker)


def _of_ray(worker: Any) -> Flow:
    task_id = worker.core_worker.get_current_task_id().binary()
    with _lock:
        _begin_session(worker)
        found = _flows.get(task_id)
        if found is None:
            if task_id in _gone:
                raise CallError(
                    "this task or method has called exactly-once actors more than an hour ago, and its "
                    f"process has run more than {MOST_FLOWS} others since: how far its calls were numbered "
                    "is not known any more. Give the call a call_key, or make it in a task of its own"
                )
            found = _flows[task_id] = _new_flow(worker, task_id)
            _forget_some()
        _flows.move_to_end(task_id)
        found.used_s = time.monotonic()
        return found


def _begin_session(worker: Any) -> None:
    """Flows of an earlier connection to Ray are over."""
    global _session
    if _session is not worker.core_worker:
        _session = worker.core_worker
        _flows.clear()
        _gone.clear()


def _forget_some() -> None:
    for task_id, old in list(islice(_flows.items(), max(0, min(len(_flows) - MOST_FLOWS, 8)))):
        if time.monotonic() - old.used_s < IDLE_S:
            return
        if old.settled():
            del _flows[task_id]
            _gone.add(task_id)


def _new_flow(worker: Any, task_id: bytes) -> Flow:
    cluster, job = worker.current_cluster_and_job
    root = hashed(b"ray job", cluster.binary(), job.binary())
    if worker.mode == _DRIVER:
        if threading.current_thread() is not threading.main_thread():
            own = hashed(b"ray thread", _nonce, task_id)
            return Flow(own, ROOT_PROCESS, own)  # a root, which forgets what it has acknowledged
        if _job_root is not None:
            return Flow(_job_root, ROOT_JOB, _job_root, _run)
        return Flow(root, ROOT_DRIVER, root)
    attempt = worker.core_worker.get_current_task_attempt_number()
    return Flow(hashed(b"ray task", root, task_id), ROOT_DRIVER, root, (int(attempt),))


def of_method(head: bytes, own_key: bytes, epoch: int) -> Flow:
    """Return the flow of a method of an exactly-once actor that runs the call of `head`.

    `epoch`: 0, or that of the incarnation if an earlier one had begun the call.
    """
    h = decode_head(head)
    return Flow(h.call_id, h.root_kind, h.root, (*h.attempts, epoch), (*h.chain, own_key), keeps=True)


def of_value(whole: Flow, index: int) -> Flow:
    """Return the flow of what makes the outside value number `index` of a method.

    Its calls are numbered apart: when the method runs again, values that are known are not made again.
    """
    parent = value_caller(whole.parent, index)
    return Flow(parent, whole.root_kind, whole.root, whole.attempts, whole.chain, keeps=True)


@contextmanager
def entered(own: Flow) -> Iterator[Flow]:
    """Have what runs inside be part of `own`."""
    token = current.set(own)
    try:
        yield own
    finally:
        current.reset(token)


# -- identities that ftray carries through tasks and plain actors


@contextmanager
def carry(worker: Any, key: bytes) -> Iterator[bytes]:
    """Give, as bytes to go along with it, who a task or method of a plain actor is that is submitted inside.

    One that cannot be submitted is nobody: a caller that runs again may be told so without trying.

    Parameters
    ----------
    worker : object
        Ray's global worker, connected.
    key : bytes
        16 bytes that name the function, or the actor.
    """
    own = flow(worker)
    data = own.carry(key)
    n = own.carried[key]
    try:
        yield data
    except BaseException:
        if own.carried[key] == n:
            own.carried[key] = n - 1
        raise


def handed_on(worker: Any, actor: Any) -> AbstractContextManager[bytes | None]:
    """Give what goes along with a call to a plain actor, None if Ray's TaskID says as much.

    A driver is not executed again, unless it has a job key, and is part of no method.
    """
    if not worker.connected:
        return nullcontext()
    if worker.mode == _DRIVER and _job_root is None:
        return nullcontext()
    return carry(worker, hashed(b"actor", actor.binary()))


def carried(data: bytes, attempt: int) -> Flow:
    """Return the flow of a task or method that came with `data`, in its attempt number `attempt` (from 0)."""
    h = decode_head(data)
    return Flow(h.call_id, h.root_kind, h.root, (*h.attempts, attempt), h.chain)


@contextmanager
def resumed(worker: Any, data: bytes | None) -> Iterator[None]:
    """Have what runs inside be the task or method that came with `data`; None: what Ray says that it is."""
    if data is None:
        yield
        return
    with entered(carried(data, int(worker.core_worker.get_current_task_attempt_number()))):
        yield
