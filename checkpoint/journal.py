"""The journal of a key: what its writer and its reader are to the rest of the toolkit.

A *journal* is an ordered list of records per key. Positions count from 1 and go on over epochs: each
incarnation writes into segments of its own, whose first position cuts whatever an older one still appends.
This module owns the protocol that every store's journal fulfils (tests/unit/checkpoint/journal_suite.py is
its contract); bytes are in `segments`, decisions of recovery in `recovery`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple, Protocol

Buffer = bytes | bytearray | memoryview
Durability = Literal["process", "power"]
OnDurable = Callable[[int], None]
OnFailure = Callable[[BaseException], None]

CALL_ID_SIZE = 16
MAX_RECORD_BYTES = 64 << 20
MOST_WAITING_BYTES = 64 << 20
"""While more than this waits for the medium, the actor starts no call: records (`waiting_bytes`) with large
arguments and replies, or the answers that wait for them. So a medium that does not answer for minutes costs
the actor this much memory, and what one call brings, whatever callers send. A medium that is only slow is
kept busy: the largest request of a store of objects takes an eighth of it."""


class JournalRecord(NamedTuple):
    """One record: its position under the key, the epoch that wrote it, and its bytes."""

    position: int
    epoch: int
    payload: bytes


class Journal(Protocol):
    """The writing side of one incarnation. Its methods may be called from any thread."""

    @property
    def survives(self) -> frozenset[str]:
        """What `durable_position` promises to survive: {"process"} or {"process", "power"} and more."""

    @property
    def last_position(self) -> int:
        """The position that was appended last; before the first one, that of the past."""

    @property
    def durable_position(self) -> int:
        """Everything up to here may be answered: it is durable, and after that the key was still held.

        Never shrinks. 0 until the incarnation's own past is known to be durable.
        """

    @property
    def waiting_bytes(self) -> int:
        """How much was appended and is not durable: what the process keeps of it. 0 where a record is durable
        when `append` returns, and so in the hands of the kernel."""

    on_durable: OnDurable | None
    """Called with `durable_position` when it grows, from the journal's own thread; not for what is durable
    already when `append` returns. May be called less often than the position grows."""

    on_failure: OnFailure | None
    """Called once, when the journal fails for good: `FencedError`, or `CheckpointSaveError` for a medium
    that failed. Nothing becomes durable afterwards, every later `append` and `wait` raises."""

    def append(self, payload: Buffer | Sequence[Buffer]) -> int:
        """Append one record and return its position; its parts are joined. Does not wait for durability.

        Raises
        ------
        FencedError
            The key is held by a later epoch: the record does not count, and must not be answered.
        CheckpointSaveError
            The journal has failed or is closed.
        ValueError
            The record is empty or longer than `MAX_RECORD_BYTES`; nothing was appended.
        """

    def flush(self) -> None:
        """Begin to make durable now what was appended."""

    def hold_back(self, position: int | None) -> bool:
        """Write no record from `position` on before this is called again; None: write all.

        False where a record is written when it is appended: then nothing has changed.
        """

    def fail(self, error: BaseException) -> None:
        """End the journal because of `error`: what its records name cannot be made durable."""

    def wait(self, position: int, timeout_s: float) -> None:
        """Wait until `position` is durable.

        Raises
        ------
        FencedError, CheckpointSaveError
            It never will be by this incarnation.
        CheckpointTimeoutError
            Not within `timeout_s` seconds; it may still become durable.
        """

    def running(self, call_id: bytes | None) -> None:
        """Note which call runs (16 bytes), None when it has ended: what `Store.last_running` tells of."""

    def holds(self) -> bool:
        """Look now whether the key is still held: False once a later epoch has fenced this one."""

    def close(self, timeout_s: float) -> None:
        """Make all durable, then end the journal's threads. Repeatable.

        Raises what `wait` raises; the journal is closed in any case.
        """


class JournalReading(Iterator[JournalRecord], Protocol):
    """What `Store.read_journal` returns: the records in order, verified, and what was found on the way."""

    last_position: int
    """The last position that counts, or the one that was asked for if nothing follows it."""

    notes: list[str]
    """What a restore may pass over in silence but a person may want to know, such as a torn tail."""

    lost: list[str]
    """To be said loudly: what a loss of power took although it had been answered (`process` durability)."""
