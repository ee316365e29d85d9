"""A driver with a job key that is killed at random and run again, until one comes to its end.

With it die its node, its tasks and its actors, all at one instant. Every run makes the same calls from the
beginning; what was applied gives the reply of the first time. A run writes its replies into a log of its own
as they come: those of all runs must agree, and the last one, which comes to its end, holds the states
against its book. ``python -m tests.chaos.torture_drivers`` is one run."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests import ROOT

NAMESPACE = "torture"
RUN_LIMIT_S = 300.0


@dataclass
class Outcome:
    """What all runs together have shown."""

    calls: int = 0
    replies: int = 0
    poisoned: int = 0
    runs: int = 0
    kills: int = 0
    taken_s: float = 0.0
    wrong: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    def problem(self, kind: str, text: str) -> None:
        self.wrong[kind] += 1
        self.problems.append(f"{kind}: {text}")


def one_run(seed: str, store: str, batches: int, log: Path) -> None:
    """The driver: make all calls, write down what was answered, and in the end compare."""
    import ftray as ray
    from tests.chaos.torture_actors import Leaf
    from tests.chaos.torture_book import Book
    from tests.chaos.torture_work import Cast, Submitter, in_threads, made_of

    ray.init(
        num_cpus=4, address="local", log_to_driver=False, job_key=f"torture {seed}", namespace=NAMESPACE
    )
    cast = Cast(store, 4, 2)
    Submitter.passing_classes = [made_of(Leaf, store, {"every": every}) for every in (3, 1000)]
    book = Book(list(cast.all), os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600))
    submitter = Submitter(book, cast, f"{seed}/driver")
    submitted = iter(range(batches))
    in_threads([submitter], lambda: next(submitted, None) is not None)
    submitter.last.clear()
    cast.close(book)
    ray.shutdown()
    result = {"calls": book.calls, "poisoned": book.poisoned, "wrong": book.wrong, "problems": book.problems}
    log.with_suffix(".result").write_text(json.dumps(result))


def torture(seed: str, kills: int, batches: int, store: str, directory: str) -> Outcome:
    """Start runs until one comes to its end; all but the last are killed somewhere on their way."""
    outcome = Outcome()
    rng = random.Random(f"{seed}/drivers")
    given: dict[str, str] = {}
    begin_s = time.monotonic()
    for run in range(kills + 1):
        log = Path(directory, f"run-{run}.log")
        # The replies of a run that is killed: from none to more than all runs before together have had.
        due = None if run == kills else rng.randrange(int(len(given) * 1.2) + 1 + 60 * batches // (kills + 1))
        outcome.runs += 1
        if _drive(seed, store, batches, log, due, rng.random() * 0.05):
            outcome.kills += 1
        _compare(outcome, given, log)
        result = log.with_suffix(".result")
        if result.exists():
            found = json.loads(result.read_text())
            outcome.wrong.update(found["wrong"])
            outcome.problems += found["problems"]
            outcome.calls, outcome.poisoned = found["calls"], found["poisoned"]
    outcome.taken_s = time.monotonic() - begin_s
    return outcome


def _drive(seed: str, store: str, batches: int, log: Path, due: int | None, pause_s: float) -> bool:
    """One run; with `due` it is killed some time after so many replies. Returns whether it was."""
    log.touch()
    command = [sys.executable, "-m", "tests.chaos.torture_drivers", seed, store, str(batches), str(log)]
    paths = os.pathsep.join([ROOT, *sys.path])
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": paths}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            if due is not None:
                killed = _kill_at(process, log, due, pause_s)
                process.communicate(timeout=RUN_LIMIT_S)
                return killed
            _out, errors = process.communicate(timeout=RUN_LIMIT_S)
        finally:
            process.kill()
    if process.returncode:
        raise RuntimeError(f"a run that nobody killed ended with {process.returncode}:\n{errors[-20000:]}")
    return False


def _kill_at(process: subprocess.Popen[str], log: Path, due: int, pause_s: float) -> bool:
    """Kill the run when it has logged so many replies; False if it came to its end before that."""
    deadline_s = time.monotonic() + RUN_LIMIT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        if log.read_bytes().count(b"\n") >= due:
            time.sleep(pause_s)  # a time like any other: also between two replies
            break
        time.sleep(0.005)
    if process.poll() is None:
        process.send_signal(signal.SIGKILL)
        return True
    if process.returncode:
        assert process.stderr is not None
        raise RuntimeError(
            f"a run ended by itself with {process.returncode}:\n{process.stderr.read()[-20000:]}"
        )
    return False


def _compare(outcome: Outcome, given: dict[str, str], log: Path) -> None:
    """What a run was answered is what all runs before it were."""
    for line in log.read_text().split("\n")[:-1]:  # a last line without its end was cut by the kill
        entry, reply = line.split("\t")
        outcome.replies += 1
        if given.setdefault(entry, reply) != reply:
            outcome.problem("changed reply", f"{entry} answered {given[entry]} first, later {reply}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed")
    parser.add_argument("store")
    parser.add_argument("batches", type=int)
    parser.add_argument("log", type=Path)
    options = parser.parse_args()
    one_run(options.seed, options.store, options.batches, options.log)
    return 0


if __name__ == "__main__":
    sys.exit(main())
