"""The checksum of payloads, and publishing a file step by step."""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import random
import resource
import signal
import struct
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftray._core.snapfile import (
    STEPS,
    Publication,
    ReadAhead,
    Source,
    crc64,
    crc64_by_tables,
    read_into,
    unlink_all,
    unset_memory,
)
from ftray.checkpoint import CheckpointFormatError, capture, format

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


class TestReading:
    @pytest.mark.parametrize("size", [0, 1, 300_000, 9 << 20])
    def test_memory_is_filled_and_summed(self, tmp_path: Path, size: int) -> None:
        content = random.Random(size).randbytes(size)
        (tmp_path / "file").write_bytes(b"before" + content + b"behind")
        memory = unset_memory(size)
        assert type(memory) is bytearray and len(memory) == size
        with open(tmp_path / "file", "rb", buffering=0) as file:
            file.seek(6)
            assert read_into(file.fileno(), memory, 5) == (size, crc64([content], 5))
            assert memory == content and file.read() == b"behind"

    def test_the_end_of_the_file_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"abc")
        with open(tmp_path / "file", "rb", buffering=0) as file:
            assert read_into(file.fileno(), bytearray(4)) == (3, crc64([b"abc"]))

    def test_what_cannot_be_read_is_told(self, tmp_path: Path) -> None:
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(IsADirectoryError):
                read_into(fd, bytearray(1))
            with pytest.raises(BufferError):
                read_into(fd, b"constant")  # type: ignore[arg-type]
        finally:
            os.close(fd)

    @pytest.mark.parametrize("cut", [1, 100, 5 << 20, (10 << 20) + 7])
    def test_a_snapshot_cut_short_is_told_wherever_it_ends(self, tmp_path: Path, cut: int) -> None:
        parts = format.encode({"class": "C"}, [[b"s" * (1 << 20)], [random.Random(1).randbytes(10 << 20)]])
        whole = b"".join(parts)
        (tmp_path / "file").write_bytes(whole)
        with open(tmp_path / "file", "rb", buffering=0) as file:
            assert format.read(file) == format.read(io.BytesIO(whole))
        # The header says how long the file was: what is missing is found before, or if it goes meanwhile.
        with open(tmp_path / "file", "rb+", buffering=0) as file:
            header = format.read_header(file)
            os.truncate(tmp_path / "file", len(whole) - cut)
            with pytest.raises(CheckpointFormatError, match="bytes long where"):
                format.read_header(file)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(format, "read_header", lambda _: header)
                file.seek(header.payload_offset)
                with pytest.raises(CheckpointFormatError, match="truncated"):
                    format.read(file)

    def test_each_changed_byte_of_a_large_payload_is_found(self, tmp_path: Path) -> None:
        whole = bytearray(b"".join(format.encode({"class": "C"}, [[bytes(5 << 20)]])))
        for at in (100_000, 256 << 10, (5 << 20) - 1):
            whole[at] ^= 1
            path = tmp_path / "file"
            path.write_bytes(whole)
            with path.open("rb", buffering=0) as file, pytest.raises(CheckpointFormatError, match="CRC-64"):
                format.read(file)
            whole[at] ^= 1


class TestReadAhead:
    """From a pipe: the thread has begun when what was written is gone, and goes on when there is more."""

    @pytest.fixture
    def pipe(self) -> Iterator[tuple[int, int]]:
        ends = os.pipe()
        yield ends
        for end in ends:
            os.close(end)

    def begun(self, pipe: tuple[int, int], parts: list[bytearray]) -> ReadAhead:
        os.write(pipe[1], b"ab")
        reading = ReadAhead(pipe[0], parts)
        deadline_s = time.monotonic() + 60
        while struct.unpack("i", fcntl.ioctl(pipe[0], termios.FIONREAD, bytes(4)))[0]:
            assert time.monotonic() < deadline_s, "the thread has not begun"
            time.sleep(0.001)
        return reading

    def test_what_it_reads_is_waited_for(self, pipe: tuple[int, int]) -> None:
        parts = [bytearray(3), bytearray(), bytearray(400_000)]
        reading = self.begun(pipe, parts)
        content = b"ab" + random.Random(3).randbytes(400_001)
        with open(os.dup(pipe[1]), "wb", buffering=0) as file:
            writer = threading.Thread(target=lambda: file.write(content[2:]))
            writer.start()
            assert reading.take() == (len(content), crc64([content]))
            writer.join()
        assert b"".join(parts) == content
        assert reading.take() == (len(content), crc64([content])), "and again"

    def test_memory_is_not_let_go_while_it_is_written(self, pipe: tuple[int, int]) -> None:
        memory = bytearray(4)
        reading = self.begun(pipe, [memory])
        with pytest.raises(BufferError):
            memory.clear()
        os.write(pipe[1], b"cd")
        del reading  # waits
        assert memory == b"abcd"
        memory.clear()

    def test_a_fork_does_not_wait_for_a_thread_that_it_does_not_have(self, pipe: tuple[int, int]) -> None:
        reading = self.begun(pipe, [bytearray(4)])
        child = os.fork()
        if child == 0:
            taken = reading.take()
            del reading
            os._exit(0 if taken is None else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        os.write(pipe[1], b"cd")
        assert reading.take() == (4, crc64([b"abcd"]))

    def test_the_end_of_the_file_and_errors_are_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"abc")
        for path, wanted in ((tmp_path / "file", (3, crc64([b"abc"]))), (tmp_path, None)):
            fd = os.open(path, os.O_RDONLY)
            found = None
            deadline_s = time.monotonic() + 60
            while found is None and time.monotonic() < deadline_s:
                os.lseek(fd, 0, os.SEEK_SET)
                reading = ReadAhead(fd, [bytearray(2), bytearray(2)])
                time.sleep(0.001)  # else who asks is first: then nothing is read
                try:
                    found = reading.take()
                except IsADirectoryError:
                    break
            os.close(fd)
            assert found == wanted
        with pytest.raises(OSError, match="Bad file"):
            ReadAhead(fd, [])


class TestSource:
    def test_states_with_large_contents_come_back(self) -> None:
        state = {
            "bytes": random.Random(2).randbytes(6 << 20),
            "bytearray": bytearray(b"y" * (5 << 20)),
            "text": "\u00e4" * (3 << 20),
            "small": [{"k": i} for i in range(30_000)],
            "end": b"z" * 70_000,
        }
        captured = capture.StateCapturer().capture(state)
        stream = bytearray(b"".join(captured.segments[0]))
        assert len(stream) > 4 << 20
        again: Any = capture.load([stream])
        assert again == state and type(again["bytearray"]) is bytearray
        again["bytearray"][0] = 1  # memory of its own

    def test_a_stream_that_ends_early_is_told(self) -> None:
        whole = pickle.dumps(b"x" * (5 << 20), 5)
        for size in (0, 5, 4 << 20, len(whole) - 1):
            with pytest.raises((EOFError, pickle.UnpicklingError)):
                pickle.Unpickler(Source(whole[:size])).load()

    def test_it_is_a_file(self) -> None:
        data = b"one\ntwo\nthree"
        ours, theirs = Source(data), io.BytesIO(data)
        one, other = bytearray(2), bytearray(2)
        for _ in range(2):
            assert ours.read(2) == theirs.read(2)
            assert ours.readinto(one) == theirs.readinto(other) and one == other
            assert ours.readline() == theirs.readline()
        assert ours.read() == theirs.read() and ours.read() == ours.readline() == b""
        assert ours.readinto(one) == 0
        with pytest.raises(BufferError):
            ours.readinto(b"constant")  # type: ignore[arg-type]
