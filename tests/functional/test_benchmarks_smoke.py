"""The benchmarks work, at their smoke size, and say so honestly when a side does not.

No figure is a threshold here: how fast anything is says nothing about a machine that runs tests.
"""

from __future__ import annotations

import json
import math
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import (
    checkpoint,
    events_cost,
    large_object,
    limits,
    pingpong,
    process,
    run,
    runner,
    scale,
    table,
)
from benchmarks.peers import KEYS
from benchmarks.rows import ROWS, select
from benchmarks.rows.row import Start, Target, Unit, times_better
from tests import ROOT
from tests.helpers import processes
from tests.helpers.sync import eventually

TABLE = {
    *("import", "init", "first_task", "memory"),
    *("task_sync", "task_inflight", "task_chain", "task_big_ref", "task_queued"),
    *(
        "actor_sync",
        "actor_inflight",
        "actor_async",
        "actor_8kb",
        "actor_four",
        "actor_create",
        "actor_recovery",
    ),
    *("put_small", "get_small", "put_100mb", "get_100mb", "wait_loop"),
}
"""Rows of the table of figures; each has a floor and a goal."""


def run_module(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = [entry for entry in sys.path if entry and os.path.isdir(entry)]
    env = dict(os.environ, PYTHONPATH=os.pathsep.join([*path, ROOT]))
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=110, env=env
    )


# --- the rows on ftray ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smoke_report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("smoke") / "figures.json"
    reply = run_module("benchmarks.run", "--smoke", "--json", str(out))
    assert reply.returncode == 0, reply.stdout + reply.stderr
    report: dict[str, Any] = json.loads(out.read_text())
    return report


def test_every_row_of_the_table_is_there() -> None:
    assert {key for key, row in ROWS.items() if row.floor and row.goal} == TABLE


@pytest.mark.parametrize("key", ROWS)
def test_row_gives_a_figure(smoke_report: dict[str, Any], key: str) -> None:
    figures = smoke_report["rows"][key]["sides"]["ftray"]
    assert figures["errors"] == []
    assert len(figures["values"]) == 1
    assert figures["median"] > 0 and math.isfinite(figures["median"])


def test_limits_are_reported_beside(smoke_report: dict[str, Any]) -> None:
    named = {row.limit for row in ROWS.values() if row.limit}
    reported = smoke_report["machine"]["limits"]
    alone = {"pingpong_across", "pingpong_spinning"} if len(os.sched_getaffinity(0)) == 1 else set()
    assert named - alone <= set(reported)
    assert all(value > 0 for value in reported.values())


def test_scale(tmp_path: Path) -> None:
    out = tmp_path / "scale.json"
    reply = run_module("benchmarks.scale", "--smoke", "--json", str(out))
    assert reply.returncode == 0, reply.stdout + reply.stderr
    figures = json.loads(out.read_text())
    assert figures["rate_ratio"] > 0
    assert len(figures["queued_bytes"]) == scale.STEPS


# --- what is said about a side that fails --------------------------------------------------------------


def quiet(text: str) -> None:
    """Progress that nobody reads."""


def test_failed_side_is_reported_and_never_a_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ray.py").write_text("raise ImportError('built for another machine')")
    side = runner.Side("ray", sys.executable, {"PYTHONPATH": str(tmp_path)}, isolated=True)
    rows = select("task_sync")
    results = runner.measure(rows, [side], 1, True, quiet)
    figures = results["task_sync"]["ray"]
    assert figures.median is None
    assert "built for another machine" in figures.errors[0]
    table.show(rows, ["ray"], results, dict.fromkeys(LIMIT_NAMES, 1.0))
    shown = capsys.readouterr().out
    assert "failed" in shown and "built for another machine" in shown


LIMIT_NAMES = ("memcpy_warm", "memcpy_cold", "fork_wait", "python_start", "python_numpy", "pingpong_across")


@pytest.mark.parametrize(
    ("program", "complaint"),
    [("exec sleep 1000", "no end within"), ("exit 3", "exit status 3"), ("", "no result")],
)
def test_side_that_hangs_or_gives_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, complaint: str
) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(runner, "RUN_TIMEOUT_S", 0.2 if "sleep" in program else 20.0)
    results = runner.measure(select("task_sync"), [runner.Side("ftray", str(python))], 1, True, quiet)
    assert complaint in results["task_sync"]["ftray"].errors[0]


def test_one_failure_spoils_the_median() -> None:
    assert runner.Figures([1.0, 3.0, 2.0]).median == 2.0
    assert runner.Figures([1.0, 3.0], ["ValueError: no"]).median is None


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rows", "task_sink"], "no such row: task_sink; rows are import, init"),
        (["--rows", ","], "no such row"),
        (["--sides", "ftray,dusk"], "no such side: dusk"),
        (["--repeat", "0"], "0 is not a positive number"),
        (
            ["--ray-python", "/nonexistent/python"],
            "no interpreter at /nonexistent/python: `make bench` makes",
        ),
        (["--smoke", "--peers", "--peers-python", "/nonexistent/python"], "make bench BENCH_ARGS=--peers"),
        (["--smoke", "--ftray-env", "NAME"], "not of the form NAME=VALUE"),
    ],
)
def test_wrong_option(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(arguments)
    assert stop.value.code == 2
    assert complaint in " ".join(capsys.readouterr().err.split())


# --- what counts as enough -----------------------------------------------------------------------------


def test_times_better_turns_round_where_less_is_better() -> None:
    assert times_better(Unit.PER_S, 1000.0, 100.0) == pytest.approx(10.0)
    assert times_better(Unit.SECONDS, 0.1, 1.0) == pytest.approx(10.0)
    assert times_better(Unit.MB, 50.0, 500.0) == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("target", "unit", "ours", "ray", "met"),
    [
        (Target(times=10), Unit.PER_S, 1000.0, 100.0, True),
        (Target(times=10), Unit.PER_S, 999.0, 100.0, False),
        (Target(times=10), Unit.PER_S, 1e9, None, None),
        (Target(times=13, value=1e5), Unit.PER_S, 90_000.0, 5_000.0, True),
        (Target(times=13, value=1e5), Unit.PER_S, 90_000.0, None, False),
        (Target(value=0.03), Unit.SECONDS, 0.02, 1.0, True),
        (Target(value=0.03), Unit.SECONDS, 0.04, 100.0, False),
        (Target(value=8.0), Unit.GB_PER_S, 8.1, None, True),
    ],
)
def test_target(target: Target, unit: Unit, ours: float, ray: float | None, met: bool | None) -> None:
    assert target.met(unit, ours, ray) is met


def test_check_needs_a_known_floor() -> None:
    row = ROWS["task_sync"]
    fast, slow = runner.Figures([10_000.0]), runner.Figures([100.0])
    assert run.verdicts(row, {"ftray": fast, "ray": slow}) == {"ratio": 100.0, "floor": True, "goal": True}
    assert run.verdicts(row, {"ftray": fast}) == {"ratio": None, "floor": None, "goal": None}
    assert run.verdicts(row, {"ftray": slow, "ray": fast})["floor"] is False


@pytest.mark.parametrize(
    ("unit", "value", "text"),
    [
        (Unit.SECONDS, 0.00312, "3.12 ms"),
        (Unit.SECONDS, 4.0, "4.00 s"),
        (Unit.PER_S, 123456.7, "123,457 /s"),
        (Unit.PER_S, 2.4, "2.4 /s"),
        (Unit.GB_PER_S, 8.123, "8.12 GB/s"),
        (Unit.MB, None, "-"),
    ],
)
def test_figure(unit: Unit, value: float | None, text: str) -> None:
    assert table.figure(unit, value) == text


def test_peers_have_known_rows() -> None:
    assert all(set(keys) <= set(ROWS) for keys in KEYS.values())


def test_sides_alternate_and_cold_rows_are_alone() -> None:
    groups = list(runner._groups(list(ROWS.values()), share=True))
    assert all(len(group) == 1 for group in groups if group[0].start is not Start.READY)
    assert [row for group in groups for row in group if row.start is Start.READY] == groups[-1]
    assert all(len(group) == 1 for group in runner._groups(list(ROWS.values()), share=False))


def test_scale_verdict() -> None:
    good = scale.Scale(10, 1000, 100.0, 95.0, {500: 400.0, 1000: 410.0})
    assert good.good
    assert not scale.Scale(10, 1000, 100.0, 89.0, good.queued_bytes).good
    assert not scale.Scale(10, 1000, 100.0, 95.0, {500: 400.0, 1000: 600.0}).good


# --- the instruments -----------------------------------------------------------------------------------


def test_pingpong_leaves_the_process_as_it_was() -> None:
    before = os.sched_getaffinity(0)
    rates = {layout.key: pingpong.measure(layout, 0.01) for layout in pingpong.layouts()}
    assert {"same_core", "unpinned"} <= set(rates)
    assert all(rate > 0 for rate in rates.values())
    assert os.sched_getaffinity(0) == before
    assert not processes.zombies_of(os.getpid())


def test_memcpy_is_warm_the_second_time() -> None:
    assert limits.memcpy_warm_gb_s(1_000_000, 0.01) > 0
    assert limits.memcpy_cold_gb_s(1_000_000) > 0


def test_kill_and_confirm() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process.kill_and_confirm(child.pid)
    assert not processes.is_running(child.pid)
    assert child.wait() == -9
    child.stdin.close()
    with pytest.raises(ProcessLookupError):
        process.kill_and_confirm(child.pid)


def test_daemon_of_a_runtime_is_found_by_its_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose parent has ended is no descendant any more, but still part of the runtime."""
    mark = processes.new_mark()
    daemon = "import os, sys\nif os.fork(): os._exit(0)\nprint(os.getpid(), flush=True)\nsys.stdin.read()"
    child = subprocess.Popen(
        [sys.executable, "-c", daemon],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=dict(os.environ, **{process.MARK: mark}),
    )
    pid = int(child.stdout.readline())
    child.wait()
    try:
        assert processes.parent_of(pid) != child.pid
        assert process.runtime_pids(os.getpid(), mark).count(pid) == 1
        assert pid not in process.runtime_pids(child.pid, processes.new_mark())
        assert process.pss_bytes(pid) > 0  # its share changes as others come and go, so that is not compared
        monkeypatch.setattr(process, "pss_bytes", {pid: 12345}.__getitem__)
        assert process.runtime_pss_bytes(pid, mark) == 12345
    finally:
        child.stdin.close()
        eventually(lambda: not processes.is_running(pid), "the daemon ends with its standard input")
        child.stdout.close()


def test_the_spin_can_be_tuned():
    done = run_module("benchmarks.tune_spin", "--smoke")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CPU") == 2 and "wake" in done.stdout


def test_the_cost_of_records_can_be_measured(tmp_path: Path) -> None:
    out = tmp_path / "cost.json"
    done = run_module("benchmarks.events_cost", "--smoke", "--json", str(out))
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found) == 4 and all(
        figures["with"] > 0 for kind in found.values() for figures in kind.values()
    )
    assert done.stdout.count("difference") == 8


def test_a_difference_is_that_within_pairs() -> None:
    """The machine became slower by 10 in the middle; each pair still differs by 1."""
    turns = [({"wall": 3.0 + slow}, {"wall": 2.0 + slow}) for slow in (0, 0, 0, 0, 10, 10, 10, 10)]
    found = events_cost.summary(turns, "wall")
    assert (found["difference"], found["quartiles"]) == (1.0, [1.0, 1.0])


def test_what_durability_costs_can_be_measured(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    done = run_module("benchmarks.checkpoint", "--smoke", "--json", str(out))
    assert done.returncode == 0, done.stderr
    lines = json.loads(out.read_text())["lines"]
    assert all(line["floor_met"] for line in lines if "counted after" in line["title"])
    assert sum(line["title"].startswith("S3, commit interval") for line in lines) == 12
    rates = [line for line in lines if line["unit"] in ("/s", "s")]
    assert len(rates) >= 10 and all(line["value"] > 0 for line in rates)
    assert "floor 0.6" in done.stdout and "machine: " in done.stdout


@pytest.mark.parametrize(
    ("value", "less_is_better", "met"), [(0.7, False, True), (0.5, False, False), (0.5, True, True)]
)
def test_a_durability_line_is_judged_by_its_ratio(value: float, less_is_better: bool, met: bool) -> None:
    line = checkpoint.Line("line", 99.0, "/s", value, "plain", 0.6, None, less_is_better)
    assert line.met(line.floor) is met
    assert line.met(line.goal) is None
    assert ("floor 0.6 met" if met else "floor 0.6 MISSED") in str(line)


def test_a_large_object() -> None:
    done = run_module("benchmarks.large_object", "--smoke")
    assert done.returncode == 0 and done.stdout.endswith("PASS\n"), done.stdout + done.stderr


def test_a_large_object_is_looked_at_where_counters_overflow() -> None:
    at = large_object.places((8 << 30) + 5, seed=1)
    assert {0, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (8 << 30) - 1, (8 << 30) + 4} <= set(at)
    assert max(at) == (8 << 30) + 4
    data = large_object.repeated(3 * large_object.PERIOD)
    period = large_object.one_period()
    assert np.array_equal(data[: len(period)], period) and np.array_equal(data[-len(period) :], period)
    apart = [(1 << bits) % large_object.PERIOD for bits in range(12, 40)]
    assert all(apart) and len(set(period.view(np.uint64)[::512].tolist())) == len(period) // 4096
