"""Processes that are ended before memory runs out. No memory is filled: a file says how much is used."""

from __future__ import annotations

import os

import pytest

import ftray as ray
from ftray import _core
from ftray._node.memory_meter import TEST_HOOK
from tests.helpers.losing import check, lose, make
from tests.helpers.sync import eventually

pytestmark = pytest.mark.runtime(num_cpus=4, log_to_driver=False)


@pytest.fixture(scope="module")
def measured(shared_runtime, tmp_path_factory):
    """The file that says how much memory is used, to a runtime that these tests share."""
    path = tmp_path_factory.mktemp("memory") / "meter"
    shared_runtime.stop()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TEST_HOOK, str(path))
        patch.setenv("RAY_memory_monitor_refresh_ms", "10")
        patch.setenv("RAY_task_oom_retry_delay_base_ms", "20")
        yield path
        shared_runtime.stop()


@pytest.fixture
def meter(measured, runtime):
    """Calling it makes one look see 96 % used."""

    def press():
        written = measured.with_name("written")
        written.write_text(f"once {96 << 30} {100 << 30}")
        os.rename(written, measured)
        eventually(lambda: not measured.exists(), "the monitor looked")

    return press


@ray.remote
def hold(box, door, name):
    attempt = ray.get_runtime_context().attempt_number
    box.post([name, attempt, os.getpid()])
    door.wait()
    return name, attempt


@ray.remote
def hold_part(part, box, door):
    attempt = ray.get_runtime_context().attempt_number
    box.post(["part", attempt, os.getpid()])
    door.wait()
    return int(part[0]), attempt


def begun(box, count):
    return {name: (attempt, pid) for name, attempt, pid in (box.take() for _ in range(count))}


def test_the_newest_task_ends_and_runs_again_later_although_it_has_one_retry_only(meter, mailbox, gate):
    refs = []
    for name in "abc":
        refs.append(hold.options(max_retries=1).remote(mailbox, gate, name))
        begun(mailbox, 1)
    for attempt in (1, 2, 3):  # more often than max_retries
        meter()
        (again,) = begun(mailbox, 1).items()
        assert again[0] == "c" and again[1][0] == attempt
    gate.open()
    assert ray.get(refs) == [("a", 0), ("b", 0), ("c", 3)]


def test_an_argument_is_lost_during_the_pause(meter, mailbox, gate, tally):
    part = make.remote(tally)
    refs = [hold.remote(mailbox, gate, "other")]
    begun(mailbox, 1)
    refs.append(hold_part.options(num_cpus=0.5).remote(part, mailbox, gate))
    begun(mailbox, 1)
    _core.set_memory_retries(-1, 1000)
    try:
        meter()
        eventually(lambda: _core.debug_counters()["inflight"] == 1, "the newest task was ended, and waits")
    finally:
        _core.set_memory_retries(-1, 20)
    lose(part)
    check(part, 1)  # it is there again before the pause is over
    gate.open()
    assert ray.get(refs) == [("other", 0), (1, 1)]
    assert begun(mailbox, 1)["part"][0] == 1
    assert tally.count == 2


def test_the_last_task_of_its_owner_is_not_retried_and_the_error_says_all(meter, mailbox, gate):
    ref = hold.options(max_retries=-1).remote(mailbox, gate, "alone")
    _attempt, pid = begun(mailbox, 1)["alone"]
    meter()
    with pytest.raises(ray.exceptions.OutOfMemoryError) as caught:
        ray.get(ref)
    error = caught.value
    assert isinstance(error, ray.exceptions.WorkerCrashedError)
    assert (error.death.kind, error.death.pid, error.death.signal) == ("out of memory", pid, 9)
    node = ray.get_runtime_context().get_node_id()[:12]
    for part in ("hold()", "96.00 GiB of 100.00 GiB", "96.0%", "threshold is 95.0%", node, f"{pid} (", "MiB"):
        assert part in str(error), part


def test_a_task_that_must_not_be_repeated_ends_last_and_gets_the_error(meter, mailbox, gate):
    kept = hold.options(max_retries=0).remote(mailbox, gate, "once")
    begun(mailbox, 1)
    others = [hold.remote(mailbox, gate, name) for name in "ab"]
    begun(mailbox, 2)
    meter()
    assert next(iter(begun(mailbox, 1).values()))[0] == 1  # one of the others, again
    gate.open()
    assert ray.get(kept) == ("once", 0)
    assert sorted(ray.get(others)) == sorted([("a", 0), ("b", 1)]) or sorted(ray.get(others)) == [
        ("a", 1),
        ("b", 0),
    ]


def test_with_nothing_else_a_task_that_must_not_be_repeated_gets_the_error(meter, mailbox, gate):
    ref = hold.options(max_retries=0).remote(mailbox, gate, "once")
    begun(mailbox, 1)
    meter()
    with pytest.raises(ray.exceptions.OutOfMemoryError):
        ray.get(ref)


def test_an_actor_is_restarted_with_memory_as_the_cause(meter, mailbox):
    @ray.remote(max_restarts=1)
    class Actor:
        def pid(self):
            return os.getpid()

        def hang(self, box, door):
            box.post()
            door.wait()

    actor = Actor.remote()
    first = ray.get(actor.pid.remote())
    meter()
    eventually(lambda: ray.get(actor.pid.options(max_task_retries=-1).remote()) != first, "it was restarted")
    meter()
    with pytest.raises(ray.exceptions.ActorDiedError) as caught:
        while True:
            ray.get(actor.pid.remote())
    assert caught.value.death.kind == "out of memory"
    assert "memory monitor" in str(caught.value)
    assert isinstance(caught.value.__cause__, ray.exceptions.OutOfMemoryError)


def test_a_call_that_was_cancelled_meanwhile_stays_cancelled(meter, mailbox, gate):
    refs = [hold.remote(mailbox, gate, name) for name in "ab"]
    found = begun(mailbox, 2)
    meter()
    name, attempt, _pid = mailbox.take()
    assert attempt == 1 and name in found
    index = "ab".index(name)
    meter()  # it waits for its next attempt now, or has begun it
    ray.cancel(refs[index], force=True)
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(refs[index])
    gate.open()
    assert ray.get(refs[1 - index])[0] == "ab"[1 - index]


def test_nobody_ends_while_only_idle_workers_are_there(meter):
    pids = set(ray.get([_pid.remote() for _ in range(8)]))
    meter()
    assert ray.get(_pid.remote()) > 0 and pids


@ray.remote
def _pid():
    return os.getpid()


def test_limited_retries(no_runtime, tmp_path, monkeypatch, mailbox, gate):
    path = tmp_path / "meter"
    monkeypatch.setenv(TEST_HOOK, str(path))
    monkeypatch.setenv("FTRAY_memory_monitor_refresh_ms", "10")
    monkeypatch.setenv("FTRAY_task_oom_retries", "0")
    ray.init(num_cpus=2, log_to_driver=False)
    refs = [hold.remote(mailbox, gate, name) for name in "ab"]
    begun(mailbox, 2)
    path.write_text("once 99 100")
    ready, waiting = ray.wait(refs, timeout=20)
    with pytest.raises(ray.exceptions.OutOfMemoryError):
        ray.get(ready[0])
    gate.open()
    ray.get(waiting[0])


@pytest.mark.parametrize(
    "name, text",
    [
        ("FTRAY_memory_usage_threshold", "2"),
        ("FTRAY_memory_monitor_refresh_ms", "often"),
        ("FTRAY_task_oom_retries", "-2"),
    ],
)
def test_wrong_settings_are_refused_by_init(name, text, no_runtime, monkeypatch):
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=name):
        ray.init(num_cpus=1)
    assert not ray.is_initialized()


def test_the_monitor_can_be_switched_off(no_runtime, tmp_path, monkeypatch, mailbox, gate):
    path = tmp_path / "meter"
    path.write_text("99 100")
    monkeypatch.setenv(TEST_HOOK, str(path))
    monkeypatch.setenv("FTRAY_memory_monitor_refresh_ms", "0")
    ray.init(num_cpus=1, log_to_driver=False)
    ref = hold.options(max_retries=0).remote(mailbox, gate, "safe")
    begun(mailbox, 1)
    gate.open()
    assert ray.get(ref) == ("safe", 0)
