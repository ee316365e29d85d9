"""Measure every row of the table of figures, ftray beside Ray and others: ``python -m benchmarks.run``.

Every figure comes from a fresh process; sides alternate within one run and medians are compared, so that a
noisy machine harms all sides alike. Exit status 1 when a side failed, with ``--check`` also when a floor is
not met.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import limits, runner, table
from benchmarks.peers import MODULES as PEERS
from benchmarks.rows import ROWS, select
from benchmarks.rows.row import Row, times_better

RAY_VARIABLE = "FTRAY_BENCH_RAY_PYTHON"
PEERS_VARIABLE = "FTRAY_BENCH_PEERS_PYTHON"


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        rows = select(arguments.rows)
        sides = _sides(arguments)
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    results = runner.measure(rows, sides, arguments.repeat, arguments.smoke, _progress)
    machine = limits.measure(arguments.smoke)
    names = [side.name for side in sides]
    table.show(rows, names, results, machine)
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(report(rows, results, machine), indent=1) + "\n")
    failed = any(figures.errors for row in results.values() for figures in row.values())
    missed = any(verdicts(row, results[row.key])["floor"] is not True for row in rows if row.floor)
    return 1 if failed or (arguments.check and missed) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--rows", metavar="A,B", help=f"only these of: {', '.join(ROWS)}")
    parser.add_argument(
        "--repeat", type=_positive, help="processes per row and side (default 3; 1 with --smoke)"
    )
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that all works; ftray alone")
    parser.add_argument("--sides", metavar="A,B", help="of ftray and ray (default both; ftray with --smoke)")
    parser.add_argument(
        "--peers", action="store_true", help=f"also {', '.join(PEERS)}, where they have a row"
    )
    parser.add_argument("--json", metavar="OUT", help="also write all values to this file")
    parser.add_argument(
        "--check", action="store_true", help="exit status 1 when a floor is not known to be met"
    )
    parser.add_argument("--ray-python", metavar="PATH", help=f"interpreter with Ray (or {RAY_VARIABLE})")
    parser.add_argument(
        "--peers-python", metavar="PATH", help=f"interpreter with the peers (or {PEERS_VARIABLE})"
    )
    parser.add_argument(
        "--ftray-env",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="environment of ftray's side, e.g. to measure another setting; repeatable",
    )
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _sides(arguments: argparse.Namespace) -> list[runner.Side]:
    arguments.repeat = arguments.repeat or (1 if arguments.smoke else 3)
    names = (arguments.sides or ("ftray" if arguments.smoke else "ftray,ray")).split(",")
    if unknown := set(names) - {"ftray", "ray"}:
        raise ValueError(f"no such side: {', '.join(sorted(unknown))}; sides are ftray and ray (and --peers)")
    sides = []
    if "ftray" in names:
        sides.append(runner.own_side(_assignments(arguments.ftray_env)))
    if "ray" in names:
        default = runner.ROOT / ".venv-ray/bin/python"
        remedy = "`make bench` makes one in .venv-ray"
        python = runner.find_python(arguments.ray_python, RAY_VARIABLE, default, remedy)
        sides.append(runner.Side("ray", python, isolated=True))
    if arguments.peers:
        default = runner.ROOT / ".venv-peers/bin/python"
        remedy = "`make bench BENCH_ARGS=--peers` makes one in .venv-peers"
        python = runner.find_python(arguments.peers_python, PEERS_VARIABLE, default, remedy)
        sides += [runner.peer_side(name, python) for name in PEERS]
    return sides


def _assignments(pairs: Sequence[str]) -> dict[str, str]:
    environment = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"--ftray-env {pair!r} is not of the form NAME=VALUE")
        environment[name] = value
    return environment


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def verdicts(row: Row, figures: Mapping[str, runner.Figures]) -> dict[str, Any]:
    """Ratio to Ray and whether floor and goal are met; None where it cannot be said."""
    ours = figures["ftray"].median if "ftray" in figures else None
    ray = figures["ray"].median if "ray" in figures else None
    verdict: dict[str, Any] = {"ratio": times_better(row.unit, ours, ray) if ours and ray else None}
    for name, target in (("floor", row.floor), ("goal", row.goal)):
        verdict[name] = target.met(row.unit, ours, ray) if target is not None and ours is not None else None
    return verdict


def report(rows: Sequence[Row], results: runner.Results, machine: Mapping[str, float]) -> dict[str, Any]:
    """Everything measured, for scripts."""
    return {
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "limits": dict(machine)},
        "rows": {
            row.key: {
                "title": row.title,
                "unit": row.unit.value,
                **verdicts(row, results[row.key]),
                "sides": {
                    side: {"median": figures.median, "values": figures.values, "errors": figures.errors}
                    for side, figures in results[row.key].items()
                },
            }
            for row in rows
        },
    }


if __name__ == "__main__":
    sys.exit(main())
