"""Crashes at every step, and at random, against runs without crashes."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ftray
from ftray.checkpoint import (
    Checkpointable,
    CheckpointOptionError,
    engine,
    faults,
    nondeterministic,
    readonly,
)
from ftray.checkpoint.compare import difference
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.testing import Caller, InlineBackground, LocalHost, crash, crash_everywhere

from .once_support import memory


class Account(Checkpointable, exactly_once=True):
    def __init__(self) -> None:
        self.balance = 0
        self.log: list[Any] = []

    def deposit(self, amount: int) -> int:
        self.balance += amount
        return self.balance

    def withdraw(self, amount: int) -> int:
        if amount > self.balance:
            self.log.append("refused")
            raise ValueError(f"{amount} of {self.balance}")
        self.balance -= amount
        return self.balance

    def stamp(self) -> float:
        self.log.append((self.record(random.random), self.record(random.random)))
        return float(self.log[-1][0])

    def saved(self) -> str:
        self.log.append("saved")
        return self.checkpoint()

    @nondeterministic
    def tick(self) -> int:
        self.balance += 1
        return self.balance

    @readonly
    def total(self) -> int:
        return self.balance


CALLS: list[Any] = [
    ("deposit", 10),
    "stamp",
    ("withdraw", 50),
    "tick",
    "total",
    ("withdraw", 3),
    "saved",
    ("deposit", 1),
]


def test_a_crash_at_every_step_changes_nothing() -> None:
    report = crash_everywhere(Account, CALLS)
    assert report.replies[-1] == 9 and report.state["balance"] == 9
    assert report.runs == sum(report.points.values()) > 150
    others = ("file.", "object.", "group.")
    never = {p for p in faults.POINTS if not p.startswith(others)} - set(report.points)
    assert never == set(), "these steps were never tried"


@pytest.mark.parametrize("every", [1, None])
def test_nor_with_many_snapshots_or_none(every: int | None) -> None:
    assert crash_everywhere(Account, CALLS, options={"every": every}).runs > 100


@pytest.mark.parametrize("durability", ["process", "power"])
def test_nor_over_the_local_disk(tmp_path: Path, durability: str) -> None:
    made: list[LocalStore] = []

    def make() -> LocalStore:
        made.append(LocalStore(str(tmp_path / str(len(made)))))
        return made[-1]

    points = [p for p in faults.POINTS if p.startswith(("once.", "save.", "restore."))]
    calls = [("deposit", 2), "stamp", "tick"]
    report = crash_everywhere(
        Account, calls, store=make, options={"durability": durability}, points=points, twice=False
    )
    assert report.runs > 20


class TestWhatItFinds:
    def test_a_method_that_depends_on_the_world(self) -> None:
        class Bad(Account):
            def deposit(self, amount: int) -> int:
                self.balance += random.randrange(1 << 30)
                return self.balance

        with pytest.raises(AssertionError, match=r"crashed at .*(ReplayDivergedError|reply: )"):
            crash_everywhere(Bad, [("deposit", 1), ("deposit", 2)])

    def test_a_state_that_is_not_all_saved(self) -> None:
        class Forgets(Account):
            def save_checkpoint(self) -> object:
                return {"balance": self.balance, "log": []}

        calls: list[Any] = [("withdraw", 1), ("withdraw", 1), "total_log"] * 2
        with pytest.raises(AssertionError, match="crashed at "):
            crash_everywhere(Forgets, calls, make=_with_total(Forgets))

    def test_what_changes_the_state_unseen(self) -> None:
        class Lies(Account):
            @readonly
            def total(self) -> int:
                self.balance += 1
                return self.balance

        with pytest.raises(AssertionError, match="crashed at "):
            crash_everywhere(Lies, ["total", ("deposit", 1), "total"])

    def test_unknown_points(self) -> None:
        with pytest.raises(CheckpointOptionError, match=r"unknown fault points \['nowhere'\]"):
            crash_everywhere(Account, ["tick"], points=["nowhere"])

    @pytest.mark.parametrize(
        ("cls", "calls", "said"),
        [
            (Account, [], "no calls"),
            (Account, [("deposit", 1), "depsoit"], "Account has no method 'depsoit'"),
            (ftray.remote(Account), ["total"], "without @ftray.remote"),
            (dict, ["clear"], "takes a Checkpointable class"),
        ],
    )
    def test_what_would_try_nothing_is_refused(self, cls: Any, calls: list[Any], said: str) -> None:
        with pytest.raises(CheckpointOptionError, match=said):
            crash_everywhere(cls, calls)


def _with_total(cls: type[Account]) -> Any:
    cls.total_log = lambda self: len(self.log)  # type: ignore[attr-defined]
    return cls


class World:
    """Callers that send and repeat, an actor that dies, and a plain object that does the same calls once."""

    def __init__(self, rng: random.Random, every: int | None, callers: int) -> None:
        self.rng, self.store = rng, memory()
        self.spec = engine.spec_of(Account, {"every": every})
        self.callers = [Caller(bytes([i + 1]) * 16, parent=bytes([i + 101]) * 16) for i in range(callers)]
        self.model, self.lives = Account(), 0
        self.answered: list[tuple[Any, Any]] = []  # call, reply: may be asked for again
        self.session: Any = None
        self.host: Any = None

    def live(self) -> None:
        if self.session is not None:
            crash(self.session)
        while True:
            self.lives += 1
            self.host = LocalHost("a", class_name="Account", incarnation=self.lives)
            background: Any = InlineBackground
            try:
                with self.danger(0.3):
                    self.session = engine.open(
                        Account(), self.host, self.spec, store=self.store, background=background
                    )
                return
            except faults.SimulatedCrash:
                pass

    def danger(self, share: float) -> Any:
        import contextlib

        if self.rng.random() >= share:
            return contextlib.nullcontext()
        point = self.rng.choice([p for p in faults.POINTS if not p.startswith(("file.", "group."))])
        return faults.armed(point, faults.SimulatedCrash(point), self.rng.randint(1, 3))

    def step(self) -> None:
        if self.answered and self.rng.random() < 0.3:
            call, reply = self.rng.choice(self.answered)
            self.check(call, reply, self.send(call))
            return
        method = self.rng.choice(["deposit", "deposit", "withdraw", "tick"])
        args = () if method == "tick" else (self.rng.randint(1, 9),)
        call = self.rng.choice(self.callers).call("test/a", method, *args)
        reply = self.send(call)
        try:
            want: Any = getattr(self.model, method)(*args)
        except ValueError as error:
            want = error
        self.check(call, want, reply)
        self.answered.append((call, want))

    def send(self, call: Any) -> Any:
        """Send until it is answered; each send may kill the actor."""
        while True:
            try:
                with self.danger(0.4):
                    return self.host.send(self.session, call)
            except faults.SimulatedCrash:
                self.live()
            except ValueError as error:
                return error

    def check(self, call: Any, want: Any, have: Any) -> None:
        found = difference(want, have, "reply")
        assert found is None, f"{call}: {found} (undisturbed first)"

    def run(self, steps: int) -> None:
        self.live()
        for _ in range(steps):
            self.step()
        self.live()
        found = difference(vars(self.model), vars(self.session.instance), "state")
        assert found is None, f"{found} (undisturbed first), after {self.lives} lives"
        crash(self.session)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 1 << 32), every=st.sampled_from([1, 3, None]), callers=st.integers(1, 3))
def test_random_crashes_and_repetitions_change_nothing(seed: int, every: int | None, callers: int) -> None:
    World(random.Random(seed), every, callers).run(25)
