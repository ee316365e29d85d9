"""What an import costs: every program, ``ftrayd``, the zygote and all workers pay for it."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

# No process of a session needs these before user code asks for them.
NEVER = {
    "asyncio",
    "cloudpickle",
    "concurrent.futures",
    "dataclasses",
    "grpc",
    "inspect",
    "logging",
    "multiprocessing",
    "numpy",
    "pydantic",
    "rich",
    "subprocess",
    "typing",
    "typing_extensions",
}
# What a program that merely imports ftray does not pay for either.
LATER = {
    "json",
    "pickle",
    "re",
    "selectors",
    "socket",
    "threading",
    "ftray._core.answers",
    "ftray._core.awaits",
    "ftray._core.worker",
    "ftray.checkpoint",
}
OWN_LIMIT_MS = 50

PROGRAM = """
import os, sys, time
before = set(sys.modules)
started = time.process_time()
import {module}
took_ms = (time.process_time() - started) * 1000
print((sorted(set(sys.modules) - before), took_ms, len(os.listdir("/proc/self/task"))))
"""


def imported(module: str) -> tuple[set[str], float, int]:
    """The modules that an import loads into a fresh interpreter, its CPU time, and the threads afterwards."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(module=module)], check=True, capture_output=True, text=True
    )
    modules, took_ms, threads = ast.literal_eval(done.stdout)
    return set(modules), took_ms, threads


@pytest.mark.parametrize(
    "module", ["ftray", "ftray._worker", "ftray._node.daemon", "ftray._node.launch", "ftray._node.zygote"]
)
def test_no_process_loads_what_is_slow_or_large(module: str) -> None:
    loaded, _, _ = imported(module)

    assert module in loaded
    assert loaded & NEVER == set()


def test_a_program_loads_only_what_it_uses() -> None:
    loaded, _, threads = imported("ftray")

    assert loaded & LATER == set()
    assert threads == 1


def test_the_import_is_quick() -> None:
    """In CPU time, which a busy machine does not change much; the best of a few, for the rest."""
    assert min(imported("ftray")[1] for _ in range(5)) < OWN_LIMIT_MS


def test_on_another_system_the_import_says_so() -> None:
    program = "import sys; sys.platform = 'darwin'; import ftray"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.returncode == 1
    assert "ImportError: ftray runs on Linux only (this is darwin)" in done.stderr


def test_counters_can_be_asked_for_where_nothing_runs() -> None:
    program = "from ftray import _core; assert _core.debug_counters() == {} == _core.segment_stats()"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_toolkits_are_imported_at_first_use() -> None:
    program = (
        "import ftray, sys; assert 'ftray.checkpoint' not in sys.modules; ftray.Checkpointable;"
        " assert 'ftray.checkpoint' in sys.modules"
    )

    subprocess.run([sys.executable, "-c", program], check=True)
