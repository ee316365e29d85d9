from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ftray.checkpoint.lineage import SnapshotName
from ftray.checkpoint.stores import connect, names
from ftray.checkpoint.stores.local import LocalStore, snapshot_file
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
        path = Path(store._path(key, snapshot_file(name)))
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
