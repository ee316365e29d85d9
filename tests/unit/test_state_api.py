"""The pure parts of the state API: filters, records, summaries, rows from records of events."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ftray.util.state import api, filters, records
from ftray.util.state.tasks import Attempt, Processes, TaskRows, creation_row

ACTOR = bytes(range(16))
WORKER = {
    "worker_id": b"W" * 28,
    "pid": 20,
    "death": None,
    "actor_id": None,
    "root": 0,
    "job_id": 1,
    "label": "",
}
OWNER = {
    "worker_id": b"O" * 28,
    "pid": 10,
    "death": None,
    "actor_id": None,
    "root": 99,
    "job_id": 1,
    "label": "",
}
SHORT_OWNER = int.from_bytes(b"O" * 8, "little")
SHORT_WORKER = int.from_bytes(b"W" * 8, "little")


@pytest.mark.parametrize(
    ("found", "wanted", "same"),
    [
        ("RUNNING", "running", True),
        ("RUNNING", "FINISHED", False),
        (3, "3", True),
        (3, 3.0, True),
        (3, "4", False),
        (True, "true", True),
        (True, "0", False),
        (False, False, True),
        (None, "None", True),
        (None, "x", False),
    ],
)
def test_values_compare_as_people_write_them(found: Any, wanted: Any, same: bool) -> None:
    assert filters.equal(found, wanted, "key") is same


@pytest.mark.parametrize(("found", "wanted"), [(3, "three"), (True, "maybe")])
def test_a_value_of_the_wrong_kind_is_named(found: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=re.escape(repr(wanted))):
        filters.equal(found, wanted, "key")


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ([("colour", "=", "red")], ValueError, "'colour' cannot be filtered by; allowed are actor_id"),
        ([("state", "<", "A")], ValueError, "allowed are = and !="),
        ([("state", "=", [1])], TypeError, "must be text, a number or a truth value"),
        ([("state", "A")], TypeError, "a filter is"),
        (["state=A"], TypeError, "a filter is"),
        ([("events", "=", "x")], ValueError, "'events' cannot be filtered by"),
    ],
)
def test_a_wrong_filter_is_refused(given: Any, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        filters.checked(records.TaskState, given)


def test_all_filters_must_hold() -> None:
    rows = [{"state": "A", "pid": 1}, {"state": "A", "pid": 2}, {"state": "B", "pid": 1}]
    assert filters.matching(rows, [("state", "=", "a"), ("pid", "!=", 1)]) == [rows[1]]
    assert filters.matching(rows, []) == rows


@pytest.mark.parametrize(
    ("limit", "kind"), [(0, ValueError), (10_001, ValueError), (True, TypeError), ("1", TypeError)]
)
def test_limits_are_checked(limit: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="limit="):
        filters.checked_limit(limit)


@pytest.mark.parametrize(
    ("timeout", "kind"), [(0, ValueError), (-1, ValueError), (None, TypeError), (True, TypeError)]
)
def test_timeouts_are_checked(timeout: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match="timeout="):
        filters.checked_timeout(timeout)


def test_records_are_read_like_dicts() -> None:
    task = api.make("tasks", {"task_id": "ab", "state": "RUNNING", "error_message": "x"}, detail=False)
    assert task["state"] == task.get("state") == "RUNNING"
    assert task["error_message"] is None, "a detail"
    assert task.get("colour", 3) == 3
    with pytest.raises(KeyError, match="it has task_id"):
        task["colour"]


def row(**given: Any) -> tuple[Any, ...]:
    values: dict[str, Any] = {
        "unique": b"u" * 8,
        "attempt": 0,
        "owner": SHORT_OWNER,
        "function": 3,
        "method": False,
        "of": b"\1\0\0\0",
        "parent": (99).to_bytes(8, "little"),
        "state": 4,
        "error": 0,
        "runner": 0,
        "worker": int.from_bytes(b"WWWW", "little"),
        "text": "",
        "submitted": 10_000_000,
        "pushed": 11_000_000,
        "started": 12_000_000,
        "over": 20_000_000,
    }
    values.update(given)
    return tuple(values.values())


def made(processes: list[dict[str, Any]] | None = None, **given: Any) -> dict[str, Any]:
    known = Processes(processes if processes is not None else [OWNER, WORKER])
    functions = {SHORT_OWNER: {3: (1 if given.get("method") else 0, "name")}}
    actors = [{"actor_id": ACTOR, "class_name": "Counter"}]
    return TaskRows(known, functions, actors, "n" * 4, 1_000_000_000).row(Attempt(row(**given), known))


def test_a_finished_task() -> None:
    found = made()
    assert found["task_id"] == (b"u" * 8 + b"\xff" * 12 + b"\1\0\0\0").hex()
    assert (found["name"], found["type"], found["state"]) == ("name", "NORMAL_TASK", "FINISHED")
    assert (found["worker_pid"], found["job_id"], found["error_type"]) == (20, "01000000", None)
    assert found["parent_task_id"] == ((99).to_bytes(8, "little") + b"\xff" * 12 + b"\1\0\0\0").hex()
    assert (found["creation_time_ms"], found["start_time_ms"], found["end_time_ms"]) == (1010, 1012, 1020)
    assert [e["state"] for e in found["events"]] == [
        "PENDING_ARGS_AVAIL", "SUBMITTED_TO_WORKER", "RUNNING", "FINISHED"
    ]  # fmt: skip


def test_a_method_has_its_actor_and_class() -> None:
    found = made(method=True, of=ACTOR[:4])
    assert (found["actor_id"], found["name"], found["type"]) == (ACTOR.hex(), "Counter.name", "ACTOR_TASK")
    assert found["task_id"] == (b"u" * 8 + ACTOR).hex()


def test_a_method_of_a_forgotten_actor_still_has_a_row() -> None:
    found = made(method=True, of=b"\x09" * 4)
    assert (found["name"], found["job_id"]) == ("name", "01000000")


def test_one_that_runs_is_where_it_says() -> None:
    found = made(state=3, runner=SHORT_WORKER, over=0)
    assert (found["state"], found["worker_pid"], found["end_time_ms"]) == ("RUNNING", 20, None)


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (1, "WORKER_DIED"),
        (2, "TASK_CANCELLED"),
        (3, "ACTOR_DIED"),
        (20, "TASK_EXECUTION_EXCEPTION"),
        (22, "OUT_OF_MEMORY"),
    ],
)
def test_errors_have_rays_names(error: int, name: str) -> None:
    assert made(state=5, error=error)["error_type"] == name


def test_a_crash_is_told_with_the_story_of_the_worker() -> None:
    dead = {**WORKER, "death": {"text": "worker 20 exited with code 1"}}
    assert made([OWNER, dead], state=5, error=1)["error_message"] == "worker 20 exited with code 1"


def test_a_process_that_is_not_remembered_leaves_gaps_and_no_errors() -> None:
    found = made([], state=1, worker=0)
    assert (found["worker_id"], found["state"]) == (None, "PENDING_ARGS_AVAIL")


def actor(**given: Any) -> dict[str, Any]:
    story = [("PENDING", 1, 1.0), ("ALIVE", 1, 2.0)]
    base = {
        "actor_id": ACTOR,
        "class_name": "Counter",
        "state": "ALIVE",
        "incarnation": 1,
        "cause": None,
        "story": story,
    }
    return {**base, **given}


@pytest.mark.parametrize(
    ("given", "state", "error"),
    [
        ({}, "RUNNING", None),
        ({"state": "PENDING", "story": [("PENDING", 1, 1.0)]}, "PENDING_NODE_ASSIGNMENT", None),
        ({"story": [("PENDING", 1, 1.0), ("ALIVE", 1, 2.0), ("READY", 1, 3.0)]}, "FINISHED", None),
        (
            {"state": "DEAD", "cause": {"kind": "constructor", "text": "x"}},
            "FAILED",
            "TASK_EXECUTION_EXCEPTION",
        ),
        ({"state": "DEAD", "cause": {"kind": "crash", "text": "x"}}, "FAILED", "ACTOR_DIED"),
    ],
)
def test_constructors_are_tasks_too(given: dict[str, Any], state: str, error: str | None) -> None:
    found = creation_row(actor(**given), "node")
    assert (found["state"], found["error_type"], found["name"]) == (state, error, "Counter.__init__")


def test_summaries_count_the_last_attempts() -> None:
    rows = [
        {
            "task_id": "1",
            "attempt_number": 0,
            "func_or_class_name": "f",
            "type": "NORMAL_TASK",
            "state": "FAILED",
        },
        {
            "task_id": "1",
            "attempt_number": 1,
            "func_or_class_name": "f",
            "type": "NORMAL_TASK",
            "state": "FINISHED",
        },
        {
            "task_id": "2",
            "attempt_number": 0,
            "func_or_class_name": "A.m",
            "type": "ACTOR_TASK",
            "state": "RUNNING",
        },
    ]
    found = api.summarize("tasks", rows)
    assert found["summary"]["f"]["state_counts"] == {"FINISHED": 1}
    assert (found["total_tasks"], found["total_actor_tasks"], found["total_actor_scheduled"]) == (1, 1, 0)
