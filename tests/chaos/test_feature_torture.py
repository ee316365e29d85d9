"""A short torture of features together (``python -m tests.chaos.feature_torture`` is a long one)."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import ROOT
from tests.chaos.feature_steps import expected
from tests.chaos.torture_actors import mix

SEED = "short"  # the same plan in every run; FTRAY_CHAOS_SEED names another


@pytest.mark.limit(120)
def test_short_run():
    seed = os.environ.get("FTRAY_CHAOS_SEED", SEED)
    result = subprocess.run(
        [sys.executable, "-m", "tests.chaos.feature_torture", "--calls", "120", "--seed", seed],
        capture_output=True,
        text=True,
        env=dict(os.environ, PYTHONSAFEPATH="1", PYTHONPATH=os.pathsep.join([*sys.path, ROOT])),
        timeout=110,
    )
    assert result.returncode == 0, f"seed {seed}\n{result.stdout}\n{result.stderr[-20000:]}"
    assert "problems 0" in result.stdout


def test_what_steps_give():
    assert expected(("both", [("task", 1)], [("leaf", 0, 5), ("unwritable",)])) == [
        [1],
        [(1, mix(5, 2)), "caught"],
    ]
