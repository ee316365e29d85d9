"""What runs in Ray's workers around the user's functions and methods.

Owns: that the user's code finds this process's engine, gets arguments as on any engine, and that its
exceptions leave as `Carried`. Invariants: nothing stays of a call when it is over; signals of Ray's own (an
exit of the actor, a cancellation) pass.
"""

from __future__ import annotations

from typing import Any

from ftray import _engine
from ftray._ray import errors
from ftray._ray.refs import adopted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def enter() -> None:
    """Make Ray the engine of this process."""
    if _engine.current().name != "ray":
        _engine.use("ray")


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    return [adopted(a) for a in args], {name: adopted(a) for name, a in kwargs.items()}


def _who(shell: Any) -> str:
    """Return how an actor calls itself, "" for one that has no ``__repr__`` of its own, and for tasks."""
    return repr(shell) if shell is not None and shell._own_repr else ""


def _leaving(name: str, shell: Any) -> errors.Leaving:
    """What the user's code raises inside leaves as a `Carried`."""
    return errors.Leaving(lambda error: errors.carried(error, name, _who(shell)))


def call(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shell: Any = None
) -> Any:
    """Run a function."""
    enter()
    given, named = _arguments(args, kwargs)
    with _leaving(name, shell):
        return function(*given, **named)


def stream(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shell: Any = None
) -> Iterator[Any]:
    """Run a generator."""
    enter()
    given, named = _arguments(args, kwargs)
    with _leaving(name, shell):
        # Ray sends into what it runs, and what the user's generator delegates to may take nothing.
        for item in function(*given, **named):  # noqa: UP028
            yield item


async def call_async(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shell: Any = None
) -> Any:
    """Run a coroutine function."""
    enter()
    given, named = _arguments(args, kwargs)
    with _leaving(name, shell):
        return await function(*given, **named)


async def stream_async(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], shell: Any = None
) -> AsyncIterator[Any]:
    """Run an asynchronous generator."""
    enter()
    given, named = _arguments(args, kwargs)
    with _leaving(name, shell):
        async for item in function(*given, **named):
            yield item


def construct(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make the user's object; why that failed is kept for those who call the actor."""
    try:
        return call(cls, f"{cls.__name__}.__init__", args, kwargs)
    except errors.Carried as error:
        errors.keep_constructor_error(error)
        raise
