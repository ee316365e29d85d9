"""Runs a coroutine that never waits, or waits by blocking: one text for threads and for event loops."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from .errors import CheckpointOptionError

T = TypeVar("T")


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` on the present thread to its end.

    Raises
    ------
    CheckpointOptionError
        It awaits what only an event loop could give: the actor has async methods and its engine runs none.
    """
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise no_loop()


def no_loop() -> CheckpointOptionError:
    """Return the error for what awaits something that only an event loop could give."""
    return CheckpointOptionError(
        "an async method of an exactly-once actor has to wait, and its engine runs it without an event loop: "
        "open the session with engine.open_async inside of the loop"
    )
