"""The code version of a class: what says whether recorded calls may be run again by this code.

What counts, for the class and each base but `Checkpointable` and classes of C: names of methods (also static
and class methods and properties), their instructions, constants, names, defaults and the functions that they
were wrapped around or close over; class attributes that are plain constants. What does not count: comments,
line numbers, file names, docstrings, annotations, and *functions and modules that methods call*: where those
matter, name the version yourself, ``code_version=``.

Invariants: the same in every process of one Python version (no addresses, no hash order), also for classes
that cloudpickle carried. Another minor version of Python compiles to other instructions and so is another
version: end an actor by `exit_actor` before an upgrade, or name the version yourself.
"""

from __future__ import annotations

import hashlib
from types import CodeType, FunctionType
from typing import Any

from . import actor

_HASHED = 1 << 63  # numbers that the user gives are below
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def class_code_version(cls: type) -> int:
    """Return the hash of a class's code: 64 bits, the highest of which is set."""
    digest = hashlib.blake2b(digest_size=8)
    for base in cls.__mro__:
        if base is object or base is actor.Checkpointable:
            continue
        digest.update(f"class {base.__name__}\n".encode())
        for name in sorted(base.__dict__):
            member = base.__dict__[name]
            if not _ignored(name):
                digest.update(f"{name} = {_describe(member, set())}\n".encode("utf-8", "backslashreplace"))
    return int.from_bytes(digest.digest(), "little") | _HASHED


def _ignored(name: str) -> bool:
    """Names that the interpreter, not the user, puts into a class."""
    return name in (
        "__module__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__qualname__",
        "__firstlineno__",
        "__static_attributes__", "__annotate__", "__annotate_func__", "__annotations_cache__",
        "__checkpoint_options__", "__orig_bases__", "__parameters__", "__abstractmethods__", "_abc_impl",
    )  # fmt: skip


def _describe(value: Any, seen: set[int]) -> str:
    if isinstance(value, FunctionType):
        return _function(value, seen)
    if isinstance(value, (staticmethod, classmethod)):
        return f"{type(value).__name__}({_describe(value.__func__, seen)})"
    if isinstance(value, property):
        return f"property({', '.join(_describe(f, seen) for f in (value.fget, value.fset, value.fdel))})"
    return _constant(value, seen)


def _constant(value: Any, seen: set[int]) -> str:
    if isinstance(value, CodeType):
        return _code(value, None, seen)
    if type(value) in _PLAIN:
        return repr(value)
    if type(value) in (tuple, list):
        return f"{type(value).__name__}({', '.join(_constant(v, seen) for v in value)})"
    if type(value) in (set, frozenset):
        return f"{type(value).__name__}({', '.join(sorted(_constant(v, seen) for v in value))})"
    if type(value) is dict:
        items = (f"{_constant(k, seen)}: {_constant(v, seen)}" for k, v in value.items())
        return f"dict({', '.join(items)})"
    return f"a {type(value).__name__}"


def _function(function: FunctionType, seen: set[int]) -> str:
    if id(function) in seen:
        return "itself"
    seen.add(id(function))
    cells = [_cell(cell, seen) for cell in function.__closure__ or ()]
    wrapped = getattr(function, "__wrapped__", None)
    parts = [
        _code(function.__code__, function.__doc__, seen),
        _constant(function.__defaults__, seen),
        _constant(function.__kwdefaults__, seen),
        f"cells {cells}",
        f"wraps {_describe(wrapped, seen)}" if wrapped is not None else "",
    ]
    return f"function({'; '.join(parts)})"


def _cell(cell: Any, seen: set[int]) -> str:
    try:
        return _describe(cell.cell_contents, seen)
    except ValueError:  # not bound yet
        return "empty"


def _code(code: CodeType, doc: str | None, seen: set[int]) -> str:
    constants = list(code.co_consts)
    if doc is not None and constants[:1] == [doc]:
        constants[0] = None
    parts = (
        code.co_code.hex(),
        [_constant(c, seen) for c in constants],
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags & 0x3FF),
    )
    return f"code{parts!r}"
