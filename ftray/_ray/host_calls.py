"""Exactly-once actors on Ray: from a call that Ray brings to the answer that Ray takes away.

A synchronous method's reply is, to Ray, its return, so holding it back would stop the actor. The actor is
therefore an async one for Ray, whose coroutines wait for the journal, while the bodies of its methods run one
after the other: those of a class without async methods on one thread of their own, else on the actor's loop.

Owns: this process's `DurableActor` (`serving`), and the thread of bodies. Invariants: a call begins after
those that its caller made before (`host_order`); nothing is answered but what the toolkit's
`ExactlyOnceCalls` gives; a process that can answer nothing more ends, and answers nothing.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from types import FunctionType
from typing import Any

import ray

from ftray._core import the_guard
from ftray._core.callargs import serialize_args
from ftray._core.guards import set_guard
from ftray._core.identity import call_id
from ftray._core.records import Head, decode_head, encode_head
from ftray._outside import Outside
from ftray._ray import host_acks, host_flow, host_handle, host_served, host_waits
from ftray._ray.host import RayHost, identity_of, worker
from ftray._ray.host_class import STEPS_METHOD
from ftray._ray.host_codec import RayCodec
from ftray._ray.host_groups import RayGroupPort
from ftray._ray.host_order import Order
from ftray._ray.refs import RayObjectRef
from ftray.checkpoint import engine, faults
from ftray.checkpoint.codec import Arguments
from ftray.checkpoint.drive import drive
from ftray.checkpoint.errors import FencedError, NoSessionError, ReplayDivergedError
from ftray.checkpoint.exactly_once import ExactlyOnce
from ftray.checkpoint.host import Incident
from ftray.checkpoint.outcomes import OUTCOME_METHOD
from ftray.checkpoint.serving import Answer, ExactlyOnceCalls
from ftray.checkpoint.session import ActorSession
from ftray.checkpoint.values import CALL_ID, Execution

FOREVER_S = 30 * 86400.0
ORDER_WAIT_S = 60.0
"""How long a call waits for one before it that does not come, and of which its caller says nothing."""
_ERROR, _RETRY = 1, 4
_NO_VALUES = b"\0\0"
_APART = (STEPS_METHOD, OUTCOME_METHOD)
"""Methods whose calls are not in the order of their caller's, and which a cut does not hold back."""

serving: DurableActor | None = None
"""The exactly-once actor that this process is."""
_recording: ContextVar[bool] = ContextVar("ftray.ray.recording", default=False)
_committed: ContextVar[bool] = ContextVar("ftray.ray.committed", default=False)
_cancelled: ContextVar[threading.Event | None] = ContextVar("ftray.ray.cancelled", default=None)
"""Of the call that runs: whether its caller has cancelled it."""


class _Outside(Outside):
    """The guard of what goes through ftray's own API, where the program runs with ``init(engine="ray")``."""

    @contextmanager
    def sending(self) -> Iterator[None]:
        """What `sends` was asked for leaves inside, and is not asked again."""
        token = _committed.set(True)
        try:
            yield
        finally:
            _committed.reset(token)

    def is_cancelled(self, asked: Callable[[], bool]) -> bool:
        """See `Outside.is_cancelled`; Ray, for which the actor is async, refuses to say it."""
        return asked() if self._once.host.is_async else super().is_cancelled(_is_cancelled)

    def exits(self) -> bool:
        """See `Outside.exits`."""
        return serving is None and super().exits()

    def patient_get(
        self, attempt: Callable[[float | None], Any], refs: list[Any], timeout: float | None
    ) -> Any:
        """Wait for refs of Ray's own, see `host_waits.watch_gets`."""
        method = self._holding()
        if method is None or not all(isinstance(ref, ray.ObjectRef) for ref in refs):
            return attempt(timeout)
        wrapped = [RayObjectRef(ref) for ref in refs]
        return self._long.patient(attempt, lambda _: True, wrapped, timeout, method)


def _is_cancelled() -> bool:
    cancelled = _cancelled.get()
    return cancelled is not None and cancelled.is_set()


class DurablePort(RayGroupPort):
    """Of an exactly-once actor: its calls wait on the actor's loop."""

    def __init__(
        self, own: bytes, max_restarts: int, unanswered: Any, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(own, max_restarts, unanswered)
        self._loop = loop

    def apply(self, change: Callable[[], None]) -> None:
        """See `RayGroupPort.apply`."""
        done = threading.Event()

        def changed() -> None:
            change()
            done.set()

        self._loop.call_soon_threadsafe(changed)
        done.wait()


class Body:
    """The thread on which an actor's methods run one after the other."""

    def __init__(self, report: Callable[[Incident], None]) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._report = report
        self._ended: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._telling = False
        threading.Thread(target=self._run, name="ftray methods", daemon=True).start()

    def _run(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                job()
            except Exception as error:
                self._report(Incident("save_failed", f"between two methods: {error!r}", error))
            del job

    def post(self, job: Callable[[], None]) -> None:
        """Run `job` after what is there already."""
        self._jobs.put(job)

    async def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run what never waits; see `ExactlyOnceCalls`."""
        return await self.call(drive, coroutine)

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a function there, in the context of the caller."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = copy_context()

        def job() -> None:
            try:
                self._ended.append((future, context.run(function, *args), None))
            except BaseException as error:
                self._ended.append((future, None, error))
            if not self._telling:  # else the loop has been woken, and has not looked yet
                self._telling = True
                loop.call_soon_threadsafe(self._settle)

        self._jobs.put(job)
        return await future

    def _settle(self) -> None:
        """On the loop: tell what has ended since the last time."""
        self._telling = False
        while self._ended:
            future, result, error = self._ended.popleft()
            if future.done():
                continue
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)


async def open_actor(
    cls: type, spec: dict[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> DurableActor:
    """Make the user's object, restore it, and begin to serve."""
    global serving
    opened = DurableActor(cls, spec)
    await opened.open(args, kwargs)
    log = opened.session.log
    host_handle.publish_key(worker().actor_id.binary(), log.store.url, log.key)
    host_served.note(worker().actor_id.binary())
    serving = opened
    return opened


class DurableActor:
    """One incarnation of an exactly-once actor.

    Parameters
    ----------
    cls : type
        The user's class.
    spec : dict
        See `host_class.specification`.
    """

    instance: Any
    session: ActorSession
    once: ExactlyOnce
    calls: ExactlyOnceCalls

    def __init__(self, cls: type, spec: dict[str, Any]) -> None:
        from ftray._ray.host_class import methods_of, reads_of

        methods = methods_of(cls)
        faults.arm_from_environment()
        self.cls, self.spec = cls, spec
        self.codec = RayCodec(cls.__name__)
        self.reads = reads_of(cls)
        self.is_async = any(asyncio.iscoroutinefunction(f) for f in methods.values())
        self.host = RayHost(identity_of(spec, cls), max_concurrency=1, is_async=self.is_async)
        self.order = Order(self._recorded)
        self.exiting: BaseException | None = None
        self._made: dict[bytes, list[host_flow.Flow]] = {}
        self._found: dict[str, Callable[..., Any] | None] = {}
        self._body: Body | None = None
        at_once = spec.get("at_once")
        self._at_once = asyncio.Semaphore(at_once) if at_once else nullcontext()

    async def open(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Run the constructor, restore, and begin to serve."""
        self._loop = asyncio.get_running_loop()
        if self.is_async:
            self.host.post = self._loop.call_soon_threadsafe  # type: ignore[assignment]
            self.instance = self.cls(*args, **kwargs)
            with self._restoring():
                self.session = await engine.open_async(
                    self.instance,
                    self.host,
                    self.spec.get("checkpoint"),
                    codec=self.codec,
                    prepare=self._prepare,
                )
            self.calls = ExactlyOnceCalls(self.session)
            return
        # Methods block their own thread, not the loop: Ray's advice to await would be wrong.
        ray._private.worker.blocking_get_inside_async_warned = True
        self._body = Body(self.host.report_incident)
        self.host.post = self._body.post
        await self._body.call(self._open_here, args, kwargs)
        self.calls = ExactlyOnceCalls(self.session, run_on=self._body.run)

    def _open_here(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.instance = self.cls(*args, **kwargs)
        with self._restoring():
            self.session = engine.open(
                self.instance, self.host, self.spec.get("checkpoint"), codec=self.codec, prepare=self._prepare
            )

    def _restoring(self) -> AbstractContextManager[None]:
        return self.host.restoring(int(self.spec.get("max_restarts") or 0))

    def _prepare(self, once: ExactlyOnce) -> None:
        """Make an exactly-once session this engine's, before anything is replayed."""
        self.once = once
        self.port = self.host.port = DurablePort(
            once.callee_key, int(self.spec.get("max_restarts") or 0), host_acks.under_way, self._loop
        )
        once.find_method = self._find_method
        once.context = self._context
        once.producing = self._producing
        identity, here = self.host.identity, worker()
        host_waits.serve(
            here.actor_id.binary(),
            here.worker_id,
            identity.class_name,
            identity.name,
            self.host.is_reconstructed,
        )
        guard = _Outside(once)
        set_guard(guard)
        host_waits.watch_gets(guard.patient_get)
        _watch_exits()

    # -- a call comes

    async def run(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        sent: bytes | tuple[bytes, int] | None,
    ) -> Any:
        """Run one call, or find its reply, and return or raise that once it may leave."""
        head, base = sent if isinstance(sent, tuple) else (sent, 1)
        if name == STEPS_METHOD:
            self.port.asked(*args)
        if head is None or name in _APART:
            head = host_flow.task_head(self.once.callee_key, _task_id())
        body = _NO_VALUES + serialize_args(args, kwargs or None, [])
        cancelled = threading.Event()
        try:
            answer = await self._answer(head, base, name, body, (args, kwargs), cancelled)
        except asyncio.CancelledError:  # the method goes on, and may ask
            cancelled.set()
            raise
        except FencedError as error:
            self.once.crash(error)
            await self._end_with_the_process()
            raise
        except NoSessionError:
            await self._end_with_the_process()
            raise
        finally:
            flows = self._made.pop(head[CALL_ID], None)
        if flows:
            _release(flows)
        if self.exiting is not None:
            raise self.exiting
        value = self.codec.decode_reply(answer.status, answer.reply)
        if answer.status in (_ERROR, _RETRY):
            raise value
        return value

    async def _end_with_the_process(self) -> None:
        """Nobody shall take what a process says that ends: its successor answers."""
        if self.exiting is not None:
            raise self.exiting
        await asyncio.sleep(FOREVER_S)

    async def _answer(
        self,
        head: bytes,
        base: int,
        name: str,
        body: bytes,
        arguments: Arguments,
        cancelled: threading.Event,
    ) -> Answer:
        h = decode_head(head)
        begun: asyncio.Future[asyncio.Task[Answer]] = asyncio.get_running_loop().create_future()

        def begin() -> None:  # calls enter in the order in which the numbers let them go
            if not begun.done() and (name in _APART or self.port.begins(h.chain, begin)):
                token = _cancelled.set(cancelled)  # here may be the context of another call
                begun.set_result(self.calls.begin(head, name, body, FOREVER_S, arguments))
                _cancelled.reset(token)

        if h.keyed:
            begin()
            return await asyncio.shield(await begun)
        arrive = self.order.arrive_read if name in self.reads else self.order.arrive
        arrive(h.parent, h.n, max(h.acked, base), begin)
        if not begun.done():
            await self._wait_for_its_turn(begun, h, name)
        return await asyncio.shield(begun.result())

    async def _wait_for_its_turn(
        self, begun: asyncio.Future[asyncio.Task[Answer]], h: Head, name: str
    ) -> None:
        done, _ = await asyncio.wait([begun], timeout=ORDER_WAIT_S)
        if not done:
            self._out_of_order(h, name)
            await begun

    def _out_of_order(self, h: Head, name: str) -> None:
        missing = self.order.give_up(h.parent, h.n)
        self.host.report_incident(
            Incident(
                "order",
                f"call {h.n} of {name!r} of caller {h.parent.hex()} runs before call {missing} of that "
                f"caller, which has not come within {ORDER_WAIT_S:.0f} s",
            )
        )

    def _recorded(self, parent: bytes, n: int) -> bool:
        key = self.once.callee_key
        named = call_id(parent, key, n, 0)
        head = encode_head(root_kind=0, root=parent, parent=parent, call_id=named, n=n)
        return self.once.ledger.look(head)[0] in ("done", "accepted", "expired")

    def note(self, what: str, data: Any) -> int:
        """Take a note of a caller; returns the number of the present history.

        ``acknowledge``: a head, whose caller has all that it acknowledges there. ``release``: callers that
        can never run again.
        """
        if what == "acknowledge":
            h = decode_head(data)
            self.calls.acknowledged(data)
            self.order.acknowledged(h.parent, h.acked)
        else:
            self.once.release(list(data), [])
        return self.once.ledger.history

    # -- a method runs

    def _find_method(self, name: str) -> Callable[..., Any] | None:
        if name not in self._found:
            self._found[name] = self._ending(name)
        return self._found[name]

    def _ending(self, name: str) -> Callable[..., Any] | None:
        """Return the method; one that calls exit_actor() gives None, and the actor ends when that is kept."""
        if name == "__ray_call__":
            method: Any = self._run_closure
        else:
            method = getattr(self.instance, name, None)
        if method is None:
            return None

        def called(*args: Any, **kwargs: Any) -> Any:
            try:
                result = method(*args, **kwargs)
                return RayObjectRef(result) if type(result) is ray.ObjectRef else result  # and not awaited
            except ray.exceptions.AsyncioActorExit as error:
                self._exits(error)

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            try:
                async with self._at_once:
                    return await method(*args, **kwargs)
            except ray.exceptions.AsyncioActorExit as error:
                self._exits(error)

        return awaited if asyncio.iscoroutinefunction(method) else called

    def _run_closure(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        return function(self.instance, *args, **kwargs)

    def _exits(self, error: BaseException) -> None:
        if serving is not None:  # else recovery runs it again, see `Outside.exits`
            self.exiting = self.once.dead = error

    def _context(self, execution: object) -> AbstractContextManager[object]:
        return self._method(execution) if isinstance(execution, Execution) else nullcontext()

    @contextmanager
    def _method(self, execution: Execution) -> Iterator[None]:
        again = self.once.log.epoch if execution.started else 0
        flow = host_flow.of_method(execution.head, self.once.callee_key, again)
        try:
            with host_flow.entered(flow):
                yield
        finally:
            if flow.callees:
                self._made.setdefault(execution.call_id, []).append(flow)

    @contextmanager
    def _producing(self, execution: object) -> Iterator[None]:
        whole = host_flow.current.get()
        if whole is None or not isinstance(execution, Execution):
            yield
            return
        flow = host_flow.of_value(whole, execution.used)
        self._made.setdefault(execution.call_id, []).append(flow)
        token = _recording.set(True)
        try:
            with host_flow.entered(flow):
                yield
        finally:
            _recording.reset(token)

    def before_output(self, what: str) -> None:
        """A call to an exactly-once actor is about to leave, see `host_handle.commit_output`."""
        execution = self.once.locate()
        if not isinstance(execution, Execution):
            if self.once.journal is not None:
                self.once.wait(self.once.last_position)
            return
        if execution.replaying:
            raise ReplayDivergedError(
                f"{execution.method!r} is repeated for recovery and calls {what!r}, which it did not "
                "the first time"
            )
        if _committed.get():  # by ftray's own API, which journals what comes back
            return
        if not _recording.get():
            raise host_handle.UnrecordedCallError(
                f"{execution.method!r}, a method of an exactly-once actor that changes its state, calls "
                f"{what!r} of another one outside of self.record(): when it is repeated it could not be "
                f"given the same result. Use self.record(lambda: ray.get(handle.{what}.remote(...)))"
            )
        self.once.wait(execution.start(), in_method=True)

    # -- the end

    def close(self, reason: str) -> None:
        """A planned end, on whatever thread Ray has for it."""
        if reason == engine.OUT_OF_SCOPE:
            host_handle.forget_key(worker().actor_id.binary())
            host_served.forget(worker().actor_id.binary())
        if self._body is None:
            self.session.close(True, reason)
            return
        done = threading.Event()

        def closing() -> None:
            try:
                self.session.close(True, reason)
            finally:
                done.set()

        self._body.post(closing)
        done.wait(2 * engine_timeout_s())


def _watch_exits() -> None:
    """Have ``ray.actor.exit_actor`` end nothing but the method while recovery runs it again.

    The function itself is changed, since programs have it by names of their own (``from ray.actor import``).
    """
    ray.actor.exit_actor.__code__ = _exit_actor.__code__


def _exit_actor() -> None:
    """Its code runs in Ray's module."""
    import ftray._ray.host_calls

    ftray._ray.host_calls.exit_here()


_plain_exit = FunctionType(ray.actor.exit_actor.__code__, ray.actor.exit_actor.__globals__)


def exit_here() -> None:
    """End the actor, or the method that recovery runs again."""
    if the_guard().exits():
        raise ray.exceptions.AsyncioActorExit()
    _plain_exit()


def engine_timeout_s() -> float:
    """Return how long a planned end may take."""
    from ftray.checkpoint.options import final_timeout_s

    return final_timeout_s()


def _release(flows: list[host_flow.Flow]) -> None:
    """The record of a method is durable: what it has called need not keep replies for it."""
    told: dict[int, tuple[Any, list[bytes]]] = {}
    for flow in flows:
        for callee in flow.callees.values():
            if callee.plain is not None:
                told.setdefault(id(callee.plain), (callee.plain, []))[1].append(flow.parent)
    for handle, parents in told.values():
        handle.__ray_checkpoint_note__.options(max_task_retries=0).remote("release", parents)


def _task_id() -> bytes:
    found: bytes = worker().core_worker.get_current_task_id().binary()
    return found
