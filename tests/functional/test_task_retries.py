"""Workers that die under a task: retries, their bound, and what the error says."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

import ftray as ray
from tests.helpers.processes import WAYS_TO_DIE, crash

pytestmark = pytest.mark.usefixtures("runtime")

every_way = pytest.mark.parametrize("how", WAYS_TO_DIE)


@ray.remote
def crash_first(tally, how, times):
    """Die in the first ``times`` attempts, then return the number of this one."""
    attempt = tally.bump()
    if attempt < times:
        crash(how)
    return attempt


@ray.remote
def fail_first(tally, error, times):
    attempt = tally.bump()
    if attempt < times:
        raise error
    return attempt


@ray.remote
def square(x):
    return x * x


@every_way
def test_task_of_a_dead_worker_runs_again(how, tally):
    assert ray.get(crash_first.remote(tally, how, 1)) == 1
    assert tally.count == 2


def test_each_attempt_makes_children_of_its_own(tally, tmp_path):
    """What an attempt that was given up has left behind must not pass for that of the next one."""
    seen = tmp_path / "seen"

    @ray.remote
    def parent(tally, path):
        with open(path, "a") as file:
            print(square.remote(2).hex(), ray.put(1).hex(), file=file)
        if tally.bump() == 0:
            crash("sigkill")

    ray.get(parent.remote(tally, str(seen)))
    ids = seen.read_text().split()
    assert len(set(ids)) == len(ids) == 4


def test_default_is_three_retries(tally):
    assert ray.get(crash_first.remote(tally, "sigkill", 3)) == 3


def test_after_the_last_retry_the_worker_crash_is_the_result(tally):
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(crash_first.remote(tally, "exit", 99))
    assert tally.count == 4


@pytest.mark.parametrize("retries", [0, 1, 2])
def test_max_retries_bounds_the_attempts(retries, tally):
    ref = crash_first.options(max_retries=retries).remote(tally, "sigkill", 99)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(ref)
    assert tally.count == retries + 1


def test_unlimited_retries(tally):
    assert ray.get(crash_first.options(max_retries=-1).remote(tally, "exit", 8)) == 8


@every_way
def test_the_error_names_process_cause_and_time(how, mailbox):
    @ray.remote(max_retries=0)
    def report_and_crash(box):
        box.post(os.getpid())
        crash(how)

    with pytest.raises(ray.exceptions.WorkerCrashedError) as caught:
        ray.get(report_and_crash.remote(mailbox))
    text = str(caught.value)
    assert str(mailbox.take()) in text
    assert re.search(rf"\b{WAYS_TO_DIE[how]}\b", text)
    assert str(time.gmtime().tm_year) in text or re.search(r"\d\d:\d\d:\d\d", text)
    assert "report_and_crash" in text


def test_worker_killed_from_outside_while_it_computes(mailbox, gate):
    @ray.remote
    def compute(box, door):
        box.post(os.getpid())
        door.wait()
        return "done"

    ref = compute.remote(mailbox, gate)
    os.kill(first := mailbox.take(), signal.SIGKILL)
    second = mailbox.take()
    assert second != first
    gate.open()
    assert ray.get(ref) == "done"


def test_all_results_of_a_retried_task_arrive(tally):
    @ray.remote(num_returns=3)
    def several(counter):
        if counter.bump() == 0:
            crash("sigkill")
        return "small", b"x" * 300_000, [ray.put("nested")]

    small, large, nested = ray.get(several.remote(tally))
    assert (small, len(large), ray.get(nested[0])) == ("small", 300_000, "nested")


def test_calls_queued_behind_a_crash_are_not_charged_for_it(tally):
    """They never started, so even ``max_retries=0`` must not lose them."""
    crasher = crash_first.options(max_retries=0).remote(tally, "exit", 99)
    others = [square.options(max_retries=0).remote(i) for i in range(200)]
    assert ray.get(others) == [i * i for i in range(200)]
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(crasher)


def test_finished_results_survive_a_crash_of_their_worker(tally):
    refs = [square.remote(i) for i in range(100)]
    ray.wait(refs, num_returns=100)
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(crash_first.options(max_retries=0).remote(tally, "segfault", 99))
    assert ray.get(refs) == [i * i for i in range(100)]


def test_arguments_are_resolved_again_for_a_retry(tally):
    @ray.remote
    def consume(counter, large, nested):
        if counter.bump() == 0:
            crash("sigkill")
        return len(large), ray.get(nested[0])

    assert ray.get(consume.remote(tally, ray.put(b"l" * 300_000), [ray.put("n")])) == (300_000, "n")


def test_dependent_tasks_get_the_crash_error(tally):
    ref = square.remote(crash_first.options(max_retries=0).remote(tally, "exit", 99))
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(ref)


def test_a_child_of_a_crashing_parent_is_made_anew(tally):
    @ray.remote
    def parent(counter):
        child = square.remote(7)
        if counter.bump() == 0:
            crash("sigkill")
        return ray.get(child)

    assert ray.get(parent.remote(tally)) == 49


def test_crash_while_waiting_for_a_child(tally, mailbox, gate):
    """The parent dies while its CPU is lent; all resources come back (checked by the fixture)."""

    @ray.remote
    def child(box, door):
        box.post(["child", os.getpid()])
        door.wait()
        return 1

    @ray.remote(max_retries=1)
    def parent(counter, box, door):
        ref = child.remote(box, door)
        if counter.bump() == 0:
            box.post(["parent", os.getpid()])
        return ray.get(ref)

    ref = parent.remote(tally, mailbox, gate)
    posted = dict([mailbox.take(), mailbox.take()])
    os.kill(posted["parent"], signal.SIGKILL)
    gate.open()
    assert ray.get(ref) == 1


# -- retries of user exceptions


def test_user_exceptions_are_not_retried_by_default(tally):
    with pytest.raises(ValueError):
        ray.get(fail_first.remote(tally, ValueError("once"), 1))
    assert tally.count == 1


@pytest.mark.parametrize(
    "retry_exceptions, error, runs",
    [
        (True, ValueError("x"), 3),
        ([ValueError], ValueError("x"), 3),
        ([KeyError, ValueError], ValueError("x"), 3),
        ([LookupError], KeyError("x"), 3),
        ([KeyError], ValueError("x"), 1),
        ([], ValueError("x"), 1),
        (False, ValueError("x"), 1),
    ],
)
def test_retry_exceptions(retry_exceptions, error, runs, tally):
    task = fail_first.options(retry_exceptions=retry_exceptions, max_retries=5)
    ref = task.remote(tally, error, 2)
    if runs == 3:
        assert ray.get(ref) == 2
    else:
        with pytest.raises(type(error)):
            ray.get(ref)
    assert tally.count == runs


def test_retried_exceptions_are_bounded_too(tally):
    with pytest.raises(ValueError):
        ray.get(fail_first.options(retry_exceptions=True, max_retries=2).remote(tally, ValueError("x"), 99))
    assert tally.count == 3


def test_crashes_and_exceptions_share_the_bound(tally):
    @ray.remote(max_retries=2, retry_exceptions=True)
    def alternate(counter):
        if counter.bump() % 2 == 0:
            crash("exit")
        raise ValueError("odd")

    with pytest.raises((ray.exceptions.WorkerCrashedError, ValueError)):
        ray.get(alternate.remote(tally))
    assert tally.count == 3


# -- settings of the environment are read by the driver


@pytest.mark.parametrize("variable", ["FTRAY_TASK_MAX_RETRIES", "RAY_TASK_MAX_RETRIES"])
def test_default_from_the_environment(variable, start_driver, tally):
    driver = start_driver(
        """
        import sys
        import ftray as ray
        from tests.helpers.processes import crash
        from tests.helpers.sync import Tally
        ray.init(num_cpus=1)
        tally = Tally(sys.argv[1])
        @ray.remote
        def always():
            tally.bump()
            crash("exit")
        try:
            ray.get(always.remote())
        except ray.exceptions.WorkerCrashedError:
            tell("crashed", tally.count)
        """,
        env={variable: "1"},
        args=[tally.path],
    )
    assert driver.expect("crashed") == 2
    driver.finish()
    driver.check_nothing_left()
