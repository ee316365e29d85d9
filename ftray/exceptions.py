"""Exceptions that ftray raises, under Ray's names.

Owns: the public classes, their fields, and the class a failed task's error gets at ``get()`` (`RayTaskError`
that is also the user's exception class).  Invariants: every exception pickles with all its fields, whatever
its constructor takes; ``str()`` always says what happened and, where there is one, what to do.  Leaves to
others: how errors travel (`ftray._task_errors`).  Importing this module costs next to nothing: everything
else is imported on first use.
"""

from __future__ import annotations

from functools import lru_cache

from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def _rebuild(cls: type[RayError], args: tuple[Any, ...], state: dict[str, Any]) -> RayError:
    """Make the exception as it was, without its constructor."""
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class RayError(Exception):
    """Something failed in ftray; base class of all its exceptions.

    Parameters
    ----------
    message
        What happened, and what to do about it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(message or self._default())

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else self._default()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.args, dict(self.__dict__))

    @classmethod
    def _default(cls) -> str:
        """Return the first line of the docstring, the message of last resort."""
        return (cls.__doc__ or cls.__name__).strip().splitlines()[0]


class RaySystemError(RayError):
    """Something inside ftray or the machine failed; the call itself may have been right."""


class NotInitializedError(RaySystemError, RuntimeError):
    """ftray is not running in this process: call ftray.init() first."""


class VersionMismatchError(RaySystemError, RuntimeError):
    """This process and the node that it wants to join run different versions of ftray or Python."""


class InternalKVError(RaySystemError):
    """The key-value store of the node cannot be read or written."""


class ForkedProcessError(RaySystemError, RuntimeError):
    """This process was forked from one that uses ftray and cannot use its connections: call ftray.init().

    Attributes
    ----------
    owner_pid
        The process that called ``init()``, 0 when unknown.
    pid
        This one.
    """

    def __init__(self, owner_pid: int = 0, pid: int = 0) -> None:
        which = f" (process {pid} was forked from {owner_pid})" if owner_pid else ""
        super().__init__(self._default().rstrip(".") + which)
        self.owner_pid = owner_pid
        self.pid = pid


class NotSupportedError(RayError, NotImplementedError):
    """The feature exists in the API but not in this version of ftray."""


class AbsentNameError(NotSupportedError, AttributeError):
    """The name is one of Ray's that ftray does not have (so ``hasattr`` is False)."""


class AbsentModuleError(NotSupportedError, ModuleNotFoundError):
    """The module is one of Ray's that ftray does not have.

    Attributes
    ----------
    name
        The module, as Ray calls it.
    """

    def __init__(self, message: str = "", *, name: str = "") -> None:
        super().__init__(message)
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_absent_module, (self.name, *super().__reduce__()[1])


def _rebuild_absent_module(name: str, *parts: Any) -> AbsentModuleError:
    error: AbsentModuleError = _rebuild(*parts)  # type: ignore[assignment]
    error.name = name  # kept by C, not in __dict__
    return error


class SerializationError(RayError, TypeError):
    """A value, an argument or a function cannot be pickled.

    Attributes
    ----------
    path
        Where the offending object is, e.g. ``args[1].config['lock']``; "" when it was not found.
    """

    def __init__(self, message: str = "", *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class DeserializationError(RaySystemError):
    """A value cannot be rebuilt in this process; ``__cause__`` says why."""


class UnserializableException(RayError):
    """Stands for a user's exception that could not be pickled, or not be rebuilt here.

    Attributes
    ----------
    class_name
        Qualified name of the original exception's class.
    text
        Its ``str()``.
    reason
        Why it could not travel.
    """

    def __init__(self, class_name: str = "", text: str = "", reason: str = "") -> None:
        super().__init__(f"{class_name}: {text} (the exception itself could not be carried over: {reason})")
        self.class_name = class_name
        self.text = text
        self.reason = reason


# --- tasks ----------------------------------------------------------------------------------------


class RayTaskError(RayError):
    """A task or an actor method raised an exception.

    ``get()`` raises an instance of a class derived from both this and the class of the user's exception.

    Parameters
    ----------
    function_name
        Qualified name of the function or ``Class.method``.
    traceback_str
        Remote traceback without ftray's own frames.
    cause
        The user's exception, or `UnserializableException`.
    pid
        Process that ran the task.
    ip
        Address of its machine, "" when there is only one.
    actor_repr
        ``repr()`` of the actor for a method, else "".
    """

    def __init__(
        self,
        function_name: str,
        traceback_str: str,
        cause: BaseException,
        *,
        pid: int = 0,
        ip: str = "",
        actor_repr: str = "",
    ) -> None:
        super().__init__(traceback_str)
        self.function_name = function_name
        self.traceback_str = traceback_str
        self.cause = cause
        self.pid = pid
        self.ip = ip
        self.actor_repr = actor_repr

    def __str__(self) -> str:
        where = f"pid={self.pid}" + (f", ip={self.ip}" if self.ip else "")
        who = f" of {self.actor_repr}" if self.actor_repr else ""
        return f"{self.function_name}(){who} failed ({where})\n{self.traceback_str.rstrip()}"

    def __reduce__(self) -> tuple[Any, ...]:
        from ftray._task_errors import dump_chain

        # The cause does not rely on its own constructor or reduce here either: tasks pass each other's errors
        # on.
        fields = {name: self.__dict__[name] for name in _TASK_ERROR_FIELDS if name != "cause"}
        return _rebuild_task_error, (type(self) is not RayTaskError, fields, dump_chain(self.cause))

    def as_instanceof_cause(self) -> RayTaskError:
        """Return this error as an instance of the cause's class as well.

        Returns
        -------
        RayTaskError
            ``self`` when the class cannot be derived from (final or C classes with a layout of their own,
            exceptions that are no `Exception`); `cause` has the original in any case.
        """
        user = self.cause
        while isinstance(user, RayTaskError):
            user = user.cause
        if type(self) is not RayTaskError or not isinstance(user, Exception):
            return self
        if isinstance(self, type(user)):
            self.__cause__ = self.cause
            return self
        try:
            user_class: Any = type(user)
            dual = _dual_instance(_dual_class(user_class), user)
        except Exception:
            return (
                self  # the user's class refuses to be derived from or filled: `cause` still has the original
            )
        dual.__dict__.update({name: self.__dict__[name] for name in _TASK_ERROR_FIELDS})
        dual.__cause__ = self.cause
        return dual


_TASK_ERROR_FIELDS = ("function_name", "traceback_str", "cause", "pid", "ip", "actor_repr")


def _rebuild_task_error(dual: bool, fields: dict[str, Any], chain: list[Any]) -> RayTaskError:
    from ftray._task_errors import load_chain

    error = RayTaskError(cause=load_chain(chain), **fields)
    return error.as_instanceof_cause() if dual else error


@lru_cache(maxsize=256)
def _dual_class(user_class: type[Exception]) -> type[RayTaskError]:
    """Derive from RayTaskError and a user's exception class."""

    def delegate(self: RayTaskError, name: str) -> Any:
        # Only for names that neither class has: the state of the user's exception stays in `cause`.
        cause = self.__dict__.get("cause")
        if cause is None or (name.startswith("__") and name.endswith("__")):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(cause, name)

    name = f"RayTaskError({user_class.__name__})"
    namespace = {
        "__module__": RayTaskError.__module__,
        "__qualname__": name,
        "__doc__": f"A task raised {user_class.__qualname__}.",
        "__getattr__": delegate,
        "__str__": RayTaskError.__str__,
        "__reduce__": RayTaskError.__reduce__,
    }
    meta: Any = type(user_class)
    made: type[RayTaskError] = meta(name, (RayTaskError, user_class), namespace)
    return made


def builtin_base(cls: type[BaseException]) -> type[BaseException]:
    """Return the most derived class of ``cls`` that is implemented in C: it lays out instances."""
    heap_type = 1 << 9  # Py_TPFLAGS_HEAPTYPE
    return next(
        base for base in cls.__mro__ if issubclass(base, BaseException) and not base.__flags__ & heap_type
    )


def bare_instance(cls: type[BaseException], base: type[BaseException], reduced: Any) -> BaseException:
    """Make an instance of ``cls`` from what ``base.__reduce__`` gave, without a constructor of the user's."""
    error = base.__new__(cls, *reduced[1])
    base.__init__(error, *reduced[1])
    if len(reduced) > 2 and reduced[2]:
        base.__setstate__(error, reduced[2])
    return error


def _dual_instance(cls: type[RayTaskError], user: Exception) -> RayTaskError:
    base = builtin_base(type(user))
    dual = bare_instance(cls, base, base.__reduce__(user)[:2])
    assert isinstance(dual, RayTaskError)
    # What C keeps in the instance itself (errno, filename, name, ...) would hide the cause's value behind
    # None.
    for layer in base.__mro__[: base.__mro__.index(BaseException)]:
        for name, member in vars(layer).items():
            if hasattr(member, "__set__") and not name.startswith("__") and hasattr(user, name):
                _set_unless_read_only(dual, name, getattr(user, name))
    return dual


def _set_unless_read_only(error: BaseException, name: str, value: Any) -> None:
    try:
        setattr(error, name, value)
    except AttributeError:
        return  # such members come from the arguments alone (the parts of an exception group)


class TaskCancelledError(RayError):
    """The task was cancelled.

    Attributes
    ----------
    task_id
        Hexadecimal id of the task, "" when unknown.
    """

    def __init__(self, message: str = "", *, task_id: str = "") -> None:
        super().__init__(message or (f"task {task_id} was cancelled" if task_id else ""))
        self.task_id = task_id


class StreamingGeneratorReplayInconsistentError(RaySystemError):
    """A generator task was run again after a failure and yielded fewer values than had been delivered.

    Attributes
    ----------
    items
        How many values the last attempt yielded.
    before
        How many had been delivered.
    """

    def __init__(self, items: int = 0, before: int = 0) -> None:
        super().__init__(
            f"the generator was run again after a failure and ended after {items} values, but {before} had"
            " been delivered before: a generator task that is retried must yield the same values each time"
            " (or have max_retries=0)"
        )
        self.items = items
        self.before = before


class TaskUnschedulableError(RayError):
    """The task can never run: no node has the resources it asks for, or the node it names is gone."""


class TaskPlacementGroupRemoved(RayError):
    """The placement group of the task was removed before it ran, or while it did."""


class RuntimeEnvSetupError(RayError):
    """The runtime environment of a task or an actor could not be prepared."""


class PendingCallsLimitExceeded(RayError):
    """The actor handle has max_pending_calls calls waiting: get some results before you submit more."""


class GetTimeoutError(RayError, TimeoutError):
    """The value was not there in time; it may still come: call get() again, or cancel() the task."""


# --- processes ------------------------------------------------------------------------------------


class DeathCause(Record):
    """Which process ended, how and when.  A value of None or "" means unknown."""

    kind: str = ""  # exit, signal, out of memory, hung, intended, driver left, creation failed, ...
    text: str = ""  # one line for people
    pid: int | None = None
    exit_code: int | None = None
    signal: int | None = None
    unix_time: float | None = None
    incarnation: int | None = None  # 1-based, of the actor
    node_id: str = ""
    worker_id: str = ""
    last_checkpoint: str = ""

    @classmethod
    def from_dict(cls, given: Mapping[str, Any] | None) -> DeathCause:
        """Take the fields this version knows; what else there is goes into `text`."""
        given = dict(given or {})
        known = {name: given.pop(name) for name in cls._fields if name in given}
        if given:
            known["text"] = "; ".join([*filter(None, [known.get("text", "")]), f"also reported: {given!r}"])
        return cls(**known)

    def describe(self) -> str:
        """Say in one line which process, which signal or exit code, and when."""
        parts = [f"process {self.pid}" if self.pid is not None else "the process"]
        if self.node_id:
            parts[0] += f" on node {self.node_id[:12]}"
        if self.signal is not None:
            parts.append(f"was ended by {_signal_name(self.signal)}")
        elif self.exit_code is not None:
            parts.append(f"exited with code {self.exit_code}")
        else:
            parts.append(f"ended ({self.kind})" if self.kind else "ended")
        if self.unix_time is not None:
            parts.append(f"at {_clock_text(self.unix_time)}")
        line = " ".join(parts)
        if self.incarnation is not None:
            line += f" (incarnation {self.incarnation})"
        if self.text:
            line += f": {self.text}"
        return line + (f"; last checkpoint: {self.last_checkpoint}" if self.last_checkpoint else "")


def _signal_name(number: int) -> str:
    import signal

    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _clock_text(unix_time: float) -> str:
    import time

    return (
        time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_time)) + f".{int(unix_time * 1000) % 1000:03d}"
    )


class WorkerCrashedError(RayError):
    """The worker process died while it ran the task, and no retry is left.

    Attributes
    ----------
    death
        Which process, how and when.
    """

    def __init__(self, message: str = "", *, death: DeathCause | None = None) -> None:
        self.death = death or DeathCause()
        super().__init__(_with_death(message or self._default(), death))


class OutOfMemoryError(WorkerCrashedError):
    """The worker was ended because the machine ran out of memory: run fewer tasks at once or set memory=."""


class NodeDiedError(RayError):
    """The node that ran the task or held the object is gone."""


class LocalRayletDiedError(NodeDiedError):
    """The node process of this machine is gone; what is in flight cannot finish."""


class HeadDiedError(LocalRayletDiedError):
    """ftrayd, which manages this session, is gone: call ftray.shutdown() and ftray.init() to start again."""


def _with_death(message: str, death: DeathCause | None) -> str:
    return message if death is None else f"{message.rstrip('.')}: {death.describe()}"


class RayActorError(RayError):
    """A call to an actor failed because of the actor's process, not because of its code.

    Attributes
    ----------
    actor_id
        Hexadecimal actor id.
    actor_class
        Name of the class, "" when unknown.
    death
        Which process, how and when.
    actor_init_failed
        The constructor raised; `__cause__` is that error.
    """

    def __init__(
        self,
        message: str = "",
        *,
        actor_id: str = "",
        actor_class: str = "",
        death: DeathCause | None = None,
        actor_init_failed: bool = False,
    ) -> None:
        self.actor_id = actor_id
        self.actor_class = actor_class
        self.death = death or DeathCause()
        self.actor_init_failed = actor_init_failed
        who = " ".join(filter(None, ["actor", actor_class, f"({actor_id})" if actor_id else ""]))
        text = message or self._default()
        super().__init__(_with_death(f"{who}: {text}" if actor_id or actor_class else text, death))


class ActorDiedError(RayActorError):
    """The actor is dead and will not be restarted."""


class ActorUnavailableError(RayActorError):
    """The actor is restarting and the call may or may not have run; max_task_retries has calls retried."""


class ActorUnschedulableError(RayError):
    """The actor can never be placed: no node has the resources it asks for, or the node it names is gone."""


class ActorPlacementGroupRemoved(ActorUnschedulableError):
    """The placement group of the actor was removed before it started."""


class AsyncioActorExit(RayError):
    """Raised inside an async actor by exit_actor() to end it."""


# --- objects --------------------------------------------------------------------------------------


class ObjectStoreFullError(RayError):
    """The object store has no room: drop references, or start with a larger object_store_memory."""


class OutOfDiskError(RayError):
    """The local disk is full: free disk space."""


class ObjectLostError(RayError):
    """No copy of the object is left and it cannot be computed again.

    Attributes
    ----------
    object_ref_hex
        Hexadecimal object id.
    owner
        The owning process, in words, "" when unknown.
    """

    def __init__(self, object_ref_hex: str = "", message: str = "", *, owner: str = "") -> None:
        self.object_ref_hex = object_ref_hex
        self.owner = owner
        text = message or self._default()
        super().__init__(f"object {object_ref_hex}: {text}" if object_ref_hex else text)


class ObjectFetchTimedOutError(ObjectLostError):
    """The object exists but could not be fetched in time."""


class ObjectFreedError(ObjectLostError):
    """The object was freed explicitly; do not free what is still referenced."""


class OwnerDiedError(ObjectLostError):
    """The process that owned the object is gone, and with it the object; keep owners alive long enough."""


class ReferenceCountingAssertionError(ObjectLostError, AssertionError):
    """The object was dropped although it was referenced; this is a defect of ftray, please report it."""


class ObjectReconstructionFailedError(ObjectLostError):
    """The object was lost and computing it again failed."""


class ObjectReconstructionFailedMaxAttemptsExceededError(ObjectReconstructionFailedError):
    """The object was lost and its task has no retry left; raise max_retries."""


class ObjectReconstructionFailedLineageEvictedError(ObjectReconstructionFailedError):
    """The object was lost and how to compute it was dropped to save memory; raise FTRAY_max_lineage_bytes."""


def __getattr__(name: str) -> Any:
    from ftray._absent import absent

    raise absent(__name__, name)
