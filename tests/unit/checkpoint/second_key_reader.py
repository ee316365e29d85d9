"""A second reader of whole keys, on disks and in object stores, written from docs/storage-format.md alone.

A key is given as a mapping of names to bytes: the files of its directory, or its objects. Nothing of ftray's
code is used but the other second reader, of journal segments.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from . import second_reader

Files = Mapping[str, bytes]


class Call(NamedTuple):
    """A CALL or START record, and what its blobs hold."""

    position: int
    kind: int
    method: str
    args: bytes
    status: int
    reply: bytes


class Key(NamedTuple):
    """What a key holds that counts."""

    snapshot: str
    header: dict[str, Any]
    state: Any
    calls: list[Call]


def line(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Read one line of CRC-32 and JSON; return it and what follows."""
    text, _, rest = data.partition(b"\n")
    crc, _, body = text.partition(b" ")
    assert int(crc, 16) == zlib.crc32(body)
    return json.loads(body), rest


def unpacked(data: bytes, kind: str) -> tuple[dict[str, Any], bytes]:
    """Read an object of a store of objects."""
    head, rest = line(data)
    assert head["kind"] == kind and head["length"] == len(rest)
    assert hashlib.sha256(rest).hexdigest() == head["sha256"]
    return head, rest


def crc64(data: bytes) -> int:
    """CRC-64/XZ, a byte at a time."""
    register = (1 << 64) - 1
    for byte in data:
        register = register >> 8 ^ CRC64[(register ^ byte) & 0xFF]
    return register ^ (1 << 64) - 1


def _crc64_of_byte(register: int) -> int:
    for _ in range(8):
        register = register >> 1 ^ (0xC96C5795D7870F42 if register & 1 else 0)
    return register


CRC64 = [_crc64_of_byte(byte) for byte in range(256)]


def snapshot(data: bytes) -> tuple[dict[str, Any], list[bytes]]:
    """Read a snapshot file: its header, and its segments."""
    assert data[:8] == bytes.fromhex("89 46 54 43 4B 50 0D 0A")
    version, zero, header_length, payload_length, header_crc, prefix_crc = struct.unpack_from(
        "<HHIQII", data, 8
    )
    assert version in (1, 2) and (zero, prefix_crc) == (0, zlib.crc32(data[:28]))
    raw = data[32 : 32 + header_length]
    assert zlib.crc32(raw) == header_crc and (32 + header_length) % 64 == 0
    payload = data[32 + header_length : 32 + header_length + payload_length]
    if version == 1:
        digest = hashlib.sha256(payload)
        said, start = f"sha256:{digest.hexdigest()}", digest.digest()[:8]
    else:
        said, start = f"crc64:{crc64(payload):016x}", struct.pack("<Q", crc64(payload))
    footer = data[32 + header_length + payload_length :]
    assert footer == struct.pack("<Q", len(data)) + start + b"FTCKPEND"
    header = json.loads(raw)
    assert header["digest"] == said
    segments, at = [], 0
    for length in header["segments"]:
        segments.append(payload[at : at + length])
        at += -(-length // 64) * 64
    assert at == len(payload)
    return header, segments


def blob(data: bytes) -> bytes:
    """Read a blob."""
    assert data[:8] == bytes.fromhex("89 46 54 42 4C 42 0D 0A") and data[8:12] == b"\x01\0\0\0"
    crc, length = struct.unpack_from("<IQ", data, 12)
    assert struct.unpack_from("<I", data, 28)[0] == zlib.crc32(data[:28])
    assert len(data) == 32 + length and zlib.crc32(data[32:]) == crc
    return data[32:]


def of_directory(files: Files) -> Key:
    """Read a key of a local store."""
    return _read(
        files, lambda name: files[name], _segments(files), lambda name: blob(files[_blob(files, name)])
    )


def of_objects(files: Files) -> Key:
    """Read a key of a store of objects."""

    def get(name: str) -> bytes:
        kind = "snapshot" if name.endswith(".ckpt") else "seal"
        head, rest = unpacked(files[name], kind)
        if "blob" not in head:
            return rest
        found = files[head["blob"]]
        assert len(found) == head["blob_length"]
        return found

    def get_blob(name: str) -> bytes:
        head, rest = unpacked(files[f"data/{name}"], "blob")
        return blob(files[head["blob"]] if "blob" in head else rest)

    return _read(files, get, _objects(files), get_blob)


def _blob(files: Files, name: str) -> str:
    (found,) = (f for f in files if re.fullmatch(rf"blob-\d{{10}}-{re.escape(name)}", f))
    return found


def _read(files: Files, get: Any, epochs: dict[int, tuple[int, list[bytes]]], get_blob: Any) -> Key:
    seals = sorted(name for name in files if re.fullmatch(r"epoch-\d{10}\.seal", name))
    sealed, _ = line(get(seals[-1]))
    ids = {}
    for name in files:
        if found := re.fullmatch(r"snap-(\d{10})-(\d{12})\.ckpt", name):
            ids[int(found[1]), int(found[2])] = name
    counting = [i for i in sorted(ids) if i[0] >= sealed["epoch"] or f"{i[0]}-{i[1]}" in sealed["line"]]
    header, segments = snapshot(get(ids[counting[-1]]))
    assert (header["epoch"], header["sequence"]) == counting[-1]
    if header.get("ledger"):
        segments = segments[:-1]
    state = pickle.loads(segments[0], buffers=[bytearray(s) for s in segments[1:]])
    records = list(_chained(epochs, header.get("journal_position", 0)))
    void = [r for _, p in records if p[0] == 131 for r in [json.loads(p[1:])]]
    calls = [
        _call(position, payload, get_blob)
        for position, payload in records
        if payload[0] in (1, 2) and not any(v["first"] <= position <= v["last"] for v in void)
    ]
    return Key(f"{counting[-1][0]}-{counting[-1][1]}", header, state, calls)


def _chained(epochs: dict[int, tuple[int, list[bytes]]], after: int) -> Iterator[tuple[int, bytes]]:
    """An epoch's records count up to, not including, the lowest first position of all later epochs."""
    expected = after + 1
    for epoch in sorted(epochs):
        first, payloads = epochs[epoch]
        limit = min([f for e, (f, _) in epochs.items() if e > epoch], default=1 << 63)
        for position, payload in enumerate(payloads, first):
            if after < position < limit:
                assert position == expected
                expected += 1
                yield position, payload


def _segments(files: Files) -> dict[int, tuple[int, list[bytes]]]:
    found: dict[int, tuple[int, list[bytes]]] = {}
    for name in sorted(files):
        if not name.startswith("journal-"):
            continue
        header = second_reader.header(files[name])
        if not header:
            continue
        epoch: Any = header["epoch"]
        if header["number"] == 1:
            first: Any = header["first"]
            found[epoch] = (first, [])
        found[epoch][1].extend(p for kind, _, p in second_reader.records(files[name]) if kind == 1)
    return found


def _objects(files: Files) -> dict[int, tuple[int, list[bytes]]]:
    found: dict[int, tuple[int, list[bytes]]] = {}
    for name in sorted(files):
        if name.startswith("journal/open-"):
            epoch = int(name.removeprefix("journal/open-"))
            found[epoch] = (json.loads(unpacked(files[name], "opening")[1])["first"], [])
    for name in sorted(files):
        if not re.fullmatch(r"journal/\d{20}", name):
            continue
        head, payload = unpacked(files[name], "journal")
        assert head["number"] == int(name[-20:])
        at = 0
        while at < len(payload):
            (size,) = struct.unpack_from("<I", payload, at)
            first, records = found[head["epoch"]]
            assert head["count"] and head["first"] <= first + len(records)
            records.append(payload[at + 4 : at + 4 + size])
            at += 4 + size
    return found


def _call(position: int, data: bytes, get_blob: Any) -> Call:
    kind, flags, method_size, head_size = struct.unpack_from("<BBHI", data)
    _digest, _code, args_size, values, status = struct.unpack_from("<QQQIB", data, 8)
    (reply_size,) = struct.unpack_from("<Q", data, 40)
    at = 48 + head_size
    method, at = data[at : at + method_size].decode(), at + method_size
    args, at = data[at : at + args_size], at + args_size
    for _ in range(values):
        (size,) = struct.unpack_from("<Q", data, at)
        at += 8 + size
    reply = data[at : at + reply_size]
    assert at + reply_size == len(data)
    if flags & 1:
        args = get_blob(args.decode())
    if flags & 2:
        reply = get_blob(reply.decode())
    return Call(position, kind, method, args, status, reply)
