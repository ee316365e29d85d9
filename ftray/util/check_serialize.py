"""Finding out why something cannot be sent."""

from __future__ import annotations

import sys
from itertools import islice
from typing import Any, NamedTuple, TextIO

from ftray import _pickling

_PARTS_MAX = 1000


class FailureTuple(NamedTuple):
    """Something that cannot be pickled, and where it was found."""

    obj: Any
    name: str
    parent: Any


def inspect_serializability(
    base_obj: Any, name: str | None = None, depth: int = 3, print_file: TextIO | None = None
) -> tuple[bool, set[FailureTuple]]:
    """Say whether a value, function or class can be sent to workers, and if not, what in it is the reason.

    Parameters
    ----------
    base_obj : object
        What to look into.
    name : str, optional
        What the report calls it; its ``repr()`` by default.
    depth : int, default 3
        How many levels to look into.
    print_file : file, optional
        Where the report is printed; standard output by default.

    Returns
    -------
    bool
        Whether it can be sent.
    set of FailureTuple
        ``obj``, ``name`` and ``parent`` of the innermost parts that cannot; empty when it can.

    Raises
    ------
    ValueError
        `depth` is below 1.
    """
    if depth < 1:
        raise ValueError(f"depth={depth} is not valid: it must be at least 1")
    out = print_file or sys.stdout
    title = name or _pickling._short(base_obj)
    why = _pickling._failure_of(base_obj)
    if why is None:
        print(f"{title} can be serialised", file=out)
        return True, set()
    print(f"{title} cannot be serialised: {why}", file=out)
    failures: dict[int, FailureTuple] = {}
    _search(base_obj, title, base_obj, depth, failures, {id(base_obj)}, out, "  ")
    print(
        "The reason: " + "; ".join(f"{f.name}, a {type(f.obj).__name__}" for f in failures.values()), file=out
    )
    return False, set(failures.values())


class _Hashable(FailureTuple):
    """Hashes by identity: what cannot be pickled is often not hashable either."""

    def __hash__(self) -> int:
        return hash((id(self.obj), self.name))


def _search(
    obj: Any,
    name: str,
    parent: Any,
    depth: int,
    failures: dict[int, FailureTuple],
    seen: set[int],
    out: TextIO,
    indent: str,
) -> None:
    """Record the innermost parts of ``obj``, which cannot be pickled, that cannot be pickled themselves."""
    found = False
    for step, part in islice(_pickling._children(obj), _PARTS_MAX):
        if id(part) in seen:
            continue
        why = _pickling._failure_of(part)
        if why is None:
            continue
        found = True
        seen.add(id(part))
        label = step.strip(" >-.")
        print(f"{indent}{label}: {why}", file=out)
        if depth > 1:
            _search(part, label, obj, depth - 1, failures, seen, out, indent + "  ")
        else:
            failures[id(part)] = _Hashable(part, label, obj)
    if not found:
        failures[id(obj)] = _Hashable(obj, name, parent)
