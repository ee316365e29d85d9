"""Where ``kv://`` and ``actor://`` live: in the cluster that this process is part of, ftray's or Ray's.

Owns the choice, and for Ray what these stores need of it. Ray is never imported here: who is part of a Ray
cluster has done that.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

from ..errors import CheckpointStoreError


def of_ray() -> bool:
    """Whether this process is connected to a Ray cluster, and not to a node of ftray."""
    module: Any = sys.modules.get("ray")
    is_initialized = getattr(module, "is_initialized", None)
    if is_initialized is None or not is_initialized():
        return False
    attached: bool = importlib.import_module("ftray._core").attached()
    return not attached


class RayKv:
    """Ray's internal key-value store, with the functions of ``ftray.experimental.internal_kv``."""

    def __init__(self) -> None:
        self._kv: Any = importlib.import_module("ray.experimental.internal_kv")

    def initialized(self) -> bool:
        """Whether the store can be reached."""
        return bool(self._kv._internal_kv_initialized())

    def put(self, key: str, value: bytes, overwrite: bool = True, *, namespace: str | bytes) -> bool:
        """Store a value; return whether the key was there, which `overwrite=False` decides in one step."""
        there = self._kv._internal_kv_put(_b(key), value, overwrite=overwrite, namespace=_space(namespace))
        return bool(there)

    def get(self, key: str, *, namespace: str | bytes) -> bytes | None:
        """Return a value."""
        found: bytes | None = self._kv._internal_kv_get(_b(key), namespace=_space(namespace))
        return found

    def delete(self, key: str, *, namespace: str | bytes) -> int:
        """Remove a key."""
        return int(self._kv._internal_kv_del(_b(key), namespace=_space(namespace)))

    def list_keys(self, prefix: str, *, namespace: str | bytes) -> list[bytes]:
        """Return all keys with this prefix, sorted."""
        return sorted(self._kv._internal_kv_list(_b(prefix), namespace=_space(namespace)))


def _b(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _space(namespace: str | bytes) -> bytes:
    """Return Ray's namespace, which ends at a colon; the same as of ``ftray.experimental.internal_kv``."""
    return f"ftray-{_b(namespace).hex()}".encode()


def kv() -> Any:
    """Return the key-value store of the cluster."""
    return RayKv() if of_ray() else importlib.import_module("ftray.experimental.internal_kv")


def kv_errors() -> tuple[type[BaseException], ...]:
    """Return what the key-value store of the cluster raises when it cannot be used."""
    if of_ray():
        return (importlib.import_module("ray.exceptions").RayError, RuntimeError, ConnectionError)
    exceptions = importlib.import_module("ftray.exceptions")
    return (exceptions.InternalKVError, exceptions.OutOfDiskError, ConnectionError)


def kv_survives() -> frozenset[str]:
    """Return what values in the key-value store survive."""
    if of_ray():  # in memory of the head's control service, unless the cluster's owner gave it a Redis
        return frozenset({"process"})
    is_head = importlib.import_module("ftray._api").node_rpc("nodes")[0]["is_head"]
    return frozenset({"process", "power", "head"} if is_head else {"process"})


def actors() -> Any:
    """Return the module that makes actors, ``ray`` or ``ftray``, which has been initialised."""
    module: Any = importlib.import_module("ray" if of_ray() else "ftray")
    if not module.is_initialized():
        raise CheckpointStoreError("call ftray.init() first (in a program of Ray: ray.init())")
    return module


def on_head(ray: Any) -> dict[str, Any]:
    """Return the options by which an actor is on the head node and stays there."""
    if not of_ray():
        return {}
    head = [node["NodeID"] for node in ray.nodes() if "node:__internal_head__" in node["Resources"]]
    if not head:
        raise CheckpointStoreError("no head node is among the nodes of this Ray cluster")
    strategies = importlib.import_module("ray.util.scheduling_strategies")
    return {"scheduling_strategy": strategies.NodeAffinitySchedulingStrategy(head[0], soft=False)}
