"""Runs one method in the context of its call; the same for threads, event loops, replay and serving."""

from __future__ import annotations

from collections.abc import Callable
from types import AsyncGeneratorType, GeneratorType
from typing import TYPE_CHECKING, Any

from ftray._core import ObjectRef

from .codec import Arguments
from .values import Execution, _Reading, current

if TYPE_CHECKING:
    from .exactly_once import ExactlyOnce


async def run_method(
    once: ExactlyOnce, execution: Execution | _Reading, function: Callable[..., Any], arguments: Arguments
) -> tuple[Any, Exception | None]:
    """Return what the method returned, or the exception that is its reply.

    Raises
    ------
    BaseException
        What is no reply but the end of the process: `KeyboardInterrupt`, `SystemExit`, `MemoryError` and the
        like.
    """
    token = current.set(execution)
    try:
        with once.context(execution):
            result = function(*arguments[0], **arguments[1])
            if is_awaited(result):
                result = await result
        check_result(result)
        return result, None
    except BaseException as error:
        if isinstance(execution, Execution) and execution.exits:
            return None, None
        if once.is_crash(error):
            raise
        return None, error  # type: ignore[return-value]
    finally:
        current.reset(token)


def is_awaited(result: object) -> bool:
    """Whether a method has returned what is still to be waited for; a ref is a result like others."""
    return hasattr(type(result), "__await__") and not isinstance(result, ObjectRef)


async def awaited(result: Any) -> Any:
    """Wait for what a method has returned."""
    return await result


def check_result(result: object) -> None:
    """Raise if a method's caller would decide how far it runs."""
    if isinstance(result, (GeneratorType, AsyncGeneratorType)):
        raise TypeError(
            f"a method of an exactly-once actor has returned a {type(result).__name__}: its caller would "
            "decide how far it runs. Return a list"
        )
