"""Saves by count that wait: what a session does meanwhile, and what it tells."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from ftray.checkpoint import CheckpointSaveError, capture, engine, format, options, pace
from ftray.checkpoint import session as session_module
from ftray.checkpoint.testing import InlineBackground, LocalHost, MemoryStore

from .support import KEY, Counter

SHARE = 0.01


class Clock:
    """The time of the session, and what saving costs of it: nothing by itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s, self.cpu_s, self.each_s = 100.0, 0.0, 1.0
        times = SimpleNamespace(
            monotonic=lambda: self.now_s, perf_counter=time.perf_counter, time=lambda: 1.7e9 + self.now_s
        )
        monkeypatch.setattr(session_module, "time", times)

    def spend(self) -> float:
        """Each look finds that so much has been spent since the last."""
        self.cpu_s += self.each_s
        return self.cpu_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


class Life:
    """One actor over a store in memory."""

    def __init__(self, clock: Clock, store: MemoryStore | None = None, **given: Any) -> None:
        self.clock, self.store = clock, store or MemoryStore()
        self.host = LocalHost("counter")
        spec = engine.spec_of(Counter, {"save_share": SHARE, **given})

        def background(*about: Any) -> Any:
            made = InlineBackground(*about)
            made.cpu_s = clock.spend  # type: ignore[method-assign]
            return made

        self.session = engine.open(Counter(), self.host, spec, store=self.store, background=background)

    def incr(self, times: int = 1) -> None:
        for _ in range(times):
            self.host.call(self.session, "incr")

    def later(self, seconds: float) -> None:
        """Time passes, and the timer looks."""
        self.clock.now_s += seconds
        self.session._timer(self.clock.now_s)
        self.host.run_actions()

    @property
    def saved(self) -> list[int]:
        """The counts that the store has, oldest first."""
        found = []
        for name in self.store.scan(KEY).snapshots:
            with self.store.read(KEY, name) as file:
                state: Any = capture.load(format.read(file)[1])
                found.append(state["n"])
        return found


def test_calls_go_on_while_a_save_waits_and_it_has_all_of_them(clock: Clock) -> None:
    life = Life(clock)
    life.incr()
    assert life.saved == [1], "the first one never waits"
    life.incr(5)
    life.later(pace.LONGEST_S / 2)
    assert life.saved == [1]
    figures = life.session.status()
    assert (figures["wanted"], figures["in_flight"], figures["held_back"]) == ("every", False, 1)
    assert (figures["calls_since_saved"], figures["max_calls_unsaved"]) == (5, 1)
    life.later(pace.LONGEST_S / 2 + 1e-6)
    assert life.saved == [1, 6]
    figures = life.session.status()
    assert (figures["max_calls_unsaved"], figures["calls_since_saved"], figures["saves"]) == (5, 0, 2)
    assert figures["save_cpu_s_total"] == pytest.approx(4.0) and figures["save_share"] == SHARE


def test_calls_beside_a_waiting_save_are_only_counted(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    life = Life(clock, every=2)
    life.incr(2 + 4)  # two saves are due; the second one waits, and a look has found that
    with monkeypatch.context() as patched:
        patched.setattr(life.session, "_scheduler", None)
        life.incr(1000)
    assert life.session.status()["calls_since_saved"] == 1004
    life.later(pace.LONGEST_S + 1e-6)
    assert life.saved == [2, 1006]
    life.incr(3)
    assert life.session.status()["wanted"] == "every", "and the next one is counted for again"
    life.later(pace.LONGEST_S + 1e-6)
    assert life.saved == [1006, 1009]


def test_a_wait_that_is_over_before_the_next_call_is_none(clock: Clock) -> None:
    life = Life(clock)
    for _ in range(3):
        life.incr()
        life.later(pace.LONGEST_S)
    assert life.saved == [2, 3] and life.session.status()["held_back"] == 0


def test_cheap_saves_never_wait(clock: Clock) -> None:
    clock.each_s = 0.0
    life = Life(clock)
    life.incr(50)
    assert life.saved == [49, 50] and life.session.status()["held_back"] == 0


def test_nor_do_any_with_a_whole_cpu(clock: Clock) -> None:
    life = Life(clock, save_share=1)
    life.incr(50)
    assert life.saved == [49, 50] and life.session.status()["held_back"] == 0


def test_asking_for_a_snapshot_takes_along_what_waits(clock: Clock) -> None:
    life = Life(clock)
    life.incr(3)
    assert life.saved == [1]
    assert life.host.call(life.session, "checkpoint") == "1-2"
    assert life.saved == [1, 3] and life.session.status()["wanted"] is None


def test_so_does_a_method_after_which_is_saved(clock: Clock) -> None:
    life = Life(clock, every=1, after=("fail",))
    life.incr(3)
    with pytest.raises(ValueError, match="as asked"):
        life.host.call(life.session, "fail")
    assert life.saved == [1, 4]


def test_a_planned_end_waits_for_nothing(clock: Clock) -> None:
    life = Life(clock)
    life.incr(4)
    assert life.saved == [1]
    assert life.session.close(True, "test") == "1-2"
    assert life.saved == [1, 4]


def test_calls_are_counted_from_the_capture(clock: Clock) -> None:
    life = Life(clock, every=3)
    life.incr(3)
    life.incr(4)
    life.later(pace.LONGEST_S)
    assert life.saved == [3, 7]
    clock.now_s += 10.0  # and the bucket is full again
    life.incr(2)
    assert life.saved == [3, 7], "two are not due"
    life.incr(1)
    assert life.saved == [7, 10]


def test_a_failed_save_has_its_cost_and_its_retry(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(MemoryStore):
        fails = True

        def put(self, key: str, name: Any, parts: Any) -> None:
            if self.fails:
                raise CheckpointSaveError("not now")
            super().put(key, name, parts)

    store = Failing()
    life = Life(clock, store)
    life.incr(2)
    assert store.scan(KEY).snapshots == [] and life.session.status()["failures"] == 1
    store.fails = False
    life.later(pace.LONGEST_S)
    assert life.saved == [2] and life.session.status()["state"] == "ok"


def test_the_default_is_a_small_share() -> None:
    assert pace.DEFAULT_SHARE == 0.005 and pace.LONGEST_S == 0.2
    assert options.Options._field_defaults["save_share"] == pace.DEFAULT_SHARE
