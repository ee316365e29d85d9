"""A short chaos run as a test; ``make chaos`` runs longer ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests import ROOT

ROUNDS = ("--head-rounds", "1", "--driver-rounds", "5")
SEED = "short"  # the same plan in every run; FTRAY_CHAOS_SEED names another


@pytest.mark.limit(240)
def test_short_run():
    seed = os.environ.get("FTRAY_CHAOS_SEED", SEED)
    result = subprocess.run(
        [sys.executable, "-m", "tests.chaos.run", "--seconds", "8", "--seed", seed, *ROUNDS],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join([*sys.path, ROOT])),
        timeout=220,
    )
    assert result.returncode == 0, f"seed {seed}\n{result.stdout}\n{result.stderr[-20000:]}"
    right = int(re.search(r"(\d+) results right", result.stdout)[1])
    assert right > 100, result.stdout
    assert re.search(r"SIGKILL worker +[1-9]", result.stdout), result.stdout
    for workload in ("groups", "detached"):  # in eight seconds chance decides which of the detached ones
        assert re.search(rf"^{workload}.* +[1-9]", result.stdout, re.M), result.stdout
