"""A second reader of what exactly-once actors record: heads, records, marks, the ledger, life, watch.

Written from docs/storage-format.md alone; nothing of ftray's code is used.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from typing import Any, NamedTuple

CALL, START, VALUE, RELEASE, SEEN = 1, 2, 3, 4, 5


_G, _L = 0x9E3779B97F4A7C15F39CC0605CEDC835, 0x2360ED051FC65DA44385DF649FCCF645
_MASK = (1 << 128) - 1


def callee_key(key: str) -> bytes:
    """The identity of the actor with a checkpoint key."""
    return hashlib.blake2b(b"key\0" + key.encode(), digest_size=16).digest()


def named(call_key: str) -> bytes:
    """What stands for the caller in the identity of a call that was named."""
    return hashlib.blake2b(b"call\0" + call_key.encode(), digest_size=16).digest()


def call_id(parent: bytes, key: bytes, n: int, retry: int = 0) -> bytes:
    """The identity of a call."""
    x = _mixed(int.from_bytes(parent, "little") ^ 0x243F6A8885A308D313198A2E03707344)
    x = _mixed(x ^ int.from_bytes(key, "little"))
    return _mixed(x ^ (n + (retry << 32))).to_bytes(16, "little")


def _mixed(x: int) -> int:
    x ^= x >> 67
    x = x * _G & _MASK
    x ^= x >> 59
    x = x * _L & _MASK
    return x ^ x >> 65


class _Bytes:
    """Bytes that are taken one piece after the other."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def fields(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{layout}", self.data, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return found

    def bytes(self, size: int) -> bytes:
        self.at += size
        assert self.at <= len(self.data)
        return self.data[self.at - size : self.at]

    def ids(self, count: int) -> list[bytes]:
        return [self.bytes(16) for _ in range(count)]

    def end(self) -> None:
        assert self.at == len(self.data)


class Head(NamedTuple):
    """Who calls."""

    root_kind: int
    keyed: bool
    retry: int
    n: int
    acked: int
    root: bytes
    parent: bytes
    call_id: bytes
    history: int
    attempts: tuple[int, ...]
    chain: tuple[bytes, ...]


def head(data: bytes) -> Head:
    """Read a head."""
    b = _Bytes(data)
    kind, flags, retry, n, acked, attempts, chain = b.fields("BBHIIHH")
    assert flags in (0, 1)
    root, parent, call_id = b.ids(3)
    (history,) = b.fields("Q")
    found = Head(
        kind,
        flags == 1,
        retry,
        n,
        acked,
        root,
        parent,
        call_id,
        history,
        b.fields(f"{attempts}I"),
        tuple(b.ids(chain)),
    )
    b.end()
    return found


def record(payload: bytes) -> dict[str, Any]:
    """Read a record of a call, or a mark."""
    kind = payload[0]
    if kind >= 128:
        return {"kind": kind, **json.loads(payload[1:])}
    b = _Bytes(payload)
    found = {CALL: _run, START: _run, VALUE: _value, RELEASE: _release, SEEN: _seen}[kind](b)
    b.end()
    return {"kind": kind, **found}


def _run(b: _Bytes) -> dict[str, Any]:
    kind, flags, method, head_size, digest, code, args, values, status, reply = b.fields("BBHIQQQIB3xQ")
    assert flags in (0, 1, 2, 3)
    found: dict[str, Any] = {"head": head(b.bytes(head_size)), "digest": digest, "code_version": code}
    found["method"] = b.bytes(method).decode()
    found["args_blob" if flags & 1 else "args"] = b.bytes(args)
    found["values"] = [b.bytes(b.fields("Q")[0]) for _ in range(values)]
    if kind == CALL:
        found |= {"status": status, "reply_blob" if flags & 2 else "reply": b.bytes(reply)}
    return found


def _value(b: _Bytes) -> dict[str, Any]:
    _, zero, zeros, nth = b.fields("BBHI")
    assert not zero and not zeros
    return {"nth": nth, "call_id": b.bytes(16), "data": b.bytes(b.fields("Q")[0])}


def _release(b: _Bytes) -> dict[str, Any]:
    _, _, _, callers, roots, zero = b.fields("BBHIII")
    assert not zero
    return {"callers": b.ids(callers), "roots": b.ids(roots)}


def _seen(b: _Bytes) -> dict[str, Any]:
    (size,) = b.fields("4xI")
    return {"head": head(b.bytes(size))}


def arguments(body: bytes) -> tuple[list[bytes], bytes]:
    """Read an args body: the values of refs, and the argument bytes."""
    b = _Bytes(body)
    (count,) = b.fields("H")
    return [b.bytes(b.fields("Q")[0]) for _ in range(count)], body[b.at :]


def _entry(b: _Bytes) -> dict[str, Any]:
    call_id = b.bytes(16)
    digest, position, size, n, place, retry, status, zero = b.fields("QQQIIHBB")
    assert not zero
    return {
        "call_id": call_id,
        "digest": digest,
        "position": position,
        "n": n,
        "place": place,
        "retry": retry,
        "status": status,
        "reply": b.bytes(size),
    }


def ledger(data: bytes) -> dict[str, Any]:
    """Read a ledger."""
    assert struct.unpack("<I", data[-4:])[0] == zlib.crc32(data[:-4])
    b = _Bytes(data[:-4])
    assert b.bytes(8) == b"ftledger"
    version, callers, history, keyed, gone, expirable, released = b.fields("IIQIIII")
    found: dict[str, Any] = {"version": version, "history": history, "expirable": expirable, "callers": {}}
    for _ in range(callers):
        caller, root = b.ids(2)
        kind, inside, attempts, acked, ranges, calls = b.fields("BBHIII")
        found["callers"][caller] = {
            "root": root,
            "root_kind": kind,
            "inside": bool(inside),
            "acked": acked,
            "attempts": b.fields(f"{attempts}I"),
            "expired": [b.fields("II") for _ in range(ranges)],
            "calls": [_entry(b) for _ in range(calls)],
        }
    found["keyed"] = [_entry(b) for _ in range(keyed)]
    found["keyed_expired"] = [(b.bytes(16), *b.fields("Q")) for _ in range(gone)]
    found["released"] = [tuple(b.ids(2)) for _ in range(released)]
    b.end()
    return found


def life(data: bytes) -> dict[str, Any]:
    """Read a life file."""
    assert len(data) == 4096 and data[:8] == bytes.fromhex("89 46 54 4C 49 56 0D 0A")
    assert data[8:16] == b"\1" + bytes(7)
    epoch, boot, fence, doubt, running = struct.unpack_from("<Q16sQQI", data, 16)
    (row,) = struct.unpack_from("<I", data, 96)
    return {
        "epoch": epoch,
        "boot": boot,
        "fence": fence,
        "doubt": doubt,
        "running": running,
        "call_id": data[64:80],
        "row_call_id": data[80:96],
        "row": row,
    }


def watch_file(data: bytes) -> tuple[bytes, dict[str, Any]]:
    """Read a watch file: the boot, and the note."""
    assert data[:8] == bytes.fromhex("89 46 54 57 43 48 0D 0A") and data[8:16] == b"\1" + bytes(7)
    return data[16:32], watch(data[32:])


def watch(note: bytes) -> dict[str, Any]:
    """Read the note of a recovery."""
    first, last, deaths, by_chance, now_first, now_last, over = struct.unpack("<QQIIQQB7x", note)
    return {
        "place": (first, last),
        "deaths": deaths,
        "by_chance": by_chance,
        "now": (now_first, now_last),
        "over": over,
    }
