"""How exceptions travel between processes.

Owns: the payload of an error value (a pickle of builtin types around separately pickled exceptions), the
rebuilding of exceptions without their constructors, and remote tracebacks without ftray's own frames.
Invariants: dumping and loading never raise for what the user's exception is or does; a part that cannot
travel is replaced and named; nothing but builtin types is needed to read the frame, so that a missing class
costs only the exception's type.  Leaves to others: where payloads are stored, and which errors exist
(`ftray.exceptions`).
"""

from __future__ import annotations

import os
import pickle
from typing import NamedTuple

from ftray import exceptions as _exc

TYPE_CHECKING = False
if TYPE_CHECKING:
    import traceback
    from typing import Any

_PACKAGE = os.path.dirname(os.path.abspath(_exc.__file__))
_CHAIN_MAX = 8  # causes of causes that travel
_TEXT_MAX = 10_000  # characters of an exception's own text
_USER_FACING = ("util", "serve", "checkpoint", "experimental")  # code that runs in actors like a user's


def make_task_error(
    exc: BaseException, function_name: str, pid: int, *, ip: str = "", actor_repr: str = ""
) -> bytes:
    """Serialise an exception that a task or method raised.

    Parameters
    ----------
    exc
        The exception, with its traceback.
    function_name
        Qualified name of the function or ``Class.method``.
    pid, ip, actor_repr
        See `ftray.exceptions.RayTaskError`.

    Returns
    -------
    bytes
        What `load_error` takes.
    """
    fields = {
        "function_name": function_name,
        "traceback_str": format_remote(exc),
        "pid": pid,
        "ip": ip,
        "actor_repr": actor_repr,
    }
    return pickle.dumps(("task", fields, dump_chain(exc)), 5)


def dump_error(error: _exc.RayError) -> bytes:
    """Serialise an error of ftray itself (a crashed worker, a dead actor); `load_error` returns its like."""
    return pickle.dumps(("error", {}, dump_chain(error)), 5)


def load_error(payload: bytes) -> Exception:
    """Rebuild the exception that ``get()`` raises.

    Parameters
    ----------
    payload
        From `make_task_error` or `dump_error`.

    Returns
    -------
    Exception
        A fresh instance; a `DeserializationError` when the payload itself is damaged.
    """
    try:
        kind, fields, chain = pickle.loads(payload)
        cause = load_chain(chain)
        if kind == "task":
            return _exc.RayTaskError(cause=cause, **fields).as_instanceof_cause()
        if not isinstance(cause, Exception):
            raise TypeError(f"{type(cause).__name__} is no Exception")
        return cause
    except Exception as exc:
        error = _exc.DeserializationError(
            f"the error of a task cannot be read ({len(payload)} bytes): {exc!r}"
        )
        error.__cause__ = exc
        return error


# --- the exception and its causes -----------------------------------------------------------------


class Link(NamedTuple):
    """One exception of a chain: ways to rebuild it, the best first, and what remains when all fail."""

    blobs: tuple[bytes, ...]
    class_name: str
    text: str
    problem: str  # why there is no blob
    relation: str  # to the exception before: "", cause, context


def dump_chain(exc: BaseException) -> list[tuple[Any, ...]]:
    """Take apart the exception and what it came from; `load_chain` puts them together."""
    links: list[tuple[Any, ...]] = []
    seen: set[int] = set()
    current: BaseException | None = exc
    relation = ""
    while current is not None and id(current) not in seen and len(links) < _CHAIN_MAX:
        seen.add(id(current))
        links.append(tuple(_dump_one(current, relation)))
        if current.__cause__ is not None:
            current, relation = current.__cause__, "cause"
        else:
            current, relation = None if current.__suppress_context__ else current.__context__, "context"
    return links


def load_chain(chain: list[tuple[Any, ...]]) -> BaseException:
    """Rebuild what `dump_chain` took apart."""
    links = [Link(*fields) for fields in chain]
    errors = [_load_one(link) for link in links]
    for outer, inner, link in zip(errors, errors[1:], links[1:], strict=False):
        if link.relation == "cause":
            outer.__cause__ = inner
        else:
            outer.__context__ = inner
    return errors[0]


def _dump_one(exc: BaseException, relation: str) -> Link:
    cls = type(exc)
    name = cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    blobs, problems = [], []
    for way in (_own, _bare) if _has_own_reduce(cls) else (_bare,):
        try:
            blobs.append(way(exc))
        except Exception as failure:
            problems.append(safe_text(failure))
    return Link(tuple(blobs), name, safe_text(exc), "; ".join(problems), relation)


def _own(exc: BaseException) -> bytes:
    from ftray._core.serial import serialize

    return serialize(("own", exc))


def _has_own_reduce(cls: type[BaseException]) -> bool:
    base = _exc.builtin_base(cls)
    return (
        cls.__reduce__ is not base.__reduce__
        or cls.__reduce_ex__ is not base.__reduce_ex__
        or cls.__setstate__ is not base.__setstate__
    )


def _bare(exc: BaseException) -> bytes:
    """Take it apart so that no constructor is needed; what cannot be pickled is replaced by its repr."""
    from ftray._core.serial import serialize

    cls = type(exc)
    reduced: Any = _exc.builtin_base(cls).__reduce__(exc)
    state = dict(reduced[2]) if len(reduced) > 2 and reduced[2] else {}
    state.update(_slot_values(exc))
    args = tuple(_picklable(value) for value in reduced[1])
    return serialize(("bare", cls, args, {name: _picklable(value) for name, value in state.items()}))


def _slot_values(exc: BaseException) -> dict[str, Any]:
    values = {}
    for layer in type(exc).__mro__:
        slots = layer.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            private = slot.startswith("__") and not slot.endswith("__")
            name = f"_{layer.__name__.lstrip('_')}{slot}" if private else slot
            if slot not in ("__dict__", "__weakref__") and hasattr(exc, name):
                values[name] = getattr(exc, name)
    return values


def _picklable(value: Any) -> Any:
    """Return the value, or its repr when it cannot be pickled."""
    from ftray._core.serial import serialize

    if value is None or type(value) in (str, int, float, bool, bytes):
        return value
    try:
        serialize(value)
    except Exception:
        return safe_repr(value)
    return value


def _load_one(link: Link) -> BaseException:
    from ftray._core.serial import deserialize

    problem = link.problem
    for blob in link.blobs:
        try:
            kind, *rest = deserialize(blob)
            loaded = (
                rest[0] if kind == "own" else _exc.bare_instance(rest[0], _exc.builtin_base(rest[0]), rest)
            )
            if isinstance(loaded, BaseException):
                return loaded
            problem = f"it became a {type(loaded).__name__}"
        except Exception as failure:
            problem = safe_text(failure)
    return _exc.UnserializableException(link.class_name, link.text, problem)


# --- texts ----------------------------------------------------------------------------------------


def _safe(function: Any, value: Any) -> str:
    try:
        return str(function(value))
    except Exception as failure:
        return f"<{type(value).__name__} whose {function.__name__}() raised {type(failure).__name__}>"


def _limited(text: str) -> str:
    return text if len(text) <= _TEXT_MAX else f"{text[:_TEXT_MAX]}... ({len(text)} characters)"


def safe_text(exc: BaseException) -> str:
    """Return ``str(exc)`` whatever the user's ``__str__`` does."""
    return _limited(_safe(str, exc))


def safe_repr(value: Any) -> str:
    """Return ``repr(value)`` whatever the user's ``__repr__`` does."""
    return _limited(_safe(repr, value))


def _is_internal(filename: str) -> bool:
    """Whether a frame is ftray's machinery (compiled modules name their source relative to the build)."""
    if filename.endswith((".pyx", ".pxd")):
        return "_core" in filename.replace("\\", "/").split("/")
    path = os.path.abspath(filename)
    if not path.startswith(_PACKAGE + os.sep):
        return False
    return os.path.relpath(path, _PACKAGE).split(os.sep)[0] not in _USER_FACING


def format_remote(exc: BaseException) -> str:
    """Format the traceback with its causes, without ftray's frames (unless there are no others)."""
    import traceback

    try:
        summary = traceback.TracebackException.from_exception(exc, compact=True)
        _cut(summary, set())
        return "".join(summary.format())
    except Exception as failure:
        return f"{type(exc).__qualname__}: {safe_text(exc)} (no traceback: {safe_text(failure)})\n"


def _cut(summary: traceback.TracebackException, seen: set[int]) -> None:
    if id(summary) in seen:
        return
    seen.add(id(summary))
    kept = [frame for frame in summary.stack if not _is_internal(frame.filename)]
    if kept:
        summary.stack[:] = kept
    for other in (summary.__cause__, summary.__context__, *(getattr(summary, "exceptions", None) or ())):
        if other is not None:
            _cut(other, seen)
