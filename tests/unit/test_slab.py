"""The slab that the core's records live in, driven by a program of its own (``slab_check.cpp``)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests import ROOT


def test_a_slab_behaves_as_its_model(tmp_path):
    program = tmp_path / "slab_check"
    compiler = os.environ.get("CXX", "g++")
    source = Path(__file__).with_name("slab_check.cpp")
    environment = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
    flags = ["-std=c++17", "-O1", "-Wall", "-Werror", "-pthread", f"-I{ROOT}/_core"]
    subprocess.run([compiler, *flags, source, "-o", program], check=True, env=environment)
    done = subprocess.run([program], capture_output=True, text=True, timeout=60, env=environment)
    assert (done.returncode, done.stdout) == (0, "as modelled\n")
