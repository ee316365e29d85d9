"""Finds the first difference between two values that were made apart. Pure.

Two pickles of equal values may differ (shared parts, order of sets), so equal bytes prove sameness and
different bytes prove nothing: then the values decide.
"""

from __future__ import annotations

import re
from typing import Any

_ADDRESS = re.compile(r"0x[0-9a-fA-F]+")
_SHOWN = 120
_PLAIN = (type(None), bool, int, str, bytes, bytearray, complex, range)


def difference(one: Any, other: Any, path: str = "") -> str | None:
    """Return where and how two values differ, None if they do not."""
    return _differ(one, other, path, set())


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except Exception as error:
        text = f"a {type(value).__name__} whose repr() raises {type(error).__name__}"
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _differ(one: Any, other: Any, path: str, seen: set[tuple[int, int]]) -> str | None:
    if one is other or (id(one), id(other)) in seen:
        return None
    where = path or "value"
    if type(one) is not type(other) and not _same_class(type(one), type(other)):
        return f"{where}: {_show(one)} (a {type(one).__name__}) and {_show(other)} (a {type(other).__name__})"
    if type(one) in _PLAIN:
        return None if one == other else f"{where}: {_show(one)} and {_show(other)}"
    if isinstance(one, float):
        same = one == other or (one != one and other != other)
        return None if same else f"{where}: {one!r} and {other!r}"
    seen.add((id(one), id(other)))
    if isinstance(one, BaseException):
        return _errors(one, other, path, seen)
    if isinstance(one, dict):
        return _dicts(one, other, path, seen) or _attributes(one, other, path, seen)
    if isinstance(one, (list, tuple)):
        return _sequences(one, other, path, seen) or _attributes(one, other, path, seen)
    if isinstance(one, (set, frozenset)):
        return None if one == other else f"{where}: {_show(one)} and {_show(other)}"
    return _objects(one, other, path, seen)


def _same_class(one: type, other: type) -> bool:
    """A class of ``__main__`` that was carried by value is another object each time."""
    return (one.__module__, one.__qualname__) == (other.__module__, other.__qualname__)


def _errors(one: BaseException, other: BaseException, path: str, seen: set[tuple[int, int]]) -> str | None:
    mine = [_ADDRESS.sub("0x", a) if isinstance(a, str) else a for a in one.args]
    theirs = [_ADDRESS.sub("0x", a) if isinstance(a, str) else a for a in other.args]
    return _differ(mine, theirs, f"{path}.args", seen)


def _dicts(one: dict[Any, Any], other: dict[Any, Any], path: str, seen: set[tuple[int, int]]) -> str | None:
    if list(one) != list(other):
        if one.keys() == other.keys():
            return f"{path or 'value'}: keys in the order {_show(list(one))} and {_show(list(other))}"
        return f"{path or 'value'}: keys {_show(list(one))} and {_show(list(other))}"
    for key, value in one.items():
        found = _differ(value, other[key], f"{path}[{key!r}]", seen)
        if found:
            return found
    return None


def _sequences(one: Any, other: Any, path: str, seen: set[tuple[int, int]]) -> str | None:
    if len(one) != len(other):
        return f"{path or 'value'}: {len(one)} items and {len(other)}"
    for index, (a, b) in enumerate(zip(one, other, strict=True)):
        found = _differ(a, b, f"{path}[{index}]", seen)
        if found:
            return found
    return None


def _objects(one: Any, other: Any, path: str, seen: set[tuple[int, int]]) -> str | None:
    if hasattr(one, "__array_interface__") and hasattr(one, "dtype"):
        return _arrays(one, other, path)
    if any("__eq__" in base.__dict__ for base in type(one).__mro__[:-1]):
        if _equal(one, other):
            return None
    elif not _has_parts(one):
        return _reduced(one, other, path, seen)
    if _has_parts(one):
        return _attributes(one, other, path, seen)
    return f"{path or 'value'}: {_show(one)} and {_show(other)}"


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except Exception:  # its own idea of comparing fails: what it consists of decides
        return False


def _arrays(one: Any, other: Any, path: str) -> str | None:
    where = path or "value"
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"{where}: arrays of {one.dtype}{one.shape} and {other.dtype}{other.shape}"
    if one.dtype.hasobject:
        return _differ(one.tolist(), other.tolist(), path, set())
    return None if one.tobytes() == other.tobytes() else f"{where}: arrays {_show(one)} and {_show(other)}"


def _has_parts(value: Any) -> bool:
    return hasattr(value, "__dict__") or any("__slots__" in base.__dict__ for base in type(value).__mro__)


def _attributes(one: Any, other: Any, path: str, seen: set[tuple[int, int]]) -> str | None:
    mine, theirs = _parts(one), _parts(other)
    if mine.keys() != theirs.keys():
        return f"{path or 'value'}: attributes {sorted(mine)} and {sorted(theirs)}"
    for name in mine:
        found = _differ(mine[name], theirs[name], f"{path}.{name}", seen)
        if found:
            return found
    return None


def _parts(value: Any) -> dict[str, Any]:
    from .state import slot_names

    parts = dict(getattr(value, "__dict__", {}))
    for name in slot_names(type(value)):
        if hasattr(value, name):
            parts[name] = getattr(value, name)
    return parts


def _reduced(one: Any, other: Any, path: str, seen: set[tuple[int, int]]) -> str | None:
    """Compare what pickle would take of objects without attributes."""
    try:
        mine, theirs = one.__reduce_ex__(4), other.__reduce_ex__(4)
    except Exception:
        return f"{path or 'value'}: {_show(one)} and {_show(other)}, which cannot be compared"
    if isinstance(mine, str) or isinstance(theirs, str):
        return None if mine == theirs else f"{path or 'value'}: {_show(one)} and {_show(other)}"
    return _differ([*mine[:3]], [*theirs[:3]], path, seen)
