"""The real ``ftrayd`` with fake workers: what happens when anything of it dies, hangs, floods or lies."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ftray._node import client, launch, session
from ftray._node import frames as f
from ftray._node.protocol import HEADER, encode
from tests.helpers import processes
from tests.helpers.sync import eventually
from tests.unit.node.fakes import FakeDriver, actor_spec, ask, unconnected

FAKES = "tests.unit.node.fakes"


class Running:
    """A node under test and its drivers."""

    def __init__(self, base: Path, **options: Any) -> None:
        values = {"num_cpus": 2, "num_gpus": 0, "worker_module": FAKES, "tmpdir": str(base), **options}
        self.base = base
        self.handle = launch.start_node(launch.NodeOptions(**values))
        self.drivers: list[FakeDriver] = []
        self.log_fd = os.open(Path(self.dir, "ftrayd.log"), os.O_RDONLY | os.O_CREAT)

    def story(self) -> str:
        """What there is to say about a node that is gone though a test needs it."""
        status = os.waitid(os.P_PID, self.handle.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return f"{self.handle.last_words()}; {status}; log: {os.pread(self.log_fd, 1 << 16, 0).decode()}"

    @property
    def dir(self) -> str:
        return self.handle.session_dir

    def driver(self, **options: Any) -> FakeDriver:
        driver = FakeDriver(self.dir, **options)
        driver.last_words = self.story
        self.drivers.append(driver)
        return driver

    def descendants(self) -> list[int]:
        return [pid for pid in processes.descendants_of(self.handle.pid) if processes.is_running(pid)]

    def close(self) -> None:
        for driver in self.drivers:
            driver.close()
        self.handle.shutdown()
        if self.log_fd >= 0:
            os.close(self.log_fd)
            self.log_fd = -1


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Signal a process of this test through a pidfd."""
    pidfd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, number)
    finally:
        os.close(pidfd)


def wait_ended(pids: list[int], timeout_s: float = 20.0) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                assert select.select([pidfd], [], [], timeout_s)[0], f"process {pid} lives on"
            finally:
                os.close(pidfd)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start nodes; afterwards no process, descriptor or session directory may be left."""
    before = sorted(os.listdir("/proc/self/fd"))
    running: list[Running] = []

    def begin(**options: Any) -> Running:
        running.append(Running(tmp_path, **options))
        return running[-1]

    yield begin
    pids = [pid for node in running for pid in [node.handle.pid, *processes.descendants_of(node.handle.pid)]]
    for node in running:
        node.close()
    wait_ended(pids)
    assert list(tmp_path.glob("ftray-*/s-*")) == []
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def node(start: Callable[..., Running]) -> Running:
    return start()


@pytest.fixture
def driver(node: Running) -> FakeDriver:
    return node.driver()


def create(driver: FakeDriver, **changes: Any) -> bytes:
    """Create an actor and return its id."""
    actor_id = os.urandom(16)
    driver.send(f.ActorCreate(actor_id, actor_spec(driver, actor_id, **changes)))
    return actor_id


def state(driver: FakeDriver, actor_id: bytes, wanted: int, incarnation: int = 0) -> Any:
    return driver.wait(
        f.ActorState,
        lambda s: s.actor_id == actor_id and s.state == wanted and s.incarnation >= incarnation,
    )


PENDING, ALIVE, RESTARTING, DEAD = 1, 2, 3, 4


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
        zygote = next(p for p in node.descendants() if comm(p) == "ftray-zygote")
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


def comm(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


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
        zygote = next(p for p in node.descendants() if comm(p) == "ftray-zygote")
        kill(zygote)
        driver.wait(f.Warn, lambda w: "forks workers" in w.text)
        assert driver.ask(grant, "echo", 1) == 1
        others = [driver.lease(key=k, cpus=0.0) for k in range(10, 16)]
        assert len({g.pid for g in others}) == 6
        assert all(processes.parent_of(g.pid) == node.handle.pid for g in others)

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
            "import sys, os\n"
            "from ftray._node import launch\n"
            "from tests.unit.node.fakes import FakeDriver\n"
            f"h = launch.start_node(launch.NodeOptions(num_cpus=2, worker_module={FAKES!r}, tmpdir={str(tmp_path)!r}))\n"
            "d = FakeDriver(h.session_dir); g = d.lease()\n"
            "child = d.ask(g, 'child', ['/bin/sleep', '1000'])\n"
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
        driver = start(hang_timeout_s=0.6).driver()
        grant = driver.lease()
        kill(grant.pid, signal.SIGSTOP)
        died: Any = driver.wait(f.WorkerDied)
        assert (died.pid, died.kind) == (grant.pid, f.DEATH_HUNG) and "heartbeat" in died.text

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
        driver.wait(f.WorkerDied, lambda d: d.pid == second.pid)
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

    def test_an_unknown_actor_is_dead(self, driver: FakeDriver) -> None:
        driver.send(f.ActorSubscribe(bytes(16)))
        assert "no actor" in pickle.loads(state(driver, bytes(16), DEAD).cause)["text"]

    def test_an_actor_waits_for_resources_with_a_warning(self, driver: FakeDriver) -> None:
        actor_id = create(driver, resources={"chip": 1.0})
        assert "chip" in driver.wait(f.Warn).text  # type: ignore[attr-defined]
        driver.send(f.ActorKill(actor_id, 1, f.KILL_EXPLICIT))
        assert state(driver, actor_id, DEAD)

    def test_many_actors_in_one_burst(self, driver: FakeDriver) -> None:
        ids = [create(driver) for _ in range(30)]
        assert len({state(driver, actor_id, ALIVE).pid for actor_id in ids}) == 30


class TestSegments:
    def register(self, driver: FakeDriver, seg_id: int, content: bytes) -> None:
        driver.send(f.SegReserve(len(content)), req=seg_id)
        assert driver.wait(f.SegReserved).ok  # type: ignore[attr-defined]
        fd = os.memfd_create("segment")
        os.write(fd, content)
        driver.send(f.SegRegister(seg_id, len(content)), fds=[fd])
        os.close(fd)

    def test_a_reader_gets_the_producers_memory_and_hears_of_its_end(
        self, node: Running, driver: FakeDriver
    ) -> None:
        reader = node.driver()
        self.register(driver, 5, b"hello")
        eventually(lambda: driver.node.rpc("object_store")["segments"] == 1)
        reader.send(f.SegOpen(5), req=1)
        message = reader.node.receive()
        assert message.frame == f.SegFd(1, 5, 5)
        assert os.pread(message.fds[0], 5, 0) == b"hello"
        os.close(message.fds[0])
        driver.send(f.SegRelease(5))
        assert reader.wait(f.SegGone) == f.SegGone(5)
        reader.send(f.SegOpen(5), req=2)
        assert reader.wait(f.SegFd) == f.SegFd(0, 5, 0)
        assert driver.node.rpc("object_store")["used"] == 0

    def test_a_dead_producers_segment_lives_while_it_is_held(self, node: Running, driver: FakeDriver) -> None:
        producer = node.driver()
        self.register(producer, 9, b"x" * 100)
        eventually(lambda: driver.node.rpc("object_store")["used"] == 100)
        dead = producer.worker_id
        producer.close()
        driver.seen.clear()
        while not isinstance(driver.node.receive().frame, f.WorkerDied):
            pass
        driver.send(f.DeathAck(dead, (9,)))
        driver.send(f.SegOpen(9), req=1)
        message = driver.node.receive()
        assert message.frame == f.SegFd(1, 9, 100)
        os.close(message.fds[0])
        driver.send(f.SegUnhold(9))
        eventually(lambda: driver.node.rpc("object_store")["segments"] == 0)

    def test_a_reservation_that_does_not_fit_asks_for_room_and_is_then_refused(
        self, start: Callable[..., Running]
    ) -> None:
        node = start(object_store_memory=1000)
        first, second = node.driver(), node.driver()
        self.register(first, 1, b"x" * 800)
        second.send(f.SegReserve(500), req=1)
        first.wait(f.SegShrink)
        assert not second.wait(f.SegReserved).ok  # type: ignore[attr-defined]
        second.send(f.SegReserve(500), req=2)
        first.wait(f.SegShrink)
        first.send(f.SegRelease(1))
        assert second.wait(f.SegReserved) == f.SegReserved(1, 500, 1000)
        second.send(f.SegReserve(500), flags=f.FLAG_GIVE_BACK)
        eventually(lambda: second.node.rpc("object_store")["used"] == 0)


class TestLogs:
    def test_lines_arrive_with_name_pid_and_stream(self, driver: FakeDriver) -> None:
        grant = driver.lease()
        driver.ask(grant, "print", ("\x1ework\x1e\nhello\nhalf", 1))
        log: Any = driver.wait(f.Log)
        assert (log.pid, log.stream, log.name, log.text) == (grant.pid, 1, "work", b"hello\n")
        driver.ask(grant, "print", (" a line\n", 1))
        assert driver.wait(f.Log).text == b"half a line\n"  # type: ignore[attr-defined]
        driver.ask(grant, "print", ("oops\n", 2))
        assert driver.wait(f.Log).stream == 2  # type: ignore[attr-defined]

    def test_the_last_words_of_a_dying_worker_arrive(self, driver: FakeDriver) -> None:
        grant = driver.lease()
        driver.ask(grant, "print", ("famous last words", 2))
        kill(grant.pid)
        assert driver.wait(f.Log).text == b"famous last words\n"  # type: ignore[attr-defined]

    def test_a_flood_neither_blocks_the_node_nor_grows_it(self, node: Running, driver: FakeDriver) -> None:
        grant = driver.lease()
        driver.ask(grant, "flood", 40)  # returns only when everything was taken; nobody reads here
        resident_kb = int(Path(f"/proc/{node.handle.pid}/statm").read_text().split()[1]) * 4
        assert resident_kb < 60_000
        dropped: Any = driver.wait(f.Log, lambda log: b"lines dropped" in log.text)
        assert int(dropped.text.split()[1]) > 100_000


class TestHostileClients:
    def closed(self, sock: socket.socket) -> bool:
        sock.settimeout(10)
        try:
            while sock.recv(4096):
                pass
        except ConnectionResetError:
            return True
        return True

    @pytest.mark.parametrize(
        "data",
        [
            b"GET / HTTP/1.0\r\n\r\n",
            encode(f.Blocked()),
            HEADER.pack(1 << 30, f.Register.TYPE, 0, 0),
            HEADER.pack(3, f.Register.TYPE, 0, 0) + b"abc",
        ],
    )
    def test_garbage_before_registration_closes_the_connection(self, node: Running, data: bytes) -> None:
        driver = node.driver()
        with unconnected(node.dir) as sock:
            sock.sendall(data)
            assert self.closed(sock)
        assert driver.ask(driver.lease(), "echo", 1) == 1
        assert driver.wait(f.Warn)

    def test_a_wrong_token_is_refused_with_the_reason(self, node: Running) -> None:
        with pytest.raises(client.RegistrationError, match="wrong session token"):
            client.connect(node.dir, worker_id=bytes(28), token=bytes(32))
        with pytest.raises(client.RegistrationError, match="unknown startup token"):
            client.connect(node.dir, worker_id=bytes(28), token=bytes(32), kind=f.KIND_WORKER)

    def test_a_worker_that_breaks_the_protocol_is_ended_and_reported(self, driver: FakeDriver) -> None:
        grant = driver.lease()
        with contextlib.suppress(EOFError, ConnectionError):
            driver.ask(grant, "raw", struct.pack("<IHHQ", 0, 999, 0, 0))
        assert "unknown frame type 999" in driver.wait(f.Warn).text  # type: ignore[attr-defined]
        assert driver.wait(f.WorkerDied).pid == grant.pid  # type: ignore[attr-defined]
        assert driver.lease().pid != grant.pid

    def test_a_driver_that_sends_a_workers_frame_is_dropped(self, node: Running, driver: FakeDriver) -> None:
        other = node.driver()
        other.send(f.ActorExit(bytes(16), 0))
        assert self.closed(other.node.sock)
        assert "only workers send" in driver.wait(f.Warn).text  # type: ignore[attr-defined]

    def test_a_method_that_does_not_exist_or_fails_is_an_error_for_its_caller(
        self, driver: FakeDriver
    ) -> None:
        with pytest.raises(ValueError, match="no method 'nonsense'"):
            driver.node.rpc("nonsense")
        with pytest.raises(TypeError):
            driver.node.rpc("kv_get", wrong=1)
        assert driver.node.rpc("kv_put", key=b"k", value=b"v") is False
        assert driver.node.rpc("kv_get", key=b"k") == b"v"


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
    assert min(took) < 0.1, took


def test_ask_reaches_the_right_process(driver: FakeDriver) -> None:
    grant = driver.lease()
    facts: Any = ask(driver.node.session_dir, grant.sock_name, "facts")
    assert facts["pgid"] == grant.pid
