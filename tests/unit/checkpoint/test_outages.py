"""Exactly once while a store of objects does not answer for minutes: calls wait, and people are told."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from ftray.checkpoint import Checkpointable, CheckpointSaveError, CheckpointStoreError, readonly
from ftray.checkpoint.session import ActorSession
from ftray.checkpoint.stores import object_journal
from ftray.checkpoint.stores.fsspec_objects import FsspecObjects
from ftray.checkpoint.stores.object_store import ObjectStore
from ftray.checkpoint.stores.objects import Objects, Retry, TransientStoreError
from ftray.checkpoint.stores.outage import AFTER_FAILURES, Outage
from ftray.checkpoint.testing import LocalHost

from .object_support import WAIT_S, Weather
from .support import start

FOR_EVER = 10**9
_numbers = itertools.count()


class Tally(Checkpointable, exactly_once=True, every=10**6):
    def __init__(self) -> None:
        self.n = 0

    def incr(self) -> int:
        self.n += 1
        return self.n

    def echo(self, data: bytes) -> bytes:
        self.n += 1
        return data

    @readonly
    def value(self) -> int:
        return self.n

    def on_checkpoint_error(self, error: Exception) -> None:
        told.append(error)


told: list[Exception] = []


@pytest.fixture(autouse=True)
def nothing_told() -> Iterator[None]:
    import fsspec

    told.clear()
    yield
    fsspec.filesystem("memory").store.clear()


def opened(retry: Retry | None = None, inline_bytes: int | None = None) -> tuple[Weather, Any, ActorSession]:
    """An actor that has served more calls than are noted."""
    path = f"outage-{next(_numbers)}"
    medium = FsspecObjects(f"memory://{path}", "memory", path, frozenset({"process", "power"}))
    if inline_bytes is not None:
        medium.inline_bytes = inline_bytes
    weather = Weather(medium)
    host, session = start(Tally, store=ObjectStore(weather, retry, weather.sleep, clock=weather.clock))
    for n in range(object_journal.NOTED_CALLS + 2):
        assert host.call(session, "incr") == n + 1
    return weather, host, session


def begun(host: LocalHost, session: ActorSession, *call: Any) -> Future[Any]:
    """Call on a thread."""
    answer: Future[Any] = Future()

    def run() -> None:
        try:
            answer.set_result(host.call(session, *call))
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


def kinds(host: LocalHost) -> list[str]:
    return [incident.kind for incident in host.incidents]


def figures(session: ActorSession) -> tuple[Any, ...]:
    status = session.status(measured=False)
    return status["state"], status["failures"], status["last_error"], status["journal_error"]


ERROR = "CheckpointStoreError: 503 SlowDown"


def test_an_outage_is_seen_while_it_lasts_and_told_once() -> None:
    weather, host, session = opened()
    weather.turns_bad(60.0, still=True)
    answer = begun(host, session, "incr")
    host.wait_for(lambda: "journal_fails" in kinds(host))
    assert figures(session) == ("failing", 1, ERROR, ERROR)
    host.wait_for_action()
    assert [type(error) for error in told] == [CheckpointStoreError]
    assert not answer.done() and session.status(measured=False)["answers_held"] == 1
    weather.goes_on()
    assert answer.result(WAIT_S) == object_journal.NOTED_CALLS + 3
    assert host.call(session, "value") == object_journal.NOTED_CALLS + 3  # after every request of the outage
    assert host.call(session, "incr") == object_journal.NOTED_CALLS + 4
    assert figures(session) == ("ok", 1, None, None)
    assert len(told) == 1 and kinds(host) == ["journal_fails"] and not host.crashed_by
    weather.turns_bad(60.0)
    assert host.call(session, "incr") == object_journal.NOTED_CALLS + 5
    assert host.call(session, "incr") == object_journal.NOTED_CALLS + 6
    assert (len(told), figures(session)) == (2, ("ok", 2, None, None))


def test_a_journal_that_fails_for_good_says_so() -> None:
    weather, host, session = opened(Retry(8, 0.1, 5.0))
    weather.turns_bad(FOR_EVER)
    with pytest.raises(CheckpointSaveError, match="given up after 8"):
        host.call(session, "incr")
    host.wait_for(lambda: host.crashed_by)
    state, failures, last_error, journal_error = figures(session)
    assert (state, failures) == ("failing", 2)
    assert "given up after 8" in last_error and journal_error == last_error
    host.run_actions()
    assert [type(error) for error in told] == [CheckpointStoreError, CheckpointSaveError]
    assert kinds(host) == ["journal_fails", "journal_failed"]


def test_a_save_meanwhile_does_not_hide_it() -> None:
    weather, host, session = opened()
    weather.only = frozenset({"create"})
    weather.turns_bad(60.0, still=True)
    answer = begun(host, session, "incr")
    host.wait_for(lambda: "journal_fails" in kinds(host))
    session.note_failure(CheckpointSaveError("the disk is full"))
    assert figures(session)[::2] == ("failing", "CheckpointSaveError: the disk is full")
    weather.goes_on()
    answer.result(WAIT_S)
    host.call(session, "incr")
    assert figures(session)[2:] == ("CheckpointSaveError: the disk is full", None), "only a save mends that"


# -- each kind of request


def answers_after_an_outage(weather: Weather, host: Any, session: ActorSession, *call: Any) -> Any:
    weather.turns_bad(120.0)
    answer = host.call(session, *call)
    assert weather.clock() >= 120.0, "nothing has met the outage"
    assert not host.crashed_by and not host.fenced_by and kinds(host) == ["journal_fails"]
    host.call(session, "incr")
    assert figures(session) == ("ok", 1, None, None)
    return answer


def test_a_call_waits_while_it_cannot_be_noted() -> None:
    weather, host, session = opened()
    weather.only = frozenset({"write"})
    assert session.exactly_once is not None
    session.exactly_once.journal._calls = 0  # type: ignore[union-attr]
    assert answers_after_an_outage(weather, host, session, "incr") == object_journal.NOTED_CALLS + 3


@pytest.mark.parametrize("inline_bytes", [None, 1000])
def test_a_large_argument_waits(inline_bytes: int | None) -> None:
    weather, host, session = opened(inline_bytes=inline_bytes)
    weather.only = frozenset({"size", "upload", "create"})
    data = bytes(200_000)
    assert answers_after_an_outage(weather, host, session, "echo", data) == data


def test_a_read_waits() -> None:
    weather, host, session = opened()
    assert answers_after_an_outage(weather, host, session, "value") == object_journal.NOTED_CALLS + 2


def test_the_look_beside_a_record_waits() -> None:
    weather, host, session = opened()
    weather.only = frozenset({"size"})
    assert answers_after_an_outage(weather, host, session, "incr") == object_journal.NOTED_CALLS + 3


@pytest.mark.parametrize("what", ["value", "note", "echo"])
def test_a_store_that_stays_away_ends_the_incarnation(what: str) -> None:
    weather, host, session = opened(Retry(8, 0.1, 5.0))
    journal: Any = session.exactly_once.journal  # type: ignore[union-attr]
    if what == "note":
        weather.only, journal._calls = frozenset({"write"}), 0
    weather.turns_bad(FOR_EVER)
    call = {"value": ("value",), "note": ("incr",), "echo": ("echo", bytes(200_000))}[what]
    with pytest.raises(Exception, match="given up after 8"):
        host.call(session, *call)
    host.wait_for(lambda: host.crashed_by)
    (error,) = host.crashed_by
    assert isinstance(error, CheckpointSaveError) and "SlowDown" in str(error)
    assert figures(session)[0] == "failing" and kinds(host)[-1] == "journal_failed"
    assert not journal.holds()


# -- when it is one


def test_what_the_next_attempts_mend_is_no_outage() -> None:
    weather, host, session = opened()
    weather.turns_bad(0.06)
    assert host.call(session, "incr") == object_journal.NOTED_CALLS + 3
    assert figures(session) == ("ok", 0, None, None) and not kinds(host)


def test_slow_failures_are_one_sooner_and_several_requests_make_one() -> None:
    now = [0.0]
    outage = Outage(lambda: now[0])
    assert not outage.is_one(AFTER_FAILURES - 1, 0.0) and outage.is_one(AFTER_FAILURES, 0.0)
    now[0] = 60.0
    assert outage.is_one(1, 0.0)
    changes: list[str] = []
    outage.on_change = lambda error: changes.append(str(error))
    outage.begins(TransientStoreError("first"))
    outage.begins(TransientStoreError("second"))
    outage.ends()
    assert changes == ["first"]
    outage.ends()
    assert changes == ["first", "None"]


def test_another_answer_ends_it_as_well() -> None:
    class Gone:
        failures = 5

        def read(self, *_: Any) -> bytes:
            self.failures -= 1
            raise TransientStoreError("503") if self.failures else FileNotFoundError()

    outage = Outage(lambda: 0.0)
    changes: list[Exception | None] = []
    outage.on_change = changes.append
    medium: Any = Gone()
    with pytest.raises(FileNotFoundError):
        Objects(medium, Retry(), lambda _: None, outage).read("x")
    assert [str(change) for change in changes] == ["503", "None"]
