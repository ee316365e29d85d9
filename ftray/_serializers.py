"""Serializers that users give for classes of theirs: kept for whichever engine comes to run."""

from __future__ import annotations

from ftray import _engine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    _T = TypeVar("_T")

registered: dict[type, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {}


def register_serializer(
    cls: type[_T], *, serializer: Callable[[_T], Any], deserializer: Callable[[Any], _T]
) -> None:
    """Have instances of a class (not of classes derived from it) travel as what `serializer` makes of them.

    Parameters
    ----------
    cls : type
        The class.
    serializer : callable
        Takes an instance, returns something that can be pickled.
    deserializer : callable
        Takes that, returns an instance; it travels along.

    Raises
    ------
    TypeError
        No class, or something that cannot be called.
    """
    _engine.current().register_serializer(cls, serializer=serializer, deserializer=deserializer)
    registered[cls] = serializer, deserializer


def deregister_serializer(cls: type) -> None:
    """Have instances of a class travel as if nothing had been registered.

    Raises
    ------
    TypeError
        No class.
    """
    _engine.current().deregister_serializer(cls)
    registered.pop(cls, None)
