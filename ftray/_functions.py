"""Remote functions: what ``@remote`` makes of a function."""

from __future__ import annotations

import functools
from types import GenericAlias

from ftray import _core, _engine, _options, _signature
from ftray._typed import Call, P, R

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar


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

    def _bind(self) -> Any:
        return _engine.ensure().function(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._function, self._explicit)

    def __repr__(self) -> str:
        return f"RemoteFunction({self._name()})"


def _rebuild(function: Callable[..., Any], explicit: dict[str, Any]) -> RemoteFunction[..., Any]:
    return RemoteFunction(function, explicit)
