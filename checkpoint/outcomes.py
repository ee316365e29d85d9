"""What became of one call to an exactly-once actor: asked of the actor, or read from its store.

Owns: what a snapshot's ledger and the journal behind it say of a call (`read`), and what people get
(`Outcome`). Invariants: nothing is written or fenced; "committed" and "not committed" are said only of what
no later incarnation can undo: the claims are looked at after the reading, as a writer does before it answers.
Leaves to others: asking a process (the engine).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, NamedTuple

from ftray._core.identity import call_id, derive_callee_key
from ftray._core.ledger import Ledger
from ftray._core.records import CallRecord, ReleaseRecord, SeenRecord, StartRecord, decode_record, encode_head

from . import holders, marks
from .codec import OK
from .errors import CheckpointCorruptedError, CheckpointError, CheckpointOptionError, PoisonCallError
from .format import split_ledger
from .keys import EPHEMERAL_PREFIX
from .snapshots import SnapshotLog
from .stores.protocol import Store
from .values import CALL_ID

if TYPE_CHECKING:
    from collections.abc import Callable

    from .codec import Codec

COMMITTED, NOT_COMMITTED, UNKNOWN = "committed", "not committed", "unknown"
OUTCOME_METHOD = "__ray_checkpoint_outcome__"
"""The method of every actor by which it tells what became of a call; see `outcome`."""
_JOB = 1  # kind of the root of calls named by a key
_TRIES = 5
_UNBOUNDED = 1 << 62
_LOOK_EVERY_S = 0.02


class CallOutcome(NamedTuple):
    """What an incarnation knows of one call.

    Attributes
    ----------
    state : {"committed", "not committed", "unknown"}
        It has run and its effect is durable; it has not run, or left nothing; it is under way, its record is
        not durable yet, or its caller was released since.
    status : int or None
        Of the reply, where that is still kept.
    reply : bytes or None
    """

    state: str
    status: int | None = None
    reply: bytes | None = None


class Outcome(NamedTuple):
    """What became of one call to an exactly-once actor.

    Attributes
    ----------
    state : {"committed", "not committed", "unknown"}
        It has run and its effect is durable; it has not run and left nothing, and is not under way; nobody
        can tell, or not yet.
    kept : bool
        The reply is there: `value`, or the exception `error`.
    value : object
    error : Exception or None
    reason : str
        Why the outcome is unknown, not committed, or without its reply.
    """

    state: str
    kept: bool = False
    value: Any = None
    error: Exception | None = None
    reason: str = ""


def outcome(call: Any, *, timeout_s: float = 30.0) -> Outcome:
    """Say what became of a call to an exactly-once actor, without making it again.

    For when the reply did not come: after `GetTimeoutError`, `ActorDiedError`, `ActorUnavailableError`. The
    actor is asked while it lives (between two of its methods) and when it has restarted; if it is dead or
    does not answer, its store is read.

    Parameters
    ----------
    call : ObjectRef or ActorMethod
        The ref of a call that this process has made; or, from any process, the method with the key that the
        call was given: ``handle.add.options(call_key="order-123")``.
    timeout_s : float
        How long to wait for the reply and for the actor's answer, in seconds.

    Returns
    -------
    Outcome

    Raises
    ------
    CheckpointOptionError
        It is no such call: of a plain actor or a task, borrowed from another process, a method without
        ``call_key``, or `timeout_s` is no number of seconds.
    NotSupportedError
        Asked in a method of an exactly-once actor that changes its state.
    """
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, (int, float)) or not timeout_s >= 0:
        raise CheckpointOptionError(f"timeout_s must be a number of seconds >= 0, not {timeout_s!r}")
    from ftray._engine import current

    found: Outcome = current().outcome(call, float(timeout_s))
    return found


def keyed_head(
    call_key: str, callee_key: bytes, *, history: int = 0, chain: tuple[bytes, ...] = ()
) -> bytes:
    """Return the head of the call that users have named `call_key`.

    `history`, `chain`: of whoever sends it; what becomes of the call does not depend on them.
    """
    nobody = bytes(16)
    return encode_head(
        root_kind=_JOB,
        root=nobody,
        parent=nobody,
        call_id=call_id(named(call_key), callee_key, 0, 0),
        n=0,
        history=history,
        keyed=True,
        chain=chain,
    )


def named(call_key: str) -> bytes:
    """Return the 16 bytes that stand for a `call_key`."""
    from _blake2 import blake2b  # hashlib would load OpenSSL

    return blake2b(b"call\0" + call_key.encode(), digest_size=16).digest()


def decoded(status: int, reply: bytes | None, codec: Codec) -> Outcome:
    """Return the outcome of a call that has its record."""
    if reply is None:
        return Outcome(COMMITTED, reason="its reply is not kept any more")
    value = codec.decode_reply(status, reply)
    return Outcome(COMMITTED, True, value) if status == OK else failed(value)


def said(
    state: str,
    durable: bool,
    status: int,
    reply: bytes | None,
    codec: Codec,
    *,
    own: bool,
    wait: Callable[[], object] | None,
) -> Outcome:
    """Return the outcome of which an actor has said what is known of it.

    Parameters
    ----------
    own : bool
        Its caller goes on, or it has a key: nobody can have reported that it may be forgotten.
    wait : callable, optional
        Waits for the call's reply; None: it is not under way.
    """
    if state == "done" and durable:
        return decoded(status, reply, codec)
    if state == "expired":
        return Outcome(COMMITTED, reason="its reply is not kept any more")
    if state == "unknown" and not own:
        return Outcome(UNKNOWN, reason="its caller is not known any more, or has never called")
    if state in ("done", "accepted"):
        why = "it has begun" if state == "accepted" else "it has run, and is not durable yet"
    elif wait is None:
        return Outcome(NOT_COMMITTED, reason="the actor has no record of it")
    else:
        why = "it is under way to the actor, or waits for its turn: there is no record of it yet"
    if wait is not None:
        wait()
    return Outcome(UNKNOWN, reason=why)


def failed(error: Exception) -> Outcome:
    """Return the outcome of a call whose recorded reply is an error."""
    if isinstance(error, PoisonCallError):
        return Outcome(NOT_COMMITTED, True, None, error, "it was given up: the actor died in it each time")
    return Outcome(COMMITTED, True, None, error)


# -- from the store


def of_store(
    store: Store, key: str, head: bytes, codec: Codec, *, own: bool = True, timeout_s: float = 0.0
) -> Outcome:
    """Return what a store says of a call, whose actor is not asked.

    Parameters
    ----------
    own : bool
        Its caller goes on, or it has a key: nobody can have reported that it may be forgotten.
    timeout_s : float
        How long to look again while the key changes hands, or its holder ends.
    """
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            found = _judged(*read(store, key, head), codec, own)
        except _Moving as error:
            found = Outcome(UNKNOWN, reason=str(error))
        except (CheckpointError, OSError) as error:
            return Outcome(UNKNOWN, reason=f"the store cannot say: {type(error).__name__}: {error}")
        if found.state == NOT_COMMITTED and key.startswith(EPHEMERAL_PREFIX):  # it may be being removed
            return Outcome(UNKNOWN, reason="checkpoints of an actor without a name go when it is gone")
        if found.state != UNKNOWN or time.monotonic() >= deadline_s:
            return found
        time.sleep(_LOOK_EVERY_S)


def _judged(state: str, status: int, reply: bytes | None, holder: Any, codec: Codec, own: bool) -> Outcome:
    if state == "done":
        return decoded(status, reply, codec)
    if state == "expired":
        return Outcome(COMMITTED, reason="its reply is not kept any more")
    if state == "started":
        return Outcome(UNKNOWN, reason="it has begun, and goes on when an actor takes the key again")
    if state == "nothing":
        return Outcome(UNKNOWN, reason="there is nothing under its checkpoint key: removed, or never used")
    if state == "unknown" and not own:
        return Outcome(UNKNOWN, reason="its caller is not known any more, or has never called")
    if holder is None or holder.lives is not False:
        who = holder or "somebody"
        return Outcome(UNKNOWN, reason=f"there is no record of it yet, and the key is held by {who}")
    return Outcome(NOT_COMMITTED, reason="there is no record of it, and nobody holds the key any more")


class _Moving(Exception):
    """The key changed hands, or a snapshot was replaced, while it was read."""


def read(store: Store, key: str, head: bytes) -> tuple[str, int, bytes | None, holders.Holder | None]:
    """Return what a key's newest snapshot and its journal say of a call, and who has claimed the key last.

    The state is as of `Ledger.look`, or "started", or "nothing". What is "done" any later incarnation has
    too: nobody had claimed the key after the one that wrote the last record, once that had been read.
    """
    for _ in range(_TRIES):
        claims = store.scan(key).claims
        if not claims:
            return "nothing", 0, None, None
        holder = holders.look(store, key, claims[-1])  # before the journal: it may write until it ends
        try:
            found = _look(store, key, head)
        except (FileNotFoundError, CheckpointCorruptedError):
            if store.scan(key).claims == claims and holder is not None and holder.lives is False:
                raise
            continue  # a snapshot or a segment that has just been replaced
        if store.scan(key).claims == claims:
            return (*found, holder)
    raise _Moving(f"checkpoint key {key!r} in {store.url} changes just now")


def _look(store: Store, key: str, head: bytes) -> tuple[str, int, bytes | None]:
    past = SnapshotLog(store, key, keep=2).find_past()
    base = int(past.sealed.get("journal_position", 0))
    ledger = Ledger(
        derive_callee_key(key),
        int(past.sealed.get("history_number", 1)),
        reply_bound_bytes=_UNBOUNDED,
        reply_bound_calls=_UNBOUNDED,
    )
    if past.newest is not None:
        base = int(past.newest.header.fields.get("journal_position", base))
        saved = split_ledger(past.newest.header, past.newest.segments)[1]
        if saved is not None:
            ledger.load(saved)
    reading, based = store.read_journal(key, base), past.newest is not None
    tail = marks.survey(reading, base, past.history, based, past.sealed.get("base"))
    started = b""
    for record in store.read_journal(key, base):
        if record.position > tail.last:
            break
        if tail.counts(record.position):
            started = _replayed(store, key, ledger, record.position, record.payload, head, started)
    if started and started == head[CALL_ID]:
        return "started", 0, None
    return ledger.look(head)[:3]


def _replayed(
    store: Store, key: str, ledger: Ledger, position: int, payload: bytes, head: bytes, started: bytes
) -> bytes:
    """Enter a record; returns the CallID of the call that has begun and not ended."""
    if marks.decode(payload) is not None:
        return started
    record = decode_record(payload)
    if isinstance(record, CallRecord):
        reply = b""
        if record.head[CALL_ID] == head[CALL_ID]:  # what others got is of no interest
            reply = store.read_blob(key, record.reply_blob or "") if record.reply is None else record.reply
        ledger.replay(record.head, record.digest, record.status, reply, position)
        return b""
    if isinstance(record, StartRecord):
        return record.head[CALL_ID]
    if isinstance(record, SeenRecord):
        ledger.see(record.head)
    elif isinstance(record, ReleaseRecord):
        for parent in record.parents:
            ledger.release_caller(parent)
        for root in record.roots:
            ledger.release_root(root)
    return started
