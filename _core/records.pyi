from collections.abc import Sequence
from typing import NamedTuple

class CallHeadError(ValueError): ...
class RecordFormatError(ValueError): ...

class Head(NamedTuple):
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

class CallRecord(NamedTuple):
    head: bytes
    digest: int
    code_version: int
    method: str
    args: bytes | None
    args_blob: str | None
    values: tuple[bytes, ...]
    status: int
    reply: bytes | None
    reply_blob: str | None

class StartRecord(NamedTuple):
    head: bytes
    digest: int
    code_version: int
    method: str
    args: bytes | None
    args_blob: str | None
    values: tuple[bytes, ...]

class ValueRecord(NamedTuple):
    call_id: bytes
    nth: int
    data: bytes

class SeenRecord(NamedTuple):
    head: bytes

class ReleaseRecord(NamedTuple):
    parents: tuple[bytes, ...]
    roots: tuple[bytes, ...]

HEAD_FAULTS: dict[int, str]

def encode_head(
    *,
    root_kind: int,
    root: bytes,
    parent: bytes,
    call_id: bytes,
    n: int,
    retry: int = 0,
    acked: int = 0,
    history: int = 0,
    keyed: bool = False,
    attempts: Sequence[int] = (),
    chain: Sequence[bytes] = (),
) -> bytes: ...
def decode_head(head: bytes) -> Head: ...
def digest(method: str, args: bytes) -> int: ...
def encode_call(
    head: bytes,
    method: str,
    args: bytes | None,
    values: Sequence[bytes],
    status: int,
    reply: bytes | None,
    *,
    code_version: int,
    args_blob: str | None = None,
    reply_blob: str | None = None,
    digest: int | None = None,
) -> bytes: ...
def encode_start(
    head: bytes,
    method: str,
    args: bytes | None,
    values: Sequence[bytes],
    *,
    code_version: int,
    args_blob: str | None = None,
    digest: int | None = None,
) -> bytes: ...
def encode_value(call_id: bytes, nth: int, data: bytes) -> bytes: ...
def encode_seen(head: bytes) -> bytes: ...
def encode_release(parents: Sequence[bytes], roots: Sequence[bytes]) -> bytes: ...
def decode_record(
    record: bytes | bytearray | memoryview,
) -> CallRecord | StartRecord | ValueRecord | ReleaseRecord | SeenRecord: ...
