"""The page on checkpoints on Ray is true: its program runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT
from tests.helpers import documents

pytest.importorskip("ray")


def test_the_program_runs(tmp_path: Path) -> None:
    text = Path(ROOT, "docs", "ray-checkpoints.md").read_text(encoding="utf-8")
    program = next(block for block in documents.blocks(text) if block.words == ("py",))
    path = [entry for entry in sys.path if entry and os.path.abspath(entry) != ROOT]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(program.lines)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "RAY_ADDRESS": "local"},
        timeout=55,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
