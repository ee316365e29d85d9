"""Records that the toolkit itself puts into the journal, beside those of calls. Pure.

    NONDETERMINISTIC  a call ran here that no record can repeat: what follows counts only with a snapshot of
    it SAVED             a snapshot up to a position is durable; written only where answers wait for one
    REFUSED           the call whose record follows did not run: its reply is a refusal (`PoisonCallError`, or
                      its arguments could not be read)
    VOID              a range of positions does not count: nothing that depended on it has left the actor

Layout: u8 kind (from 128; below are those of ``_core.records``), then one line of JSON.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

from .errors import CheckpointCorruptedError
from .journal import JournalRecord

NONDETERMINISTIC, SAVED, REFUSED, VOID = 128, 129, 130, 131
_CALL, _START = 1, 2  # of _core.records


class Mark(NamedTuple):
    """A record of the toolkit."""

    kind: int
    fields: dict[str, Any]


def encode(kind: int, **fields: object) -> bytes:
    """Return a record."""
    return bytes([kind]) + json.dumps(fields, sort_keys=True).encode()


def decode(payload: bytes) -> Mark | None:
    """Return the mark in a record, None for a record of a call."""
    return Mark(payload[0], json.loads(payload[1:])) if payload[:1] >= b"\x80" else None


class Tail(NamedTuple):
    """What a first look at the records after a snapshot says.

    Attributes
    ----------
    last : int
        Position of the last record, counting or not.
    void : list of (int, int)
        Ranges of positions, both ends included, that do not count; the last may still have to be written
        down.
    unwritten : (int, int) or None
        The range that no record declares void yet.
    calls : int
        Records of calls that count.
    """

    last: int
    void: list[tuple[int, int]]
    unwritten: tuple[int, int] | None
    calls: int

    def counts(self, position: int) -> bool:
        """Whether the record at `position` is to be replayed."""
        return not self.void or not any(first <= position <= last for first, last in self.void)


def survey(
    records: Iterable[JournalRecord], after: int, history: str, based: bool, sealed_base: object = None
) -> Tail:
    """Decide which of the records after a position count.

    Parameters
    ----------
    records : iterable of JournalRecord
        All after `after`.
    after : int
        Position that the restored snapshot contains.
    history : str
        The key's present history; snapshots of others were set aside.
    based : bool
        A snapshot was restored. Otherwise nothing counts: all answers waited for the first one.
    sealed_base : str or None
        The snapshot that the incarnation before has begun from, as its seal says.

    Raises
    ------
    CheckpointCorruptedError
        A snapshot was durable that is not there any more, and what follows cannot be had without it.
    """
    if not based and sealed_base is not None:
        raise _lost(after + 1, based)
    last, marks, calls = after, [], []
    for record in records:
        last, _, payload = record
        kind = payload[0]
        if kind in (_CALL, _START):
            calls.append(last)
        elif (mark := decode(payload)) is not None:
            marks.append((last, mark))
    void = [(m.fields["first"], m.fields["last"]) for _, m in marks if m.kind == VOID]
    tail = Tail(last, void, None, 0)
    saved = [m.fields["upto"] for _, m in marks if m.kind == SAVED and m.fields["history"] == history]
    barriers = [p for p, m in marks if m.kind == NONDETERMINISTIC and tail.counts(p)]
    first = after + 1 if not based and last > after else None
    if first is None and barriers:
        first = barriers[0]
    if first is not None:
        if any(upto >= first - (not based) for upto in saved):
            raise _lost(first, based)
        void = [*void, (first, last)]
        tail = tail._replace(void=void, unwritten=(first, last))
    return tail._replace(calls=sum(map(tail.counts, calls)) if void else len(calls))


def _lost(first: int, based: bool) -> CheckpointCorruptedError:
    what = (
        f"position {first} of the journal is a call that no record can repeat"
        if based
        else "the journal goes on"
    )
    return CheckpointCorruptedError(
        f"{what} from a snapshot that was durable and is not there, or not whole, any more. Put back a good "
        "copy of the newest snapshot, or start anew with restore='never'"
    )
