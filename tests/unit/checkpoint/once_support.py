"""What the tests of exactly-once share: an actor that can do everything, lives over one store."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from ftray._checkpoint_host import NativeCodec
from ftray._core.reruns import Reruns
from ftray.checkpoint import (
    Checkpointable,
    CheckpointSaveError,
    callers,
    engine,
    faults,
    nondeterministic,
    readonly,
)
from ftray.checkpoint.codec import ToolkitCodec
from ftray.checkpoint.exactly_once import ExactlyOnce
from ftray.checkpoint.lineage import SnapshotName
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

    opening: ClassVar[dict[str, Any]] = {}
    """What `engine.open` is given besides, as by an engine of its own."""

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
        self.session = engine.open(
            kind(), self.host, spec, store=self.store, background=background, **self.opening
        )
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


def repeat_last_record(lives: Lives) -> None:
    """Damage a journal in memory: its last record stands there twice."""
    records = lives.store._keys[KEY].records
    records.append(records[-1]._replace(position=records[-1].position + 1))


def session_of(lives: Lives) -> ActorSession:
    """The present session, typed."""
    session: ActorSession = lives.session
    return session


class EngineCodec(NativeCodec):
    """How ftray itself writes calls, for callers of this process."""

    encode_args = ToolkitCodec.encode_args


class Watched(Reruns):
    """Notes what became of each record: True, False or None, see `Reruns.run`."""

    outcomes: ClassVar[list[bool | None]] = []

    def run(self, payload: bytes, position: int) -> bool | None:
        same = super().run(payload, position)
        if payload[0] < 128:  # no mark of the toolkit's own
            Watched.outcomes.append(same)
        return same


def compiled_reruns(monkeypatch: pytest.MonkeyPatch) -> list[bool | None]:
    """Have plain calls run again as in actors of ftray itself; returns what becomes of each record."""

    def prepare(once: ExactlyOnce) -> None:
        if not once.session.is_async:
            once.reruns = lambda: Watched(once, "Tally")

    codec: Any = EngineCodec("Tally")
    monkeypatch.setattr(callers, "_CODEC", codec)
    monkeypatch.setattr(Lives, "opening", {"codec": codec, "prepare": prepare})
    monkeypatch.setattr(Watched, "outcomes", [])
    return Watched.outcomes


def crash_at(lives: Lives, point: str, call: Any, nth: int = 1) -> None:
    """Send a call, in which the process dies."""
    with faults.armed(point, faults.SimulatedCrash(point), nth), pytest.raises(faults.SimulatedCrash):
        lives.send(call)


def damage(store: MemoryStore, name: SnapshotName) -> None:
    """Change one byte of a snapshot."""
    held = store._keys[KEY].snapshots
    held[name] = held[name][:-40] + bytes([held[name][-40] ^ 1]) + held[name][-39:]


def failing(*_: object) -> None:
    """What a store does that can write nothing."""
    raise CheckpointSaveError("the disk is full")
