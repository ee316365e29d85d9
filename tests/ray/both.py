"""Which tests of tests/functional hold on Ray, too (``pytest --engine=ray``), with what differs named."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import ROOT

LIMIT_S = 240  # of a test: Ray takes a second or two to start a process
# Modules that run on both engines.
MODULES = (
    "test_actor_pool",
    "test_actors",
    "test_await",
    "test_checkpoint",
    "test_checkpoint_group_calls",
    "test_checkpoint_groups",
    "test_checkpoint_manage",
    "test_checkpoint_stores",
    "test_concurrency_groups",
    "test_exactly_once",
    "test_exactly_once_awaits",
    "test_exactly_once_fencing",
    "test_exactly_once_outcomes",
    "test_exactly_once_releases",
    "test_exactly_once_rules",
    "test_exactly_once_values",
    "test_exactly_once_waits",
    "test_generator_returns",
    "test_internal_kv",
    "test_nested_tasks",
    "test_queue",
    "test_task_errors",
    "test_tasks",
)
# Modules of the checkpoint toolkit that do not -> why.
LEFT_OUT = {
    "test_checkpoint_discards": "our node removes them; on Ray: tests/ray/test_checkpoint_snapshots.py",
    "test_checkpoint_ends": "SIGTERM ends Ray's workers without asking the actor",
    "test_checkpoint_restarts": "faults and deaths in constructors, which Ray restarts later than it says",
    "test_exactly_once_hashing": "Ray starts no process with a hash seed of ours",
    "test_exactly_once_returns": "on Ray a reply is one value, whatever num_returns says; 0 is refused",
    "test_exactly_once_outages": "it reaches into the journals of our own processes",
    "test_exactly_once_sessions": "drivers of the node's own sessions; tests/ray/test_checkpoint_api.py",
    "test_parking": "tests/ray/test_parking.py",
}
_RELEASES = "replies to tasks are released with the actor"
_UNNAMED = "Ray does not always run what removes the checkpoints of an unnamed actor"
_THREADS = "Ray does not name its threads"
_LOOPS = "each concurrency group of an asynchronous actor has an event loop of its own"
_RETURNS = "generators with a number of returns are not run again for an exception"
_UNREADABLE = "Ray reads arguments itself, before any code of the actor's runs"
_NATIVE = "about the processes and files of ftray's own node"
# Test (without its parameters) -> why it is not run on Ray.
DIFFERENT = {
    "test_actors::test_async_actor_starts_calls_in_order_and_bounds_them": "Ray keeps no order of such calls",
    "test_await::test_a_loop_that_is_closed_before_the_answer": _NATIVE,
    "test_await::test_a_task_that_awaits_lends_its_cpus": "a task lends its CPUs in get and wait only",
    "test_await::test_get_in_an_async_method_warns_once": "Ray warns, too, in its own words",
    "test_await::test_what_nobody_awaits_any_more_is_freed": _NATIVE,
    "test_await::test_ten_thousand_answers_wake_the_loop_once_for_a_batch": (
        "Ray wakes a loop for each few answers"
    ),
    "test_checkpoint_group_calls::test_what_was_sent_to_a_member_that_opens_and_takes_its_sender_back": (
        "stops the node's process, which Ray has not: tests/ray/test_checkpoint_groups.py has its like"
    ),
    "test_checkpoint_groups::test_exactly_once_calls_of_the_old_history_are_refused": (
        "a caller learns the history some time after its first answer"
    ),
    "test_checkpoint::test_snapshots_of_an_unnamed_actor_go_with_it": _UNNAMED,
    "test_checkpoint::test_state_survives_the_whole_runtime": "agents of Ray's outlive a killed driver",
    "test_checkpoint_stores::test_kv_survives_the_head": "Ray's key-value store ends with the head",
    "test_checkpoint_manage::test_an_unnamed_actors_key_is_no_orphan_while_its_session_lives": _UNNAMED,
    "test_checkpoint_manage::test_a_caller_of_the_old_history_is_refused": (
        "a caller learns the history some time after its first answer"
    ),
    "test_checkpoint_manage::test_ls_asks_the_actors_whether_they_can_save": "by a session's directory",
    "test_concurrency_groups::test_coroutines_of_each_group_are_limited": _LOOPS,
    "test_concurrency_groups::test_each_group_has_threads_of_its_own": _THREADS,
    "test_concurrency_groups::test_group_of_one_call": _THREADS,
    "test_concurrency_groups::test_order_within_a_group_of_one_of_an_async_actor": (
        "Ray keeps no order of such calls"
    ),
    "test_concurrency_groups::test_the_default_group_keeps_max_concurrency": _THREADS,
    "test_concurrency_groups::test_the_default_group_of_an_async_actor_keeps_max_concurrency": _LOOPS,
    "test_exactly_once::test_an_application_level_retry_is_another_call": "retry_exceptions is refused",
    "test_exactly_once::test_what_a_cancelled_method_has_called_is_not_retried": (
        "retry_exceptions is refused"
    ),
    "test_exactly_once::test_callers_that_have_ended_are_forgotten": _RELEASES,
    "test_exactly_once::test_verify_tells_what_would_not_be_the_same": (
        "the process ends before Ray has taken the error away"
    ),
    "test_exactly_once::test_verify_waits_for_what_async_methods_await": (
        "the process ends before Ray has taken the error away"
    ),
    "test_exactly_once_awaits::test_a_call_that_was_accepted_keeps_its_arguments": _UNREADABLE,
    "test_exactly_once_awaits::test_an_await_whose_value_comes_at_the_last_moment": _NATIVE,
    "test_exactly_once_awaits::test_no_snapshot_is_of_half_a_method_after_a_call_that_could_not_begin": (
        _UNREADABLE
    ),
    "test_exactly_once_outcomes::test_a_call_that_may_not_run_again": (
        "a caller acknowledges a call that has failed, too: what became of it is unknown"
    ),
    "test_exactly_once_releases::test_a_value_that_can_be_made_again_keeps_its_callers": _RELEASES,
    "test_exactly_once_releases::test_an_inner_one_stays_while_the_outer_one_may_run_again": _RELEASES,
    "test_exactly_once_releases::test_many_short_lived_callers_leave_a_bounded_ledger": _RELEASES,
    "test_exactly_once_releases::test_tasks_of_methods_are_forgotten": _RELEASES,
    "test_exactly_once_releases::test_tasks_of_tasks_are_forgotten": _RELEASES,
    "test_exactly_once_rules::test_r27_a_cancel_leaves_a_method_after_its_start": (
        "Ray's cancel does not reach a task that blocks in the kernel"
    ),
    "test_exactly_once_rules::test_r37_a_call_says_what_is_known_when_it_is_sent_again": (
        "a caller learns the history some time after its first answer"
    ),
    "test_exactly_once_rules::test_tasks_that_called_are_released_and_their_callee_stays_right": _RELEASES,
    "test_exactly_once_values::test_a_call_whose_arguments_cannot_be_read_is_an_error_for_good": _UNREADABLE,
    "test_exactly_once_values::test_an_actor_that_was_killed_before_its_last_save_goes_on": (
        "Ray restarts no actor that has said that it ends; tests/ray/test_checkpoint_exactly_once.py"
    ),
    "test_generator_returns::test_the_last_ref_of_a_dynamic_generator_is_its_exception": _RETURNS,
    "test_generator_returns::test_too_few_values": "Ray says it in other words",
    "test_generator_returns::test_values_before_an_exception_stay_good_with_a_number_of_returns": _RETURNS,
    "test_internal_kv::test_a_full_disk_costs_the_write_only": _NATIVE,
    "test_internal_kv::test_a_head_does_not_start_on_a_storage_that_it_cannot_use": _NATIVE,
    "test_internal_kv::test_a_program_that_does_not_use_it_does_not_pay_for_it": _NATIVE,
    "test_internal_kv::test_the_node_runs_on_when_its_store_cannot_be_used": _NATIVE,
    "test_internal_kv::test_what_was_acknowledged_is_there_after_the_head_was_killed": _NATIVE,
}


def workers_find_tests(directory: Path) -> None:
    """Have Ray's workers import ``tests``, and nothing else of where the sources are."""
    (directory / "tests").symlink_to(Path(ROOT, "tests"))
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = f"{directory}{os.pathsep}{path}" if path else str(directory)


def is_left_out(path: Path) -> bool:
    """Whether a file has tests, and none that run on Ray."""
    is_test = path.name.startswith("test_") and Path(ROOT, "tests", "functional") in path.parents
    return is_test and path.stem not in MODULES


def chosen(items: list[pytest.Item], config: pytest.Config) -> list[pytest.Item]:
    """Return the tests that run; the others are reported as deselected."""
    kept, left = [], []
    for item in items:
        module, name = item.path.stem, item.name.partition("[")[0]
        listed = item.path.parent.name == "functional" and module in MODULES
        runs = listed and f"{module}::{name}" not in DIFFERENT
        (kept if runs else left).append(item)
        if item.get_closest_marker("limit") is None:
            item.add_marker(pytest.mark.limit(LIMIT_S))
    config.hook.pytest_deselected(items=left)
    return kept
