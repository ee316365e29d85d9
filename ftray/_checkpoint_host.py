"""The native engine's `Host` for the checkpoint toolkit: who the actor is, how to reach its thread, and how
its calls are written.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, nullcontext

from ftray._core import holds
from ftray._lifecycle import ask
from ftray._node import hash_seeds
from ftray.checkpoint.host import CRASHED, NOT_NOW, ActorIdentity, ProcessHost

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import Any

    from ftray._core.worker import Executor
    from ftray.checkpoint.ahead import Ahead
    from ftray.checkpoint.codec import Arguments
    from ftray.checkpoint.exactly_once import ExactlyOnce
    from ftray.checkpoint.session import ActorSession
    from ftray.checkpoint.values import Execution

_FAULTS = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE)
_ASKED = (0, CRASHED, NOT_NOW)  # exit statuses of ends that the toolkit itself has asked for
_PATIENCE_S = 1.0
_OK, _ERROR, _CANCELLED, _RETRY = 0, 1, 2, 4  # statuses of replies, see _core/rules.pxd
# What its caller made of a reply is not known when the call runs again: a method that was cancelled returned.
_SAME = {(_RETRY, _ERROR), (_CANCELLED, _OK)}


class NativeHost(ProcessHost):
    """See `ftray.checkpoint.host.Host`."""

    def __init__(
        self,
        spec: dict[str, Any],
        incarnation: int,
        executor: Executor,
        end: Callable[[BaseException], None],
        start_again: Callable[[], None],
    ) -> None:
        self.identity = identity_of(spec)
        self.incarnation = incarnation
        self.is_reconstructed = incarnation > 1
        # Groups run beside the default one.
        self.max_concurrency: int = spec["max_concurrency"] + sum(spec["concurrency_groups"].values())
        self.is_async: bool = spec["is_async"]
        self.session_pid = os.getppid()  # ftrayd, which restarts the actor
        self.driver_pid: int | None = spec.get("driver_pid")
        self._executor = executor
        self._end = end
        self._port = {"actor": spec["actor_id"], "max_restarts": spec["max_restarts"]}
        self._start_again = start_again
        self._restarts: bool = spec["max_restarts"] != 0
        self.hash_seed = hash_seeds.known()

    def run_between_calls(self, action: Callable[[], None]) -> None:
        """See `Host.run_between_calls`."""
        self._executor.post(action)

    def group_port(self) -> NativeGroupPort:
        """See `ftray.checkpoint.members.GroupPort`."""
        return NativeGroupPort(self._port, self._executor)

    def restart_with_hash_seed(self, seed: str) -> None:
        """See `Host.restart_with_hash_seed`: the node starts another interpreter for it."""
        if hash_seeds.is_ours() and self._restarts:
            ask("hash_seed", {"seed": seed})
            self._start_again()

    def predecessor_fault(self) -> str:
        """See `Host.predecessor_fault`."""
        from ftray._node.frames import DEATH_EXIT, DEATH_SIGNAL

        death = _asked("predecessor_death")
        if death is None:
            return ""
        kind, code = death["kind"], death["code"]
        own = (kind == DEATH_SIGNAL and code in _FAULTS) or (kind == DEATH_EXIT and code not in _ASKED)
        return str(death["text"]) if own else ""

    def has_served(self) -> bool:
        """See `Host.has_served`."""
        return bool(_asked("has_served"))

    def fenced(self, error: BaseException) -> None:
        """See `Host.fenced`."""
        self._end(error)


def _asked(method: str) -> Any:
    """Ask the node; None if it is silent, on which a recovery does not depend."""
    try:
        return ask(method, {}, _PATIENCE_S)
    except TimeoutError:
        return None


class NativeGroupPort:
    """See `ftray.checkpoint.members.GroupPort`."""

    def __init__(self, about: dict[str, Any], executor: Executor) -> None:
        self._about, self._executor = about, executor

    def describe(self) -> dict[str, Any]:
        """See `GroupPort.describe`."""
        return {**self._about, "worker": holds.own_worker()}

    def meet(self, actors: Sequence[bytes]) -> None:
        """See `GroupPort.meet`: a call says whose it is, wherever it goes."""

    def hold(self, workers: Sequence[bytes]) -> None:
        """See `GroupPort.hold`."""
        holds.hold(workers)

    def release(self) -> None:
        """See `GroupPort.release`."""
        holds.release()

    def begun(self) -> int | None:
        """See `GroupPort.begun`."""
        return holds.begun()

    def unanswered(self, actors: Sequence[bytes]) -> int:
        """See `GroupPort.unanswered`; no hold keeps back calls that wait for room: they left the queue."""
        return holds.unanswered(actors) + self._executor.n_parked()

    def settle_deaths(self, timeout_s: float) -> None:
        """See `GroupPort.settle_deaths`."""
        ask("settle_deaths", {}, timeout_s)

    def end(self, claim: Mapping[str, Any]) -> None:
        """See `GroupPort.end`."""
        from ftray.checkpoint.generations import end_process

        end_process(claim)


class NativeCodec:
    """How this engine writes calls and replies; see `ftray.checkpoint.codec.Codec`."""

    def __init__(self, class_name: str) -> None:
        from ftray._core.answers import encode_outcome
        from ftray._core.callargs import deserialize_args
        from ftray._core.serial import deserialize
        from ftray.checkpoint.codec import split_args

        self._class_name = class_name
        self._encode, self._split = encode_outcome, split_args
        self._decode_args, self._decode = deserialize_args, deserialize

    def decode_args(self, body: bytes) -> Arguments:
        """See `Codec.decode_args`."""
        values, at = self._split(body)
        args, kwargs = self._decode_args(body[at:], [self._decode(value) for value in values])
        return args, kwargs or {}

    def encode_outcome(
        self, method: str, result: object, error: BaseException | None, returns: int = 1
    ) -> tuple[int, bytes]:
        """See `Codec.encode_outcome`."""
        name = f"{self._class_name}.{method}"
        if error is None:
            try:
                return _OK, self._encode(name, result, None, returns)
            except Exception as raised:
                error = raised
        from ftray._task_errors import make_task_error

        return _ERROR, self._encode(name, None, make_task_error(error, name, os.getpid()), returns)

    def count_returns(self, reply: bytes) -> int:
        """See `Codec.count_returns`."""
        from ftray._core.answers import count_outcome

        return count_outcome(reply)

    def decode_reply(self, status: int, reply: bytes) -> Any:
        """See `Codec.decode_reply`."""
        from ftray._core.answers import decode_outcome

        values = decode_outcome(reply)
        if status in (_ERROR, _RETRY):
            if not values:
                return RuntimeError("an error of a call with num_returns=0, which keeps nothing of it")
            return getattr(values[0], "cause", values[0])
        return values[0] if len(values) == 1 else values

    def same_status(self, recorded: int, again: int) -> bool:
        """See `Codec.same_status`."""
        return recorded == again or (recorded, again) in _SAME


def callee_key(spec: dict[str, Any]) -> bytes:
    """Return the 16 bytes by which the callers of an exactly-once actor number their calls."""
    from ftray._core.identity import derive_callee_key
    from ftray.checkpoint.keys import key_of

    given = spec["checkpoint"].get("checkpoint_key")
    return derive_callee_key(key_of(identity_of(spec), given).text)


def identity_of(spec: dict[str, Any]) -> ActorIdentity:
    """Return who an actor is, from its record."""
    return ActorIdentity(
        spec["checkpoint_namespace"], spec["checkpoint_name"] or "", spec["unique_id"], spec["class_name"]
    )


def read_ahead(spec: dict[str, Any]) -> Ahead | None:
    """Begin to read what a restarted actor will restore, while its instance is made; None: nothing is."""
    from ftray.checkpoint.ahead import read_ahead

    return read_ahead(spec["checkpoint"], identity_of(spec))


def open_session(
    instance: Any,
    spec: dict[str, Any],
    incarnation: int,
    executor: Executor,
    end: Callable[[BaseException], None],
    start_again: Callable[[], None],
    ahead: Ahead | None = None,
) -> ActorSession:
    """Restore the instance's state and begin its checkpoints."""
    from ftray.checkpoint.drive import drive

    return drive(open_session_async(instance, spec, incarnation, executor, end, start_again, ahead))


async def open_session_async(
    instance: Any,
    spec: dict[str, Any],
    incarnation: int,
    executor: Executor,
    end: Callable[[BaseException], None],
    start_again: Callable[[], None],
    ahead: Ahead | None = None,
) -> ActorSession:
    """The same inside the event loop of an actor whose recorded calls may have to be awaited."""
    from ftray.checkpoint import engine, faults

    faults.arm_from_environment()
    host = NativeHost(spec, incarnation, executor, end, start_again)
    codec = NativeCodec(spec["class_name"])
    prepare = _preparing(executor)
    session = await engine.open_async(
        instance, host, spec["checkpoint"], codec=codec, prepare=prepare, ahead=ahead
    )
    _connect(session, executor)
    return session


def _connect(session: ActorSession, executor: Executor) -> None:
    """Have the calls of an exactly-once actor go through its gate."""
    once = session.exactly_once
    if once is not None:
        executor.become_durable(once, once.gate.ledger.history << 32 | once.log.epoch)
        ended, once.ended_calls = once.ended_calls, []
        if ended:  # nothing of recovery's is asked for again when the last of its records is durable
            tell_over(once, once.last_position, ended)


def tell_over(once: ExactlyOnce, position: int, callers: list[bytes]) -> None:
    """Tell the callees of `callers` that these make no calls again, when that is durable."""
    from ftray._core.flows import callers_over

    once.hold(position, lambda error: None if error else callers_over(callers))


def _preparing(executor: Executor) -> Callable[[ExactlyOnce], None]:
    """Return what makes an exactly-once session this engine's, before anything is replayed."""

    def prepare(once: ExactlyOnce) -> None:
        from ftray._core.context import HeadContext
        from ftray._core.guards import set_guard
        from ftray._core.reruns import Reruns
        from ftray._outside import Outside
        from ftray.checkpoint.values import READING

        @contextmanager
        def of_call(execution: Any) -> Iterator[None]:
            head = HeadContext(execution.head, once.log.epoch)
            try:
                with head:
                    yield
            finally:
                if head.over:
                    once.ended_calls.append(execution.call_id)
                once.ended_calls += execution.callers

        def context(execution: Any) -> AbstractContextManager[object]:
            if execution is READING:
                return nullcontext()
            return of_call(execution)

        if not once.session.is_async:
            once.reruns = lambda: Reruns(once, once.host.identity.class_name)
        once.locate = lambda: _locate(executor)
        once.find_method = lambda name: _find_method(once, name)
        once.context = context
        once.producing = _producing
        executor.set_own_key(once.callee_key)
        set_guard(Outside(once))

    return prepare


@contextmanager
def _producing(execution: Execution) -> Iterator[None]:
    """Have what a function given to `record` calls be numbered apart from the method's own calls."""
    from ftray._core.context import HeadContext, context_epoch
    from ftray.checkpoint.values import CALL_ID, current, value_caller

    caller = value_caller(execution.call_id, execution.used)
    head = execution.head[: CALL_ID.start] + caller + execution.head[CALL_ID.stop :]
    own = HeadContext(head, context_epoch())
    token = current.set(execution)
    try:
        with own:
            yield
    finally:
        current.reset(token)
        if own.over:
            execution.callers.append(caller)


def _find_method(once: ExactlyOnce, name: str) -> Callable[..., Any] | None:
    from ftray._own_methods import OWN_METHODS

    instance = once.session.instance
    if name in OWN_METHODS:
        method: Callable[..., Any] = OWN_METHODS[name].__get__(instance)
        return method
    return getattr(instance, name, None)


def _locate(executor: Executor) -> Any:
    """Return what the present code is for the toolkit, see `ExactlyOnce.locate`."""
    from ftray.checkpoint.values import READING, located

    found = executor.call_outside()
    if found is None:
        return located()
    return READING if found == "reading" else found
