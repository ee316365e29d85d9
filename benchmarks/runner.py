"""Runs sides in fresh subprocesses, alternating, and collects their figures.

Owns the order of the runs, the interpreters' paths, the timeout and the outcome of each run. Leaves measuring
to `benchmarks.side` and showing to `benchmarks.table`. A side that fails is reported, never left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.peers import KEYS
from benchmarks.process import MARK
from benchmarks.rows.row import Row, Start

ROOT = Path(__file__).resolve().parent.parent
SIDE = Path(__file__).resolve().parent / "side.py"
RUN_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Side:
    """One column of figures: a module or peer, the interpreter that has it, additions to its environment."""

    name: str
    python: str
    environment: Mapping[str, str] = field(default_factory=dict)
    isolated: bool = False  # has an environment of its own, so ours must not leak in through PYTHONPATH

    def has(self, row: Row) -> bool:
        return self.name not in KEYS or row.key in KEYS[self.name]


@dataclass
class Figures:
    """What one side gave for one row over all repetitions."""

    values: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def median(self) -> float | None:
        """None as soon as one repetition failed: a median of the lucky ones would hide it."""
        return statistics.median(self.values) if self.values and not self.errors else None


Results = dict[str, dict[str, Figures]]  # by row key, then by side name


def measure(
    rows: Sequence[Row], sides: Sequence[Side], repeat: int, smoke: bool, progress: Callable[[str], None]
) -> Results:
    """Every row on every side that has it, `repeat` times; the sides' order turns with each repetition."""
    results: Results = {row.key: {side.name: Figures() for side in sides if side.has(row)} for row in rows}
    for group in _groups(rows, share=smoke):
        for turn in range(repeat):
            for side in sides if turn % 2 == 0 else reversed(sides):
                keys = [row.key for row in group if side.has(row)]
                if keys:
                    progress(f"{', '.join(keys)}: {side.name} ({turn + 1}/{repeat})")
                    _collect(results, side, keys, smoke)
    return results


def _groups(rows: Sequence[Row], share: bool) -> Iterable[list[Row]]:
    """Rows that run in one process: each alone, except that a smoke run shares one among the warm rows."""
    if not share:
        return [[row] for row in rows]
    warm = [row for row in rows if row.start is Start.READY]
    return [[row] for row in rows if row.start is not Start.READY] + ([warm] if warm else [])


def _collect(results: Results, side: Side, keys: list[str], smoke: bool) -> None:
    outcomes, failure = _run_side(side, keys, smoke)
    for key in keys:
        figures = results[key][side.name]
        outcome = outcomes.get(key, {"error": failure})
        if "value" in outcome:
            figures.values.append(outcome["value"])
        else:
            figures.errors.append(outcome["error"])


def _run_side(side: Side, keys: list[str], smoke: bool) -> tuple[dict[str, dict[str, float | str]], str]:
    """The outcomes that the side wrote, and why others are lacking."""
    with tempfile.TemporaryDirectory() as directory:
        result = Path(directory) / "result.json"
        output = Path(directory) / "output.txt"
        command = [side.python, str(SIDE), "--side", side.name, "--rows", ",".join(keys)]
        command += ["--result", str(result)]
        with output.open("wb") as sink:
            failure = _run(command + ["--smoke"] * smoke, _environment(side), directory, sink.fileno())
        outcomes = json.loads(result.read_text()) if result.exists() else {}
        last_words = output.read_text(errors="replace").strip().splitlines()[-1:]
        return outcomes, " ".join([failure or "gave no result", *last_words])


def _run(command: list[str], environment: dict[str, str], directory: str, output: int) -> str:
    """Run to the end; "" or what went wrong. A group of its own: a hung side ends with its children."""
    process = subprocess.Popen(
        command, env=environment, cwd=directory, stdout=output, stderr=output, start_new_session=True
    )
    try:
        status = process.wait(RUN_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return f"no end within {RUN_TIMEOUT_S:.0f} s"
    finally:
        # What is left of the group, on any way out.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return f"exit status {status}" if status else ""


def _environment(side: Side) -> dict[str, str]:
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0", MARK: uuid.uuid4().hex}
    if side.isolated:
        environment.pop("PYTHONPATH", None)
    return {**environment, **side.environment}


def find_python(given: str | None, variable: str, default: Path, remedy: str) -> str:
    """Path of another environment's interpreter: the option, else the variable, else the default place.

    Raises
    ------
    FileNotFoundError
        When nothing is there; the message says how to make it.
    """
    path = Path(given or os.environ.get(variable) or default)
    if not os.access(path, os.X_OK):
        raise FileNotFoundError(
            f"no interpreter at {path}: {remedy}, or name another with the option or {variable}"
        )
    return str(path.absolute())


def own_side(environment: Mapping[str, str]) -> Side:
    """ftray, under the interpreter that runs this."""
    return Side("ftray", sys.executable, environment)


def peer_side(name: str, python: str) -> Side:
    """A peer; its worker processes import the functions that they run from this package by name."""
    return Side(name, python, {"PYTHONPATH": str(ROOT)}, isolated=True)
