"""Remote functions on a Ray cluster: what `RemoteFunction` calls, and what of it runs in the workers."""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any

import ray
from ray import exceptions as theirs

from ftray import _core
from ftray._ray import client, errors, host_flow, inside, options
from ftray._ray.refs import RayObjectRef, unwrapped, wrapped
from ftray.exceptions import SerializationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ftray._functions import RemoteFunction

CALLER = "_ftray_caller"
"""The hidden argument of a task, or of a plain actor's method: who it is for exactly-once actors it calls."""
_KEPT = "_on_ray"  # where a RemoteFunction keeps its caller; not pickled with it


@contextmanager
def ours() -> Iterator[None]:
    """What Ray raises inside arrives as ftray's exceptions."""
    try:
        yield
        return
    except theirs.ActorAlreadyExistsError as error:
        failure: BaseException = ValueError(str(error))
    except (theirs.RayError, TypeError) as error:
        failure = errors.converted(error)
        theirs_own = isinstance(error, TypeError) and not isinstance(error, theirs.RayError)
        if theirs_own and "serialize" in str(error).lower():
            failure = SerializationError(str(error))
    raise failure


def placeholders(num_returns: Any) -> Any:
    """Return what a call returns that an earlier run of the same method has made."""
    made = [_NoRef() for _ in range(num_returns if isinstance(num_returns, int) else 1)]
    return made[0] if num_returns == 1 else made or None


class _NoRef(RayObjectRef):
    """Stands for the ref of a call that was not made again: its value comes from the actor's journal."""

    def __init__(self) -> None:
        super().__init__(ray.ObjectRef.nil())

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


def sent(num_returns: Any, send: Callable[[], Any]) -> Any:
    """Return what `send` does, which makes a call; placeholders where a finished method is repeated.

    What it raises is raised again at the same place when the method runs again, without a new attempt.
    """
    guard = _core.the_guard()
    if guard is None:
        return send()
    if guard.sends(num_returns if isinstance(num_returns, int) else -1):
        return placeholders(num_returns)
    try:
        with guard.sending():
            return send()
    except Exception as error:
        guard.not_sent(error)
        raise


def caller_of(function: RemoteFunction[..., Any]) -> Callable[..., Any]:
    """Return what ``function.remote`` calls, made when it is first needed."""
    kept: Callable[..., Any] | None = function.__dict__.get(_KEPT)
    if kept is None:
        kept = function.__dict__[_KEPT] = _caller(function)
    return kept


def _caller(function: RemoteFunction[..., Any]) -> Callable[..., Any]:
    name = function._options.name or function._name()
    is_stream = function._arity is not None and function._arity.is_generator
    run = _run(function._function, name, is_stream)
    num_returns = function._options.num_returns
    task = ray.remote(**options.of_task(function._explicit, function._options))(run)
    key = host_flow.hashed(b"function", function._name().encode())
    worker = ray._private.worker.global_worker

    def send(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = [unwrapped(a) for a in args]
        named = {key: unwrapped(a) for key, a in kwargs.items()}
        if not worker.connected:
            _check_client(name, num_returns, function._options.retry_exceptions)
            with ours():
                return wrapped(task.remote(*given, **named))
        with ours(), host_flow.carry(worker, key) as named[CALLER]:
            return wrapped(task.remote(*given, **named))

    return lambda *args, **kwargs: sent(num_returns, lambda: send(args, kwargs))


def _check_client(name: str, num_returns: Any, retried: Any) -> None:
    """Refuse what Ray's client has not."""
    if isinstance(num_returns, str) or num_returns < 0:
        client.refuse(f"{name}: a generator of refs")
    if not isinstance(retried, bool):
        client.refuse(f"{name}: retry_exceptions with a list of classes")


def _run(function: Callable[..., Any], name: str, is_stream: bool) -> Callable[..., Any]:
    """Return what Ray runs. It is pickled by value, the user's function as Ray would pickle it."""
    if is_stream:

        def run(*args: Any, _ftray_caller: bytes | None = None, **kwargs: Any) -> Any:
            with host_flow.resumed(ray._private.worker.global_worker, _ftray_caller):
                yield from inside.stream(function, name, args, kwargs)

    else:

        def run(*args: Any, _ftray_caller: bytes | None = None, **kwargs: Any) -> Any:
            with host_flow.resumed(ray._private.worker.global_worker, _ftray_caller):
                return inside.call(function, name, args, kwargs)

    named_like(run, function, getattr(function, "__name__", "function"))
    return run


def named_like(made: Any, function: Any, name: str) -> None:
    """Have Ray call something of ours as the user does."""
    made.__name__ = name
    made.__qualname__ = getattr(function, "__qualname__", name)
    made.__module__ = getattr(function, "__module__", None) or "__main__"
    made.__doc__ = getattr(function, "__doc__", None)
