"""The only place where tests look inside the runtime: counters and the processes of a session."""

from __future__ import annotations

import os
from typing import Any

import ftray as ray
from ftray import _core
from tests.helpers import processes

# Counters of this process that are zero when the program holds nothing. Others (warm, idle segments or
# channels for example) may stay.
LIVE = (
    "entries",
    "pending_tasks",
    "kept_tasks",
    "lineage_bytes",
    "exposed",
    "unregistered",
    "inflight",
    "gated",
    "exec_queue",
    "blocks",
    "live_bytes",
    "pins",
    "bad_frees",
)


def counters() -> dict[str, int]:
    """What the core of this process counts: references, tasks, channels, segments."""
    return {**_core.debug_counters(), **_core.segment_stats()}


def live_counters() -> dict[str, int]:
    """The live counters that are not zero."""
    state = counters()
    missing = [name for name in LIVE if name not in state]
    assert not missing, f"the core no longer counts {missing}: {sorted(state)}"
    return {name: state[name] for name in LIVE if state[name]}


def node_pid(driver_pid: int | None = None) -> int:
    """``ftrayd`` of a driver that started its own."""
    driver_pid = driver_pid or os.getpid()
    children = processes.children_of(driver_pid)
    named = [pid for pid in children if "ftray" in processes.command_of(pid)] or children
    # It may have no children for a moment: when what forks workers was killed.
    nodes = [pid for pid in named if processes.children_of(pid)] or named
    assert len(nodes) == 1, f"expected one ftrayd below {driver_pid}: {nodes}"
    return nodes[0]


def zygote_pids(driver_pid: int | None = None) -> list[int]:
    """The zygote, or none while a dead one is replaced."""
    return zygotes_of(node_pid(driver_pid))


def zygotes_of(node: int) -> list[int]:
    children = processes.children_of(node)
    return [pid for pid in children if "zygote" in processes.name_of(pid) and processes.is_running(pid)]


def zygote_pid(driver_pid: int | None = None) -> int:
    return processes.only_zygote(lambda: processes.children_of(node_pid(driver_pid)))


def worker_pids(driver_pid: int | None = None) -> list[int]:
    """Running workers, idle ones included."""
    return workers_of(node_pid(driver_pid))


def workers_of(node: int) -> list[int]:
    zygotes = zygotes_of(node)
    return [pid for pid in processes.children_of(node) if pid not in zygotes and processes.is_running(pid)]


def named_actors() -> list[dict[str, str]]:
    """Actors that have names: the next test may want to use one of these."""
    return list(ray.util.list_named_actors(all_namespaces=True))


def all_resources_back() -> bool:
    """True when nothing holds any resource."""
    available: dict[str, Any] = ray.available_resources()
    return all(
        abs(available.get(name, 0.0) - total) < 1e-6 for name, total in ray.cluster_resources().items()
    )
