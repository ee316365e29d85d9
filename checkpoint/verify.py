"""The debug switch: runs every call twice, as recovery would, and looks whether it does the same.

``verify=True``, or ``FTRAY_CHECKPOINT_VERIFY=1`` for all exactly-once actors of a process. Owns copies of
the state. What a method does outside of the actor by itself is done twice as well: this is for tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from . import capture
from .codec import reply_difference
from .compare import difference
from .errors import ReadonlyChangedError, ReplayDivergedError
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


class Verifier:
    """Checks the calls of one session."""

    def __init__(self, session: ActorSession, once: ExactlyOnce) -> None:
        self._session, self._once = session, once
        self._capturer = capture.StateCapturer()

    def before(self) -> Before:
        """Set the present state aside."""
        captured = self._capturer.capture(self._session.instance.save_checkpoint())
        segments = [b"".join(segment) for segment in captured.segments]
        return Before(segments, attribute_names(self._session.instance))

    def unchanged(self, before: Before | None, method: str) -> None:
        """Raise `ReadonlyChangedError` if the state is not that of `before` any more."""
        assert before is not None
        found = self._difference(before, self.before())
        if found is not None:
            raise ReadonlyChangedError(
                f"{type(self._session.instance).__name__}.{method} is marked readonly and has changed the "
                f"state: {found} "
                "(before first). Its effect would be lost after a crash: remove the mark"
            )

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
        after = self.before()
        if execution.method in self._once.nondeterministic_names:
            return
        self._load(before)
        again = self._once.replaying(execution.head, execution.method, execution.args, execution.recorded)
        arguments = self._once.codec.decode_args(execution.args)
        result, error = await run_method(self._once, again, function, arguments)
        again.ended()
        second = self._once.codec.encode_outcome(execution.method, result, error)
        found = reply_difference(self._once.codec, reply, second)
        if found is None:
            found = self._difference(after, self.before())
            found = found and f"state{found.removeprefix('value')}"
        if found is not None:
            raise ReplayDivergedError(
                f"verify: {type(self._session.instance).__name__}.{execution.method} does not do the same "
                "when it runs again: "
                f"{found} (first run first). It depends on something besides state and arguments: pass it as "
                "an argument, "
                "get it through self.record(...), or mark the method @nondeterministic"
            )
        self._load(after)

    def _difference(self, one: Before, other: Before) -> str | None:
        if one == other:
            return None
        return difference(_state(one), _state(other))

    def _load(self, saved: Before) -> None:
        instance = self._session.instance
        instance.load_checkpoint(_state(saved))
        drop_attributes(instance, sorted(attribute_names(instance) - saved.names))


def _state(saved: Before) -> Any:
    return capture.load([bytearray(segment) for segment in saved.segments])
