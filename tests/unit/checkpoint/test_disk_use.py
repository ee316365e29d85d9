"""How much a key takes: bounded, whatever is called; shown; and what dead writers left is swept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftray import checkpoint
from ftray.checkpoint import Checkpointable, CheckpointOptionError, engine, faults
from ftray.checkpoint.stores.local import LocalStore
from tests.unit.checkpoint.once_support import KEY, Lives, Tally, memory

KB = 1 << 10
ARGUMENT, REPLY, BOUND = 100 * KB, 80 * KB, 1 << 20


class Pipe(Checkpointable, exactly_once=True, every=10**6, keep=2, journal_bound_bytes=BOUND):
    """Never due by its number of calls."""

    def __init__(self) -> None:
        self.n = 0

    def through(self, data: bytes, size: int) -> bytes:
        self.n += 1
        return b"r" * size


def most(keep: int, largest_call: int, state: int) -> int:
    """The bound that docs/checkpoint-guide.md states."""
    return (keep + 1) * (state + BOUND + largest_call) + 2 * (4 << 20)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(str(tmp_path))
    return made


def total(store: Any) -> int:
    return sum(checkpoint.open(store).usage(KEY).values())


def test_large_arguments_and_replies_are_bounded(store: LocalStore) -> None:
    lives = Lives(store, Pipe).start()
    seen = written = 0
    for i in range(150):
        lives.call("through", bytes([i % 256]) * ARGUMENT, REPLY)
        written += ARGUMENT + REPLY
        seen = max(seen, total(store))
    bound = most(2, ARGUMENT + REPLY, 200 * KB)
    assert seen <= bound < written / 2, (seen, bound, written)
    status = lives.session.status()
    assert status["saves"] >= written // (BOUND + ARGUMENT + REPLY) - 1
    assert status["journal_written_bytes"] >= written
    info = checkpoint.open(store).describe(KEY)
    assert info.total_bytes == sum(p.stat().st_size for p in Path(store._root).glob("*/*"))
    assert len(info.snapshots) == 2 and info.bytes["blobs"] <= 3 * (BOUND + ARGUMENT + REPLY)
    assert lives.start().call("through", b"", 1) == b"r"
    assert lives.session.instance.n == 151


def test_small_ones_are_too(store: LocalStore) -> None:
    """Their bytes are looked at every few calls, not at each."""
    lives = Lives(store, Pipe).start()
    for _ in range(400):
        lives.call("through", b"a" * 16 * KB, 8)
    assert lives.session.status()["saves"] >= 5
    assert total(store) <= most(2, 64 * 16 * KB, 64 * KB)


def test_by_number_of_calls_it_is_as_exact_as_ever() -> None:
    for every in (1, 7, 63, 64, 65, 100, 128, 130):
        lives = Lives(memory(), every=every).start()
        for _ in range(every - 1):
            lives.call("incr")
        assert lives.session.status()["saves"] == 1, "the base"
        lives.call("incr")
        assert lives.session.status()["saves"] == 2, every
        assert lives.session.status()["calls"] == every
        for _ in range(every):
            lives.call("incr")
        assert lives.session.status()["saves"] == 3, every


def test_a_snapshot_on_demand_begins_the_count_anew() -> None:
    lives = Lives(memory(), every=100).start()
    for _ in range(70):
        lives.call("incr")
    lives.call("checkpoint")
    for _ in range(99):
        lives.call("incr")
    assert lives.session.status()["saves"] == 2
    lives.call("incr")
    assert lives.session.status()["saves"] == 3


@pytest.mark.parametrize("point", ["file.blob.half_written", "file.blob.synced", "file.blob.renamed"])
def test_what_dead_writers_leave_is_swept(point: str, store: LocalStore) -> None:
    lives = Lives(store, Pipe, durability="power").start()
    for _ in range(4):
        with pytest.raises(faults.SimulatedCrash), faults.armed(point, faults.SimulatedCrash()):
            lives.call("through", b"x" * ARGUMENT, 8)
        lives.start()
    assert list(Path(store._root).glob("*/.tmp-*")) == []
    for _ in range(2):  # blobs that no record names go with the records around them
        lives.call("through", b"", 8)
        lives.call("checkpoint")
    assert store.list_blobs(KEY) == []


def test_keep(store: LocalStore) -> None:
    lives = Lives(store, Tally, keep=4).start()
    for _ in range(8):
        lives.call("incr")
        lives.call("checkpoint")
    infos = checkpoint.open(store).list(KEY)
    assert len(infos) == 4 and all(i.counts for i in infos)
    oldest = infos[0].journal_position
    assert oldest is not None
    assert checkpoint.open(store).journal(KEY).first_position == oldest + 1


def test_wrong() -> None:
    with pytest.raises(CheckpointOptionError, match="journal_bound_bytes=0 is not allowed"):
        engine.spec_of(Tally, {"journal_bound_bytes": 0})
    with pytest.raises(CheckpointOptionError, match="is for actors with exactly_once=True"):

        class Plain(Checkpointable, journal_bound_bytes=1):
            pass
