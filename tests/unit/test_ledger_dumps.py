"""Dumps of the ledger: read for ever, and checked to the last bit."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import pytest

from ftray._core.gate import Outcome
from ftray._core.ledger import Ledger, LedgerFormatError
from tests.unit.ledger_support import (
    JOB,
    KEY,
    OTHER_TASK,
    PROCESS,
    SESSION,
    TASK,
    head,
    identity,
    keyed,
    outcome,
    run,
)

GOLDEN = Path(__file__).parent / "checkpoint" / "golden" / "ledger-1.bin"


def example() -> Ledger:
    """One of everything that a dump can have."""
    ledger = Ledger(KEY, 7, reply_bound_calls=6)
    for n in (1, 2, 4, 5):
        run(ledger, head(TASK, n, acked=n, attempts=(0, 2)), b"task %d" % n, position=n)
    run(ledger, head(JOB, 1, root=JOB, root_kind=1, history=7), b"job", position=6)
    run(ledger, head(PROCESS, 3, root=PROCESS, root_kind=2, acked=3, attempts=()), b"\0", position=7)
    for n, name in enumerate("abc"):
        run(ledger, keyed(name), b"key " + name.encode(), position=8 + n)
    run(ledger, head(SESSION, 1, retry=3, chain=[TASK]), b"", position=11)
    outcome(ledger, head(OTHER_TASK, 1))
    return ledger


def test_a_dump_of_version_1_is_read_for_ever() -> None:
    golden = GOLDEN.read_bytes()
    ledger = Ledger(KEY)
    ledger.load(golden)
    assert ledger.history == 7
    assert ledger.counters() == example().counters() | {"accepted": 0, "calls": 5}
    assert ledger.accept(head(TASK, 5, attempts=(0, 2)), 1) == (Outcome.RECORDED, 0, b"task 5", 5)
    assert outcome(ledger, head(TASK, 5, attempts=(0, 1))) == Outcome.STALE_ATTEMPT
    assert outcome(ledger, head(TASK, 2, attempts=(0, 2))) == Outcome.EXPIRED
    assert outcome(ledger, head(TASK, 3, attempts=(0, 2))) == Outcome.NEW
    assert outcome(ledger, head(OTHER_TASK, 1)) == Outcome.NEW
    assert outcome(ledger, keyed("a"), digest=5) == Outcome.MISMATCH


def test_a_dump_ends_with_the_checksum_that_zlib_computes() -> None:
    dump = example().dump()
    assert zlib.crc32(dump[:-4]).to_bytes(4, "little") == dump[-4:]


def sealed(dump: bytes | bytearray) -> bytes:
    return bytes(dump[:-4]) + zlib.crc32(bytes(dump[:-4])).to_bytes(4, "little")


def test_every_cut_and_every_changed_bit_of_a_dump_is_found() -> None:
    dump = example().dump()
    ledger = Ledger(KEY)
    for size in range(len(dump)):
        with pytest.raises(LedgerFormatError, match="cannot be used"):
            ledger.load(dump[:size])
    for bit in range(8 * len(dump)):
        damaged = bytearray(dump)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LedgerFormatError, match="cannot be used"):
            ledger.load(bytes(damaged))
    assert len(ledger) == 0 and ledger.history == 0


def test_a_dump_that_no_ledger_writes_is_refused_or_read_whole_in_spite_of_its_checksum() -> None:
    """Sizes and counts may say anything: nothing is read beyond the bytes, and nothing is half loaded."""
    dump = example().dump()
    refused = 0
    for at in range(len(dump) - 4):
        for byte in (0, 1, dump[at] ^ 1, 0x7F, 0xFF):
            damaged = bytearray(dump)
            damaged[at] = byte
            ledger = Ledger(KEY)
            try:
                ledger.load(sealed(damaged))
            except LedgerFormatError:
                refused += 1
                assert len(ledger) == 0
            else:
                damaged[8] = dump[8]  # version 1 of the same is read, and written anew as version 2
                assert ledger.dump() == sealed(damaged)
    assert refused > len(dump)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda d: b"", "cut"),
        (lambda d: b"FTLEDGER" + d[8:], "no ledger"),
        (lambda d: sealed(d[:8] + b"\3" + d[9:]), "up to version 2"),
        (lambda d: d[:-1] + bytes([d[-1] ^ 1]), "checksum"),
        (lambda d: sealed(d[:-4] + b"x" + d[-4:]), "after its end"),
        (lambda d: sealed(d[:12] + b"\xff\xff\xff\x7f" + d[16:]), "cut|out of order"),
    ],
)
def test_a_wrong_dump_is_refused_with_the_reason(changed: Any, says: str) -> None:
    with pytest.raises(LedgerFormatError, match=says):
        Ledger(KEY).load(changed(example().dump()))


def test_loading_replaces_everything_and_goes_on() -> None:
    ledger = Ledger(KEY)
    run(ledger, head(identity("another task"), 1))
    ledger.load(example().dump())
    assert not ledger.knows_caller(identity("another task"))
    run(ledger, head(TASK, 6, attempts=(0, 2)))


# --- memory
