"""The checksum of payloads, and publishing a file step by step."""

from __future__ import annotations

import os
import random
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray._core.snapfile import STEPS, Publication, crc64, crc64_by_tables, unlink_all

from . import second_key_reader

CHECK = 0x995DC9BBDF1939FA
DIR_SYNCED, LAST = STEPS.index("dir_synced") + 1, len(STEPS)


class TestChecksum:
    def test_it_is_the_one_that_the_page_names(self) -> None:
        assert crc64([b"123456789"]) == crc64_by_tables(b"123456789") == CHECK
        assert crc64([]) == crc64([b""]) == 0

    def test_every_length_gives_what_the_tables_and_a_bytewise_one_give(self) -> None:
        data = random.Random(1).randbytes(1000)
        for size in [*range(600), 1000]:
            wanted = crc64_by_tables(data[:size])
            assert crc64([memoryview(data)[:size]]) == wanted, size
            if size % 61 == 0:
                assert second_key_reader.crc64(data[:size]) == wanted

    @given(st.lists(st.binary(max_size=700), max_size=6), st.integers(0, 2**64 - 1))
    def test_pieces_are_as_one(self, pieces: list[bytes], crc: int) -> None:
        whole = b"".join(pieces)
        assert crc64(pieces, crc) == crc64([whole], crc) == crc64_by_tables(whole, crc)

    def test_what_is_not_bytes_is_refused(self) -> None:
        with pytest.raises(TypeError):
            crc64(["text"])  # type: ignore[list-item]


def publication(directory: Path, parts: list[Any], durable: bool = True) -> Publication:
    for epoch in (1, 2, 3):
        if not (directory / f"epoch-{epoch:010}.claim").exists():
            (directory / f"epoch-{epoch:010}.claim").touch()
    own, following = (str(directory / f"epoch-{epoch:010}.claim") for epoch in (3, 4))
    where = str(directory)
    return Publication(where, f"{where}/.tmp", f"{where}/final", own, following, 3, parts, durable)


class TestPublication:
    @pytest.mark.parametrize("durable", [True, False])
    def test_at_once(self, tmp_path: Path, durable: bool) -> None:
        parts = [b"a" * 1000, bytearray(b"b"), b"", memoryview(b"c" * 70_000)]
        file = publication(tmp_path, parts, durable)
        assert file.run(LAST) and file.step == LAST
        assert (tmp_path / "final").read_bytes() == b"".join(parts)
        assert (tmp_path / "final").stat().st_mode & 0o777 == 0o600
        assert not (tmp_path / ".tmp").exists()

    def test_step_by_step(self, tmp_path: Path) -> None:
        file = publication(tmp_path, [b"head", b"body"])
        seen = []
        for step, name in enumerate(STEPS, 1):
            assert file.run(step) and file.step == step
            there = tmp_path / (".tmp" if step <= STEPS.index("fence_checked") + 1 else "final")
            seen.append((name, there.read_bytes()))
        assert dict(seen)["temp_created"] == b"" and dict(seen)["half_written"] == b"head"
        assert all(content == b"headbody" for _, content in seen[2:])

    def test_more_pieces_than_one_call_takes(self, tmp_path: Path) -> None:
        parts = [bytes([i % 251]) * (i % 7) for i in range(5000)]
        publication(tmp_path, parts).run(LAST)
        assert (tmp_path / "final").read_bytes() == b"".join(parts)

    def test_a_successor_that_is_there_before_the_rename(self, tmp_path: Path) -> None:
        file = publication(tmp_path, [b"x"])
        (tmp_path / "epoch-0000000004.claim").touch()
        assert not file.run(LAST)
        assert file.step == STEPS.index("fence_checked") + 1 and not (tmp_path / "final").exists()

    @pytest.mark.parametrize("successor", ["epoch-0000000004.claim", "epoch-0000000017.claim"])
    def test_a_successor_that_comes_after_it(self, tmp_path: Path, successor: str) -> None:
        file = publication(tmp_path, [b"x"])
        assert file.run(DIR_SYNCED)
        (tmp_path / successor).touch()
        assert not file.run(LAST) and file.step == LAST

    def test_a_claim_that_is_gone(self, tmp_path: Path) -> None:
        file = publication(tmp_path, [b"x"])
        file.run(DIR_SYNCED)
        (tmp_path / "epoch-0000000003.claim").unlink()
        assert not file.run(LAST)

    def test_nothing_is_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "final").write_bytes(b"old")
        file = publication(tmp_path, [b"new"])
        with pytest.raises(FileExistsError):
            file.run(LAST)
        assert (tmp_path / "final").read_bytes() == b"old" and file.step == STEPS.index("fence_checked") + 1

    def test_a_directory_that_is_gone(self, tmp_path: Path) -> None:
        file = publication(tmp_path, [b"x"])
        moved = tmp_path.with_name("moved")
        tmp_path.rename(moved)
        with pytest.raises(FileNotFoundError):
            file.run(LAST)
        assert file.step == 0
        moved.rename(tmp_path)

    def test_an_unfinished_file_of_the_same_name_is_left_alone(self, tmp_path: Path) -> None:
        os.symlink("/dev/full", tmp_path / ".tmp")
        file = publication(tmp_path, [b"x"])
        with pytest.raises(FileExistsError):
            file.run(LAST)
        assert file.step == 0 and (tmp_path / ".tmp").is_symlink()

    def test_a_write_that_fails(self, tmp_path: Path) -> None:
        file = publication(tmp_path, [b"head", b"x" * 10_000])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                file.run(LAST)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)
        assert file.step == STEPS.index("half_written") + 1 and not (tmp_path / "final").exists()

    def test_pieces_that_are_not_bytes_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(TypeError):
            publication(tmp_path, ["text"])


def test_removing(tmp_path: Path) -> None:
    own, following = tmp_path / "own", tmp_path / "following"
    files = [tmp_path / name for name in "abc"]
    for path in (own, files[0], files[2]):
        path.touch()
    assert unlink_all(map(str, files), str(own), str(following))
    assert not any(path.exists() for path in files)
    files[0].touch()
    following.touch()
    assert not unlink_all([str(files[0])], str(own), str(following)) and files[0].exists()
    following.unlink()
    with pytest.raises(IsADirectoryError):
        unlink_all([str(tmp_path), str(files[0])], str(own), str(following))
    assert files[0].exists()
