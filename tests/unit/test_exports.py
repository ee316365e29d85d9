"""What the package uses of the core is what ``_core/__init__.py`` exports: no more, and no less."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ftray import _core
from tests import ROOT

CORE = "ftray._core"
MODULES = {path.stem for path in Path(ROOT, "_core").glob("*.pyx")}
SOURCES = [path for root in ("ftray", "checkpoint") for path in sorted(Path(ROOT, root).rglob("*.py"))]
# Looks for leaks with counters that nothing else needs.
INTROSPECTION = Path(ROOT, "tests", "helpers", "introspection.py")


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """Every (name in this file, dotted name of what it stands for) that an import statement makes."""
    parents = package.split(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.asname or alias.name.partition(".")[0], alias.name
        elif isinstance(node, ast.ImportFrom):
            start = parents[: len(parents) - node.level + 1] if node.level else []
            for alias in node.names:
                parts = [*start, *filter(None, [node.module]), alias.name]
                yield alias.asname or alias.name, ".".join(parts)


def package_of(path: Path) -> str:
    """The installed package that a source belongs to."""
    parts = path.parent.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "ftray" else ("ftray", *parts))


def uses(source: str, package: str = "ftray") -> set[str]:
    """The names that a source of this package uses of the core, as EXPORTS writes them."""
    tree = ast.parse(source)
    found = set()
    modules: dict[str, str] = {}  # the core and its modules, by their names in this file
    for name, target in imports(tree, package):
        if target != CORE and not target.startswith(f"{CORE}."):
            continue
        inside = target.removeprefix(CORE).removeprefix(".")
        if inside == "" or inside in MODULES:
            assert name != "ftray", f"import {target} binds ftray alone: its uses cannot be told"
            modules[name] = inside
        else:
            found.add(inside)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            found.add(f"{modules[node.value.id]}.{node.attr}".removeprefix("."))
    reached = {n.value for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in modules:
            assert node in reached, f"line {node.lineno}: {node.id} is passed on: its uses cannot be told"
    return found


@pytest.mark.parametrize("path", SOURCES, ids=[str(path.relative_to(ROOT)) for path in SOURCES])
def test_a_source_uses_only_what_the_core_exports(path: Path) -> None:
    unknown = uses(path.read_text(), package_of(path)) - set(_core.EXPORTS)

    assert not unknown, f"{path} uses {sorted(unknown)} of ftray._core: add them to EXPORTS, or do without"


def test_every_export_is_used_somewhere() -> None:
    used = set().union(*(uses(path.read_text(), package_of(path)) for path in SOURCES))
    used |= uses(INTROSPECTION.read_text(), "tests.helpers")

    assert set(_core.EXPORTS) - used == set()


@pytest.mark.parametrize("name", _core.EXPORTS)
def test_every_export_exists(name: str) -> None:
    module, _, attribute = name.rpartition(".")

    assert hasattr(importlib.import_module(f"{CORE}.{module}".rstrip(".")), attribute)


def test_no_export_is_listed_twice() -> None:
    assert len(set(_core.EXPORTS)) == len(_core.EXPORTS)


def test_the_package_itself_offers_only_exports() -> None:
    offered = {name for name in vars(_core) if not name.startswith("_") and name not in MODULES} - {"EXPORTS"}

    assert offered == {name for name in _core.EXPORTS if "." not in name}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from ftray import _core\n_core.get(_core.ObjectRef)", {"get", "ObjectRef"}),
        ("from ftray import _core as c\nc.put(1)", {"put"}),
        ("from ftray._core import wait", {"wait"}),
        ("def f():\n    from ftray._core.execution import flush as g\n    g()", {"execution.flush"}),
        ("from ftray._core import procs\nprocs.fork_sibling()", {"procs.fork_sibling"}),
        ("import ftray._core.procs as p\np.set_name('x')", {"procs.set_name"}),
        ("from . import _core\n_core.get(1)", {"get"}),
        ("from ._core.serial import serialize", {"serial.serialize"}),
        ("import os\nfrom ftray import exceptions\nos.getpid(exceptions)", set()),
    ],
)
def test_the_scan_finds_all_ways_of_use(source: str, expected: set[str]) -> None:
    assert uses(source) == expected


def test_the_scan_follows_relative_imports_out_of_a_package() -> None:
    source = "from .. import _core as c\nfrom ..errors import get\nfrom . import serial\nc.put(serial.get)"

    assert uses(source, "ftray.checkpoint") == {"put"}


@pytest.mark.parametrize(
    "source",
    [
        "from ftray import _core\ngetattr(_core, 'get')",
        "import ftray._core\nftray._core.get(1)",
    ],
)
def test_the_scan_refuses_what_it_cannot_judge(source: str) -> None:
    with pytest.raises(AssertionError):
        uses(source)
