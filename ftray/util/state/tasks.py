"""From task events to rows of tasks.

Owns: the meaning of rows of `EventTable`: states, types and errors by Ray's names. Leaves to others: where
records come from (``tables``).
"""

from __future__ import annotations

import socket
from typing import Any

# EventState of _core/events.hpp
_STATES = {
    1: "PENDING_ARGS_AVAIL",
    2: "PENDING_NODE_ASSIGNMENT",
    3: "SUBMITTED_TO_WORKER",
    4: "FINISHED",
    5: "FAILED",
}
_PUSHED, _FINISHED, _FAILED = 3, 4, 5
# SystemError of _core/wire.pxd, EventError of _core/events.hpp
ERRORS = {
    1: "WORKER_DIED",
    2: "TASK_CANCELLED",
    3: "ACTOR_DIED",
    4: "ACTOR_UNAVAILABLE",
    5: "OWNER_DIED",
    6: "OBJECT_LOST",
    7: "NODE_DIED",
    8: "TASK_UNSCHEDULABLE_ERROR",
    9: "WORKER_DIED",
    10: "RUNTIME_ENV_SETUP_FAILED",
    11: "TASK_PLACEMENT_GROUP_REMOVED",
    20: "TASK_EXECUTION_EXCEPTION",
    21: "DEPENDENCY_RESOLUTION_FAILED",
    22: "OUT_OF_MEMORY",
}
_MESSAGES = {
    2: "the task was cancelled",
    9: "its worker could not be reached: this process has no descriptors left",
    21: "an argument of the task is an error",
}
NODE_IP = "127.0.0.1"


class Processes:
    """The processes of a session by what stands for them in task events."""

    def __init__(self, facts: list[dict[str, Any]]) -> None:
        self.all = facts
        self._by_short = {int.from_bytes(p["worker_id"][:8], "little"): p for p in facts}
        self._by_prefix = {int.from_bytes(p["worker_id"][:4], "little"): p for p in facts}

    def get(self, short: int) -> dict[str, Any] | None:
        """Return the facts about a process, None when it is not remembered."""
        return self._by_short.get(short)

    def by_prefix(self, prefix: int) -> dict[str, Any] | None:
        """The same by the first four bytes of its id."""
        return self._by_prefix.get(prefix)


class Attempt:
    """A row of `EventTable` with names."""

    __slots__ = (
        "attempt", "error", "executor", "function", "method", "of", "over_ns", "owner", "parent", "pushed_ns",
        "running", "started_ns", "state", "submitted_ns", "text", "unique",
    )  # fmt: skip

    def __init__(self, row: Any, processes: Processes) -> None:
        self.unique, self.attempt, self.owner, self.function, self.method, self.of, self.parent = row[:7]
        self.state, self.error, runner, worker, self.text = row[7:12]
        self.submitted_ns, self.pushed_ns, self.started_ns, self.over_ns = row[12:]
        self.running = bool(runner)
        self.executor = processes.get(runner) if runner else processes.by_prefix(worker) if worker else None


class TaskRows:
    """Makes rows (dicts with the fields of TaskState).

    Parameters
    ----------
    processes
        The session's.
    functions
        (kind, name) by number, by process.
    actors
        Their states.
    node_id
        Hexadecimal.
    offset_ns
        From CLOCK_MONOTONIC to unix time.
    """

    def __init__(
        self,
        processes: Processes,
        functions: dict[int, dict[int, tuple[int, str]]],
        actors: list[dict[str, Any]],
        node_id: str,
        offset_ns: int,
    ) -> None:
        self._processes = processes
        self._functions = functions
        self._actors = {actor["actor_id"][:4]: actor for actor in actors}
        self._node_id = node_id
        self._offset_ns = offset_ns

    def name(self, a: Attempt) -> str:
        """Return the name of an attempt's function or method."""
        name = self._functions.get(a.owner, {}).get(a.function, (0, "?"))[1]
        actor = self._actors.get(a.of) if a.method else None
        return f"{actor['class_name']}.{name}" if actor else name

    def state(self, a: Attempt) -> str:
        """Return the state of an attempt by Ray's name."""
        return "RUNNING" if a.running else _STATES[a.state]

    def row(self, a: Attempt) -> dict[str, Any]:
        """Return one attempt."""
        state = self.state(a)
        name = self.name(a)
        tail = self._tail(a)
        return {
            "task_id": (a.unique + tail).hex(),
            "attempt_number": a.attempt,
            "name": name,
            "state": state,
            "job_id": tail[12:].hex(),
            "actor_id": tail.hex() if a.method else None,
            "type": "ACTOR_TASK" if a.method else "NORMAL_TASK",
            "func_or_class_name": name,
            "parent_task_id": self._parent(a, tail),
            "node_id": self._node_id if a.executor else None,
            "worker_id": a.executor["worker_id"].hex() if a.executor else None,
            "worker_pid": a.executor["pid"] if a.executor else None,
            "error_type": ERRORS.get(a.error, f"UNKNOWN_{a.error}") if a.state == _FAILED else None,
            "language": "PYTHON",
            **self._times(a, state),
            "error_message": self._message(a) if a.state == _FAILED else None,
        }

    def _message(self, a: Attempt) -> str | None:
        known = a.text or _MESSAGES.get(a.error)
        if not known and a.executor is not None and a.executor["death"]:
            known = a.executor["death"]["text"]
        return known or None

    def _tail(self, a: Attempt) -> bytes:
        """The rest of a task's id: of its actor, or of its job."""
        if not a.method:
            return b"\xff" * 12 + bytes(a.of)
        actor = self._actors.get(a.of)
        if actor is not None:
            return bytes(actor["actor_id"])
        owner = self._processes.get(a.owner)  # forgotten: what is left of its id
        return bytes(a.of + bytes(8) + (owner["job_id"] if owner else 0).to_bytes(4, "little"))

    def _parent(self, a: Attempt, tail: bytes) -> str:
        """A parent is known by the unique part of its id; the rest follows from where it runs."""
        process = self._processes.get(a.owner)
        actor = process["actor_id"] if process else None
        is_root = process is not None and int.from_bytes(a.parent, "little") == process["root"]
        rest = actor if actor and not is_root else b"\xff" * 12 + tail[12:]
        return bytes(a.parent + rest).hex()

    def ms(self, mono_ns: int) -> int | None:
        """Unix time in ms of a time in a record, None when it is not known."""
        return (mono_ns + self._offset_ns) // 1_000_000 if mono_ns else None

    def _times(self, a: Attempt, state: str) -> dict[str, Any]:
        known = (
            ("PENDING_ARGS_AVAIL", a.submitted_ns),
            ("SUBMITTED_TO_WORKER", a.pushed_ns),
            ("RUNNING", a.started_ns),
            (state, a.over_ns),
        )
        return {
            "events": [{"state": s, "created_ms": self.ms(t)} for s, t in known if t],
            "creation_time_ms": self.ms(a.submitted_ns),
            "start_time_ms": self.ms(a.started_ns),
            "end_time_ms": self.ms(a.over_ns),
        }


def creation_row(actor: dict[str, Any], node_id: str) -> dict[str, Any]:
    """Return the constructor's run of an actor's current incarnation, as a task."""
    story = {state: unix_s for state, number, unix_s in actor["story"] if number == actor["incarnation"]}
    created_s = next((unix_s for _state, _number, unix_s in actor["story"]), None)
    cause = actor["cause"] or {}
    if "READY" in story:
        state = "FINISHED"
    elif actor["state"] == "DEAD":
        state = "FAILED"
    else:
        state = "RUNNING" if actor["state"] == "ALIVE" else "PENDING_NODE_ASSIGNMENT"
    over_s = story.get("READY") if state == "FINISHED" else story.get("DEAD") if state == "FAILED" else None
    failed = state == "FAILED"
    times = (
        ("PENDING_NODE_ASSIGNMENT", created_s),
        ("RUNNING", story.get("ALIVE")),
        (state if over_s else "", over_s),
    )
    worker = actor.get("worker_id")
    return {
        "task_id": (b"\xff" * 8 + actor["actor_id"]).hex(),
        "attempt_number": max(0, actor["incarnation"] - 1),
        "name": f"{actor['class_name']}.__init__",
        "state": state,
        "job_id": actor["actor_id"][12:].hex(),
        "actor_id": actor["actor_id"].hex(),
        "type": "ACTOR_CREATION_TASK",
        "func_or_class_name": f"{actor['class_name']}.__init__",
        "parent_task_id": "",
        "node_id": node_id if worker else None,
        "worker_id": worker.hex() if worker else None,
        "worker_pid": actor.get("pid"),
        "error_type": (_creation_error(cause) if failed else None),
        "language": "PYTHON",
        "events": [{"state": s, "created_ms": int(t * 1000)} for s, t in times if s and t],
        "creation_time_ms": int(created_s * 1000) if created_s else None,
        "start_time_ms": int(story["ALIVE"] * 1000) if "ALIVE" in story else None,
        "end_time_ms": int(over_s * 1000) if over_s else None,
        "error_message": cause.get("text") if failed else None,
    }


def _creation_error(cause: dict[str, Any]) -> str:
    names = {
        "constructor": "TASK_EXECUTION_EXCEPTION",
        "restore": "TASK_EXECUTION_EXCEPTION",
        "runtime_env": "RUNTIME_ENV_SETUP_FAILED",
    }
    return names.get(cause.get("kind", ""), "ACTOR_DIED")


def host_name() -> str:
    """Return this machine's name."""
    return socket.gethostname()
