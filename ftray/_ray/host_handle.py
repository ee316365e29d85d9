"""Handles of exactly-once actors on Ray: Ray's own, but each call carries its CallID.

A handle is made where the actor is made, by `wrapped`, and stays one when it is passed on. Ray's own handle
(of ``ray.get_actor``) works too: its calls are known by Ray's TaskID, see `host_flow.task_head`.

Owns: what a call gets on its way, and the output commit of calls that leave methods of exactly-once actors.
Invariants: a method's start and values are durable before a call of it leaves; what repeats a finished call
sends nothing; a call that was sent is pending in its flow before anything else of the flow runs.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import ray
from ray.actor import ActorHandle

from ftray._ray import host_acks, host_flow
from ftray.checkpoint.errors import CheckpointError, CheckpointOptionError

HEAD = "_ftray_call"
"""The hidden argument of a call: its head."""
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


class CheckpointHandle(ActorHandle):  # type: ignore[misc]
    """A handle of an exactly-once actor; made by `wrapped`."""

    def __del__(self) -> None:
        """Ray's own handle, which this one has, is what counts."""

    def __reduce__(self) -> tuple[Any, ...]:
        own = self.__dict__
        return wrapped, (own["_ftray_plain"], own["_ftray_key"], own["_ftray_reads"])

    def _actor_method_call(
        self, method_name: str, args: Any = None, kwargs: Any = None, **options: Any
    ) -> Any:
        own = self.__dict__
        plain, reads = own["_ftray_plain"], method_name in own["_ftray_reads"]
        if method_name in _UNNAMED:
            return plain._actor_method_call(method_name, args, kwargs, **options)
        _check(method_name, reads, options)
        return _send(plain, own["_ftray_key"], method_name, args, kwargs, options, reads)


_UNNAMED = frozenset({"__ray_ready__", "__ray_terminate__", "__ray_checkpoint_note__"})


def wrapped(plain: ActorHandle, key: bytes, reads: frozenset[str]) -> CheckpointHandle:
    """Return a handle whose calls carry their CallIDs; it shares what `plain` knows, and keeps it."""
    handle = CheckpointHandle.__new__(CheckpointHandle)
    handle.__dict__.update(plain.__dict__)
    handle.__dict__.update(_ftray_plain=plain, _ftray_key=key, _ftray_reads=reads)
    return handle


def _check(method: str, reads: bool, options: dict[str, Any]) -> None:
    if options.get("retry_exceptions") and not reads:
        raise CheckpointOptionError(
            f"retry_exceptions was given for {method!r} of an exactly-once actor, whose recorded reply is that "
            "exception, again and again: catch it and make another call"
        )
    num_returns = options.get("num_returns")
    if num_returns in ("dynamic", "streaming") or (isinstance(num_returns, int) and num_returns < 0):
        raise CheckpointOptionError(
            f'{method!r}: num_returns="streaming" and "dynamic" are not supported for exactly-once actors, '
            "whose answers wait until what they tell of is durable. Return a list"
        )
    if num_returns == 0:
        raise CheckpointOptionError(
            f"{method!r}: num_returns=0 is not supported for exactly-once actors: nobody would know whether the "
            "call has run, and the actor would keep its reply for ever. Leave it out, and drop the ref"
        )


def _send(
    plain: ActorHandle,
    key: bytes,
    method: str,
    args: Any,
    kwargs: Any,
    options: dict[str, Any],
    reads: bool,
) -> Any:
    worker = ray._private.worker.global_worker
    commit_output(method)
    flow = host_flow.flow(worker)
    callee = flow.callee(key)
    named = None if reads else _call_key.get()
    if named is not None:
        head = host_flow.keyed_head(key, named, callee.history, flow)
        return plain._actor_method_call(method, args, {**(kwargs or {}), HEAD: head}, **options)
    with callee.lock:
        acked = callee.look(worker.core_worker)
        callee.told = max(callee.told, acked)
        head = flow.head(key, callee, acked, reads)
        try:
            refs = plain._actor_method_call(method, args, {**(kwargs or {}), HEAD: head}, **options)
        except BaseException:
            if not reads:
                callee.n -= 1  # it was not sent
            raise
        if not reads:
            first = refs[0] if isinstance(refs, list) else refs
            callee.pending.append((callee.n, first.task_id(), worker.core_worker.get_current_task_id()))
            host_acks.watch(flow, key, callee, plain)
            if flow.keeps:
                callee.plain = plain
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
    """A method of an exactly-once actor makes a call whose result it would not get again when it is repeated."""
