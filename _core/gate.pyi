from collections.abc import Callable, Iterable, Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

from ftray._core.ledger import Ledger
from ftray._core.records import CallRecord, ReleaseRecord, SeenRecord, StartRecord, ValueRecord

class Outcome(IntEnum):
    NEW = 1
    IN_PROGRESS = 2
    RECORDED = 3
    MISMATCH = 4
    STALE_ATTEMPT = 5
    EXPIRED = 6
    ROLLED_BACK = 7
    CYCLE = 8
    HELD_BACK = 9

class Verdict(NamedTuple):
    outcome: Outcome
    status: int
    reply: bytes | None
    position: int

class _Appends(Protocol):
    def append(self, payload: bytes, /) -> int: ...

class NullJournal:
    @property
    def last_position(self) -> int: ...
    @property
    def waiting_bytes(self) -> int: ...
    def append(self, payload: bytes) -> int: ...

class Gate:
    def __init__(
        self,
        journal: _Appends,
        callee_key: bytes,
        history: int,
        code_version: int,
        *,
        reply_bound_bytes: int = ...,
        reply_bound_calls: int = ...,
        put_blob: Callable[[bytes], str] | None = None,
        blob_bytes: int = 65536,
        most_waiting: int = ...,
    ) -> None: ...
    @property
    def ledger(self) -> Ledger: ...
    @property
    def journal(self) -> _Appends: ...
    @property
    def code_version(self) -> int: ...
    @property
    def blob_bytes(self) -> int: ...
    @property
    def most_waiting(self) -> int: ...
    @property
    def blobs_waiting(self) -> int: ...
    @property
    def full(self) -> bool: ...
    def blobs_wait(self, size: int) -> None: ...
    def admit(self, head: bytes, method: str, args: bytes, mutating: bool) -> Verdict: ...
    def forget(self, head: bytes) -> None: ...
    def stale(self, head: bytes) -> bool: ...
    def start(self, head: bytes, method: str, args: bytes, values: Sequence[bytes]) -> int: ...
    def value(self, call_id: bytes, nth: int, data: bytes) -> int: ...
    def finish(
        self, head: bytes, method: str, args: bytes, values: Sequence[bytes], status: int, reply: bytes
    ) -> int: ...
    def release(self, parents: Iterable[bytes], roots: Iterable[bytes]) -> None: ...
    def replayed(
        self, record: CallRecord | StartRecord | ValueRecord | ReleaseRecord | SeenRecord, position: int = 0
    ) -> None: ...
    def forget_callers(self, parents: Iterable[bytes], roots: Iterable[bytes]) -> None: ...

def churn(
    gate: Gate, calls: int, callers: int, calls_each: int, args_size: int, own_root: bool
) -> float: ...
