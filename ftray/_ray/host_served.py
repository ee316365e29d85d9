"""What a process of an actor tells its successors: that it has served.

Owns: one entry for each actor with checkpoints in Ray's key-value store, until nobody can reach the actor.
"""

from __future__ import annotations

_NAMESPACE = b"ftray actors that have served"


def note(actor_id: bytes) -> None:
    """This process serves."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(actor_id, b"", namespace=_NAMESPACE)


def noted(actor_id: bytes) -> bool:
    """Return whether a process of the actor has served."""
    from ray.experimental.internal_kv import _internal_kv_exists

    return bool(_internal_kv_exists(actor_id, namespace=_NAMESPACE))


def forget(actor_id: bytes) -> None:
    """Nobody can reach the actor any more."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(actor_id, namespace=_NAMESPACE)
