"""What the state API returns: one class for each resource, with Ray's names of fields.

Owns: which fields there are, which can be filtered by, which are filled only with ``detail=True`` (the
others are then None). Leaves to others: where values come from (``tables``).
"""

# ruff: noqa: RUF009 - column() is a field()

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any


def column(*, filterable: bool = True, detail: bool = False) -> Any:
    """A field of a record."""
    return field(default=None, metadata={"filterable": filterable, "detail": detail})


class StateSchema:
    """Base of all records: a dataclass that can be read like a dict."""

    @classmethod
    def list_columns(cls, detail: bool = True) -> list[str]:
        """Return the names of the fields, those of ``detail=True`` only when asked for."""
        return [f.name for f in fields(cls) if detail or not f.metadata["detail"]]  # type: ignore[arg-type]

    @classmethod
    def columns(cls) -> set[str]:
        """Return every field's name."""
        return set(cls.list_columns())

    @classmethod
    def base_columns(cls) -> set[str]:
        """Return the fields that are always filled."""
        return set(cls.list_columns(detail=False))

    @classmethod
    def detail_columns(cls) -> set[str]:
        """Return every field's name: with ``detail=True`` all are filled."""
        return cls.columns()

    @classmethod
    def filterable_columns(cls) -> set[str]:
        """Return the fields that ``filters`` may name."""
        return {f.name for f in fields(cls) if f.metadata["filterable"]}  # type: ignore[arg-type]

    def asdict(self) -> dict[str, Any]:
        """Return the record as a dict."""
        return asdict(self)  # type: ignore[call-overload,no-any-return]

    def __getitem__(self, key: str) -> Any:
        if key not in self.columns():
            raise KeyError(
                f"{type(self).__name__} has no field {key!r}; it has {', '.join(self.list_columns())}"
            )
        return getattr(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return a field, ``default`` when there is none of this name."""
        return getattr(self, key) if key in self.columns() else default


@dataclass
class TaskState(StateSchema):
    """One attempt of a task."""

    task_id: str = column()
    attempt_number: int = column()
    name: str = column()
    state: str = column()
    job_id: str = column()
    actor_id: str | None = column()
    type: str = column()
    func_or_class_name: str = column()
    parent_task_id: str = column()
    node_id: str | None = column()
    worker_id: str | None = column()
    worker_pid: int | None = column()
    error_type: str | None = column()
    language: str | None = column(detail=True)
    events: list[dict[str, Any]] | None = column(detail=True, filterable=False)
    creation_time_ms: int | None = column(detail=True, filterable=False)
    start_time_ms: int | None = column(detail=True, filterable=False)
    end_time_ms: int | None = column(detail=True, filterable=False)
    error_message: str | None = column(detail=True, filterable=False)


@dataclass
class ActorState(StateSchema):
    """An actor, living or dead."""

    actor_id: str = column()
    class_name: str = column()
    state: str = column()
    job_id: str = column()
    name: str | None = column()
    node_id: str | None = column()
    pid: int | None = column()
    ray_namespace: str | None = column()
    required_resources: dict[str, float] | None = column(detail=True, filterable=False)
    death_cause: dict[str, Any] | None = column(detail=True, filterable=False)
    is_detached: bool | None = column(detail=True, filterable=False)
    num_restarts: int = column(detail=True, filterable=False)
    worker_id: str | None = column(detail=True)


@dataclass
class ObjectState(StateSchema):
    """An object, as its owner knows it."""

    object_id: str = column()
    object_size: int = column()
    task_status: str = column()
    attempt_number: int = column()
    reference_type: str = column()
    call_site: str = column()
    type: str = column()
    pid: int = column()
    ip: str = column()
    local_references: int | None = column(detail=True, filterable=False)
    tasks: int | None = column(detail=True, filterable=False)
    borrowers: int | None = column(detail=True, filterable=False)


@dataclass
class NodeState(StateSchema):
    """A machine."""

    node_id: str = column()
    node_ip: str = column()
    is_head_node: bool = column()
    state: str = column()
    state_message: str | None = column(filterable=False)
    node_name: str = column()
    resources_total: dict[str, float] = column(filterable=False)
    labels: dict[str, str] = column(filterable=False)
    start_time_ms: int | None = column(detail=True, filterable=False)
    end_time_ms: int | None = column(detail=True, filterable=False)


@dataclass
class WorkerState(StateSchema):
    """A process of the session."""

    worker_id: str = column()
    is_alive: bool = column()
    worker_type: str = column()
    exit_type: str | None = column()
    node_id: str = column()
    ip: str = column()
    pid: int = column()
    exit_detail: str | None = column(detail=True, filterable=False)
    start_time_ms: int | None = column(detail=True, filterable=False)
    end_time_ms: int | None = column(detail=True, filterable=False)
    job_id: str | None = column(detail=True)
    actor_id: str | None = column(detail=True)


@dataclass
class JobState(StateSchema):
    """A driver and what it submitted."""

    job_id: str = column()
    submission_id: str | None = column()
    type: str = column()
    status: str = column()
    message: str | None = column(filterable=False)
    start_time: int | None = column(detail=True, filterable=False)
    end_time: int | None = column(detail=True, filterable=False)
    driver_info: dict[str, Any] | None = column(detail=True, filterable=False)


@dataclass
class PlacementGroupState(StateSchema):
    """A placement group."""

    placement_group_id: str = column()
    name: str = column()
    creator_job_id: str | None = column()
    state: str = column()
    bundles: list[dict[str, Any]] | None = column(detail=True, filterable=False)
    is_detached: bool | None = column(detail=True)
    stats: dict[str, Any] | None = column(detail=True, filterable=False)


# Resource of the command line -> record, and which of its fields is its id.
RESOURCES: dict[str, tuple[type[StateSchema], str]] = {
    "tasks": (TaskState, "task_id"),
    "actors": (ActorState, "actor_id"),
    "objects": (ObjectState, "object_id"),
    "nodes": (NodeState, "node_id"),
    "workers": (WorkerState, "worker_id"),
    "jobs": (JobState, "job_id"),
    "placement-groups": (PlacementGroupState, "placement_group_id"),
}
