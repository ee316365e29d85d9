"""What durability costs: ``python -m benchmarks.checkpoint [--smoke] [--ray-python P] [--json FILE]``.

Durable calls beside plain ones and beside the disk's own limit, in one run: sides alternate in short
turns, and medians are compared. Peers, each under an interpreter that has it: DBOS steps on SQLite, Ray's
plain calls, and Ray's documented recipe (a fsynced file, restarts and retries), whose sum is compared
with what it should be after kills."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.budget import Budget, repeat_for
from benchmarks.checkpoint_rows import Bench

PEER_TIMEOUT_S = 240.0
SCRIPTS = Path(__file__).resolve().parent / "peers"


@dataclass(frozen=True)
class Line:
    """One line of the table: a value, what it is compared with, and what must hold of the ratio (or it)."""

    title: str
    value: float
    unit: str
    ratio: float | None = None
    beside: str = ""
    floor: float | None = None
    goal: float | None = None
    less_is_better: bool = False

    @property
    def judged(self) -> float:
        return self.value if self.ratio is None else self.ratio

    def met(self, bound: float | None) -> bool | None:
        """Whether the floor or the goal is reached; None if there is none."""
        if bound is None:
            return None
        return self.judged <= bound if self.less_is_better else self.judged >= bound

    def __str__(self) -> str:
        marks = [
            f"{name} {bound:g} {'met' if self.met(bound) else 'MISSED'}"
            for name, bound in (("floor", self.floor), ("goal", self.goal))
            if bound is not None
        ]
        ratio = "" if self.ratio is None else f"{self.ratio:8.3f} of {self.beside}"
        return f"{self.title:44} {figure(self.value, self.unit):>14}  {ratio:32} {', '.join(marks)}"


def figure(value: float, unit: str) -> str:
    if unit == "/s":
        return f"{value:,.0f} /s"
    return f"{value * 1e3:.3g} ms" if unit == "s" else f"{value:.2f} {unit}"


def in_turns(
    steps: dict[str, tuple[Callable[[], object], int]], budget: Budget, rounds: int
) -> dict[str, list[float]]:
    """Rates of all sides, one short turn each in every round; the order turns round each time."""
    for step, _ in steps.values():
        repeat_for(step, budget.warmup_s)
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in list(steps) if turn % 2 == 0 else list(reversed(steps)):
            step, per_step = steps[name]
            done, elapsed_s = repeat_for(step, budget.measure_s / 4)
            rates[name].append(done * per_step / elapsed_s)
    return rates


def ratio(rates: dict[str, list[float]], ours: str, other: str) -> float:
    """Median of the ratios of each round."""
    return statistics.median(a / b for a, b in zip(rates[ours], rates[other], strict=True))


def synchronous(bench: Bench, budget: Budget) -> list[Line]:
    rates = in_turns(bench.synchronous(), budget, budget.size(12, 2))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    call_s, sync_s = bench.beside_disk(budget.size(1500, 20))
    limit = 1 / (sync_s + 1 / middle["plain"])
    return [
        Line("plain call, synchronous", middle["plain"], "/s"),
        Line("fdatasync of one record", sync_s, "s"),
        Line(
            "durable (process), synchronous",
            middle["process"],
            "/s",
            ratio(rates, "process", "plain"),
            "plain",
            0.6,
            None,
        ),
        Line(
            "durable (power), synchronous",
            1 / call_s,
            "/s",
            1 / call_s / limit,
            "1/(fdatasync + plain)",
            0.7,
            0.9,
        ),
    ]


def pipelined(bench: Bench, budget: Budget) -> list[Line]:
    rates = in_turns(bench.pipelined(), budget, budget.size(12, 2))
    middle = {name: statistics.median(values) for name, values in rates.items()}
    return [
        Line("plain calls, 1,000 in flight", middle["plain"], "/s"),
        Line(
            "durable (process), 1,000 in flight",
            middle["process"],
            "/s",
            ratio(rates, "process", "plain"),
            "plain",
            None,
            0.7,
        ),
        Line(
            "durable (power), 1,000 in flight",
            middle["power"],
            "/s",
            ratio(rates, "power", "plain"),
            "plain",
            0.25,
            0.5,
        ),
    ]


def snapshots(bench: Bench, budget: Budget) -> list[Line]:
    lines = []
    for title, steps in bench.snapshots().items():
        rates = in_turns(steps, budget, budget.size(16, 2))
        share = 1 - ratio(rates, "saved", "plain")
        lines.append(Line(title, share * 100, "%", None, "", 3.0, 1.0, True))
    return lines


def recoveries(bench: Bench, budget: Budget) -> list[Line]:
    size, first, warm = bench.pause(budget.size(1 << 30, 1 << 20))
    name = f"pause for {size / (1 << 30):.3g} GiB of numpy"
    lines = [
        Line(f"{name}, first", first, "s"),
        Line(f"{name}, warm buffer", warm, "s", None, "", 0.150, 0.030, True),
    ]
    for mode, times_s in bench.kills(budget.size(10 << 20, 1 << 16), budget.size(9, 1)).items():
        median_s = statistics.median(times_s)
        lines.append(Line(f"kill to first reply, 10 MB, {mode}", median_s, "s", None, "", 0.050, 0.020, True))
    return lines


def peer(python: str | None, script: str, smoke: bool) -> dict[str, float]:
    """What a script under `python` has measured; nothing if there is no such interpreter."""
    if not python:
        return {}
    with tempfile.TemporaryDirectory() as directory:
        command = [python, str(SCRIPTS / script), directory, *(["--smoke"] if smoke else [])]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PEER_TIMEOUT_S, env=environment, cwd=directory
        )
        if done.returncode:
            raise RuntimeError(
                f"{script} ended with {done.returncode}:\n{done.stdout}\n{done.stderr[-5000:]}"
            )
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def beside_peers(lines: list[Line], dbos: dict[str, float], ray: dict[str, float]) -> list[Line]:
    named = {line.title: line.value for line in lines}
    found = []
    for title, rate in dbos.items():
        found.append(Line(f"DBOS on SQLite: {title}", rate, "/s"))
    for title, rate in ray.items():
        if title.startswith("recipe, counted"):
            found.append(Line(f"Ray's {title}", rate, "calls too many"))
        else:
            found.append(Line(f"Ray: {title}", rate, "/s"))
    if "plain calls, 1,000 in flight" in ray:
        power = named["durable (power), 1,000 in flight"]
        times = power / ray["plain calls, 1,000 in flight"]
        found.append(
            Line("durable (power), 1,000 in flight", power, "/s", times, "Ray's plain calls", 4.0, None)
        )
    return found


def measure(smoke: bool, peers_python: str | None, ray_python: str | None) -> list[Line]:
    """The whole table."""
    budget = Budget.small() if smoke else Budget.full()
    with tempfile.TemporaryDirectory(prefix="ftray-bench-") as directory:
        bench = Bench(directory)
        try:
            lines = [*synchronous(bench, budget), *pipelined(bench, budget), *snapshots(bench, budget)]
            lines += recoveries(bench, budget)
        finally:
            bench.close()
    dbos = peer(peers_python, "dbos_steps.py", smoke)
    return lines + beside_peers(lines, dbos, peer(ray_python, "ray_recipe.py", smoke))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small sizes, short loops")
    parser.add_argument("--peers-python", help="interpreter that has DBOS")
    parser.add_argument("--ray-python", help="interpreter that has Ray")
    parser.add_argument("--json", help="file that gets the figures")
    options = parser.parse_args(arguments)
    before = os.getloadavg()[0]
    lines = measure(options.smoke, options.peers_python, options.ray_python)
    for line in lines:
        print(line)
    print(f"machine: {os.cpu_count()} CPUs, load {before:.1f} before and {os.getloadavg()[0]:.1f} after")
    if options.json:
        rows: list[dict[str, Any]] = [asdict(line) for line in lines]
        Path(options.json).write_text(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
