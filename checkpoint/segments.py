"""The journal segment, format version 1: encoding and scanning bytes. Pure; knows no store and no file.

Layout (little-endian; docs/storage-format.md): a header of 4096 bytes that holds the same thing twice, at 0
and at 2048; then records, each of 24 bytes (CRC-32 u32, kind in the upper 4 bits and payload length in the
lower 28 of one u32, position u64, synced position u64) and its payload, padded with zeros to a multiple of
8; then zeros.

The CRC of a record goes on from one over the segment's random id, its epoch and its number, so that what a
reused block holds of another segment, or of this one in another life, is no record. `synced`: all positions
up to there were durable when the record was written; so damage before it is told from a tail that was never
finished.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ftray._core import segscan

from .errors import CheckpointFormatError
from .journal import MAX_RECORD_BYTES, Buffer

MAGIC = b"\x89FTJNL\r\n"
FORMAT_VERSION = 1
HEADER_SIZE = 4096
_COPY = 2048
_FIXED = struct.Struct("<8sHHIQQQ16s16sI")
_RECORD = struct.Struct("<IIQQ")
RECORD_SIZE = _RECORD.size
_CRC = struct.Struct("<I")
DATA, MARK, END, CLOSED = 1, 2, 3, 4
MODES = {1: "process", 2: "power"}
_NUMBERS = {name: number for number, name in MODES.items()}


class SegmentHeader(NamedTuple):
    """What a segment says of itself. ``first_position`` is 0 in all but the first segment of an epoch."""

    key: str
    epoch: int
    number: int
    first_position: int
    durability: str
    size: int
    segment_id: bytes
    boot_id: bytes

    @property
    def seed(self) -> int:
        """Where the CRC of this segment's records begins."""
        return zlib.crc32(self.segment_id + struct.pack("<QI", self.epoch, self.number))


class Record(NamedTuple):
    """One record of a segment, as it lies there."""

    offset: int
    kind: int
    position: int
    synced: int
    length: int

    @property
    def start(self) -> int:
        """Offset of the payload."""
        return self.offset + RECORD_SIZE

    @property
    def next_offset(self) -> int:
        """Offset of what follows."""
        return self.start + self.length + -self.length % 8


class Scan(NamedTuple):
    """All that the bytes of one segment tell.

    ``records`` are the unbroken run of valid records from the start. ``broken`` is the offset of what
    follows it and is neither zeros nor a record, None if there is none. ``beyond`` are valid records after
    that. ``length`` is that of the bytes.
    """

    header: SegmentHeader
    records: list[Record]
    broken: int | None
    beyond: list[Record]
    length: int

    @property
    def short(self) -> bool:
        """Bytes are missing at the end."""
        return self.length < self.header.size

    @property
    def closed(self) -> bool:
        """The writer said that nothing follows, after it had made all durable."""
        return bool(self.records) and self.records[-1].kind == CLOSED

    @property
    def data(self) -> list[Record]:
        """The records that have positions of their own."""
        return [r for r in self.records if r.kind == DATA]

    @property
    def ended(self) -> bool:
        """The writer went on to another segment."""
        return bool(self.records) and self.records[-1].kind == END

    @property
    def synced(self) -> int:
        """Up to where everything was durable, by what stands anywhere in the segment."""
        return max((r.synced for r in (*self.records, *self.beyond)), default=0)


def encode_header(header: SegmentHeader) -> bytes:
    """Return the first `HEADER_SIZE` bytes of a segment."""
    key = header.key.encode()
    copy = _FIXED.pack(
        MAGIC,
        FORMAT_VERSION,
        _NUMBERS[header.durability],
        header.number,
        header.epoch,
        header.first_position,
        header.size,
        header.segment_id,
        header.boot_id,
        len(key),
    )
    copy += key
    copy += _CRC.pack(zlib.crc32(copy))
    if len(copy) > _COPY:
        raise ValueError(f"a key of {len(key)} bytes does not fit into the header")
    return copy.ljust(_COPY, b"\0") * 2


def _decode_copy(data: bytes) -> SegmentHeader:
    if len(data) < _COPY:
        raise CheckpointFormatError("truncated inside the header of the segment")
    magic, version, mode, number, epoch, first, size, segment_id, boot, key_length = _FIXED.unpack_from(data)
    if magic != MAGIC:
        raise CheckpointFormatError(f"not a journal segment: begins with {magic!r}")
    end = _FIXED.size + key_length
    if end + 4 > _COPY or zlib.crc32(data[:end]) != _CRC.unpack_from(data, end)[0]:
        raise CheckpointFormatError("the header of the segment does not match its checksum")
    if version != FORMAT_VERSION:
        raise CheckpointFormatError(
            f"a journal segment of format version {version}; this release reads version {FORMAT_VERSION}"
        )
    if mode not in MODES:
        raise CheckpointFormatError(f"durability {mode} of the segment is not known; known: {MODES}")
    key = data[_FIXED.size : end].decode()
    return SegmentHeader(key, epoch, number, first, MODES[mode], size, segment_id, boot)


def decode_header(data: bytes) -> SegmentHeader:
    """Read the header from the first bytes of a segment: either copy is enough.

    Raises
    ------
    CheckpointFormatError
        Neither copy is as it was written.
    """
    try:
        return _decode_copy(data[:_COPY])
    except CheckpointFormatError:
        try:
            return _decode_copy(data[_COPY:HEADER_SIZE])
        except CheckpointFormatError:
            pass
        raise


def encode_record(
    seed: int, position: int, parts: Sequence[Buffer], *, synced: int = 0, kind: int = DATA
) -> bytes:
    """Return one record, padded; marks and ends have no payload."""
    payload = b"".join(parts)
    if (kind == DATA) != bool(payload) or len(payload) > MAX_RECORD_BYTES:
        raise ValueError(f"a record of kind {kind} with {len(payload)} bytes")
    rest = struct.pack("<IQQ", kind << 28 | len(payload), position, synced)
    crc = zlib.crc32(payload, zlib.crc32(rest, seed))
    return _CRC.pack(crc) + rest + payload + bytes(-len(payload) % 8)


def _record_at(data: bytes, offset: int, seed: int) -> Record | None:
    """Return the record at an offset if one stands there that verifies."""
    found = segscan.record(data, offset, seed)
    return None if found is None else Record(*found)


def _beyond(data: bytes, offset: int, seed: int) -> Iterator[Record]:
    while (found := segscan.first_nonzero(data, offset)) is not None:
        offset = found & ~7
        if (record := _record_at(data, offset, seed)) is not None:
            yield record
            offset = record.next_offset
        else:
            offset += 8


def scan(data: bytes) -> Scan:
    """Read a segment from its bytes.

    Raises
    ------
    CheckpointFormatError
        Its header cannot be read. Whatever else is wrong is told in the result.
    """
    header = decode_header(data)
    seed = header.seed
    found, offset = segscan.records(data, HEADER_SIZE, seed, header.first_position)
    records = list(map(Record._make, found))
    if segscan.first_nonzero(data, offset) is None:
        return Scan(header, records, None, [], len(data))
    return Scan(header, records, offset, list(_beyond(data, offset, seed)), len(data))


def first_position(read: Callable[[int], bytes]) -> int | None:
    """Return where a segment begins, from its first bytes; None if nothing there says so.

    Raises
    ------
    CheckpointFormatError
    """
    data = read(HEADER_SIZE)
    header = decode_header(data)
    if header.first_position:
        return header.first_position
    data += read(RECORD_SIZE)
    if len(data) < HEADER_SIZE + RECORD_SIZE:
        return None
    length = _RECORD.unpack_from(data, HEADER_SIZE)[1] & 0x0FFFFFFF
    data += read(min(length, MAX_RECORD_BYTES) + 7)
    record = _record_at(data, HEADER_SIZE, header.seed)
    return None if record is None else record.position + (record.kind != DATA)


def payload_of(data: bytes, record: Record) -> bytes:
    """Return the payload of a record of `scan`."""
    return data[record.start : record.start + record.length]
