"""The rows of every resource, asked of a session.

Each function takes a `Link` and returns a `Table`: rows (dicts with the fields of the record), what is
missing, and what people should be told. Leaves to others: filters and limits (``api``).
"""

from __future__ import annotations

import struct
from typing import Any

from ftray.util.state.filters import MAX_LIMIT
from ftray.util.state.link import Link
from ftray.util.state.tasks import NODE_IP, Attempt, Processes, TaskRows, creation_row, host_name

INSPECT_TASKS, INSPECT_OBJECTS = 1, 2
# Processes get this share of the time to answer; the rest is for the answer's way here.
_SHARE = 0.8
_OBJECT = struct.Struct("<28sBBBBIIIIIIQ")
_ERROR, _ACTOR_HANDLE = 8, 32
_INLINE, _SHM = 2, 3
_FIRST_PUT = 0x80000000
_TASK_STATES = {
    1: "PENDING_ARGS_AVAIL",
    2: "PENDING_NODE_ASSIGNMENT",
    3: "SUBMITTED_TO_WORKER",
    5: "PENDING_NODE_ASSIGNMENT",
}
_ACTOR_STATES = {"PENDING": "PENDING_CREATION"}
_EXITS = {
    1: "SYSTEM_ERROR",
    2: "SYSTEM_ERROR",
    3: "NODE_OUT_OF_MEMORY",
    4: "SYSTEM_ERROR",
    5: "INTENDED_SYSTEM_EXIT",
    6: "INTENDED_USER_EXIT",
    7: "NODE_OUT_OF_MEMORY",
    8: "NODE_OUT_OF_MEMORY",
}


class Table:
    """Rows of one resource.

    Attributes
    ----------
    rows
        Every row that could be had.
    missing
        Processes that did not answer in time, in words; what they know is not in `rows`.
    truncated
        So many rows were too many for one process's answer.
    notes
        What people should know about the rows.
    """

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        self.missing: list[str] = []
        self.truncated = 0
        self.notes: list[str] = []


def _ms(unix_s: float | None) -> int | None:
    return None if unix_s is None else int(unix_s * 1000)


def _ask(link: Link, table: Table, what: int) -> list[tuple[bytes, int, bytes]]:
    """Ask every process; return (worker id, rows in the answer, answer without its head)."""
    found = link.call("inspect", what=what, limit=MAX_LIMIT, timeout_s=link.left_s * _SHARE)
    table.missing = [f"process {p['pid']} ({p['worker_id'].hex()[:16]})" for p in found["missing"]]
    answers = []
    for worker_id, answer in found["answers"]:
        total, shown = struct.unpack_from("<QI", answer)
        table.truncated += total - shown
        answers.append((worker_id, shown, answer[12:]))
    return answers


# --- tasks ----------------------------------------------------------------------------------------


class Tasks:
    """Attempts of tasks, and what is needed to name them.

    Attributes
    ----------
    attempts
        In the order of their submission.
    """

    def __init__(self, link: Link, table: Table) -> None:
        from ftray._core.eventfold import EventTable

        # What processes have in hand is asked for first: what ends meanwhile is in the records.
        answers = _ask(link, table, INSPECT_TASKS)
        events = link.call("task_events")
        self.processes = Processes(link.call("processes"))
        self.actors = link.call("actor_states")
        folded = EventTable()
        clocks = {process: clock for process, _records, clock, _running in events["living"]}
        for worker_id, _shown, units in answers:
            short = int.from_bytes(worker_id[:8], "little")
            if short in clocks:
                folded.add(units, short, clocks[short])
        for alive in (False, True):
            for process, records, clock, (task, attempt, since) in events["living" if alive else "dead"]:
                folded.add(records, process, clock)
                if task:
                    folded.add_running(task, attempt, since, process, alive, clock)
        if events["forgotten"]:
            table.notes.append(
                f"{events['forgotten']} older task attempts are forgotten;"
                " FTRAY_task_events_max_num_task_in_gcs says how many are kept"
            )
        self.attempts = [Attempt(row, self.processes) for row in folded.rows()]
        self.attempts.sort(key=lambda a: (a.submitted_ns, a.attempt))
        offset_ns = int(events["unix_offset_s"] * 1e9)
        self.maker = TaskRows(self.processes, events["functions"], self.actors, link.node_id, offset_ns)


def tasks(link: Link) -> Table:
    """Attempts of tasks, in the order of their submission."""
    table = Table([])
    found = Tasks(link, table)
    table.rows = [found.maker.row(attempt) for attempt in found.attempts]
    table.rows += [creation_row(actor, link.node_id) for actor in found.actors]
    table.rows.sort(key=lambda row: (row["creation_time_ms"] or 0, row["attempt_number"]))
    return table


# --- actors and processes -------------------------------------------------------------------------


def actors(link: Link) -> Table:
    """Actors in the order of their creation."""
    return Table([_actor(actor, link.node_id) for actor in link.call("actor_states")])


def _actor(actor: dict[str, Any], node_id: str) -> dict[str, Any]:
    cause = actor["cause"] if actor["state"] == "DEAD" else None
    state = actor["state"]
    if state == "ALIVE" and not actor["ready"]:
        state = "PENDING_CREATION" if actor["incarnation"] == 1 else "RESTARTING"
    return {
        "actor_id": actor["actor_id"].hex(),
        "class_name": actor["class_name"],
        "state": _ACTOR_STATES.get(state, state),
        "job_id": actor["actor_id"][12:].hex(),
        "name": actor["name"] or "",
        "node_id": node_id if actor.get("pid") else None,
        "pid": actor.get("pid"),
        "ray_namespace": actor["namespace"],
        "required_resources": actor["resources"],
        "death_cause": None if cause is None else _cause(cause),
        "is_detached": actor["is_detached"],
        "num_restarts": max(0, actor["incarnation"] - 1),
        "worker_id": actor["worker_id"].hex() if actor.get("worker_id") else None,
    }


def _cause(cause: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"kind": cause["kind"], "error_message": cause["text"]}
    death = cause.get("death")
    if death:
        found |= {"pid": death["pid"], "exit_detail": death["text"]}
    return found


def workers(link: Link) -> Table:
    """Processes in the order of their start, those that ended not long ago included."""
    return Table([_worker(process, link.node_id) for process in link.call("processes")])


def _worker(process: dict[str, Any], node_id: str) -> dict[str, Any]:
    death = process["death"]
    job = process["job_id"]
    return {
        "worker_id": process["worker_id"].hex(),
        "is_alive": death is None,
        "worker_type": "DRIVER" if process["is_driver"] else "WORKER",
        "exit_type": None if death is None else _EXITS.get(death["kind"], "SYSTEM_ERROR"),
        "node_id": node_id,
        "ip": NODE_IP,
        "pid": process["pid"],
        "exit_detail": None if death is None else death["text"],
        "start_time_ms": _ms(process["start_unix_s"]),
        "end_time_ms": _ms(process["end_unix_s"]),
        "job_id": job.to_bytes(4, "little").hex() if job else None,
        "actor_id": process["actor_id"].hex() if process["actor_id"] else None,
    }


def jobs(link: Link) -> Table:
    """Drivers in the order of their arrival."""
    return Table([_job(process) for process in link.call("processes") if process["is_driver"]])


def _job(process: dict[str, Any]) -> dict[str, Any]:
    death = process["death"]
    job_id = process["job_id"].to_bytes(4, "little").hex()
    return {
        "job_id": job_id,
        "submission_id": None,
        "type": "DRIVER",
        "status": "RUNNING" if death is None else "STOPPED",
        "message": None if death is None else death["text"],
        "start_time": _ms(process["start_unix_s"]),
        "end_time": _ms(process["end_unix_s"]),
        "driver_info": {"id": job_id, "node_ip_address": NODE_IP, "pid": str(process["pid"])},
    }


def nodes(link: Link) -> Table:
    """Machines."""
    return Table(
        [
            {
                "node_id": node["NodeID"],
                "node_ip": NODE_IP,
                "is_head_node": True,
                "state": "ALIVE" if node["Alive"] else "DEAD",
                "state_message": None,
                "node_name": host_name(),
                "resources_total": node["Resources"],
                "labels": {},
                "start_time_ms": _ms(node.get("start_unix_s")),
                "end_time_ms": None,
            }
            for node in link.call("nodes")
        ]
    )


def placement_groups(link: Link) -> Table:
    """Placement groups, the removed ones that are remembered included."""
    return Table([_group(group) for group in link.call("placement_group_table").values()])


def _group(group: dict[str, Any]) -> dict[str, Any]:
    nodes = group["bundles_to_node_id"]
    return {
        "placement_group_id": group["placement_group_id"],
        "name": group["name"],
        "creator_job_id": None,
        "state": group["state"],
        "bundles": [
            {"bundle_index": index, "unit_resources": amounts, "node_id": nodes.get(index, "")}
            for index, amounts in group["bundles"].items()
        ],
        "is_detached": group["is_detached"],
        "stats": group["stats"],
    }


# --- objects --------------------------------------------------------------------------------------


def objects(link: Link) -> Table:
    """Objects, asked of their owners."""
    table = Table([])
    answers = _ask(link, table, INSPECT_OBJECTS)
    known = {p["worker_id"]: p for p in link.call("processes")}
    with_sites = False
    for worker_id, shown, data in answers:
        sites = _sites(data, shown * _OBJECT.size)
        with_sites = with_sites or bool(sites)
        process = known.get(worker_id)
        for i in range(shown):
            table.rows.append(_object(_OBJECT.unpack_from(data, i * _OBJECT.size), sites, process))
    if not with_sites:
        table.notes.append(
            "call sites are not recorded; set FTRAY_record_ref_creation_sites=1 before init() for them"
        )
    return table


def _sites(data: bytes, at: int) -> list[str]:
    (count,) = struct.unpack_from("<I", data, at)
    at += 4
    sites = []
    for _ in range(count):
        (size,) = struct.unpack_from("<H", data, at)
        sites.append(data[at + 2 : at + 2 + size].decode("utf-8", "replace"))
        at += 2 + size
    return sites


def _object(row: Any, sites: list[str], process: dict[str, Any] | None) -> dict[str, Any]:
    object_id, state, flags, task_state, _lost, local, in_tasks, contained, borrowers, attempt, site, size = (
        row
    )
    return {
        "object_id": object_id.hex(),
        "object_size": size if state >= _INLINE else -1,
        "task_status": _task_status(object_id, flags, task_state),
        "attempt_number": attempt,
        "reference_type": _reference_type(state, flags, local, in_tasks, contained),
        "call_site": sites[site - 1] if 0 < site <= len(sites) else "disabled" if not sites else "",
        "type": "DRIVER" if process and process["is_driver"] else "WORKER",
        "pid": process["pid"] if process else None,
        "ip": NODE_IP,
        "local_references": local,
        "tasks": in_tasks,
        "borrowers": borrowers,
    }


def _task_status(object_id: bytes, flags: int, task_state: int) -> str:
    if flags & _ACTOR_HANDLE or object_id[:8] == b"\xff" * 8:
        return "NIL"
    if task_state:
        return _TASK_STATES.get(task_state, "NIL")
    if int.from_bytes(object_id[24:], "little") >= _FIRST_PUT:
        return "NIL"
    return "FAILED" if flags & _ERROR else "FINISHED"


def _reference_type(state: int, flags: int, local: int, in_tasks: int, contained: int) -> str:
    if flags & _ACTOR_HANDLE:
        return "ACTOR_HANDLE"
    if in_tasks:
        return "USED_BY_PENDING_TASK"
    if local:
        return "PINNED_IN_MEMORY" if state == _SHM else "LOCAL_REFERENCE"
    return "CAPTURED_IN_OBJECT" if contained else "UNKNOWN_STATUS"


TABLES = {
    "tasks": tasks,
    "actors": actors,
    "objects": objects,
    "nodes": nodes,
    "workers": workers,
    "jobs": jobs,
    "placement-groups": placement_groups,
}
