"""The reference counter against a model that knows no counters: it works out from scratch what is held.

The model keeps what was done (refs, holds, registrations, containment) and derives liveness as reachability.
The counter must free the same entries at the same moments and say so exactly once.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)

from ftray._core.refs import RefTable

WORKERS = (901, 902, 903)  # other processes: they borrow from us, and we from them


class Entry:
    """What the model remembers of one object."""

    def __init__(self, owner: int | None) -> None:
        self.owner = owner  # None: this process
        self.refs = 1
        self.dropped = 0  # of `refs`, not yet drained
        self.holds = 0
        self.inside: list[int] = []
        self.borrowers: Counter[int] = Counter()
        self.grants = 0
        self.lost = False
        self.block: tuple[int, int] | None = None
        self.actor = False

    def held_directly(self) -> bool:
        return self.refs > 0 or self.holds > 0 or any(n > 0 for n in self.borrowers.values())

    def farewell(self, n: int) -> list[tuple[Any, ...]]:
        """The commands that freeing this object must give."""
        if self.owner is not None:
            return [("borrow_remove", n, self.grants, 0)] if self.grants and not self.lost else []
        said: list[tuple[Any, ...]] = [("free_block", n, *self.block)] if self.block else []
        return [*said, ("actor_released", n, 0, 0)] if self.actor else said


class Model:
    """The entries of one process."""

    def __init__(self) -> None:
        self.entries: dict[int, Entry] = {}

    def sweep(self) -> list[tuple[Any, ...]]:
        """Forget whatever cannot be reached from something held; the commands that follow."""
        reached: set[int] = set()
        todo = [n for n, e in self.entries.items() if e.held_directly()]
        while todo:
            n = todo.pop()
            if n not in reached:
                reached.add(n)
                todo += self.entries[n].inside
        gone = [n for n in self.entries if n not in reached]
        return [command for n in gone for command in self.entries.pop(n).farewell(n)]

    def drain(self) -> list[tuple[Any, ...]]:
        for e in self.entries.values():
            e.refs -= e.dropped
            e.dropped = 0
        return self.sweep()

    def died(self, worker: int) -> list[tuple[Any, ...]]:
        for e in self.entries.values():
            e.borrowers.pop(worker, None)
            e.lost = e.lost or e.owner == worker
        return self.sweep()


class RefCounting(RuleBasedStateMachine):
    """One process: what it owns, what it borrows, and who borrows from it."""

    known = Bundle("known")

    @initialize()
    def begin(self) -> None:
        self.table = RefTable()
        self.model = Model()
        self.serial = 0
        self.living = set(WORKERS)

    def entry(self, n: int) -> Entry | None:
        return self.model.entries.get(n)

    def expect(self, commands: list[tuple[Any, ...]]) -> None:
        assert sorted(self.table.commands()) == sorted(commands)

    @rule(target=known)
    def own(self) -> int:
        self.serial += 1
        self.table.own(self.serial)
        self.model.entries[self.serial] = Entry(None)
        return self.serial

    @rule(target=known, owner=st.sampled_from(WORKERS))
    def borrow(self, owner: int) -> Any:
        if owner not in self.living:
            return multiple()
        self.serial += 1
        self.table.borrow(self.serial, owner)
        self.model.entries[self.serial] = Entry(owner)
        return self.serial

    @rule(n=known)
    def one_more_ref(self, n: int) -> None:
        if e := self.entry(n):
            if e.owner is None:
                self.table.ref(n)
            else:
                self.table.borrow(n, e.owner)  # the same ref arrives again
            e.refs += 1

    @rule(n=known)
    def drop(self, n: int) -> None:
        """A ref dies; nothing happens before the next drain."""
        e = self.entry(n)
        if e and e.refs > e.dropped:
            self.table.drop(n)
            e.dropped += 1
            self.expect([])

    @rule()
    def drain(self) -> None:
        self.table.drain()
        self.expect(self.model.drain())

    @rule(n=known)
    def hold(self, n: int) -> None:
        if e := self.entry(n):
            self.table.hold(n)
            e.holds += 1

    @rule(n=known)
    def unhold(self, n: int) -> None:
        e = self.entry(n)
        if e and e.holds:
            self.table.unhold(n)
            e.holds -= 1
            self.expect(self.model.sweep())

    @rule(one=known, other=known)
    def contain(self, one: int, other: int) -> None:
        """A value has refs to objects that are older than itself, possibly the same one several times."""
        outer, inner = max(one, other), min(one, other)
        if outer != inner and self.entry(outer) and self.entry(inner):
            self.table.contain(outer, inner)
            self.model.entries[outer].inside.append(inner)

    @rule(n=known, worker=st.sampled_from(WORKERS), count=st.sampled_from([-3, -2, -1, 1, 1, 1, 2]))
    def registrations(self, n: int, worker: int, count: int) -> None:
        """They come in any order: the end of a borrow may overtake its beginning."""
        e = self.entry(n)
        if e and e.owner is None and worker in self.living:
            self.table.borrower(n, worker, count)
            e.borrowers[worker] += count
            self.expect(self.model.sweep())

    @rule(n=known)
    def register(self, n: int) -> None:
        e = self.entry(n)
        if e and e.owner is not None and not e.lost:
            self.table.register(n)
            e.grants += 1

    @rule(n=known, segment=st.integers(1, 2**64 - 1), offset=st.integers(0, 2**64 - 1))
    def in_shared_memory(self, n: int, segment: int, offset: int) -> None:
        e = self.entry(n)
        if e and e.owner is None:
            self.table.in_shared_memory(n, segment, offset)
            e.block = (segment, offset)

    @rule(n=known)
    def is_an_actor(self, n: int) -> None:
        e = self.entry(n)
        if e and e.owner is None:
            self.table.actor_handle(n)
            e.actor = True

    @precondition(lambda self: self.living)
    @rule(data=st.data())
    def a_process_dies(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.living)))
        self.living.remove(worker)
        self.table.died(worker)
        self.expect(self.model.died(worker))

    @rule(n=consumes(known))
    def let_go_of_everything(self, n: int) -> None:
        """Release one object for good, whoever holds it."""
        if e := self.entry(n):
            self.release(n, e)
            self.drain()

    def release(self, n: int, e: Entry) -> None:
        for _ in range(e.refs - e.dropped):
            self.table.drop(n)
        e.dropped = e.refs
        for worker, count in list(e.borrowers.items()):
            if count:
                self.table.borrower(n, worker, -count)
        e.borrowers.clear()
        self.table.hold(n)  # so that giving back the holds frees nothing before the drain
        for _ in range(e.holds + 1):
            self.table.unhold(n)
        e.holds = 0
        self.expect(self.model.sweep())

    @invariant()
    def same_as_the_model(self) -> None:
        entries = self.model.entries
        assert self.table.known() == set(entries)
        assert len(self.table) == len(entries)
        unregistered = {n for n, e in entries.items() if e.owner is not None and not e.grants and not e.lost}
        assert self.table.unregistered() == unregistered
        assert {n for n in entries if self.table.lost(n)} == {n for n, e in entries.items() if e.lost}

    def teardown(self) -> None:
        """When everything is released, everything is freed."""
        if not hasattr(self, "table"):
            return
        for n in sorted(self.model.entries):
            if e := self.entry(n):
                self.release(n, e)
        self.drain()
        assert len(self.table) == 0 and not self.table.known() and not self.model.entries
        assert self.table.commands() == []


TestRefCounting = RefCounting.TestCase
TestRefCounting.settings = settings(max_examples=80, stateful_step_count=50)


def test_a_ref_that_dies_during_a_step_frees_nothing_before_the_drain() -> None:
    """Garbage collection may run anywhere, also while somebody walks the entries."""
    table = RefTable()
    table.own(1)
    table.in_shared_memory(1, 7, 64)
    table.drop(1)
    assert table.known() == {1}
    table.hold(1)
    table.unhold(1)  # a check of the same entry in between: the dropped ref still counts
    assert table.known() == {1} and table.commands() == []
    table.drain()
    assert table.known() == set() and table.commands() == [("free_block", 1, 7, 64)]
    table.drain()
    assert table.commands() == []


def test_a_ref_may_come_back_between_its_death_and_the_drain() -> None:
    table = RefTable()
    table.own(1)
    table.drop(1)
    table.ref(1)
    table.drain()
    assert table.known() == {1}
    table.drop(1)
    table.drain()
    assert len(table) == 0


DEEP = 100_000


@pytest.mark.parametrize("owner", [None, 901], ids=["owned", "borrowed"])
def test_a_deep_chain_is_freed_without_recursion(owner: int | None) -> None:
    """In a thread with a small stack, where a recursion of this depth would end the process."""
    program = f"""
import threading
from ftray._core.refs import RefTable

def chain():
    table = RefTable()
    for n in range({DEEP}):
        if {owner is None}:
            table.own(n)
            table.in_shared_memory(n, n, 0)
        else:
            table.borrow(n, {owner or 0})
            table.register(n)
        if n:
            table.contain(n, n - 1)
            table.drop(n - 1)
    table.drain()
    assert len(table) == {DEEP} and table.commands() == []
    table.drop({DEEP - 1})
    table.drain()
    said = table.commands()
    assert len(table) == 0 and sorted(n for _, n, _, _ in said) == list(range({DEEP})), len(said)
    print("freed", len(said), {{kind for kind, _, _, _ in said}})

threading.stack_size(256 * 1024)
thread = threading.Thread(target=chain)
thread.start()
thread.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    kind = "free_block" if owner is None else "borrow_remove"
    assert done.stdout == f"freed {DEEP} {{'{kind}'}}\n", done.stderr


def test_a_diamond_is_freed_once() -> None:
    table = RefTable()
    for n in (1, 2, 3, 4):
        table.own(n)
        table.in_shared_memory(n, n, 0)
    for outer, inner in ((4, 3), (4, 2), (3, 1), (2, 1), (4, 1), (4, 1)):
        table.contain(outer, inner)
    for n in (1, 2, 3):
        table.drop(n)
    table.drain()
    assert table.known() == {1, 2, 3, 4}
    table.drop(4)
    table.drain()
    assert len(table) == 0 and sorted(n for _, n, _, _ in table.commands()) == [1, 2, 3, 4]


def test_a_borrower_that_dies_frees_what_contained_something_it_gave_back_too_early() -> None:
    """Its death ends the borrow of the outer value: that frees the inner one, its count still below zero."""
    table = RefTable()
    for n in (1, 2):
        table.own(n)
    table.contain(2, 1)
    table.borrower(2, 901, 1)
    table.borrower(1, 901, -1)  # its end overtook its beginning
    table.drop(1)
    table.drop(2)
    table.drain()
    assert table.known() == {1, 2}
    table.died(901)
    assert len(table) == 0 and table.known() == set()


def test_many_that_a_dead_process_borrowed_are_all_settled() -> None:
    table = RefTable()
    for n in range(1000):
        table.own(n)
        table.borrower(n, 901, 1 + n % 3)
        if n % 2:
            table.borrower(n, 902, 1)
        table.drop(n)
    table.drain()
    table.died(901)
    assert table.known() == {n for n in range(1000) if n % 2}
    table.died(901)  # told twice: nothing more to settle
    table.died(902)
    assert len(table) == 0
