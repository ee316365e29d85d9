"""The format is specified well enough that somebody else can read it: a whole key, as its actor left it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray.checkpoint import Checkpointable
from ftray.checkpoint import open as open_store
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.object_store import ObjectStore

from . import second_key_reader
from .once_support import Lives
from .second_key_reader import Key
from .test_leases import Loose

LARGE = 70_000
DIRECTORY = "test%2Ftally"
numbers = itertools.count()


class Tally(Checkpointable, exactly_once=True):
    def __init__(self) -> None:
        self.n = 0
        self.large = bytearray(LARGE)

    def incr(self, k: int = 1) -> int:
        self.n += k
        return self.n

    def ask(self) -> int:
        return self.record(lambda: next(numbers))

    def keep(self, data: bytes) -> bytes:
        self.large = bytearray(data)
        return data


def local(tmp_path: Path, durability: str) -> tuple[Any, Callable[[], Key]]:
    def read() -> Key:
        files = (tmp_path / DIRECTORY).iterdir()
        return second_key_reader.of_directory({path.name: path.read_bytes() for path in files})

    return LocalStore(str(tmp_path)), read


def objects(tmp_path: Path, durability: str) -> tuple[Any, Callable[[], Key]]:
    medium = Loose(exclusive=True)

    def read() -> Key:
        names = [entry.name for entry in medium.walk(DIRECTORY)]
        return second_key_reader.of_objects({n[len(DIRECTORY) + 1 :]: medium.read(n) for n in names})

    return ObjectStore(medium), read


@pytest.mark.parametrize("durability", ["process", "power"])
@pytest.mark.parametrize("kind", [local, objects])
def test_it_finds_what_we_find(kind: Any, durability: str, tmp_path: Path) -> None:
    store, read = kind(tmp_path, durability)
    lives = Lives(store, Tally, durability=durability, every=None)
    lives.start()
    for _ in range(3):
        lives.call("incr")
    lives.call("checkpoint")
    found = read()
    assert found.state["n"] == 3 and found.calls == []
    lives.call("ask")
    lives.call("keep", b"x" * LARGE)
    lives.start()  # a second epoch
    assert lives.call("incr", 10) == 13
    with pytest.raises(TypeError):
        lives.call("incr", "text")
    found = read()
    reader = open_store(store)
    assert found.snapshot == reader.list("test/tally")[-1].id
    assert found.state == reader.load("test/tally") and found.header["class"] == "Tally"
    started, *calls = found.calls
    assert (started.kind, started.method) == (2, "ask"), "it has recorded something"
    assert [(call.kind, call.method, call.status) for call in calls] == [
        (1, "ask", 0),
        (1, "keep", 0),
        (1, "incr", 0),
        (1, "incr", 1),
    ]
    kept = calls[1]
    assert len(kept.args) > LARGE and b"x" * LARGE in kept.args and b"x" * LARGE in kept.reply
    assert found.calls[-1].position == reader.journal("test/tally").last_position
