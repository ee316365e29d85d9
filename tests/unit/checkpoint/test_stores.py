from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import ftray
from ftray.checkpoint import CheckpointSaveError, CheckpointStoreError
from ftray.checkpoint.lineage import SnapshotName
from ftray.checkpoint.stores import connect, names
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.names import snapshot_name
from ftray.checkpoint.stores.object_store import ObjectStore
from ftray.checkpoint.stores.protocol import Store
from ftray.checkpoint.testing import MemoryStore

from .store_suite import StoreSuite


class TestLocalStore(StoreSuite):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return LocalStore(str(tmp_path / "new" / "store"))

    def reopened(self, store: LocalStore) -> Store:
        return LocalStore(store._root)

    def damage(
        self, store: LocalStore, key: str, name: SnapshotName, change: Callable[[bytes], bytes]
    ) -> None:
        path = Path(store._path(key, snapshot_name(name)))
        path.write_bytes(change(path.read_bytes()))


class TestMemoryStore(StoreSuite):
    @pytest.fixture
    def store(self) -> Store:
        return MemoryStore()

    def reopened(self, store: MemoryStore) -> Store:
        return store

    def damage(
        self, store: MemoryStore, key: str, name: SnapshotName, change: Callable[[bytes], bytes]
    ) -> None:
        held = store._keys[key].snapshots
        held[name] = change(held[name])


class ObjectStoreSuite(StoreSuite):
    """The suite for what is an `ObjectStore` over some medium."""

    def reopened(self, store: ObjectStore) -> Store:
        return connect(store.url)

    def damage(
        self, store: ObjectStore, key: str, name: SnapshotName, change: Callable[[bytes], bytes]
    ) -> None:
        path = store._path(key, names.snapshot_name(name))
        store.objects.write(path, change(store.objects.read(path)))


class TestS3Store(ObjectStoreSuite):
    @pytest.fixture
    def store(self, s3_url: str) -> Store:
        return connect(s3_url)


class TestFsspecMemoryStore(ObjectStoreSuite):
    @pytest.fixture
    def store(self, request: pytest.FixtureRequest) -> Iterator[Store]:
        import fsspec

        yield connect(f"memory://{request.node.name.partition('[')[0]}")
        fsspec.filesystem("memory").store.clear()


class FakeKv:
    """The interface of `ftray.experimental.internal_kv` over a dict, for tests without a node."""

    def __init__(self) -> None:
        self.held: dict[tuple[bytes, bytes], bytes] = {}
        self.lock = threading.Lock()

    def initialized(self) -> bool:
        return True

    def put(self, key: str, value: bytes, overwrite: bool = True, *, namespace: bytes) -> bool:
        with self.lock:
            found = (namespace, key.encode()) in self.held
            if overwrite or not found:
                self.held[namespace, key.encode()] = value
            return found

    def get(self, key: str, *, namespace: bytes) -> bytes | None:
        return self.held.get((namespace, key.encode()))

    def delete(self, key: str, *, namespace: bytes) -> int:
        return self.held.pop((namespace, key.encode()), None) is not None

    def list_keys(self, prefix: str, *, namespace: bytes) -> list[bytes]:
        with self.lock:
            return sorted(k for n, k in self.held if n == namespace and k.startswith(prefix.encode()))


class TestKvStore(ObjectStoreSuite):
    """The node itself: tests/functional/test_checkpoint_stores.py."""

    @pytest.fixture
    def store(self, monkeypatch: pytest.MonkeyPatch) -> Store:
        # A late thread of an earlier test finds the real one loaded, and does not load it over this one.
        importlib.import_module("ftray.experimental.internal_kv")
        monkeypatch.setitem(sys.modules, "ftray.experimental.internal_kv", FakeKv())  # type: ignore[arg-type]
        return connect("kv://some/name")

    def test_a_large_state_is_refused_and_the_limit_named(self, store: Store) -> None:
        assert store.claim("k", 1, b"")
        with pytest.raises(CheckpointSaveError, match=r"kv://some/name, which takes at most 1047552 bytes"):
            store.put("k", SnapshotName(1, 1), [bytes(1 << 20)])
        store.put("k", SnapshotName(1, 2), [bytes(1 << 19), bytes(1 << 18)])


@pytest.mark.parametrize("url", ["kv://none", "actor://none"])
def test_a_store_of_the_node_does_not_start_one(url: str) -> None:
    with pytest.raises(CheckpointStoreError, match=r"call ftray.init\(\) first"):
        connect(url).scan("k")
    assert not ftray.is_initialized()
