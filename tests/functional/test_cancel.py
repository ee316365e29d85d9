"""``cancel``: queued, running and forced; a cancel never hits another task than the one meant."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

import ftray as ray
from tests.helpers.processes import wait_fd

pytestmark = pytest.mark.usefixtures("runtime")

one_cpu = pytest.mark.runtime(num_cpus=1)


@ray.remote
def occupy(box, door):
    box.post(os.getpid())
    door.wait()
    return "finished"


@ray.remote
def post(box, value):
    box.post(value)
    return value


def doze():
    """Runs for ever, in and out of the interpreter, waiting for what never comes."""
    never = threading.Event()
    while not never.wait(0.0005):
        pass


@ray.remote
def run(box):
    box.post(os.getpid())
    doze()


@ray.remote
def compute(box):
    """Never leaves the interpreter."""
    box.post(os.getpid())
    while True:
        pass


@ray.remote
def pause(box):
    """Never comes back from one system call."""
    box.post(os.getpid())
    signal.pause()


def assert_cancelled(ref):
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(ref)


@one_cpu
def test_queued_task_is_cancelled_and_never_runs(mailbox, gate):
    running = occupy.remote(mailbox, gate)
    mailbox.take()
    queued = [post.remote(mailbox, i) for i in range(5)]
    for ref in queued:
        ray.cancel(ref)
    gate.open()
    for ref in queued:
        assert_cancelled(ref)
    assert ray.get(running) == "finished"
    assert ray.get(post.remote(mailbox, "last")) == "last"
    assert mailbox.take_all() == ["last"]


@one_cpu
def test_only_the_one_named_is_cancelled(mailbox, gate):
    running = occupy.remote(mailbox, gate)
    mailbox.take()
    queued = [post.remote(mailbox, i) for i in range(6)]
    ray.cancel(queued[3])
    gate.open()
    assert ray.get([ref for ref in queued if ref is not queued[3]]) == [0, 1, 2, 4, 5]
    assert_cancelled(queued[3])
    assert ray.get(running) == "finished"


@pytest.mark.parametrize("task", [run, compute, pause], ids=["mixed", "python-loop", "in-kernel"])
def test_running_task_is_interrupted(task, mailbox):
    ref = task.remote(mailbox)
    mailbox.take()
    ray.cancel(ref)
    assert_cancelled(ref)


def test_user_code_sees_keyboard_interrupt_and_can_clean_up(mailbox):
    @ray.remote
    def careful(box):
        try:
            box.post("started")
            doze()
        except KeyboardInterrupt:
            box.post("interrupted")
            raise
        finally:
            box.post("cleaned")

    ref = careful.remote(mailbox)
    assert mailbox.take() == "started"
    ray.cancel(ref)
    assert [mailbox.take(), mailbox.take()] == ["interrupted", "cleaned"]
    assert_cancelled(ref)


def test_the_worker_survives_a_cancel(mailbox):
    ref = run.remote(mailbox)
    pid = mailbox.take()
    ray.cancel(ref)
    assert_cancelled(ref)
    os.kill(pid, 0)


def test_force_ends_the_process_of_a_task_that_does_not_listen(mailbox):
    @ray.remote
    def stubborn(box):
        news = [os.getpid()]
        while True:
            try:
                while news:
                    box.post(news.pop())  # inside: as soon as it is read, the interrupt may come
                doze()
            except KeyboardInterrupt:
                news.append("ignored")

    ref = stubborn.remote(mailbox)
    pid = mailbox.take()
    ray.cancel(ref)
    assert mailbox.take() == "ignored"
    pidfd = os.pidfd_open(pid)
    try:
        ray.cancel(ref, force=True)
        with pytest.raises((ray.exceptions.TaskCancelledError, ray.exceptions.WorkerCrashedError)):
            ray.get(ref)
        assert wait_fd(pidfd, 10), "the worker is still running"
    finally:
        os.close(pidfd)


def test_forced_cancel_is_task_cancelled_error_and_not_retried(mailbox):
    ref = run.options(max_retries=-1).remote(mailbox)
    mailbox.take()
    ray.cancel(ref, force=True)
    assert_cancelled(ref)
    assert ray.get(post.remote(mailbox, "after")) == "after"
    assert mailbox.take_all() == ["after"]


def test_cancelled_task_is_not_retried_as_an_exception(mailbox):
    ref = run.options(max_retries=-1, retry_exceptions=True).remote(mailbox)
    mailbox.take()
    ray.cancel(ref)
    assert_cancelled(ref)
    assert ray.get(post.remote(mailbox, "after")) == "after"
    assert mailbox.take_all() == ["after"]


def test_finished_task_is_left_alone(mailbox):
    ref = post.remote(mailbox, 1)
    assert ray.get(ref) == 1
    ray.cancel(ref)
    ray.cancel(ref, force=True)
    assert ray.get(ref) == 1


def test_task_that_waits_for_its_argument(mailbox, gate):
    blocked = post.remote(mailbox, occupy.remote(mailbox, gate))
    mailbox.take()
    ray.cancel(blocked)
    assert_cancelled(blocked)
    gate.open()


def test_dependent_tasks_of_a_cancelled_one_fail(mailbox):
    first = run.remote(mailbox)
    mailbox.take()
    second = post.remote(mailbox, first)
    ray.cancel(first)
    with pytest.raises(ray.exceptions.RayError) as caught:
        ray.get(second)
    assert "cancel" in str(caught.value).lower()


def test_task_that_waits_in_get_is_interrupted(mailbox, gate):
    @ray.remote
    def parent(box, door):
        child = occupy.options(num_cpus=0).remote(box, door)
        return ray.get(child)

    ref = parent.remote(mailbox, gate)
    mailbox.take()
    ray.cancel(ref, recursive=False)
    assert_cancelled(ref)
    gate.open()


@pytest.mark.parametrize("recursive", [True, False])
def test_recursive_cancel_reaches_the_children(recursive, mailbox, gate):
    @ray.remote
    def parent(box, door):
        return ray.get([occupy_and_report.remote(box, door)])

    @ray.remote(num_cpus=0)
    def occupy_and_report(box, door):
        try:
            box.post("started")
            door.wait()
            box.post("finished")
        except KeyboardInterrupt:
            box.post("interrupted")
            raise

    ref = parent.remote(mailbox, gate)
    assert mailbox.take() == "started"
    ray.cancel(ref, recursive=recursive)
    assert_cancelled(ref)
    if recursive:
        assert mailbox.take() == "interrupted"
    else:
        gate.open()
        assert mailbox.take() == "finished"


@one_cpu
def test_a_cancel_never_hits_the_next_task():
    """Cancels race with the end of their task; the task that follows on the same worker is innocent."""

    @ray.remote(max_retries=0)
    def short(duration_s):
        end = time.perf_counter() + duration_s
        while time.perf_counter() < end:
            pass
        return "short"

    @ray.remote(max_retries=0)
    def innocent(x):
        total = 0
        for i in range(2000):
            total += i
        return x

    cancelled = 0
    for i in range(300):
        victim = short.remote(i % 30 * 2e-5)
        followers = [innocent.remote((i, k)) for k in range(3)]
        ray.cancel(victim)
        assert ray.get(followers) == [(i, k) for k in range(3)]
        try:
            assert ray.get(victim) == "short"
        except ray.exceptions.TaskCancelledError:
            cancelled += 1
    assert cancelled > 0


@one_cpu
def test_late_cancels_of_running_tasks_never_hit_the_next_one(mailbox):
    """As above, but the cancel leaves when the task is known to be running."""

    @ray.remote(max_retries=0)
    def announce(box, steps):
        box.post()
        return sum(range(steps))

    @ray.remote(max_retries=0)
    def innocent(x):
        return sum(range(x))

    for i in range(100):
        victim = announce.remote(mailbox, i * 50)
        follower = innocent.remote(3000)
        mailbox.take()
        ray.cancel(victim)
        assert ray.get(follower) == sum(range(3000))
        try:
            assert ray.get(victim) == sum(range(i * 50))
        except ray.exceptions.TaskCancelledError:
            continue


def test_cancelling_twice_and_without_effect_raises_nothing(mailbox):
    ref = run.remote(mailbox)
    mailbox.take()
    ray.cancel(ref)
    ray.cancel(ref)
    assert_cancelled(ref)
    ray.cancel(ref)


@pytest.mark.parametrize("wrong", [1, "ref", None, [], object()])
def test_cancel_of_something_else(wrong):
    with pytest.raises(TypeError):
        ray.cancel(wrong)


def test_put_objects_cannot_be_cancelled_but_stay_readable():
    ref = ray.put(5)
    try:
        ray.cancel(ref)
    except (TypeError, ValueError):
        pass
    assert ray.get(ref) == 5
