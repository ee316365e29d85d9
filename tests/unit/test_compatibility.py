"""docs/compatibility.md is true: it has every public name of Ray, and says of each what is so.

A feature that lands makes its rows wrong: the tests below name them, and ``ftray/_absent.py`` if that still
has the name.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import ftray
from ftray import _absent, _init_arguments, _options
from ftray.actor import ActorClass, ActorMethod
from ftray.remote_function import RemoteFunction
from ftray.runtime_context import RuntimeContext
from ftray.util.placement_group import PlacementGroup
from tests import ROOT
from tests.helpers.ray_names import ray_names

DOCUMENT = Path(ROOT, "docs", "compatibility.md")
THERE, ABSENT = ("works", "differs"), "absent"
NAMES = ray_names()


class Row(NamedTuple):
    line: int
    names: list[str]
    status: str
    note: str


def tables() -> dict[str, list[Row]]:
    """The rows below each heading that is in code style."""
    found: dict[str, list[Row]] = {}
    rows: list[Row] | None = None
    for number, line in enumerate(DOCUMENT.read_text(encoding="utf-8").splitlines(), 1):
        heading = re.fullmatch(r"### (.+)", line)
        if heading:
            rows = found[heading[1].replace("`", "")] = []
        elif rows is not None and line.startswith("| `"):
            names, status, note = (cell.strip() for cell in line.strip("|").split("|"))
            rows.append(Row(number, re.findall(r"`([^`]+)`", names), status, note))
    return found


TABLES = tables()
CLASSES: dict[str, Any] = {
    "RemoteFunction": RemoteFunction,
    "ActorClass": ActorClass,
    "ActorMethod": ActorMethod,
    "ObjectRef": ftray.ObjectRef,
    "RuntimeContext": RuntimeContext,
}
# For each option a value that asks for what it is there for.
WANTED: dict[str, Any] = {
    "accelerator_type": "A100",
    "allow_out_of_order_execution": True,
    "concurrency_group": "io",
    "concurrency_groups": {"io": 2},
    "enable_task_events": False,
    "get_if_exists": True,
    "label_selector": {"zone": "a"},
    "lifetime": "detached",
    "max_calls": 5,
    "name": "a",
    "namespace": "a",
    "num_returns": 2,
    "object_store_memory": 10**6,
    "placement_group": PlacementGroup.empty(),
    "placement_group_bundle_index": 1,
    "placement_group_capture_child_tasks": True,
    "resources": {"disk": 1},
    "retry_exceptions": True,
    "runtime_env": {"env_vars": {"A": "1"}},
    "scheduling_strategy": "SPREAD",
}


def ours(name: str) -> str:
    """What ftray calls a module of Ray."""
    return name.replace("ray", "ftray", 1)


def ask(group: str, name: str) -> None:
    """Use a name of Ray; raises when ftray does not have it."""
    if group == "modules":
        importlib.import_module(ours(name))
    elif group == "ray.init":
        ask_init(name)
    elif group.startswith("options of "):
        kind = group.removeprefix("options of ").rstrip("s")
        _options.check(kind, {name: WANTED.get(name, 1)})
    elif group in CLASSES:
        member = getattr(CLASSES[group], name)
        if name == "bind":
            member(None)
    else:
        target: Any = resolve(group)
        if target is None:
            raise AttributeError(f"{group} is not there, and so {name} is not")
        getattr(target, name)


def resolve(group: str) -> Any:
    """The module or class that a heading names, None when it is not there."""
    path = ours(group)
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        parent, _dot, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(parent), name, None)
    except ModuleNotFoundError:
        return None


def ask_init(name: str) -> None:
    code = ftray.init.__code__
    if name not in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        _init_arguments.check({name: "wanted"})


def rows(*statuses: str) -> Iterator[Any]:
    for group, found in TABLES.items():
        for row in found:
            for name in row.names:
                if row.status in statuses:
                    yield pytest.param(group, name, row.line, id=f"{group}:{name}")


@pytest.mark.parametrize("group", NAMES)
def test_the_table_has_every_name_once(group: str) -> None:
    listed = [name for row in TABLES[group] for name in row.names]

    assert sorted(listed) == sorted(NAMES[group])


def test_the_table_has_no_other_groups_and_known_words_only() -> None:
    assert set(TABLES) == set(NAMES)
    for found in TABLES.values():
        for row in found:
            assert row.status in (*THERE, ABSENT), f"line {row.line}: {row.status!r}"
            assert row.note or row.status != "differs", f"line {row.line}: how does it differ?"


@pytest.mark.parametrize(("group", "name", "line"), list(rows(*THERE)))
def test_what_is_said_to_be_there_is(group: str, name: str, line: int) -> None:
    try:
        ask(group, name)
    except (AttributeError, ImportError, NotImplementedError) as error:
        pytest.fail(f"{DOCUMENT.name}:{line} says that {name} is there, but: {error}")


@pytest.mark.parametrize(("group", "name", "line"), list(rows(ABSENT)))
def test_what_is_said_to_be_absent_says_so_itself(group: str, name: str, line: int) -> None:
    try:
        ask(group, name)
    except (AttributeError, ImportError, NotImplementedError, ValueError) as error:
        # Plain Python names the package that is missing, when it is not only the module.
        assert name.rpartition(".")[2] in str(error) or f"{ours(name).rpartition('.')[0]!r}" in str(error)
    else:
        pytest.fail(
            f"{DOCUMENT.name}:{line} is out of date: {name} is there now. Move it to a row of its own"
        )


ABSENT_NAMES = [(module, name) for module, names in _absent.ABSENT.items() for name in names]


@pytest.mark.parametrize(("module", "name"), ABSENT_NAMES, ids=[f"{m}.{n}" for m, n in ABSENT_NAMES])
def test_an_absent_name_tells_what_to_do(module: str, name: str) -> None:
    target = importlib.import_module(ours(module))
    where = f"{name} is there now: delete its line in ftray/_absent.py"

    assert not hasattr(target, name), where
    with pytest.raises(ftray.exceptions.AbsentNameError, match=rf"{module}\.{name} is not part of ftray.*\."):
        getattr(target, name)


def test_a_name_that_nobody_knows_is_an_ordinary_attribute_error() -> None:
    for module in (ftray, ftray.util, ftray.exceptions):
        with pytest.raises(
            AttributeError, match=f"module '{module.__name__}' has no attribute 'nosuch'"
        ) as caught:
            module.nosuch  # noqa: B018
        assert type(caught.value) is AttributeError


def test_private_modules_are_no_attributes_of_the_package() -> None:
    with pytest.raises(AttributeError):
        ftray._nosuch  # noqa: B018
