"""What the tests of exactly-once share: an actor that can do everything, lives over one store."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from ftray.checkpoint import Checkpointable, engine, nondeterministic, readonly
from ftray.checkpoint.session import ActorSession
from ftray.checkpoint.testing import Caller, InlineBackground, LocalHost, MemoryStore, crash

KEY = "test/tally"
outside = itertools.count(100)
"""What the world says: another number each time that it is asked."""


class Tally(Checkpointable, exactly_once=True):
    def __init__(self) -> None:
        self.n = 0
        self.seen: list[int] = []

    def incr(self, k: int = 1) -> int:
        self.n += k
        return self.n

    def fail(self) -> None:
        self.n += 1
        raise ValueError(f"as asked at {self.n}")

    def ask(self, times: int = 1) -> list[int]:
        for _ in range(times):
            self.seen.append(self.record(lambda: next(outside)))
        return self.seen

    def ask_badly(self) -> int:
        self.n += next(outside)
        return self.n

    @nondeterministic
    def roll(self) -> int:
        self.n += next(outside)
        return self.n

    def run(self, action: Callable[[Any], Any]) -> Any:
        return hooks.pop()(self)

    @readonly
    def value(self) -> int:
        return self.n


hooks: list[Callable[[Any], Any]] = []
"""What `Tally.run` does, for tests that need to be inside of a method; such calls are not replayed."""


def memory(**options: Any) -> MemoryStore:
    """A store that outlives simulated processes."""
    return MemoryStore(survives=("process", "power"), **options)


class Lives:
    """One actor after the other over one store, each with the same caller."""

    def __init__(self, store: Any = None, cls: type[Checkpointable] = Tally, **options: Any) -> None:
        self.store = memory() if store is None else store
        self.cls, self.options = cls, options
        self.caller = Caller()
        self.number, self.actor = 0, "id"
        self.host: Any = None
        self.session: Any = None

    def start(self, cls: type[Checkpointable] | None = None, **options: Any) -> Lives:
        """Start the next incarnation; the one before is dead."""
        if self.session is not None:
            crash(self.session)
        self.number += 1
        kind = cls or self.cls
        spec = engine.spec_of(kind, {**self.options, **options})
        self.host = LocalHost(
            "tally",
            unique_id=self.actor,
            class_name=kind.__name__,
            incarnation=self.number,
            caller=self.caller,
        )
        background: Any = InlineBackground
        self.session = engine.open(kind(), self.host, spec, store=self.store, background=background)
        return self

    def start_anew(self, **options: Any) -> Lives:
        """Start the first incarnation of another actor with the same key."""
        self.number, self.actor = 0, f"{self.actor}'"
        return self.start(takeover=True, **options)

    @property
    def once(self) -> Any:
        return self.session.exactly_once

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Make a new call."""
        return self.host.call(self.session, method, *args, **kwargs)

    def make(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Make a call without sending it."""
        return self.caller.call(KEY, method, *args, **kwargs)

    def send(self, call: Any, timeout_s: float = 10.0) -> Any:
        """Send a call, for the first time or again."""
        return self.host.send(self.session, call, timeout_s)

    def kinds(self) -> list[str]:
        """Kinds of the incidents of the present incarnation."""
        return [i.kind for i in self.host.incidents]


def started(**options: Any) -> Lives:
    """A first incarnation."""
    return Lives(**options).start()


def session_of(lives: Lives) -> ActorSession:
    """The present session, typed."""
    session: ActorSession = lives.session
    return session
