"""What records of tasks (`ftray.util.state`, `ftray.timeline`) cost each call.

Run it on a quiet machine: ``python -m benchmarks.events_cost``. Two processes with a runtime each, one with
records and one without, take turns of a fraction of a second, in pairs whose order alternates, so that what
disturbs the machine disturbs both. For each kind of call it prints the medians of both, of the differences
within pairs (with their quartiles), and the least of each, for wall-clock time and for the CPU time of a
call in driver and worker. Other programs disturb the least CPU time least.

``--control`` gives both processes records: what is printed then is the noise.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

SWITCH = "FTRAY_task_events_report_interval_ms"
IN_FLIGHT = 1_000


# --- one side


class Side:
    """The runtime of one process, and a turn of each kind of calls."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray

        @ray.remote
        def nothing() -> None:
            return None

        @ray.remote
        def cpu_s() -> float:
            return time.process_time()

        @ray.remote
        class Actor:
            def nothing(self) -> None:
                return None

            def cpu_s(self) -> float:
                return time.process_time()

        actor = Actor.options(num_cpus=0).remote()
        self.kinds: dict[str, tuple[Callable[[], Any], Callable[[], Any], bool]] = {
            "tasks in flight": (nothing.remote, cpu_s.remote, True),
            "actor calls in flight": (actor.nothing.remote, actor.cpu_s.remote, True),
            "tasks one by one": (nothing.remote, cpu_s.remote, False),
            "actor calls one by one": (actor.nothing.remote, actor.cpu_s.remote, False),
        }

    def turn(self, kind: str, seconds: float) -> dict[str, float]:
        """Wall-clock and CPU time of a call, in microseconds."""
        submit, worker_cpu_s, in_flight = self.kinds[kind]
        get = self.ray.get
        count = 0
        worker_s, driver_s, start = get(worker_cpu_s()), time.process_time(), time.perf_counter()
        end = start + seconds
        while time.perf_counter() < end:
            if in_flight:
                get([submit() for _ in range(IN_FLIGHT)])
                count += IN_FLIGHT
            else:
                for _ in range(50):
                    get(submit())
                count += 50
        wall_s, driver_s = time.perf_counter() - start, time.process_time() - driver_s
        worker_s = get(worker_cpu_s()) - worker_s
        return {"wall": wall_s / count * 1e6, "cpu": (driver_s + worker_s) / count * 1e6}


def serve() -> None:
    """Be a side: a line of JSON in, a line of JSON out."""
    import ftray

    ftray.init(address="local", num_cpus=1)
    side = Side(ftray)
    print(json.dumps(list(side.kinds)), flush=True)
    for line in sys.stdin:
        kind, seconds = json.loads(line)
        print(json.dumps(side.turn(kind, seconds)), flush=True)
    ftray.shutdown()


# --- both


class Process:
    """A side in a process of its own."""

    def __init__(self, records: bool) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.endswith(SWITCH[6:])}
        if not records:
            environment[SWITCH] = "0"
        command = [sys.executable, "-m", "benchmarks.events_cost", "--side"]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.kinds: list[str] = self._read()

    def turn(self, kind: str, seconds: float) -> dict[str, float]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([kind, seconds]) + "\n")
        self.process.stdin.flush()
        found: dict[str, float] = self._read()
        return found

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a side ended with status {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def compare(first: Process, second: Process, pairs: int, seconds: float) -> dict[str, dict[str, Any]]:
    """The figures of each kind: both sides' medians, and the differences within pairs (first less second)."""
    for process in (first, second):
        for kind in process.kinds:
            process.turn(kind, seconds)  # leases, pages, caches
    found: dict[str, dict[str, Any]] = {}
    for kind in first.kinds:
        turns = []
        for number in range(pairs):
            order = (first, second) if number % 2 == 0 else (second, first)
            by_side = {id(process): process.turn(kind, seconds) for process in order}
            turns.append((by_side[id(first)], by_side[id(second)]))
        found[kind] = {measure: summary(turns, measure) for measure in ("wall", "cpu")}
    return found


def summary(turns: list[tuple[dict[str, float], dict[str, float]]], measure: str) -> dict[str, Any]:
    differences = sorted(a[measure] - b[measure] for a, b in turns)
    quarter = len(differences) // 4
    return {
        "with": statistics.median(a[measure] for a, _ in turns),
        "without": statistics.median(b[measure] for _, b in turns),
        "least_with": min(a[measure] for a, _ in turns),
        "least_without": min(b[measure] for _, b in turns),
        "difference": statistics.median(differences),
        "quartiles": [differences[quarter], differences[-1 - quarter]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.events_cost", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("--pairs", type=int, default=40, help="turns of each side (default 40)")
    parser.add_argument("--seconds", type=float, default=0.25, help="length of a turn (default 0.25)")
    parser.add_argument("--control", action="store_true", help="records on both sides: shows the noise")
    parser.add_argument("--smoke", action="store_true", help="two short pairs: only shows that it runs")
    parser.add_argument("--json", metavar="OUT", help="also write the figures to this file")
    parser.add_argument("--side", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve()
        return
    pairs, seconds = (2, 0.02) if options.smoke else (options.pairs, options.seconds)
    if pairs < 1 or seconds <= 0:
        parser.error(f"--pairs and --seconds must be positive; given {pairs} and {seconds:g}")
    sides: list[Process] = []
    try:
        for records in (True, options.control):
            sides.append(Process(records))
        found = compare(sides[0], sides[1], pairs, seconds)
    finally:
        for side in sides:
            side.close()
    for kind, measures in found.items():
        for measure, figures in measures.items():
            low, high = figures["quartiles"]
            print(
                f"{kind:24} {measure:4}  with {figures['with']:7.2f} us, without {figures['without']:7.2f};"
                f" difference {figures['difference']:+.2f} us (quartiles {low:+.2f} to {high:+.2f});"
                f" least {figures['least_with']:.2f}, {figures['least_without']:.2f}"
            )
    if options.json:
        with open(options.json, "w") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
