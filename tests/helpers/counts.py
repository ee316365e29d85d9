"""An actor with checkpoints that counts, for tests of what becomes of its count."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ftray
from ftray import checkpoint


def count_class(store: str | Path, **options: Any) -> Any:
    """Return a class of such actors, which may have subclasses; being local it goes to workers by value."""

    class Count(ftray.Checkpointable, store=store, **options):
        def __init__(self) -> None:
            self.n = 0

        def add(self) -> int:
            self.n += 1
            return self.n

        @checkpoint.readonly
        def pid(self) -> int:
            return os.getpid()

    return Count
