"""The real ``ftrayd`` with fake workers: segments, output, and clients that break the rules."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ftray._node import client
from ftray._node import frames as f
from ftray._node.protocol import HEADER, VERSION, FrameDecoder, encode, version_text
from ftray._node.running import observed
from tests.helpers.sync import eventually
from tests.unit.node.fakes import FakeDriver, unconnected
from tests.unit.node.running import (
    Running,
    impatient,
    kill,
)


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
        self, start: Callable[..., Running], tmp_path: Path
    ) -> None:
        with impatient(tmp_path / "impatient", spill_service__RETURN_PATIENCE_S=0.5):
            node = start(object_store_memory=1000)
        first, second = node.driver(), node.driver()
        self.register(first, 1, b"x" * 800)
        second.send(f.SegReserve(500), req=1)
        first.wait(f.SegShrink)
        assert not second.wait(f.SegReserved).ok  # type: ignore[attr-defined]

    def test_a_reservation_that_does_not_fit_waits_for_the_room_it_asks_for(
        self, start: Callable[..., Running]
    ) -> None:
        node = start(object_store_memory=1000)
        first, second = node.driver(), node.driver()
        self.register(first, 1, b"x" * 800)
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

    def test_another_version_is_answered_whatever_its_registration_looks_like(
        self, node: Running, driver: FakeDriver
    ) -> None:
        head = struct.pack("<BI28s", 0, os.getpid(), os.urandom(28))
        version = b"9-py9.9/8.7"
        for rest in (b"", bytes(300)):
            payload = head + struct.pack("<H", len(version)) + version + rest
            with unconnected(node.dir) as sock:
                sock.sendall(struct.pack("<IHHQ", len(payload), f.Register.TYPE, 0, 1) + payload)
                (answer,) = FrameDecoder().feed(sock.recv(1 << 16))
                assert isinstance(answer.frame, f.Registered) and not answer.frame.ok
                error = json.loads(answer.frame.info)
                assert "ftray 8.7 (protocol 9, Python 9.9)" in error["error"]
                assert error["version"] == VERSION and version_text(VERSION) in error["error"]
                assert self.closed(sock)

    def test_an_observer_asks_and_is_told_of_nothing(self, node: Running, driver: FakeDriver) -> None:
        with observed(node.dir) as observer:
            assert observer.job_id == 0
            grant = driver.lease()
            kill(grant.pid)
            assert driver.wait(f.WorkerDied).pid == grant.pid  # type: ignore[attr-defined]
            assert [row["drivers"] for row in observer.rpc("nodes")] == [1]
            assert not observer.has_pending
            (job,) = observer.rpc("jobs")
            assert (job["job_id"], job["pid"]) == (driver.node.job_id, os.getpid())
            observer.send(f.Blocked())
            assert self.closed(observer.sock)
        assert node.driver().node.job_id == driver.node.job_id + 1
        with pytest.raises(client.RegistrationError, match="wrong session token"):
            client.connect(node.dir, worker_id=bytes(28), token=bytes(32), kind=f.KIND_OBSERVER)

    @pytest.mark.parametrize("job", [b"[]", b"{", b"\xff"])
    def test_a_driver_that_describes_its_job_wrongly_is_refused(self, node: Running, job: bytes) -> None:
        with pytest.raises(client.RegistrationError, match="description of the job cannot be read"):
            client.connect(node.dir, worker_id=os.urandom(28), job=job)

    def test_a_job_key_has_one_driver_at_a_time(self, node: Running) -> None:
        node.driver()  # the one that the node lives with
        first = node.driver(job_key="nightly")
        with pytest.raises(client.RegistrationError, match=f"in use by driver {os.getpid()}"):
            node.driver(job_key="nightly")
        other = node.driver(job_key="weekly")
        first.close()
        other.wait(f.WorkerDied)
        assert node.driver(job_key="nightly").node.job_id

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
