"""What is said of tests that do not run on Ray is said of tests that there are."""

from __future__ import annotations

import ast
from pathlib import Path

from tests import ROOT
from tests.ray.both import DIFFERENT, MODULES


def test_each_left_out_test_exists_in_a_module_that_runs() -> None:
    there = set()
    for module in MODULES:
        tree = ast.parse((Path(ROOT) / "tests" / "functional" / f"{module}.py").read_text())
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        there |= {f"{module}::{function.name}" for function in functions}
    assert set(DIFFERENT) <= there and list(MODULES) == sorted(MODULES)
