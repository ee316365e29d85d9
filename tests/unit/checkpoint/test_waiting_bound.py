"""A medium that does not answer: with too much on its way the actor starts no call until it answers again.

The medium is a store of objects whose requests fail, and a local disk whose fdatasync hangs.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from ftray.checkpoint import (
    Checkpointable,
    CheckpointSaveError,
    CheckpointTimeoutError,
    FencedError,
    NoSessionError,
    journal,
    readonly,
)
from ftray.checkpoint.figures import STATUS_METHOD
from ftray.checkpoint.session import ActorSession
from ftray.checkpoint.stores import object_journal
from ftray.checkpoint.stores.fsspec_objects import FsspecObjects
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.object_store import ObjectStore
from ftray.checkpoint.testing import Caller, MemoryStore, crash
from tests.helpers.sync import eventually

from .object_support import WAIT_S, Weather
from .support import KEY, start

BOUND, SIZE = 200_000, 30_000
MOST_RECORD = SIZE + 500
STARTED = BOUND // SIZE + 1
"""So many calls start before the bound stops them."""
_numbers = itertools.count()
hooks: list[Callable[[], Any]] = []
"""What `Basin.step` does; such calls are not replayed."""


class Basin(Checkpointable, exactly_once=True, every=10**6):
    def __init__(self) -> None:
        self.calls: list[int] = []

    def add(self, number: int, data: bytes = b"") -> int:
        self.calls.append(number)
        return number

    def step(self) -> Any:
        return hooks.pop()()

    @readonly
    def seen(self) -> list[int]:
        return list(self.calls)


class Objects:
    """A store of objects that answers nothing for a while."""

    def __init__(self, _path: Path) -> None:
        path = f"basin-{next(_numbers)}"
        medium = FsspecObjects(f"memory://{path}", "memory", path, frozenset({"process", "power"}))
        self.weather = Weather(medium)
        self.weather.only = frozenset({"create", "size", "upload"})
        self.store: Any = ObjectStore(self.weather, None, self.weather.sleep, clock=self.weather.clock)
        self.other: Any = ObjectStore(medium)  # what another process sees, whom the store answers

    def hang(self, _session: ActorSession) -> None:
        self.weather.turns_bad(10**9, still=True)

    def go_on(self) -> None:
        self.weather.turns_bad(0.0)
        self.weather.goes_on()


class Disk:
    """A local disk."""

    def __init__(self, path: Path) -> None:
        self.store, self.other = LocalStore(str(path)), LocalStore(str(path))
        self._journal: Any = None

    def hang(self, session: ActorSession) -> None:
        assert session.exactly_once is not None
        self._journal = session.exactly_once.journal
        self._journal.inject("file.journal.synced", "stall")

    def go_on(self) -> None:
        self._journal.release()


class Memory:
    """A journal that makes durable what a test says."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store

    def hang(self, _session: ActorSession) -> None:
        self.store.hold_durability = True


class Life:
    """An actor that has served, and whose medium hangs from now on."""

    def __init__(self, medium: Any) -> None:
        self.medium = medium
        self.host, self.session = start(Basin, store=medium.store, durability="power")
        self.calls = self.host.calls_of(self.session)
        self.callers = [Caller() for _ in range(30)]
        for number in range(object_journal.NOTED_CALLS + 1):  # after those calls are not noted in the store
            assert self.host.call(self.session, "add", -number) == -number
        medium.hang(self.session)

    @property
    def once(self) -> Any:
        return self.session.exactly_once

    @property
    def instance(self) -> Any:
        return self.session.instance

    def begun(self, method: str, *args: Any, by: int = 0) -> Future[Any]:
        """Call on a thread, for one of the callers."""
        call, answer = self.callers[by].call(KEY, method, *args), Future[Any]()

        def run() -> None:
            try:
                answer.set_result(call.sent_to(self.calls, WAIT_S))
            except BaseException as error:
                answer.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return answer

    def filled(self, count: int = 20) -> list[Future[Any]]:
        """More calls than the bound lets start, of as many callers; returns when no further one starts."""
        answers = [self.begun("add", number, bytes(SIZE), by=number) for number in range(count)]
        eventually(lambda: len(self.waiting()) == count - STARTED and self.calls._turns.stopped)
        assert BOUND < self.once.status(False)["journal_waiting_bytes"] <= BOUND + MOST_RECORD
        assert self.added() == STARTED and not any(answer.done() for answer in answers)
        return answers

    def waiting(self) -> list[Any]:
        return list(self.calls._turns._waiting)

    def added(self) -> int:
        """How many calls have started since the medium hangs."""
        return len(self.instance.calls) - object_journal.NOTED_CALLS - 1


@pytest.fixture(autouse=True)
def small_bound(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    import fsspec

    monkeypatch.setattr(journal, "MOST_WAITING_BYTES", BOUND)
    yield
    hooks.clear()
    fsspec.filesystem("memory").store.clear()


@pytest.fixture(params=[Objects, Disk])
def medium(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    return request.param(tmp_path)


def errors_of(answers: list[Future[Any]]) -> list[BaseException | None]:
    return [answer.exception(WAIT_S) for answer in answers]


def after_a_crash(life: Life) -> list[int]:
    """What a successor finds."""
    host, session = start(Basin, store=life.medium.other, incarnation=2, durability="power", takeover=True)
    found: list[int] = host.call(session, "seen")
    session.close(False, "end of the test")
    return sorted(number for number in found if number > 0)


# -- waking up


def test_calls_wait_at_the_bound_and_go_on_when_the_medium_answers(medium: Any) -> None:
    life = Life(medium)
    answers = life.filled()
    medium.go_on()
    assert [answer.result(WAIT_S) for answer in answers] == list(range(20))
    assert sorted(life.instance.calls[-20:]) == list(range(20)) and not life.host.crashed_by
    assert life.begun("add", 99).result(WAIT_S) == 99
    assert life.once.status(False)["journal_waiting_bytes"] == 0 and not life.calls._turns.stopped


def test_no_more_start_than_have_room() -> None:
    store = MemoryStore(survives=("process", "power"))
    life = Life(Memory(store))
    answers = life.filled()
    for more in range(1, 4):
        life.once.journal.commit(life.once.journal.durable_position + 1)
        eventually(lambda started=STARTED + more: life.added() == started and life.calls._turns.stopped)
        assert BOUND < life.once.journal.waiting_bytes <= BOUND + MOST_RECORD
        eventually(lambda done=more: sum(answer.done() for answer in answers) == done)
    store.hold_durability = False
    life.once.journal.commit()
    assert [answer.result(WAIT_S) for answer in answers] == list(range(20))


def test_a_failure_wakes_all(medium: Any) -> None:
    life = Life(medium)
    answers = life.filled()
    life.once.journal.fail(CheckpointSaveError("the medium is gone"))
    errors = errors_of(answers)
    assert all(isinstance(error, (NoSessionError, CheckpointSaveError)) for error in errors), errors
    assert all("the medium is gone" in str(error) for error in errors)
    assert life.added() == STARTED, "none of those that waited has run"
    life.host.wait_for(lambda: life.host.crashed_by, WAIT_S)  # those who wait are told before the host
    assert [type(error) for error in life.host.crashed_by] == [CheckpointSaveError]
    medium.go_on()


def test_a_store_that_never_answers_wakes_all() -> None:
    """The journal's own retries end, and nobody waits for longer."""
    medium = Objects(Path())
    life = Life(medium)
    answers = life.filled()
    medium.weather.goes_on()  # the time passes, and the store stays away
    assert all(isinstance(error, (NoSessionError, CheckpointSaveError)) for error in errors_of(answers))
    life.host.wait_for(lambda: life.host.crashed_by, WAIT_S)
    assert life.added() == STARTED and len(life.host.crashed_by) == 1


def test_a_fence_wakes_all(medium: Any) -> None:
    life = Life(medium)
    answers = life.filled()
    epoch = life.session.log.epoch + 1
    assert medium.other.claim(KEY, epoch, b"somebody else")
    medium.other.fence_journals(KEY, epoch)
    medium.go_on()
    errors = errors_of(answers)
    assert all(isinstance(error, FencedError) for error in errors), errors
    life.host.wait_for(lambda: life.host.fenced_by, WAIT_S)
    assert life.added() == STARTED and len(life.host.fenced_by) == 1


def test_the_end_of_the_session_wakes_all(medium: Any) -> None:
    life = Life(medium)
    answers = life.filled()
    life.once.close(0.05, planned=False)
    errors = errors_of(answers)
    assert all(isinstance(error, NoSessionError) for error in errors), errors
    assert life.added() == STARTED, "none of those that waited has run"
    medium.go_on()


def test_the_last_save_is_made_while_calls_wait(medium: Any) -> None:
    """Whoever ends the actor waits for the medium, not for the calls: a successor runs them."""
    life = Life(medium)
    answers = life.filled()
    closing = threading.Thread(target=lambda: life.session.close(True, "planned", 30.0))
    closing.start()
    medium.go_on()
    closing.join(WAIT_S)
    assert not closing.is_alive()
    ended = [answer.result(WAIT_S) for answer in answers if answer.exception(WAIT_S) is None]
    assert set(after_a_crash(life)) >= {number for number in ended if number > 0}


def test_one_that_gives_up_waiting_has_not_run(medium: Any) -> None:
    life = Life(medium)
    answers = life.filled()
    call = Caller().call(KEY, "add", 77)
    with pytest.raises(CheckpointTimeoutError, match="no turn came"):
        call.sent_to(life.calls, 0.05)
    medium.go_on()
    assert [answer.result(WAIT_S) for answer in answers] == list(range(20))
    assert 77 not in life.instance.calls
    assert call.sent_to(life.calls, WAIT_S) == 77


# -- what else waits, and what does not


def test_those_that_waited_have_left_nothing_behind(medium: Any) -> None:
    """The process dies while they wait: a successor has at most what had started."""
    life = Life(medium)
    life.filled()
    crash(life.session)
    started = {number for number in life.instance.calls if number > 0}
    found = after_a_crash(life)
    assert set(found) <= started and len(found) == len(set(found))
    medium.go_on()


def test_a_read_keeps_its_place_and_the_figures_do_not_wait(medium: Any) -> None:
    life = Life(medium)
    answers = life.filled()
    read = life.begun("seen", by=19)
    eventually(lambda: len(life.waiting()) == 20 - STARTED + 1)
    assert life.begun(STATUS_METHOD, by=29).result(WAIT_S)["journal_waiting_bytes"] > BOUND
    assert not read.done()
    medium.go_on()
    assert sorted(read.result(WAIT_S)[-20:]) == list(range(20)), "it came after all of them"
    assert [answer.result(WAIT_S) for answer in answers] == list(range(20))


def test_a_method_that_runs_goes_on(medium: Any) -> None:
    """What it records is over the bound by what one call brings: it waits for nothing itself."""
    life = Life(medium)
    recorded, go = threading.Event(), threading.Event()

    def records() -> int:
        for _ in range(2 * STARTED):
            life.instance.record(lambda: bytes(SIZE))
        recorded.set()
        assert go.wait(WAIT_S)
        return 5

    hooks.append(records)
    answer = life.begun("step", by=28)
    assert recorded.wait(WAIT_S)
    late = life.begun("add", 50, by=27)
    eventually(lambda: len(life.waiting()) == 1)
    go.set()
    eventually(lambda: life.calls._turns.stopped)
    assert life.once.journal.waiting_bytes > 2 * BOUND and not answer.done() and life.added() == 0
    medium.go_on()
    assert (answer.result(WAIT_S), late.result(WAIT_S)) == (5, 50)


def test_large_arguments_count() -> None:
    """They are blobs; the thread that serves calls waits for none of them."""
    medium = Objects(Path())
    life = Life(medium)
    answers = [life.begun("add", number, bytes(150_000), by=number) for number in range(4)]
    eventually(lambda: len(life.waiting()) == 2 and life.calls._turns.stopped)
    assert life.added() == 2
    medium.go_on()
    assert [answer.result(WAIT_S) for answer in answers] == list(range(4))
    assert life.once.gate.blobs_waiting == 0


def test_one_call_may_bring_more_than_the_bound(medium: Any) -> None:
    life = Life(medium)
    answer = life.begun("add", 1, bytes(2 * BOUND))
    eventually(lambda: life.added() == 1)
    medium.go_on()
    assert answer.result(WAIT_S) == 1


def test_an_event_loop_goes_on(medium: Any) -> None:
    life = Life(medium)
    ticks: list[int] = []

    async def main() -> list[int]:
        made = [life.callers[n].call(KEY, "add", n, bytes(SIZE)) for n in range(20)]
        calls = [asyncio.ensure_future(call.sent_to_async(life.calls, WAIT_S)) for call in made]
        while len(life.waiting()) < 20 - STARTED:
            await asyncio.sleep(0)
        ticks.append(1)
        figures = await life.callers[29].call(KEY, STATUS_METHOD).sent_to_async(life.calls, WAIT_S)
        assert figures["journal_waiting_bytes"] > BOUND and not any(call.done() for call in calls)
        medium.go_on()
        return list(await asyncio.gather(*calls))

    assert asyncio.run(main()) == list(range(20)) and ticks == [1]


def test_records_in_the_page_cache_do_not_wait(tmp_path: Path) -> None:
    """`process`: a completed write is durable, whatever fdatasync does."""
    host, session = start(Basin, store=tmp_path, durability="process")
    assert session.exactly_once is not None
    journal_: Any = session.exactly_once.journal
    journal_.inject("file.journal.synced", "stall")
    for number in range(2 * STARTED):
        assert host.call(session, "add", number, bytes(SIZE)) == number
    assert journal_.waiting_bytes == 0
    journal_.release()
    session.close(False, "end of the test")
