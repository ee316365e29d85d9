"""The suites over what stands for services that cannot be run here: other file systems of fsspec, and media
without conditional writes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ftray.checkpoint import UnsupportedStoreError
from ftray.checkpoint.stores import connect
from ftray.checkpoint.stores.fsspec_objects import FsspecObjects
from ftray.checkpoint.stores.object_store import BEST_EFFORT, ObjectStore
from ftray.checkpoint.stores.protocol import Store

from .journal_suite import JournalSuite
from .object_support import FAST
from .test_leases import Loose
from .test_stores import ObjectStoreSuite


class TestFsspecFileStore(ObjectStoreSuite):
    """`fsspec+file://`: fsspec's own local files, which it creates by looking first and writing then."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return connect(f"fsspec+file://{tmp_path}/store")

    # Of several that claim at the same instant more than one may think so here: that is what leases are for.
    test_of_many_claimants_one_wins = None  # type: ignore[assignment]

    def test_creation_is_known_not_to_be_exclusive(self, store: Any) -> None:
        """Also when a probe would not be quick enough to find out."""
        assert not store._medium._creates, "it is not tried, so that no luck can pass for it"
        assert store.fencing("k") == BEST_EFFORT
        with pytest.raises(UnsupportedStoreError, match='or allow fencing="lease"'):
            store.require_fencing("k")

    def test_it_does_not_say_that_it_survives_a_loss_of_power(self, store: Store) -> None:
        assert store.survives == {"process"}


class TestFsspecFileJournal(JournalSuite):
    durabilities = ("process",)

    # An object has its name there before it has its content: who reads beside the writer may see that.
    test_a_reader_beside_the_writer_sees_a_prefix = None  # type: ignore[assignment]

    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        url = f"fsspec+file://{tmp_path}/store"
        return leased(FsspecObjects(url, "file", f"{tmp_path}/store", frozenset({"process"})))

    def reopened(self, store: ObjectStore) -> ObjectStore:
        return leased(store._medium)


class TestLeasedJournal(JournalSuite):
    """A journal that is held by leases alone; time passes when somebody waits for one."""

    durabilities = ("power",)

    @pytest.fixture
    def store(self) -> ObjectStore:
        return leased(Loose())

    def reopened(self, store: ObjectStore) -> ObjectStore:
        return leased(store._medium)


class Clock:
    """Stands still but for those who sleep."""

    now_s = 0.0

    def sleep(self, pause_s: float) -> None:
        self.now_s += pause_s


def leased(medium: Any) -> ObjectStore:
    """A process of its own, with a clock of its own."""
    clock = Clock()
    store = ObjectStore(medium, FAST, clock.sleep, clock=lambda: clock.now_s)
    store.keeps_leases = False
    store.allow_lease(10.0)
    return store
