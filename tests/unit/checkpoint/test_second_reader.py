"""The format is specified well enough that somebody else can read it: a whole key, as its actor left it."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray.checkpoint import Checkpointable
from ftray.checkpoint import open as open_store
from ftray.checkpoint.stores.local import LocalStore
from ftray.checkpoint.stores.object_store import ObjectStore

from . import second_key_reader
from .make_golden import FIELDS, STATE
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


@pytest.mark.parametrize("version", [1, 2])
def test_it_reads_snapshots_of_every_version(version: int) -> None:
    raw = (Path(__file__).parent / "golden" / f"v{version}.ckpt").read_bytes()
    header, segments = second_key_reader.snapshot(raw)
    assert raw[8] == version and {name: header[name] for name in FIELDS} == FIELDS
    assert pickle.loads(segments[0], buffers=[bytearray(s) for s in segments[1:]]) == STATE
    at = len(raw) - 24 - 100
    with pytest.raises(AssertionError):
        second_key_reader.snapshot(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])


def test_its_checksum_is_the_one_that_the_page_names() -> None:
    assert second_key_reader.crc64(b"123456789") == 0x995DC9BBDF1939FA
