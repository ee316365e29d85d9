"""Creation and restore: what is taken, what is refused, what is set aside."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from ftray.checkpoint import (
    Checkpointable,
    CheckpointCaptureError,
    CheckpointLoadError,
    CheckpointMismatchError,
    CheckpointNotFoundError,
    CheckpointSaveError,
    CheckpointVersionError,
    UnsupportedStoreError,
    readonly,
)
from ftray.checkpoint import open as open_store
from ftray.checkpoint.lineage import SnapshotName
from ftray.checkpoint.testing import MemoryStore

from .support import KEY, Counter, call, start

N = SnapshotName


class TestCreation:
    def test_the_trial_is_the_first_pause_that_is_told(self) -> None:
        _, session = start(store=MemoryStore())
        told = session.status()
        assert told["first_pause_s"] > 0 and told["saves"] == 0, "a cold capture takes longer than later ones"

    def test_an_unpicklable_attribute_fails_before_anything_is_touched(self, tmp_path: Path) -> None:
        class Locked(Counter):
            def __init__(self) -> None:
                self.lock = threading.Lock()

        with pytest.raises(CheckpointCaptureError, match=r"Locked\.lock"):
            start(Locked, store=tmp_path / "s")
        assert not (tmp_path / "s").exists()

    def test_a_save_checkpoint_that_raises(self) -> None:
        class Bad(Counter):
            def save_checkpoint(self) -> object:
                raise RuntimeError("mine")

        with pytest.raises(CheckpointCaptureError, match="save_checkpoint.*RuntimeError: mine"):
            start(Bad, store=MemoryStore())

    def test_require(self) -> None:
        store = MemoryStore()
        with pytest.raises(CheckpointNotFoundError, match="restore='require'"):
            start(store=store, restore="require")
        host, session = start(store=store)
        call(host, session, "incr")
        host, session = start(store=store, restore="require")
        assert host.call(session, "value") == 1

    def test_never_begins_a_new_history(self) -> None:
        store = MemoryStore()
        host, first = start(store=store)
        call(host, first, "incr")
        host, session = start(store=store, restore="never")
        assert host.call(session, "value") == 0
        assert session.status()["history"] != first.status()["history"]
        assert [i.counts for i in open_store(store).list(KEY)] == [False]
        host, session = start(store=store)  # crashed before it saved: what was set aside stays so, and loudly
        assert host.call(session, "value") == 0
        assert [i.kind for i in host.incidents] == ["history_ignored"]

    def test_a_late_file_of_the_dead_never_counts(self) -> None:
        """A stale process publishes between its successor's seal and that one's crash."""
        store = MemoryStore()
        host, session = start(store=store)
        call(host, session, "incr")
        call(host, session, "incr")
        host, session = start(store=store, incarnation=2)
        held = store._keys[KEY]
        held.snapshots[N(1, 3)] = held.snapshots[N(1, 2)]
        host, session = start(store=store, incarnation=3)
        assert session.status()["restored_from"] == "1-2"
        call(host, session, "incr")
        call(host, session, "incr")
        assert N(1, 3) not in store.scan(KEY).snapshots

    def test_a_copied_snapshot_of_another_key_is_not_taken(self) -> None:
        store = MemoryStore()
        host, session = start(store=store)
        call(host, session, "incr")
        host, session = start(store=store, checkpoint_key="other")
        store._keys["other"].snapshots[N(1, 1)] = store._keys[KEY].snapshots[N(1, 1)]
        with pytest.raises(Exception, match="copied here"):
            start(store=store, checkpoint_key="other")

    def test_nothing_is_saved_before_claim_and_seal_are_durable(self) -> None:
        steps: list[str] = []

        class Slow(MemoryStore):
            def settle(self, key: str, epoch: int) -> None:
                steps.append("settle")
                if len(steps) < 3:
                    raise CheckpointSaveError("not yet")
                super().settle(key, epoch)

            def put(self, key: str, name: N, parts: Any) -> None:
                steps.append("put")
                super().put(key, name, parts)

        host, session = start(store=Slow())
        with pytest.raises(CheckpointSaveError, match="not yet"):
            host.call(session, "checkpoint")
        assert host.call(session, "checkpoint") == "1-2"
        assert steps == ["settle", "settle", "settle", "put"]
        session.close(False, "test")

    def test_a_damaged_one_is_none_of_those_that_are_kept(self) -> None:
        store = MemoryStore()
        host, session = start(store=store)
        for _ in range(2):
            call(host, session, "incr")
        store._keys[KEY].snapshots[N(1, 2)] = b"garbage"
        host, session = start(store=store)
        call(host, session, "incr")
        good = [name for name in store.scan(KEY).snapshots if name != N(1, 2)]
        assert len(good) == 2 and good[0] == N(1, 1)

    def test_an_unreadable_seal_is_told(self) -> None:
        store = MemoryStore()
        host, session = start(store=store)
        call(host, session, "incr")
        store._keys[KEY].seals[1] = b"garbage"
        host, session = start(store=store)
        assert host.call(session, "value") == 1
        assert "seal of epoch 1 is unreadable" in host.incidents[0].message

    def test_another_class(self) -> None:
        class Renamed(Checkpointable):
            n = 0

        class Derived(Counter):
            pass

        store = MemoryStore()
        host, session = start(store=store)
        call(host, session, "incr")
        with pytest.raises(CheckpointMismatchError, match=r"'Counter'.*'Renamed'.*formerly='Counter'"):
            start(Renamed, store=store)
        host, session = start(Renamed, store=store, formerly="Counter")
        assert session.instance.n == 1  # type: ignore[attr-defined]
        host, session = start(Derived, store=store)
        assert host.call(session, "value") == 1

    def test_versions(self) -> None:
        class Old(Counter):
            pass

        class New(Counter, checkpoint_version=3, formerly="Old"):
            def migrate_checkpoint(self, state: Any, from_version: int) -> Any:
                return {"n": state["n"] * 100 + from_version}

        class Unable(Counter, checkpoint_version=2, formerly="Old"):
            pass

        store = MemoryStore()
        host, session = start(Old, store=store)
        call(host, session, "incr")
        with pytest.raises(CheckpointVersionError, match="checkpoint_version=1, Unable has 2"):
            start(Unable, store=store)
        host, session = start(New, store=store)
        assert host.call(session, "value") == 101

    def test_a_load_that_raises_names_the_snapshot(self) -> None:
        class Picky(Counter):
            def load_checkpoint(self, state: Any) -> None:
                raise KeyError("missing")

        store = MemoryStore()
        host, session = start(store=store)
        call(host, session, "incr")
        with pytest.raises(CheckpointLoadError, match="1-1.*KeyError"):
            start(Picky, store=store)
        host, session = start(store=store)
        assert host.call(session, "value") == 1

    def test_durability_that_the_store_does_not_give(self) -> None:
        with pytest.raises(UnsupportedStoreError, match="durability='power'"):
            start(store=MemoryStore(), durability="power")

    def test_init_runs_first_and_its_connections_stay(self) -> None:
        class Connected(Counter):
            def __init__(self) -> None:
                super().__init__()
                self.connection = threading.Lock()

            def __getstate__(self) -> dict[str, Any]:
                return {k: v for k, v in self.__dict__.items() if k != "connection"}

        store = MemoryStore()
        host, session = start(Connected, store=store)
        call(host, session, "incr")
        host, session = start(Connected, store=store)
        assert host.call(session, "value") == 1
        assert not session.instance.connection.locked()  # type: ignore[attr-defined]

    def test_deleted_attributes_stay_deleted_and_new_ones_stay(self) -> None:
        class First(Checkpointable, every=1):
            def __init__(self) -> None:
                self.a, self.b = 1, 2

            def drop(self) -> None:
                del self.a

        class Second(First, formerly="First"):
            def __init__(self) -> None:
                super().__init__()
                self.c = 3

        store = MemoryStore()
        host, session = start(First, store=store)
        call(host, session, "drop")
        _, session = start(Second, store=store)
        assert vars(session.instance) == {"b": 2, "c": 3}

    def test_slots_setstate_and_overrides(self) -> None:
        class Slotted(Checkpointable, every=1):
            __slots__ = ("__private", "x")

            def __init__(self) -> None:
                self.__private = 0

            def set(self) -> None:
                self.x, self.__private, self.y = 1, 2, 3

            @readonly
            def get(self) -> list[int]:
                return [self.x, self.__private, self.y]

        class Stateful(Counter):
            def __getstate__(self) -> Any:
                return ("tuple", self.n)

            def __setstate__(self, state: Any) -> None:
                self.n = state[1]

        for cls, change, look, expected in (
            (Slotted, "set", "get", [1, 2, 3]),
            (Stateful, "incr", "value", 1),
        ):
            store = MemoryStore()
            host, session = start(cls, store=store)
            call(host, session, change)
            host, session = start(cls, store=store)
            assert host.call(session, look) == expected

    def test_a_state_that_is_no_dict_needs_a_loader(self) -> None:
        class Odd(Counter):
            def __getstate__(self) -> Any:
                return 7

        store = MemoryStore()
        host, session = start(Odd, store=store)
        call(host, session, "incr")
        with pytest.raises(CheckpointLoadError, match="is a int, not a dict"):
            start(Odd, store=store)
