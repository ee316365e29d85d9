"""The debug switch: read-only methods must change nothing, and exactly-once calls do the same when run again.

``verify=True``, or ``FTRAY_CHECKPOINT_VERIFY=1`` for all actors of a process. Owns copies of the state. Calls
of exactly-once actors run twice, as in recovery, with what they do outside of the actor by themselves: this
is for tests.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple

from . import capture
from .actor import readonly_names
from .codec import reply_difference
from .compare import difference
from .errors import ReadonlyChangedError, ReplayDivergedError
from .requirements import methods_of
from .running import run_method
from .state import attribute_names, drop_attributes
from .values import Execution

if TYPE_CHECKING:
    from .exactly_once import ExactlyOnce
    from .session import ActorSession


class Before(NamedTuple):
    """A state that was set aside, as bytes, and the names of its attributes."""

    segments: list[bytes]
    names: frozenset[str]


class StateCheck:
    """Compares the state of one actor with what it was."""

    def __init__(self, session: ActorSession) -> None:
        self._session = session
        self._capturer = capture.StateCapturer()

    def before(self) -> Before:
        """Set the present state aside."""
        captured = self._capturer.capture(self._session.instance.save_checkpoint())
        segments = [b"".join(segment) for segment in captured.segments]
        return Before(segments, attribute_names(self._session.instance))

    def unchanged(self, before: Before | None, method: str) -> None:
        """Raise `ReadonlyChangedError` if the state is not that of `before` any more."""
        assert before is not None
        found = self.difference(before, self.before())
        if found is not None:
            raise ReadonlyChangedError(
                f"{type(self._session.instance).__name__}.{method} is marked readonly and has changed the "
                f"state: {found} (before first). Its effect would be lost after a crash: remove the mark"
            )

    def difference(self, one: Before, other: Before) -> str | None:
        """Say where two states differ, None if nowhere."""
        if one == other:
            return None
        return difference(_state(one), _state(other))

    def load(self, saved: Before) -> None:
        """Take the actor back to a state."""
        instance = self._session.instance
        instance.load_checkpoint(_state(saved))
        drop_attributes(instance, sorted(attribute_names(instance) - saved.names))


class Verifier(StateCheck):
    """Checks the calls of one exactly-once session."""

    def __init__(self, session: ActorSession, once: ExactlyOnce) -> None:
        super().__init__(session)
        self._once = once

    async def run_again(
        self,
        before: Before | None,
        execution: Execution,
        function: Callable[..., Any],
        reply: tuple[int, bytes],
    ) -> None:
        """Run a call that has just ended once more from the state before it.

        Raises
        ------
        ReplayDivergedError
            The reply or the state is not the same.
        """
        assert before is not None
        execution.ended()
        after = self.before()
        if execution.method in self._once.nondeterministic_names:
            return
        self.load(before)
        again = self._once.replaying(execution.head, execution.method, execution.args, execution.recorded)
        arguments = self._once.codec.decode_args(execution.args)
        result, error = await run_method(self._once, again, function, arguments)
        again.ended()
        codec = self._once.codec
        second = codec.encode_outcome(execution.method, result, error, codec.count_returns(reply[1]))
        found = reply_difference(codec, reply, second)
        if found is None:
            found = self.difference(after, self.before())
            found = found and f"state{found.removeprefix('value')}"
        if found is not None:
            raise ReplayDivergedError(
                f"verify: {type(self._session.instance).__name__}.{execution.method} does not do the same "
                f"when it runs again: {found} (first run first). It depends on something besides state and "
                "arguments: pass it as an argument, get it through self.record(...), or mark the method "
                "@nondeterministic"
            )
        self.load(after)


def _state(saved: Before) -> Any:
    return capture.load([bytearray(segment) for segment in saved.segments])


class ReadonlyCheck:
    """Checks the read-only methods of one actor in snapshot mode, by running them from here."""

    def __init__(self, session: ActorSession) -> None:
        self._session, self._state = session, StateCheck(session)

    def methods(self) -> dict[str, Callable[..., Any]]:
        """Return the read-only methods by name, each with a look at the state before and after it."""
        instance = self._session.instance
        names = readonly_names(type(instance)) & methods_of(type(instance)).keys()
        return {name: self._checked(name, getattr(instance, name)) for name in sorted(names)}

    @contextmanager
    def _unchanged(self, name: str) -> Iterator[None]:
        """What runs in it changes nothing; said only if no method ran beside it that may change the state."""
        session = self._session
        with session.running.gate:
            calls = session.calls.total
            before = self._state.before() if not session.running.number else None
        raised: Exception | None = None
        try:
            yield
        except Exception as error:
            raised = error
        with session.running.gate:
            if before is not None and not session.running.number and session.calls.total == calls:
                self._state.unchanged(before, name)
        if raised is not None:
            raise raised

    def _checked(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        if inspect.isasyncgenfunction(method):

            @wraps(method)
            async def stream(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                with self._unchanged(name):
                    async for item in method(*args, **kwargs):
                        yield item

            return stream
        if inspect.iscoroutinefunction(method):

            @wraps(method)
            async def awaited(*args: Any, **kwargs: Any) -> Any:
                with self._unchanged(name):
                    return await method(*args, **kwargs)

            return awaited
        if inspect.isgeneratorfunction(method):

            @wraps(method)
            def generated(*args: Any, **kwargs: Any) -> Iterator[Any]:
                with self._unchanged(name):
                    yield from method(*args, **kwargs)

            return generated

        @wraps(method)
        def called(*args: Any, **kwargs: Any) -> Any:
            with self._unchanged(name):
                return method(*args, **kwargs)

        return called
