"""Several programs that work on one group at a time, and members that die between two steps of one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray.checkpoint import CheckpointCorruptedError, CheckpointNotFoundError, FencedError, faults, regroup
from ftray.checkpoint.stores.local import LocalStore

from .group_support import KEY, World, world_of
from .once_support import memory


class _Meanwhile:
    def __init__(self, point: str, action: Callable[[], object], nth: int) -> None:
        self.point, self.action, self.left = point, action, nth

    def hit(self, point: str) -> None:
        self.left -= point == self.point
        if not self.left:
            faults.active = None
            self.left = -1
            self.action()


@contextmanager
def meanwhile(point: str, action: Callable[[], object], nth: int = 1) -> Iterator[None]:
    """Something else happens when somebody comes to a point for the n-th time."""
    there = _Meanwhile(point, action, nth)
    faults.active = there  # type: ignore[assignment]
    try:
        yield
    finally:
        faults.active = None
    assert there.left < 0, f"{point} was not reached"


@pytest.fixture
def world() -> Iterator[World]:
    with world_of(memory()) as made:
        yield made


def worked(world: World) -> Any:
    world.traffic()
    world.settle()
    return world.books()


def crashed(world: World) -> Any:
    world.process("a").die()
    return world.books()


def test_who_retires_cuts_leaves_those_that_another_program_has_taken_meanwhile(world: World) -> None:
    first, second = world.group(keep=3), world.group(keep=3)
    found: dict[str, Any] = {}

    def save() -> None:
        found["books"], found["cut"] = worked(world), second.save()

    with meanwhile("group.published", save):
        first.save()
    assert checkpoint.open(world.store).verify(KEY)[-1].error == ""
    assert crashed(world) == found["books"] and first.list()[-1].id == found["cut"]


@pytest.mark.parametrize("point", ["group.answered.release", "group.answered.written", "group.publish"])
def test_programs_that_make_a_group_at_the_same_time(world: World, point: str) -> None:
    others: list[Any] = []
    with meanwhile(point, lambda: others.append(world.group())):
        group = world.group()
    assert (group.is_new, others[0].is_new) == (False, True)
    assert [info.id for info in group.list()] == ["1-1"]
    assert group.save() == "1-2" and others[0].save() == "1-3"


def test_a_cut_is_of_the_generation_that_was_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    group = world.group()
    worked(world)
    refresh = group._refresh

    def a_member_dies_first(deadline_s: float) -> object:
        crashed(world)
        return refresh(deadline_s)

    monkeypatch.setattr(group, "_refresh", a_member_dies_first)
    with pytest.raises(FencedError, match="generation 2, not 1"):
        group.save({"step": 1}, generation=1)
    assert [info.note for info in group.list()] == [None]


def test_a_cut_is_published_in_the_generation_that_it_was_captured_in(world: World) -> None:
    group, other = world.group(), world.group()
    worked(world)

    def back() -> None:  # and another thread, which uses the same object, looks
        other.restore()
        assert group.generation == 2

    with meanwhile("group.answered.written", back, nth=2), pytest.raises(FencedError):
        group.save("of the past that was given up")
    assert [info.note for info in group.list()] == [None]


def test_a_member_that_leaves_while_the_group_goes_back(world: World) -> None:
    group, other = world.group(timeout_s=5), world.group()
    worked(world)
    with meanwhile("group.sealed", lambda: other.remove("test/b")):
        assert group.restore() == "1-1"
    assert other.members == ("test/a",)


def test_a_group_that_is_disbanded_while_it_goes_back(world: World) -> None:
    group, other = world.group(timeout_s=5), world.group()
    with (
        meanwhile("group.sealed", other.disband),
        pytest.raises(CheckpointNotFoundError, match="'pair' was disbanded"),
    ):
        group.restore()


def test_a_cut_that_is_retired_while_the_group_goes_back_to_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    group, other = world.group(), world.group()
    oldest = group.list()[0].id
    group.save()
    books, verified, lives = worked(world), regroup._verified, [p.life for p in world.processes]

    def looked(*args: Any) -> int:
        found = verified(*args)
        other.save()
        return found

    monkeypatch.setattr(regroup, "_verified", looked)
    with pytest.raises(CheckpointCorruptedError, match=r"the cut to go back to .* 1-1: .* goes on as it was"):
        group.restore(oldest)
    monkeypatch.undo()
    assert world.books() == books and [p.life for p in world.processes] == lives, "nobody was ended"
    world.traffic()
    group.save()
    assert crashed(world) == world.states(group.list()[-1].id)


def test_cuts_that_are_all_damaged_cost_no_member_its_life(tmp_path: Path) -> None:
    with world_of(LocalStore(str(tmp_path))) as world:
        group = world.group()
        books = worked(world)
        for file in tmp_path.rglob("snap-*"):
            if "_group" in str(file.parent):
                file.write_bytes(b"damaged")
        with pytest.raises(CheckpointCorruptedError, match="goes on as it was"):
            group.restore()
        assert world.books() == books
        group.save()
        assert crashed(world) == books
