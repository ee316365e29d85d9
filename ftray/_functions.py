"""Remote functions: what ``@remote`` makes of a function."""

from __future__ import annotations

import functools
import struct
from types import GenericAlias

from ftray import _core, _lifecycle, _options, _signature
from ftray._typed import Call, P, R

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, ClassVar

_class_keys: dict[tuple[Any, ...], int] = {}


def lease_request(
    resources: Mapping[str, float],
    strategy: str,
    name: str,
    env: str = "",
    retriable: bool = True,
    max_calls: int = 0,
) -> tuple[int, bytes]:
    """Return key and LEASE_REQUEST payload of a scheduling class: tasks that can share a worker.

    Parameters
    ----------
    resources, strategy, name
        Of the task.
    env
        Text of its runtime environment.
    retriable
        Whether it may be run again; the memory monitor ends such tasks first.
    max_calls
        Bounds the calls that a worker is sent at a time.
    """
    identity = (tuple(sorted(resources.items())), strategy, env, retriable, max_calls)
    key = _class_keys.setdefault(identity, len(_class_keys) + 1)
    parts = [struct.pack("<QHH", key, 0, len(resources))]
    for resource, amount in sorted(resources.items()):
        raw = resource.encode()
        parts.append(struct.pack("<H", len(raw)) + raw + struct.pack("<d", amount))
    for word in (strategy.encode(), name.encode()[:200]):
        parts.append(struct.pack("<H", len(word)) + word)
    raw_env = env.encode()
    parts.append(struct.pack("<BI", retriable, len(raw_env)) + raw_env)
    return key, b"".join(parts)


_STRATEGY_OPTIONS = {
    "scheduling_strategy",
    "placement_group",
    "placement_group_bundle_index",
    "placement_group_capture_child_tasks",
}


def placed(
    explicit: Mapping[str, Any], held: Mapping[str, float], needed: Mapping[str, float], what: str
) -> tuple[str, bytes]:
    """Return the strategy as it travels, and the placement group that the code knows to run in, or b""."""
    if _core.current_group() is None and _STRATEGY_OPTIONS.isdisjoint(explicit):
        return "", b""
    from ftray._placement import strategy_of

    return strategy_of(explicit, held, needed, what)


class RemoteFunction(Call[P, R], _core.FunctionCaller):
    """A function that runs as a task: call it with ``.remote(...)``.

    Made by ``@ftray.remote``. ``RemoteFunction[[int, str], float]`` is its type in annotations.
    """

    __class_getitem__: ClassVar[Any] = classmethod(GenericAlias)

    def __init__(self, function: Callable[P, R], explicit: dict[str, Any]) -> None:
        self._function = function
        self._explicit = explicit
        self._env_of: tuple[object, str] | None = None  # the session that its environment was made for
        functools.update_wrapper(self, function, updated=())
        self._arity = _signature.arity_of(function, self._name())
        self._options = _options.task_options(
            explicit, is_generator=None if self._arity is None else self._arity.is_generator
        )
        self._record_events(self._options.enable_task_events)
        if self._arity is None:
            self._limit_arguments(0, _signature.NO_LIMIT)
        else:
            self._limit_arguments(self._arity.simple_min, self._arity.simple_max)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(
            f"remote function {self._name()} cannot be called directly: call {self._name()}.remote(...),"
            f" or the function itself as {self._name()}._function(...)"
        )

    def _check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _signature.check(self._arity, args, kwargs)

    def _name(self) -> str:
        return getattr(self._function, "__qualname__", repr(self._function))

    def options(self, **options: Any) -> RemoteFunction[P, R]:
        """Return the same function with other options.

        Raises
        ------
        TypeError, ValueError
            An unknown option, or a value that is not allowed (the message says what is).
        """
        merged = _options.merge(self._explicit, _options.check("task", options))
        made: RemoteFunction[P, R] = RemoteFunction(self._function, merged)
        made._definition_of = self._definition_of
        return made

    def bind(self, *args: Any, **kwargs: Any) -> Any:
        from ftray.exceptions import NotSupportedError

        raise NotSupportedError("RemoteFunction.bind (lazy task graphs) is not supported")

    @functools.cached_property
    def _definition_of(self) -> dict[str, Any]:
        """The pickled function, made at the first call: shared by all `.options()` variants."""
        return {}

    def _env_text(self) -> str:
        """Return the environment that it runs in; directories are looked at once a session."""
        if not self._options.runtime_env:
            return _lifecycle.runtime_env_text(None)
        session = _lifecycle.current()
        if self._env_of is None or self._env_of[0] is not session:
            self._env_of = session, _lifecycle.runtime_env_text(self._options.runtime_env)
        return self._env_of[1]

    def _bind(self) -> tuple[bytes, int, bytes, int, int, int, bytes]:
        from ftray._pickling import pickle_function

        _lifecycle.ensure()
        shared = self._definition_of
        if "function" not in shared:
            refs: list[Any] = []
            shared["function"] = pickle_function(self._function, refs)
            shared["refs"] = refs  # what its closure refers to lives as long as the function
        options = self._options
        name = options.name or self._name()
        retry = pickle_function(options.retry_exceptions) if options.retry_exceptions else b""
        strategy, group = placed(self._explicit, options.resources, options.resources, f"{name}()")
        key, request = lease_request(
            options.resources,
            strategy,
            name,
            self._env_text(),
            options.max_retries != 0,
            options.max_calls,
        )
        return (
            _core.function_definition(name, retry, shared["function"], options.max_calls),
            key,
            request,
            _options.returns_code(options),
            options.max_retries,
            options.max_calls,
            group,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._function, self._explicit)

    def __repr__(self) -> str:
        return f"RemoteFunction({self._name()})"


def _rebuild(function: Callable[..., Any], explicit: dict[str, Any]) -> RemoteFunction[..., Any]:
    return RemoteFunction(function, explicit)
