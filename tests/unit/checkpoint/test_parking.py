"""Recoveries that fail: which errors count, when the actor stays down, and what people are told."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from ftray import checkpoint
from ftray.checkpoint import (
    Checkpointable,
    CheckpointCaptureError,
    CheckpointCorruptedError,
    CheckpointKeyInUseError,
    CheckpointLoadError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointParkedError,
    CheckpointSaveError,
    CheckpointVersionError,
    CodeVersionError,
    engine,
    errors,
    faults,
    parking,
)
from ftray.checkpoint.session import ActorSession
from ftray.checkpoint.testing import InlineBackground, LocalHost, MemoryStore, crash
from ftray.exceptions import NotSupportedError

from .once_support import memory
from .support import Counter as Saved
from .support import call, start

AT_ONCE = {
    "FencedError": "the key is somebody else's",
    "CheckpointKeyInUseError": "so it is here",
    "CheckpointNotFoundError": "restore='require', and there is nothing",
    "CheckpointOptionError": "what was asked for is wrong",
    "UnsupportedOptionError": "or not offered",
    "UnsupportedStoreError": "",
    "CheckpointParkedError": "that was the third time",
}
STORE = {"CheckpointSaveError", "CheckpointStoreError", "CheckpointTimeoutError"}


def all_errors() -> list[type[BaseException]]:
    found = [v for v in vars(errors).values() if isinstance(v, type) and issubclass(v, BaseException)]
    return sorted(found, key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_has_its_place(kind: type[BaseException]) -> None:
    error, name = kind("x"), kind.__name__
    assert parking.may_pass(error, first=False) == (name not in AT_ONCE)
    first = name not in AT_ONCE and name not in STORE and name != "CheckpointCaptureError"
    assert parking.may_pass(error, first=True) == first
    store: Any = memory()
    store.claim("k", 1, b"{}")
    parking.note(store, "k", 1, "actor", 7, error)
    assert parking.causes(store, "k") == ([] if name in AT_ONCE or name in STORE else [f"{name}: x"])


def test_other_errors() -> None:
    for error in (ValueError("x"), OSError(5, "x"), MemoryError(), NotImplementedError("of the user's")):
        assert parking.may_pass(error, first=True)
    for final in (NotSupportedError("x"), SystemExit(1), KeyboardInterrupt()):
        assert not parking.may_pass(final, first=False)


class Counter(Checkpointable):
    def __init__(self) -> None:
        self.n = 0

    def incr(self) -> int:
        self.n += 1
        return self.n


class World:
    """The incarnations of one actor, in either mode."""

    def __init__(self, exactly_once: bool) -> None:
        self.store: Any = memory()
        self.exactly_once = exactly_once
        self.number, self.actor = 0, "a"
        self.session: ActorSession | None = None
        self.host: Any = None

    def start(self, cls: type[Checkpointable] = Counter, name: str = "counter", **options: Any) -> World:
        if self.session is not None:
            crash(self.session)
        self.number += 1
        own = {"exactly_once": True, "takeover": True} if self.exactly_once else {}
        spec = engine.spec_of(cls, {**own, **options})
        self.host = LocalHost(name, unique_id=self.actor, class_name=cls.__name__, incarnation=self.number)
        background: Any = InlineBackground
        self.session = engine.open(cls(), self.host, spec, store=self.store, background=background)
        return self

    def incr(self) -> Any:
        assert self.session is not None
        return self.host.call(self.session, "incr")

    def info(self) -> Any:
        (key,) = self.store.keys()
        return checkpoint.open(self.store).describe(key)

    def next_actor(self) -> None:
        self.actor, self.number = self.actor + "'", 0


@pytest.fixture(params=[True, False], ids=["exactly once", "snapshots"])
def world(request: pytest.FixtureRequest) -> World:
    world = World(request.param).start()
    world.incr()
    world.host.call(world.session, "checkpoint")
    return world


def named(cls: type[Checkpointable]) -> type[Checkpointable]:
    cls.__name__ = "Counter"
    return cls


def bad_load() -> type[Checkpointable]:
    class Bad(Counter):
        def load_checkpoint(self, state: Any) -> None:
            raise ValueError("not to my liking")

    return named(Bad)


def bad_migration() -> type[Checkpointable]:
    class Bad(Counter, checkpoint_version=2):
        def migrate_checkpoint(self, state: Any, from_version: int) -> Any:
            raise KeyError("nowhere")

    return named(Bad)


def no_migration() -> type[Checkpointable]:
    class Bad(Counter, checkpoint_version=2):
        pass

    return named(Bad)


def another_class() -> type[Checkpointable]:
    class Other(Checkpointable):
        pass

    return Other


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (bad_load, CheckpointLoadError),
        (bad_migration, CheckpointLoadError),
        (no_migration, CheckpointVersionError),
        (another_class, CheckpointMismatchError),
    ],
)
def test_three_failures_park(world: World, make: Any, kind: type[BaseException]) -> None:
    bad = make()
    for _ in range(2):
        with pytest.raises(kind):
            world.start(bad)
        assert world.info().state == "free"
    with pytest.raises(CheckpointParkedError, match=f"3 times.*Last cause: {kind.__name__}") as caught:
        world.start(bad)
    assert isinstance(caught.value.__cause__, kind)
    assert (caught.value.key, caught.value.cause[: len(kind.__name__)]) == ("test/counter", kind.__name__)
    assert world.info().state == "parked" and len(world.info().failed_recoveries) == 3
    epoch = world.store.scan("test/counter").newest_epoch
    with pytest.raises(CheckpointParkedError, match=kind.__name__):
        world.start(bad)
    assert world.store.scan("test/counter").newest_epoch == epoch, "a parked actor claims nothing"
    world.next_actor()
    with pytest.raises(kind):
        world.start(bad)
    assert world.info().state == "free", "another actor is tried"
    assert world.start().incr() == 2
    assert world.info().failed_recoveries == []


def test_a_damaged_store_that_is_repaired_in_time(world: World) -> None:
    read, damaged = world.store.read, [True]

    def reading(key: str, name: Any) -> Any:
        if damaged:
            raise OSError(5, "the disk")
        return read(key, name)

    world.store.read = reading
    for _ in range(2):
        with pytest.raises(CheckpointCorruptedError):
            world.start()
    damaged.clear()
    assert world.start().incr() == 2
    assert world.info().failed_recoveries == []


def test_a_state_that_cannot_be_saved_any_more_counts(world: World) -> None:
    class Bad(Counter):
        def save_checkpoint(self) -> Any:
            raise ConnectionError("the service is away")

    for _ in range(2):
        with pytest.raises(CheckpointCaptureError):
            world.start(named(Bad))
    with pytest.raises(CheckpointParkedError, match="the service is away"):
        world.start(named(Bad))
    fresh = World(world.exactly_once)
    with pytest.raises(CheckpointCaptureError):
        fresh.start(Bad)
    assert fresh.store.keys() == [], "at creation nothing is touched"


def test_what_is_not_counted(world: World) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise CheckpointSaveError("the disk is full")

    sealing, world.store.seal = world.store.seal, fails
    for _ in range(4):
        with pytest.raises(CheckpointSaveError):
            world.start()
    world.store.seal = sealing
    assert world.info().failed_recoveries == [] and world.start().incr() == 2


def test_required_and_not_there() -> None:
    for exactly_once in (True, False):
        world = World(exactly_once)
        for _ in range(4):
            with pytest.raises(CheckpointNotFoundError):
                world.start(restore="require")
        assert world.info().failed_recoveries == []


def test_a_key_in_use() -> None:
    world = World(True).start()
    held, world.session = world.session, None
    world.next_actor()
    for _ in range(4):
        with pytest.raises(CheckpointKeyInUseError):
            world.start(takeover=False)
    assert world.info().failed_recoveries == [] and world.info().state == "held"
    assert held is not None
    crash(held)


def test_calls_of_other_code() -> None:
    class Changed(Counter):
        def incr(self) -> int:
            self.n += 10
            return self.n

    world = World(True).start()
    world.incr()
    for _ in range(2):
        with pytest.raises(CodeVersionError):
            world.start(named(Changed))
    with pytest.raises(CheckpointParkedError, match="CodeVersionError: "):
        world.start(named(Changed))
    assert world.start().incr() == 2, "other code is tried"


def test_what_is_said_of_an_actor_without_a_name(world: World) -> None:
    world.session, world.number = None, 0
    world.start(name="")
    world.host.call(world.session, "checkpoint")
    for _ in range(2):
        with pytest.raises(CheckpointLoadError):
            world.start(bad_load(), name="")
    with pytest.raises(CheckpointParkedError, match=r"What was saved is untouched.*checkpoint\.export"):
        world.start(bad_load(), name="")


class TestProcessesThatEndThemselves:
    """What the engine tells of the process before counts if that one has claimed the key and then died."""

    def restart(self, store: MemoryStore, incarnation: int, fault: str, dies_at: str | None) -> None:
        host = LocalHost("counter", incarnation=incarnation)
        host.fault = fault
        armed = faults.armed(dies_at, faults.SimulatedCrash()) if dies_at else nullcontext()
        with armed:
            engine.open(Saved(), host, engine.spec_of(Saved, {}), store=store)

    def dies(self, store: MemoryStore, incarnation: int, fault: str = "", at: str = "restore.loaded") -> None:
        with pytest.raises(faults.SimulatedCrash):
            self.restart(store, incarnation, fault, at)

    def begun(self) -> MemoryStore:
        store = MemoryStore()
        host, session = start(store=store)
        call(host, session, "incr")
        return store

    def test_three_park(self) -> None:
        store = self.begun()
        self.dies(store, 2)
        self.dies(store, 3, "SIGSEGV, as it seems")
        self.dies(store, 4, "SIGSEGV, as it seems")
        for incarnation in (5, 6):
            with pytest.raises(CheckpointParkedError, match="ended itself: SIGSEGV, as it seems"):
                self.restart(store, incarnation, "SIGSEGV, as it seems", None)

    def test_those_that_others_have_ended_do_not_count(self) -> None:
        store = self.begun()
        for incarnation in range(2, 9):
            self.dies(store, incarnation, "SIGSEGV" if incarnation in (3, 7) else "")
        self.restart(store, 9, "", None)

    def test_those_that_came_to_serve_do_not_count(self) -> None:
        store = self.begun()
        for incarnation in range(2, 9):
            self.restart(store, incarnation, "SIGSEGV", None)
        for incarnation in range(9, 16):
            self.dies(store, incarnation, "SIGSEGV", "restore.sealed")


def test_failures_that_are_forgotten_while_somebody_looks() -> None:
    class Forgets(MemoryStore):
        def list_blobs(self, key: str) -> list[str]:
            return [*super().list_blobs(key), "failed-restore-7"]

    store = Forgets()
    store.claim("k", 1, b"{}")
    assert parking.causes(store, "k") == []
