"""A store too small for what the tests of spilling put into it, and values that tell if they are right."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import ftray as ray
from ftray import _lifecycle

MB = 2**20
STORE = 20 * MB


def store() -> dict[str, Any]:
    figures: dict[str, Any] = _lifecycle.ask("object_store", {})
    return figures


def spill_dir() -> Path:
    return Path(_lifecycle.current().session_dir, "spill")


@cache
def base() -> Any:
    return (np.arange(STORE, dtype=np.uint32) * 2654435761 >> 13).astype(np.uint8)


def pattern(number: int, size: int = MB) -> Any:
    return base()[:size] + np.uint8(number % 256)


def check(array: Any, number: int) -> None:
    assert np.array_equal(array, pattern(number, len(array)))


@ray.remote
def make(number: int, size: int = MB) -> Any:
    return pattern(number, size)


@ray.remote
def matches(array: Any, number: int) -> bool:
    return bool(np.array_equal(array, pattern(number, len(array))))


def spill_all(refs: list[Any]) -> None:
    """Have everything else leave memory by putting what needs all of it; give that back."""
    big = ray.put(np.zeros(STORE - 8192, dtype=np.uint8))
    assert store()["on_disk_objects"] >= len(refs)
    del big
