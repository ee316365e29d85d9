"""What became of a call to an exactly-once actor: from the call's ref, from the actor, or from its store.

Owns: in which order they are asked. Invariants: "not committed" is said only of a call that nobody of this
process sends any more; nothing is sent under the caller's own numbering (the question has a key), so that
asking changes no later call's name.
Leaves to others: what the store says (`ftray.checkpoint.outcomes`), what is kept of failed calls
(``_core/outcomes.pyx``).
"""

from __future__ import annotations

import pickle
import time
from typing import Any

from ftray import _core
from ftray._checkpoint_host import NativeCodec, identity_of
from ftray._core.callnames import call_of
from ftray._core.gets import plain_get
from ftray._core.records import decode_head
from ftray._core.waits import plain_wait
from ftray.actor import ActorHandle, ActorMethod
from ftray.checkpoint import outcomes
from ftray.checkpoint.errors import CallError, CheckpointOptionError, ReplyExpiredError, StaleCallerError
from ftray.checkpoint.keys import key_of
from ftray.checkpoint.options import validate
from ftray.checkpoint.outcomes import COMMITTED, NOT_COMMITTED, UNKNOWN, Outcome
from ftray.checkpoint.stores import connect
from ftray.exceptions import GetTimeoutError, RayError, TaskCancelledError

_UNSENT, _UNANSWERED, _REFUSED, _RECORDED, _PENDING, _ANSWERED = 1, 2, 3, 4, 5, 6  # see _core/callnames.pyx
_CANCELLED = 2


class Codec(NativeCodec):
    """Reads recorded replies, for people."""

    def __init__(self) -> None:
        super().__init__("")

    def decode_reply(self, status: int, reply: bytes) -> Any:
        """See `ftray.checkpoint.codec.Codec.decode_reply`."""
        if status == _CANCELLED:
            return TaskCancelledError("the call was cancelled while it ran; what it had done by then stays")
        return super().decode_reply(status, reply)


def of_call(call: Any, timeout_s: float) -> Outcome:
    """See `ftray.checkpoint.outcome`."""
    guard = _core.the_guard()
    if guard is not None:
        guard.refuse("ftray.checkpoint.outcome()")
    deadline_s = time.monotonic() + timeout_s
    if isinstance(call, _core.ObjectRef):
        return _OfRef(call, deadline_s).outcome()
    if isinstance(call, ActorMethod):
        return _of_named(call, deadline_s)
    raise CheckpointOptionError(
        "outcome() takes the ref of a call, or a method with the key of one"
        f" (handle.method.options(call_key=...)), not {call!r:.100}"
    )


def _of_named(method: ActorMethod, deadline_s: float) -> Outcome:
    call_key = method._explicit.get("call_key")
    if not call_key:
        raise CheckpointOptionError(
            f"outcome() of {method!r}: say which call is meant, with its key (.options(call_key=...)),"
            " or give the ref of the call"
        )
    head = outcomes.keyed_head(call_key, method._meta.key)
    return _Question(method._target.actor_id(), head, True, deadline_s).ask(None)


def _left(deadline_s: float) -> float:
    return max(0.0, deadline_s - time.monotonic())


class _OfRef:
    """One question about a ref."""

    def __init__(self, ref: _core.ObjectRef, deadline_s: float) -> None:
        self._ref, self._deadline_s = ref, deadline_s

    def outcome(self) -> Outcome:
        known = call_of(self._ref)
        if known is None:
            raise CheckpointOptionError(
                f"outcome() of {self._ref!r}: it is not the ref of a call that this process has made to an"
                " exactly-once actor. Ask in the process that made the call, or name calls with call_key"
            )
        actor_id, head, fate = known
        if fate != _PENDING:
            return self._settled(actor_id, head, fate)
        found = self._question(actor_id, head).ask(self._ref)
        actor_id, head, fate = call_of(self._ref) or known
        return found if fate == _PENDING else self._settled(actor_id, head, fate)

    def _question(self, actor_id: bytes, head: bytes | None) -> _Question:
        assert head is not None
        told = decode_head(head)
        own = told.keyed or told.parent in (told.root, _core.current_context()["call_id"])
        return _Question(actor_id, head, own, self._deadline_s)

    def _settled(self, actor_id: bytes, head: bytes | None, fate: int) -> Outcome:
        try:
            value = plain_get(self._ref, _left(self._deadline_s))
        except Exception as error:
            if fate == _ANSWERED:  # the reply has come, but its value cannot be had (or not yet)
                return Outcome(COMMITTED, reason=f"its reply cannot be had: {type(error).__name__}: {error}")
            return self._failed(actor_id, head, fate, error)
        return Outcome(COMMITTED, True, value)

    def _failed(self, actor_id: bytes, head: bytes | None, fate: int, raised: Exception) -> Outcome:
        error = getattr(raised, "cause", None)
        error = error if isinstance(error, Exception) else raised
        if fate == _RECORDED:
            return outcomes.failed(error)
        if fate == _UNSENT:
            return Outcome(NOT_COMMITTED, reason=f"it was never sent: {type(error).__name__}: {error}")
        if fate == _REFUSED and isinstance(error, ReplyExpiredError):
            return Outcome(COMMITTED, reason=str(error))
        if fate == _REFUSED and not isinstance(error, StaleCallerError):
            kind = "" if isinstance(error, CallError) else f"{type(error).__name__}: "
            return Outcome(NOT_COMMITTED, reason=f"the actor refused it: {kind}{error}")
        return self._question(actor_id, head).ask(None, room_may_be_needed=True)


class _Question:
    """Asks an actor, then its store, about one call.

    Parameters
    ----------
    own : bool
        The caller of that call goes on, or it has a key: nobody has reported that it may be forgotten.
    """

    def __init__(self, actor_id: bytes, head: bytes, own: bool, deadline_s: float) -> None:
        self._actor_id, self._head, self._own, self._deadline_s = actor_id, head, own, deadline_s

    def ask(self, ref: _core.ObjectRef | None, *, room_may_be_needed: bool = False) -> Outcome:
        """Return what is known.

        Parameters
        ----------
        ref : ObjectRef, optional
            Of the call, if it is still under way: when that gets its value, the answer does not matter.
        room_may_be_needed : bool
            It got no reply, and may have been acknowledged all the same to make room for others.
        """
        from ftray._api import node_rpc

        try:
            info = node_rpc("actor_info", actor_id=self._actor_id)
        except RayError as error:
            return Outcome(UNKNOWN, reason=f"{type(error).__name__}: {error}")
        if info is None or not info.get("checkpoint"):
            return Outcome(UNKNOWN, reason="the session knows nothing of the actor any more")
        found = self._of_actor(info, ref) if "spec" in info else None
        if found is None:
            found = self._of_store(info["checkpoint"], ref)
        forgotten = found.state == COMMITTED and not found.kept and not decode_head(self._head).keyed
        if room_may_be_needed and forgotten:
            why = "the actor needed room, and has forgotten the calls that had no reply"
            return Outcome(UNKNOWN, reason=why)
        return found

    def _of_actor(self, info: dict[str, Any], ref: _core.ObjectRef | None) -> Outcome | None:
        """None: it does not answer."""
        spec = info["spec"]
        handle_ref = _core.foreign_actor_ref(self._actor_id, spec["owner"])
        handle: ActorHandle[Any] = ActorHandle._make(handle_ref, pickle.loads(spec["meta"]))
        # By a key: the caller's own calls keep their numbers. It waits for a restart as calls do.
        method = getattr(handle, outcomes.OUTCOME_METHOD).options(call_key="outcome", max_task_retries=-1)
        while True:
            answer = method.remote(self._head)
            wanted = [answer] if ref is None else [answer, ref]
            ready, _ = plain_wait(wanted, 1, _left(self._deadline_s), True)
            if not ready or ref in ready:
                return None if not ready else Outcome(UNKNOWN)
            try:
                state, durable, status, reply = plain_get(answer, 0)
            except GetTimeoutError:
                return None
            except RayError:  # it has died, and its store has the last word
                return None
            if state == "done" and not durable and _left(self._deadline_s):
                continue
            wait = None if ref is None else lambda: plain_wait([ref], 1, _left(self._deadline_s), True)
            return outcomes.said(state, durable, status, reply, Codec(), own=self._own, wait=wait)

    def _of_store(self, fields: dict[str, Any], ref: _core.ObjectRef | None) -> Outcome:
        given = fields["checkpoint"]
        key = key_of(identity_of(fields), given.get("checkpoint_key")).text
        try:
            store = connect(validate(given).store)
        except Exception as error:  # a library that is not installed here, credentials, a path elsewhere
            return Outcome(UNKNOWN, reason=f"its store cannot be opened: {type(error).__name__}: {error}")
        timeout_s = 0.0 if ref is not None else max(_left(self._deadline_s), 1.0)
        found = outcomes.of_store(store, key, self._head, Codec(), own=self._own, timeout_s=timeout_s)
        if found.state == NOT_COMMITTED and ref is not None:  # it may still be sent to a next incarnation
            return Outcome(UNKNOWN, reason="the actor did not answer in time, and there is no record yet")
        return found
