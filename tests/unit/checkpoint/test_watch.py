"""Processes that die while they recover: one call that ends all of them is told from chance."""

from __future__ import annotations

import importlib
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray.checkpoint import CheckpointParkedError, ReplayCrashedError, faults, replay, watch
from ftray.checkpoint.stores import connect
from ftray.checkpoint.stores.kv import KvObjects
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.watch import MOST_BY_CHANCE, PARK_AFTER, Note, Row

from .once_support import KEY, Lives, Tally, memory
from .test_stores import FakeKv


def die(row: Row, first: int, last: int = 0) -> Row:
    return watch.after_death(Note(row, first, last or first))


class TestRow:
    def test_the_same_place_three_times(self) -> None:
        row = die(die(Row(), 7), 7)
        assert not row.too_many
        assert die(row, 7) == Row(7, 7, 3, 0) and die(row, 7).too_many

    def test_deaths_between_calls_say_nothing(self) -> None:
        row = die(die(Row(), 7), 7)
        assert watch.after_death(Note(row)) == row

    def test_another_place_begins_anew_and_shows_that_it_was_chance(self) -> None:
        row = die(die(die(Row(), 7), 7), 8)
        assert row == Row(8, 8, 1, 2)
        for _ in range(PARK_AFTER + 1):
            row = die(row, 8)
            assert row.too_many == (row.deaths == PARK_AFTER + 2)

    def test_chance_is_bounded(self) -> None:
        row = watch.passed(Row(5, 5, 100, 3))
        assert row == Row(0, 0, 0, MOST_BY_CHANCE)
        assert Row(5, 5, PARK_AFTER + MOST_BY_CHANCE, 1000).too_many

    def test_a_part_of_the_journal_is_looked_at_more_closely(self) -> None:
        row = die(Row(), 1, 100)
        assert row == Row(1, 100, 1, 0) and not row._replace(deaths=50).too_many
        assert die(row, 33, 40) == Row(33, 40, 1, 0), "it was the same death"
        assert die(row, 99, 101) == Row(99, 101, 1, 1)

    def test_notes_are_what_they_were(self) -> None:
        note = Note(Row(1 << 40, 3, 4, 5), 6, 7, True)
        assert watch.decode(watch.encode(note)) == note
        for nothing in (None, b"", b"short"):
            assert watch.decode(nothing) == Note(Row())

    def test_random_kills_do_not_make_a_row(self) -> None:
        """Half of the recoveries are killed in one of their calls, of which there are few."""
        for seed in range(20):
            chance, row, longest = random.Random(seed), Row(), 0
            for _ in range(1000):
                if chance.random() < 0.5:
                    row = die(row, chance.randrange(1, 30))
                else:
                    row = watch.passed(row)
                assert not row.too_many
                longest = max(longest, row.deaths)
            assert longest >= 2


class Deadly(Tally, formerly="Tally"):
    """Ends its process in the calls that are in `traps`, in the way of `die`."""

    def step(self, k: int) -> int:
        if k in traps:
            traps[k] -= 1
            if not traps[k]:
                del traps[k]
            raise faults.SimulatedCrash(f"in {k}")
        self.n += k
        return self.n

    async def slow_step(self, k: int) -> int:
        return self.step(k)


traps: dict[int, int] = {}
FOR_EVER = 1 << 30


@pytest.fixture(autouse=True)
def no_traps(monkeypatch: pytest.MonkeyPatch) -> Any:
    traps.clear()
    monkeypatch.setattr(replay, "REPLAY_BOUND_S", 3600.0)  # a slow machine saves on the way
    yield
    traps.clear()


@pytest.fixture(params=["memory", "file", "kv"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    if request.param == "file":
        return LocalStore(str(tmp_path / "store"))
    if request.param == "memory":
        return memory()
    importlib.import_module("ftray.experimental.internal_kv")
    monkeypatch.setitem(sys.modules, "ftray.experimental.internal_kv", FakeKv())  # type: ignore[arg-type]
    monkeypatch.setattr(KvObjects, "survives", frozenset({"process"}))
    return connect("kv://some/watch")


def with_calls(store: Any, n: int, **options: Any) -> Lives:
    """An actor with `n` calls behind its newest snapshot."""
    lives = Lives(store, cls=Deadly, every=10_000, **options).start()
    for k in range(1, n + 1):
        lives.call("step", k)
    return lives


def deaths(lives: Lives, most: int = 40) -> tuple[int, BaseException | None]:
    """Start until that does not end in a death; how many did, and the error of the last start."""
    for died in range(most):
        try:
            lives.start()
        except faults.SimulatedCrash:
            continue
        except checkpoint.CheckpointError as error:
            return died, error
        return died, None
    raise AssertionError(f"it has died {most} times")


class TestRecovery:
    @pytest.mark.parametrize("where", [1, 3, 5])
    def test_a_call_that_ends_every_process_parks_the_actor(self, store: Any, where: int) -> None:
        lives = with_calls(store, 5)
        traps[where] = FOR_EVER
        died, error = deaths(lives)
        # Where a note costs a request, the first death is only seen by the seal that is missing.
        assert died == (PARK_AFTER if store.notes_each_call else PARK_AFTER + 1)
        assert isinstance(error, CheckpointParkedError) and isinstance(error.__cause__, ReplayCrashedError)
        assert f"died {PARK_AFTER} times in a row while it ran 'step', call " in str(error)
        assert (error.key, error.store) == (KEY, store.url) and "ReplayCrashedError" in error.cause
        info = checkpoint.open(store).describe(KEY)
        assert info.state == "parked" and "ran 'step'" in info.failed_recoveries[-1]
        with pytest.raises(CheckpointParkedError):
            lives.start()
        assert store.scan(KEY).newest_epoch == died + 2, "a parked actor claims nothing"

    def test_one_that_is_made_anew_tries_once_more(self, store: Any) -> None:
        lives = with_calls(store, 3)
        traps[2] = FOR_EVER
        died, _ = deaths(lives)
        with pytest.raises(faults.SimulatedCrash):
            lives.start_anew()
        with pytest.raises(CheckpointParkedError, match=f"died {PARK_AFTER + 1} times in a row"):
            lives.start()
        traps.clear()
        assert lives.start_anew().call("value") == 6
        assert checkpoint.open(store).describe(KEY).failed_recoveries == []
        assert died >= PARK_AFTER

    def test_two_deaths_do_not(self, store: Any) -> None:
        lives = with_calls(store, 3)
        traps[2] = 2
        assert deaths(lives) == (2, None) and lives.call("value") == 6

    def test_nor_many_in_other_places(self, store: Any) -> None:
        lives = with_calls(store, 8)
        for _ in range(4):
            traps.update(dict.fromkeys(range(1, 9), 2))
            assert deaths(lives, 20) == (16, None) and lives.call("value") == 36

    def test_the_count_begins_anew_behind_progress(self, store: Any) -> None:
        lives = with_calls(store, 4)
        traps[3] = 2
        assert deaths(lives) == (2, None)
        traps[3] = 2
        assert deaths(lives) == (2, None)
        assert lives.call("value") == 10

    def test_an_error_in_a_call_is_no_death_in_it(self, store: Any) -> None:
        class Diverging(Deadly, formerly="Tally"):
            def step(self, k: int) -> int:
                self.n += k
                return self.n + (k == 2)

        lives = with_calls(store, 3, code_version=1)
        for _ in range(2):
            with pytest.raises(checkpoint.ReplayDivergedError):
                lives.start(Diverging)
        assert watch.decode(store.read_watch(KEY)).row.deaths == 0

    def test_long_journals_are_divided(self, store: Any) -> None:
        lives = with_calls(store, 300)
        traps[171] = FOR_EVER
        died, error = deaths(lives)
        assert isinstance(error, CheckpointParkedError) and "'step'" in str(error)
        assert died == PARK_AFTER if store.notes_each_call else PARK_AFTER < died <= PARK_AFTER + 4

    def test_hundreds_of_random_kills_park_nobody(self, store: Any) -> None:
        chance = random.Random(3)
        lives = with_calls(store, 20)
        killed, wanted = 0, 300 if store.url.startswith("memory") else 25
        while killed < wanted:
            traps[chance.randrange(1, 21)] = 1
            if chance.random() < 0.3:
                traps[chance.randrange(1, 21)] = 1
            died, error = deaths(lives)
            assert error is None
            killed += died
            assert lives.call("value") == 210


def test_an_object_store_is_asked_nothing_when_nobody_died(monkeypatch: pytest.MonkeyPatch) -> None:
    importlib.import_module("ftray.experimental.internal_kv")
    monkeypatch.setitem(sys.modules, "ftray.experimental.internal_kv", FakeKv())  # type: ignore[arg-type]
    monkeypatch.setattr(KvObjects, "survives", frozenset({"process"}))
    store: Any = connect("kv://some/watch")
    lives = with_calls(store, 3)
    for name in ("open_watch", "read_watch"):
        monkeypatch.setattr(store, name, None)
    assert lives.start().call("value") == 6


class TestFiles:
    def test_after_a_new_boot_nothing_is_known(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        store = LocalStore(str(tmp_path))
        lives = with_calls(store, 2)
        traps[1] = 1
        assert deaths(lives)[0] == 1
        assert watch.decode(store.read_watch(KEY)).row.by_chance == 1
        monkeypatch.setattr("ftray.checkpoint.stores.local_journal.boot_bytes", lambda: b"b" * 16)
        assert store.read_watch(KEY) is None

    def test_a_damaged_one_is_none(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        with_calls(store, 2).start()
        (path,) = tmp_path.glob("*/epoch-*.watch")
        for damaged in (b"", path.read_bytes()[:20], bytes(80)):
            path.write_bytes(damaged)
            assert store.read_watch(KEY) is None

    def test_older_ones_go(self, tmp_path: Path) -> None:
        store = LocalStore(str(tmp_path))
        lives = with_calls(store, 2)
        for _ in range(3):
            lives.start()
        assert len(list(tmp_path.glob("*/epoch-*.watch"))) == 1

    def test_a_disk_that_is_full_is_the_medium_s_fault(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = LocalStore(str(tmp_path))
        lives = with_calls(store, 2)

        class Full:
            def __getattr__(self, name: str) -> Any:
                return getattr(os, name)

            def pwrite(self, *_: Any) -> None:
                raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("ftray.checkpoint.stores.local_watch.os", Full())
            with pytest.raises(checkpoint.CheckpointSaveError, match="note how far the recovery is"):
                lives.start()
        assert checkpoint.open(store).describe(KEY).failed_recoveries == []
        assert lives.start().call("value") == 3
