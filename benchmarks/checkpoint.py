"""What durability costs: ``make bench-checkpoint``, or ``python -m benchmarks.checkpoint [--smoke]``.

Durable calls beside plain ones and beside the disk's own limit, in one run: sides alternate in short
turns, and medians are compared. Peers, each under an interpreter that has it: casty's durable actors and
DBOS steps, both on SQLite, Ray's plain calls, and Ray's documented recipe (a fsynced file, restarts and
retries), whose sum is compared with what it should be after kills, as that of our actors is."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ftray
from benchmarks import checkpoint_s3
from benchmarks.budget import Budget, repeat_for
from benchmarks.checkpoint_rows import Bench

PEER_TIMEOUT_S = 240.0
SCRIPTS = Path(__file__).resolve().parent / "peers"
PEERS = {"casty": "casty_calls.py", "DBOS": "dbos_steps.py", "Ray": "ray_recipe.py"}


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
        return f"{self.title:66} {figure(self.value, self.unit):>14}  {ratio:32} {', '.join(marks)}"


def figure(value: float, unit: str) -> str:
    if unit == "/s":
        return f"{value:,.0f} /s"
    return f"{value * 1e3:.3g} ms" if unit == "s" else f"{value:.2f} {unit}"


def in_turns(
    steps: dict[str, tuple[Callable[[], object], int]], budget: Budget, rounds: int, lead_s: float = 0.0
) -> dict[str, list[float]]:
    """Rates of all sides, one short turn each in every round; the order turns round each time.

    `lead_s`: of each turn, before it is timed.
    """
    for step, _ in steps.values():
        repeat_for(step, budget.warmup_s)
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(rounds):
        for name in list(steps) if turn % 2 == 0 else list(reversed(steps)):
            step, per_step = steps[name]
            repeat_for(step, lead_s)
            done, elapsed_s = repeat_for(step, budget.measure_s / 4)
            rates[name].append(done * per_step / elapsed_s)
    return rates


def ratios(rates: dict[str, list[float]], ours: str, other: str) -> list[float]:
    """The ratio of each round."""
    return [a / b for a, b in zip(rates[ours], rates[other], strict=True)]


def ratio(rates: dict[str, list[float]], ours: str, other: str) -> float:
    """Median of the ratios of each round."""
    return statistics.median(ratios(rates, ours, other))


def middle_mean(values: list[float]) -> float:
    """Mean of the middle half: steadier than a median where what is looked for is smaller than the noise."""
    quarter = len(values) // 4
    return statistics.fmean(sorted(values)[quarter : len(values) - quarter])


def synchronous(bench: Bench, budget: Budget) -> list[Line]:
    steps = bench.synchronous()
    bench.beside_disk(budget.size(500, 5))
    # First: what `process` has written keeps the disk busy.
    call_s, sync_s = bench.beside_disk(budget.size(4000, 20))
    rates = in_turns(steps, budget, budget.size(12, 2))
    middle = {name: statistics.median(values) for name, values in rates.items()}
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
    """What snapshots take of the rate, how many are made, how many calls a crash would have cost at worst."""
    lines = []
    for title, batch in (("sync.", 1), ("100 in flight", 100)):
        what = f"snapshot each 1,000 calls, 1 MB, {title}"
        lines += _of_saves(bench, budget, what, batch, budget.size(5, 1), (3.0, 1.0))
        # By itself: what is written without a bound keeps the disk busy in others' turns.
        lines += _of_saves(bench, budget, f"{what}, save_share=1", batch, 1, (None, None), save_share=1)
    return lines


def _of_saves(
    bench: Bench,
    budget: Budget,
    what: str,
    batch: int,
    pairs: int,
    bounds: tuple[float | None, float | None],
    **options: Any,
) -> list[Line]:
    """`pairs` of actors, each with new processes: those of one class differ by a hundredth or two."""
    turn = Budget(budget.measure_s * 2, budget.warmup_s, budget.smoke)
    lead_s = budget.measure_s / 10  # what a rest has earned, for saves at once, is spent before
    shares: list[float] = []
    saves, calls, cpu_s, worst = 0, 0, 0.0, 0
    for _ in range(pairs):
        steps, actors = bench.snapshots(batch, **options)
        before = ftray.checkpoint.status(actors["saved"])
        rates = in_turns(steps, turn, budget.size(12, 2), lead_s)
        after = ftray.checkpoint.status(actors["saved"])
        bench.end(actors)
        shares += ratios(rates, "saved", "plain")
        saves += after["saves"] - before["saves"]
        calls += after["calls"] - before["calls"]
        cpu_s += after["save_cpu_s_total"] - before["save_cpu_s_total"]
        worst = max(worst, after["max_calls_unsaved"])
    return [
        Line(f"{what}: cost", (1 - middle_mean(shares)) * 100, "%", None, "", *bounds, True),
        Line(f"{what}: a save for", calls / max(1, saves), "calls"),
        Line(f"{what}: CPU time of a save", cpu_s / max(1, saves) * 1e3, "ms"),
        Line(f"{what}: unsaved at worst", float(worst), "calls"),
    ]


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


def drifts(bench: Bench, budget: Budget) -> list[Line]:
    """Calls too many or too few after kills, of our durable actors: as the recipe of Ray is counted."""
    calls, kills = budget.size(3000, 300), budget.size(3, 1)
    return [
        Line(
            f"counted after {kills} kills, {calls} calls ({trial + 1})",
            float(abs(bench.drift(calls, kills, trial))),
            "calls too many or too few",
            floor=0.0,
            goal=0.0,
            less_is_better=True,
        )
        for trial in range(budget.size(3, 1))
    ]


def on_s3(budget: Budget) -> list[Line]:
    """Latency, rate, requests and money by commit interval."""
    lines = []
    for found in checkpoint_s3.measure(budget):
        name = f"S3, commit interval {found.interval_ms} ms"
        lines += [
            Line(f"{name}: synchronous call", found.latency_s, "s"),
            Line(f"{name}: {checkpoint_s3.IN_FLIGHT} in flight", found.rate, "/s"),
            Line(f"{name}: requests", found.puts_per_1000, "PUT / 1,000 calls"),
            Line(f"{name}: under load", found.dollars_per_hour, "$/h"),
        ]
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


def beside_peers(lines: list[Line], found: dict[str, dict[str, float]]) -> list[Line]:
    """Lines of the peers, and of our own beside theirs."""
    named = {line.title: line.value for line in lines}
    beside = []
    for name, figures in found.items():
        for title, value in figures.items():
            unit = "calls too many" if "counted" in title else "/s"
            beside.append(Line(f"{name}: {title}", value, unit))
    power = named["durable (power), 1,000 in flight"]
    for name, title, floor in (
        ("Ray", "plain calls, 1,000 in flight", 4.0),
        ("casty", "durable calls, 1,000 in flight", None),
    ):
        other = found.get(name, {}).get(title)
        if other is not None:
            text = f"{name}'s {title.partition(',')[0]}"
            beside.append(Line("durable (power), 1,000 in flight", power, "/s", power / other, text, floor))
    return beside


def measure(smoke: bool, pythons: dict[str, str | None]) -> list[Line]:
    """The whole table."""
    budget = Budget.small() if smoke else Budget.full()
    with tempfile.TemporaryDirectory(prefix="ftray-bench-") as directory:
        bench = Bench(directory)
        try:
            lines = [*synchronous(bench, budget), *pipelined(bench, budget), *snapshots(bench, budget)]
            lines += recoveries(bench, budget)
            lines += drifts(bench, budget)
        finally:
            bench.close()
    lines += on_s3(budget)
    found = {name: peer(pythons[name], script, smoke) for name, script in PEERS.items()}
    return lines + beside_peers(lines, found)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="small sizes, short loops")
    for name in PEERS:
        parser.add_argument(f"--{name.lower()}-python", help=f"interpreter that has {name}")
    parser.add_argument("--json", help="file that gets the figures")
    options = parser.parse_args(arguments)
    before = os.getloadavg()[0]
    pythons = {name: getattr(options, f"{name.lower()}_python") for name in PEERS}
    pythons = {name: python and os.path.abspath(python) for name, python in pythons.items()}
    for name, python in pythons.items():  # now, not when our own figures have taken their minutes
        if python and not os.access(python, os.X_OK):
            parser.error(f"--{name.lower()}-python: {python} is no program that can be run")
    lines = measure(options.smoke, pythons)
    for line in lines:
        print(line)
    for name in [name for name, python in pythons.items() if not python]:
        print(f"{name} was not measured: no --{name.lower()}-python")
    machine = {
        "cpus": os.cpu_count(),
        "load_before": round(before, 1),
        "load_after": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
    print("machine: " + ", ".join(f"{key} {value}" for key, value in machine.items()))
    if options.json:
        rows: list[dict[str, Any]] = [
            {**asdict(line), "floor_met": line.met(line.floor), "goal_met": line.met(line.goal)}
            for line in lines
        ]
        Path(options.json).write_text(json.dumps({"machine": machine, "lines": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
