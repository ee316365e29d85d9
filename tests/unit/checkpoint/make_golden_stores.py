"""Writes the golden stores of the present formats; run once per released version, then never again.

python -m tests.unit.checkpoint.make_golden_stores tests/unit/checkpoint/golden
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray.checkpoint import FencedError, faults, segments
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.object_store import ObjectStore
from ftray.checkpoint.testing import crash

from . import golden_support as golden
from .golden_support import (
    BACK,
    FORMER_TASK,
    JOB,
    LARGE,
    LATER_TASK,
    ONCE,
    PAIR,
    Broken,
    GoldenLives,
    Saved,
    driver_call,
    job_call,
    keyed_call,
    method_call,
    ref_call,
    task_call,
    traps,
    world,
)
from .group_support import World, world_of
from .once_support import Lives
from .test_leases import TERM_S, Loose
from .test_leases import World as Leased

SEGMENT_BYTES = 8192
INLINE_BYTES = 4096
LONG = "as asked, " * 150
"""Fills the first segment."""


def key_story(store: Any, durability: str) -> GoldenLives:
    """Nine incarnations, which leave every kind of record, mark and file that an exactly-once key has."""
    world["next"] = 100
    lives = GoldenLives(store, durability=durability)
    _first_life(lives)
    _second_life(lives)
    lives.start()  # 3: declares void what the second one could not save
    lives.send(driver_call(11, "incr", 1000))
    for _ in range(3):  # 3, 4, 5 die in it; 6 refuses it
        _dies(lambda: lives.send(driver_call(12, "step", 13)), 13)
        lives.start()
    lives.value_of(driver_call(12, "step", 13))
    lives.send(driver_call(13, "step", 5))
    _dies_at("once.value_recorded", lambda: lives.send(driver_call(14, "ask", 3)), nth=2)
    _all_written(lives)
    with contextlib.suppress(Exception):
        lives.start(Broken)  # 7
    for _ in range(2):  # 8, 9
        _dies(lives.start, 5)
    return lives


def _first_life(lives: GoldenLives) -> None:
    lives.start(reply_bound_calls=2)  # so that some replies expire
    lives.send_all(*(keyed_call(f"order-{n}", "incr", n) for n in (1, 2)))
    lives.send_all(driver_call(1, "incr", 10), driver_call(2, "incr", 20, acked=2))
    lives.send(task_call(1, "incr", 30))
    lives.send(task_call(2, "incr", 40, attempt=1, acked=2))
    lives.value_of(method_call(1, "fail", "in a method"))
    lives.send(task_call(1, "incr", 50, attempt=1, task=FORMER_TASK))
    lives.once.release([FORMER_TASK], [])
    lives.call("checkpoint")
    lives.send(driver_call(3, "roll", acked=3))
    lives.send(driver_call(4, "keep", LARGE, acked=4))
    lives.send(keyed_call("order-3", "incr", 3))
    lives.session.close(True, "planned")


def _second_life(lives: GoldenLives) -> None:
    lives.start()
    lives.send(driver_call(5, "ask", 1))
    lives.value_of(driver_call(6, "fail", LONG))
    lives.send(ref_call(7, "incr", 7))
    lives.send(driver_call(8, "keep", LARGE[1:]))
    for attempt in (1, 2):  # the second time it is known, and was made by a newer attempt
        lives.send(task_call(3, "incr", 8, attempt=attempt))
    lives.send(keyed_call("order-4", "incr", 9))
    lives.send(task_call(1, "incr", 10, attempt=1, task=LATER_TASK))
    lives.send(job_call(1, "incr", 11))
    lives.once.release([LATER_TASK], [JOB])
    lives.send(driver_call(9, "incr", 12))
    _dies_at("once.barrier_appended", lambda: lives.send(driver_call(10, "roll")))
    _all_written(lives)


def _dies(act: Callable[[], object], step: int) -> None:
    traps.add(step)
    try:
        act()
    except faults.SimulatedCrash:
        return
    finally:
        traps.discard(step)
    raise AssertionError("the process lives")


def _dies_at(point: str, act: Callable[[], object], nth: int = 1) -> None:
    try:
        with faults.armed(point, faults.SimulatedCrash(point), nth):
            act()
    except faults.SimulatedCrash:
        return
    raise AssertionError("the process lives")


def _all_written(lives: GoldenLives) -> None:
    journal = lives.once.journal
    journal.flush()
    journal.wait(journal.last_position, 10)


def _settled(root: Path) -> None:
    """Wait until the last journal says that all of it is durable, and nothing is unfinished."""
    while True:
        files = golden.local_files(root)
        last = [
            segments.scan(files[name]).records for name in sorted(files) if "/journal-0000000006-" in name
        ]
        kinds = [records[-1].kind for records in last if records]
        if kinds and kinds[-1] == segments.MARK and not any("/.tmp-" in name for name in files):
            return
        threading.Event().wait(0.01)


def _small(directory: str) -> LocalStore:
    store = LocalStore(directory)
    store.journal_first_size = store.journal_max_size = SEGMENT_BYTES
    store.journal_sync_interval_s = 0.05
    return store


def local_key(path: Path, durability: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        lives = key_story(_small(directory), durability)
        _settled(Path(directory))
        golden.pack(path, golden.local_files(Path(directory)))
        with contextlib.suppress(FencedError):
            lives.once.journal.close(10)


def object_key(path: Path) -> None:
    medium = Loose(exclusive=True)
    medium._medium.inline_bytes = INLINE_BYTES
    key_story(ObjectStore(medium), "power")
    golden.pack(path, golden.objects_of(medium))


# -- a store of several keys: in snapshot mode, taken back, of groups


def store_story(store: Any, reopen: Callable[[Any], Any]) -> None:
    """What lies in a store with an actor in snapshot mode, a key that was taken back, and two groups."""
    _saved(store)
    _taken_back(store)
    with world_of(store, "ab", reopen=reopen) as world:
        _pair(world)
    with world_of(store, "cd", exactly_once=True, reopen=reopen) as world:
        _once(world)


def _saved(store: Any) -> None:
    lives = Lives(store, Saved, keep=2)
    for _ in range(2):
        lives.start()
        for _ in range(3):
            lives.call("incr")
    crash(lives.session)


def _taken_back(store: Any) -> None:
    lives = GoldenLives(store, checkpoint_key=BACK, durability="power").start()
    for n in (1, 2):
        lives.send(driver_call(n, "incr", n, key=BACK))
    lives.call("checkpoint")
    lives.send(driver_call(3, "incr", 1000, key=BACK))
    lives.session.close(True, "planned")
    checkpoint.restore(store, BACK, "1-2")


def _pair(world: World) -> None:
    """Two cuts; then somebody goes back to the first one, and dies when that is only claimed."""
    group, cuts = world.group(name=PAIR), []
    for day in (1, 2):
        world.traffic()
        world.settle()
        cuts.append(group.save(note={"day": day}))
    world.traffic(1)
    world.settle()
    _dies_at("group.claimed", lambda: group.restore(cuts[0]))


def _once(world: World) -> None:
    """A cut, to which the group goes back."""
    group = world.group(name=ONCE)
    _member_calls(world, 1, 2)
    cut = group.save()
    _member_calls(world, 3)
    group.restore(cut)
    _member_calls(world, 2, 3)  # the cut has the one of them, and not the other


def _member_calls(world: World, *numbers: int) -> None:
    for n in numbers:
        process = world.process("c")
        process.host.send(process.live(), driver_call(n, "receive", "me", key="test/c"))


def local_store(path: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store_story(_small(directory), lambda store: _small(store._root))
        golden.pack(path, golden.local_files(Path(directory)))


def object_store(path: Path) -> None:
    medium = Loose(exclusive=True)
    store_story(ObjectStore(medium), lambda _store: ObjectStore(medium))
    golden.pack(path, golden.objects_of(medium))


def leased_key(path: Path) -> None:
    """A key that was held by a lease, on a medium that creates whatever is there."""
    world = Leased(Loose())
    lives = GoldenLives(world.store(), fencing="lease", lease_s=TERM_S).start()
    lives.send_all(driver_call(1, "incr", 1), driver_call(2, "incr", 2))
    crash(lives.session)
    golden.pack(path, golden.objects_of(world.medium))


def main(directory: str) -> None:
    root = Path(directory)
    makers: dict[str, Callable[[Path], None]] = {
        "key-v1.process.zip": lambda path: local_key(path, "process"),
        "key-v1.power.zip": lambda path: local_key(path, "power"),
        "key-v1.objects.zip": object_key,
        "store-v1.local.zip": local_store,
        "store-v1.objects.zip": object_store,
        "key-v1.leased.zip": leased_key,
    }
    for name, make in makers.items():
        with pytest.MonkeyPatch.context() as patch:
            golden.on_machine(patch)
            golden.as_golden_process(patch)
            make(root / name)


if __name__ == "__main__":
    main(sys.argv[1])
