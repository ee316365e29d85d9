"""Filters of the state API: ``(key, "=" or "!=", value)``.

Pure. Owns: what is a valid filter, limit and time-out, and what matches. Texts compare without case,
numbers and truth values also when they are given as text, as from a command line.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ftray.util.state.records import StateSchema

PREDICATES = ("=", "!=")
MAX_LIMIT = 10_000
_TRUTH = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}

Filter = tuple[str, str, Any]


def checked(record: type[StateSchema], filters: Iterable[Filter] | None) -> list[Filter]:
    """Return the filters.

    Raises
    ------
    ValueError, TypeError
        Naming what is wrong and what is allowed.
    """
    if isinstance(filters, str) or not isinstance(filters, Iterable | None):
        raise TypeError(
            f"filters={filters!r:.200} must be a list of (key, predicate, value), for example"
            " [('state', '=', 'RUNNING')]"
        )
    found = []
    for given in filters or ():
        if isinstance(given, str) or not isinstance(given, list | tuple) or len(given) != 3:
            raise TypeError(
                f"a filter is (key, predicate, value), for example ('state', '=', 'RUNNING'), not {given!r}"
            )
        key, predicate, value = given
        allowed = record.filterable_columns()
        if key not in allowed:
            raise ValueError(f"{key!r} cannot be filtered by; allowed are {', '.join(sorted(allowed))}")
        if predicate not in PREDICATES:
            raise ValueError(
                f"the predicate {predicate!r} of the filter {given!r} is none; allowed are = and !="
            )
        if not isinstance(value, str | int | float | bool):
            raise TypeError(f"the value of the filter {given!r} must be text, a number or a truth value")
        found.append((key, predicate, value))
    return found


def checked_limit(limit: Any) -> int:
    """Return the limit; ValueError or TypeError when it makes no sense."""
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise TypeError(f"limit={limit!r} must be an integer")
    if not 1 <= limit <= MAX_LIMIT:
        raise ValueError(f"limit={limit} is out of range; allowed are 1 to {MAX_LIMIT}")
    return limit


def checked_timeout(timeout_s: Any) -> float:
    """Return the time-out in seconds; ValueError or TypeError when it makes no sense."""
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float):
        raise TypeError(f"timeout={timeout_s!r} must be a number of seconds")
    if not 0 < timeout_s <= 3600:
        raise ValueError(f"timeout={timeout_s} is out of range; allowed is more than 0, up to 3600 seconds")
    return float(timeout_s)


def equal(found: Any, wanted: Any, key: str) -> bool:
    """Whether a field has the value that a filter names."""
    if found is None:
        return isinstance(wanted, str) and wanted.lower() in ("none", "null", "")
    if isinstance(found, bool):
        text = str(wanted).lower()
        if text not in _TRUTH:
            raise ValueError(f"{key} is true or false; {wanted!r} is neither")
        return found is _TRUTH[text]
    if isinstance(found, int | float):
        try:
            return float(found) == float(wanted)
        except ValueError:
            raise ValueError(f"{key} is a number; {wanted!r} is none") from None
    return str(found).lower() == str(wanted).lower()


def matching(rows: Iterable[dict[str, Any]], filters: list[Filter]) -> list[dict[str, Any]]:
    """Return the rows that all filters let through."""
    if not filters:
        return list(rows)
    return [
        row
        for row in rows
        if all(equal(row[key], value, key) == (predicate == "=") for key, predicate, value in filters)
    ]
