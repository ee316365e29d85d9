"""What the state of a `Checkpointable` object is when the class does not say otherwise.

Owns the defaults of `save_checkpoint` and `load_checkpoint`. Invariant: the default pair restores exactly the
attributes that were there: attributes added by a newer ``__init__`` stay, attributes that a method had
deleted go.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import GetSetDescriptorType
from typing import Any

from ftray._core.instances import inline_attributes

from .errors import CheckpointLoadError


def _overrides(cls: type, name: str) -> bool:
    found = getattr(cls, name, None)
    return found is not None and found is not getattr(object, name, None)


def slot_names(cls: type) -> Iterator[str]:
    """Yield the names of the attributes that live in slots, as they are reached from outside."""
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name in ("__dict__", "__weakref__"):
                continue
            private = name.startswith("__") and not name.endswith("__")
            yield f"_{base.__name__.lstrip('_')}{name}" if private else name


def default_save(instance: object) -> object:
    """Return ``__getstate__()`` if the class defines it, else a new dict of all attributes."""
    cls = type(instance)
    if _overrides(cls, "__getstate__"):
        return instance.__getstate__()  # type: ignore[attr-defined,unused-ignore]
    state = _attributes(instance)
    for name in slot_names(cls):
        if hasattr(instance, name):
            state[name] = getattr(instance, name)
    return state


def default_load(instance: object, state: object) -> None:
    """Give `state` to ``__setstate__`` if the class defines it, else set the attributes in it."""
    cls = type(instance)
    if _overrides(cls, "__setstate__"):
        instance.__setstate__(state)  # type: ignore[attr-defined]
        return
    if not isinstance(state, dict):
        raise CheckpointLoadError(
            f"the state of {cls.__name__} is a {type(state).__name__}, not a dict of attributes: "
            "define load_checkpoint(state) or __setstate__(state)"
        )
    for name, value in state.items():
        setattr(instance, name, value)


def _attributes(instance: object) -> dict[str, Any]:
    """Return a new dict of what ``__dict__`` has; it is not asked for where that makes the object slower."""
    found = inline_attributes(instance)
    return dict(vars(instance)) if found is None else found


def attribute_names(instance: object) -> frozenset[str]:
    """Return the names of the attributes in ``__dict__``."""
    return frozenset(_attributes(instance))


def drop_attributes(instance: object, names: list[str]) -> None:
    """Remove attributes that ``__init__`` made and the saved object no longer had."""
    for name in names:
        vars(instance).pop(name, None)


def own_dict(instance: object) -> None:
    """Give the instance a ``__dict__`` that shares no keys with those of its class's other instances.

    One that shares them (PEP 412) is fast as long as nobody looks at it. A ``__getstate__`` that looks makes
    each ``self.name`` in a method take twice as long from then on; in a dict of its own a tenth longer than
    before. What nobody has looked at stays as it is.
    """
    if inline_attributes(instance) is not None:
        return
    found = (vars(base)["__dict__"] for base in type(instance).__mro__ if "__dict__" in vars(base))
    descriptor = next(found, None)
    if isinstance(descriptor, GetSetDescriptorType) and type(vars(instance)) is dict:
        object.__setattr__(instance, "__dict__", dict(vars(instance)))
