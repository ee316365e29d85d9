"""The conformance suite of stores. A backend derives a class from `StoreSuite` and gives the fixture `store`:

class TestMyStore(StoreSuite):
    @pytest.fixture
    def store(self): return MyStore(...)

    def reopened(self, store): return MyStore(...)   # another process's view of the same data
    def damage(self, store, key, name, change): ...  # replace the bytes of a snapshot by change(bytes)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from ftray.checkpoint import (
    CheckpointCorruptedError,
    CheckpointOptionError,
    CheckpointSaveError,
    FencedError,
    engine,
)
from ftray.checkpoint import open as open_store
from ftray.checkpoint.lineage import SnapshotName
from ftray.checkpoint.session import OUT_OF_SCOPE
from ftray.checkpoint.testing import LocalHost

from .support import KEY, Counter, call, start

N = SnapshotName


class StoreSuite:
    """What every store does."""

    def reopened(self, store: Any) -> Any:
        raise NotImplementedError

    def damage(self, store: Any, key: str, name: SnapshotName, change: Callable[[bytes], bytes]) -> None:
        raise NotImplementedError

    # -- primitives -------------------------------------

    def test_a_fresh_key_is_empty(self, store: Any) -> None:
        listing = store.scan("none")
        assert (listing.claims, listing.seals, listing.snapshots, listing.newest_epoch) == ([], [], [], 0)
        assert store.keys() == []
        with pytest.raises(FileNotFoundError):
            store.read("none", N(1, 1))
        with pytest.raises(FileNotFoundError):
            store.read_seal("none", 1)

    def test_what_was_put_is_read_by_others(self, store: Any) -> None:
        assert store.claim("k", 1, b"me")
        store.put("k", N(1, 1), [b"abc", bytearray(b"def"), memoryview(b"ghi"), b""])
        other = self.reopened(store)
        with other.read("k", N(1, 1)) as file:
            assert file.read() == b"abcdefghi"
            assert file.seek(3) == 3 and file.read(3) == b"def"
        assert other.read_claim("k", 1) == b"me"
        assert other.scan("k").snapshots == [N(1, 1)] and other.keys() == ["k"]

    def test_an_epoch_is_claimed_once(self, store: Any) -> None:
        assert store.claim("k", 1, b"a")
        assert not self.reopened(store).claim("k", 1, b"b")
        assert store.read_claim("k", 1) == b"a"

    def test_an_epoch_below_the_newest_cannot_be_claimed(self, store: Any) -> None:
        assert store.claim("k", 5, b"a")
        assert not store.claim("k", 4, b"b")

    def test_of_many_claimants_one_wins(self, store: Any) -> None:
        won: list[int] = []
        barrier = threading.Barrier(8)

        def claimant(number: int) -> None:
            mine = self.reopened(store)
            barrier.wait(10)
            if mine.claim("k", 1, b"%d" % number):
                won.append(number)

        threads = [threading.Thread(target=claimant, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert len(won) == 1 and store.read_claim("k", 1) == b"%d" % won[0]

    def test_a_stale_epoch_writes_and_deletes_nothing(self, store: Any) -> None:
        assert store.claim("k", 1, b"")
        store.put("k", N(1, 1), [b"old"])
        assert self.reopened(store).claim("k", 2, b"")
        for action in (
            lambda: store.put("k", N(1, 2), [b"late"]),
            lambda: store.delete("k", [N(1, 1)], 1),
            lambda: store.seal("k", 1, b""),
        ):
            with pytest.raises(FencedError):
                action()
        assert store.scan("k").snapshots == [N(1, 1)] and store.scan("k").seals == []

    def test_an_epoch_never_claimed_writes_nothing(self, store: Any) -> None:
        store.claim("k", 1, b"")
        with pytest.raises(FencedError):
            store.put("k", N(2, 1), [b"x"])

    def test_snapshots_and_seals_are_never_overwritten(self, store: Any) -> None:
        store.claim("k", 1, b"")
        store.put("k", N(1, 1), [b"first"])
        with pytest.raises(CheckpointSaveError):
            store.put("k", N(1, 1), [b"second"])
        with store.read("k", N(1, 1)) as file:
            assert file.read() == b"first"
        store.seal("k", 1, b"first")
        with pytest.raises(CheckpointSaveError):
            store.seal("k", 1, b"second")
        assert store.read_seal("k", 1) == b"first"

    def test_names_come_in_order(self, store: Any) -> None:
        store.claim("k", 1, b"")
        for sequence in (10, 9, 100):
            store.put("k", N(1, sequence), [b"x"])
        store.claim("k", 2, b"")
        store.put("k", N(2, 1), [b"x"])
        assert store.scan("k").snapshots == [N(1, 9), N(1, 10), N(1, 100), N(2, 1)]

    def test_delete_drop_and_remove(self, store: Any) -> None:
        store.claim("k", 1, b"")
        store.seal("k", 1, b"")
        store.put("k", N(1, 1), [b"x"])
        store.put("k", N(1, 2), [b"x"])
        store.delete("k", [N(1, 1), N(1, 7)], 1)
        assert store.scan("k").snapshots == [N(1, 2)]
        store.claim("k", 2, b"")
        store.seal("k", 2, b"")
        for _ in range(2):
            store.settle("k", 2)
            assert (store.scan("k").claims, store.scan("k").seals) == ([2], [2])
        assert store.scan("k").snapshots == [N(1, 2)]
        store.remove("k")
        store.remove("k")
        assert store.keys() == [] and store.scan("k").snapshots == []

    @pytest.mark.parametrize("key", ["a/b", "..", "ü/é", "a b%", ".", "x" * 240, "Übung", "a\n\0"])
    def test_any_text_is_a_key(self, store: Any, key: str) -> None:
        store.claim(key, 1, b"")
        store.put(key, N(1, 1), [b"x"])
        assert store.keys() == [key] and store.scan(key).snapshots == [N(1, 1)]

    def test_too_long_a_key_is_refused(self, store: Any) -> None:
        with pytest.raises(CheckpointOptionError, match="241"):
            store.scan("x" * 241)

    # -- the whole toolkit over it -------------------------------------

    def test_an_actor_lives_on(self, store: Any) -> None:
        host, session = start(store=store)
        for _ in range(3):
            call(host, session, "incr")
        host, session = start(store=self.reopened(store), incarnation=2)
        assert host.call(session, "value") == 3
        assert session.status()["restored_from"] == "1-3"
        assert open_store(store).load(KEY) == {"n": 3}

    def test_the_newest_that_verifies_is_restored(self, store: Any) -> None:
        host, session = start(store=store)
        for _ in range(3):
            call(host, session, "incr")
        self.damage(store, KEY, N(1, 3), lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:])
        host, session = start(store=self.reopened(store), incarnation=2)
        assert host.call(session, "value") == 2
        assert [i.kind for i in host.incidents] == ["snapshot_skipped", "restored"]
        assert "1-3" in host.incidents[0].message

    def test_none_verifies(self, store: Any) -> None:
        host, session = start(store=store)
        for _ in range(2):
            call(host, session, "incr")
        for name in store.scan(KEY).snapshots:
            self.damage(store, KEY, name, lambda data: data[:-1])
        with pytest.raises(CheckpointCorruptedError, match=r"1-2.*1-1") as caught:
            start(store=self.reopened(store), incarnation=2)
        assert len(caught.value.skipped) == 2

    def test_the_stale_incarnation_is_told(self, store: Any) -> None:
        old_host, old = start(store=store)
        call(old_host, old, "incr")
        host, session = start(store=self.reopened(store), incarnation=2)
        old_host.call(old, "incr")
        old_host.wait_for(lambda: old_host.fenced_by)
        assert isinstance(old_host.fenced_by[0], FencedError)
        assert call(host, session, "incr") == 2
        host, session = start(store=self.reopened(store), incarnation=3)
        assert host.call(session, "value") == 2

    def test_keep(self, store: Any) -> None:
        host, session = start(store=store, keep=3)
        for _ in range(8):
            call(host, session, "incr")
        assert store.scan(KEY).snapshots == [N(1, 6), N(1, 7), N(1, 8)]

    def test_an_unnamed_actor_leaves_nothing(self, store: Any) -> None:
        host = LocalHost("", unique_id="nonce-1")
        session = engine.open(Counter(), host, store=store)
        call(host, session, "incr")
        assert store.keys() == ["_unnamed/Counter-nonce-1"]
        assert session.close(True, OUT_OF_SCOPE) is None
        assert store.keys() == []
