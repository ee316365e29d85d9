"""Features of the API together, in exactly-once actors under random SIGKILLs.

    python -m tests.chaos.feature_torture [--calls 400] [--kill-s 0.2] [--seed N]

Methods run random little programs (`feature_steps`): what these do, what they are called with, how they end
and how they are called is drawn. A model that knows nothing of the runtime says what each reply must be, and
in the end which numbers were applied once. Prints what was wrong, and its seed.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import ftray as ray
from ftray import checkpoint
from tests.chaos.feature_steps import Drawing, Odd, async_steps, expected, same, sync_steps
from tests.chaos.torture_actors import mix
from tests.helpers import introspection, processes

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
        return times, notes, len(extra)

    @checkpoint.nondeterministic
    def chance(self, index: int) -> float:
        self.apply(index, 0)
        return random.random()

    @checkpoint.readonly
    def pid(self) -> int:
        return os.getpid()


class AsyncRuns(Runs):
    async def run(self, index: int, leaves: list[Any], steps: list[Any], end: str, extra: Any = b"") -> Any:
        times = self.apply(index, 0)[0]
        return self._end(times, await async_steps(self, leaves, steps), end, extra)

    @checkpoint.readonly
    async def pid(self) -> int:
        return os.getpid()


@ray.remote(num_cpus=0, max_retries=-1)
def call_from_task(actor: Any, *args: Any, extra: Any = b"") -> Any:
    return ray.get(actor.run.remote(*args, extra=extra))


class Torture:
    """One runtime: actors, the calls made to them, and what must come of them."""

    def __init__(self, seed: str, store: str) -> None:
        self.rng = random.Random(seed)
        self.problems: list[str] = []
        self.poisoned = 0
        self.numbers: Counter[str] = Counter()
        self.unsure: dict[str, set[int]] = {}
        self.times: dict[tuple[str, int], int] = {}
        self.leaves = [
            self._make(Leaf, store, every=every, name=f"leaf-{n}") for n, every in enumerate((2, 1000))
        ]
        self.actors = {
            "sync": self._make(Runs, store, every=3, name="sync"),
            "sync-long": self._make(Runs, store, every=1000, name="sync-long"),
            "power": self._make(Runs, store, every=50, durability="power", name="power"),
            "async": self._make(AsyncRuns, store, every=3, name="async"),
            "async-long": self._make(AsyncRuns, store, every=1000, name="async-long"),
        }
        self.drawing = Drawing(self.rng, lambda leaf: self._number(f"leaf-{leaf}"), len(self.leaves))

    @staticmethod
    def _make(cls: type, store: str, *, name: str, **options: Any) -> Any:
        made = type(cls.__name__, (cls,), {}, store=store, **options)
        return ray.remote(num_cpus=0)(made).options(name=name).remote()

    def _number(self, name: str) -> int:
        self.numbers[name] += 1
        return self.numbers[name]

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
        steps = self.drawing.steps(5, name.startswith("async"))
        end = rng.choice(["return"] * 8 + ["raise", "raise-twice", "ref"])
        extra = rng.choice([b"", b"x" * 100, bytes(LARGE)])
        args = (index, self.leaves, steps, end)
        notes = [expected(step) for step in steps]
        how = rng.choice(["plain", "ref", "pending", "returns", "key", "task", "cancel", "bad-argument"])
        if end != "return" and how not in ("ref", "pending"):
            how = "plain"
        if end == "raise-twice":
            if any(_leaf_steps(steps)):  # would be made three times
                self._forget(name, index, steps)
                args, notes = (index, self.leaves, [], end), []
            how = "retry"
        return self._made(name, how, end, actor, args, extra, notes)

    def _made(self, name: str, how: str, end: str, actor: Any, args: Any, extra: bytes, notes: Any) -> Any:
        index, steps = args[0], args[2]
        reply = (1, notes, len(extra))
        run = actor.run
        if how == "retry":
            self.times[name, index] = 3
            ref = run.options(retry_exceptions=[Odd], max_task_retries=-1).remote(*args, extra)
            return self._judged(name, index, steps, ref, lambda value: value == (3, notes, len(extra)))
        if end == "raise":
            ref = run.remote(*args, extra=extra)
            return self._judged(name, index, steps, ref, None, Odd)
        if end == "ref":
            return self._judged(name, index, steps, run.remote(*args, extra), None, TypeError)
        if how in ("ref", "pending"):
            given = ray.put(extra) if how == "ref" else same.remote(extra)
            ref = run.remote(*args, extra=given)
        elif how == "task":
            ref = call_from_task.remote(actor, *args, extra=extra)
        elif how == "bad-argument":
            return self._judged(name, index, steps, self._broken_call(name, actor, args), None, ValueError)
        elif how == "returns":
            refs = run.options(num_returns=3).remote(*args, extra)
            return self._judged(name, index, steps, refs, lambda value: tuple(value) == reply)
        elif how == "key":
            return self._keyed(name, actor, args, extra, reply)
        elif how == "cancel":
            ref = run.remote(*args, extra)
            threading.Timer(self.rng.random() * 0.05, ray.cancel, [ref]).start()
            return self._cancelled(name, index, steps, ref, reply)
        else:
            ref = run.remote(*args, extra)
        return self._judged(name, index, steps, ref, lambda value: value == reply)

    def _broken_call(self, name: str, actor: Any, args: Any) -> Any:
        """Its argument is an error: it does not run."""
        self._forget(name, args[0], args[2], 0)
        return actor.run.remote(*args, extra=fails.remote())

    def _keyed(self, name: str, actor: Any, args: Any, extra: bytes, reply: Any) -> Any:
        key = f"{name}/{args[0]}"
        first = actor.run.options(call_key=key).remote(*args, extra)
        judge = self._judged(name, args[0], args[2], first, lambda value: value == reply)

        def both() -> None:
            again = actor.run.options(call_key=key, num_returns=3).remote(*args, extra)
            judge()
            self._judged(name, args[0], args[2], again, lambda value: tuple(value) == reply)()
            found = checkpoint.outcome(first, timeout_s=PATIENCE_S)
            if found.state != "committed":
                self.problems.append(f"{key}: outcome() says {found}")

        return both

    # -- judgement

    def _get(self, ref: Any) -> Any:
        try:
            return ray.get(ref, timeout=PATIENCE_S)
        except ray.exceptions.GetTimeoutError:
            command = [sys.executable, "-m", "ftray", "stack"]
            stacks = subprocess.run(command, capture_output=True, text=True, check=False)
            raise TimeoutError(f"no answer in {PATIENCE_S} s\n{stacks.stdout}{stacks.stderr}") from None

    def _forget(self, name: str, index: int, steps: Any, *times: int) -> None:
        """It may have been applied never or once; or never, if `times` is 0."""
        if times:
            self.times[name, index] = 0
        else:
            self.unsure.setdefault(name, set()).add(index)
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

    def _cancelled(self, name: str, index: int, steps: Any, ref: Any, reply: Any) -> Any:
        judge = self._judged(name, index, steps, ref, lambda value: value == reply)

        def judge_cancelled() -> None:
            try:
                self._get(ref)
            except ray.exceptions.TaskCancelledError:
                self._forget(name, index, steps)
            except Exception:
                judge()
            else:
                judge()

        return judge_cancelled

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
        if step[0] in ("record-call", "leaf", "two", "named"):
            yield step
        elif step[0] == "both":
            for branch in step[1:]:
                yield from _leaf_steps(branch)


class Killer:
    """Kills workers at random: SIGKILL of any, now and then `ray.kill(no_restart=False)` of an actor."""

    def __init__(self, rng: random.Random, actors: list[Any], pause_s: float) -> None:
        self._rng, self._actors, self._pause_s = rng, actors, pause_s
        self.kills = 0
        self._node = introspection.node_pid()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._rng.random() * 2 * self._pause_s):
            if self._rng.random() < 0.1:
                ray.kill(self._rng.choice(self._actors), no_restart=False)
                self.kills += 1
                continue
            pid = self._rng.choice(introspection.workers_of(self._node) or [0])
            with processes.watched([pid] if pid else []) as pidfds:
                for pidfd in pidfds:
                    if processes.parent_of(processes.pid_of(pidfd)) == self._node:
                        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                        self.kills += 1

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--kill-s", type=float, default=0.2, help="mean time between two kills")
    parser.add_argument("--seed", default=None)
    options = parser.parse_args()
    seed = options.seed or secrets.token_hex(4)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(f"feature torture: seed {seed}", flush=True)
    with tempfile.TemporaryDirectory() as base:
        ray.init(num_cpus=4, address="local", log_to_driver=False)
        torture = Torture(seed, Path(base, "store").as_uri())
        everyone = [*torture.leaves, *torture.actors.values()]
        killer = Killer(random.Random(f"{seed}/kills"), everyone, options.kill_s)
        for _ in range(0, options.calls, 20):
            torture.batch(20)
            if len(torture.problems) > 20:
                break
        killer.stop()
        torture.close()
        ray.shutdown()
    print(f"{options.calls} calls, {killer.kills} kills, {torture.poisoned} refused as poison")
    for problem in torture.problems[:30]:
        print(f"WRONG {problem}")
    print(f"problems {len(torture.problems)}, seed {seed}")
    return 1 if torture.problems else 0


if __name__ == "__main__":
    sys.exit(main())
