"""Calls of the feature torture: actors, how they are called, and a model of what each call must give."""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ftray as ray
from ftray import checkpoint
from tests.chaos.feature_steps import (
    CALLING,
    RETRIED,
    Drawing,
    Odd,
    async_steps,
    expected,
    not_at_first,
    same,
    sync_steps,
)
from tests.chaos.torture_actors import mix

PATIENCE_S = 90.0
LARGE = 150_000


class Leaf(ray.Checkpointable, exactly_once=True):
    """Counts how often each number was applied."""

    def __init__(self) -> None:
        self.applied: Counter[int] = Counter()

    def apply(self, index: int, given: int) -> tuple[int, int]:
        self.applied[index] += 1
        return self.applied[index], mix(index, given)

    def pair(self, index: int) -> tuple[int, int]:
        return self.apply(index, 4)

    def exchange(self, index: int, data: bytes) -> tuple[int, bytes]:
        """Take and give what is kept beside the journal if it is large."""
        return self.apply(index, 0)[0], data

    def fail(self, index: int) -> None:
        """An exception is a reply as well, and what was done before it stays."""
        raise Odd(f"{self.apply(index, 0)} ", 1)

    def third_time(self, index: int) -> tuple[int, int]:
        if (reply := self.apply(index, 9))[0] < 3:
            raise Odd(f"{reply} ", 1)
        return reply

    @checkpoint.nondeterministic
    def chance(self, index: int) -> float:
        self.apply(index, 0)
        return random.random()

    @checkpoint.readonly
    def audit(self) -> dict[int, int]:
        return dict(self.applied)


class Runs(Leaf):
    """Runs steps, and ends as asked."""

    def run(self, index: int, leaves: list[Any], steps: list[Any], end: str, extra: Any = b"") -> Any:
        times = self.apply(index, 0)[0]
        return self._end(times, sync_steps(self, leaves, steps), end, extra)

    def _end(self, times: int, notes: list[Any], end: str, extra: Any) -> Any:
        if end == "raise" or (end == "raise-twice" and times < 3):
            raise Odd(f"{times} ", 1)
        if end == "ref":
            return [ray.put(1)]
        return times, notes, extra if end == "large" else len(extra)

    @checkpoint.readonly
    def pid(self) -> int:
        return os.getpid()

    @checkpoint.readonly
    def times_of(self, index: int) -> int:
        return self.applied[index]

    @checkpoint.readonly
    def looks(self, leaf: Any, given: int) -> Any:
        """Ask others, too: a read may be made twice."""
        return isinstance(ray.get(leaf.audit.remote()), dict), ray.get(same.remote(given))


class AsyncRuns(Runs):
    async def run(self, index: int, leaves: list[Any], steps: list[Any], end: str, extra: Any = b"") -> Any:
        times = self.apply(index, 0)[0]
        return self._end(times, await async_steps(self, leaves, steps), end, extra)

    @checkpoint.readonly
    async def times_of(self, index: int) -> int:
        return self.applied[index]

    @checkpoint.readonly
    async def looks(self, leaf: Any, given: int) -> Any:
        return isinstance(await leaf.audit.remote(), dict), await same.remote(given)


@ray.remote(num_cpus=0, max_retries=-1)
def call_from_task(actor: Any, *args: Any, extra: Any = b"") -> Any:
    return ray.get(actor.run.remote(*args, extra=extra))


@ray.remote(num_cpus=0, max_retries=-1, retry_exceptions=[Odd])
def call_again(actor: Any, *args: Any) -> Any:
    return not_at_first(ray.get(actor.run.remote(*args)))


@ray.remote(num_cpus=0, max_retries=-1)
def call_in_turn(actor: Any, key: str, *args: Any, extra: Any = b"") -> Any:
    """Yield what a keyed call gives, and then that of a task which makes the same one."""
    yield ray.get(actor.run.options(call_key=key).remote(*args, extra=extra))
    yield ray.get(call_by_key.remote(actor, key, *args, extra=extra))


@ray.remote(num_cpus=0, max_retries=-1)
def call_by_key(actor: Any, key: str, *args: Any, extra: Any = b"") -> Any:
    return ray.get(actor.run.options(call_key=key).remote(*args, extra=extra))


HOWS = ("plain", "ref", "pending", "returns", "key", "task", "cancel", "bad-argument", "read", "large")
HOWS += ("task-retry", "task-stream", "later")


@dataclass(frozen=True)
class _Made:
    """One call that is made, in whatever way."""

    name: str
    actor: Any
    index: int
    steps: list[Any]
    end: str
    extra: bytes
    leaves: list[Any]

    @property
    def run(self) -> Any:
        return self.actor.run

    @property
    def args(self) -> tuple[Any, ...]:
        return self.index, self.leaves, self.steps, self.end

    def reply(self, times: int = 1) -> tuple[Any, ...]:
        back = self.extra if self.end == "large" else len(self.extra)
        return times, [expected(step) for step in self.steps], back


class Torture:
    """One runtime: actors, the calls made to them, and what must come of them.

    Parameters
    ----------
    seed : str
        Of what is drawn: the same calls, whatever comes of them.
    stores : sequence of str
        Actors have one each, in turn.
    """

    def __init__(self, seed: str, stores: Sequence[str]) -> None:
        self.rng = random.Random(seed)
        self.problems: list[str] = []
        self.poisoned = 0
        self.numbers: Counter[str] = Counter()
        self.unsure: dict[str, set[int]] = {}
        self.times: dict[tuple[str, int], int] = {}
        self._stores = itertools.cycle(stores)
        self.leaves = [self._make(Leaf, f"leaf-{n}", every=every) for n, every in enumerate((2, 1000))]
        self.actors = {
            "sync": self._make(Runs, "sync", every=3),
            "sync-long": self._make(Runs, "sync-long", every=1000),
            "power": self._make(Runs, "power", every=50, durability="power", store=stores[0]),
            "async": self._make(AsyncRuns, "async", every=3),
            "async-long": self._make(AsyncRuns, "async-long", every=1000),
            "groups": self._make(AsyncRuns, "groups", {"concurrency_groups": {"io": 3}}, every=20),
            "wide": self._make(AsyncRuns, "wide", {"max_concurrency": 5}, every=20),
        }
        self.drawing = Drawing(self.rng, self._leaf_number, len(self.leaves))

    def _make(self, cls: type, name: str, resources: Any = None, **options: Any) -> Any:
        made = type(cls.__name__, (cls,), {}, **{"store": next(self._stores), **options})
        return ray.remote(num_cpus=0, **resources or {})(made).options(name=name).remote()

    def _number(self, name: str) -> int:
        self.numbers[name] += 1
        return self.numbers[name]

    def _leaf_number(self, leaf: int, times: int) -> int:
        name = f"leaf-{leaf}"
        number = self._number(name)
        self.times[name, number] = times
        return number

    # -- calls

    def batch(self, size: int) -> None:
        judges = [self._call() for _ in range(size)]
        for judge in judges:
            judge()

    def _call(self) -> Any:
        rng = self.rng
        name = rng.choice(list(self.actors))
        actor, index = self.actors[name], self._number(name)
        if rng.random() < 0.06:
            return self._judged(name, index, [], actor.chance.remote(index), lambda value: 0 <= value < 1)
        steps = self.drawing.steps(5, name in ("async", "async-long", "groups", "wide"))
        end = rng.choice(["return"] * 8 + ["raise", "raise-twice", "ref"])
        extra = rng.choice([b"", b"x" * 100, bytes(LARGE)])
        how = rng.choice(HOWS)
        if end != "return" and how not in ("ref", "pending"):
            how = "plain"
        if end == "raise-twice":
            how = "retry"
            for step in _leaf_steps(steps):  # would be made several times
                self.times[f"leaf-{step[1]}", step[2]] = 0
            steps = []
        made = _Made(name, actor, index, steps, "large" if how == "large" else end, extra, self.leaves)
        return self._made(how, made)

    def _made(self, how: str, made: _Made) -> Any:
        if how == "retry":
            self.times[made.name, made.index] = 3
            call = made.run.options(retry_exceptions=[Odd], max_task_retries=-1)
            return self._right(made, call.remote(*made.args, made.extra), made.reply(3))
        if made.end == "raise":
            return self._wrong(made, made.run.remote(*made.args, extra=made.extra), Odd)
        if made.end == "ref":
            return self._wrong(made, made.run.remote(*made.args, made.extra), TypeError)
        special = getattr(self, f"_call_{how.replace('-', '_')}", None)
        if special is not None:
            return special(made)
        return self._right(made, made.run.remote(*made.args, made.extra), made.reply())

    def _call_ref(self, made: _Made) -> Any:
        return self._right(made, made.run.remote(*made.args, extra=ray.put(made.extra)), made.reply())

    def _call_pending(self, made: _Made) -> Any:
        ref = made.run.remote(*made.args, extra=same.remote(made.extra))
        return self._right(made, ref, made.reply())

    def _call_later(self, made: _Made) -> Any:
        """Its argument is the reply of a call to another actor, which had to be awaited itself."""
        leaf = self.rng.randrange(len(self.leaves))
        exchange = self.leaves[leaf].exchange.options(num_returns=2)
        _, given = exchange.remote(self._leaf_number(leaf, 1), same.remote(made.extra))
        return self._right(made, made.run.remote(*made.args, extra=given), made.reply())

    def _call_task(self, made: _Made) -> Any:
        ref = call_from_task.remote(made.actor, *made.args, extra=made.extra)
        return self._right(made, ref, made.reply())

    def _call_task_retry(self, made: _Made) -> Any:
        return self._right(made, call_again.remote(made.actor, *made.args, made.extra), made.reply())

    def _call_task_stream(self, made: _Made) -> Any:
        key = f"stream/{made.name}/{made.index}"
        call = call_in_turn.options(num_returns="streaming")
        items = call.remote(made.actor, key, *made.args, extra=made.extra)

        def both() -> None:
            before = self.poisoned, len(self.problems)
            self._right(made, next(items), made.reply())()
            if before == (self.poisoned, len(self.problems)):  # it ends with an error
                self._right(made, next(items), made.reply())()

        return both

    def _call_returns(self, made: _Made) -> Any:
        refs = made.run.options(num_returns=3).remote(*made.args, made.extra)
        return self._right(made, refs, list(made.reply()))

    def _call_bad_argument(self, made: _Made) -> Any:
        """Its argument is an error: it does not run."""
        self._forget(made.name, made.index, made.steps, ran=False)
        return self._wrong(made, made.run.remote(*made.args, extra=fails.remote()), ValueError)

    def _call_read(self, made: _Made) -> Any:
        """Reads of the same caller see it, and not more of it than there is."""
        ref = made.run.remote(*made.args, made.extra)
        group = {"concurrency_group": "io"} if made.name == "groups" else {}
        seen = made.actor.times_of.options(**group).remote(made.index)
        leaf = self.rng.choice(self.leaves)
        looked = made.actor.looks.remote(leaf, made.index)
        judge = self._right(made, ref, made.reply())

        def all_three() -> None:
            judge()
            if made.index not in self.unsure.get(made.name, ()):
                self._right(made, seen, 1)()
            self._right(made, looked, (True, made.index))()

        return all_three

    def _call_key(self, made: _Made) -> Any:
        key = f"{made.name}/{made.index}"
        first = made.run.options(call_key=key).remote(*made.args, made.extra)
        judge = self._right(made, first, made.reply())

        def both() -> None:
            again = made.run.options(call_key=key, num_returns=3).remote(*made.args, made.extra)
            judge()
            self._right(made, again, list(made.reply()))()
            found = checkpoint.outcome(first, timeout_s=PATIENCE_S)
            if found.state != "committed" and made.index not in self.unsure.get(made.name, ()):
                self.problems.append(f"{key}: outcome() says {found}")

        return both

    def _call_cancel(self, made: _Made) -> Any:
        ref = made.run.remote(*made.args, made.extra)
        timer = threading.Timer(self.rng.random() * 0.05, ray.cancel, [ref])
        timer.start()
        judge = self._right(made, ref, made.reply())

        def judge_cancelled() -> None:
            timer.join()
            try:
                self._get(ref)
            except ray.exceptions.TaskCancelledError:
                self._forget(made.name, made.index, made.steps)
            except Odd:  # of a call of its own, which is cancelled with it, and so is not retried
                if any(step[0] in RETRIED for step in _leaf_steps(made.steps)):
                    self._forget(made.name, made.index, made.steps)
                else:
                    judge()
            except Exception:
                judge()
            else:
                judge()

        return judge_cancelled

    def _right(self, made: _Made, ref: Any, reply: Any) -> Any:
        return self._judged(made.name, made.index, made.steps, ref, lambda value: value == reply)

    def _wrong(self, made: _Made, ref: Any, error: type[Exception]) -> Any:
        return self._judged(made.name, made.index, made.steps, ref, None, error)

    # -- judgement

    def _get(self, ref: Any) -> Any:
        try:
            return ray.get(ref, timeout=PATIENCE_S)
        except ray.exceptions.GetTimeoutError:
            command = [sys.executable, "-m", "ftray", "stack"]
            stacks = subprocess.run(command, capture_output=True, text=True, check=False)
            raise TimeoutError(f"no answer in {PATIENCE_S} s\n{stacks.stdout}{stacks.stderr}") from None

    def _forget(self, name: str, index: int, steps: Any, *, ran: bool = True) -> None:
        """It may have been applied as often as it should or less; never, if it did not run."""
        if ran:
            self.unsure.setdefault(name, set()).add(index)
        else:
            self.times[name, index] = 0
        for step in _leaf_steps(steps):
            self.unsure.setdefault(f"leaf-{step[1]}", set()).add(step[2])

    def _judged(self, name: str, index: int, steps: Any, ref: Any, right: Any, wrong: Any = None) -> Any:
        def judge() -> None:
            try:
                value = self._get(ref)
            except checkpoint.PoisonCallError:
                self.poisoned += 1
                self._forget(name, index, steps)
            except Exception as error:
                if wrong is None or not isinstance(error, wrong):
                    self.problems.append(f"{name} {index} {steps}: {type(error).__name__}: {error}")
            else:
                if right is None or not right(value):
                    self.problems.append(f"{name} {index} {steps} answered {value!r:.500}")

        return judge

    def close(self) -> None:
        """Every number was applied as often as it should."""
        named = {f"leaf-{n}": leaf for n, leaf in enumerate(self.leaves)}
        for name, actor in {**self.actors, **named}.items():
            applied = self._get(actor.audit.remote())
            for index in range(1, self.numbers[name] + 1):
                times = applied.get(index, 0)
                if index in self.unsure.get(name, ()) and times <= self.times.get((name, index), 1):
                    continue
                if times != self.times.get((name, index), 1):
                    self.problems.append(f"{name} {index}: applied {times} times")


@ray.remote(num_cpus=0)
def fails() -> None:
    raise ValueError("as asked")


def _leaf_steps(steps: Any) -> Any:
    for step in steps:
        if step[0] in CALLING:
            yield step
        elif step[0] == "both":
            for branch in step[1:]:
                yield from _leaf_steps(branch)
