"""Tells exactly-once actors which of their answers have arrived when no further call of the caller says so.

An actor on Ray cannot ask its callers. So one thread of each process that has calls under way looks every
`EVERY_S` which of them Ray still waits for, and tells callees what is new: that makes room among the replies
kept, and lets calls go on that wait for one which never came (cancelled, or one of its arguments failed).
The answer to that is the callee's history, which later calls carry.

Owns: the thread, which lives while something is under way. Invariants: handles are kept only that long, so
that an actor which nobody can reach ends; a note that gets lost is made good by the next one.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from ftray._ray.host_flow import Callee, Flow

EVERY_S = 0.2
LINGER_S = 1.0

_lock = threading.Lock()
_watched: dict[tuple[bytes, bytes], tuple[Flow, bytes, Callee, Any]] = {}
_asked: dict[Any, Callee] = {}
_thread: threading.Thread | None = None


def watch(flow: Flow, key: bytes, callee: Callee, handle: Any) -> None:
    """A call of `flow` to `key` is under way; `handle` is Ray's own of the callee. With the callee's lock."""
    global _thread
    if callee.handle is not None:
        return
    with _lock:
        callee.handle = handle
        _watched[flow.parent, key] = (flow, key, callee, handle)
        if _thread is None:
            _thread = threading.Thread(target=_run, name="ftray answers", daemon=True)
            _thread.start()


def under_way(actors: Sequence[bytes]) -> int:
    """Return how many numbered calls of this process to these actors have no outcome yet."""
    from ftray._ray.host_handle import key_of_actor

    keys = {key_of_actor(actor) for actor in actors}
    with _lock:
        callees = [callee for _, key, callee, _ in _watched.values() if key in keys]
    found = 0
    for callee in callees:
        with callee.lock:
            callee.look_s = 0.0
            callee.look(_worker().core_worker)
            found += len(callee.pending)
    return found


def _run() -> None:
    global _thread
    idle_s = 0.0
    while True:
        stopped = _worker().threads_stopped.wait(EVERY_S)  # Ray's own threads stop by it, before Ray goes
        if stopped or not _worker().connected:
            _drop_all()
        with _lock:
            watched = list(_watched.items())
            idle_s = 0.0 if watched or _asked else idle_s + EVERY_S
            if idle_s > LINGER_S:
                _thread = None
                return
        try:
            _look(watched)
            _learn()
        except Exception:  # Ray is being shut down under us: nothing is under way any more
            _drop_all()


def _look(watched: list[tuple[tuple[bytes, bytes], tuple[Flow, bytes, Callee, Any]]]) -> None:
    worker = _worker()
    for place, (flow, key, callee, handle) in watched:
        with callee.lock:
            acked = callee.look(worker.core_worker)
            news = acked > callee.told or (acked > 1 and not callee.history)
            tell = news and not flow.keeps
            if tell:
                callee.told = acked
            if not callee.pending:
                callee.handle = None
                with _lock:
                    _watched.pop(place, None)
        if tell:
            note = handle.__ray_checkpoint_note__.options(max_task_retries=0).remote(
                "acknowledge", _head_of(flow, key, callee, acked)
            )
            with _lock:
                _asked[note] = callee
        del handle
    watched.clear()


def _head_of(flow: Flow, key: bytes, callee: Callee, acked: int) -> bytes:
    from ftray._core.identity import call_id
    from ftray._core.records import encode_head

    return encode_head(
        root_kind=flow.root_kind,
        root=flow.root,
        parent=flow.parent,
        call_id=call_id(flow.parent, key, callee.n, 0),
        n=callee.n,
        acked=acked,
        attempts=flow.attempts,
        chain=flow.chain,
    )


def _learn() -> None:
    """Take in the answers to notes: histories. Notes that failed say nothing."""
    import ray

    with _lock:
        notes = list(_asked)
    if not notes:
        return
    ready, _ = ray.wait(notes, num_returns=len(notes), timeout=0)
    for note in ready:
        with _lock:
            callee = _asked.pop(note)
        try:
            history = int(ray.get(note))
        except ray.exceptions.RayError:
            continue
        callee.history = max(callee.history, history)


def _drop_all() -> None:
    with _lock:
        for _, _, callee, _ in _watched.values():
            callee.handle = None
        _watched.clear()
        _asked.clear()


def _worker() -> Any:
    import ray

    return ray._private.worker.global_worker
