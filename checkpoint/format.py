"""The snapshot file, format version 2: encoding, reading, verification. Knows no store.

Layout (little-endian; see docs/storage-format.md):

    prefix   32 bytes   magic 8s, format version u16, zero u16, header length u32, payload length u64,
                        CRC-32 of the header u32, CRC-32 of the 28 bytes before u32
    header   JSON       who wrote what, segment lengths, CRC-64 of the payload; padded with blanks to 64 bytes
    payload             the pickle stream, then the out-of-band buffers, each padded with zeros to 64 bytes
    footer   24 bytes   length of the whole file u64, the payload's CRC-64 u64, end magic 8s

Version 1 differs in the digest alone: SHA-256, and its first 8 bytes in the footer. It is read, not written.

Invariants: a file verifies only if every byte of it is as written; what a reader allocates is bounded by
the file's own length; a format once released is read for ever.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple, Protocol

from ftray._core.snapfile import ReadAhead, crc64, read_into, unset_memory

from .errors import CheckpointFormatError

FORMAT_VERSION = 2
MAGIC = b"\x89FTCKP\r\n"
END_MAGIC = b"FTCKPEND"
_PREFIX = struct.Struct("<8sHHIQII")
_FOOTER = struct.Struct("<Q8s8s")
_ALIGN = 64
_CHUNK = 1 << 20
_MAX_HEADER = 16 << 20

Buffer = bytes | bytearray | memoryview


class _Digest(Protocol):
    def update(self, data: Buffer, /) -> None: ...
    def take(self, file: BinaryIO, memory: bytearray) -> int: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...


def _fill(file: BinaryIO, memory: bytearray) -> int:
    """Read until `memory` is full or the file ends; how many bytes."""
    view, done = memoryview(memory), 0
    while done < len(memory):
        got = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not got:
            break
        done += got
    return done


class _Crc64:
    """CRC-64/XZ in the shape of hashlib's digests; in the footer it is a little-endian number."""

    def __init__(self, crc: int = 0) -> None:
        self._crc = crc

    def update(self, data: Buffer) -> None:
        self._crc = crc64([data], self._crc)

    def take(self, file: BinaryIO, memory: bytearray) -> int:
        """Fill `memory` from a file, and go on with what was read; how many bytes that was."""
        if isinstance(file, io.FileIO):  # nothing between it and its descriptor
            got, self._crc = read_into(file.fileno(), memory, self._crc)
            return got
        got = _fill(file, memory)
        self.update(memory)
        return got

    def digest(self) -> bytes:
        return self._crc.to_bytes(8, "little")

    def hexdigest(self) -> str:
        return f"{self._crc:016x}"


class _Sha256:
    """That of version 1."""

    def __init__(self) -> None:
        self._sha = hashlib.sha256()
        self.update, self.digest, self.hexdigest = self._sha.update, self._sha.digest, self._sha.hexdigest

    def take(self, file: BinaryIO, memory: bytearray) -> int:
        """See `_Crc64.take`."""
        got = _fill(file, memory)
        self.update(memory)
        return got


_DIGESTS: dict[int, tuple[str, str, Callable[[], _Digest]]] = {
    1: ("sha256", "SHA-256", _Sha256),
    2: ("crc64", "CRC-64", _Crc64),
}
"""By format version: its name in the header, its name for people, what computes it."""


class Header(NamedTuple):
    """What a snapshot says of itself.

    ``fields`` are the JSON header: class, module, state_version, key, history, epoch, sequence, boot_id,
    created_unix_s, calls, reason, deleted, python, digest, segments.
    """

    fields: Mapping[str, Any]
    payload_offset: int
    payload_length: int
    file_length: int
    version: int = FORMAT_VERSION

    @property
    def segments(self) -> list[int]:
        """Lengths in bytes of the pickle stream and of each buffer."""
        return list(self.fields["segments"])


def split_ledger(header: Header, segments: list[bytearray]) -> tuple[list[bytearray], bytes | None]:
    """Return the segments of the state, and the ledger behind them of an exactly-once actor."""
    if not header.fields.get("ledger"):
        return segments, None
    return segments[:-1], bytes(segments[-1])


def _padding(length: int) -> int:
    return -length % _ALIGN


def encode(fields: Mapping[str, Any], segments: Sequence[Sequence[Buffer]]) -> list[Buffer]:
    """Return the parts of a snapshot file, in order, without copying `segments`.

    Parameters
    ----------
    fields : mapping
        JSON values; ``digest`` and ``segments`` are added.
    segments : sequence of sequence of bytes-like
        The pickle stream and its out-of-band buffers, each in pieces.
    """
    payload: list[Buffer] = []
    lengths = [sum(len(piece) for piece in segment) for segment in segments]
    for segment, length in zip(segments, lengths, strict=True):
        payload += [*segment, bytes(_padding(length))]
    crc = crc64(payload)
    payload_length = sum(length + _padding(length) for length in lengths)
    text = json.dumps(
        {**fields, "digest": f"crc64:{crc:016x}", "segments": lengths},
        ensure_ascii=True,
        sort_keys=True,
    ).encode()
    text += b" " * _padding(_PREFIX.size + len(text))
    start = _PREFIX.pack(MAGIC, FORMAT_VERSION, 0, len(text), payload_length, zlib.crc32(text), 0)[:-4]
    head = start + struct.pack("<I", zlib.crc32(start)) + text
    length = len(head) + payload_length + _FOOTER.size
    return [head, *payload, _FOOTER.pack(length, crc.to_bytes(8, "little"), END_MAGIC)]


def _read_exactly(file: BinaryIO, size: int, what: str) -> bytes:
    data = bytearray(size)
    done = _fill(file, data)  # files of object stores give less than they are asked for
    if done != size:
        raise CheckpointFormatError(f"truncated: {done} of {size} bytes of the {what}")
    return bytes(data)


def read_header(file: BinaryIO) -> Header:
    """Read and check prefix and header from the start of `file`; the payload is not looked at.

    Raises
    ------
    CheckpointFormatError
        Saying which part is wrong.
    """
    file_length = file.seek(0, 2)
    file.seek(0)
    start = _read_exactly(file, _PREFIX.size, "prefix")
    magic, version, _, header_length, payload_length, header_crc, prefix_crc = _PREFIX.unpack(start)
    if magic != MAGIC:
        raise CheckpointFormatError(f"not a snapshot: begins with {magic!r}")
    if zlib.crc32(start[:-4]) != prefix_crc:
        raise CheckpointFormatError("the prefix does not match its checksum")
    if version not in _DIGESTS:
        raise CheckpointFormatError(
            f"format version {version}; this release reads versions 1 to {FORMAT_VERSION}"
        )
    expected = _PREFIX.size + header_length + payload_length + _FOOTER.size
    if expected != file_length:
        raise CheckpointFormatError(f"{file_length} bytes long where {expected} were written")
    if header_length > _MAX_HEADER:
        raise CheckpointFormatError(f"a header of {header_length} bytes; allowed: {_MAX_HEADER}")
    text = _read_exactly(file, header_length, "header")
    if zlib.crc32(text) != header_crc:
        raise CheckpointFormatError("the header does not match its checksum")
    header = Header(json.loads(text), _PREFIX.size + header_length, payload_length, file_length, version)
    if sum(n + _padding(n) for n in header.segments) != payload_length:
        raise CheckpointFormatError("the segment lengths do not add up to the payload")
    return header


def _check(file: BinaryIO, header: Header, digest: _Digest) -> None:
    """Hold header and footer, which is what `file` has left, against the digest of the payload."""
    name, known_as, _ = _DIGESTS[header.version]
    said, _, hexadecimal = str(header.fields["digest"]).partition(":")
    if said != name:
        raise CheckpointFormatError(f"digest {said!r}; format version {header.version} has {name}")
    if digest.hexdigest() != hexadecimal:
        raise CheckpointFormatError(f"the payload does not match its {known_as}")
    length, start, end = _FOOTER.unpack(_read_exactly(file, _FOOTER.size, "footer"))
    if (length, start, end) != (header.file_length, digest.digest()[:8], END_MAGIC):
        raise CheckpointFormatError("the footer does not match the file")


def read(file: BinaryIO) -> tuple[Header, list[bytearray]]:
    """Read a whole snapshot and verify every byte.

    Returns
    -------
    header : Header
    segments : list of bytearray
        The pickle stream and its buffers, each in memory of its own, so that a restored array keeps only
        itself alive.
    """
    header = read_header(file)
    digest = _DIGESTS[header.version][2]()
    segments, parts = _memory(header)
    for part in parts:
        done = digest.take(file, part)
        if done != len(part):
            raise CheckpointFormatError(f"truncated: {done} of {len(part)} bytes of a segment")
    _check(file, header, digest)
    return header, segments


def _memory(header: Header) -> tuple[list[bytearray], list[bytearray]]:
    """Return memory for the segments, and that for all of the payload, the padding between them included."""
    segments = [unset_memory(size) for size in header.segments]
    parts = [part for segment in segments for part in (segment, bytearray(_padding(len(segment))))]
    return segments, parts


class Reading:
    """A snapshot that a thread of its own reads, which needs no interpreter: beside it Python goes on.

    Parameters
    ----------
    file : io.FileIO
        At any place. It must stay open until `take` has returned.

    Raises
    ------
    CheckpointFormatError
        As `read`, of prefix and header.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._header = file, read_header(file)
        if self._header.version != FORMAT_VERSION:
            raise CheckpointFormatError(f"format version {self._header.version} is not read ahead")
        self._segments, parts = _memory(self._header)
        self._payload = ReadAhead(file.fileno(), parts)

    def take(self) -> tuple[Header, list[bytearray]] | None:
        """Return what `read` would, waiting for it; None if the thread has not got to run: faster without."""
        found = self._payload.take()
        if found is None:
            return None
        done, crc = found
        if done != self._header.payload_length:
            raise CheckpointFormatError(f"truncated: {done} of {self._header.payload_length} bytes")
        _check(self._file, self._header, _Crc64(crc))
        return self._header, self._segments


def verify(file: BinaryIO) -> Header:
    """Verify every byte of a snapshot in constant memory."""
    header = read_header(file)
    digest = _DIGESTS[header.version][2]()
    left = header.payload_length
    while left:
        chunk = _read_exactly(file, min(left, _CHUNK), "payload")
        digest.update(chunk)
        left -= len(chunk)
    _check(file, header, digest)
    return header


def encode_record(fields: Mapping[str, Any]) -> bytes:
    """Encode a small record (claim, seal): its CRC-32 in hexadecimal, a blank, one line of JSON."""
    text = json.dumps(fields, ensure_ascii=True, sort_keys=True).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def decode_record(raw: bytes) -> dict[str, Any]:
    """Undo `encode_record`; raises `CheckpointFormatError` if a byte has changed."""
    crc, _, text = raw.rstrip(b"\n").partition(b" ")
    if crc != b"%08x" % zlib.crc32(text):
        raise CheckpointFormatError(f"the record does not match its checksum: {raw[:60]!r}")
    fields = json.loads(text)
    if not isinstance(fields, dict):
        raise CheckpointFormatError(f"the record is not a JSON object: {raw[:60]!r}")
    return fields
