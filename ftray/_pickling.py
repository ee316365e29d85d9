"""Pickling off the hot path: by value through cloudpickle, functions and classes, and wording failures.

Owns: the cloudpickle pickler, the limits on the size of functions, and the search for the part of a value
that cannot be pickled.  Invariants: cloudpickle is imported on first need only; the search happens after a
failure only, is bounded in attempts and depth, and never changes what was pickled.  Leaves to others: layout
(`ftray._core.serial`), plain pickling and captured refs (`ftray._core.pickler`).
"""

from __future__ import annotations

import sys
from functools import lru_cache, partial
from itertools import islice
from types import CodeType, FunctionType, MethodType, ModuleType

from ftray import _serializers
from ftray.exceptions import DeserializationError, RayError, SerializationError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

FUNCTION_SIZE_WARN = 10**7  # Ray's thresholds, bytes
FUNCTION_SIZE_MAX = 10**8
_DEPTH_MAX = 24
_ATTEMPTS_MAX = 400
_ADVICE = (
    "Things that belong to one process (locks, sockets, files, generators, database connections) cannot be "
    "sent: create them inside the task or the actor's constructor, leave them out with __getstate__(), or "
    "register a serializer with ftray.util.register_serializer()."
)


# --- by value -------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _pickler_class() -> Any:
    import cloudpickle

    class ByValuePickler(cloudpickle.CloudPickler):  # type: ignore[misc]
        """cloudpickle, after the user's serializers."""

        def __init__(self, file: Any, buffer_callback: Any, first: Callable[[Any], Any]) -> None:
            super().__init__(file, protocol=5, buffer_callback=buffer_callback)
            self._first = first

        def reducer_override(self, obj: Any) -> Any:
            reduced = self._first(obj)
            return super().reducer_override(obj) if reduced is NotImplemented else reduced

    return ByValuePickler


def dump_by_value(value: Any, file: Any, buffer_callback: Any, first: Callable[[Any], Any]) -> None:
    """Pickle into ``file`` with cloudpickle.

    Parameters
    ----------
    value
        Anything.
    file
        Has ``write(bytes)``.
    buffer_callback
        As for `pickle.Pickler`.
    first
        ``obj -> reduce tuple or NotImplemented``, asked before cloudpickle's own rules.
    """
    _pickler_class()(file, buffer_callback, first).dump(value)


# --- functions and classes ------------------------------------------------------------------------


def pickle_function(function: Any, refs: list[Any] | None = None) -> bytes:
    """Serialise a function or class for workers: by name when they can import it, else by value.

    Parameters
    ----------
    function
        A function or a class.
    refs
        Receives the ObjectRefs it captured; None: they are not recorded.

    Returns
    -------
    bytes
        What `unpickle_function` takes.

    Raises
    ------
    SerializationError
        It captured something that cannot be pickled, or more than `FUNCTION_SIZE_MAX` bytes.
    """
    from ftray._core.serial import serialize

    blob = serialize(_aliased(function), refs)
    if len(blob) > FUNCTION_SIZE_WARN:
        _check_size(function, len(blob))
    return blob


def _aliased(function: Any) -> Any:
    """Have workers import ftray as ray before they rebuild ``function``, if this process does so."""
    compat = sys.modules.get("ftray.compat")
    return compat.Aliased(function) if compat is not None and compat.is_installed() else function


def unpickle_function(blob: bytes) -> Any:
    """Rebuild what `pickle_function` made; `DeserializationError` when this process cannot."""
    from ftray._core.serial import deserialize

    return deserialize(blob)


def _check_size(function: Any, size_bytes: int) -> None:
    name = getattr(function, "__qualname__", repr(function))
    largest = sorted(_captured_sizes(function), reverse=True)[:3]
    captured = (
        ", ".join(f"{step.strip(' >-')} ({size / 1e6:.1f} MB)" for size, step in largest) or "nothing large"
    )
    text = (
        f"{name} is {size_bytes / 1e6:.1f} MB when pickled, and each worker that runs it gets a copy. "
        f"Largest parts: {captured}. Pass large values as arguments: put() them once and give the reference."
    )
    if size_bytes > FUNCTION_SIZE_MAX:
        raise SerializationError(f"{text} At most {FUNCTION_SIZE_MAX // 10**6} MB are allowed.")
    import warnings

    warnings.warn(text, stacklevel=4)


def _captured_sizes(function: Any) -> Iterator[tuple[int, str]]:
    from ftray._core.pickler import probe

    for step, child in islice(_children(function), _ATTEMPTS_MAX):
        # A part that fails alone counts for nothing: as the whole could be pickled, it is left out there.
        if _failure_of(child) is None:
            yield probe(child), step


# --- failures -------------------------------------------------------------------------------------


def explain(value: Any, failure: BaseException, is_args: bool) -> SerializationError:
    """Say which part of a value cannot be pickled.

    Parameters
    ----------
    value
        What was to be pickled; with ``is_args`` an ``(args, kwargs or None)`` pair.
    failure
        What pickle or cloudpickle raised for the whole.
    is_args
        The path starts at ``args[i]`` or ``kwargs['name']``.
    """
    compat = sys.modules.get("ftray.compat")
    if compat is not None and isinstance(value, compat.Aliased):
        value = value.function
    if isinstance(failure, RecursionError) or isinstance(failure.__cause__, RecursionError):
        return SerializationError(
            f"cannot pickle {_root_name(value, is_args)}: it is nested too deeply for pickle (recursion "
            "limit). Flatten it, e.g. turn a linked structure into a list."
        )
    path, culprit, why = _locate(value, failure, is_args)
    return SerializationError(
        f"cannot pickle {path}, {_type_text(culprit)}: {_why(why)}. {_ADVICE}", path=path
    )


def deserialization_error(failure: BaseException, size_bytes: int) -> DeserializationError:
    """Word a failure to unpickle ``size_bytes`` bytes in this process."""
    text = f"a value of {size_bytes} bytes cannot be rebuilt in this process: {_why(failure)}."
    if isinstance(failure, ImportError | AttributeError):
        text += (
            " What it needs must be importable in every process: install it where workers run, or have it "
            "pickled by value with cloudpickle.register_pickle_by_value(module)."
        )
    return DeserializationError(text)


def _why(failure: BaseException) -> str:
    return f"{type(failure).__name__}: {failure}".rstrip(". ")


def _type_text(obj: Any) -> str:
    cls = type(obj)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    return f"of type {name}"


def _root_name(value: Any, is_args: bool) -> str:
    if is_args:
        return "the arguments"
    if isinstance(value, FunctionType | type):
        return f"{'class' if isinstance(value, type) else 'function'} {value.__qualname__}"
    return "the value"


def _roots(value: Any, is_args: bool) -> Iterator[tuple[str, Any]]:
    if not is_args:
        yield _root_name(value, False).replace("the value", "value"), value
        return
    args, kwargs = value
    for i, arg in enumerate(args):
        yield f"args[{i}]", arg
    for name, arg in (kwargs or {}).items():
        yield f"kwargs[{name!r}]", arg


def _locate(value: Any, failure: BaseException, is_args: bool) -> tuple[str, Any, BaseException]:
    """Descend into the first part that fails by itself until no part does: (path, object, its failure)."""
    path, current, why = _root_name(value, is_args), value, failure
    candidates: Iterator[tuple[str, Any]] = _roots(value, is_args)
    seen = {id(value)} if is_args else set()
    attempts = 0
    for depth in range(_DEPTH_MAX):
        for step, child in candidates:
            attempts += 1
            if attempts > _ATTEMPTS_MAX:
                return path, current, why
            problem = None if id(child) in seen else _failure_of(child)
            if problem is not None:
                path = step if depth == 0 else path + step
                current, why = child, problem
                seen.add(id(child))
                break
        else:
            break
        candidates = _children(current)
    return path, current, why


def _failure_of(obj: Any) -> Exception | None:
    from ftray._core.pickler import probe

    try:
        probe(obj)
    except Exception as failure:
        return failure
    return None


def _children(obj: Any) -> Iterator[tuple[str, Any]]:
    """Yield (step for the path, part) for what pickling ``obj`` has to pickle."""
    if type(obj) in _serializers.registered:
        yield from _serialized_parts(obj)
    elif isinstance(obj, dict):
        yield from ((f"[{_short(key)}]", part) for key, part in list(obj.items()))
        yield from ((f" -> key {_short(key)}", key) for key in list(obj))
    elif isinstance(obj, list | tuple):
        yield from ((f"[{i}]", part) for i, part in enumerate(obj))
    elif isinstance(obj, set | frozenset):
        yield from ((f" -> element {_short(part)}", part) for part in obj)
    elif isinstance(obj, FunctionType):
        yield from _function_parts(obj)
    elif isinstance(obj, MethodType):
        yield ".__self__", obj.__self__
        yield ".__func__", obj.__func__
    elif isinstance(obj, partial):
        yield from ((".func", obj.func), (".args", obj.args), (".keywords", obj.keywords))
    elif isinstance(obj, type):
        yield from ((f".{name}", part) for name, part in list(vars(obj).items()) if not name.startswith("__"))
        yield from (
            (f".{name}", part) for name, part in list(vars(obj).items()) if isinstance(part, FunctionType)
        )
    elif isinstance(obj, staticmethod | classmethod):
        yield ".__func__", obj.__func__
    elif not isinstance(obj, ModuleType):
        yield from _reduced_parts(obj)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = f"<{type(value).__name__}>"
    return text if len(text) <= 60 else text[:57] + "..."


def _function_parts(function: FunctionType) -> Iterator[tuple[str, Any]]:
    name = function.__qualname__
    for variable, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=False):
        try:
            yield f" -> closure variable {variable!r} of function {name}", cell.cell_contents
        except ValueError:
            continue  # assigned later
    for i, value in enumerate(function.__defaults__ or ()):
        yield f" -> default value {i} of function {name}", value
    for variable, value in (function.__kwdefaults__ or {}).items():
        yield f" -> default of {variable!r} of function {name}", value
    for variable in sorted(_global_names(function.__code__)):
        if variable in function.__globals__:
            yield f" -> global variable {variable!r} used by function {name}", function.__globals__[variable]


def _global_names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _global_names(constant)
    return names


def _serialized_parts(obj: Any) -> Iterator[tuple[str, Any]]:
    """What the user's serializer makes of ``obj`` travels in its place, with the deserializer."""
    serializer, deserializer = _serializers.registered[type(obj)]
    try:
        yield " -> what its serializer returned", serializer(obj)
    except Exception:
        return  # the serializer itself fails, which `probe` has told
    yield " -> its deserializer", deserializer


def _reduced_parts(obj: Any) -> Iterator[tuple[str, Any]]:
    try:
        reduced = obj.__reduce_ex__(5)
    except Exception:
        return  # nothing can be said about its inside: this object is the culprit
    if not isinstance(reduced, tuple):
        return
    state = reduced[2] if len(reduced) > 2 else None
    for part in state if isinstance(state, tuple) else (state,):
        if isinstance(part, dict):
            yield from ((f".{name}", value) for name, value in list(part.items()))
        elif part is not None:
            yield ".__getstate__()", part
    yield from ((f" -> constructor argument {i}", value) for i, value in enumerate(reduced[1]))
    yield " -> class", type(obj)


__all__ = [
    "FUNCTION_SIZE_MAX",
    "FUNCTION_SIZE_WARN",
    "RayError",
    "deserialization_error",
    "dump_by_value",
    "explain",
    "pickle_function",
    "unpickle_function",
]
