"""What is said of tests that do not run on Ray is said of tests that there are."""

from __future__ import annotations

import ast
from pathlib import Path

from tests import ROOT
from tests.ray.both import DIFFERENT, LEFT_OUT, MODULES


def test_each_left_out_test_exists_in_a_module_that_runs() -> None:
    there = set()
    for module in MODULES:
        tree = ast.parse((Path(ROOT) / "tests" / "functional" / f"{module}.py").read_text())
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        there |= {f"{module}::{function.name}" for function in functions}
    assert set(DIFFERENT) <= there and list(MODULES) == sorted(MODULES)


def test_each_module_of_the_toolkit_runs_on_both_or_says_why_not() -> None:
    functional = Path(ROOT) / "tests" / "functional"
    kinds = ("test_checkpoint*.py", "test_exactly_once*.py", "test_parking.py")
    named = {path.stem for kind in kinds for path in functional.glob(kind)}
    assert named == set(LEFT_OUT) | {name for name in MODULES if name in named}
    assert not set(LEFT_OUT) & set(MODULES)
