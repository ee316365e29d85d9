"""Actors: what ``@remote`` makes of a class, handles and their methods."""

from __future__ import annotations

import functools
import sys
from types import GenericAlias

from ftray import _core, _engine, _options, _signature
from ftray._typed import Instance, T
from ftray.exceptions import NotInitializedError, NotSupportedError, RaySystemError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar, NoReturn, cast

    from ftray._typed import MarkMethod

_ASYNC_FLAGS = 0x80 | 0x200  # CO_COROUTINE, CO_ASYNC_GENERATOR
_DEFAULT_ASYNC_CONCURRENCY = 1000


def _method(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Set options of an actor's method.

    Without options (``@ftray.method``) it changes nothing; with or without, a type checker then knows the
    method's ``.remote`` (see `typed`).

    Parameters
    ----------
    num_returns : int or str
        How many values the method returns: by default 1, and ``"streaming"`` for a method that yields (or
        ``"dynamic"``).
    _generator_backpressure_num_objects : int, optional
        How many items a streaming method may be ahead of its consumer; -1, the default: no limit.
    max_task_retries : int, optional
        Retries of a call after the actor's death (and of `retry_exceptions`); the actor's own by default.
    retry_exceptions : bool or list of exception classes, default False
        Which exceptions of the method are retried, on the same actor, as often as `max_task_retries` allows.
    concurrency_group : str, optional
        One of the actor's ``concurrency_groups``: calls run in that group.
    name : str, optional
        What errors call the method.

    Raises
    ------
    TypeError, ValueError
        No option, an unknown one, or a value that is not allowed.
    """
    if function is not None:
        if options or not callable(function):
            raise TypeError("use @ftray.method, or options by keyword: @ftray.method(num_returns=2)")
        return function
    checked = _options.check("method", options)
    if not checked:
        raise TypeError("method() takes options, for example @ftray.method(num_returns=2)")

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(getattr(function, "__func__", function)):
            raise TypeError(f"@ftray.method marks methods, not {type(function).__name__}: {function!r:.100}")
        arity = _signature.arity_of(function, getattr(function, "__qualname__", ""), 1)
        _options.method_options(checked, is_generator=None if arity is None else arity.is_generator)
        function.__ftray_method__ = checked  # type: ignore[attr-defined]
        return function

    return mark


_method.__name__ = _method.__qualname__ = "method"
if TYPE_CHECKING:
    method = cast(MarkMethod, _method)
else:
    method = _method


def typed(handle: ActorHandle[T]) -> T:
    """Return the handle itself, under its class for type checkers.

    Methods that are marked with ``@ftray.method`` then have a ``.remote`` of their own signature:
    ``typed(counter).incr.remote(1)``.
    """
    return handle  # type: ignore[return-value]


class _Meta:
    """What a handle carries of its actor; goes along when the handle is pickled."""

    __slots__ = (
        "class_name",
        "exactly_once",
        "groups",
        "key",
        "max_pending_calls",
        "max_task_retries",
        "methods",
        "out_of_order",
    )

    def __init__(
        self,
        class_name: str,
        methods: dict[str, tuple[dict[str, Any], _signature.Arity | None]],
        max_task_retries: int,
        max_pending: int,
        groups: tuple[str, ...] = (),
        out_of_order: bool = False,
        key: bytes = b"",
        exactly_once: bool = False,
    ) -> None:
        self.class_name = class_name
        self.methods = methods
        self.max_task_retries = max_task_retries
        self.max_pending_calls = max_pending
        self.groups = groups
        self.out_of_order = out_of_order
        self.key = key  # callee key: of whatever actor is made in this one's place
        self.exactly_once = exactly_once

    def __reduce__(self) -> tuple[Any, ...]:
        return _Meta, tuple(getattr(self, name) for name in _META_FIELDS)

    def check_group(self, method: str, group: str) -> None:
        """Raise ValueError unless it is a concurrency group of the actor ("" is the default one)."""
        if group and group not in self.groups:
            has = "the actor has " + (", ".join(map(repr, self.groups)) or "none")
            raise ValueError(
                f"concurrency_group={group!r} of {self.class_name}.{method} does not exist: {has};"
                " they are given with @ftray.remote(concurrency_groups={'name': number of threads})"
            )


_META_FIELDS = (
    "class_name",
    "methods",
    "max_task_retries",
    "max_pending_calls",
    "groups",
    "out_of_order",
    "key",
    "exactly_once",
)


def _methods_of(cls: type) -> dict[str, tuple[dict[str, Any], _signature.Arity | None]]:
    """Return every callable attribute with its explicit options and what it takes."""
    found: dict[str, tuple[dict[str, Any], _signature.Arity | None]] = {}
    for name in dir(cls):
        if name.startswith("__") and name != "__call__":
            continue
        value = getattr(cls, name, None)
        if callable(value):
            plain = isinstance(_declared(cls, name), staticmethod)
            found[name] = (
                dict(getattr(value, "__ftray_method__", {})),
                _signature.arity_of(value, f"{cls.__name__}.{name}", 0 if plain else 1),
            )
    return found


def _declared(cls: type, name: str) -> Any:
    """Return an attribute as the class statement made it."""
    for base in cls.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return None


def _is_async(cls: type) -> bool:
    for name in dir(cls):
        function = getattr(cls, name, None)
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if code is not None and code.co_flags & _ASYNC_FLAGS:
            return True
    return False


class ActorMethod(_core.MethodCaller):
    """A method of an actor: call it with ``.remote(...)``."""

    def __init__(
        self,
        target: _core.ActorTarget,
        meta: _Meta,
        name: str,
        explicit: dict[str, Any],
        arity: _signature.Arity | None,
    ) -> None:
        options = _options.method_options(
            explicit, is_generator=None if arity is None else arity.is_generator
        )
        retries = meta.max_task_retries if options.max_task_retries is None else options.max_task_retries
        meta.check_group(name, options.concurrency_group)
        retry_on = b""
        if options.retry_exceptions:
            from ftray._pickling import pickle_function

            retry_on = pickle_function(options.retry_exceptions)
        super().__init__(
            target,
            _core.method_definition(name, options.concurrency_group, options.name, retry_on),
            _options.returns_code(options),
            retries,
            meta.max_pending_calls,
            0 if arity is None else arity.simple_min,
            _signature.NO_LIMIT if arity is None else arity.simple_max,
        )
        self._record_events(options.enable_task_events)
        if options.call_key:
            self._name_call(named_call(meta, name, options.call_key))
        self._arity = arity
        self._meta = meta
        self._name = name
        self._explicit = explicit

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _signature.check(self._arity, args, kwargs)

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"actor method {self._name} cannot be called directly: call .{self._name}.remote(...)"
        )

    def options(self, **options: Any) -> ActorMethod:
        """Return the same method with other options."""
        merged = _options.merge(self._explicit, _options.check("method", options))
        return ActorMethod(self._target, self._meta, self._name, merged, self._arity)

    def bind(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotSupportedError("ActorMethod.bind (lazy task graphs) is not supported")

    def __repr__(self) -> str:
        return f"ActorMethod({self._meta.class_name}.{self._name})"


def _restart_defaults(cls: type) -> dict[str, int]:
    """Return the options that an exactly-once class has unless they are given."""
    if not getattr(cls, "__checkpoint_options__", None):
        return {}
    from ftray.checkpoint.engine import restart_defaults

    return restart_defaults(checkpoint_spec(cls))


def named_call(meta: _Meta, method: str, call_key: str) -> bytes:
    """Return 16 bytes of the user's name for a call."""
    if not meta.exactly_once:
        raise ValueError(
            f"call_key={call_key!r} was given for {meta.class_name}.{method}: only exactly-once actors know"
            " calls by their key (class ...(ftray.Checkpointable, exactly_once=True))"
        )
    from ftray.checkpoint.outcomes import named

    return named(call_key)


def checkpoint_spec(cls: type) -> dict[str, object] | None:
    """Return what the actor's incarnations must know of its checkpoints, None for a class that keeps none."""
    if not hasattr(cls, "__checkpoint_options__"):
        return None
    from ftray.checkpoint.engine import spec_of

    return spec_of(cls)


class ActorHandle(Instance[T]):
    """A handle of an actor; ``handle.method.remote(...)`` calls it.

    Handles can be passed to tasks and other actors. When the last handle is gone, the actor ends.
    ``ActorHandle[Counter]`` is its type in annotations.
    """

    __class_getitem__: ClassVar[Any] = classmethod(GenericAlias)

    _meta: _Meta
    _target: _core.ActorTarget

    def __init__(self) -> None:
        raise TypeError(
            "ActorHandle cannot be made directly: call .remote() on an actor class, or ftray.get_actor(name)"
        )

    @classmethod
    def _make(cls, ref: _core.ObjectRef, meta: _Meta) -> ActorHandle[T]:
        handle = cls.__new__(cls)
        handle._meta = meta
        handle._target = _core.ActorTarget(ref, meta.out_of_order, meta.key, meta.exactly_once)
        return handle

    def __getattr__(self, name: str) -> ActorMethod:
        meta: _Meta = object.__getattribute__(self, "_meta")
        found = meta.methods.get(name)
        if found is None:
            from ftray import _own_methods

            found = _own_methods.find(meta, name)
        made = ActorMethod(self._target, meta, name, *found)
        self.__dict__[name] = made
        return made

    def __dir__(self) -> list[str]:
        from ftray._own_methods import OWN_METHODS

        return sorted({*super().__dir__(), *self._meta.methods, *OWN_METHODS})

    @property
    def _actor_id(self) -> Any:
        from ftray._ids import ActorID

        return ActorID(self._target.actor_id())

    def __reduce__(self) -> tuple[Any, ...]:
        capture = sys.modules.get("ftray.checkpoint.capture")  # not loaded where no state is saved
        place = _core.saved_actor_place if capture and capture.capturing() else _core.actor_place
        return _rebuild_handle, (place(self._target.ref), self._meta)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActorHandle) and self._target.ref == other._target.ref

    def __hash__(self) -> int:
        return hash(self._target.ref)

    def __repr__(self) -> str:
        try:
            identity = self._target.actor_id().hex()
        except RaySystemError:
            identity = "of a session that has ended"
        return f"Actor({self._meta.class_name}, {identity})"


class ActorClassInheritanceException(TypeError):
    """A class was derived from an actor class."""


def _rebuild_handle(place: bytes, meta: _Meta) -> ActorHandle[Any]:
    try:
        ref, here = _core.actor_at(place)
    except NotInitializedError:  # a tool that reads a state
        here = False
    if here:
        return ActorHandle._make(ref, meta)
    from ftray._restored_handles import RestoredHandle

    return RestoredHandle.at(place, meta)


class ActorClass(Instance[T]):
    """A class whose instances live in processes of their own: make one with ``.remote(...)``.

    Made by ``@ftray.remote``.
    """

    __class_getitem__: ClassVar[Any] = classmethod(GenericAlias)

    def __init__(self, cls: type[T], explicit: dict[str, Any]) -> None:
        self._cls = cls
        self._explicit = explicit
        self._options = _options.actor_options({**_restart_defaults(cls), **explicit})
        self._blob: bytes | None = None
        self._class_refs: list[Any] = []  # what methods' closures refer to lives as long as the class
        functools.update_wrapper(self, cls, updated=())

    def __mro_entries__(self, bases: tuple[Any, ...]) -> NoReturn:
        raise ActorClassInheritanceException(
            f"a class cannot be derived from the actor class {self._cls.__name__!r}: derive it from the plain"
            " class, and make the derived class an actor class with @ftray.remote"
        )

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        name = self._cls.__name__
        raise TypeError(f"actor class {name} cannot be instantiated directly: call {name}.remote(...)")

    def options(self, **options: Any) -> ActorClass[T]:
        """Return the same class with other options."""
        merged = _options.merge(self._explicit, _options.check("actor", options))
        made: ActorClass[T] = ActorClass(self._cls, merged)
        made._blob, made._class_refs = self._blob, self._class_refs
        return made

    def bind(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise NotSupportedError("ActorClass.bind (lazy task graphs) is not supported")

    def remote(self, *args: Any, **kwargs: Any) -> ActorHandle[T]:
        """Create an actor; the arguments go to its constructor.

        Returns
        -------
        ActorHandle
            At once; calls wait for the constructor.

        Raises
        ------
        ValueError
            An actor of that name exists already; a method names a concurrency group that there is not; calls
            of an async or a threaded actor were to run in order.
        """
        _signature.check(_signature.constructor_arity(self._cls), args, kwargs)
        meta = self._meta()
        create = _engine.ensure().create_actor
        guard = _core.the_guard()
        if guard is not None:
            handle: ActorHandle[T] = guard.made(lambda: create(self, meta, args, kwargs))
            return handle
        return create(self, meta, args, kwargs)

    def _meta(self) -> _Meta:
        options = self._options
        meta = _Meta(
            self._cls.__name__,
            self._methods(),
            options.max_task_retries,
            options.max_pending_calls,
            tuple(options.concurrency_groups),
            self._out_of_order(),
        )
        for name, (explicit, _) in meta.methods.items():
            meta.check_group(name, explicit.get("concurrency_group") or "")
        return meta

    def _methods(self) -> dict[str, tuple[dict[str, Any], _signature.Arity | None]]:
        found = _methods_of(self._cls)
        if self._options.enable_task_events:
            return found
        return {
            name: ({"enable_task_events": False, **explicit}, arity)
            for name, (explicit, arity) in found.items()
        }

    @functools.cached_property
    def _has_loop(self) -> bool:
        return _is_async(self._cls)

    def _concurrency(self) -> int:
        return self._options.max_concurrency or (_DEFAULT_ASYNC_CONCURRENCY if self._has_loop else 1)

    def _out_of_order(self) -> bool:
        """Whether a call that waits for its arguments lets later ones pass."""
        given = self._options.allow_out_of_order_execution
        beside = self._has_loop or self._concurrency() > 1
        if beside and given is False:
            kind = "an async actor" if self._has_loop else "an actor with max_concurrency > 1"
            raise ValueError(
                f"allow_out_of_order_execution=False is not possible for {kind}, whose calls run beside each"
                " other: leave the option out"
            )
        return beside if given is None else given

    def __repr__(self) -> str:
        return f"ActorClass({self._cls.__name__})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild_class, (self._cls, self._explicit)


def _rebuild_class(cls: type, explicit: dict[str, Any]) -> ActorClass[Any]:
    return ActorClass(cls, explicit)


def find(name: str, namespace: str | None) -> ActorHandle[Any]:
    """Return a handle of a named actor.

    Raises
    ------
    ValueError
        There is no living actor of that name; the name or the namespace is empty.
    TypeError
        The name or the namespace is no string.
    """
    _options.text("name", name)
    if namespace is not None:
        _options.text("namespace", namespace)
    guard = _core.the_guard()
    look = _engine.ensure().find_actor
    return look(name, namespace) if guard is None else guard.made(lambda: look(name, namespace))


def kill(actor: ActorHandle[Any], *, no_restart: bool = True) -> None:
    """End an actor's process at once.

    Parameters
    ----------
    actor : ActorHandle
        The actor.
    no_restart : bool, default True
        False: it is restarted if its `max_restarts` allows.

    Raises
    ------
    ValueError
        It is no actor handle (as in Ray).
    TypeError
        `no_restart` is no truth value.
    """
    if not isinstance(actor, ActorHandle):
        raise ValueError(
            f"kill() takes an ActorHandle, not {type(actor).__name__}: cancel tasks with ftray.cancel(ref)"
        )
    _engine.current().kill(actor, _options.boolean("no_restart", no_restart))


def exit_actor() -> NoReturn:
    """End the current actor on purpose, from inside one of its methods: it is not restarted.

    Raises
    ------
    TypeError
        Not called inside an actor.
    """
    _engine.current().exit_actor()
