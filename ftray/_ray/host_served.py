"""What a process of an actor tells its successors: that it has served, and where its checkpoints are.

A successor that finds nothing there must not begin empty in silence: somebody has removed the key, or Ray has
started it on another machine, whose disk is not that one. Owns: one entry for each actor in Ray's key-value
store.
"""

from __future__ import annotations

import json

from ftray.checkpoint.errors import CheckpointNotFoundError
from ftray.checkpoint.snapshots import SnapshotLog
from ftray.checkpoint.stores import connect

_NAMESPACE = b"ftray actors that have served"


def note(actor_id: bytes, log: SnapshotLog) -> None:
    """This process serves."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(actor_id, json.dumps([log.store.url, log.key]).encode(), namespace=_NAMESPACE)


def forget(actor_id: bytes) -> None:
    """Nobody can reach the actor any more."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(actor_id, namespace=_NAMESPACE)


def check(actor_id: bytes, class_name: str) -> None:
    """Raise `CheckpointNotFoundError` if an earlier process has served and nothing of it is there."""
    from ray.experimental.internal_kv import _internal_kv_get

    noted = _internal_kv_get(actor_id, namespace=_NAMESPACE)
    if noted is None:
        return
    url, key = json.loads(noted)
    if connect(url).scan(key).claims:
        return
    raise CheckpointNotFoundError(
        f"{class_name} has served before, and checkpoint key {key!r} in {url}, where its state was, has "
        "nothing now: somebody has removed it, or this process is on another machine and the store is "
        "a disk of one. Give a store that all nodes reach (s3://..., or a directory that they share); "
        "an actor that is made anew begins from __init__"
    )
