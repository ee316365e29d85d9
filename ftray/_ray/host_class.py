"""Makes of a `Checkpointable` class what Ray runs: a shell whose methods go through the checkpoint toolkit.

``ray.remote(cls)`` derives two classes of the user's: one that it runs in the actor's process, and one that
stands for the actor class in programs. `Checkpointable` notices both when they are made, and `adapt` gives
the first one methods that go through the toolkit, and the second the options and handles of exactly-once
actors. The user's object itself is an attribute of the shell, so that its methods call each other as they
are.

Owns: which methods the shell has, and of which kind. Invariants: signatures are the user's, so that Ray
refuses wrong arguments where they are given; nothing of this needs a runtime of ftray.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from types import FunctionType
from typing import Any

from ftray import _task_errors
from ftray.checkpoint import actor
from ftray.checkpoint.errors import CheckpointOptionError, NoSessionError
from ftray.checkpoint.figures import STATUS_METHOD
from ftray.checkpoint.outcomes import OUTCOME_METHOD

SPEC = "_ftray_spec"
"""The hidden argument of the constructor: what all incarnations must know."""
HEAD = "_ftray_call"
"""The hidden argument of an exactly-once actor's methods: the call's head."""
CALLER = "_ftray_member"
"""The hidden argument of a snapshot-mode actor's methods: which member of its group calls."""
STEPS, MEMBERS = "_ftray_steps", "_ftray_members"
LANES = {STEPS: 1, MEMBERS: 1}
"""Ray's concurrency groups of a serial actor in snapshot mode, see `host_groups`."""
STEPS_METHOD = "_checkpoint_group"
_RUNNER = "_ftray_actor"
_MOST_IN_FLIGHT = 10_000
_OWN = "__ray_actor_class__"
_DECORATOR = "__ray_invocation_decorator__"
"""By which Ray lets methods take part in their calls on the side of the caller."""
_OPTIONS = "__ftray_method__"
"""Where ``ftray.method`` keeps what it was given."""


def adapt(cls: type) -> None:
    """See the module; `cls` is a class that Ray has just made of a `Checkpointable` one."""
    ray_actor = importlib.import_module("ray.actor")
    if not issubclass(cls, ray_actor.ActorClass) and _OWN not in cls.__dict__:
        return
    version = importlib.import_module("ray").__version__
    importlib.import_module("ftray._ray.starting").check_version(version)
    if issubclass(cls, ray_actor.ActorClass):
        cls._remote = _remote  # type: ignore[attr-defined]
    else:
        _make_shell(cls, cls.__dict__[_OWN])


def user_class(cls: Any) -> type:
    """Return the user's class that one of Ray's was made of."""
    found: type = getattr(cls, _OWN)
    return found


# -- the class that runs in the actor's process


def _make_shell(shell: Any, cls: type) -> None:
    durable = actor.options_of(cls).exactly_once
    methods = methods_of(cls)
    is_async = _has_async(cls)
    for name, function in methods.items():
        setattr(shell, name, _wrapper(cls, name, function, durable, is_async))
    shell.__init__ = _constructor(cls, durable, is_async)
    shell.__ray_call__ = _wrapper(cls, "__ray_call__", shell.__ray_call__, durable, is_async)
    for name, own in _OWN_METHODS.items():
        if name not in methods:
            setattr(shell, name, _wrapper(cls, name, own, durable, is_async))
    if not (durable or is_async):
        shell._checkpoint_group = _steps()
    shell.__ray_shutdown__ = _shutdown
    for name in _hooks() - set(methods):
        setattr(shell, name, _refused(cls, name))
    if durable:
        shell.__ray_checkpoint_note__ = _note
    if _has_repr(cls):
        shell.__repr__ = _repr


def methods_of(cls: type) -> dict[str, FunctionType]:
    """Return the methods of a class that Ray's callers may name."""
    hooks = _hooks()
    found: dict[str, FunctionType] = {}
    for base in cls.__mro__:
        if base in (object, actor.Checkpointable) or base.__module__ == "typing":
            continue
        for name, value in base.__dict__.items():
            function = getattr(value, "__func__", value)
            plain = not name.startswith("__") or name == "__call__"
            if plain and name not in hooks and isinstance(function, FunctionType):
                found.setdefault(name, function)
    return found


def _hooks() -> set[str]:
    """Return the names of what the toolkit calls, or methods call on themselves."""
    return {name for name in vars(actor.Checkpointable) if not name.startswith("_")} - {"checkpoint"}


def _refused(cls: type, name: str) -> Callable[..., Any]:
    """Return what stands for a hook in the shell, which has no state of the user's."""

    def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        raise NoSessionError(
            f"{cls.__name__}.{name} is for the actor itself, and cannot be called by handle on Ray: call a "
            "method of the class that calls it; ftray.checkpoint.open(store).load(key) reads a saved state"
        )

    method.__name__ = name
    return method


def is_grouped(function: Callable[..., Any]) -> bool:
    """Whether a method is in a concurrency group, by Ray's decorator or by ftray's."""
    own = getattr(function, _OPTIONS, {}).get("concurrency_group")
    return bool(own) or hasattr(function, "__ray_concurrency_group__")


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


def _has_async(cls: type) -> bool:
    """Whether some method of a class is asynchronous."""
    return any(map(_is_async, methods_of(cls).values()))


def _is_stream(function: Callable[..., Any]) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _wrapper(cls: type, name: str, function: Any, durable: bool, is_async: bool) -> Any:
    if durable:
        made = _durable_method(name)
    elif inspect.isasyncgenfunction(function):
        made = _async_stream(name)
    elif inspect.isgeneratorfunction(function):
        made = _stream(name)
    elif _is_async(function) or (is_async and name == "checkpoint"):
        made = _async_method(name)
    else:
        made = _method(name)
    functools.update_wrapper(made, function)
    del made.__wrapped__  # type: ignore[attr-defined]
    raw = cls.__dict__.get(name) if name in cls.__dict__ else inspect.getattr_static(cls, name, None)
    hidden = HEAD if durable else None if is_async else CALLER
    made.__signature__ = _signature(function, raw, hidden)  # type: ignore[attr-defined]
    explicit = getattr(function, _OPTIONS, None)
    if explicit:
        importlib.import_module("ftray._ray.shell").declare(made, explicit, _is_stream(function))
    handles = importlib.import_module("ftray._ray.host_handle")
    given = getattr(function, _DECORATOR, None)
    if durable and _is_stream(function):
        setattr(made, _DECORATOR, functools.partial(handles.no_stream, f"{cls.__name__}.{name}"))
    elif durable:
        decorator = functools.partial(handles.decorated, name, name in reads_of(cls), given)
        setattr(made, _DECORATOR, decorator)
    elif not is_async:
        setattr(made, _DECORATOR, functools.partial(handles.laned, name, given))
    return made


def _signature(function: Any, raw: object, hidden: str | None) -> inspect.Signature:
    """Return the user's signature, with `self`, and with the hidden argument if there is one."""
    signature = inspect.signature(function)
    parameters = list(signature.parameters.values())
    if isinstance(raw, staticmethod):
        parameters.insert(0, inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY))
        if any(p.kind is not inspect.Parameter.POSITIONAL_ONLY and p.name == "self" for p in parameters[1:]):
            name = function.__qualname__
            raise CheckpointOptionError(f"static method {name} must not have an argument `self`")
    if hidden is not None:
        at = len(parameters)
        if parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD:
            at -= 1
        parameters.insert(at, inspect.Parameter(hidden, inspect.Parameter.KEYWORD_ONLY, default=None))
    return signature.replace(parameters=parameters)


def _method(name: str) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, _ftray_member: Any = None, **kwargs: Any) -> Any:
        with _leaving(_portable, self, name):
            return getattr(self, _RUNNER).run(name, args, kwargs, _ftray_member)

    return method


def _async_method(name: str) -> Callable[..., Any]:
    async def method(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        with _leaving(_portable, self, name):
            return await getattr(self, _RUNNER).run_async(name, args, kwargs)

    return method


def _stream(name: str) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, _ftray_member: Any = None, **kwargs: Any) -> Iterator[Any]:
        with _leaving(_portable, self, name):
            yield from getattr(self, _RUNNER).stream(name, args, kwargs, _ftray_member)

    return method


def _async_stream(name: str) -> Callable[..., Any]:
    async def method(self: Any, /, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        with _leaving(_portable, self, name):
            async for item in getattr(self, _RUNNER).stream_async(name, args, kwargs):
                yield item

    return method


def _durable_method(name: str) -> Callable[..., Any]:
    async def method(self: Any, /, *args: Any, _ftray_call: Any = None, **kwargs: Any) -> Any:
        with _leaving(_portable, self, name):
            return await getattr(self, _RUNNER).run(name, args, kwargs, _ftray_call)

    return method


def _leaving(convert: Callable[..., BaseException], *about: Any) -> AbstractContextManager[None]:
    """What is raised inside leaves as what `convert` makes of it."""
    leaving: AbstractContextManager[None] = importlib.import_module("ftray._ray.errors").Leaving(
        functools.partial(convert, *about)
    )
    return leaving


def _portable(shell: Any, name: str, error: Exception) -> BaseException:
    """Return what callers are to get of an exception: those of ftray's API its class, whatever that needs."""
    errors = importlib.import_module("ftray._ray.errors")
    if errors.arrives(error):
        return error
    cls = user_class(type(shell))
    who = repr(shell) if _has_repr(cls) else ""
    found: BaseException = errors.carried(error, f"{cls.__name__}.{name}", who)
    return found


def _not_made(cls: type, error: Exception) -> BaseException:
    """Keep why an actor could not be made for its callers, and return what its constructor raises."""
    errors = importlib.import_module("ftray._ray.errors")
    carried: BaseException = errors.carried(error, f"{cls.__name__}.__init__")
    if isinstance(carried, errors.Carried):
        errors.keep_constructor_error(carried)
    return error if errors.arrives(error) else carried


def _constructor(cls: type, durable: bool, is_async: bool) -> Any:
    if durable:

        async def opened(self: Any, /, *args: Any, _ftray_spec: Any = None, **kwargs: Any) -> None:
            calls = importlib.import_module("ftray._ray.host_calls")
            own = user_class(type(self))
            with _leaving(_not_made, own):
                setattr(self, _RUNNER, await calls.open_actor(own, _ftray_spec or {}, args, kwargs))

        made: Any = opened
    else:

        def restored(self: Any, /, *args: Any, _ftray_spec: Any = None, **kwargs: Any) -> None:
            host = importlib.import_module("ftray._ray.host")
            own = user_class(type(self))
            with _leaving(_not_made, own):
                setattr(self, _RUNNER, host.SnapshotActor(own, _ftray_spec or {}, args, kwargs, is_async))

        made = restored
    given: Any = getattr(cls, "__init__")  # noqa: B009 - of the class that was given
    if not isinstance(given, FunctionType):
        given = _no_arguments
    functools.update_wrapper(made, given)
    del made.__wrapped__
    made.__signature__ = _signature(given, None, SPEC)
    return made


def _no_arguments(self: Any) -> None:
    """Stand in for the constructor of a class that has none."""


def _status(self: Any) -> dict[str, Any]:
    """Return the figures of the actor's checkpoints."""
    raise NoSessionError("this is asked of an actor, not of its class")


def _checkpoint(self: Any) -> str:
    """Save now; the reply means that the snapshot is durable."""
    raise NoSessionError("this is asked of an actor, not of its class")


def _outcome(self: Any, head: bytes) -> tuple[str, bool, int, bytes | None]:
    """Return what is known of a call, see `ftray.checkpoint.outcome`."""
    raise NoSessionError("this is asked of an actor, not of its class")


def _group(self: Any, what: str, fields: dict[str, Any]) -> dict[str, Any]:
    """Do a step of a cut over a group."""
    raise NoSessionError("this is asked of an actor, not of its class")


_OWN_METHODS = {
    STATUS_METHOD: _status,
    "checkpoint": _checkpoint,
    OUTCOME_METHOD: _outcome,
    STEPS_METHOD: _group,
}


def _steps() -> Any:
    """Return the method that does steps of cuts in snapshot mode, beside others."""

    def method(self: Any, what: str, fields: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = getattr(self, _RUNNER).step(STEPS_METHOD, (what, fields), {})
        return found

    return method


def _shutdown(self: Any) -> None:
    """Ray ends the actor as planned: save once more."""
    host = importlib.import_module("ftray._ray.host")
    runner = getattr(self, _RUNNER, None)
    if runner is not None:
        own = getattr(runner.instance, "__ray_shutdown__", None)
        try:
            if own is not None:
                own()
        finally:
            runner.close(host.closing_reason(runner.session.log.key))


async def _note(self: Any, what: str, data: Any) -> int:
    """Take a note of a caller, see `host_calls.DurableActor.note`."""
    found: int = getattr(self, _RUNNER).note(what, data)
    return found


def _has_repr(cls: type) -> bool:
    """Whether actors of a class have a way of their own to call themselves."""
    return getattr(cls, "__repr__") is not getattr(object, "__repr__")  # noqa: B009 - or mypy compares types


def _repr(self: Any) -> str:
    """Ray asks for it when something has raised, the constructor too, and ends the process if this raises."""
    runner = getattr(self, _RUNNER, None)
    return object.__repr__(self) if runner is None else _task_errors.safe_repr(runner.instance)


# -- the class that stands for the actor class in programs


def _remote(self: Any, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
    """Make the actor, in place of ``ActorClass._remote``."""
    ray_actor = importlib.import_module("ray.actor")
    cls = user_class(self.__ray_metadata__.modified_class)
    if kwargs is not None and SPEC in kwargs:  # Ray calls itself, for get_if_exists
        return ray_actor.ActorClass._remote(self, args, kwargs, **options)
    spec = specification(cls, options)
    durable = spec["checkpoint"].get("exactly_once", False)
    if durable:
        from ftray.checkpoint.options import restart_defaults

        for name, value in restart_defaults(spec["checkpoint"]).items():
            if options.get(name) is None:
                options[name] = value
        _refuse_groups(cls, options)
        spec["at_once"] = _at_once(cls, options.get("max_concurrency"))
        # Ray's bound is on calls that have come, most of which wait for their turn or for the journal.
        options["max_concurrency"] = _MOST_IN_FLIGHT
    spec["max_restarts"] = options.get("max_restarts") or 0
    with _making:
        _set_lanes(self.__ray_metadata__, not durable and may_be_member(cls, spec["max_restarts"]))
        handle = ray_actor.ActorClass._remote(self, args, {**(kwargs or {}), SPEC: spec}, **options)
    if durable:
        publish(handle, cls, spec)
    return handle


def _at_once(cls: type, given: Any) -> int | None:
    """Return how many methods that change nothing may run at once; None: as many as there are."""
    if given is None or given == 1:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise CheckpointOptionError(f"max_concurrency={given!r} is not valid: give a number from 1 up")
    if not _has_async(cls):
        raise CheckpointOptionError(
            f"exactly_once=True and max_concurrency={given}: methods of {cls.__name__} would run on several "
            "threads at once, in an order that no journal can repeat. Use max_concurrency=1, or async methods"
        )
    return given


def _refuse_groups(cls: type, options: dict[str, Any]) -> None:
    grouped = sorted(name for name, function in methods_of(cls).items() if is_grouped(function))
    if grouped or options.get("concurrency_groups"):
        what = f"{', '.join(grouped)} of {cls.__name__}" if grouped else f"methods of {cls.__name__}"
        raise CheckpointOptionError(
            f"exactly_once=True: {what} are in concurrency groups, and methods of an exactly-once actor "
            "exclude each other. Leave the groups out (concurrency_groups)"
        )


def may_be_member(cls: type, max_restarts: int) -> bool:
    """Whether an actor in snapshot mode may be in a group: one that is not pays nothing for that.

    For Ray's extra concurrency groups methods run on another thread than the main one.
    """
    return max_restarts == -1 and not _has_async(cls)


_making = threading.Lock()


def _set_lanes(meta: Any, wanted: bool) -> None:
    """Have the next actor of a class made with the lanes of members, or without. With `_making`."""
    given = {name: n for name, n in (meta.concurrency_groups or {}).items() if name not in LANES}
    meta.concurrency_groups = {**given, **LANES} if wanted else given
    groups = meta.method_meta.concurrency_group_for_methods
    groups.pop(STEPS_METHOD, None)
    if wanted:
        groups[STEPS_METHOD] = STEPS


def specification(cls: type, options: dict[str, Any]) -> dict[str, Any]:
    """Return what all incarnations must know, which Ray keeps with the constructor's arguments."""
    ray = importlib.import_module("ray")
    host = importlib.import_module("ftray._ray.host")
    from ftray.checkpoint.engine import spec_of

    name = options.get("name") or ""
    namespace = options.get("namespace") or (ray.get_runtime_context().namespace if name else "")
    return {
        "checkpoint": spec_of(cls),
        "name": name,
        "namespace": host.durable_namespace(namespace),
        "unique_id": os.urandom(16).hex(),
    }


def publish(handle: Any, cls: type, spec: dict[str, Any]) -> None:
    """Have the actor's callers, wherever they are, know its callee key."""
    from ftray.checkpoint.keys import key_of

    actor_id = getattr(handle, "_actor_id", None)
    if actor_id is None:  # through Ray's client: the actor does it
        return
    host = importlib.import_module("ftray._ray.host")
    key = key_of(host.identity_of(spec, cls), spec["checkpoint"].get("checkpoint_key"))
    handles = importlib.import_module("ftray._ray.host_handle")
    handles.publish_key(actor_id.binary(), spec["checkpoint"]["store"], key.text)


def reads_of(cls: type) -> frozenset[str]:
    """Return the names of the methods that change nothing."""
    from ftray.checkpoint.exactly_once import UNJOURNALLED

    return actor.readonly_names(cls) | UNJOURNALLED
