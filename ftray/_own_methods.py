"""Methods that every actor has beside those of its class, and what is said of one that it has not.

Imported when such a name is first used.
"""

from __future__ import annotations

from ftray import _signature

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ftray.actor import _Meta


def _ray_ready(self: Any) -> bool:
    """Return True as soon as the constructor is done."""
    return True


def _ray_call(self: Any, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call ``fn(instance, ...)`` in the actor."""
    return fn(self, *args, **kwargs)


def _ray_terminate(self: Any) -> None:
    """End the actor on purpose, after the calls that were made before."""
    from ftray.actor import exit_actor

    exit_actor()


def _ray_checkpoint_status(self: Any) -> dict[str, Any]:
    """Stands for the method of the actor's checkpoint session, which an actor without checkpoints lacks."""
    from ftray.checkpoint import NoSessionError

    raise NoSessionError(f"this {type(self).__name__} keeps no checkpoints: its class is not Checkpointable")


def _ray_checkpoint_outcome(self: Any, head: bytes) -> Any:
    """Stands for the method of an exactly-once actor's session that tells what became of a call."""
    from ftray.checkpoint import NoSessionError

    raise NoSessionError(f"this {type(self).__name__} is not exactly_once: it keeps no record of its calls")


OWN_METHODS: dict[str, Any] = {
    "__ray_ready__": _ray_ready,
    "__ray_call__": _ray_call,
    "__ray_terminate__": _ray_terminate,
    "__ray_checkpoint_status__": _ray_checkpoint_status,
    "__ray_checkpoint_outcome__": _ray_checkpoint_outcome,
}


def find(meta: _Meta, name: str) -> tuple[dict[str, Any], _signature.Arity | None]:
    """Return options and arity of a method that every actor has; AttributeError for another name."""
    if name not in OWN_METHODS:
        if name.startswith("__"):  # libraries probe for many of these, and want no advice
            raise AttributeError(f"actor class {meta.class_name} has no method {name!r}")
        raise AttributeError(_no_method(meta, name))
    return {}, _signature.arity_of(OWN_METHODS[name], name, 1)


def _no_method(meta: _Meta, name: str) -> str:
    """Say what an attribute that no method has could have meant."""
    import difflib

    near = difflib.get_close_matches(name, meta.methods, n=3)
    hint = f"it has {', '.join(meta.methods) or 'none'}"
    if near:
        hint = f"did you mean {' or '.join(map(repr, near))}?"
    return (
        f"actor class {meta.class_name} has no method {name!r}; {hint}"
        " (a handle has methods only: attributes and properties of the instance are read by a method)"
    )
