"""The state API: tasks, actors, objects and processes in every state, and who does not answer."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import ftray as ray
from ftray._stacks import stacks
from ftray.exceptions import ActorDiedError, TaskCancelledError, WorkerCrashedError
from ftray.util import state
from ftray.util.state.exception import RayStateApiException, ServerUnavailable
from tests.helpers.drivers import Driver
from tests.helpers.sync import Gate, Mailbox, Tally, eventually

pytestmark = pytest.mark.usefixtures("runtime")


def id_of(ref: Any) -> str:
    """The task that makes a ref."""
    return str(ref.hex()[:48])


def attempts(ref: Any) -> list[Any]:
    return state.list_tasks(filters=[("task_id", "=", id_of(ref))], detail=True)


def the(ref: Any) -> Any:
    (found,) = attempts(ref)
    return found


class TestTasks:
    def test_a_finished_task_has_times_in_order_and_a_worker(self) -> None:
        @ray.remote
        def where() -> int:
            return os.getpid()

        before_ms = time.time() * 1000
        ref = where.remote()
        pid = ray.get(ref)
        found = the(ref)
        assert (found.state, found.worker_pid, found.type, found.attempt_number) == (
            "FINISHED",
            pid,
            "NORMAL_TASK",
            0,
        )
        assert found.name.endswith("where")
        assert found.job_id == ray.get_runtime_context().get_job_id()
        assert found.node_id == ray.get_runtime_context().get_node_id()
        assert before_ms - 50 <= found.creation_time_ms, "its submission is known to a few ms"
        assert found.start_time_ms <= found.end_time_ms <= time.time() * 1000 + 1
        assert [e["state"] for e in found.events][-2:] == ["RUNNING", "FINISHED"]
        assert state.get_worker(found.worker_id).pid == pid

    def test_states_on_the_way(self, gate: Gate, mailbox: Mailbox) -> None:
        @ray.remote(num_cpus=2)
        def hold(gate: Any, box: Any) -> None:
            box.post("in")
            gate.wait()

        @ray.remote(resources={"missing": 1})
        def stuck() -> None: ...

        @ray.remote
        def after(_value: object) -> None: ...

        running = hold.remote(gate, mailbox)
        mailbox.take()
        queued = hold.remote(gate, mailbox)
        waiting = after.remote(running)
        unplaced = stuck.remote()
        found = the(running)
        assert found.state == "RUNNING"
        assert found.start_time_ms and found.end_time_ms is None
        assert the(queued).state in ("SUBMITTED_TO_WORKER", "PENDING_NODE_ASSIGNMENT")
        assert the(waiting).state == "PENDING_ARGS_AVAIL"
        assert the(unplaced).state == "PENDING_NODE_ASSIGNMENT"
        ray.cancel(unplaced)
        gate.open()
        ray.get([running, queued, waiting])
        assert the(waiting).state == "FINISHED"
        assert the(unplaced).error_type == "TASK_CANCELLED"

    def test_an_exception_is_an_error_with_its_message(self) -> None:
        @ray.remote
        def bad() -> None:
            raise ValueError("no luck")

        @ray.remote
        def after(_value: object) -> None: ...

        ref = bad.remote()
        ray.wait([ref])
        follower = after.remote(ref)
        ray.wait([follower])
        found = the(ref)
        assert (found.state, found.error_type) == ("FAILED", "TASK_EXECUTION_EXCEPTION")
        assert found.error_message == "ValueError: no luck"
        assert the(follower).error_type == "DEPENDENCY_RESOLUTION_FAILED"

    def test_attempts_after_crashes(self, tally: Tally) -> None:
        @ray.remote(max_retries=2)
        def second_time(tally: Tally) -> int:
            if tally.bump() == 0:
                os._exit(7)
            return ray.get_runtime_context().attempt_number

        ref = second_time.remote(tally)
        assert ray.get(ref) == 1
        first, second = attempts(ref)
        assert (first.attempt_number, first.state, first.error_type) == (0, "FAILED", "WORKER_DIED")
        assert "exited with code 7" in first.error_message
        assert first.start_time_ms, "what the dead worker was in is known"
        assert (second.attempt_number, second.state) == (1, "FINISHED")
        assert first.worker_pid != second.worker_pid
        both = state.get_task(id_of(ref))
        assert [a.attempt_number for a in both] == [0, 1]  # type: ignore[union-attr]

    def test_a_retried_exception_and_a_last_crash(self, tally: Tally) -> None:
        @ray.remote(max_retries=1, retry_exceptions=True)
        def third(tally: Tally) -> None:
            if tally.bump() == 0:
                raise ValueError("once")
            os._exit(3)

        ref = third.remote(tally)
        with pytest.raises(WorkerCrashedError):
            ray.get(ref)
        assert [(a.state, a.error_type) for a in attempts(ref)] == [
            ("FAILED", "TASK_EXECUTION_EXCEPTION"),
            ("FAILED", "WORKER_DIED"),
        ]

    def test_a_cancelled_task(self, gate: Gate, mailbox: Mailbox) -> None:
        @ray.remote
        def hold(gate: Any, box: Any) -> None:
            box.post("in")
            while True:
                time.sleep(0.01)

        ref = hold.remote(gate, mailbox)
        mailbox.take()
        ray.cancel(ref)
        with pytest.raises(TaskCancelledError):
            ray.get(ref)
        assert (the(ref).state, the(ref).error_type) == ("FAILED", "TASK_CANCELLED")

    def test_tasks_of_tasks_know_their_parent(self) -> None:
        @ray.remote
        def child() -> str:
            return str(ray.get_runtime_context().get_task_id())

        @ray.remote
        def parent() -> tuple[str, str]:
            return str(ray.get_runtime_context().get_task_id()), ray.get(child.remote())

        own, other = ray.get(parent.remote())
        found = state.get_task(other)
        assert found is not None and found.parent_task_id == own  # type: ignore[union-attr]

    @pytest.mark.parametrize("kind", ["task", "actor", "method"])
    def test_events_can_be_off(self, kind: str) -> None:
        def quiet() -> None: ...

        class Quiet:
            @ray.method(enable_task_events=False)
            def off(self) -> None: ...
            def on(self) -> None: ...

        if kind == "task":
            ref = ray.remote(enable_task_events=False)(quiet).remote()
        elif kind == "actor":
            ref = ray.remote(Quiet).options(enable_task_events=False).remote().on.remote()
        else:
            ref = ray.remote(Quiet).remote().off.remote()
        ray.get(ref)
        assert attempts(ref) == []
        if kind == "method":
            loud = ray.remote(Quiet).remote().on.remote()
            ray.get(loud)
            assert the(loud).state == "FINISHED"

    def test_many_tasks_are_all_there_and_limits_are_told(self) -> None:
        @ray.remote
        def many() -> None: ...

        ray.get([many.remote() for _ in range(1500)])
        name = many._name()
        with pytest.warns(UserWarning, match="10 of 1500 tasks are shown"):
            found = state.list_tasks(filters=[("name", "=", name)], limit=10)
        assert len(found) == 10
        summary = state.summarize_tasks()["cluster"]["summary"]
        assert summary[name]["state_counts"] == {"FINISHED": 1500}


class TestActors:
    def test_an_actor_from_creation_to_death(self, gate: Gate) -> None:
        @ray.remote(max_restarts=1)
        class Named:
            def __init__(self, gate: Any) -> None:
                gate.wait()

            def die(self) -> None:
                os._exit(4)

            def pid(self) -> int:
                return os.getpid()

        actor = Named.options(name="the one").remote(gate)
        actor_id = actor._actor_id.hex()

        def now() -> Any:
            return state.get_actor(actor_id)

        eventually(lambda: now() is not None)
        assert now().state == "PENDING_CREATION"
        gate.open()
        pid = ray.get(actor.pid.remote())
        found = now()
        assert (found.state, found.pid, found.name, found.class_name) == ("ALIVE", pid, "the one", "Named")
        lost = actor.die.remote()
        ray.wait([lost])
        assert the(lost).error_type == "ACTOR_UNAVAILABLE"
        second = ray.get(actor.pid.remote())
        assert (now().pid, now().num_restarts) == (second, 1)
        lost = actor.die.remote()
        with pytest.raises(ActorDiedError):
            ray.get(lost)
        assert now().state == "DEAD"
        assert "exited with code 4" in now().death_cause["exit_detail"]
        assert the(lost).error_type == "ACTOR_DIED"
        assert state.summarize_actors()["cluster"]["summary"]["Named"]["state_counts"]["DEAD"] >= 1

    def test_calls_of_threads_and_coroutines_run_beside_each_other(
        self, gate: Gate, mailbox: Mailbox
    ) -> None:
        @ray.remote(max_concurrency=2)
        class Threads:
            def hold(self, gate: Any, box: Any) -> str | None:
                box.post("in")
                gate.wait()
                return ray.get_runtime_context().get_task_name()

        actor = Threads.remote()
        refs = [actor.hold.remote(gate, mailbox) for _ in range(2)]
        mailbox.take()
        mailbox.take()
        assert [the(ref).state for ref in refs] == ["RUNNING", "RUNNING"]
        gate.open()
        assert ray.get(refs) == ["Threads.hold"] * 2
        assert [the(ref).state for ref in refs] == ["FINISHED", "FINISHED"]

    def test_a_constructor_that_raises_is_a_failed_task(self) -> None:
        @ray.remote
        class Broken:
            def __init__(self) -> None:
                raise ValueError("born dead")

            def call(self) -> None: ...

        actor = Broken.remote()
        with pytest.raises(ActorDiedError):
            ray.get(actor.call.remote())
        (found,) = state.list_tasks(
            filters=[("actor_id", "=", actor._actor_id.hex()), ("type", "=", "ACTOR_CREATION_TASK")]
        )
        assert (found.name, found.state, found.error_type) == (
            "Broken.__init__",
            "FAILED",
            "TASK_EXECUTION_EXCEPTION",
        )


class TestObjects:
    def objects(self, **wanted: Any) -> list[Any]:
        return state.list_objects(filters=[(k, "=", v) for k, v in wanted.items()], detail=True)

    def test_each_kind_of_reference(self, gate: Gate) -> None:
        @ray.remote
        def hold(gate: Any, _value: object) -> None:
            gate.wait()

        small, big = ray.put(1), ray.put(b"x" * 200_000)
        inner = ray.put("inner")
        outer = ray.put([inner])
        inner_id = inner.hex()
        del inner
        used = ray.put(2)
        task = hold.remote(gate, used)
        kinds = {o.object_id: o.reference_type for o in state.list_objects()}
        assert kinds[small.hex()] == "LOCAL_REFERENCE"
        assert kinds[big.hex()] == "PINNED_IN_MEMORY"
        assert kinds[inner_id] == "CAPTURED_IN_OBJECT"
        assert kinds[used.hex()] == "USED_BY_PENDING_TASK"
        (found,) = state.get_objects(big.hex())
        assert (found.object_size >= 200_000, found.pid, found.type) == (True, os.getpid(), "DRIVER")
        (pending,) = state.get_objects(task.hex())
        assert pending.object_size == -1 and pending.task_status != "FINISHED"
        gate.open()
        ray.get(task)
        (done,) = state.get_objects(task.hex())
        assert done.task_status == "FINISHED"
        del outer
        eventually(lambda: state.get_objects(inner_id) == [], "what only the outer value held is gone")

    def test_an_object_of_a_worker_and_its_borrower(self) -> None:
        @ray.remote
        class Owner:
            def make(self) -> list[Any]:
                self.ref = ray.put("mine")
                return [self.ref]

            def pid(self) -> int:
                return os.getpid()

        owner = Owner.remote()
        (ref,) = ray.get(owner.make.remote())
        (found,) = state.get_objects(ref.hex())
        assert (found.pid, found.type) == (ray.get(owner.pid.remote()), "WORKER")
        assert found.borrowers == 1


class TestProcesses:
    def test_workers_jobs_and_nodes(self) -> None:
        @ray.remote(max_retries=0)
        def die() -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        with pytest.raises(WorkerCrashedError):
            ray.get(die.remote())
        dead = state.list_workers(filters=[("is_alive", "=", False)], detail=True)
        assert any("SIGKILL" in w.exit_detail and w.exit_type == "SYSTEM_ERROR" for w in dead)
        (job,) = state.list_jobs(detail=True)
        assert (job.status, job.driver_info["pid"]) == ("RUNNING", str(os.getpid()))
        assert state.get_job(job.job_id) is not None
        (node,) = state.list_nodes()
        assert (node.state, node.resources_total["CPU"]) == ("ALIVE", 2.0)
        assert state.get_node(node.node_id) is not None
        assert state.get_node("00" * 28) is None

    def test_placement_groups(self) -> None:
        from ftray.util.placement_group import placement_group, remove_placement_group

        group = placement_group([{"CPU": 1}], name="one")
        assert group.wait(20)
        group_id = group.id.hex()
        found = state.get_placement_group(group_id)
        assert found is not None and (found.name, found.state) == ("one", "CREATED")
        assert found.bundles and found.bundles[0]["unit_resources"] == {"CPU": 1.0}
        remove_placement_group(group)
        (gone,) = state.list_placement_groups(filters=[("placement_group_id", "=", group_id)])
        assert gone.state == "REMOVED"

    def test_one_that_does_not_answer_is_missing_and_not_waited_for(self) -> None:
        @ray.remote
        class Frozen:
            def pid(self) -> int:
                return os.getpid()

        actor = Frozen.remote()
        pid = ray.get(actor.pid.remote())
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(RayStateApiException, match=f"no answer in time from process {pid}"):
                state.list_objects(timeout=0.5)
            with pytest.warns(UserWarning, match=f"process {pid}"):
                state.list_objects(timeout=0.5, raise_on_missing_output=False)
            (found,) = [w for w in stacks(timeout_s=1.5, use_py_spy=False) if w.pid == pid]
            assert found.stack == "" and "stopped" in found.problem
        finally:
            os.kill(pid, signal.SIGCONT)
        assert state.list_objects(filters=[("pid", "=", pid)]) == []

    def test_stacks_of_a_worker_that_holds_the_interpreter(self, mailbox: Mailbox) -> None:
        @ray.remote
        def greedy(box: Any) -> None:
            box.post(os.getpid())
            import re

            re.match(r"(a+)+$", "a" * 27 + "b")  # seconds in C, with the lock

        ref = greedy.remote(mailbox)
        pid = mailbox.take()
        (found,) = [w for w in stacks(timeout_s=10, use_py_spy=False) if w.pid == pid]
        assert "greedy" in found.stack
        assert found.running and found.running[0][0].endswith("greedy")
        ray.cancel(ref, force=True)
        ray.wait([ref])

    def test_from_inside_a_task_and_from_threads(self) -> None:
        @ray.remote
        def look() -> list[str]:
            return [t.state for t in state.list_tasks(filters=[("name", "=", look._name())])]

        assert ray.get(look.remote()) == ["RUNNING"]
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(state.list_nodes())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4

    def test_no_session_to_ask(self, tmp_path: Path) -> None:
        with pytest.raises(ServerUnavailable, match="address="):
            state.list_nodes(address=str(tmp_path / "none"))


def test_the_timeline_names_what_ran_where(tmp_path: Path) -> None:
    @ray.remote
    def traced() -> int:
        return os.getpid()

    pid = ray.get(traced.remote())
    name = traced._name()
    (found,) = [e for e in ray.timeline() or [] if e["name"] == name]
    assert (found["ph"], found["pid"], found["args"]["state"]) == ("X", pid, "FINISHED")
    assert found["dur"] >= 0
    path = tmp_path / "timeline.json"
    assert ray.timeline(str(path)) is None
    assert any(e["name"] == name for e in json.loads(path.read_text()))
    with pytest.raises(TypeError, match="filename"):
        ray.timeline(3)  # type: ignore[arg-type]


def test_the_runtime_context_names_what_runs() -> None:
    @ray.remote
    def named() -> tuple[str | None, str | None]:
        context = ray.get_runtime_context()
        return context.get_task_name(), context.get_task_function_name()

    @ray.remote
    class Async:
        async def call(self) -> str | None:
            return ray.get_runtime_context().get_task_name()

    name, function = ray.get(named.options(name="special").remote())
    assert name == "special"
    assert function is not None and function.endswith("named")
    assert ray.get(Async.remote().call.remote()) == "Async.call"
    assert ray.get_runtime_context().get_task_name() is None


SETTINGS = """
import ftray
from ftray.util import state
ftray.init(num_cpus=1)
@ftray.remote
def f(i): return i
ftray.get([f.remote(i) for i in range(300)])
ref = ftray.put("here")
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    rows = state.list_tasks(limit=1000)
(site,) = {o.call_site for o in state.get_objects(ref.hex())}
tell("facts", {"tasks": len(rows), "notes": [str(w.message) for w in caught], "site": site})
ftray.shutdown()
"""


@pytest.mark.parametrize(
    ("environment", "tasks", "note", "site"),
    [
        ({"FTRAY_task_events_report_interval_ms": "0"}, 0, "", "disabled"),
        (
            {"RAY_task_events_max_num_task_in_gcs": "64"},
            60,
            "240 older task attempts are forgotten",
            "disabled",
        ),
        ({"FTRAY_record_ref_creation_sites": "1"}, 300, "", ":<module>:"),
    ],
)
def test_settings_of_the_environment(
    environment: dict[str, str], tasks: int, note: str, site: str, start_driver: Any
) -> None:
    driver: Driver = start_driver(SETTINGS, env=environment)
    said = driver.expect("facts")
    assert said["tasks"] == tasks
    assert any(note in text for text in said["notes"]) or not note
    assert site in said["site"]
    driver.finish()
