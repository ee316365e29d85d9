"""Do arguments fit a function? Checked at the call, before anything travels.

Works on code objects, without ``inspect`` (slow to import) and without binding (slow to run): a call that
gives only positional arguments costs two comparisons in the core.
"""

from __future__ import annotations

from ftray._node.record import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

_VARARGS, _VARKEYWORDS = 0x04, 0x08
_YIELDS = 0x20 | 0x200  # CO_GENERATOR, CO_ASYNC_GENERATOR
NO_LIMIT = 1 << 30


class Arity(Record):
    """What a function takes. ``simple_min``/``simple_max``: how many arguments fit if all are positional."""

    name: str
    positional: tuple[str, ...]
    positional_only: int
    defaults: int
    keyword_only: tuple[str, ...]
    keyword_required: tuple[str, ...]
    varargs: bool
    varkeywords: bool
    is_generator: bool

    @property
    def simple_min(self) -> int:
        return NO_LIMIT if self.keyword_required else len(self.positional) - self.defaults

    @property
    def simple_max(self) -> int:
        return NO_LIMIT if self.varargs else len(self.positional)


def arity_of(function: Callable[..., Any], name: str, skip: int = 0) -> Arity | None:
    """Read what a function takes; None when it has no Python code to read (then anything may fit).

    Parameters
    ----------
    skip
        Leading parameters that the call does not give (``self``).
    """
    target = getattr(function, "__func__", function)
    code = getattr(target, "__code__", None)
    if code is None:
        return None
    names = code.co_varnames
    positional = names[: code.co_argcount][skip:]
    keyword_only = names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    given = getattr(target, "__kwdefaults__", None) or {}
    return Arity(
        name,
        positional,
        max(0, code.co_posonlyargcount - skip),
        min(len(getattr(target, "__defaults__", None) or ()), len(positional)),
        keyword_only,
        tuple(n for n in keyword_only if n not in given),
        bool(code.co_flags & _VARARGS),
        bool(code.co_flags & _VARKEYWORDS),
        bool(code.co_flags & _YIELDS),
    )


def constructor_arity(cls: Any) -> Arity | None:
    """Read what ``cls(...)`` takes; None when that cannot be known."""
    if cls.__init__ is object.__init__ and cls.__new__ is object.__new__ and type(cls) is type:
        return Arity(cls.__name__, (), 0, 0, (), (), False, False, False)
    return arity_of(cls.__init__, cls.__name__, 1)


def check(arity: Arity | None, args: tuple[Any, ...], kwargs: dict[str, Any] | None) -> None:
    """Raise unless the arguments fit.

    Raises
    ------
    TypeError
        As the call itself would, naming what is missing or too much.
    """
    if arity is None:
        return
    named = kwargs or {}
    if len(args) > len(arity.positional) and not arity.varargs:
        raise TypeError(
            f"{arity.name}() takes {_count(len(arity.positional))} but {len(args)}"
            f" {'was' if len(args) == 1 else 'were'} given"
        )
    taken = set(arity.positional[: len(args)])
    by_name = set(arity.positional[arity.positional_only :]) | set(arity.keyword_only)
    for key in named:
        if key in taken and key in by_name:
            raise TypeError(f"{arity.name}() got multiple values for argument {key!r}")
        if key not in by_name and not arity.varkeywords:
            raise TypeError(
                f"{arity.name}() got an unexpected keyword argument {key!r}; it takes {_names(by_name)}"
            )
    required = arity.positional[len(args) : len(arity.positional) - arity.defaults]
    missing = [n for n in (*required, *arity.keyword_required) if n not in named or n not in by_name]
    if missing:
        raise TypeError(f"{arity.name}() is missing {', '.join(map(repr, missing))}")


def _count(number: int) -> str:
    return f"{number} positional argument{'' if number == 1 else 's'}"


def _names(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
