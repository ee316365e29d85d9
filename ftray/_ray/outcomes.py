"""What became of a call to an exactly-once actor on Ray: from the call's ref, from the actor, or its store.

Owns: in which order they are asked, as on ftray's own engine (``ftray/_call_outcomes.py``). Invariants: the
question changes nothing and has no place among its caller's calls; "not committed" is said only of a call
whose ref has an outcome, or of one with a key.
Leaves to others: what a store says (`ftray.checkpoint.outcomes`).
"""

from __future__ import annotations

import time
from typing import Any

import ray

from ftray import _core
from ftray._core.records import decode_head
from ftray._ray import host_flow, host_handle
from ftray._ray.actors import RayActorMethod
from ftray._ray.errors import converted
from ftray._ray.host_codec import RayCodec
from ftray._ray.refs import RayObjectRef, adopted
from ftray.checkpoint import outcomes
from ftray.checkpoint.errors import (
    CallError,
    CheckpointOptionError,
    PoisonCallError,
    ReplyExpiredError,
    StaleCallerError,
)
from ftray.checkpoint.outcomes import COMMITTED, NOT_COMMITTED, OUTCOME_METHOD, UNKNOWN, Outcome
from ftray.checkpoint.stores import connect

_FORGOTTEN = "the actor has forgotten the call: it was told that nobody asks for it any more"


def of_call(call: Any, timeout_s: float) -> Outcome:
    """See `ftray.checkpoint.outcome`."""
    guard = _core.the_guard()
    if guard is not None:
        guard.refuse("ftray.checkpoint.outcome()")
    deadline_s = time.monotonic() + timeout_s
    if isinstance(call, _core.ObjectRef):
        return _of_ref(call, deadline_s)
    if isinstance(call, RayActorMethod):
        return _of_named(call, deadline_s)
    raise CheckpointOptionError(
        "outcome() takes the ref of a call, or a method with the key of one"
        f" (handle.method.options(call_key=...)), not {call!r:.100}"
    )


def _of_named(method: RayActorMethod, deadline_s: float) -> Outcome:
    call_key = method._explicit.get("call_key")
    key = host_handle.key_of_actor(method._handle._actor_id.binary())
    if not call_key or key is None:
        raise CheckpointOptionError(
            f"outcome() of {method!r}: say which call to an exactly-once actor is meant, with its key"
            " (.options(call_key=...)), or give the ref of the call"
        )
    head = outcomes.keyed_head(call_key, key)
    return _Question(method._handle, head, deadline_s).ask(None)


def _of_ref(ref: Any, deadline_s: float) -> Outcome:
    known = ref._call if isinstance(ref, RayObjectRef) else None
    if known is None:
        raise CheckpointOptionError(
            f"outcome() of {ref!r}: it is not the ref of a call that this process has made to an exactly-once"
            " actor and that changes its state. Ask in the process that made the call, or name calls with"
            " call_key"
        )
    handle, head, label = known
    question = _Question(handle, head, deadline_s)
    if not _is_ready(ref):
        found = question.ask(ref._ref)
        if not _is_ready(ref):
            return found
    try:
        value = ray.get(ref._ref, timeout=question.left_s())
    except ray.exceptions.GetTimeoutError:
        return Outcome(COMMITTED, reason="its reply is on its way")
    except Exception as error:
        return _of_failure(error, question, label)
    return Outcome(COMMITTED, True, adopted(value))


def _is_ready(ref: RayObjectRef) -> bool:
    return bool(ray.wait([ref._ref], timeout=0, fetch_local=False)[0])


def _of_failure(raised: BaseException, question: _Question, label: str) -> Outcome:
    """The ref has an error: recorded as the call's reply, or the reason why there is none."""
    error = converted(raised)
    cause = getattr(error, "cause", None)
    error = cause if isinstance(cause, Exception) else error
    assert isinstance(error, Exception)
    if isinstance(error, ReplyExpiredError):
        return Outcome(COMMITTED, reason=str(error))
    found = question.ask(None)
    of_the_call = getattr(raised, "function_name", "") == label
    if isinstance(error, CallError) and not isinstance(error, PoisonCallError | StaleCallerError):
        if found.kept and type(found.error) is type(error):  # one that the method itself has raised
            return found
        if found.state == NOT_COMMITTED or found.kept:
            return Outcome(NOT_COMMITTED, reason=f"the actor refused it: {error}")
        return Outcome(UNKNOWN, reason=_FORGOTTEN)
    if found.state == COMMITTED:
        if found.kept:
            return found
        if of_the_call and not isinstance(error, CallError):
            return outcomes.failed(error)
        return found if question.keyed else Outcome(UNKNOWN, reason=_FORGOTTEN)
    if found.state == NOT_COMMITTED and isinstance(raised, ray.exceptions.RayTaskError) and not of_the_call:
        return Outcome(NOT_COMMITTED, reason=f"it was never sent: {type(error).__name__}: {error}")
    return found


class _Question:
    """Asks an actor, then its store, about one call."""

    def __init__(self, handle: Any, head: bytes, deadline_s: float) -> None:
        self._handle, self._head, self._deadline_s = handle, head, deadline_s
        told = decode_head(head)
        self.keyed = bool(told.keyed)
        here = host_flow.flow(ray._private.worker.global_worker).parent
        self._own = self.keyed or told.parent in (told.root, here)

    def left_s(self) -> float:
        """Return how many seconds there are."""
        return max(0.0, self._deadline_s - time.monotonic())

    def ask(self, ref: Any) -> Outcome:
        """Return what is known. `ref`: of the call, if it is still under way."""
        return self._of_actor(ref) or self._of_store(ref)

    def _of_actor(self, ref: Any) -> Outcome | None:
        """None: it does not answer."""
        while True:
            answer = self._handle._actor_method_call(
                OUTCOME_METHOD, args=[self._head], kwargs={}, num_returns=1, max_task_retries=-1
            )
            wanted = [answer] if ref is None else [answer, ref]
            ready, _ = ray.wait(wanted, num_returns=1, timeout=self.left_s())
            if answer not in ready:
                return Outcome(UNKNOWN) if ready else None
            try:
                state, durable, status, reply = ray.get(answer)
            except ray.exceptions.RayError:  # it has died, and its store has the last word
                return None
            if state == "done" and not durable and self.left_s():
                continue
            wait = None if ref is None else lambda: ray.wait([ref], timeout=self.left_s())
            return outcomes.said(state, durable, status, reply, RayCodec(""), own=self._own, wait=wait)

    def _of_store(self, ref: Any) -> Outcome:
        place = host_handle.place_of_actor(self._handle._actor_id.binary())
        if place is None:
            return Outcome(UNKNOWN, reason="the cluster knows nothing of the actor any more")
        url, key = place
        try:
            store = connect(url)
        except Exception as error:  # a library that is not installed here, credentials, a path elsewhere
            return Outcome(UNKNOWN, reason=f"its store cannot be opened: {type(error).__name__}: {error}")
        timeout_s = 0.0 if ref is not None else max(self.left_s(), 1.0)
        found = outcomes.of_store(store, key, self._head, RayCodec(""), own=self._own, timeout_s=timeout_s)
        if found.state == NOT_COMMITTED and ref is not None:  # it may still be sent to a next incarnation
            why = "the actor did not answer in time, and there is no record of it yet"
            return Outcome(UNKNOWN, reason=why)
        return found
