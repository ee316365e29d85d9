"""How values from outside are written for the journal of an exactly-once actor on this engine."""

from __future__ import annotations

from typing import Any

from ftray._core.serial import deserialize, serialize
from ftray.exceptions import NotSupportedError, RayError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

# Kinds of outside values; below 16 are the toolkit's own.
GET, WAIT, AWAIT_BY_NUMBER, MADE, NOT_SENT, CANCELLED, AWAIT = 16, 17, 18, 19, 20, 21, 22
VALUE, ERROR = b"\x00", b"\x01"


def encode(produce: Callable[[], Any], with_refs: bool = False) -> list[Any]:
    """Return the bytes of an outcome, and the outcome itself: the value, or the exception.

    A value that cannot be recorded is an exception, too. `with_refs`: it may contain refs, which nobody keeps
    for a later run.
    """
    refs: list[Any] = []
    try:
        value = produce()
        data = serialize(value, refs)
        if refs and not with_refs:
            raise NotSupportedError(
                "a method of an exactly-once actor that changes its state has got a value that contains an "
                "ObjectRef or an actor's handle: what such a method gets is recorded, and a ref does not "
                "outlive its owner. Let the other side return the value itself"
            )
        return [VALUE + data, value]
    except Exception as error:
        if isinstance(error, MemoryError):
            raise
        return [ERROR + encode_error(error), error]


def encode_error(error: Exception) -> bytes:
    """Return the bytes of an exception, which `decode` raises behind `ERROR`."""
    from ftray._task_errors import dump_error, load_error, make_task_error

    data = dump_error(error)  # type: ignore[arg-type]
    if isinstance(error, RayError) or type(load_error(data)) is type(error):
        return data
    return make_task_error(error, "", 0)


def decode(data: bytes, kept: list[Any]) -> Any:
    """Return the value that was recorded, or raise; `kept` is the very object, where this run has got it."""
    if data[:1] != ERROR:
        return kept.pop() if kept else deserialize(data[1:])
    from ftray._task_errors import load_error

    error = kept.pop() if kept else load_error(data[1:])
    try:
        raise error
    finally:
        del error  # the frames that its traceback keeps shall not keep it
