"""Lineage against a model that keeps nothing up to date: after each step it works out what must be there.

The model knows references, which tasks are unfinished, and how each value was made. From that follow the
values that are held, the tasks that are kept (those that can make a value again that is held, or an argument
of such a task), the blocks of shared memory in use, and what has to run when a value is lost.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ftray import _system_errors
from ftray import exceptions as exc
from ftray._core.refs import RefTable
from ftray._node import settings as environment

PUT = 1 << 31
BOUND = 1 << 40


def key(task: int, index: int) -> int:
    """The number of a task's return: its position stands in the id as the core reads it."""
    return (task << 32) | int.from_bytes((index + 1).to_bytes(4, "little"), "big")


class Task:
    def __init__(self, number: int, deps: list[int], nested: list[int], returns: list[int], retries: int):
        self.number, self.deps, self.nested, self.returns = number, deps, nested, returns
        self.retries = retries
        self.unfinished = True
        self.pending = set(returns)  # returns that wait for it to finish
        self.remembered = False  # a finished task that may be kept
        self.finished_at = 0

    def needs(self) -> list[int]:
        return self.deps + self.nested


class Lineage(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.table = RefTable()
        self.tasks: dict[int, Task] = {}
        self.refs: dict[int, int] = {}  # of objects that the model has heard of
        self.values: dict[int, Any] = {}  # a block, "inline", or nothing
        self.makers: dict[int, Task] = {}  # of values in shared memory
        self.freed: list[tuple[int, int]] = []
        self.placed: set[tuple[int, int]] = set()  # blocks that ever were an object's
        self.clock = 0
        self.blocks = 0

    # --- the model's conclusions

    def held(self) -> set[int]:
        working = [task for task in self.tasks.values() if task.unfinished]
        found = {n for n, count in self.refs.items() if count}
        for task in working:
            found |= set(task.needs())
            found |= task.pending
        return found

    def making(self, task: Task) -> set[int]:
        """Returns that will take a value from it."""
        return {n for n in task.returns if n not in self.values and n in self.refs}

    def kept(self) -> list[Task]:
        """Tasks that can make something again that is needed, the oldest first."""
        found: dict[int, Task] = {}
        work = list(self.held())
        while work:
            maker = self.makers.get(work.pop())
            if maker is None or maker.number in found or not (maker.remembered or maker.unfinished):
                continue
            if not maker.unfinished:
                found[maker.number] = maker
                work += maker.needs()
        return sorted(found.values(), key=lambda task: task.finished_at)

    def settle(self) -> None:
        """What nothing needs is forgotten; what only lineage needs gives up its block."""
        held = self.held()
        lineage = {n for task in self.kept() for n in task.needs()}
        for n in list(self.refs):
            if n in held:
                continue
            if n not in lineage:
                del self.refs[n]
                self.values.pop(n, None)
                self.makers.pop(n, None)
            elif isinstance(self.values.get(n), tuple):
                del self.values[n]

    def living(self) -> list[int]:
        return sorted(n for n, count in self.refs.items() if count)

    def pick(self, data: st.DataObject, among: list[int], most: int) -> list[int]:
        if not among:
            return []
        return data.draw(st.lists(st.sampled_from(among), max_size=most))

    # --- steps

    @rule(large=st.booleans())
    def put(self, large: bool) -> None:
        self.clock += 1
        n = (self.clock << 32) | PUT | self.clock
        self.table.own(n)
        self.refs[n] = 1
        self.values[n] = "inline"
        if large:
            self.values[n] = self.new_block()
            self.table.in_shared_memory(n, *self.values[n])
            self.placed.add(self.values[n])

    def new_block(self) -> tuple[int, int]:
        self.blocks += 1
        return self.blocks, 64 * self.blocks

    @rule(data=st.data(), returns=st.integers(1, 3), retries=st.sampled_from([-1, 0, 1, 2]))
    def submit(self, data: st.DataObject, returns: int, retries: int) -> None:
        self.clock += 1
        deps = self.pick(data, self.living(), 3)
        nested = self.pick(data, self.living(), 1)
        task = Task(self.clock, deps, nested, [key(self.clock, i) for i in range(returns)], retries)
        self.table.task(task.number, deps, nested, task.returns, retries)
        self.tasks[task.number] = task
        for n in task.returns:
            self.refs[n] = 1

    @precondition(lambda self: any(task.unfinished for task in self.tasks.values()))
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        """One whose arguments have values, as they have when it runs."""
        could = [t for t in self.tasks.values() if t.unfinished and all(n in self.values for n in t.deps)]
        if not could:
            return
        task = data.draw(st.sampled_from(could))
        shared = data.draw(st.lists(st.booleans(), min_size=len(task.returns), max_size=len(task.returns)))
        places = [self.new_block() if large else None for large in shared]
        wanted = self.making(task)
        took = self.table.finish(task.number, places)
        assert took == [n in wanted for n in task.returns]
        self.clock += 1
        task.unfinished, task.finished_at = False, self.clock
        task.pending = set()
        task.remembered = task.retries != 0
        for n, place in zip(task.returns, places, strict=True):
            if n in wanted:
                self.values[n] = place or "inline"
                self.makers.pop(n, None)
                if place:
                    self.placed.add(place)
            if isinstance(self.values.get(n), tuple):
                self.makers[n] = task

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from(self.living()))
        self.refs[n] -= 1
        self.table.drop(n)
        self.table.drain()

    @precondition(lambda self: self.living())
    @rule(data=st.data())
    def another(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from(self.living()))
        self.refs[n] += 1
        self.table.ref(n)

    def shared_now(self) -> list[int]:
        return sorted(n for n in self.held() if isinstance(self.values.get(n), tuple))

    @precondition(lambda self: self.shared_now())
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        n = data.draw(st.sampled_from(self.shared_now()))
        del self.values[n]
        expected, hopeless = self.recover(n, set(), set())
        run, given_up = self.table.lose(n)
        assert sorted(run) == sorted(expected)
        assert set(given_up) == hopeless
        for number in run:
            task = self.tasks[number]
            task.unfinished, task.remembered = True, False
            task.retries -= task.retries > 0
            task.pending = self.making(task)
        for n in hopeless:
            self.values[n] = "inline"

    def recover(self, n: int, run: set[int], hopeless: set[int]) -> tuple[set[int], set[int]]:
        maker = self.makers.get(n)
        if n in self.values or n in hopeless:
            return run, hopeless
        if maker is None and any(t.unfinished and n in t.returns for t in self.tasks.values()):
            return run, hopeless  # on its way for the first time
        if maker is None or not (maker.unfinished or maker.remembered):
            hopeless.add(n)
        elif maker.unfinished or maker.number in run:
            maker.pending.add(n)
        elif maker.retries == 0:
            hopeless.add(n)
        else:
            run.add(maker.number)
            for dep in maker.deps:
                self.recover(dep, run, hopeless)
        return run, hopeless

    @precondition(lambda self: self.kept())
    @rule()
    def evict(self) -> None:
        """Room for all that is kept but a byte: the oldest goes."""
        oldest = self.kept()[0]
        self.table.limit(sum(size for _, size in self.table.kept()) - 1)
        self.table.limit(BOUND)
        oldest.remembered = False

    # --- held to the table

    @invariant()
    def agrees(self) -> None:
        self.settle()
        assert [number for number, _ in self.table.kept()] == [task.number for task in self.kept()]
        assert self.table.known() == set(self.refs)
        assert len(self.table) == len(self.refs)
        for n in self.refs:
            assert self.table.has_value(n) == (n in self.values)
        for name, _, segment, offset in self.table.commands():
            assert name == "free_block"
            self.freed.append((segment, offset))
        assert len(set(self.freed)) == len(self.freed)
        assert set(self.freed) == self.placed - self.in_use()

    def in_use(self) -> set[tuple[int, int]]:
        return {value for value in self.values.values() if isinstance(value, tuple)}

    def teardown(self) -> None:
        """With the last reference everything goes, whatever was kept."""
        for _ in range(len(self.tasks) + 1):
            for task in self.tasks.values():
                if task.unfinished and all(n in self.values for n in task.deps):
                    wanted = self.making(task)
                    self.table.finish(task.number, [None] * len(task.returns))
                    task.unfinished = False
                    for n in wanted:
                        self.values[n] = "inline"
                        self.makers.pop(n, None)
        for n in self.living():
            for _ in range(self.refs[n]):
                self.table.drop(n)
        self.table.drain()
        assert len(self.table) == 0
        assert self.table.kept() == []


TestLineage = Lineage.TestCase
TestLineage.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


# --- settings


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in list(os.environ):
        if name.endswith(("_lineage_bytes", "_lineage_pinning_enabled")):
            monkeypatch.delenv(name)
    return monkeypatch


def test_defaults(clean: pytest.MonkeyPatch) -> None:
    assert environment.lineage() == (True, 1_000_000_000)


@pytest.mark.parametrize("prefix", ["FTRAY_", "RAY_"])
def test_the_environment_decides(clean: pytest.MonkeyPatch, prefix: str) -> None:
    clean.setenv(f"{prefix}max_lineage_bytes", "12")
    clean.setenv(f"{prefix}lineage_pinning_enabled", "False")
    assert environment.lineage() == (False, 12)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lineage_pinning_enabled", "no"),
        ("lineage_pinning_enabled", ""),
        ("max_lineage_bytes", "1 GB"),
        ("max_lineage_bytes", "-1"),
    ],
)
def test_what_is_not_allowed_is_said(clean: pytest.MonkeyPatch, name: str, text: str) -> None:
    clean.setenv(f"FTRAY_{name}", text)
    with pytest.raises(ValueError, match=f"FTRAY_{name}={text!r}.*it must be"):
        environment.lineage()


# --- errors

OBJECT = bytes(range(28))
LOST, EXHAUSTED, EVICTED = (
    exc.ObjectLostError,
    exc.ObjectReconstructionFailedMaxAttemptsExceededError,
    exc.ObjectReconstructionFailedLineageEvictedError,
)


def enumerated(name: str) -> dict[str, int]:
    """The enum members of a .pxd file."""
    text = (Path(_system_errors.__file__).parent / "_core" / f"{name}.pxd").read_text()
    return {key: int(value) for key, value in re.findall(r"^    ([A-Z_]+) = (\d+)\b", text, re.M)}


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("UNKNOWN", LOST, "nothing is known that could make it again"),
        ("OFF", LOST, "FTRAY_lineage_pinning_enabled"),
        ("RETRIES", EXHAUSTED, "max_retries"),
        ("EVICTED", EVICTED, "FTRAY_max_lineage_bytes"),
        ("METHOD", LOST, "max_task_retries"),
        ("PUT", LOST, r"put\(\)"),
    ],
)
def test_what_is_not_made_again_says_why(name: str, error: type[Exception], text: str) -> None:
    code, reason = enumerated("wire")["ERR_UNMADE"], enumerated("lineage")[f"UNMADE_{name}"]
    made = _system_errors.build(code, bytes([reason]) + OBJECT)
    assert type(made) is error
    assert re.search(text, str(made)) and OBJECT.hex() in str(made)


def test_each_reason_has_a_text() -> None:
    reasons = {key: value for key, value in enumerated("lineage").items() if key.startswith("UNMADE_")}
    del reasons["UNMADE_CANCELLED"]  # becomes the error of a cancelled task
    assert set(reasons.values()) == set(_system_errors._UNMADE)


def test_a_reason_that_is_not_known_is_an_error_all_the_same() -> None:
    assert type(_system_errors.build(enumerated("wire")["ERR_UNMADE"], bytes([250]) + OBJECT)) is LOST


# --- generators

STREAM, ITEM, OTHER = 900, 2, 4  # a task, and indices of items


def item_key(index: int) -> int:
    return (STREAM << 32) | int.from_bytes(index.to_bytes(4, "little"), "big")


def generator(retries: int, *indices: int) -> RefTable:
    """A generator that has ended, and of whose items these are in shared memory and referenced."""
    table = RefTable()
    table.own(1)
    table.task(STREAM, [1], [], [key(STREAM, 0)], retries)
    for index in indices:
        table.item(STREAM, item_key(index), 70 + index, 0)
    table.finish(STREAM, [None])
    table.drop(key(STREAM, 0))
    table.drain()
    return table


def forget(table: RefTable, *numbers: int) -> None:
    for n in numbers:
        table.drop(n)
    table.drain()


def test_a_generator_is_kept_for_its_items() -> None:
    table = generator(3, ITEM, OTHER)
    assert [number for number, _ in table.kept()] == [STREAM]
    forget(table, item_key(ITEM))
    assert [number for number, _ in table.kept()] == [STREAM]
    forget(table, 1, item_key(OTHER))
    assert table.kept() == [] and len(table) == 0


def test_a_generator_runs_again_for_the_items_that_are_missing() -> None:
    table = generator(3, ITEM, OTHER)
    assert table.lose(item_key(ITEM)) == ([STREAM], [])
    assert table.lose(item_key(OTHER)) == ([], [])  # it runs already
    assert table.fill_item(STREAM, item_key(OTHER), None) == 1
    assert table.fill_item(STREAM, item_key(ITEM), (75, 0)) == 0
    table.finish(STREAM, [None])
    assert [number for number, _ in table.kept()] == [STREAM]  # for the one in shared memory
    forget(table, 1, item_key(ITEM), item_key(OTHER))
    assert table.kept() == [] and len(table) == 0


def test_items_of_a_generator_without_retries() -> None:
    table = generator(0, ITEM)
    assert table.kept() == []
    assert table.lose(item_key(ITEM)) == ([], [item_key(ITEM)])
    forget(table, 1, item_key(ITEM))
    assert len(table) == 0


def test_items_of_a_generator_that_was_evicted() -> None:
    table = generator(3, ITEM, OTHER)
    table.limit(0)
    assert table.kept() == []
    assert table.lose(item_key(OTHER)) == ([], [item_key(OTHER)])
    forget(table, 1, item_key(ITEM), item_key(OTHER))
    assert len(table) == 0


def test_an_item_that_only_lineage_needs_gives_its_block_back() -> None:
    table = generator(3, ITEM)
    table.task(901, [item_key(ITEM)], [], [key(901, 0)], 3)
    table.finish(901, [(99, 0)])
    forget(table, item_key(ITEM))
    assert table.commands() == [("free_block", item_key(ITEM), 70 + ITEM, 0)]
    assert [number for number, _ in table.kept()] == [STREAM, 901]
    run, hopeless = table.lose(key(901, 0))
    assert sorted(run) == [STREAM, 901] and hopeless == []
    table.fill_item(STREAM, item_key(ITEM), (80, 0))
    table.finish(STREAM, [None])
    table.finish(901, [(81, 0)])
    forget(table, 1, key(901, 0))
    assert table.kept() == [] and len(table) == 0
