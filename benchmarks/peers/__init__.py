"""The same work done with other libraries: a peer has functions for the rows that exist there, no others."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping

from benchmarks.budget import Budget

PeerRows = Mapping[str, Callable[[Budget], float]]

MODULES = {
    "pool": "benchmarks.peers.pool_rows",
    "dask": "benchmarks.peers.dask_rows",
    "xoscar": "benchmarks.peers.xoscar_rows",
}
TITLES = {"pool": "mp.Pool", "dask": "Dask", "xoscar": "xoscar"}
KEYS = {
    "pool": ("init", "first_task", "task_sync", "task_inflight", "task_queued", "memory"),
    "dask": (
        *("import", "init", "first_task", "memory", "actor_sync", "actor_inflight"),
        *("task_sync", "task_inflight", "task_chain", "task_big_ref", "task_queued"),
        *("put_small", "get_small", "put_100mb", "get_100mb"),
    ),
    "xoscar": (
        *("import", "init", "memory", "actor_create"),
        *("actor_sync", "actor_inflight", "actor_async", "actor_8kb", "actor_four"),
    ),
}
"""Rows that each peer has; known here so that the runner need not import the peers."""


def peer_rows(name: str) -> PeerRows:
    """The measuring functions of one peer.

    Raises
    ------
    ValueError
        When there is no such peer.
    """
    if name not in MODULES:
        raise ValueError(f"no such side: {name!r}; peers are {', '.join(MODULES)}, engines ftray and ray")
    rows: PeerRows = importlib.import_module(MODULES[name]).ROWS
    if set(rows) != set(KEYS[name]):
        raise AssertionError(f"{MODULES[name]} measures {sorted(rows)}, KEYS says {sorted(KEYS[name])}")
    return rows
