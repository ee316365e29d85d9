"""The compiled reader of journal segments, held against a plain one."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ftray._core import segscan
from ftray.checkpoint.segments import CLOSED, DATA, END, MARK, encode_record

SEED = 77
Found = tuple[int, int, int, int, int]


def record_at(data: bytes, offset: int, seed: int) -> Found | None:
    """As docs/storage-format.md has it."""
    if offset + 24 > len(data):
        return None
    crc, word, position, synced = struct.unpack_from("<IIQQ", data, offset)
    kind, length = word >> 28, word & 0x0FFFFFFF
    end = offset + 24 + length
    padding = data[end : end + -length % 8]
    whole = len(padding) == -length % 8 and not any(padding) and end <= len(data)
    if kind not in (DATA, MARK, END, CLOSED) or (kind == DATA) != bool(length) or length > 64 << 20:
        return None
    if not whole or synced > position or zlib.crc32(data[offset + 4 : end], seed) != crc:
        return None
    return offset, kind, position, synced, length


def records(data: bytes, offset: int, seed: int, first: int) -> tuple[list[Found], int]:
    found: list[Found] = []
    last = first - 1 if first else None
    while (one := record_at(data, offset, seed)) is not None:
        _, kind, position, _, length = one
        if last is not None and position != last + (kind == DATA):
            break
        found.append(one)
        last, offset = position, offset + 24 + length + -length % 8
        if kind in (END, CLOSED):
            break
    return found, offset


pieces = st.one_of(
    st.binary(max_size=40),
    st.integers(0, 300).map(bytes),
    st.builds(
        lambda position, payload, lag: encode_record(SEED, position, [payload], synced=position - lag),
        st.integers(1, 5),
        st.binary(min_size=1, max_size=90),
        st.integers(0, 1),
    ),
    st.builds(lambda position, kind: encode_record(SEED, position, [], kind=kind), st.integers(1, 5),
              st.sampled_from([MARK, END, CLOSED])),
)  # fmt: skip


@settings(max_examples=300)
@given(st.lists(pieces, max_size=8), st.integers(0, 4), st.integers(0, 60), st.data())
def test_it_finds_what_a_plain_reader_finds(
    parts: list[bytes], first: int, offset: int, more: st.DataObject
) -> None:
    data = b"".join(parts)
    if data:
        at = more.draw(st.integers(0, len(data) - 1))
        data = data[:at] + bytes([data[at] ^ more.draw(st.sampled_from([0, 0, 1, 128]))]) + data[at + 1 :]
    for start in (0, offset):
        assert segscan.records(data, start, SEED, first) == records(data, start, SEED, first)
        assert segscan.record(data, start, SEED) == record_at(data, start, SEED)


def test_a_run_of_records_is_found_whole() -> None:
    data = b"".join(encode_record(SEED, n, [b"x" * n], synced=n - 1) for n in range(1, 200))
    found, end = segscan.records(data + bytes(5000), 0, SEED, 1)
    assert [f[2] for f in found] == list(range(1, 200)) and end == len(data)
    assert segscan.records(data, 0, SEED + 1, 1) == ([], 0)
    assert segscan.records(data, len(data) + 1, SEED, 1) == ([], len(data) + 1)


def test_lengths_that_lead_out_of_the_segment_are_no_records() -> None:
    for length in (1, 40, 0x0FFFFFFF):
        data = struct.pack("<IIQQ", 0, DATA << 28 | length, 1, 0) + b"x" * 30
        assert segscan.record(data, 0, SEED) is None
    assert segscan.record(b"x" * 23, 0, SEED) is None
    assert segscan.record(b"", 2**63, SEED) is None


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "segment"
    for size in (0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, 300_001):
        content = os.urandom(size)
        path.write_bytes(content)
        assert segscan.read_descending(str(path)) == content


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        segscan.read_descending(str(tmp_path / "nowhere"))
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OSError, match="link"):
        segscan.read_descending(str(tmp_path / "link"))
    with pytest.raises(IsADirectoryError):
        segscan.read_descending(str(tmp_path))
