"""States of a Ray cluster as rows of `ftray.util.state`, read from Ray's control service.

They need no dashboard. Objects are known to Ray's dashboard only: `ray memory` has them.
"""

from __future__ import annotations

from typing import Any

import ray
from ray._private.state import state
from ray.core.generated import common_pb2, gcs_pb2

from ftray._ray import client
from ftray.exceptions import NotSupportedError
from ftray.util.state.tables import Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable


def table(resource: str, address: str | None) -> Table:
    """Return the rows of a resource."""
    if address is not None:
        raise NotSupportedError(
            f"address={address!r} is not supported on the engine 'ray': it tells of the cluster that this"
            " process has joined"
        )
    client.refuse(f"the state of {resource}")
    if resource not in _TABLES:
        raise NotSupportedError(
            f"the state of {resource} is not supported on the engine 'ray': see `ray list {resource}` and"
            " `ray memory`, which need Ray's dashboard"
        )
    return Table(_TABLES[resource]())


def _accessor() -> Any:
    return state._connect_and_get_accessor()


def _text(raw: bytes) -> str | None:
    return raw.hex() if raw else None


def _actors() -> list[dict[str, Any]]:
    parse = gcs_pb2.ActorTableData
    return [_actor(parse.FromString(raw)) for raw in _accessor().get_actor_table(None, None)]


def _actor(row: Any) -> dict[str, Any]:
    found = gcs_pb2.ActorTableData.ActorState.DESCRIPTOR.values_by_number[row.state].name
    dead = found == "DEAD"
    return {
        "actor_id": row.actor_id.hex(),
        "class_name": row.class_name,
        "state": found,
        "job_id": row.job_id.hex(),
        "name": row.name,
        "node_id": _text(row.address.node_id),
        "pid": row.pid or None,
        "ray_namespace": row.ray_namespace,
        "required_resources": dict(row.required_resources),
        "death_cause": {"error_message": _cause(row.death_cause)} if dead else None,
        "is_detached": row.is_detached,
        "num_restarts": int(row.num_restarts),
        "worker_id": _text(row.address.worker_id),
    }


def _cause(cause: Any) -> str:
    kind = cause.WhichOneof("context")
    found = getattr(cause, kind) if kind else None
    return str(getattr(found, "error_message", "") or found or "").strip()


def _nodes() -> list[dict[str, Any]]:
    return [
        {
            "node_id": node["NodeID"],
            "node_ip": node["NodeManagerAddress"],
            "is_head_node": "node:__internal_head__" in node["Resources"],
            "state": "ALIVE" if node["Alive"] else "DEAD",
            "state_message": node.get("DeathReasonMessage") or None,
            "node_name": node.get("NodeName") or node["NodeManagerHostname"],
            "resources_total": dict(node["Resources"]),
            "labels": dict(node.get("Labels") or {}),
            "start_time_ms": None,
            "end_time_ms": None,
        }
        for node in ray.nodes()
    ]


def _workers() -> list[dict[str, Any]]:
    parse = gcs_pb2.WorkerTableData
    return [_worker(parse.FromString(raw)) for raw in _accessor().get_worker_table()]


def _worker(row: Any) -> dict[str, Any]:
    exits = common_pb2.WorkerExitType.DESCRIPTOR.values_by_number
    return {
        "worker_id": row.worker_address.worker_id.hex(),
        "is_alive": row.is_alive,
        "worker_type": common_pb2.WorkerType.DESCRIPTOR.values_by_number[row.worker_type].name,
        "exit_type": None if row.is_alive else exits[row.exit_type].name,
        "node_id": row.worker_address.node_id.hex(),
        "ip": row.worker_address.ip_address,
        "pid": row.pid,
        "exit_detail": row.exit_detail or None,
        "start_time_ms": row.start_time_ms or None,
        "end_time_ms": row.end_time_ms or None,
        "job_id": None,
        "actor_id": None,
    }


def _jobs() -> list[dict[str, Any]]:
    return [
        {
            "job_id": job["JobID"],
            "submission_id": None,
            "type": "DRIVER",
            "status": "STOPPED" if job["IsDead"] else "RUNNING",
            "message": None,
            "start_time": job["StartTime"],
            "end_time": job["EndTime"] or None,
            "driver_info": {
                "id": job["JobID"],
                "node_ip_address": job["DriverIPAddress"],
                "pid": str(job["DriverPid"]),
            },
        }
        for job in state.job_table()
    ]


def _placement_groups() -> list[dict[str, Any]]:
    return [
        {
            "placement_group_id": group["placement_group_id"],
            "name": group["name"],
            "creator_job_id": None,
            "state": group["state"],
            "bundles": [
                {
                    "bundle_index": index,
                    "unit_resources": amounts,
                    "node_id": group["bundles_to_node_id"].get(index, ""),
                }
                for index, amounts in group["bundles"].items()
            ],
            "is_detached": None,
            "stats": group["stats"],
        }
        for group in ray.util.placement_group_table().values()
    ]


def _tasks() -> list[dict[str, Any]]:
    rows = [_task(event) for event in state._get_all_task_events() if event.HasField("task_info")]
    return sorted(rows, key=lambda row: (row["creation_time_ms"] or 0, row["attempt_number"]))


def _task(event: Any) -> dict[str, Any]:
    info, updates = event.task_info, event.state_updates
    reached = {number: int(when) for number, when in updates.state_ts_ns.items()}
    statuses = common_pb2.TaskStatus.DESCRIPTOR.values_by_number
    last = max(reached, default=None)
    first = common_pb2.TaskStatus.Value("PENDING_ARGS_AVAIL")
    started = common_pb2.TaskStatus.Value("RUNNING")
    over = [common_pb2.TaskStatus.Value(name) for name in ("FINISHED", "FAILED")]
    failed = updates.HasField("error_info")
    return {
        "task_id": event.task_id.hex(),
        "attempt_number": event.attempt_number,
        "name": info.name,
        "state": "NIL" if last is None else statuses[last].name,
        "job_id": event.job_id.hex(),
        "actor_id": _text(info.actor_id),
        "type": common_pb2.TaskType.DESCRIPTOR.values_by_number[info.type].name,
        "func_or_class_name": info.func_or_class_name,
        "parent_task_id": info.parent_task_id.hex(),
        "node_id": _text(updates.node_id),
        "worker_id": _text(updates.worker_id),
        "worker_pid": updates.worker_pid or None,
        "error_type": common_pb2.ErrorType.DESCRIPTOR.values_by_number[updates.error_info.error_type].name
        if failed
        else None,
        "language": "PYTHON",
        "events": [
            {"state": statuses[number].name, "created_ms": when // 1_000_000}
            for number, when in sorted(reached.items())
        ],
        "creation_time_ms": _ms(reached.get(first)),
        "start_time_ms": _ms(reached.get(started)),
        "end_time_ms": _ms(next((reached[one] for one in over if one in reached), None)),
        "error_message": updates.error_info.error_message if failed else None,
    }


def _ms(time_ns: int | None) -> int | None:
    return None if time_ns is None else time_ns // 1_000_000


_TABLES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "actors": _actors,
    "jobs": _jobs,
    "nodes": _nodes,
    "placement-groups": _placement_groups,
    "tasks": _tasks,
    "workers": _workers,
}
