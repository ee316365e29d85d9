"""The real ``ftrayd`` with fake workers: what happens when anything of it dies, hangs, floods or lies."""

from __future__ import annotations

import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray._node import frames as f
from ftray._node import launch, session
from tests.helpers import processes
from tests.helpers.sync import eventually
from tests.unit.node.fakes import FakeDriver, actor_spec, ask
from tests.unit.node.running import (
    ALIVE,
    DEAD,
    FAKES,
    RESTARTING,
    Running,
    create,
    impatient,
    kill,
    state,
    wait_ended,
)


class TestStart:
    def test_a_worker_is_a_child_of_ftrayd_in_a_clean_state(self, node: Running, driver: FakeDriver) -> None:
        grant = driver.lease()
        facts: Any = driver.ask(grant, "facts")
        assert facts["ppid"] == node.handle.pid
        assert facts["sigint"] and not facts["blocked"] and facts["omp"] == "1"
        assert facts["pgid"] == grant.pid
        kinds = [target.split(":")[0] for target in facts["fds"]]
        assert not [k for k in kinds if "lock" in k] and kinds.count("pipe") == 2, facts["fds"]
        assert not {"numpy", "asyncio", "concurrent.futures"} & set(facts["modules"])

    def test_children_have_different_random_numbers(self, driver: FakeDriver) -> None:
        driver.send(f.LeaseRequest(1, 2, (("CPU", 1.0),), "", "f"))
        grants = [driver.wait(f.LeaseGrant) for _ in range(2)]
        first, second = (driver.ask(g, "facts")["random"] for g in grants)  # type: ignore[arg-type, index]
        assert first != second

    def test_the_zygote_has_one_thread_also_after_a_preload(self, start: Callable[..., Running]) -> None:
        node = start(preload=("numpy",))
        driver = node.driver()
        zygote = node.zygote()
        eventually(lambda: "numpy" in Path(f"/proc/{zygote}/maps").read_text())
        assert threads(zygote) == 1
        assert threads(node.handle.pid) == 1
        eventually(lambda: "numpy" in ask_unused(driver, "facts")["modules"])

    def test_a_preload_that_fails_is_reported_and_workers_still_come(
        self, start: Callable[..., Running]
    ) -> None:
        node = start(preload=("no_such_module_anywhere",))
        driver = node.driver()
        warning = driver.wait(f.Warn, lambda w: "no_such_module_anywhere" in w.text)
        assert "ModuleNotFoundError" in warning.text  # type: ignore[attr-defined]
        assert driver.ask(driver.lease(), "echo", 1) == 1

    def test_a_broken_worker_module_ends_in_an_error_for_whoever_waits(
        self, start: Callable[..., Running]
    ) -> None:
        node = start(worker_module="no_worker_module_here")
        driver = node.driver()
        driver.send(f.LeaseRequest(1, 1, (("CPU", 1.0),), "", "f"))
        told: Any = driver.wait(f.LeaseInfeasible)
        assert told.fatal and "no_worker_module_here" in told.text
        with pytest.raises(launch.NodeStartError, match="no_worker_module_here"):
            node.handle.wait_warm(10)
        actor_id = create(driver)
        assert "no_worker_module_here" in pickle.loads(state(driver, actor_id, DEAD).cause)["text"]

    def test_a_node_that_cannot_start_says_why(self, tmp_path: Path) -> None:
        (tmp_path / f"ftray-{os.getuid()}").mkdir(mode=0o755)
        (tmp_path / f"ftray-{os.getuid()}").chmod(0o755)
        with pytest.raises(launch.NodeStartError, match="mode 0700"):
            launch.start_node(launch.NodeOptions(tmpdir=str(tmp_path)))

    def test_a_node_that_dies_while_it_starts_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        checked = launch.NodeOptions.checked
        wrong = {"resources": {"disk": "much"}}  # noticed when the session's directory is there
        monkeypatch.setattr(launch.NodeOptions, "checked", lambda options: {**checked(options), **wrong})
        with pytest.raises(launch.NodeStartError, match="did not start: it ended with status 1"):
            launch.start_node(launch.NodeOptions(tmpdir=str(tmp_path)))
        assert list(tmp_path.rglob("s-*")) == []

    @pytest.mark.parametrize(
        ("option", "value"), [("num_cpus", -1), ("hang_timeout_s", "soon"), ("resources", {"CPU": 2})]
    )
    def test_wrong_options_name_themselves(self, option: str, value: object) -> None:
        with pytest.raises(ValueError, match="CPU" if option == "resources" else option):
            launch.NodeOptions(**{option: value}).checked()  # type: ignore[arg-type]

    def test_a_long_directory_for_sessions(self, start: Callable[..., Running], tmp_path: Path) -> None:
        deep = tmp_path / ("d" * 60) / ("e" * 60)
        deep.mkdir(parents=True)
        node = start(tmpdir=str(deep))
        driver = node.driver()
        assert driver.ask(driver.lease(), "echo", 7) == 7
        node.close()
        assert list(deep.glob("ftray-*/s-*")) == []


def threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def ask_unused(driver: FakeDriver, method: str) -> Any:
    """Ask a worker that nobody used before; it does not come back."""
    grant = driver.lease(cpus=0.0, key=int.from_bytes(os.urandom(4), "little"))
    answer = driver.ask(grant, method)
    driver.send(f.LeaseReturn(grant.lease_id, 0))
    return answer


class TestDeaths:
    def test_a_killed_worker_is_told_with_its_signal_and_its_cpu_returns(self, driver: FakeDriver) -> None:
        grant = driver.lease(cpus=2.0)
        kill(grant.pid)
        died: Any = driver.wait(f.WorkerDied)
        assert (died.pid, died.kind, died.code) == (grant.pid, f.DEATH_SIGNAL, signal.SIGKILL)
        assert died.worker_id == grant.worker_id and "SIGKILL" in died.text
        assert driver.lease(cpus=2.0).pid != grant.pid

    def test_what_a_worker_started_ends_with_it(self, driver: FakeDriver) -> None:
        grant = driver.lease()
        child: Any = driver.ask(grant, "child", ["/bin/sleep", "1000"])
        kill(grant.pid)
        wait_ended([child])

    def test_the_zygotes_death_costs_nothing_but_a_new_zygote(
        self, node: Running, driver: FakeDriver
    ) -> None:
        grant = driver.lease()
        zygote = node.zygote()
        kill(zygote)
        driver.wait(f.Warn, lambda w: "forks workers" in w.text)
        assert driver.ask(grant, "echo", 1) == 1
        others = [driver.lease(key=k, cpus=0.0) for k in range(10, 16)]
        assert len({g.pid for g in others}) == 6
        assert all(processes.parent_of(g.pid) == node.handle.pid for g in others)

    def test_workers_come_after_zygotes_that_died_one_after_the_other(
        self, node: Running, driver: FakeDriver
    ) -> None:
        """The next one is started after a pause; what is asked for meanwhile is not forgotten."""
        driver.lease()
        for _ in range(3):
            processes.end(node.zygote())
        driver.send(f.LeaseRequest(7, 6, (("CPU", 0.0),), "", "f"))
        for _ in range(6):
            assert driver.ask(driver.wait(f.LeaseGrant), "echo", 5) == 5  # type: ignore[arg-type]

    def test_the_end_of_ftrayd_ends_every_process(self, node: Running, driver: FakeDriver) -> None:
        driver.lease()
        pids = node.descendants()
        assert len(pids) >= 2  # the zygote and at least the leased worker
        kill(node.handle.pid)
        wait_ended(pids)
        assert select.select([node.handle.lifeline_fd], [], [], 10)[0]
        assert not node.handle.is_alive()
        node.handle.shutdown()
        assert not os.path.exists(node.dir)

    def test_the_end_of_the_driver_ends_everything(self, tmp_path: Path) -> None:
        program = (
            "import sys, os\nfrom ftray._node import launch\nfrom tests.unit.node.fakes import "
            f"FakeDriver\noptions = dict(num_cpus=2, worker_module={FAKES!r}, tmpdir={str(tmp_path)!r})\nh = "
            "launch.start_node(launch.NodeOptions(**options))\nd = FakeDriver(h.session_dir); g = "
            "d.lease()\nchild = d.ask(g, 'child', ['/bin/sleep', '1000'])\n"
            "pid = os.fork()\n"  # a foreign child that keeps the driver's descriptors
            "if pid == 0:\n    os.execv('/bin/cat', ['cat'])\n"
            "print(h.pid, g.pid, child, flush=True); sys.stdin.read()\n"
        )
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        with subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        ) as process:
            assert process.stdout is not None
            pids = [int(word) for word in process.stdout.readline().split()]
            assert len(pids) == 3
            pids += processes.descendants_of(pids[0])
            process.kill()
        wait_ended(pids)
        assert list(tmp_path.glob("ftray-*/s-*")) == []

    def test_a_stopped_worker_is_hung_and_killed(self, start: Callable[..., Running]) -> None:
        driver = start(hang_timeout_s=1.0).driver()
        grant = driver.lease()
        kill(grant.pid, signal.SIGSTOP)
        died: Any = driver.wait(f.WorkerDied, lambda d: d.pid == grant.pid)
        assert died.kind == f.DEATH_HUNG and "heartbeat" in died.text

    def test_sigterm_ends_the_node_in_order(self, node: Running, driver: FakeDriver) -> None:
        driver.lease()
        pids = node.descendants()
        kill(node.handle.pid, signal.SIGTERM)
        wait_ended([node.handle.pid, *pids])
        assert not os.path.exists(node.dir)

    def test_a_worker_that_does_not_exit_at_shutdown_is_killed(
        self, node: Running, driver: FakeDriver
    ) -> None:
        grant = driver.lease()
        kill(grant.pid, signal.SIGSTOP)
        node.close()
        wait_ended([grant.pid])

    def test_orphans_are_adopted_and_ended_at_shutdown(self, node: Running, driver: FakeDriver) -> None:
        grant = driver.lease()
        daemon = ["/bin/sh", "-c", "setsid sleep 1000 & echo $! > " + node.dir + "/orphan"]
        driver.ask(grant, "child", daemon)
        path = Path(node.dir, "orphan")
        eventually(lambda: path.exists() and path.read_text().strip() != "")
        orphan = int(path.read_text())
        node.close()
        wait_ended([orphan])

    def test_a_stale_session_is_swept_by_the_next_node(self, start: Callable[..., Running]) -> None:
        first = start()
        kill(first.handle.pid)
        wait_ended([first.handle.pid])
        assert os.path.exists(first.dir)
        assert os.path.basename(first.dir) in session.sweep_stale(str(first.base))
        assert not os.path.exists(first.dir)


class TestLeases:
    def test_a_returned_worker_serves_the_next_lease(self, driver: FakeDriver) -> None:
        first = driver.lease()
        driver.send(f.LeaseReturn(first.lease_id, 1))
        assert driver.lease().pid == first.pid

    def test_one_that_is_not_reusable_exits(self, driver: FakeDriver) -> None:
        first = driver.lease()
        driver.send(f.LeaseReturn(first.lease_id, 0))
        died: Any = driver.wait(f.WorkerDied)
        assert (died.pid, died.kind) == (first.pid, f.DEATH_INTENDED)

    def test_a_second_client_gets_its_turn_through_reclaim(self, node: Running, driver: FakeDriver) -> None:
        grant = driver.lease(cpus=2.0)
        other = node.driver()
        other.send(f.LeaseRequest(1, 1, (("CPU", 2.0),), "", "g"))
        reclaim: Any = driver.wait(f.LeaseReclaim)
        assert reclaim.lease_id == grant.lease_id
        driver.send(f.LeaseReturn(grant.lease_id, 1))
        assert other.wait(f.LeaseGrant)

    def test_a_blocked_workers_cpu_is_lent(self, driver: FakeDriver) -> None:
        grant = driver.lease(cpus=2.0)
        driver.ask(grant, "send", f.Blocked())
        assert driver.lease(key=2, cpus=2.0).pid != grant.pid
        driver.ask(grant, "send", f.Unblocked())
        eventually(lambda: driver.node.rpc("available_resources")["CPU"] == 0)

    @pytest.mark.parametrize(
        ("resources", "strategy", "fatal", "text"),
        [
            ((("chip", 1.0),), "", 0, "chip: 1 asked, 0 in total"),
            ((("CPU", -1.0),), "", 1, "CPU=-1.0"),
            ((("CPU", float("nan")),), "", 1, "nan"),
            ((), '{"type": "node_affinity", "node_id": "00", "soft": false}', 1, "not part of this session"),
            ((), '{"type": "placement_group"}', 1, "placement_group"),
            ((), "nonsense", 1, "nonsense"),
        ],
    )
    def test_what_cannot_be_is_told(
        self, driver: FakeDriver, resources: Any, strategy: str, fatal: int, text: str
    ) -> None:
        driver.send(f.LeaseRequest(1, 1, resources, strategy, "f"))
        told: Any = driver.wait(f.LeaseInfeasible)
        assert told.fatal == fatal and text in told.text

    def test_a_leaving_driver_takes_its_leases_and_actors_along(
        self, node: Running, driver: FakeDriver
    ) -> None:
        other = node.driver()
        lease = other.lease()
        lost = create(other)
        kept = create(other, lifetime="detached", name="kept", namespace="ns")
        lost_pid, kept_pid = state(other, lost, ALIVE).pid, state(other, kept, ALIVE).pid
        other.close()
        died = {driver.wait(f.WorkerDied).pid for _ in range(3)}  # type: ignore[attr-defined]
        assert {lease.pid, lost_pid} <= died
        assert processes.is_running(kept_pid)
        assert driver.node.rpc("get_named_actor", name="kept", namespace="ns")["state"] == "ALIVE"
        assert driver.lease(cpus=2.0)

    def test_an_idle_worker_leaves_unless_it_declines(self, start: Callable[..., Running]) -> None:
        driver = start(idle_timeout_s=0.2, prestart_workers=0).driver()
        first, second = driver.lease(key=1, cpus=0.0), driver.lease(key=2, cpus=0.0)
        driver.ask(first, "decline", True)
        for grant in (first, second):
            driver.send(f.LeaseReturn(grant.lease_id, 1))
        died: Any = driver.wait(f.WorkerDied, lambda d: d.pid == second.pid)
        assert died.kind == f.DEATH_INTENDED
        assert driver.ask(first, "echo", 1) == 1


class TestActors:
    def test_created_called_killed_restarted(self, driver: FakeDriver) -> None:
        actor_id = create(driver, max_restarts=-1)
        first = state(driver, actor_id, ALIVE)
        eventually(lambda: driver.ask(first, "incarnation", actor_id) == 1)
        kill(first.pid)
        restarting = state(driver, actor_id, RESTARTING)
        assert pickle.loads(restarting.cause)["death"]["pid"] == first.pid
        second = state(driver, actor_id, ALIVE, incarnation=2)
        eventually(lambda: driver.ask(second, "incarnation", actor_id) == 2)
        driver.send(f.ActorKill(actor_id, 1, f.KILL_EXPLICIT))
        cause = pickle.loads(state(driver, actor_id, DEAD).cause)
        assert cause["kind"] == "killed"
        assert not processes.is_running(second.pid)

    def test_a_constructor_that_raises(self, driver: FakeDriver) -> None:
        actor_id = create(driver, max_restarts=5, args_blob=pickle.dumps({"error": ValueError("no")}))
        cause = pickle.loads(state(driver, actor_id, DEAD).cause)
        assert cause["kind"] == "constructor" and str(pickle.loads(cause["error"])) == "no"

    def test_a_constructor_that_crashes_is_retried_as_often_as_allowed(self, driver: FakeDriver) -> None:
        actor_id = create(driver, max_restarts=3, args_blob=pickle.dumps({"crashes": 2}))
        assert state(driver, actor_id, ALIVE, incarnation=3)
        eventually(lambda: driver.node.rpc("actor_info", actor_id=actor_id)["ready"])
        gone = create(driver, max_restarts=1, args_blob=pickle.dumps({"crashes": 9}))
        assert "exited with code 9" in pickle.loads(state(driver, gone, DEAD).cause)["text"]

    def test_a_named_actor_is_found_shared_and_its_name_freed(
        self, node: Running, driver: FakeDriver
    ) -> None:
        first = os.urandom(16)
        spec = actor_spec(driver, first, name="n", namespace="ns", max_restarts=1)
        driver.send(f.ActorCreate(first, spec), req=1)
        assert pickle.loads(driver.wait(f.RpcReply).result) == {"actor_id": first, "existing": False}  # type: ignore[attr-defined]
        other = node.driver(namespace="ns")
        found = other.node.rpc("get_named_actor", name="n")
        assert found["actor_id"] == first and found["spec"]["class_name"] == "Fake"
        again = os.urandom(16)
        other.send(f.ActorCreate(again, actor_spec(other, again, name="n", namespace="ns")), req=2)
        refused: Any = other.wait(f.RpcReply)
        assert not refused.ok and "taken" in str(pickle.loads(refused.result))
        shared = actor_spec(other, again, name="n", namespace="ns", get_if_exists=True)
        other.send(f.ActorCreate(again, shared), req=3)
        assert pickle.loads(other.wait(f.RpcReply).result)["existing"]  # type: ignore[attr-defined]
        assert state(other, first, ALIVE)
        driver.send(f.ActorKill(first, 1, f.KILL_EXPLICIT))
        assert state(other, first, DEAD)
        assert other.node.rpc("get_named_actor", name="n") is None
        assert other.node.rpc("list_named_actors", all_namespaces=True) == []

    def test_an_exit_on_purpose_is_not_restarted(self, driver: FakeDriver) -> None:
        actor_id = create(driver, max_restarts=-1)
        alive = state(driver, actor_id, ALIVE)
        driver.ask(alive, "send", f.ActorExit(actor_id, f.EXIT_ACTOR))
        kill(alive.pid)
        assert pickle.loads(state(driver, actor_id, DEAD).cause)["kind"] == "exit"

    def test_out_of_scope_is_graceful(self, driver: FakeDriver) -> None:
        actor_id = create(driver)
        state(driver, actor_id, ALIVE)
        driver.send(f.ActorKill(actor_id, 1, f.KILL_OUT_OF_SCOPE))
        cause = pickle.loads(state(driver, actor_id, DEAD).cause)
        assert cause["kind"] == "out_of_scope" and cause["death"]["kind"] == f.DEATH_INTENDED

    def test_an_unknown_actor_is_dead(self, start: Callable[..., Running], tmp_path: Path) -> None:
        with impatient(tmp_path / "impatient", actors__EARLY_SUBSCRIBER_S=0.2):
            driver = start().driver()
        driver.send(f.ActorSubscribe(bytes(16)))
        assert "no actor" in pickle.loads(state(driver, bytes(16), DEAD).cause)["text"]

    def test_an_actor_waits_for_resources_with_a_warning(self, driver: FakeDriver) -> None:
        actor_id = create(driver, resources={"chip": 1.0})
        assert "chip" in driver.wait(f.Warn).text  # type: ignore[attr-defined]
        driver.send(f.ActorKill(actor_id, 1, f.KILL_EXPLICIT))
        assert state(driver, actor_id, DEAD)

    def test_an_actor_of_a_dead_owner_is_refused(self, driver: FakeDriver) -> None:
        actor_id = create(driver, owner=b"?" * 28)
        assert "owner" in pickle.loads(state(driver, actor_id, DEAD).cause)["text"]

    def test_many_actors_in_one_burst(self, driver: FakeDriver) -> None:
        ids = [create(driver) for _ in range(30)]
        assert len({state(driver, actor_id, ALIVE).pid for actor_id in ids}) == 30


def test_nothing_grows_over_many_workers(node: Running, driver: FakeDriver) -> None:
    """Descriptors of ``ftrayd`` after workers and actors came and went."""

    def cycle(rounds: int) -> None:
        for _ in range(rounds):
            actor_id = create(driver)
            kill(state(driver, actor_id, ALIVE).pid)
            state(driver, actor_id, DEAD)

    def descriptors() -> int:
        return len(os.listdir(f"/proc/{node.handle.pid}/fd"))

    def settled() -> bool:
        stages = [w["stage"] for w in driver.node.rpc("workers")]
        return len(stages) == 2 and set(stages) == {"IDLE"}

    cycle(3)
    eventually(settled, timeout_s=20)
    before = descriptors()
    cycle(15)
    eventually(settled, timeout_s=20)
    assert descriptors() == before


def test_a_killed_actor_is_back_soon(node: Running, driver: FakeDriver) -> None:
    """Not a benchmark: the way from SIGKILL to the next incarnation has no pause in it."""
    actor_id = create(driver, max_restarts=-1)
    alive = state(driver, actor_id, ALIVE)
    took = []
    for incarnation in range(1, 6):
        eventually(lambda a=alive, n=incarnation: driver.ask(a, "incarnation", actor_id) == n)
        begun = time.perf_counter()
        kill(alive.pid)
        alive = state(driver, actor_id, ALIVE, incarnation + 1)
        took.append(time.perf_counter() - begun)
    assert min(took) < 0.5, took


def test_ask_reaches_the_right_process(driver: FakeDriver) -> None:
    grant = driver.lease()
    facts: Any = ask(driver.node.session_dir, grant.sock_name, "facts")
    assert facts["pgid"] == grant.pid
