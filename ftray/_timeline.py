"""`ftray.timeline`: what ran where and when, for chrome://tracing, Perfetto and the like."""

from __future__ import annotations

import json
import os
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ftray.util.state.tasks import Attempt, TaskRows

_COLORS = {"FINISHED": "good", "FAILED": "terrible", "RUNNING": "vsync_highlight_color"}


def timeline(
    filename: str | None = None, address: str | None = None, timeout_s: float = 30.0
) -> list[dict[str, Any]] | None:
    """See `ftray.timeline`; `address` and `timeout_s` as of `ftray.util.state.list_tasks`."""
    from ftray.util.state.filters import checked_timeout
    from ftray.util.state.link import Link
    from ftray.util.state.tables import Table, Tasks

    if filename is not None and not isinstance(filename, str | os.PathLike):
        raise TypeError(f"filename must be a path or None, not {filename!r}")
    with Link(address, checked_timeout(timeout_s)) as link:
        tasks = Tasks(link, Table([]))
    found: list[dict[str, Any]] = []
    used: dict[int, dict[str, Any]] = {}
    now_ns = time.monotonic_ns()
    for attempt in tasks.attempts:
        if attempt.started_ns and attempt.executor is not None:
            used[attempt.executor["pid"]] = attempt.executor
            found.append(_slice(attempt, tasks.maker, now_ns))
    found = [*_names(used), *found]
    if filename is None:
        return found
    with open(filename, "w") as file:
        json.dump(found, file)
    return None


def _slice(attempt: Attempt, maker: TaskRows, now_ns: int) -> dict[str, Any]:
    facts = maker.row(attempt)
    end_ns = attempt.over_ns or now_ns
    return {
        "cat": "task",
        "name": facts["name"],
        "ph": "X",
        "pid": facts["worker_pid"],
        "tid": facts["worker_pid"],
        "ts": attempt.started_ns / 1000,
        "dur": max(0, end_ns - attempt.started_ns) / 1000,
        "cname": _COLORS.get(facts["state"], "generic_work"),
        "args": {
            "task_id": facts["task_id"],
            "attempt_number": facts["attempt_number"],
            "state": facts["state"],
            "job_id": facts["job_id"],
            "actor_id": facts["actor_id"],
            "error_type": facts["error_type"],
            "submitted_us": attempt.submitted_ns / 1000,
        },
    }


def _names(processes: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    named = []
    for pid, process in sorted(processes.items()):
        role = "actor" if process["actor_id"] else "worker"
        label = f"{role} {pid} ({process['label']})" if process["label"] else f"{role} {pid}"
        named.append({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": label}})
    return named
