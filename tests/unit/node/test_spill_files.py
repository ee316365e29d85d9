"""Spill files: what is read is what was written, or an error."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ftray._node import spill_files
from ftray._node.spill_files import STEP_BYTES, DamagedError, LocalFiles, open_place
from ftray._node.spill_process import read, write

SIZES = [1, 4096, STEP_BYTES - 1, STEP_BYTES, 2 * STEP_BYTES + 5]


def no_fault(_point: str) -> None:
    return None


@pytest.fixture(params=["directory", "memory"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "memory":
        pytest.importorskip("fsspec")
    there = open_place(
        str(tmp_path / "spill") if request.param == "directory" else f"memory://{uuid.uuid4()}"
    )
    yield there
    there.wipe()


@pytest.mark.parametrize("size", SIZES)
def test_round_trip(place: Any, size: int) -> None:
    data = random.Random(size).randbytes(size)
    crc = place.write("a", memoryview(data), no_fault)
    back = bytearray(size)
    place.read("a", memoryview(back), crc)
    assert back == data
    place.remove("a")
    place.remove("a")  # again does no harm
    with pytest.raises(DamagedError, match="gone"):
        place.read("a", memoryview(back), crc)


def test_another_objects_file_is_refused(place: Any) -> None:
    crc = place.write("a", memoryview(b"x" * 100), no_fault)
    place.write("a", memoryview(b"y" * 100), no_fault)
    with pytest.raises(DamagedError, match="checksum"):
        place.read("a", memoryview(bytearray(100)), crc)


@pytest.mark.parametrize("seed", range(20))
def test_any_flipped_bit_and_any_cut_is_found(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    place = LocalFiles(str(tmp_path))
    size = rng.randrange(1, 5000)
    crc = place.write("a", memoryview(rng.randbytes(size)), no_fault)
    path = tmp_path / "a"
    raw = bytearray(path.read_bytes())
    if seed % 2:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    else:
        del raw[rng.randrange(len(raw)) :]
    path.write_bytes(raw)
    with pytest.raises(DamagedError):
        place.read("a", memoryview(bytearray(size)), crc)


def test_private_modes(tmp_path: Path) -> None:
    LocalFiles(str(tmp_path / "d")).write("a", memoryview(b"x"), no_fault)
    assert (tmp_path / "d").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "d" / "a").stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _data: memoryview) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill_files, "_write_all", full)
    fd = os.memfd_create("test")
    os.truncate(fd, 4096)
    outcome, text = write(LocalFiles(str(tmp_path)), "a", fd, 0, 4096)
    os.close(fd)
    assert outcome == "disk full" and str(tmp_path) in text and "4096 bytes" in text
    assert list(tmp_path.iterdir()) == []


def test_a_segment_goes_out_and_comes_back_sealed(tmp_path: Path) -> None:
    place = LocalFiles(str(tmp_path))
    fd = os.memfd_create("test")
    os.write(fd, b"." * 4096 + b"data" * 1024 + b"." * 4096)
    outcome, crc = write(place, "a", fd, 4096, 4096)
    os.close(fd)
    assert outcome == "ok"
    (outcome, length), out = read(place, "a", 4096, crc)
    assert (outcome, length, os.pread(out, 4096, 0)) == ("ok", 4096, b"data" * 1024)
    with pytest.raises(PermissionError):
        os.ftruncate(out, 0)
    os.close(out)
    (outcome, text), out = read(place, "a", 4095, crc)
    assert outcome == "damaged" and out == -1 and "a" in text
