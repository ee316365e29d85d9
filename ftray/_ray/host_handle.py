"""Calls to exactly-once actors on Ray, where they are made: each carries its CallID as a hidden argument.

Ray's own handles are used: methods of the shell have a decorator of Ray's kind for the side of the caller.
A call that comes without (through Ray's client, say) is known by Ray's TaskID, see `host_flow.task_head`.

Owns: what a call gets on its way, and the output commit of calls that leave methods of exactly-once actors.
Invariants: a method's start and values are durable before a call of it leaves; what repeats a finished call
sends nothing; a call that was sent is pending in its flow before anything else of the flow runs.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ray

from ftray._core.identity import derive_callee_key
from ftray._ray import host_acks, host_flow
from ftray.checkpoint.errors import CheckpointError, CheckpointOptionError
from ftray.checkpoint.outcomes import keyed_head
from ftray.exceptions import NotSupportedError

HEAD = "_ftray_call"
"""The hidden argument of a call: its head, and which call of its caller was the first that could come here,
unless that is number 1."""
_NAMESPACE = b"ftray-callee-keys"
latest = threading.local()
"""``head``: of the call that this thread has made last; None if that only reads."""
_call_key: ContextVar[str | None] = ContextVar("ftray.ray.call_key", default=None)


@contextmanager
def call_key(text: str) -> Iterator[None]:
    """Name the call to an exactly-once actor that is made inside by a key of the user's."""
    if not isinstance(text, str) or not text:
        raise CheckpointOptionError(f"call_key={text!r} is not allowed; call_key is a text that is not empty")
    token = _call_key.set(text)
    try:
        yield
    finally:
        _call_key.reset(token)


def decorated(
    method: str, reads: bool, given: Any, invocation: Callable[..., Any]
) -> Callable[[Any, Any], Any]:
    """Return what Ray calls in place of `invocation`, which submits one call.

    Ray does this on its own for methods that have a ``__ray_invocation_decorator__``, in every process and
    with every handle but those of its client. `given`: the user's decorator, if there is one.
    """

    def submit(args: Any, kwargs: Any) -> Any:
        known = _closure(invocation)
        handle = getattr(known.get("self"), "_actor", None)
        key = None if handle is None else key_of_actor(handle._actor_id.binary())
        if key is None:
            return invocation(args, kwargs)  # the actor will go by Ray's TaskID
        _check(method, reads, known)
        return _send(handle, key, method, args, kwargs, invocation, reads)

    made: Callable[[Any, Any], Any] = submit if given is None else given(submit)
    return made


def no_stream(label: str, invocation: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return what Ray calls for a generator method of an exactly-once actor."""

    def refuse(args: Any, kwargs: Any) -> Any:
        raise NotSupportedError(
            f"{label} is a generator, and streaming is not supported for exactly-once actors, whose answers"
            " wait until what they tell of is durable. Return a list"
        )

    return refuse


def laned(method: str, given: Any, invocation: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """Return what Ray calls in place of `invocation` for methods of actors in snapshot mode."""
    groups: Any = sys.modules.get("ftray._ray.host_groups")  # there where this process is such an actor
    if groups is None or groups.serving is None:
        made: Callable[[Any, Any], Any] = invocation if given is None else given(invocation)
        return made

    def submit(args: Any, kwargs: Any) -> Any:
        return groups.send(_closure(invocation), invocation, method, args, kwargs)

    made = submit if given is None else given(submit)
    return made


def _closure(function: Any) -> dict[str, Any]:
    """Return what Ray's invocation refers to: the method, and the options of this call."""
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return {name: cell.cell_contents for name, cell in cells}


# -- callee keys


_KEY_BYTES = 16
_places: dict[bytes, bytes] = {}  # callee key, then store and checkpoint key as JSON


def publish_key(actor_id: bytes, store: str, key: str) -> None:
    """Have all callers of an actor know its callee key, and where its checkpoints are."""
    from ray.experimental.internal_kv import _internal_kv_put

    place = derive_callee_key(key) + json.dumps([store, key]).encode()
    _internal_kv_put(actor_id, place, overwrite=True, namespace=_NAMESPACE)


def forget_key(actor_id: bytes) -> None:
    """Nobody can reach the actor any more."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(actor_id, namespace=_NAMESPACE)


def key_of_actor(actor_id: bytes) -> bytes | None:
    """Return the callee key of an actor, None if it was made in a way that did not publish it."""
    place = _place(actor_id)
    return None if place is None else place[:_KEY_BYTES]


def place_of_actor(actor_id: bytes) -> tuple[str, str] | None:
    """Return the URL of an exactly-once actor's store, and its checkpoint key; None as `key_of_actor`."""
    place = _place(actor_id)
    if place is None:
        return None
    store, key = json.loads(place[_KEY_BYTES:])
    return str(store), str(key)


def _place(actor_id: bytes) -> bytes | None:
    place = _places.get(actor_id)
    if place is None:
        from ray.experimental.internal_kv import _internal_kv_get

        place = _internal_kv_get(actor_id, namespace=_NAMESPACE)
        if place is not None:
            _places[actor_id] = place
    return place


def _check(method: str, reads: bool, options: dict[str, Any]) -> None:
    if options.get("retry_exceptions") and not reads:
        raise CheckpointOptionError(
            f"retry_exceptions was given for {method!r} of an exactly-once actor, whose recorded reply is "
            "that exception, again and again: catch it and make another call"
        )
    num_returns = options.get("num_returns")
    if num_returns in ("dynamic", "streaming") or (isinstance(num_returns, int) and num_returns < 0):
        raise CheckpointOptionError(
            f'{method!r}: num_returns="streaming" and "dynamic" are not supported for exactly-once actors, '
            "whose answers wait until what they tell of is durable. Return a list"
        )
    if num_returns == 0:
        raise CheckpointOptionError(
            f"{method!r}: num_returns=0 is not supported for exactly-once actors: nobody would know whether "
            "the call has run, and the actor would keep its reply for ever. Leave it out, and drop the ref"
        )


def _send(
    handle: Any,
    key: bytes,
    method: str,
    args: Any,
    kwargs: Any,
    invocation: Callable[..., Any],
    reads: bool,
) -> Any:
    worker = ray._private.worker.global_worker
    commit_output(method)
    flow = host_flow.flow(worker)
    callee = flow.callee(key)
    named = None if reads else _call_key.get()
    if named is not None:
        head = latest.head = keyed_head(named, key, history=callee.history, chain=flow.chain)
        return invocation(args, {**(kwargs or {}), HEAD: head})
    with callee.lock:
        acked = callee.look(worker.core_worker)
        callee.told = max(callee.told, acked)
        callee.goes_to(handle._actor_id.binary())
        head = flow.head(key, callee, acked, reads)
        latest.head = None if reads else head
        sent = head if callee.base == 1 else (head, callee.base)
        try:
            refs = invocation(args, {**(kwargs or {}), HEAD: sent})
        except BaseException:
            if not reads:
                callee.n -= 1  # it was not sent
            raise
        if not reads:
            first = refs[0] if isinstance(refs, list) else refs
            callee.pending.append((callee.n, first.task_id(), worker.core_worker.get_current_task_id()))
            host_acks.watch(flow, key, callee, handle)
            if flow.keeps:
                callee.plain = handle
    return refs


def commit_output(what: str) -> None:
    """Something is about to leave this process: wait for all that it depends on, if a method sends it.

    Raises
    ------
    CheckpointError
        The method must not send it here.
    """
    durable = importlib.import_module("ftray._ray.host_calls").serving
    if durable is not None:
        durable.before_output(what)


class UnrecordedCallError(CheckpointError):
    """A method of an exactly-once actor makes a call whose result it would not get again if repeated."""
