"""What the tests of the ledger share: heads of calls, and calls that run."""

from __future__ import annotations

from typing import Any

from ftray._core.gate import Outcome
from ftray._core.identity import call_id, derive_callee_key
from ftray._core.ledger import Ledger
from ftray._core.records import encode_head

KEY = derive_callee_key("default/counter")


def identity(name: str) -> bytes:
    return call_id(bytes(16), derive_callee_key(name), 0, 0)


SESSION, JOB, PROCESS = identity("session"), identity("job"), identity("process")
TASK, OTHER_TASK = identity("task"), identity("other task")


def head(parent: bytes = SESSION, n: int = 1, **changes: Any) -> bytes:
    parts: dict[str, Any] = {"root_kind": 0, "root": SESSION, "parent": parent, "n": n, "attempts": (0,)}
    parts |= changes
    if "call_id" not in parts:
        parts["call_id"] = call_id(parts["parent"], KEY, n, parts.get("retry", 0))
    return encode_head(**parts)


def keyed(name: str, **changes: Any) -> bytes:
    return head(bytes(16), 0, keyed=True, call_id=call_id(identity(name), KEY, 0, 0), **changes)


def outcome(ledger: Ledger, call: bytes, digest: int = 1, mutating: bool = True) -> Outcome:
    return Outcome(ledger.accept(call, digest, mutating)[0])


def run(ledger: Ledger, call: bytes, reply: bytes = b"reply", digest: int = 1, position: int = 1) -> None:
    assert outcome(ledger, call, digest) == Outcome.NEW
    ledger.finish(call, 0, reply, position)
