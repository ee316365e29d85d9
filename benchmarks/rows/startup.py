"""Rows about starting and about what is then there: import, init, the first task, memory.

Each needs a process of its own. A row whose start is `NOTHING` gets the module's name instead of the module.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.budget import Budget
from benchmarks.process import MARK, pss_bytes, runtime_pss_bytes
from benchmarks.rows.row import Row, Start, Target, Unit

WORKERS = 2
MEETING_TIMEOUT_S = 60.0


def import_time(module_name: str, budget: Budget) -> float:
    """A fresh interpreter that imports the module, minus one that imports nothing; medians, alternating."""
    bare, importing = [], []
    for _ in range(budget.size(7, 1)):
        bare.append(_interpreter_s("pass"))
        importing.append(_interpreter_s(f"import {module_name}"))
    # A single noisy pair may come out negative; a time is never less than a microsecond.
    return max(statistics.median(importing) - statistics.median(bare), 1e-6)


def _interpreter_s(code: str) -> float:
    start = time.perf_counter()
    # Not in the project's directory: what is installed is imported, not the sources that lie there.
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tempfile.gettempdir())
    return time.perf_counter() - start


def init_ready(ray: Any, budget: Budget) -> float:
    """The first init() of a process, from call to return."""
    start = time.perf_counter()
    init(ray)
    return time.perf_counter() - start


def first_task(ray: Any, budget: Budget) -> float:
    """The first task after init(), from definition to result."""
    init(ray)
    start = time.perf_counter()

    @ray.remote
    def pid() -> int:
        return os.getpid()

    ray.get(pid.remote())
    return time.perf_counter() - start


def memory_total(ray: Any, budget: Budget) -> float:
    """PSS of all processes of the runtime, also the driver with numpy, once two workers have run a task."""
    import numpy  # noqa: F401  (the driver of the definition has it loaded)

    init(ray)
    meet_workers(ray)
    return runtime_pss_bytes(os.getpid(), os.environ[MARK]) / 1e6


def memory_worker(ray: Any, budget: Budget) -> float:
    """PSS of one idle worker that has run a small task; the mean of two."""
    init(ray)
    return statistics.mean(pss_bytes(pid) for pid in meet_workers(ray)) / 1e6


def init(ray: Any) -> None:
    """Start the runtime with two CPUs, quietly where that needs saying."""
    quiet = {"logging_level": "ERROR", "log_to_driver": False} if ray.__name__ == "ray" else {}
    ray.init(address="local", num_cpus=WORKERS, **quiet)


def meet_workers(ray: Any) -> list[int]:
    """Run one task in each of `WORKERS` workers at the same time; return the workers' process ids."""

    @ray.remote
    def meet(directory: str, count: int, timeout_s: float) -> int:
        pid = os.getpid()
        with open(os.path.join(directory, str(pid)), "w"):
            pass
        deadline = time.monotonic() + timeout_s
        while len(os.listdir(directory)) < count:
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {os.listdir(directory)} came within {timeout_s:.0f} s")
            time.sleep(0.001)
        return pid

    with tempfile.TemporaryDirectory() as directory:
        refs = [meet.remote(directory, WORKERS, MEETING_TIMEOUT_S) for _ in range(WORKERS)]
        return list(ray.get(refs))


ROWS = (
    Row(
        "import",
        "import",
        Unit.SECONDS,
        import_time,
        Target(value=0.08),
        Target(value=0.05),
        Start.NOTHING,
        limit="python_start",
    ),
    Row(
        "init",
        "init() to ready",
        Unit.SECONDS,
        init_ready,
        Target(value=0.3),
        Target(value=0.1),
        Start.IMPORTED,
    ),
    Row(
        "first_task",
        "first task after init",
        Unit.SECONDS,
        first_task,
        Target(value=0.010),
        Target(value=0.003),
        Start.IMPORTED,
    ),
    Row(
        "memory",
        "memory after init, 2 workers (PSS)",
        Unit.MB,
        memory_total,
        Target(value=100),
        Target(value=60),
        Start.IMPORTED,
        limit="python_numpy",
    ),
    Row(
        "memory_worker",
        "memory of an idle worker (PSS)",
        Unit.MB,
        memory_worker,
        None,
        Target(value=15),
        Start.IMPORTED,
    ),
)
