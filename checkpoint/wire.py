"""How whoever takes a cut talks to the members: by calls of their handles. Tests have another one.

A method of each member (`Checkpointable._checkpoint_group`) does the steps; see `members`.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from . import actor, generations
from .errors import CheckpointTimeoutError, UnsupportedStoreError
from .stores import connect
from .stores.protocol import Store


def engine_of(handle: Any) -> Any:
    """Return the module whose ``get`` and ``wait`` take the refs of this handle's calls."""
    of_ray = any(base.__module__.partition(".")[0] == "ray" for base in type(handle).__mro__)
    return importlib.import_module("ray" if of_ray else "ftray")


def refuse(what: str, why: str) -> BaseException:
    """Return the error for what groups do not do."""
    from ftray.exceptions import NotSupportedError

    return NotSupportedError(f"{what} is not supported by ftray.checkpoint.group: {why}")


class Wire:
    """Calls to the members, by their number."""

    def __init__(self, handles: Sequence[Any]) -> None:
        self.handles = list(handles)
        self._engine = engine_of(self.handles[0]) if self.handles else None

    def without(self, members: Sequence[int]) -> Wire:
        """Return one for the others."""
        return type(self)([handle for i, handle in enumerate(self.handles) if i not in members])

    def send(self, member: int, what: str, fields: Mapping[str, Any]) -> Any:
        """Ask a member for a step; returns a ref to the answer."""
        return self.handles[member]._checkpoint_group.remote(what, dict(fields))

    def wait(self, refs: Sequence[Any], timeout_s: float) -> list[Any]:
        """Wait for one of the answers; those that are there, at most one, or none in time."""
        if not refs:
            return []
        assert self._engine is not None
        return list(self._engine.wait(list(refs), num_returns=1, timeout=max(0.0, timeout_s))[0])

    def answer(self, ref: Any, timeout_s: float | None = None) -> Any:
        """Return an answer; raises the member's error, or that of the call.

        Raises
        ------
        CheckpointTimeoutError
        """
        assert self._engine is not None
        try:
            return self._engine.get(ref, timeout=timeout_s)
        except self._engine.exceptions.GetTimeoutError:
            raise CheckpointTimeoutError("no answer in time") from None

    def is_death(self, error: BaseException) -> bool:
        """Whether it says that a member is dead for good."""
        return self._engine is not None and isinstance(error, self._engine.exceptions.ActorDiedError)

    def ask(self, name: str, what: str, fields: Mapping[int, Mapping[str, Any]], deadline_s: float) -> Any:
        """Ask several members for the same step; their answers by number, in the order asked."""
        refs = {i: self.send(i, what, given) for i, given in fields.items()}
        return {i: self.answer_by(name, what, ref, deadline_s) for i, ref in refs.items()}

    def answer_by(self, name: str, what: str, ref: Any, deadline_s: float) -> Any:
        """`answer`, with a message that says what was waited for."""
        try:
            return self.answer(ref, max(0.0, deadline_s - time.monotonic()))
        except CheckpointTimeoutError as error:
            raise CheckpointTimeoutError(
                f"group {name!r}: not every member was free in time for its step {what!r}. End methods that "
                "wait, or allow more time with timeout_s"
            ) from error

    def connect(self, url: str) -> Store:
        """Open the members' store, which all of them have to see."""
        found = connect(url)
        if not found.survives:
            raise UnsupportedStoreError(
                f"{url} lives and dies with one process, and the members of a group are several: choose a "
                "store that they all see"
            )
        return found

    def end(self, claim: Mapping[str, Any]) -> None:
        """End the process that a claim names; see `generations.end_process`."""
        generations.end_process(claim)

    def check_outside(self, keys: Sequence[str]) -> None:
        """Refuse to take a cut inside of a member, which would wait for its own end."""
        for session in actor.sessions.values():
            port = getattr(session._host, "group_port", None)
            if port is None:
                continue  # not the actor that this process is
            if session.exactly_once is not None:
                raise refuse("a cut that an exactly-once actor takes", "use a plain actor, or the driver")
            own = port().describe()["actor"].hex()
            if session.log.key in keys or any(handle._actor_id.hex() == own for handle in self.handles):
                raise refuse("a cut that a member takes", "use the driver, or an actor outside of the group")
