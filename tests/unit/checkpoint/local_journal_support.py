"""What the tests of the local journal share: where its files are, and a store whose segments are small."""

from __future__ import annotations

from pathlib import Path

import pytest

from ftray.checkpoint.stores.local import LocalStore

DIRECTORY = "test%2Fjournal"
BOTH = pytest.mark.parametrize("durability", ["process", "power"])


def small(root: Path) -> LocalStore:
    """A store whose segments are so small that a test crosses many of them."""
    store = LocalStore(str(root))
    store.journal_first_size = 8192
    store.journal_max_size = 16384
    store.journal_sync_interval_s = 0.001
    return store


def segments(root: Path) -> list[Path]:
    return sorted((root / DIRECTORY).glob("journal-*"))
