"""Exactly-once actors under random SIGKILLs: ``python -m tests.chaos.torture --kills N --calls N --seed S``.

Actors, the actors that call them, and tasks that call both are killed at random while calls of all kinds
are under way: with checkpoints in files, then on S3. At last drivers are (`torture_drivers`).

A reference that knows nothing of the runtime holds every reply and every final state
against what was asked for: each effect once, in order, with the same reply for whoever asks again. It
prints what was lost or doubled, how often and how fast was recovered, and its seed; the same seed makes
the same plan, though not the same timing."""

from __future__ import annotations

import argparse
import os
import random
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ftray as ray
from tests.chaos import torture_drivers
from tests.chaos.torture_book import Book
from tests.chaos.torture_work import Cast, Leaf, Submitter, in_threads, made_of
from tests.helpers import introspection, processes
from tests.helpers.sync import eventually

ANY, ACTOR = "any worker", "actor"
PATIENCE_S = 300.0
"""For an answer of an actor that recovers, behind the calls under way: minutes on S3 beside other work."""


class Killer:
    """Kills at random, paced by what was answered, until there were enough kills."""

    def __init__(self, rng: random.Random, book: Book, cast: Cast, kills: int, calls: int) -> None:
        self._rng, self._book, self._cast = rng, book, cast
        self.kills, self.calls = kills, calls
        self.done: Counter[str] = Counter()
        self.recoveries_s: list[float] = []
        self.error: BaseException | None = None
        self._node = introspection.node_pid()
        self._pids: dict[str, int] = {}
        self._recovering: dict[str, threading.Thread] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finished(self) -> bool:
        return self.error is not None or not self._thread.is_alive()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        for thread in self._recovering.values():
            thread.join()
        if self.error:
            raise self.error

    def _run(self) -> None:
        try:
            for name, actor in self._cast.all.items():
                self._pids[name] = ray.get(actor.pid.remote())
            step = self.calls / (self.kills + 1)
            for number in range(self.kills):
                due = int(step * (number + self._rng.random()))
                with self._book.moved:
                    while self._book.calls < due and not self._stop.is_set():
                        self._book.moved.wait(0.05)
                if self._stop.wait(self._rng.random() * 0.01):
                    return
                while not self._kill_one():
                    if self._stop.wait(0.005):
                        return
        except BaseException as error:
            self.error = error

    def _kill_one(self) -> bool:
        if self._rng.random() < 0.35:
            return self._kill(self._rng.choice(introspection.workers_of(self._node) or [0]), ANY)
        name = self._rng.choice(list(self._cast.all))
        recovering = self._recovering.get(name)
        if recovering is not None and recovering.is_alive():
            return False
        pid = self._pids[name]
        begin_s = time.monotonic()
        if not self._kill(pid, name.rstrip("-0123456789")):
            self._pids[name] = ray.get(self._cast.all[name].pid.remote(), timeout=PATIENCE_S)
            return False
        thread = threading.Thread(target=self._recover, args=(name, pid, begin_s), daemon=True)
        self._recovering[name] = thread
        thread.start()
        return True

    def _kill(self, pid: int, what: str) -> bool:
        if pid == 0:
            return False
        with processes.watched([pid]) as pidfds:
            for pidfd in pidfds:
                # The number may have passed to another process since it was listed; the pidfd is checked.
                if processes.parent_of(processes.pid_of(pidfd)) != self._node:
                    return False
                try:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                except ProcessLookupError:
                    return False
                self.done[what] += 1
                return True
        return False

    def _recover(self, name: str, old: int, begin_s: float) -> None:
        """From the kill to the first answer of the next incarnation, behind the calls under way."""
        try:
            while True:
                pid = ray.get(self._cast.all[name].pid.remote(), timeout=PATIENCE_S)
                if pid != old:
                    break
            self.recoveries_s.append(time.monotonic() - begin_s)
            self._pids[name] = pid
        except BaseException as error:
            self.error = error


def torture(seed: str, kills: int, calls: int, store: str, cpus: int) -> tuple[Book, Killer, float]:
    """Run it all against one new runtime; returns what was found and how long it took."""
    ray.init(num_cpus=cpus, address="local", log_to_driver=False)
    try:
        cast = Cast(store, 4, 2)
        book = Book(list(cast.all))
        Submitter.passing_classes = [made_of(Leaf, store, {"every": every}) for every in (3, 1000)]
        submitters = [Submitter(book, cast, f"{seed}/{i}") for i in range(3)]
        killer = Killer(random.Random(f"{seed}/kills"), book, cast, kills, calls)
        begin_s = time.monotonic()
        killer.start()
        in_threads(submitters, lambda: not killer.error and (book.calls < calls or not killer.finished()))
        killer.stop()
        took_s = time.monotonic() - begin_s
        for submitter in submitters:
            submitter.last.clear()
        cast.close(book)
        return book, killer, took_s
    finally:
        ray.shutdown()


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def report(book: Book, killer: Killer, took_s: float) -> None:
    recoveries = killer.recoveries_s
    print(f"calls judged        {book.calls} in {took_s:.1f} s: {book.calls / took_s:.0f} /s")
    print(f"kills               {sum(killer.done.values())}: {dict(sorted(killer.done.items()))}")
    print(
        f"recoveries timed    {len(recoveries)}, p50 {percentile(recoveries, 0.5) * 1e3:.0f} ms, "
        f"p99 {percentile(recoveries, 0.99) * 1e3:.0f} ms, longest {max(recoveries, default=0) * 1e3:.0f} ms"
    )
    print(f"refused as poison   {book.poisoned}")
    say_wrong(book.wrong, book.problems)


def say_wrong(wrong: Counter[str], problems: list[str]) -> None:
    lost, doubled = wrong["lost"], wrong["doubled"]
    other = sum(wrong.values()) - lost - doubled
    print(f"lost {lost}, doubled {doubled}, other problems {other}", flush=True)
    for problem in problems[:30]:
        print(f"WRONG {problem}")


@contextmanager
def store_of(kind: str, base: str) -> Iterator[str]:
    """Where the checkpoints go."""
    if kind == "file":
        yield Path(base, "store").as_uri()
        return
    try:
        import s3fs  # noqa: F401

        from tests.helpers.s3_server import ENVIRONMENT, s3_server
    except ImportError as error:
        raise SystemExit(f"checkpoints on S3 need `pip install s3fs 'moto[server]'`: {error}") from error
    os.environ.update(ENVIRONMENT)
    with s3_server() as server:
        yield f"s3://{server.new_bucket()}/torture?endpoint_url={server.endpoint}"


def report_drivers(outcome: torture_drivers.Outcome) -> None:
    print(f"drivers killed      {outcome.kills} of {outcome.runs} runs, in {outcome.taken_s:.1f} s")
    print(f"calls judged        {outcome.calls} of the last run")
    print(f"replies compared    {outcome.replies} of all runs")
    print(f"refused as poison   {outcome.poisoned}")
    say_wrong(outcome.wrong, outcome.problems)


def part_of_workers(kind: str, options: argparse.Namespace, base: str) -> int:
    """Kill actors, tasks and their callers in one runtime; returns how much was wrong."""
    kills, calls = (options.kills, options.calls) if kind == "file" else (options.s3_kills, options.s3_calls)
    print(f"torture: {kind}, {kills} kills over {calls} calls", flush=True)
    with store_of(kind, base) as store:
        book, killer, took_s = torture(f"{options.seed}/{kind}", kills, calls, store, options.cpus)
    report(book, killer, took_s)
    return sum(book.wrong.values())


def part_of_drivers(options: argparse.Namespace, base: str) -> int:
    """Kill drivers, and with each of them all that it has started."""
    kills, batches = options.driver_kills, options.driver_batches
    print(f"torture: drivers, {kills} kills over {batches} batches of calls", flush=True)
    with store_of("file", base) as store:
        outcome = torture_drivers.torture(options.seed, kills, batches, f"{store}-drivers", base)
    report_drivers(outcome)
    return sum(outcome.wrong.values())


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000, help="of actors and tasks, checkpoints in files")
    parser.add_argument("--calls", type=int, default=1_000_000, help="over at least so many calls")
    parser.add_argument("--s3-kills", type=int, default=50, help="the same with checkpoints on S3 (moto)")
    parser.add_argument("--s3-calls", type=int, default=10_000)
    parser.add_argument("--driver-kills", type=int, default=20, help="of drivers, with their whole runtime")
    parser.add_argument("--driver-batches", type=int, default=100)
    parser.add_argument("--parts", default="file,s3,drivers", help="which of them (default all)")
    parser.add_argument("--seed", default=None)
    parser.add_argument("--cpus", type=int, default=4)
    parser.add_argument("--keep", action="store_true", help="leave the store and say where it is")
    options = parser.parse_args()
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - {"file", "s3", "drivers"}:
        parser.error(f"--parts has {', '.join(sorted(unknown))}; there are file, s3 and drivers")
    return options


def main() -> int:
    options = arguments()
    options.seed = options.seed or secrets.token_hex(4)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print(f"torture: seed {options.seed}", flush=True)
    base = tempfile.mkdtemp(prefix="ftray-torture-")
    os.environ["FTRAY_TMPDIR"] = base
    os.environ[processes.MARK] = processes.new_mark()
    wrong: int | None = None  # None: not known
    try:
        wrong = sum(
            part_of_drivers(options, base) if part == "drivers" else part_of_workers(part, options, base)
            for part in options.parts
        )
        eventually(lambda: not processes.marked(os.environ[processes.MARK]), "all processes to end")
    finally:
        for pid in processes.marked(os.environ[processes.MARK]):
            processes.end(pid)
        if options.keep or wrong != 0:
            print(f"torture: the stores are in {base}")
        else:
            shutil.rmtree(base)
    print(f"torture: {'failed' if wrong else 'passed'}, seed {options.seed}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
