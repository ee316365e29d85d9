"""``list_*``, ``get_*`` and ``summarize_*``: see `ftray.util.state`."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

from ftray import _engine
from ftray._options import boolean
from ftray.util.state import filters as _filters
from ftray.util.state import records, tables
from ftray.util.state.exception import RayStateApiException
from ftray.util.state.filters import Filter
from ftray.util.state.link import Link
from ftray.util.state.records import (
    ActorState,
    JobState,
    NodeState,
    ObjectState,
    PlacementGroupState,
    StateSchema,
    TaskState,
    WorkerState,
)

DEFAULT_LIMIT = 100
DEFAULT_TIMEOUT_S = 30


class Listing:
    """Rows of one resource as they were asked for.

    Attributes
    ----------
    rows
        What passed the filters, at most as many as the limit.
    total
        How many passed the filters.
    notes
        What people should know: what is missing, or cut off.
    """

    def __init__(self, rows: list[dict[str, Any]], total: int, notes: list[str]) -> None:
        self.rows = rows
        self.total = total
        self.notes = notes


def query(
    resource: str,
    address: str | None = None,
    filters: Iterable[Filter] | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_TIMEOUT_S,
    raise_on_missing_output: bool = True,
) -> Listing:
    """Ask a session for the rows of a resource.

    Raises
    ------
    ValueError, TypeError
        A filter, limit or time-out that makes no sense (the message says what is allowed).
    RayStateApiException
        A process did not answer in time, or had too many rows, and `raise_on_missing_output` is set.
    ServerUnavailable
        There is no session, or its node process does not answer.
    """
    boolean("raise_on_missing_output", raise_on_missing_output)
    record = records.RESOURCES[resource][0]
    wanted = _filters.checked(record, filters)
    most = _filters.checked_limit(limit)
    table = _engine.current().state_table(resource, address, _filters.checked_timeout(timeout))
    notes = _missing(table)
    if notes and raise_on_missing_output:
        raise RayStateApiException(
            f"not all {resource} are known: {'; '.join(notes)}. Give a larger timeout, or"
            " raise_on_missing_output=False to get what is there."
        )
    rows = _filters.matching(table.rows, wanted)
    if len(rows) > most:
        notes.append(
            f"{most} of {len(rows)} {resource} are shown; use filters, or a larger limit"
            f" (at most {_filters.MAX_LIMIT})"
        )
    return Listing(rows[-most:] if resource == "tasks" else rows[:most], len(rows), notes + table.notes)


def _missing(table: tables.Table) -> list[str]:
    notes = []
    if table.missing:
        notes.append(f"no answer in time from {', '.join(table.missing)}")
    if table.truncated:
        notes.append(
            f"{table.truncated} were too many for one answer ({_filters.MAX_LIMIT} for each process)"
        )
    return notes


def make(resource: str, row: dict[str, Any], detail: bool) -> StateSchema:
    """Return the record of a row."""
    record = records.RESOURCES[resource][0]
    names = record.list_columns(detail)
    return record(**{name: row[name] for name in names if name in row})


def _list(
    resource: str,
    address: str | None,
    filters: Iterable[Filter] | None,
    limit: int,
    timeout: float,
    detail: bool,
    raise_on_missing_output: bool,
) -> Any:
    boolean("detail", detail)
    listing = query(resource, address, filters, limit, timeout, raise_on_missing_output)
    for note in listing.notes:
        if not note.startswith("call sites"):
            warnings.warn(note, stacklevel=3)
    return [make(resource, row, detail) for row in listing.rows]


def list_tasks(
    address: str | None = None,
    filters: Iterable[Filter] | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[TaskState]:
    """Return attempts of tasks, the newest `limit` of them, in the order of their submission.

    Parameters
    ----------
    address : str, optional
        Directory of a session, or "auto" for the newest; by default the one that this process is part of.
    filters : list of (key, predicate, value), optional
        Predicates are "=" and "!="; all must hold. Texts compare without case.
    limit : int, default 100
        At most 10,000.
    timeout : float, default 30
        Seconds. A process that does not answer within it is missing from the result.
    detail : bool, default False
        Fill also times, events and error messages.
    raise_on_missing_output : bool, default True
        Raise when something is missing; otherwise warn.

    Returns
    -------
    list of TaskState

    Raises
    ------
    ValueError, TypeError
        An argument that makes no sense.
    RayStateApiException
        Something is missing.
    """
    return cast(
        "list[TaskState]", _list("tasks", address, filters, limit, timeout, detail, raise_on_missing_output)
    )


def list_actors(
    address: str | None = None,
    filters: Iterable[Filter] | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[ActorState]:
    """Return actors, dead ones included; arguments as of `list_tasks`."""
    return cast(
        "list[ActorState]", _list("actors", address, filters, limit, timeout, detail, raise_on_missing_output)
    )


def list_objects(
    address: str | None = None,
    filters: Iterable[Filter] | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[ObjectState]:
    """Return objects, as their owners know them; arguments as of `list_tasks`."""
    return cast(
        "list[ObjectState]",
        _list("objects", address, filters, limit, timeout, detail, raise_on_missing_output),
    )


def list_nodes(
    address: str | None = None,
    filters: Iterable[Filter] | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[NodeState]:
    """Return machines; arguments as of `list_tasks`."""
    return cast(
        "list[NodeState]", _list("nodes", address, filters, limit, timeout, detail, raise_on_missing_output)
    )


def list_workers(
    address: str | None = None,
    filters: Iterable[Filter] | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[WorkerState]:
    """Return processes, drivers and dead ones included; arguments as of `list_tasks`."""
    return cast(
        "list[WorkerState]",
        _list("workers", address, filters, limit, timeout, detail, raise_on_missing_output),
    )


def list_jobs(
    address: str | None = None,
    filters: Iterable[Filter] | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[JobState]:
    """Return jobs, one for each driver; arguments as of `list_tasks`."""
    return cast(
        "list[JobState]", _list("jobs", address, filters, limit, timeout, detail, raise_on_missing_output)
    )


def list_placement_groups(
    address: str | None = None,
    filters: Iterable[Filter] | None = None,
    limit: int = DEFAULT_LIMIT,
    timeout: float = DEFAULT_TIMEOUT_S,
    detail: bool = False,
    raise_on_missing_output: bool = True,
) -> list[PlacementGroupState]:
    """Return placement groups; arguments as of `list_tasks`."""
    return cast(
        "list[PlacementGroupState]",
        _list("placement-groups", address, filters, limit, timeout, detail, raise_on_missing_output),
    )


# --- one ------------------------------------------------------------------------------------------


def find(resource: str, id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> list[Any]:
    """Return the records with this id, with details; several for a task of several attempts."""
    if not isinstance(id, str) or not id:
        kind = ValueError if isinstance(id, str) else TypeError
        raise kind(f"the id of one of the {resource} is a hexadecimal text, not {id!r:.100}")
    key = records.RESOURCES[resource][1]
    found = query(resource, address, [(key, "=", id)], _filters.MAX_LIMIT, timeout, False)
    return [make(resource, row, True) for row in found.rows]


def _get(resource: str, id: str, address: str | None, timeout: float) -> Any:
    found = find(resource, id, address, timeout)
    return found[0] if found else None


def get_task(
    id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S
) -> TaskState | list[TaskState] | None:
    """Return the task with this id, a list when it has several attempts, None when it is not known."""
    found = find("tasks", id, address, timeout)
    return found if len(found) > 1 else found[0] if found else None


def get_actor(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> ActorState | None:
    """Return the actor with this id, None when it is not known."""
    return cast("ActorState | None", _get("actors", id, address, timeout))


def get_node(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> NodeState | None:
    """Return the machine with this id, None when it is not known."""
    return cast("NodeState | None", _get("nodes", id, address, timeout))


def get_worker(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> WorkerState | None:
    """Return the process with this id, None when it is not known."""
    return cast("WorkerState | None", _get("workers", id, address, timeout))


def get_job(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> JobState | None:
    """Return the job with this id, None when it is not known."""
    return cast("JobState | None", _get("jobs", id, address, timeout))


def get_placement_group(
    id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S
) -> PlacementGroupState | None:
    """Return the placement group with this id, None when it is not known."""
    return cast("PlacementGroupState | None", _get("placement-groups", id, address, timeout))


def get_objects(id: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> list[ObjectState]:
    """Return what is known of the object with this id."""
    return find("objects", id, address, timeout)


# --- summaries ------------------------------------------------------------------------------------


def summarize(resource: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Count rows of tasks, actors or objects by name, class or call site."""
    return {"tasks": _sum_tasks, "actors": _sum_actors, "objects": _sum_objects}[resource](rows)


def _last_attempts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["task_id"] not in last or last[row["task_id"]]["attempt_number"] <= row["attempt_number"]:
            last[row["task_id"]] = row
    return list(last.values())


def _sum_tasks(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, dict[str, Any]] = {}
    last = _last_attempts(rows)
    for row in last:
        entry = summary.setdefault(
            row["func_or_class_name"],
            {"func_or_class_name": row["func_or_class_name"], "type": row["type"], "state_counts": Counter()},
        )
        entry["state_counts"][row["state"]] += 1
    types = Counter(row["type"] for row in last)
    return {
        "summary": _plain(summary),
        "total_tasks": types["NORMAL_TASK"],
        "total_actor_tasks": types["ACTOR_TASK"],
        "total_actor_scheduled": types["ACTOR_CREATION_TASK"],
        "summary_by": "func_name",
    }


def _sum_actors(rows: list[dict[str, Any]]) -> dict[str, Any]:
    summary: dict[str, dict[str, Any]] = {}
    for row in rows:
        entry = summary.setdefault(
            row["class_name"], {"class_name": row["class_name"], "state_counts": Counter()}
        )
        entry["state_counts"][row["state"]] += 1
    return {"summary": _plain(summary), "total_actors": len(rows), "summary_by": "class"}


def _sum_objects(rows: list[dict[str, Any]]) -> dict[str, Any]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["call_site"], []).append(row)
    return {
        "summary": {site: _sum_site(group) for site, group in groups.items()},
        "total_objects": len(rows),
        "total_size_mb": _megabytes(rows),
        "callsite_enabled": any(site not in ("disabled", "") for site in groups),
        "summary_by": "callsite",
    }


def _sum_site(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "total_objects": len(rows),
        "total_size_mb": _megabytes(rows),
        "total_num_workers": len({row["pid"] for row in rows}),
        "total_num_nodes": len({row["ip"] for row in rows}),
        "task_state_counts": dict(Counter(row["task_status"] for row in rows)),
        "task_attempt_number_counts": dict(Counter(str(row["attempt_number"]) for row in rows)),
        "ref_type_counts": dict(Counter(row["reference_type"] for row in rows)),
    }


def _megabytes(rows: list[dict[str, Any]]) -> float:
    return float(sum(max(0, row["object_size"]) for row in rows)) / 1e6


def _plain(summary: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {key: {**entry, "state_counts": dict(entry["state_counts"])} for key, entry in summary.items()}


class Summary:
    """Counts of a resource.

    Attributes
    ----------
    summary
        See `summarize`.
    notes
        What is missing.
    """

    def __init__(self, summary: dict[str, Any], notes: list[str]) -> None:
        self.summary = summary
        self.notes = notes


def summary_of(resource: str, address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S) -> Summary:
    """Ask a session for the counts of tasks, actors or objects."""
    table = _engine.current().state_table(resource, address, _filters.checked_timeout(timeout))
    return Summary(summarize(resource, table.rows), _missing(table))


def memory_of(address: str | None, timeout: float) -> tuple[Listing, dict[str, int]]:
    """Return every object, and how full the store is (bytes)."""
    with Link(address, _filters.checked_timeout(timeout)) as link:
        table = tables.objects(link)
        store: dict[str, int] = link.call("object_store")
    return Listing(table.rows, len(table.rows), _missing(table) + table.notes), store


def _summary(
    resource: str, address: str | None, timeout: float, raise_on_missing_output: bool
) -> dict[str, Any]:
    boolean("raise_on_missing_output", raise_on_missing_output)
    found = summary_of(resource, address, timeout)
    if found.notes and raise_on_missing_output:
        raise RayStateApiException(f"not all {resource} are known: {'; '.join(found.notes)}")
    for note in found.notes:
        warnings.warn(note, stacklevel=3)
    return {"cluster": found.summary}


def summarize_tasks(
    address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """Count tasks by function and state: ``{"cluster": {"summary": {name: ...}, "total_tasks": ...}}``."""
    return _summary("tasks", address, timeout, raise_on_missing_output)


def summarize_actors(
    address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """Count actors by class and state."""
    return _summary("actors", address, timeout, raise_on_missing_output)


def summarize_objects(
    address: str | None = None, timeout: float = DEFAULT_TIMEOUT_S, raise_on_missing_output: bool = True
) -> dict[str, Any]:
    """Count objects by call site (needs ``FTRAY_record_ref_creation_sites=1`` to tell call sites apart)."""
    return _summary("objects", address, timeout, raise_on_missing_output)
