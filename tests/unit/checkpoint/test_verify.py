"""``verify=True``: read-only methods of every kind are looked at, and what exactly-once actors repeat."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from ftray.checkpoint import Checkpointable, ReadonlyChangedError, ReplayDivergedError, engine, readonly
from ftray.checkpoint.session import ActorSession
from ftray.checkpoint.testing import LocalHost
from tests.unit.checkpoint.once_support import Tally, started
from tests.unit.checkpoint.support import Counter, start


class Reader(Counter):
    """Each read-only method changes the state by `by`."""

    def __init__(self) -> None:
        super().__init__()
        self.by = 0

    def lie(self, by: int) -> None:
        self.by = by

    @readonly
    def plain(self) -> int:
        self.n += self.by
        return self.n

    @readonly
    def fails(self) -> None:
        self.n += self.by
        raise LookupError("as asked")

    @readonly
    def items(self) -> Iterator[int]:
        yield 1
        self.n += self.by
        yield 2

    @readonly
    async def awaited(self) -> int:
        self.n += self.by
        return self.n

    @readonly
    async def stream(self) -> AsyncIterator[int]:
        self.n += self.by
        yield 1

    @readonly
    def makes_an_attribute(self) -> None:
        if self.by:
            self.found = 1


class BesideHost(LocalHost):
    max_concurrency = 4


async def listed(stream: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in stream]


READS: dict[str, Any] = {
    "plain": lambda function: function(),
    "items": lambda function: list(function()),
    "awaited": lambda function: asyncio.run(function()),
    "stream": lambda function: asyncio.run(listed(function())),
    "makes_an_attribute": lambda function: function(),
}


def read(session: ActorSession, name: str) -> Any:
    """Run a read-only method as an engine does."""
    return READS[name](session.entry_points[name])


@pytest.mark.parametrize("name", sorted(READS))
def test_a_change_is_found(name: str) -> None:
    host, session = start(Reader, verify=True)
    read(session, name)
    host.call(session, "lie", 5)
    with pytest.raises(ReadonlyChangedError, match=f"Reader.{name} is marked readonly and has"):
        read(session, name)
    session.close(final=False, reason="test")


def test_an_error_of_the_method_stays_one_if_it_changes_nothing() -> None:
    host, session = start(Reader, verify=True)
    with pytest.raises(LookupError, match="as asked"):
        host.call(session, "fails")
    host.call(session, "lie", 5)
    with pytest.raises(ReadonlyChangedError, match=r"\['n'\]: 0 and 5"):
        host.call(session, "fails")
    session.close(final=False, reason="test")


def test_a_reader_that_is_given_up_half_way_is_not_looked_at() -> None:
    _, session = start(Reader, verify=True)
    items = session.entry_points["items"]()
    assert next(items) == 1
    items.close()
    session.close(final=False, reason="test")


def test_without_the_switch_nothing_is_in_the_way() -> None:
    _, session = start(Reader)
    assert not set(READS) & set(session.entry_points)
    session.close(final=False, reason="test")


def test_for_all_actors_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTRAY_CHECKPOINT_VERIFY", "1")
    host, session = start(Reader)
    host.call(session, "lie", 5)
    with pytest.raises(ReadonlyChangedError):
        host.call(session, "plain")
    session.close(final=False, reason="test")


class Beside(Checkpointable):
    """Its methods run beside each other."""

    def __init__(self) -> None:
        self.n = 0

    def incr(self) -> None:
        self.n += 1

    @readonly
    def value(self) -> Iterator[int]:
        yield self.n
        yield self.n


@pytest.mark.parametrize("begins", ["before", "meanwhile", "and ends meanwhile"])
def test_what_methods_beside_it_change_is_not_laid_to_it(begins: str) -> None:
    host = BesideHost("beside", class_name="Beside")
    session = engine.open(Beside(), host, engine.spec_of(Beside, {"verify": True, "store": "memory://verify"}))

    def begin() -> None:
        session.before_call("incr")
        session.instance.incr()  # type: ignore[attr-defined]

    if begins == "before":
        begin()
    reading = session.entry_points["value"]()
    assert next(reading) == (begins == "before")
    if begins == "before":
        session.instance.incr()  # type: ignore[attr-defined]
    else:
        begin()
    if begins != "meanwhile":
        session.after_call("incr")
    assert list(reading) == [1 + (begins == "before")]
    if begins == "meanwhile":
        session.after_call("incr")
    session.instance.n += 7  # type: ignore[attr-defined]
    reading = session.entry_points["value"]()
    next(reading)
    session.instance.n += 1  # type: ignore[attr-defined]
    with pytest.raises(ReadonlyChangedError):
        list(reading)
    session.close(final=False, reason="test")


class TestExactlyOnce:
    def test_a_method_that_depends_on_the_world_is_found(self) -> None:
        lives = started(verify=True)
        assert lives.call("incr") == 1 and lives.call("value") == 1 and len(lives.call("ask", 2)) == 2
        assert lives.session.instance.n == 1
        with pytest.raises(ReplayDivergedError, match="verify: Tally.ask_badly.*reply: .* and "):
            lives.call("ask_badly")

    def test_a_state_that_differs_is_found(self) -> None:
        class Hidden(Tally):
            def hide(self) -> None:
                self.n = id(object()) + sum(counted)
                counted.append(1)

        counted: list[int] = []
        lives = started(cls=Hidden, verify=True)
        with pytest.raises(ReplayDivergedError, match=r"state\['n'\]"):
            lives.call("hide")

    def test_readonly_methods_change_nothing(self) -> None:
        class Lies(Tally):
            @readonly
            def look(self) -> int:
                self.n += 1
                return self.n

        lives = started(cls=Lies)
        assert lives.call("look") == 1
        lives.session.close(False, "test")
        lives = started(cls=Lies, verify=True)
        with pytest.raises(ReadonlyChangedError, match=r"Lies.look.*\['n'\]: 0 and 1"):
            lives.call("look")
