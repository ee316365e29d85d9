"""Random faults against the real runtime: ``python -m tests.chaos.run --seconds 60 --seed N``.

First phase: tasks, actors, placement groups, nested submission and objects of both sizes run while workers
and the zygote are killed, stopped, or end themselves. Then the faults stop and everything must finish.
Second phase: ``ftrayd`` is killed under load, and every open call must end in a result or in
``HeadDiedError``. Third phase: drivers of a head are killed, its workers too, and what is detached must
stay, and nothing else.

The run fails if a result is wrong, missing or late, or if a process, descriptor, shared memory or counter is
left. It prints its seed; the same seed makes the same plan, though not the same timing.
"""

from __future__ import annotations

import argparse
import faulthandler
import itertools
import os
import random
import resource
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

import ftray as ray
from tests.chaos.drivers import phase_of_drivers
from tests.chaos.faults import Saboteur, kill_node
from tests.chaos.groups import RESOURCES, all_removed
from tests.chaos.workload import STORE_BYTES, Batch, batches, digest
from tests.helpers import introspection, processes
from tests.helpers.leaks import Footprint
from tests.helpers.sync import eventually

SUBMITTERS = 3
IN_FLIGHT = 4
RESULT_DEADLINE_S = 60.0
HEAD_DEADLINE_S = 10.0


class ChaosFailedError(AssertionError):
    """Something that the run must never see."""


class Score:
    """What came back, by workload; shared by the submitters."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.problems: list[str] = []
        self._lock = threading.Lock()

    def add(self, workload: str, outcome: str, problem: str = "") -> None:
        with self._lock:
            self.counts.setdefault(workload, Counter())[outcome] += 1
            if problem:
                self.problems.append(f"{workload}: {problem}")

    def total(self, outcome: str) -> int:
        return sum(counts[outcome] for counts in self.counts.values())

    def table(self) -> str:
        columns = ("right", "excused", "head died", "wrong")
        rows = [("workload", *columns)]
        rows += [
            (name, *(str(counts[column]) for column in columns))
            for name, counts in sorted(self.counts.items())
        ]
        rows.append(("total", *(str(self.total(column)) for column in columns)))
        return table(rows)


def table(rows: list[tuple[str, ...]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return "\n".join(lines)


def collect(batch: Batch, score: Score, deadline_s: float, head_may_die: bool = False) -> None:
    """Wait for every result of a batch and judge it, then finish it."""
    try:
        judge(batch, score, deadline_s, head_may_die)
    finally:
        try:
            batch.finish()
        except ray.exceptions.HeadDiedError:
            if not head_may_die:
                raise


def judge(batch: Batch, score: Score, deadline_s: float, head_may_die: bool) -> None:
    end = time.monotonic() + deadline_s
    for ref, expected in zip(batch.refs, batch.expected, strict=True):
        try:
            value = value_of(ref, end)
        except batch.excused:
            score.add(batch.workload, "excused")
        except ray.exceptions.GetTimeoutError:
            score.add(batch.workload, "wrong", f"no result of {ref} within {deadline_s} s")
            faulthandler.dump_traceback(all_threads=True)
            return
        except ray.exceptions.HeadDiedError as error:
            right = head_may_die
            score.add(batch.workload, "head died" if right else "wrong", "" if right else repr(error))
        except Exception as error:
            if batch.excused and caused_by(error, batch.excused):
                score.add(batch.workload, "excused")
            else:
                score.add(batch.workload, "wrong", f"{type(error).__name__}: {error}")
        else:
            right = value == expected
            score.add(
                batch.workload, "right" if right else "wrong", "" if right else f"{value!r} != {expected!r}"
            )


def value_of(ref: Any, end: float) -> Any:
    """The value of a ref; of a generator all of its values, arrays by their digests."""
    if not isinstance(ref, ray.ObjectRefGenerator):
        return ray.get(ref, timeout=max(0.0, end - time.monotonic()))
    values = []
    while not ref.is_finished():
        if not ray.wait([ref], timeout=max(0.0, end - time.monotonic()))[0]:
            raise ray.exceptions.GetTimeoutError(f"{len(values)} items came")
        values += [
            ray.get(item, timeout=max(0.0, end - time.monotonic())) for item in itertools.islice(ref, 1)
        ]
    return [digest(value) if isinstance(value, np.ndarray) else value for value in values]


def caused_by(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    cause = getattr(error, "cause", None)
    return isinstance(cause, kinds)


class Submitter(threading.Thread):
    """Keeps a few batches in flight until told to stop, then collects the rest."""

    def __init__(self, name: str, seed: str, scratch: Path, score: Score, stop: threading.Event) -> None:
        super().__init__(name=name, daemon=True)
        self.rng = random.Random(f"{seed}/{name}")
        self.scratch = scratch
        self.score = score
        self.stop_asked = stop
        self.error: BaseException | None = None

    def run(self) -> None:
        open_batches: list[Batch] = []
        try:
            for batch in batches(self.name, self.rng, self.scratch):
                open_batches.append(batch)
                if len(open_batches) > IN_FLIGHT:
                    collect(open_batches.pop(self.rng.randrange(IN_FLIGHT)), self.score, RESULT_DEADLINE_S)
                if self.stop_asked.is_set() or self.score.problems:
                    break
            while open_batches:
                collect(open_batches.pop(0), self.score, RESULT_DEADLINE_S)
        except BaseException as error:
            self.error = error


def run_submitters(seed: str, scratch: Path, score: Score, seconds: float) -> None:
    stop = threading.Event()
    submitters = [Submitter(f"submitter-{i}", seed, scratch, score, stop) for i in range(SUBMITTERS)]
    for submitter in submitters:
        submitter.start()
    stop.wait(seconds)
    stop.set()
    limit = time.monotonic() + RESULT_DEADLINE_S * 2
    for submitter in submitters:
        submitter.join(max(0.0, limit - time.monotonic()))
        if submitter.is_alive():
            faulthandler.dump_traceback(all_threads=True)
            raise ChaosFailedError(f"{submitter.name} hangs; counters: {introspection.counters()}")
        if submitter.error:
            raise submitter.error


def phase_of_workers(
    seed: str, seconds: float, scratch: Path, score: Score, faults: Counter[str], num_cpus: int
) -> None:
    """Workers and zygotes die; everything else must not be impressed."""
    footprint = Footprint(os.environ[processes.MARK], Path(os.environ["FTRAY_TMPDIR"]))
    ray.init(
        address="local",
        num_cpus=num_cpus,
        resources=RESOURCES,
        log_to_driver=False,
        object_store_memory=STORE_BYTES,
    )
    saboteur = Saboteur(random.Random(f"{seed}/saboteur"))
    saboteur.start()
    try:
        run_submitters(seed, scratch, score, seconds)
    finally:
        saboteur.stop()
        faults += saboteur.done
    for batch in (next(batches("afterwards", random.Random(f"{seed}/{i}"), scratch)) for i in range(10)):
        collect(batch, score, RESULT_DEADLINE_S)
    del batch
    footprint.check_settled()
    eventually(all_removed, "everything that groups had reserved comes back")
    ray.shutdown()
    footprint.check_restored()


def phase_of_the_head(seed: str, rounds: int, scratch: Path, score: Score, num_cpus: int) -> None:
    """``ftrayd`` dies at a random moment; each open call ends, and a new session can begin."""
    rng = random.Random(f"{seed}/head")
    for round_number in range(rounds):
        ray.init(address="local", num_cpus=num_cpus, resources=RESOURCES, log_to_driver=False)
        work = batches(f"head-{round_number}", random.Random(f"{seed}/head/{round_number}"), scratch)
        open_batches = [next(work) for _ in range(IN_FLIGHT)]
        threading.Event().wait(rng.uniform(0, 0.2))
        kill_node()
        for batch in open_batches:
            collect(batch, score, HEAD_DEADLINE_S, head_may_die=True)
        del open_batches, batch, work
        ray.shutdown()
        eventually(
            lambda: not processes.marked(os.environ[processes.MARK]), "all processes end with their node"
        )


def rounds_of(given: int | None, seconds: float) -> int:
    return max(2, int(seconds / 4)) if given is None else given


def watchdog(limit_s: float) -> None:
    faulthandler.dump_traceback_later(limit_s, exit=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.run", description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the first phase (default 60)")
    parser.add_argument("--seed", default=None, help="any text; chosen and printed if not given")
    parser.add_argument("--cpus", type=int, default=2, help="num_cpus of the runtime (default 2)")
    parser.add_argument(
        "--head-rounds", type=int, default=None, help="kills of ftrayd (default: one per 4 s, at least 2)"
    )
    parser.add_argument(
        "--driver-rounds", type=int, default=None, help="kills of drivers (default: one per 4 s, at least 2)"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    seed = options.seed or secrets.token_hex(4)
    rounds = rounds_of(options.head_rounds, options.seconds)
    drivers = rounds_of(options.driver_rounds, options.seconds)
    deaths = f"{rounds} head deaths, {drivers} driver deaths"
    print(f"chaos: seed {seed}, {options.seconds:g} s of faults, {deaths}", flush=True)
    watchdog(options.seconds + (rounds + drivers) * 20 + 4 * RESULT_DEADLINE_S)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    score = Score()
    begin = time.monotonic()
    failure: str = ""
    faults: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="ftray-chaos-") as base:
        os.environ["FTRAY_TMPDIR"] = base
        os.environ[processes.MARK] = processes.new_mark()
        scratch = Path(base, "scratch")
        scratch.mkdir()
        try:
            phase_of_workers(seed, options.seconds, scratch, score, faults, options.cpus)
            phase_of_the_head(seed, rounds, scratch, score, options.cpus)
            faults["SIGKILL ftrayd"] = rounds
            phase_of_drivers(seed, drivers, Path(base, "head"), score, faults)
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"
        finally:
            end_all()
    report(seed, score, faults, time.monotonic() - begin, failure)
    return 1 if failure or score.problems else 0


def end_all() -> None:
    """After a failure, end what the run started, and nothing else."""
    for pid in processes.marked(os.environ[processes.MARK]):
        processes.send_signal(pid, signal.SIGCONT)
        processes.send_signal(pid, signal.SIGKILL)


def report(seed: str, score: Score, faults: Counter[str], took_s: float, failure: str) -> None:
    print(score.table())
    print()
    print(table([("fault", "times"), *((name, str(count)) for name, count in sorted(faults.items()))]))
    for problem in score.problems[:20]:
        print(f"WRONG {problem}")
    if failure:
        print(f"FAILED {failure}")
    verdict = "failed" if failure or score.problems else "passed"
    print(f"chaos: {verdict}, seed {seed}, {score.total('right')} results right, {took_s:.1f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
