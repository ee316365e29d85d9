"""The class that Ray runs for an actor class of ftray's.

Owns: the shell around the user's object: a method for each of the object's, of the same kind and signature,
so that Ray refuses wrong arguments at the call, and handles found by name know what there is. Invariants: the
user's object is as its class says (no wrapped methods, no other base): its methods call each other directly,
and exceptions among them are untouched.
"""

from __future__ import annotations

import inspect
from typing import Any

import ray

from ftray import _task_errors
from ftray._ray import host_flow, inside, options
from ftray._ray.calls import CALLER, named_like

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractContextManager

    from ftray._signature import Arity

RAY_CALL = "ftray_call"  # ``__ray_call__`` of Ray's own would get the shell, not the user's object
_KEYWORDS = inspect.Parameter.VAR_KEYWORD


def shell_of(cls: type, methods: dict[str, tuple[dict[str, Any], Arity | None]]) -> type:
    """Return the class to give to Ray.

    Parameters
    ----------
    cls
        The user's.
    methods
        Explicit options and arity by name, as handles have them.
    """
    namespace: dict[str, Any] = {"__init__": _constructor(cls)}
    for name, (explicit, arity) in methods.items():
        method = _method(cls, name)
        declare(method, explicit, None if arity is None else arity.is_generator)
        namespace[name] = method
    namespace[RAY_CALL] = _ray_call
    namespace["_own_repr"] = "__repr__" in {name for base in cls.__mro__[:-1] for name in vars(base)}
    if namespace["_own_repr"]:
        namespace["__repr__"] = _repr
    if hasattr(cls, "__ray_shutdown__"):
        namespace["__ray_shutdown__"] = _shutdown
    shell = type(cls.__name__, (), namespace)
    shell.__qualname__, shell.__module__, shell.__doc__ = cls.__qualname__, cls.__module__, cls.__doc__
    return shell


def declare(method: Any, explicit: dict[str, Any], is_generator: bool | None) -> None:
    """Give a method the options of ``ftray.method``, as Ray looks for them."""
    for option, value in options.of_method(explicit, is_generator).items():
        if option != "name":  # of a call, not of the method: `RayActorMethod` gives it
            setattr(method, f"__ray_{option.lstrip('_')}__", value)


def _constructor(cls: type) -> Any:
    def __init__(self: Any, /, *args: Any, **kwargs: Any) -> None:
        self._ftray_instance = inside.construct(cls, args, kwargs)

    own = vars(cls).get("__init__") or getattr(cls, "__init__", None)
    if inspect.isfunction(own):
        _sign(__init__, own, 0, False)
    return __init__


def _sign(made: Any, function: Any, missing: int, caller: bool) -> None:
    """Give a method the user's signature; `missing`: it has no ``self``; `caller`: add the hidden one."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # made in C: any arguments may fit
    own = [inspect.Parameter("_ftray_self", inspect.Parameter.POSITIONAL_ONLY)] * missing
    parameters = [*own, *signature.parameters.values()]
    first = parameters[0] if parameters else None
    if first is None or first.kind is _KEYWORDS:
        return
    # What an annotation names may not be there on the other side.
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    if caller:
        at = len(bare) - (bare[-1].kind is _KEYWORDS)
        bare.insert(at, inspect.Parameter(CALLER, inspect.Parameter.KEYWORD_ONLY, default=None))
    made.__signature__ = signature.replace(
        parameters=[p if _plain(p.default) else p.replace(default=None) for p in bare],
        return_annotation=inspect.Signature.empty,
    )


def _plain(default: Any) -> bool:
    return default is inspect.Parameter.empty or default is None or isinstance(default, int | str)


def _method(cls: type, name: str) -> Any:
    """Return the shell's method of that name, of the kind that the user's is."""
    raw = inspect.getattr_static(cls, name)
    function = getattr(raw, "__func__", raw)
    label = f"{cls.__name__}.{name}"
    if inspect.isasyncgenfunction(function):
        made = _async_stream(name, label)
    elif inspect.isgeneratorfunction(function):
        made = _stream(name, label)
    elif inspect.iscoroutinefunction(function):
        made = _coroutine(name, label)
    else:
        made = _plain_method(name, label)
    named_like(made, function, name)
    made.__qualname__ = f"{cls.__qualname__}.{name}"
    _sign(made, function, isinstance(raw, staticmethod), True)
    return made


def _plain_method(name: str, label: str) -> Callable[..., Any]:
    def method(self: Any, /, *args: Any, _ftray_caller: bytes | None = None, **kwargs: Any) -> Any:
        if _ftray_caller is None:
            return inside.call(getattr(self._ftray_instance, name), label, args, kwargs, self)
        with _resumed(_ftray_caller):
            return inside.call(getattr(self._ftray_instance, name), label, args, kwargs, self)

    return method


def _coroutine(name: str, label: str) -> Callable[..., Any]:
    async def method(self: Any, /, *args: Any, _ftray_caller: bytes | None = None, **kwargs: Any) -> Any:
        with _resumed(_ftray_caller):
            return await inside.call_async(getattr(self._ftray_instance, name), label, args, kwargs, self)

    return method


def _stream(name: str, label: str) -> Callable[..., Any]:
    def method(
        self: Any, /, *args: Any, _ftray_caller: bytes | None = None, **kwargs: Any
    ) -> Iterator[Any]:
        with _resumed(_ftray_caller):
            yield from inside.stream(getattr(self._ftray_instance, name), label, args, kwargs, self)

    return method


def _async_stream(name: str, label: str) -> Callable[..., Any]:
    async def method(
        self: Any, /, *args: Any, _ftray_caller: bytes | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        with _resumed(_ftray_caller):
            async for item in inside.stream_async(
                getattr(self._ftray_instance, name), label, args, kwargs, self
            ):
                yield item

    return method


def _ray_call(
    self: Any, fn: Callable[..., Any], /, *args: Any, _ftray_caller: bytes | None = None, **kwargs: Any
) -> Any:
    """Call ``fn(instance, ...)`` in the actor."""
    with _resumed(_ftray_caller):
        label = getattr(fn, "__qualname__", "__ray_call__")
        return inside.call(fn, label, (self._ftray_instance, *args), kwargs)


def _resumed(caller: bytes | None) -> AbstractContextManager[None]:
    return host_flow.resumed(ray._private.worker.global_worker, caller)


def _repr(self: Any) -> str:
    """Ray asks for it when something has raised, the constructor too, and ends the process if this raises."""
    if "_ftray_instance" not in vars(self):
        return object.__repr__(self)
    return _task_errors.safe_repr(self._ftray_instance)


def _shutdown(self: Any) -> None:
    self._ftray_instance.__ray_shutdown__()
